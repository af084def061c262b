"""
Find the structure of texts that are more than words, such as JSON, program code and logs, for `unit="auto"`.

* JSON, alone or after a line or two of introduction, stays JSON: keys, numbers, short strings and brackets are kept, white space
  outside of strings is dropped first, and the words of long strings are kept or dropped as in any text. On request whole
  records are kept or dropped instead.
* Code, logs and stack traces are kept or dropped by whole lines. A line of code is kept together with the lines that open and close its
  blocks. Log lines that differ only in their time are counted after the first of them. Failures are kept first; lines that
  differ only in numbers are dropped first and counted, too ([`tokforget.compression.records`]).
* YAML, TOML and INI are kept or dropped by whole entries, with the keys and sections that contain them; CSV by
  records, with the header.
* Rows of a table or of a command's output are kept or dropped whole, rows with their header and a line with the line
  under which it is indented, because a number in the wrong column is a false statement.
* A diff is kept or dropped by lines, with their hunk and file; changed lines are kept before unchanged ones.
* In other texts only code fences are kept or dropped by lines, and Markdown tables by rows.

The structure determines the pieces and their bonds; the scores decide which pieces are kept.
"""

import re

import numpy as np

from tokforget.compression.fences import find_code_fences
from tokforget.compression.json_text import add_json, is_one_value
from tokforget.compression.parts import Parts, Structure
from tokforget.compression.program_code import add_code, is_code, statement_sizes
from tokforget.compression.records import (
    FAILED,
    PLAIN,
    SIMILAR,
    TROUBLE,
    WARNING,
    Settings,
    csv_rows,
    find_settings,
    find_tables,
    severities,
    template,
    trace_frames,
)
from tokforget.text_units import STOP_WORDS, bare_word


_HUNK = re.compile(r"^@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@", re.MULTILINE)
_TIME = (
    r"(?:\d{4}[-/.]\d\d?[-/.]\d\d?(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)?(?:Z|[+-]\d\d:?\d\d)?|\d\d:\d\d:\d\d(?:[.,]\d+)?"
    r"|[A-Z][a-z]{2} {1,2}\d{1,2} \d\d:\d\d:\d\d|\d{1,2}/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?: [+-]\d{4})?|\d{10,13}(?:\.\d+)?)"
)
_LOG_LINE = re.compile(
    rf"[\[(]?{_TIME}[\])]?|[\[<]?(?:TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL|[IWEF]\d{{4}})\b|\S+ \S+ \S+ \[{_TIME}\]"
)
_STAMP = re.compile(rf"[\[(]?{_TIME}[\])]?")
_LOG_SHARE, _LOG_LINES = 0.7, 3

# Columns are separated by a tab, a bar or two spaces; other rows are settings (`key: value`) and short lines with
# numbers and without a sentence.
_COLUMNS = re.compile(r"\S(?:\t| {2,}|\s*\|\s*)\S")
_SETTING = re.compile(r"[^\s:=][^:=\n]{0,40}[:=]\s*\S+(?:\s+\S+){0,5}$")
_ROW_SHARE, _ROW_LINES, _ROW_WORDS = 0.6, 4, 24
# Highest share of words in rows that only sentences have, and of rows that end like sentences.
_ROW_STOP_WORDS, _ROW_SENTENCES, _SENTENCE_WORDS = 0.15, 0.2, 6


def find_structure(
    text: str, offsets: np.ndarray, readable: bool = True, omit_records: bool = False
) -> Structure | None:
    """
    The structure of a text; `None` for ordinary text.

    Args:
        text (`str`), offsets (`np.ndarray` of shape `(num_tokens, 2)`): As for [`tokforget.compression.pieces.cut`].
        readable (`bool`): Whether its words have bonds; see [`tokforget.compression.meaning`].
        omit_records (`bool`): Whether whole records of JSON may be dropped.
    """
    if not len(offsets) or not text.strip():
        return None
    parts = Parts(text, readable, omit_records)
    kind = None
    if add_json(parts):
        kind = "json"
    else:
        lines = text.splitlines(keepends=True)
        fences, tables = _fences(text), find_tables(text) if "|" in text else []
        tables = [(a, b) for a, b in tables if not any(a < end and start < b for start, end in fences)]
        if _HUNK.search(text) and not fences:
            kind = "diff"
            _add_diff(parts, lines)
        elif _is_log(lines):
            kind = "log"
            _add_log(parts, lines)
        elif not fences and (frames := trace_frames(lines)):
            kind = "log"
            _add_trace(parts, lines, frames)
        elif not fences and (settings := find_settings(text, lines, statement_sizes(lines, "[{", "]}"))):
            kind = "settings"
            _add_settings(parts, lines, settings)
        elif not fences and not tables and (rows := csv_rows(lines)):
            kind = "csv"
            _add_csv(parts, lines, rows)
        elif fences or tables:
            spans = sorted([*fences, *tables])
            outside = "".join(
                text[a:b] for a, b in zip([0, *(b for _, b in spans)], [*(a for a, _ in spans), len(text)])
            )
            code = fences and is_code(outside.splitlines(keepends=True))
            kind = "code" if code else "fences" if fences else "tables"
            add_code(parts, lines) if code else _add_fences(parts, spans, set(tables))
        elif is_code(lines):
            kind = "code"
            add_code(parts, lines)
        elif _are_rows(lines):
            kind = "rows"
            _add_printed_rows(parts, lines)
    return parts.built(kind, offsets) if kind else None


# -- diffs -------------------------------------------------------------------------------------------------------------
def _add_diff(parts: Parts, lines: list[str]) -> None:
    """
    Add the lines of a diff with their hunk and file. Removed lines belong to the lines that replace them; both come
    before unchanged lines.
    """
    first = next(n for n, line in enumerate(lines) if line.startswith(("diff ", "--- ", "Index: ", "@@ ")))
    parts.add_prose(0, len("".join(lines[:first])))
    place, at, file, hunk, within = parts.edges[-1], first, None, None, False
    while at < len(lines):
        size, line = 1, lines[at]
        if _HUNK.match(line):
            within, hunk = True, len(parts)
        elif line.startswith("--- ") and _heads(lines, at):
            within, hunk, file, size = False, None, len(parts), 2
        elif not within or line.startswith(("diff ", "Index: ")):
            within, hunk = False, None
            if line.startswith(("diff ", "index ", "====")):  # the file names repeat it
                parts.severity[len(parts)] = SIMILAR
        elif line[:1] in "+-":
            while at + size < len(lines) and lines[at + size][:1] in ("+", "-", "\\") and not _heads(lines, at + size):
                size += 1
            parts.severity[len(parts)] = WARNING
        place += sum(map(len, lines[at : at + size]))
        head = len(parts) in (file, hunk)
        parts.rows += [(one, len(parts), len(parts) + 1, -1) for one in (file, hunk) if one is not None and not head]
        parts.add(place, mark=head or not line.strip())
        at += size


def _heads(lines: list[str], at: int) -> bool:
    """Whether a file of the diff begins at this line: its two names and a hunk."""
    return (
        lines[at].startswith("--- ")
        and at + 2 < len(lines)
        and lines[at + 1].startswith("+++ ")
        and bool(_HUNK.match(lines[at + 2]))
    )


# -- logs --------------------------------------------------------------------------------------------------------------
def _is_log(lines: list[str]) -> bool:
    shown = [line for line in lines if line.strip()]
    return len(shown) >= _LOG_LINES and sum(bool(_LOG_LINE.match(line)) for line in shown) >= _LOG_SHARE * len(shown)


def _add_log(parts: Parts, lines: list[str]) -> None:
    place, seen = 0, {}
    severity = severities(lines)
    for number, line in enumerate(lines):
        said = _STAMP.sub("", line, count=1).strip()
        first = seen.setdefault(said, number)
        if said:
            parts.same.setdefault(said, []).append(number)
        place += len(line)
        parts.add(place, mark=first != number or not said)
        if first == number and said:
            alike = parts.similar.setdefault(template(said), [])
            # The first of similar lines represents them; further failures still come before plain lines.
            own = severity[number]
            parts.severity[number] = own if not alike else PLAIN if own >= TROUBLE else SIMILAR
            alike.append(number)


def _add_trace(parts: Parts, lines: list[str], sizes: list[int]) -> None:
    """Add a stack trace; what failed comes before where it did."""
    place, at = 0, 0
    worst = severities(lines)
    for size in sizes:
        place += sum(map(len, lines[at : at + size]))
        if size == 1 and (worst[at] == FAILED or not lines[at][:1].isspace()):
            parts.severity[len(parts)] = worst[at]
        parts.add(place, mark=not "".join(lines[at : at + size]).strip())
        at += size


# -- tables and settings -----------------------------------------------------------------------------------------------
def _add_csv(parts: Parts, lines: list[str], sizes: list[int]) -> None:
    _add_rows(parts, lines, sizes, 1)
    parts.alone = [0]


def _add_rows(parts: Parts, lines: list[str], sizes: list[int], heads: int) -> None:
    """Add records of these numbers of lines; the first `heads` lines, the header, are kept with any other record."""
    place, at, base = parts.edges[-1], 0, len(parts)
    for number, size in enumerate(sizes):
        place += sum(map(len, lines[at : at + size]))
        at += size
        parts.add(place, mark=number < heads)
    parts.rows += [(base + head, base + heads, base + len(sizes), -1) for head in range(heads)]


def _add_settings(parts: Parts, lines: list[str], settings: Settings) -> None:
    place, at, base = parts.edges[-1], 0, len(parts)
    for number, size in enumerate(settings.sizes):
        place += sum(map(len, lines[at : at + size]))
        at += size
        parts.add(place, mark=number in settings.empty)
        if lines[at - size].lstrip().startswith(("#", ";")):
            parts.severity[base + number] = SIMILAR  # entries are kept before comments
    parts.rows += [(base + one, base + first, base + last, -1) for one, first, last in settings.spans]
    inner = {number for one, first, last in settings.spans for number in range(first, last) if number != one}
    parts.alone = [
        base + number
        for number in range(len(settings.sizes))
        if number not in inner and parts.text[parts.edges[base + number] : parts.edges[base + number + 1]].strip()
        and parts.severity.get(base + number) != SIMILAR
    ]  # fmt: skip


# -- rows --------------------------------------------------------------------------------------------------------------
def _are_rows(lines: list[str]) -> bool:
    """Whether lines are rows: most have numbers or columns, and hardly any have words that only sentences have."""
    shown = [line.split() for line in lines if line.strip()]
    if len(shown) < _ROW_LINES or sum(len(words) <= _ROW_WORDS for words in shown) < _ROW_SHARE * len(shown):
        return False
    full = [line for line in lines if line.strip()]
    alike = sum(
        _has_number(line) or bool(_COLUMNS.search(line.strip())) or bool(_SETTING.match(line.strip())) for line in full
    )
    # Lines of HTML and XML are kept in pairs of tags.
    if alike < _ROW_SHARE * len(full) or 2 * sum(line.lstrip().startswith("<") for line in full) > len(full):
        return False
    sentences = sum(len(line) >= _SENTENCE_WORDS and line[-1][-1] in ".!?:…" for line in shown)
    words = [bare_word(word) for line in shown for word in line]
    return sentences <= _ROW_SENTENCES * len(full) and sum(
        word in STOP_WORDS for word in words
    ) <= _ROW_STOP_WORDS * len(words)


def _has_number(line: str) -> bool:
    return any(map(str.isdigit, line))


def _add_printed_rows(parts: Parts, lines: list[str]) -> None:
    base, place = len(parts), parts.edges[-1]
    for line in lines:
        place += len(line)
        parts.add(place, mark=not line.strip())
    full = [number for number, line in enumerate(lines) if line.strip()]
    parts.severity |= {base + number: own for number, own in enumerate(severities(lines)) if own >= TROUBLE}
    opener = None
    for at, number in enumerate(full):
        behind = full[at + 1] if at + 1 < len(full) else len(lines)
        if lines[number][:1].isspace():
            if opener is not None:
                parts.rows.append((base + opener, base + number, base + number + 1, -1))
            continue
        opener = number
        # A header has no numbers, and is directly followed by rows with numbers.
        if behind == number + 1 < len(lines) and not _has_number(lines[number]) and _has_number(lines[behind]):
            end = next((n for n in range(behind, len(lines)) if not lines[n].strip()), len(lines))
            parts.rows.append((base + number, base + behind, base + end, -1))
            parts.mark[base + number] = True
    for blank in set(range(len(lines))) - set(full):  # separated blocks stay separated
        after = next((number for number in full if number > blank), None)
        if after is not None:
            parts.rows.append((base + blank, base + after, base + after + 1, base))


# -- fences ------------------------------------------------------------------------------------------------------------
def _fences(text: str) -> list[tuple[int, int]]:
    return [span for span in find_code_fences(text) if text.count("\n", *span) > 1]


def _add_fences(parts: Parts, spans: list[tuple[int, int]], tables: set[tuple[int, int]]) -> None:
    """Add words, lines in code fences, and rows of tables."""
    text, place, before_spans = parts.text, 0, []
    for start, end in spans:
        if (start, end) in tables:
            parts.add_prose(place, start)
            before_spans.append(len(parts) - 1)
            before, first = len(parts) - 1, len(parts) + 2
            rows = text[start:end].splitlines(keepends=True)
            _add_rows(parts, rows, [1] * len(rows), 2)
            last, behind = len(parts), re.compile(r"(?:[^\S\n]*\n)*").match(text, end).end()
            if before >= 0 and parts.mark[before]:  # the line break before the table
                parts.rows.append((before, first, last, 0))
            if behind > end:  # without the empty line the next line would be a row
                parts.add(behind, mark=True)
                parts.rows.append((last, first, last, -1))
            place = behind
            parts.blocks.append((before + 1, len(parts)))
            continue
        start = max(start, place)
        parts.add_prose(place, start)
        before_spans.append(len(parts) - 1)
        before = len(parts) - 1
        end = len(text) if "\n" not in text[end:] else text.index("\n", end - 1) + 1
        lines = text[start:end].splitlines(keepends=True)
        opened = len(parts)
        parts.add(start + len(lines[0]), mark=True)
        closed = len(lines) > 1 and lines[-1].strip(" \t\r\n>")[:3] in ("```", "~~~")
        inside = lines[1 : len(lines) - closed]
        body = "".join(inside)
        if body.lstrip()[:1] in ("{", "[") and is_one_value(body):
            parts.add(parts.edges[-1] + len(body))  # a JSON without some of its lines does not parse
        else:
            add_code(parts, inside)
        last = len(parts)
        parts.rows.append((opened, opened + 1, last, -1))
        if before >= 0 and parts.mark[before]:  # the line break before the fence
            parts.rows.append((before, opened + 1, last, 0))
        if closed:
            parts.add(end, mark=True)
            parts.rows.append((last, opened + 1, last, -1))
        place = end
        parts.blocks.append((before + 1, len(parts)))
    parts.add_prose(place, len(text))
    for before in before_spans:
        if (
            before >= 0 and parts.mark[before]
        ):  # where none of it is left, what stands before and behind it stays on two lines
            parts.rows.append((before, before + 1, len(parts), 0))
