"""The queue: what goes together, what waits, what is tried again, and what is given up. Processes are threads here."""

import threading
import time
from multiprocessing import Pipe

import pytest


pytest.importorskip("prometheus_client")

from tokforget.service import pool as pool_module
from tokforget.service.metrics import Metrics
from tokforget.service.pool import MAX_BATCH, Busy, CannotStart, Job, Pool
from tokforget.service.settings import Settings
from tokforget.service.worker import Outcome


class Stage:
    """Stands in for processes: what they do with a batch, and the batches that they got."""

    def __init__(self):
        self.batches: list[list[str]] = []
        self.free = threading.Event()
        self.free.set()
        self.deadly: set[str] = set()
        self.endless: set[str] = set()
        self.cannot_start = 0
        self.ended = 0

    def process(self, model, threads):
        if self.cannot_start > 0:
            self.cannot_start -= 1
            raise CannotStart("no model")
        return Process(self)


class Process:
    def __init__(self, stage: Stage):
        self.stage, self.process, self.alive, self.killed = stage, self, True, threading.Event()
        self.connection, self.child = Pipe()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while self.alive:
            try:
                _, _, names = self.child.recv()
            except (EOFError, OSError):
                return
            self.stage.free.wait()
            self.stage.batches.append(names)
            if self.stage.endless & set(names):
                return
            if self.stage.deadly & set(names):
                self.alive = False
                self.child.close()
                return
            self.child.send([Outcome(200, name.encode()) for name in names])

    def is_alive(self):
        return self.alive

    def wait_until_ready(self):
        return {"vocabulary": "none"}

    def kill(self):
        self.alive = False
        self.killed.set()

    def end(self):
        self.kill()
        self.stage.ended += 1
        self.alive = False
        self.connection.close()


@pytest.fixture
def stage(monkeypatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(pool_module, "_Process", stage.process)
    return stage


@pytest.fixture
def started(stage):
    """A function that starts a pool; all are stopped at the end."""
    pools = []

    def start(**settings) -> Pool:
        settings = {"batch_ms": 30.0, "queue": 8} | settings
        pools.append(Pool(Settings(**settings), Metrics()))
        pools[-1].start()
        return pools[-1]

    yield start
    stage.free.set()
    for pool in pools:
        pool.stop()


class Answers(dict):
    """What jobs were answered, by name."""

    def job(self, name: str, key="same", seconds: float = 30.0, chars: int = 10) -> Job:
        return Job(
            "compress", name, key, chars, time.monotonic() + seconds, lambda outcome: self.update({name: outcome})
        )

    def wait_for(self, *names: str, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while not set(names) <= set(self) and time.monotonic() < until:
            time.sleep(0.01)
        assert set(names) <= set(self), f"only {set(self)} answered"


def busy(pool: Pool, stage: Stage, answers: Answers) -> None:
    """Have the only process work on something until the stage is free."""
    stage.free.clear()
    pool.submit(answers.job("first", key=None))
    until = time.monotonic() + 10
    while pool.waiting and time.monotonic() < until:
        time.sleep(0.005)
    assert pool.waiting == 0


def test_those_of_one_setting_go_together_in_their_order(started, stage):
    pool, answers = started(), Answers()
    busy(pool, stage, answers)
    for name, key in (("a", "x"), ("b", "y"), ("c", "x"), ("d", None), ("e", "x")):
        pool.submit(answers.job(name, key))
    stage.free.set()
    answers.wait_for("first", "a", "b", "c", "d", "e")
    assert stage.batches == [["first"], ["a", "c", "e"], ["b"], ["d"]]
    assert all(answers[name] == Outcome(200, name.encode()) for name in answers)


def test_one_waits_a_moment_for_others(started, stage):
    pool, answers = started(batch_ms=1000.0), Answers()
    pool.submit(answers.job("a"))
    time.sleep(0.05)
    pool.submit(answers.job("b"))
    answers.wait_for("a", "b")
    assert stage.batches == [["a", "b"]]


def test_a_batch_is_not_larger_than_it_may_be(started, stage):
    pool, answers = started(queue=200, batch_ms=0.0), Answers()
    busy(pool, stage, answers)
    names = [f"n{i}" for i in range(MAX_BATCH + 3)]
    for name in names:
        pool.submit(answers.job(name))
    pool.submit(answers.job("long", chars=60_000))
    pool.submit(answers.job("longer", chars=60_000))
    stage.free.set()
    answers.wait_for(*names, "long", "longer")
    assert [len(batch) for batch in stage.batches] == [1, MAX_BATCH, 4, 1]


def test_a_full_queue_says_so_and_who_goes_away_frees_his_place(started, stage):
    pool, answers = started(queue=2), Answers()
    busy(pool, stage, answers)
    waiting = [answers.job(name, key=None) for name in ("a", "b")]
    for job in waiting:
        pool.submit(job)
    with pytest.raises(Busy):
        pool.submit(answers.job("c"))
    pool.abandon(waiting[0])
    pool.submit(answers.job("c"))
    stage.free.set()
    answers.wait_for("b", "c")
    assert ["a"] not in stage.batches and "a" not in answers


def test_who_has_waited_too_long_is_not_worked_for(started, stage):
    pool, answers = started(), Answers()
    busy(pool, stage, answers)
    pool.submit(answers.job("late", seconds=0.05))
    time.sleep(0.1)
    stage.free.set()
    pool.submit(answers.job("b", key="other"))
    answers.wait_for("b")
    assert ["late"] not in stage.batches


def test_a_process_that_dies_costs_its_neighbours_nothing(started, stage):
    pool, answers = started(), Answers()
    stage.deadly = {"bad"}
    busy(pool, stage, answers)
    for name in ("a", "bad", "b"):
        pool.submit(answers.job(name))
    stage.free.set()
    answers.wait_for("first", "a", "bad", "b")
    assert [answers[name].status for name in ("a", "bad", "b")] == [200, 500, 200]
    assert b"ended, twice" in answers["bad"].body
    pool.submit(answers.job("later"))
    answers.wait_for("later")
    assert pool.is_ready and pool.metrics.restarts._value.get() == 2


def test_a_process_that_died_while_it_waited_is_not_noticed(started, stage):
    pool, answers = started(), Answers()
    pool._processes[0].alive = False
    pool.submit(answers.job("a"))
    answers.wait_for("a")
    assert answers["a"].status == 200


def test_a_process_that_works_for_nobody_is_ended(started, stage):
    pool, answers = started(), Answers()
    stage.endless = {"endless"}
    job = answers.job("endless", key=None)
    pool.submit(job)
    pool.submit(answers.job("b"))
    time.sleep(0.1)
    pool.abandon(job)
    answers.wait_for("b")
    assert stage.ended == 1 and "endless" not in answers
    pool.submit(answers.job("endless", key=None, seconds=0.2))  # runs out of time
    pool.submit(answers.job("c"))
    answers.wait_for("c")
    assert stage.ended == 2


def test_a_model_that_cannot_be_loaded_is_said_at_the_start_and_waited_for_later(started, stage, monkeypatch):
    stage.cannot_start = 1
    with pytest.raises(CannotStart, match="no model"):
        started()
    pool, answers = started(), Answers()
    monkeypatch.setattr(Process, "wait_until_ready", fails_once(Process.wait_until_ready))
    pool._processes[0].alive = False
    pool.submit(answers.job("a"))
    answers.wait_for("a")
    assert answers["a"].status == 200 and pool.metrics.restarts._value.get() == 2


def test_a_process_that_is_still_loading_when_all_stops_is_ended(started, stage, monkeypatch):
    """It ignores the signals that end a process, and Python waits for its children."""
    pool, answers = started(), Answers()
    loading = []

    def loads(self):
        loading.append(self)
        self.killed.wait(30)
        raise CannotStart("killed")

    monkeypatch.setattr(Process, "wait_until_ready", loads)
    pool._processes[0].alive = False
    pool.submit(answers.job("a"))
    until = time.monotonic() + 10
    while not loading and time.monotonic() < until:
        time.sleep(0.01)
    began = time.monotonic()
    pool.stop()
    assert time.monotonic() - began < 5 and loading[0].killed.is_set()
    assert pool._begun == set() and stage.ended == 2 and len(loading) == 1


def fails_once(method):
    calls = []

    def tried(self):
        calls.append(self)
        if len(calls) == 1:
            raise CannotStart("the folder is gone")
        return method(self)

    return tried


def test_nothing_is_taken_after_the_end(started, stage):
    pool, answers = started(), Answers()
    pool.stop()
    with pytest.raises(Busy):
        pool.submit(answers.job("a"))
    assert not pool.is_ready
