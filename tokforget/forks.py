"""Let the processes of a pool compute with torch and NumPy: `datasets.map(num_proc=...)` and `multiprocessing`."""

import os
import sys
from functools import cache

from tokforget.optional import needed


@cache
def let_children_compute() -> None:
    """
    Make every process that is forked from now on use one torch thread. A child may still call `torch.set_num_threads`.

    A fork copies only the thread that forks. Torch's thread pool would wait for the missing threads for ever, as soon
    as a child computes something large enough for two threads. Call this wherever a model is loaded; only the first
    call has an effect.
    """
    if hasattr(os, "register_at_fork"):  # a system without fork has nothing to do
        os.register_at_fork(after_in_child=_compute_alone)


def _compute_alone() -> None:
    torch = sys.modules.get("torch")  # a process that has not loaded it has no pool of threads
    if torch is not None:
        torch.set_num_threads(1)


@cache
def share_cores(pid: int) -> None:
    """
    Give NumPy one thread in a process of a pool, such as those of `map(num_proc=2)`. Each of them would otherwise use all
    cores, and two processes would be slower than one (LOG.md). It runs once in each process, and leaves a number that
    was set in the environment.
    """
    pools = [sys.modules[name] for name in ("multiprocessing", "multiprocess") if name in sys.modules]
    if any(pool.parent_process() is not None for pool in pools) and not os.environ.get("OMP_NUM_THREADS"):
        with needed("`map` in several processes"):
            from threadpoolctl import threadpool_limits

        threadpool_limits(1)
