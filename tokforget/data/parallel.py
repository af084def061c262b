"""
One function over many batches in several processes, results in order, a bounded number of batches under way.
"""

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar


Batch = TypeVar("Batch")
Result = TypeVar("Result")
_WAITING_PER_PROCESS = 2
_work: Callable | None = None  # of a worker process


def in_order(
    work: Callable[[Batch], Result], batches: Iterable[Batch], num_proc: int = 1
) -> Iterator[tuple[Batch, Result]]:
    """
    Each batch with `work(batch)`, in the order of the batches; `work` is sent to a process once.

    Unlike `Pool.imap`, batches are taken only as results are asked for, so that memory does not grow with their number.
    An exception of `work` is raised here.
    """
    if num_proc == 1:
        for batch in batches:
            yield batch, work(batch)
        return
    # Elsewhere than on Linux the system's libraries do not survive a fork.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(num_proc, context, initializer=_begin, initargs=(work,)) as pool:
        waiting: deque = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(_run, batch)))
            if len(waiting) > _WAITING_PER_PROCESS * num_proc:
                batch, future = waiting.popleft()
                yield batch, future.result()
        for batch, future in waiting:
            yield batch, future.result()


def _begin(work: Callable) -> None:
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed outright cannot end its workers; they would wait for batches for ever."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _run(batch: Batch) -> Result:
    return _work(batch)
