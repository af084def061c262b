"""
How a run ends before its last step: asked to by a signal, with a checkpoint; or over numbers that are not finite, without.
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
    """A signal ended the run after a whole step; the exit code is 128 plus the signal's number, as a shell has it."""

    def __init__(self, number: int, message: str):
        super().__init__(128 + number)
        self.message = message


class NotFiniteError(FloatingPointError):
    """A loss, a gradient or a weight is nan or infinite: nothing that follows would be worth a step."""


class SaveError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


class PreparationError(ValueError):
    """The texts that a run was to learn from cannot be had: sampled ones, or those of another run."""


class CheckpointError(ValueError):
    """A checkpoint that was to be gone on from is not whole, or is one of another run."""


class OtherRunError(CheckpointError):
    """A folder holds a run that was told otherwise, or that a new one would mix with; nothing in it was touched."""


@contextmanager
def faults_in_one_line() -> Iterator[None]:
    """
    For a recipe: what ends a run is said in one line, by the first process, and the exit code is 1; 2 for what the run could
    not begin with.
    """
    try:
        yield
    except (CheckpointError, NotFiniteError, PreparationError, SaveError) as error:
        # A save may fail in one process alone.
        if isinstance(error, SaveError) or os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}\n")
        raise SystemExit(2 if isinstance(error, PreparationError | OtherRunError) else 1) from error


class SignalWatch:
    """
    While it is entered, the first SIGTERM or SIGINT (Ctrl-C) is noted in `received`; the second ends the process at once.

    Args:
        announces (`bool`): Whether this process says on standard error that a signal has come.
    """

    def __init__(self, announces: bool):
        self.announces = announces
        self.received = 0
        self._process, self._before = 0, {}

    def __enter__(self) -> "SignalWatch":
        self.received, self._process, self._before = 0, os.getpid(), {}
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread have handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _frame) -> None:
        if os.getpid() != self._process:
            return  # a worker of the data loader: whoever forked it will end it
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
        if self.announces:
            name = signal.Signals(number).name
            # Not `print`: a handler may run in the middle of one.
            os.write(
                2, f"\n{name}: finishing this step and saving a checkpoint; a second signal ends at once.\n".encode()
            )
