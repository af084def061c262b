"""
The queue of requests, and the processes that work on it.

Every worker process has a thread, which takes the request that has waited longest, and as one batch with it other
requests with the same settings that wait or arrive within a few milliseconds. A process that dies is started again,
and its requests are retried once. A process is ended if all its requests have timed out or disconnected.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tokforget.service.metrics import Metrics
from tokforget.service.settings import Settings
from tokforget.service.worker import Outcome, main


log = logging.getLogger("tokforget.service")
# Limits of a batch, so that no request waits long for others: about 0.2 s of a core.
MAX_BATCH, MAX_BATCH_CHARS = 32, 64_000
# A request whose process died is retried once, because another request may have caused it.
_TRIES = 2
# Seconds that a batch without waiting clients may continue; a new process takes half a second to start.
_ABANDONED = 1.0
_START_SECONDS = 600.0
_LOOK_EVERY = 0.1


class Busy(Exception):
    """The queue is full, or the service is stopping."""


class CannotStart(Exception):
    """A process could not load the model. The message says why."""


class Job:
    """
    One request in the queue.

    Args:
        kind (`str`): Method of [`tokforget.service.worker.Engine`].
        payload (`dict`): Its arguments.
        key (*optional*): Jobs with the same key may be compressed in one call; `None` for one that must run alone.
        chars (`int`): Characters of its texts.
        deadline (`float`): Time of the monotonic clock after which no client waits for it.
        done (`Callable[[Outcome], None]`): Called once with the answer, from a thread.
    """

    def __init__(
        self, kind: str, payload: dict, key: Any, chars: int, deadline: float, done: Callable[[Outcome], None]
    ):
        self.kind, self.payload, self.key, self.chars, self.deadline, self.done = (
            kind,
            payload,
            key,
            chars,
            deadline,
            done,
        )
        self.abandoned, self.tries = False, 0

    @property
    def is_wanted(self) -> bool:
        return not self.abandoned and time.monotonic() < self.deadline


class _Process:
    """One process of [`tokforget.service.worker`], and the pipe to it."""

    def __init__(self, model: dict, threads: int):
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        self.connection, child = context.Pipe()
        self.process = context.Process(target=main, args=(child, model, threads), daemon=True, name="tokforget-worker")
        self.process.start()
        child.close()

    def wait_until_ready(self) -> dict:
        """Facts about its model. Raises [`CannotStart`] if it could not load it."""
        try:
            if not self.connection.poll(_START_SECONDS):
                raise CannotStart(f"the model was not loaded within {_START_SECONDS:.0f} seconds.")
            state, told = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            raise CannotStart(
                f"a process ended while it loaded the model (exit code {self.process.exitcode})."
            ) from None
        if state == "failed":
            raise CannotStart(told)
        return told

    def end(self) -> None:
        self.process.kill()
        self.process.join(5)
        self.connection.close()


class Pool:
    """
    The worker processes and their queue.

    Args:
        settings ([`Settings`]): Those of the service.
        metrics ([`Metrics`]): Counts batches and restarts.
    """

    def __init__(self, settings: Settings, metrics: Metrics):
        self.settings, self.metrics = settings, metrics
        self.facts: dict = {}
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._processes: list[_Process | None] = [None] * settings.workers
        # All processes that have not been ended, including those still loading the model.
        self._begun: set[_Process] = set()
        self._threads: list[threading.Thread] = []
        names = ("model", "backend", "device", "base_model", "vocabularies")
        self._model = {name: getattr(settings, name) for name in names}
        self._cores = max(1, (os.cpu_count() or 1) // settings.workers)

    # -- called by the event loop; nothing here waits for a process ----------------------------------------------------
    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_ready(self) -> bool:
        """Whether a process has loaded the model, and the service is not stopping."""
        return not self._stopping and any(process is not None for process in self._processes)

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue. Raises [`Busy`] if it is full."""
        with self._changed:
            if self._stopping or len(self._waiting) >= self.settings.queue:
                raise Busy
            self._waiting.append(job)
            self._changed.notify_all()

    def abandon(self, job: Job) -> None:
        """Remove a job whose client is gone; its place in the queue is free at once."""
        with self._changed:
            job.abandoned = True
            if job in self._waiting:
                self._waiting.remove(job)

    # -- start and stop ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start all processes and wait until they have loaded the model. Raises [`CannotStart`] if one cannot."""
        started = [self._begin() for _ in self._processes]
        try:
            for process in started:
                self.facts = process.wait_until_ready()
        except BaseException:
            for process in started:
                self._end(process)
            raise
        self._processes = list(started)
        self._threads = [
            threading.Thread(target=self._work, args=(place,), daemon=True) for place in range(len(started))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all processes; waiting requests are not answered."""
        with self._changed:
            self._stopping = True
            for job in self._waiting:
                job.abandoned = True
            self._waiting.clear()
            self._changed.notify_all()
        # Kill the remaining ones: processes ignore the usual signals, and this process would wait for them for ever.
        for process in list(self._begun):
            process.process.kill()
        for thread in self._threads:
            thread.join(5)
        for process in list(self._begun):
            self._end(process)

    def _begin(self) -> _Process:
        """Start a process. Raises [`Busy`] if the pool is stopping."""
        with self._changed:
            if self._stopping:
                raise Busy
            process = _Process(self._model, self._cores)
            self._begun.add(process)
            return process

    def _end(self, process: _Process) -> None:
        process.end()
        self._begun.discard(process)

    # -- one thread for each process -----------------------------------------------------------------------------------
    def _work(self, place: int) -> None:
        while True:
            batch = self._take()
            if not batch:
                return
            self._run(place, batch)

    def _take(self) -> list[Job]:
        """The next batch; empty if the pool is stopping."""
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return []
            batch = [self._waiting.popleft()]
            chars = batch[0].chars
            until = time.monotonic() + self.settings.batch_ms / 1000
            while batch[0].key is not None:
                for job in list(self._waiting):
                    if job.key == batch[0].key and len(batch) < MAX_BATCH and chars + job.chars <= MAX_BATCH_CHARS:
                        self._waiting.remove(job)
                        batch.append(job)
                        chars += job.chars
                left = until - time.monotonic()
                if left <= 0 or len(batch) >= MAX_BATCH or chars >= MAX_BATCH_CHARS or self._stopping:
                    break
                self._changed.wait(left)
            return batch

    def _run(self, place: int, batch: list[Job]) -> None:
        """Answer a batch with the process of this place, which is restarted if it has died."""
        batch = [job for job in batch if job.is_wanted]
        if not batch:
            return
        process = self._processes[place]
        if process is None or not process.process.is_alive():
            process = self._restarted(place)
            if process is None:  # the pool is stopping
                return
        outcomes = self._ask(process, batch)
        if outcomes is not None:
            self.metrics.batch.observe(len(batch))
            for job, outcome in zip(batch, outcomes):
                job.done(outcome)
            return
        self._end(process)
        self._processes[place] = None
        if self._stopping:
            return
        log.warning("a process ended while it worked on %d request(s); another one is started", len(batch))
        self._restarted(place)
        for job in batch:
            job.tries += 1
            if job.tries < _TRIES:
                self._run(place, [job])
            elif job.is_wanted:
                job.done(Outcome(500, b"The process that worked on this request ended, twice: it may need more memory than there is. Send "
                                      b"a shorter text."))  # fmt: skip

    def _ask(self, process: _Process, batch: list[Job]) -> list[Outcome] | None:
        """The answers; `None` if the process died, or must be ended because no client waits."""
        began = time.monotonic()
        try:
            seconds = max(job.deadline for job in batch) - began
            process.connection.send((seconds, batch[0].kind, [job.payload for job in batch]))
            while not process.connection.poll(_LOOK_EVERY):
                if time.monotonic() - began > _ABANDONED and not any(job.is_wanted for job in batch):
                    return None
                if self._stopping:
                    return None
            return process.connection.recv()
        except (EOFError, OSError):
            return None

    def _restarted(self, place: int) -> _Process | None:
        """Start a new process in this place; retried until the pool stops, because a missing model may come back."""
        if self._processes[place] is not None:
            self._end(self._processes[place])
            self._processes[place] = None
        pause = 0.5
        while not self._stopping:
            try:
                process = self._begin()
            except Busy:
                return None
            self.metrics.restarts.inc()
            try:
                process.wait_until_ready()
            except CannotStart as error:
                self._end(process)
                if self._stopping:
                    return None
                log.error("no process could be started: %s", error)
                with self._changed:
                    self._changed.wait(pause)
                pause = min(2 * pause, 30.0)
                continue
            self._processes[place] = process
            return process
        return None
