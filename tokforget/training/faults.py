"""
Ends of a run before its last step: a signal ends it with a checkpoint, a number that is not finite without one.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunInterrupted(SystemExit):
    """A signal ended the run after a complete step. The exit code is 128 plus the signal's number, as in a shell."""

    def __init__(self, number: int, message: str):
        super().__init__(128 + number)
        self.message = message


class NotFiniteError(FloatingPointError):
    """A loss, a gradient or a weight is nan or infinite, so that further steps would be useless."""


class SaveError(OSError):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""


class PreparationError(ValueError):
    """Training texts are missing: sampled texts, or the texts of another run."""


class CheckpointError(ValueError):
    """The checkpoint to resume from is incomplete, or belongs to another run."""


class OtherRunError(CheckpointError):
    """The folder holds a run with other arguments, or a run that a new one would mix with. Its files are unchanged."""


@contextmanager
def faults_in_one_line() -> Iterator[None]:
    """
    For a recipe: the first process prints an error that ends the run in one line. The exit code is 1, or 2 if the run
    could not start.
    """
    try:
        yield
    except (CheckpointError, NotFiniteError, PreparationError, SaveError) as error:
        # A save may fail in only one of the processes.
        if isinstance(error, SaveError) or os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}\n")
        raise SystemExit(2 if isinstance(error, PreparationError | OtherRunError) else 1) from error


class SignalWatch:
    """
    Context manager. The first SIGTERM or SIGINT (Ctrl-C) is recorded in `received`; the second ends the process at
    once.

    Args:
        announces (`bool`): Whether this process reports a signal on standard error.
    """

    def __init__(self, announces: bool):
        self.announces = announces
        self.received = 0
        self._process, self._before = 0, {}

    def __enter__(self) -> "SignalWatch":
        self.received, self._process, self._before = 0, os.getpid(), {}
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _frame) -> None:
        if os.getpid() != self._process:
            return  # a worker of the data loader; its parent ends it
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
        if self.announces:
            name = signal.Signals(number).name
            # Not `print`: the handler may interrupt one.
            os.write(
                2, f"\n{name}: finishing this step and saving a checkpoint; a second signal ends at once.\n".encode()
            )
