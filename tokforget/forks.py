"""What a process that was forked from this one needs to compute: `datasets.map(num_proc=...)` and `multiprocessing` fork on Linux."""

import os
import sys
from functools import cache


@cache
def let_children_compute() -> None:
    """
    From now on children that are forked from this process compute with one thread of torch each; what a child is told
    itself, by `torch.set_num_threads`, holds.

    A fork takes over no thread but the one that forks. Torch's pool would wait for the others for ever, as soon as a child
    computes what is worth two threads. To be called wherever a model is loaded; the first call counts.
    """
    if hasattr(os, "register_at_fork"):  # where there is no fork, nothing is inherited
        os.register_at_fork(after_in_child=_compute_alone)


def _compute_alone() -> None:
    torch = sys.modules.get("torch")  # a process that has not loaded it has no pool of threads
    if torch is not None:
        torch.set_num_threads(1)
