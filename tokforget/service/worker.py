"""
A worker process: it receives batches of requests through a pipe, compresses, and returns the bodies of the answers.

It is a process and not a thread, because a malicious text or pattern may run for ever, even with the interpreter
locked, and only a process can be ended. Contents of requests are never written: of an unexpected error only its type
and place are reported.
"""

# Slow imports are in `main`, because the listening process imports this module, too.
import json
import os
import signal
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple


# A process that nobody ends exits this many seconds after the last timeout of its requests.
_GRACE = 10


class Outcome(NamedTuple):
    """
    The answer to a request.

    Attributes:
        status (`int`): HTTP status.
        body (`bytes`): JSON; for an error its message in UTF-8.
        tokens_in (`int`), tokens_out (`int`): Tokens before and after compressing.
        fault (`str`): Type and place of an unexpected error, for the log.
    """

    status: int
    body: bytes
    tokens_in: int = 0
    tokens_out: int = 0
    fault: str = ""


def main(connection: Connection, model: dict[str, Any], threads: int) -> None:
    """
    Serve batches until the other end of the pipe is closed.

    Args:
        connection (`Connection`): Sends `("ready", facts)` or `("failed", line)` first, then an answer to each batch.
        model (`dict`): `model`, `backend`, `device`, `base_model` and `vocabularies` of [`tokforget.service.settings.Settings`].
        threads (`int`): Number of threads of the numeric libraries.
    """
    # Ignore stop signals: terminals and systemd send them to all processes, and the listening process decides when
    # this one ends.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    warnings.simplefilter("ignore")  # results contain the same information
    try:
        engine = Engine(**model)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, AssertionError) as error:
        connection.send(("failed", " ".join(str(error).split()) or type(error).__name__))
        return
    connection.send(("ready", engine.facts))
    while True:
        try:
            seconds, kind, jobs = connection.recv()
        except (EOFError, OSError):
            return
        _end_after(seconds + _GRACE)
        answers = engine.answer(kind, jobs)
        _end_after(0)
        try:
            connection.send(answers)
        except OSError:  # the other process is gone
            return


def _end_after(seconds: float) -> None:
    """
    End this process after some seconds, 0 for never. The default action of the signal works even with a locked
    interpreter.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


class Engine:
    """A compressor and the requests that it answers; see `main`."""

    def __init__(
        self,
        model: str | None,
        backend: str | None,
        device: str | None,
        base_model: str | None,
        vocabularies: tuple[str, ...] = (),
    ):
        from tokforget.compression.compressor import Compressor
        from tokforget.compression.counting import TokenCounter

        self.compressor = Compressor.from_pretrained(model, backend=backend, base_model=base_model)
        if device is not None and device != "cpu":
            if backend not in (None, "torch"):
                raise ValueError(f"`backend` {backend} runs on the CPU: leave out `device`, or pass `backend` torch.")
            self.compressor.to(device)
        for name in vocabularies:
            TokenCounter.of(name)
        # Load lazily imported parts now, so that the first request does not wait for them.
        self.compressor.explain("Ready to go?", unit="auto").to_html()
        self.compressor.compress_messages([{"role": "tool", "content": "Ready to go. " * 50}], stable=True)
        if base_model is not None:
            self.restore(self._small_result())

    @property
    def facts(self) -> dict:
        """Facts about the model for the listening process."""
        compressor = self.compressor
        return {
            "vocabulary": compressor.vocabulary,
            "unit": compressor.policy.unit,
            "takes_question": compressor.takes_question,
        }

    def _small_result(self) -> dict:
        return {
            "compressed": self.compressor.compress("The cat sat on the mat.").to_dict(),
            "abstain_below": None,
            "gap": "",
        }

    def answer(self, kind: str, jobs: list[dict]) -> list[Outcome]:
        """
        Answer requests of one kind. Several requests have the same settings and are compressed in one call. If that
        fails, each is answered alone, so that an error affects only its own request.
        """
        if len(jobs) > 1:
            try:
                return self._compress_together(jobs)
            except Exception:  # each request is then answered alone, with its own error
                return [outcome for job in jobs for outcome in self.answer(kind, [job])]
        try:
            return [getattr(self, kind)(jobs[0])]
        except (ValueError, TypeError, OverflowError, RecursionError, AssertionError) as error:
            line = "nested too deeply." if isinstance(error, RecursionError) else " ".join(str(error).split())
            if _is_ours(error):
                return [Outcome(422, line.encode("utf-8", "replace"))]
            return [_unforeseen(error)]
        except Exception as error:
            return [_unforeseen(error)]

    # -- kinds of requests ---------------------------------------------------------------------------------------------
    def compress(self, job: dict) -> Outcome:
        job = dict(job)
        texts, details = job.pop("texts"), job.pop("details")
        results = self.compressor.compress(texts, **job)
        return _texts_outcome(results if isinstance(texts, list) else [results], isinstance(texts, list), details)

    def _compress_together(self, jobs: list[dict]) -> list[Outcome]:
        rows = [job["texts"] if isinstance(job["texts"], list) else [job["texts"]] for job in jobs]
        questions: list[str | None] = []
        for job, row in zip(jobs, rows):
            own = job["question"]
            questions += own if isinstance(own, list) else [own] * len(row)
        options = {name: value for name, value in jobs[0].items() if name not in ("texts", "question", "details")}
        results = iter(self.compressor.compress([text for row in rows for text in row], question=questions, **options))
        return [
            _texts_outcome([next(results) for _ in row], isinstance(job["texts"], list), job["details"])
            for job, row in zip(jobs, rows)
        ]

    def explain(self, job: dict) -> Outcome:
        job = dict(job)
        shown = self.compressor.explain(job.pop("text"), **job)
        pieces = [[piece, round(float(score), 4), bool(kept)] for piece, score, kept in shown]
        return _outcome(_brief(shown.result) | {"pieces": pieces}, [shown.result])

    def compress_messages(self, job: dict) -> Outcome:
        job = dict(job)
        memory = job.pop("memory")
        own = dict(memory or {})
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            result = self.compressor.compress_messages(job.pop("messages"), memory=own, **job)
        above = result.shortfall < 0
        extra = {
            "unreached": " ".join(str(said[-1].message).split()) if above and said else None,
            "memory": None if memory is None else own,
        }
        return _outcome(result.to_dict() | extra, [result])

    def restore(self, job: dict) -> Outcome:
        from tokforget.compression.saved import read_result

        given = job["compressed"]
        single = isinstance(given, dict)
        results = []
        for place, fields in enumerate([given] if single else given):
            try:
                results.append(read_result(fields, self.compressor))
            except (ValueError, TypeError, OverflowError) as error:
                name = "`compressed`" if single else f"Item {place} of `compressed`"
                raise ValueError(f"{name}: {error} Pass what /v1/compress returned with `details`.") from error
        restored = self.compressor.restore(results, abstain_below=job["abstain_below"], gap=job["gap"], progress=False)
        rows = [one.to_dict() for one in restored]
        return Outcome(200, to_json(rows[0] if single else {"results": rows}))


def _brief(result) -> dict:
    """The main fields of a compressed text."""
    names = ("text", "original_tokens", "compressed_tokens", "compression_rate", "target_tokens", "shortfall", "returned_whole",
             "unreached", "predicted_retention", "vocabulary", "kind")  # fmt: skip
    return {name: getattr(result, name) for name in names}


def _full(result) -> dict:
    return _brief(result) | result.to_dict() | {"omitted": [one.to_dict() for one in result.omitted]}


def _texts_outcome(results: list, is_list: bool, details: bool) -> Outcome:
    rows = [_full(result) if details else _brief(result) for result in results]
    return _outcome({"results": rows} if is_list else rows[0], results)


def _outcome(fields: dict, results: list) -> Outcome:
    before, after = (sum(getattr(one, name) for one in results) for name in ("original_tokens", "compressed_tokens"))
    return Outcome(200, to_json(fields), before, after)


def to_json(fields: dict) -> bytes:
    r"""
    JSON in UTF-8. If a text contains a lone surrogate, which UTF-8 cannot encode, ASCII with escapes such as `\ud800`.
    """
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(fields, allow_nan=False).encode()


def _is_ours(error: BaseException) -> bool:
    """
    Whether a `raise` in this package raised the error, and not a library; a recursion error may be raised anywhere.
    """
    if isinstance(error, RecursionError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "tokforget" in Path(last.filename).parts and (last.line or "").lstrip().startswith("raise ")


def _unforeseen(error: BaseException) -> Outcome:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
    line = f"This should not happen ({place}); please report it with what was sent, if it may be shown, and `tokforget env`."
    return Outcome(500, line.encode(), fault=place)
