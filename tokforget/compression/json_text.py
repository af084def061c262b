"""
Find JSON in a text, and cut it into pieces so that any choice of them is JSON again.

Keys, numbers, short strings and brackets are kept; white space outside of strings is dropped first; the words of long
strings are kept or dropped as in any text. On request whole records are kept or dropped instead.
"""

import json
import re
from dataclasses import dataclass, field
from itertools import accumulate, islice

import numpy as np

from tokforget.compression.parts import Parts
from tokforget.compression.records import TROUBLE, severities
from tokforget.text_units import UNICODE_ESCAPE


# Least words of a JSON string that is prose and can be shortened.
_LONG = 8
# Least records of a JSON of which some may be dropped, and their least mean length: the note would be longer.
_RECORDS, _RECORD_LENGTH = 3, 20
# The note of an earlier call.
_LEFT_OUT = re.compile("… ([0-9]+) left out")
_RECORD_PART = re.compile(r'(?:[^\s"]|"[^"\\]*(?:\\.[^"\\]*)*")+|\s+', re.DOTALL)
_JSON_MARK = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# A string or a comment; and a trailing comma.
_COMMENTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*(?:(?!\*/).){0,4000}\*/', re.DOTALL)
_LAST_COMMA = re.compile(r'"(?:[^"\\\n]|\\.)*"|,(?=\s*[\]}])')
# A JSON after an introduction begins on a new line, or behind a label.
_JSON_START = re.compile(r"\A\s*\ufeff?\s*(?:[\w .()#*-]{1,60}:)?[^\S\n]*(?=[\[{])|(?<=\n)[ \t]*(?=[\[{])")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = ("```", "~~~")
_JSON_TRIES, _PREFACE_LINES, _LABEL_WORDS = 2, 3, 4
_DECODER = json.JSONDecoder()
_ESCAPE = re.compile(rf"{UNICODE_ESCAPE}|\\.|.", re.DOTALL)


def is_json(text: str) -> bool:
    """Whether a text is JSON, with comments or a few words around it as well."""
    return bool(text.strip()) and (_is_json(text) or _plain_json(text) is not None or _json_within(text) is not None)


def add_json(parts: Parts) -> bool:
    """Add a text that is JSON; returns False, and adds nothing, for any other text."""
    if _is_json(parts.text):
        _add_json(parts)
    elif (plain := _plain_json(parts.text)) is not None:
        parts.text = plain
        _add_json(parts)
    elif within := _json_within(parts.text):
        _add_around_json(parts, *within)
    else:
        return False
    return True


def _is_json(text: str) -> bool:
    """Whether the text is a JSON value, or one per line. The values must be objects or arrays."""
    if text.lstrip()[0] not in "[{":
        return False
    try:
        json.loads(text)
        return True
    except RecursionError:
        return False
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
    try:
        values = [json.loads(line) for line in lines]
        return len(lines) > 1 and all(isinstance(value, dict | list) or _left_out(value) for value in values)
    except (ValueError, RecursionError):
        return False


def _left_out(value) -> int:
    """The number of records in whose place a string was put; 0 for any other value."""
    said = _LEFT_OUT.fullmatch(value) if isinstance(value, str) else None
    return int(said[1]) if said else 0


def _json_within(text: str) -> tuple[int, int] | None:
    """Span of a JSON that is most of a text, after a line or two of introduction."""
    if (records := _records_within(text)) is not None:
        return records
    for found in islice(_JSON_START.finditer(text), _JSON_TRIES):
        start = found.end()
        if text.count("\n", 0, start) > _PREFACE_LINES:
            return None
        try:
            end = _DECODER.raw_decode(text, start)[1]
        except (ValueError, RecursionError):
            continue
        if 2 * (end - start) > len(text):
            return start, end
    return None


def _records_within(text: str) -> tuple[int, int] | None:
    """Span of at least two records on lines that are most of a text, with words before or after them."""
    if text.count("\n{") + text.startswith("{") < 2:
        return None
    place, start, end, found = 0, None, 0, 0
    for line in _LINE.findall(text):
        bare, begin = line.strip(), place
        place += len(line)
        if not bare and start is not None:
            continue
        if bare.startswith("{") and bare.endswith("}") and is_one_value(bare):
            start = begin if start is None else start
            end, found = begin + len(line.rstrip()), found + 1
        elif start is not None:
            break
    return (start, end) if found > 1 and 2 * (end - start) > len(text) else None


def _plain_json(text: str) -> str | None:
    """JSON with comments and trailing commas blanked out, of the same length; `None` if it is not JSON."""
    begins = text.lstrip()
    if begins[0] not in "[{" and not begins.startswith(("//", "/*")):
        return None
    if not ("//" in text or "/*" in text or re.search(r",\s*[\]}]", text)):
        return None
    blank = lambda found: found[0] if found[0][0] == '"' else re.sub(r"\S", " ", found[0])  # noqa: E731
    plain = _COMMENTED.sub(blank, text)
    plain = _LAST_COMMA.sub(blank, plain) if not is_one_value(plain) else plain
    return plain if is_one_value(plain) else None


def _add_around_json(parts: Parts, start: int, end: int) -> None:
    """
    Add a JSON and the words before and after it. The white space between them, a label of the JSON and the lines of a code
    fence around it are always kept.
    """
    text = parts.text
    before, behind = len(text[:start].rstrip()), len(text) - len(text[end:].lstrip())
    line = text.rfind("\n", 0, before) + 1
    label = text[line:before].strip()
    if label.startswith(_FENCE) or (label.endswith(":") and len(label.split()) <= _LABEL_WORDS):
        parts.add_prose(0, len(text[:line].rstrip()))
        parts.add(line, needed=True)
        parts.add(before, needed=True)
    else:
        parts.add_prose(0, before)
    parts.add(start, needed=True)
    _add_json(parts, start, end)
    parts.add(behind, needed=True)
    if text.startswith(_FENCE, behind):
        closed = _LINE.match(text, behind).end()
        parts.add(closed, needed=True)
        behind = closed
    parts.add_prose(behind, len(text))


def _add_json(parts: Parts, start: int = 0, end: int | None = None) -> None:
    end = len(parts.text) if end is None else end
    lines = not is_one_value(parts.text[start:end])
    for spans, separator in _find_records(parts.text, start, end, lines) if parts.omit_records else ():
        members, counts = [], []
        for a, b in spans:
            _add_values(parts, start, a, lines)
            members.append(len(parts))
            counts.append(_left_out(parts.text[a:b].strip(" \t\r\n,")[1:-1]))
            if counts[-1]:  # its number is told with that of its neighbours
                parts.add(b, mark=True)
            else:
                _add_record(parts, b)
            start = b
        worst = severities([parts.text[a:b] for a, b in spans])
        parts.severity |= {member: own for member, own in zip(members, worst) if own >= TROUBLE}
        parts.records.append((members, [count or 1 for count in counts], separator))
        if separator == "\n":  # no list says that something was here
            parts.required.append((members[0], len(parts)))
    _add_values(parts, start, end, lines)


def _add_record(parts: Parts, end: int) -> None:
    """Add a record: its first piece stands for it and brings along the others, without the white space between them."""
    first, group = len(parts), []
    for part in _RECORD_PART.finditer(parts.text, parts.edges[-1], end):
        if not part[0].isspace() or part.end() == end:  # the line break behind a record is not lost
            group.append(len(parts))
        parts.add(part.end(), mark=len(parts) > first)
    parts.rows += [(piece, first, first + 1, -1) for piece in group[1:]]
    parts.shared.append(group)


@dataclass
class _Open:
    """A list or object of JSON that is not closed yet: where it starts, and the lists and objects in it."""

    start: int
    is_list: bool
    commas: int = 0
    items: list[tuple[int, int]] = field(default_factory=list)


def _find_records(text: str, start: int, end: int, lines: bool) -> list[tuple[list[tuple[int, int]], str]]:
    """
    The spans of records that may be dropped, each with the comma or line break behind it, and that separator: the lines
    of a JSON, or the items of outermost lists of at least `_RECORDS` objects or lists.
    """
    if lines and text.count("\n{", start, end) + text.count("\n[", start, end) >= _RECORDS - 1:
        spans, place = [], start
        for line in _LINE.findall(text[start:end]):
            if line.strip():
                spans.append((place + len(line) - len(line.lstrip()), place + len(line)))
            place += len(line)
        return [(spans, "\n")] if _are_records(spans) else []
    found: list[tuple[int, list[tuple[int, int]]]] = []
    open_: list[_Open] = []
    for match in _JSON_MARK.finditer(text, start, end):
        sign = match[0]
        if sign in "[{":
            open_.append(_Open(match.start(), sign == "["))
        elif sign in "]}":
            closed = open_.pop()
            if closed.is_list and len(closed.items) == closed.commas + 1 and _are_records(closed.items):
                found = [one for one in found if one[0] < closed.start]  # those within it are not outermost
                found.append((closed.start, closed.items))
            if open_:
                open_[-1].items.append((closed.start, match.end()))
        elif sign[0] == '"':
            if open_ and open_[-1].is_list and _left_out(sign[1:-1]):
                open_[-1].items.append(match.span())
        elif sign == "," and open_:
            open_[-1].commas += 1
            if items := open_[-1].items:
                items[-1] = (items[-1][0], match.end())
    return [(items, ",") for _, items in found]


def _are_records(spans: list[tuple[int, int]]) -> bool:
    return len(spans) >= _RECORDS and sum(b - a for a, b in spans) >= _RECORD_LENGTH * len(spans)


def records_on_lines(text: str) -> str:
    """A JSON with each record on a line of its own, character by character in the same place."""
    if not is_json(text):
        return text
    signs = list(text)
    for spans, _ in _find_records(text, 0, len(text), False):
        first, last = spans[0][0], spans[-1][1]
        signs[first:last] = text[first:last].replace("\n", " ")  # an indented record takes several lines
        for _, end in spans[:-1]:
            signs[end - 1] = "\n"
    return "".join(signs)


def _add_values(parts: Parts, start: int, end: int, records: bool) -> None:
    text, place = parts.text, start
    for string in _STRING.finditer(text, start, end):
        _add_between(parts, place, string.start(), records)
        place = string.end()
        inner = text[string.start() + 1 : place - 1]
        is_key = re.compile(r"\s*:").match(text, place)
        shown, places = ("", None) if is_key else _read(inner)
        if len(shown.split()) < _LONG:
            parts.add(place, needed=True)
            continue
        parts.add(string.start() + 1, needed=True)
        first = len(parts)
        parts.add_words(shown, places + string.start() + 1)
        parts.groups.append((first, len(parts)))
        parts.add(place, needed=True)
    _add_between(parts, place, end, records)


def is_one_value(text: str) -> bool:
    """Whether a text is one value of JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _add_between(parts: Parts, start: int, end: int, records: bool) -> None:
    """
    Add the text outside of strings. White space may be dropped without loss, except the line break between two
    records.
    """
    for part in re.compile(r"\n|[^\S\n]+|\S+" if records else r"\s+|\S+").finditer(parts.text, start, end):
        lost = part[0].isspace() and not (records and part[0] == "\n")
        parts.add(part.end(), needed=not lost, mark=lost)


def _read(inner: str) -> tuple[str, np.ndarray]:
    """A JSON string without escapes, and the offset of each of its characters."""
    if "\\" not in inner:
        return inner, np.arange(len(inner) + 1)
    written = _ESCAPE.findall(inner)
    shown = "".join(one if len(one) == 1 else json.loads(f'"{one}"') for one in written)
    return shown, np.array([0, *accumulate(map(len, written))])
