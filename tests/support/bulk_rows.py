"""Rows for engines that compress many, and a counter of words that kills the process it counts in, once."""

import os
import re
import signal
from pathlib import Path


SENTENCES = (
    "The harbour was rebuilt by Anna Lund after the storm of 1902, and ships call there every Monday.",
    "It rained for most of the following summer, but not in August.",
    "The library holds some four thousand volumes, most of them gifts of its merchants.",
    "Ask the city what the new lane for bicycles on the bridge is going to cost before 12 May.",
    "The ferry to Skagen leaves at 12:45, unless there is ice in the sound.",
)
QUESTIONS = ("When does the ferry leave?", "Who rebuilt the harbour?", None)


def make_rows(num_rows: int) -> list[dict]:
    """Rows with a number, a text of some 40 words that names it, and a question or none."""
    return [
        {
            "id": number,
            "text": f"Row {number} of them. " + " ".join(SENTENCES[(number + step) % 5] for step in range(2 + number % 2)),
            "question": QUESTIONS[number % 3],
        }
        for number in range(num_rows)
    ]  # fmt: skip


class KillingCounter:
    """
    Counts words, for `count_tokens`. At the text of row `at` the process dies by SIGKILL, or gets another signal, in the first
    process that gets there; what had been seen by then, by all processes together, stands in `killed`.
    """

    def __init__(self, folder: str | Path, at: int, number: signal.Signals = signal.SIGKILL):
        self.folder, self.at, self.number = str(folder), at, number
        self.__name__ = "words"

    def __call__(self, text: str) -> int:
        found = re.match(r"Row (\d+) of them", text)
        if found:
            number = int(found[1])
            with open(Path(self.folder, f"seen-{os.getpid()}"), "a", encoding="utf-8") as file:
                file.write(f"{number}\n")
            if number == self.at:
                self._die_once()
        return len(text.split())

    def _die_once(self) -> None:
        try:
            with open(Path(self.folder, "killed"), "x", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {len(self.seen())}")
        except FileExistsError:
            return
        os.kill(os.getpid(), self.number)

    def seen(self) -> set[int]:
        """Rows that any process has begun."""
        return {int(line) for path in Path(self.folder).glob("seen-*") for line in path.read_text().split()}

    def killed(self) -> tuple[int, int]:
        """The process that died, and how many rows had been begun then."""
        pid, seen = Path(self.folder, "killed").read_text().split()
        return int(pid), int(seen)

    def processes(self) -> set[int]:
        """The processes that counted."""
        return {int(path.name.removeprefix("seen-")) for path in Path(self.folder).glob("seen-*")}
