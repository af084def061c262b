"""
Omissions of a compressed text: by characters, by lines, and as marks in the output.

Lines are counted from 1 and end as editors end them: at a line feed, a carriage return, or both.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np


_GONE = re.compile(r"\[… lines? (\d+)")
_LINE_BREAK = re.compile(r"\r\n|\n|\r")
# Least words of a marked gap within a line, and least ratio of a gap's length to that of its mark.
_MARKED_WORDS = 8
_WORTH = 2
# Before these characters a mark is followed by a space, as before a word; closing punctuation follows it directly.
_OPENS = "([{<\"'“‘«`*_#@$€£&|/\\~+-=–—¿¡"


@dataclass(frozen=True)
class Omission:
    """
    One run of characters that was left out.

    Args:
        first_line (`int`), last_line (`int`): Its lines in the original, from 1, ignoring white space at its ends.
        start (`int`), end (`int`): Its characters in the original; `end` is not included.
        text (`str`): The characters.
    """

    first_line: int
    last_line: int
    start: int
    end: int
    text: str

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass
class Lines:
    """The lines of a text and their places."""

    text: str
    starts: list[int] = field(init=False)

    def __post_init__(self):
        self.starts = [0, *(match.end() for match in _LINE_BREAK.finditer(self.text))]
        if self.starts[-1] == len(self.text) and len(self.starts) > 1:
            self.starts.pop()  # there is no line after a final line break

    def __len__(self) -> int:
        return len(self.starts)

    def of(self, char: int) -> int:
        """The line, from 0, of a character; the end of the text belongs to the last line."""
        return bisect_right(self.starts, char) - 1

    def span(self, line: int) -> tuple[int, int]:
        """Span of a line without its line break."""
        end = self.starts[line + 1] if line + 1 < len(self.starts) else len(self.text)
        return self.starts[line], self.starts[line] + len(self.text[self.starts[line] : end].rstrip("\r\n"))

    @cached_property
    def said(self) -> tuple[np.ndarray, np.ndarray]:
        """First and one-after-last non-space character of each line, `(num_lines,)`; -1 for a blank line."""
        spans = [self.span(line) for line in range(len(self))]
        first = [a + len(s) - len(s.lstrip()) if (s := self.text[a:b]).strip() else -1 for a, b in spans]
        last = [a + len(s.rstrip()) if (s := self.text[a:b]).strip() else -1 for a, b in spans]
        return np.array(first), np.array(last)

    def mark(self, start: int, end: int) -> str | None:
        """The mark of a gap in the output: its missing lines, or `[…]` for missing words; `None` for a small gap."""
        gap = self.text[start:end]
        words = gap.split()
        if not words:
            return None
        first, last = self.of(start), self.of(max(end - 1, start))
        begins, ends = (column[first : last + 1] for column in self.said)
        gone = np.flatnonzero((begins >= start) & (ends <= end)) + first + 1
        if len(gone):
            mark = f"[… line {gone[0]}]" if len(gone) == 1 else f"[… lines {gone[0]}-{gone[-1]}]"
        elif len(words) >= _MARKED_WORDS:
            mark = "[…]"
        else:
            return None
        return mark if sum(map(len, words)) >= _WORTH * len(mark) else None

    def marks(self, starts: Iterable[int], ends: Iterable[int], apart: Iterable[bool]) -> list[tuple[int, str]]:
        """
        The marks of an output.

        Args:
            starts, ends (`Iterable[int]`): Spans of its kept runs in characters.
            apart (`Iterable[bool]`): Whether a space is put before each run.

        Returns:
            `list[tuple[int, str]]`: For each mark the character before which it is written, and its text.
        """
        found, before = [], 0
        for start, end, spaced in [*zip(starts, ends, apart), (len(self.text), len(self.text), False)]:
            mark = self.mark(before, start) if start > before else None
            if mark is not None:
                trailing = start == len(self.text)
                place = before if trailing else start
                own_line = before in self._line_starts
                if own_line and (start in self._line_starts or trailing):
                    mark += "" if trailing and self.text[-1] not in "\r\n" else "\n"
                else:
                    lead = "" if spaced or own_line or self.text[before - 1].isspace() else " "
                    tail = " " if not trailing and (self.text[start].isalnum() or self.text[start] in _OPENS) else ""
                    mark = lead + mark + tail
                found.append((place, mark))
            before = end
        return found

    @cached_property
    def _line_starts(self) -> frozenset[int]:
        return frozenset(self.starts)


@dataclass
class LineLeft:
    """
    A line of the original, and its compressed version.

    Args:
        number (`int`): Number of the line, from 1.
        parts (`list[tuple[str, bool]]`): The parts of the line, and whether each was kept.
        output (`str`): The line in the output, with its notes.
    """

    number: int
    parts: list[tuple[str, bool]]
    output: str = ""

    @property
    def state(self) -> str:
        """`"kept"`, `"part"` or `"gone"`; a blank line is kept if none of it was dropped."""
        said = [kept for part, kept in self.parts if part.strip()]
        if not said:
            said = [kept for _, kept in self.parts]
        return "kept" if all(said) else "part" if any(said) else "gone"


def find_omissions(text: str, dropped: Iterable[tuple[int, int]]) -> list[Omission]:
    """The omissions of a text, in order, from its dropped spans; omitted white space is not listed."""
    lines, found = Lines(text), []
    for start, end in dropped:
        said = text[start:end]
        if said.strip():
            first = start + len(said) - len(said.lstrip())
            last = start + len(said.rstrip()) - 1
            found.append(Omission(lines.of(first) + 1, lines.of(last) + 1, int(start), int(end), said))
    return found


def line_by_line(text: str, result) -> list[LineLeft]:
    """Every line of a text with its version in a [`CompressedText`]."""
    lines = Lines(text)
    found = [LineLeft(number, []) for number in range(1, len(lines) + 1)]
    if not text:
        return []
    spans = sorted(
        [(a, b, True, apart) for (a, b), apart in zip(result.kept_spans.tolist(), result.separated.tolist())]
        + [(a, b, False, False) for a, b in result.dropped_spans.tolist()]
    )
    notes = []
    for place, note in sorted(result.notes, key=lambda note: note[0]):
        if gone := _GONE.match(note.strip()):  # next to the first of the lines that it names
            found[int(gone[1]) - 1].output = note.strip()
        else:
            notes.append((place, note))
    for start, end, kept, apart in spans:
        for line in range(lines.of(start), lines.of(max(end - 1, start)) + 1):
            a, b = lines.span(line)
            a, b = max(a, start), min(b, end)
            if b > a:
                found[line].parts.append((text[a:b], kept))
            if not kept:
                continue
            if apart and a == start:
                found[line].output += " "
            while notes and notes[0][0] <= b:
                place, note = notes.pop(0)
                if place > a:
                    found[line].output += text[a:place]
                    a = place
                found[line].output += note
            found[line].output += text[a:b] if b > a else ""
    for _, note in notes:
        found[-1].output += note
    return found
