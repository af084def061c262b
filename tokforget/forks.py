"""Let forked processes compute with torch: `datasets.map(num_proc=...)` and `multiprocessing` fork on Linux."""

import os
import sys
from functools import cache


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
