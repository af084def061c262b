"""
Apply a function to many batches in several processes: results come in order, and few batches are in memory at once.
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
_work: Callable | None = None  # the function, in a worker process


def in_order(
    work: Callable[[Batch], Result], batches: Iterable[Batch], num_proc: int = 1
) -> Iterator[tuple[Batch, Result]]:
    """
    Yield each batch with `work(batch)`, in the order of the batches. `work` is sent to each process once.

    Unlike `Pool.imap`, this takes a new batch only when a result is asked for, so that memory does not grow with the
    number of batches. An exception in `work` is raised here.
    """
    if num_proc == 1:
        for batch in batches:
            yield batch, work(batch)
        return
    # Outside Linux, system libraries do not survive a fork.
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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes already run in parallel
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent dies: a killed parent cannot end its workers, and they would wait for ever."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _run(batch: Batch) -> Result:
    return _work(batch)
