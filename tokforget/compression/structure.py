"""
Find the structure of texts that are more than words, such as JSON, program code and logs, for `unit="auto"`.

* JSON, alone or after a line or two of introduction, stays JSON: keys, numbers, short strings and brackets are kept, white space
  outside of strings is dropped first, and the words of long strings are kept or dropped as in any text. On request whole
  records are kept or dropped instead.
* Code and logs are kept or dropped by whole lines. A line of code is kept together with the lines that open and close its
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

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise

import numpy as np

from tokforget.compression.fences import find_code_fences
from tokforget.compression.meaning import Bonds, find_bonds
from tokforget.compression.pieces import Pieces, cut
from tokforget.compression.records import (
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
)
from tokforget.text_units import STOP_WORDS, bare_word


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
_ESCAPE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL)

_CODE_LINE = re.compile(
    r"\s*(?:(?:def|class|import|return|if|for|while|elif|except|with|async|await|raise|yield|assert|lambda|function|const|let|var|public|"
    r"private|protected|static|void|int|using|namespace|package|func|fn|impl|struct|enum|export|switch|case|throw|new|module|end|"
    r"SELECT|INSERT|UPDATE|CREATE|FROM|WHERE)\b.*[:({\[;,=)\]}\\]\s*$|(?:import|from|return|export|package|use|using)\s[\w.{*]+.*$"
    r"|(?:if|elif|else|for|while|with|except)\b[^:]*:\s+(?:return|raise|continue|break|pass|yield|[\w.]+(?:\(|\s*=))"
    r"|(?:else|try|finally|do|then|fi|done|end|pass|break|continue|return)\b\s*[:{;]?\s*$|@[\w.]+(?:\(.*\))?\s*$|#include\b|#!|//|/\*|\*/|#\s"
    r"|.*;\s*(?:then|do)\s*$|(?:esac|then|do)\s*$|\w+\(\)\s*\{?\s*$|set -[a-z]|exit \d|echo [\"'$]|export \w+=|\S+ .*(?:<<-?\s*['\"]?\w+['\"]?|\s\\)\s*$"
    r"|(?:SELECT|INSERT INTO|VALUES|UPDATE|SET|DELETE FROM|CREATE|ALTER|DROP|FROM|(?:LEFT |RIGHT |INNER |FULL |CROSS )?(?:OUTER )?JOIN|WHERE"
    r"|AND|OR|ON|GROUP BY|HAVING|ORDER BY|LIMIT|UNION|WITH)\s\S|(?:RUN|COPY|ADD|WORKDIR|ENV|EXPOSE|CMD|ENTRYPOINT|USER|ARG|LABEL|VOLUME)\s\S"
    r"|(?:class|module|def)\s[\w.:?!]+(?:\s*<\s*[\w:]+)?\s*$|attr_\w+ :|[\w']+(?:\s+[\w'()\[\]:,]+){0,6}\s+(?:::|<-|->|=)\s+\S|.*\s->\s\S"
    r"|[\w.$*&\[\]\"'@]+(?:\s*,\s*[\w.]+)*(?:\s*:\s*[\w.\[\], |]+)?\s*(?:[-+*/|&%]|:)?=(?!=)\s*\S|[\w.$]+\(.*\)\s*[;,{:]?\s*$|[\])}]+[;,:]?\s*$"
    r"|.*[;{}]\s*$)"
)
_CODE_SHARE, _CODE_LINES = 0.6, 3
# Without one of these, lines that end in such characters are a list or a letter.
_SURELY_CODE = re.compile(
    r"^\s*(?:def \w+\(|class \w+|import \w+|from [\w.]+ import |#include|function\b|const |let |var |public |private |func |fn |return\b.*[;)]?$"
    r"|(?:if|for|while|until) .*;\s*(?:then|do)\s*$|(?:fi|done|esac)\s*$|(?:SELECT|INSERT INTO|DELETE FROM|CREATE TABLE|FROM|WHERE) |(?:RUN|COPY|WORKDIR) "
    r"|def \w+[?!]?\s*$|[\w']+ :: \S|module [A-Z][\w.]* where"
    r"|(?:if|for|while)\b.*[:{]\s*$|[\w.]+ = .+|\w+\(.*\);?$|.*[;{]\s*$)",
    re.MULTILINE,
)
_COMMENT = re.compile(r"//|--\s|#\s|#$|\*|;;")
_HEREDOC = re.compile(r"(?<!<)<<[-~]?\s*['\"]?([A-Za-z_]\w*)['\"]?(?=\s|$|[);|>])")
# SQL statements begin with the first of these; without the limiting clauses they would have another meaning.
_SQL = re.compile(r"\s*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH)(?!\w)")
_LIMITING = re.compile(
    r"\s*(?:FROM|SET|VALUES|(?:LEFT |RIGHT |INNER |FULL |CROSS )?(?:OUTER )?JOIN|WHERE|HAVING)(?!\w)"
)
_DEFINES = re.compile(r"\s*(?:CREATE|ALTER|DROP) TABLE(?!\w)")
_CLAUSE = re.compile(
    rf"{_SQL.pattern}|{_LIMITING.pattern}|\s*(?:GROUP BY|ORDER BY|LIMIT|UNION|CREATE TABLE|ALTER TABLE|DROP TABLE)(?!\w)"
)
_HUNK = re.compile(r"^@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@", re.MULTILINE)
_CONTINUES = re.compile(r"\s*(?:(?:elif|else|except|finally|catch|rescue|ensure|end|fi|done)\b|[\])}])")
_CLOSES = re.compile(r"\s*(?:(?:end|fi|done)\b|[\])}])")
_FLOW = re.compile(
    r"\s*(?:if|for|while|with|try|unless|until|switch|match|do|loop|foreach|else|elif|case|async (?:for|with))\b"
)
_TRIES = re.compile(r"\s*try\b")
# What opens a block that is not one of these.
_HEAD = re.compile(r"[:{]\s*(?:(?:#|//).*)?\Z|\A\s*(?:(?:export |local |async )*(?:def|class|module|function|sub))\b")
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|(?:#|//).*")
# A literal with its first entry behind the brace; with nothing behind it a brace opens a block.
_BEGUN_LITERAL = re.compile(r"[=:(,\[]\s*\{[^{}]*\S[^{}]*$|\breturn\s*\{[^{}]*\S[^{}]*$")
# A bracket that stays open for longer belongs to prose or to a string.
_STATEMENT_LINES = 40
# So long may a text in triple quotes be.
_QUOTED_LINES = 400

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


@dataclass
class TextPieces(Pieces):
    """
    Pieces whose edges may be inside tokens.

    Args:
        offsets (`np.ndarray` of shape `(num_tokens, 2)`): As for [`tokforget.compression.pieces.cut`].
        shared (`list[list[int]]`): Groups of pieces that are kept together; the first stands for all.
    """

    offsets: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    shared: list[list[int]] = field(default_factory=list)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each piece `(num_pieces,)`; the first of a group has those of all."""
        sizes = np.diff(self.starts)
        for group in self.shared:
            total = sizes[group].sum()
            sizes[group] = 0
            sizes[group[0]] = total
        return sizes

    def means(self, token_values: np.ndarray) -> np.ndarray:
        """
        Mean over the characters of each piece, or of its group, of their tokens' values `(num_pieces,)`, float64.
        """
        places = np.arange(self.chars[-1])
        owner = np.maximum(np.searchsorted(self.offsets[:, 0], places, side="right") - 1, 0)
        total = np.concatenate([[0.0], np.cumsum(token_values.astype(np.float64)[owner])])
        means = np.diff(total[self.chars]) / np.diff(self.chars)
        for group in self.shared:
            means[group] = np.average(means[group], weights=np.diff(self.chars)[group])
        return means

    def to_tokens(self, piece_values: np.ndarray) -> np.ndarray:
        """From a mask over pieces to the tokens of which a character is kept `(num_tokens,)`, bool."""
        total = np.concatenate([[0], np.cumsum(np.repeat(piece_values, np.diff(self.chars)))])
        return total[self.offsets[:, 1]] > total[self.offsets[:, 0]]


@dataclass
class Structure:
    """
    A structured text in pieces.

    Args:
        kind (`str`): `"json"`, `"code"`, `"log"`, `"diff"`, `"csv"`, `"settings"` (YAML, TOML or INI), `"rows"`, `"fences"` or `"tables"`.
        pieces (`TextPieces`), bonds (`Bonds`): The pieces, and which of them are kept together.
        needed (`np.ndarray` of shape `(num_pieces,)`): Pieces without which the structure would be broken; bool.
        groups (`list[tuple[int, int]]`), required (`list[tuple[int, int]]`): Ranges of pieces of which one should be
            kept, and of which one must be.
        severity (`np.ndarray` of shape `(num_pieces,)`): Pieces of higher severity are kept first, whatever their
            scores, if there is no question; 0 for most.
        alone (`np.ndarray` of shape `(num_pieces,)`, *optional*): Pieces that may be kept without their bonds if no
            piece fits with them: the header of a CSV, an entry of settings that is in no other; bool.
    """

    kind: str
    pieces: TextPieces
    bonds: Bonds
    needed: np.ndarray
    groups: list[tuple[int, int]]
    severity: np.ndarray
    alone: np.ndarray | None = None
    required: list[tuple[int, int]] = field(default_factory=list)


class _Parts:
    """Collects pieces from left to right."""

    def __init__(self, text: str, readable: bool, omit_records: bool = False):
        self.text, self.readable, self.omit_records, self.edges = text, readable, omit_records, [0]
        self.records: list[tuple[list[int], list[int], str]] = []
        self.required: list[tuple[int, int]] = []
        self.shared: list[list[int]] = []
        self.bound, self.blank, self.mark, self.needed, self.first_of_all, self.leads_to = [], [], [], [], [], []
        self.rows: list[tuple[int, int, int, int]] = []
        self.groups: list[tuple[int, int]] = []
        self.notes: list[tuple[int, int, str]] = []
        self.severity: dict[int, int] = {}
        self.similar: dict[str, list[int]] = {}
        self.same: dict[str, list[int]] = {}
        self.alone: list[int] | None = None

    def __len__(self) -> int:
        return len(self.bound)

    def add(self, end: int, needed: bool = False, mark: bool = False) -> None:
        """Add one piece that ends at a character; nothing is joined to it."""
        if end > self.edges[-1]:
            self.edges.append(end)
            self.leads_to.append(len(self))
            self.bound.append(False)
            self.blank.append(True)
            self.mark.append(mark)
            self.needed.append(needed)
            self.first_of_all.append(False)

    def add_words(self, shown: str, places: np.ndarray) -> None:
        """
        Add the words of a string that is written with escapes.

        Args:
            shown (`str`): The string without escapes.
            places (`np.ndarray` of shape `(len(shown) + 1,)`): Offset of each of its characters in the text, and the
                end.
        """
        at = np.arange(len(shown))
        pieces = cut(shown, np.stack([at, at + 1], 1), "word")
        bonds, base = find_bonds(shown, pieces) if self.readable else Bonds.none(len(pieces)), len(self)
        self.edges += places[pieces.chars[1:]].tolist()
        # The first word of a section is bound to the lines before it, and not to the last word of the earlier section.
        self.bound += [bool(base), *pieces.bound[1:].tolist()] if len(pieces) else []
        self.blank += pieces.blank.tolist()
        self.mark += bonds.marks.tolist()
        self.first_of_all += bonds.first_of_all.tolist()
        self.leads_to += (bonds.leads_to + base).tolist()
        self.needed += [False] * len(pieces)
        begin = np.where(bonds.begin < 0, -1, bonds.begin + base)
        self.rows += zip(*((c + base).tolist() for c in (bonds.pieces, bonds.first, bonds.last)), begin.tolist())

    def built(self, kind: str, offsets: np.ndarray) -> Structure:
        chars = np.array(self.edges)
        starts = np.searchsorted(offsets[:, 0], chars)
        starts[0], starts[-1] = 0, len(offsets)
        pieces = TextPieces(
            starts, chars, np.array(self.bound), np.array(self.blank), offsets=offsets, shared=self.shared
        )
        pieces.notes, pieces.records = self.notes, self.records
        pieces.similar = [
            (members, [int(chars[at]) + len(self.text[chars[at] : chars[at + 1]].rstrip()) for at in members], same)
            for same, groups in ((True, self.same), (False, self.similar))
            for members in groups.values()
            if len(members) > (1 if same else 2)
        ]
        severity = np.zeros(len(self), dtype=np.int64)
        severity[list(self.severity)] = list(self.severity.values())
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 4).T
        bonds = Bonds(*rows, np.array(self.mark), np.array(self.first_of_all), np.array(self.leads_to))
        alone = None if self.alone is None else np.isin(np.arange(len(self)), self.alone)
        return Structure(kind, pieces, bonds, np.array(self.needed), self.groups, severity, alone, self.required)


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
    parts = _Parts(text, readable, omit_records)
    kind = None
    if _is_json(text):
        kind = "json"
        _add_json(parts)
    elif (plain := _plain_json(text)) is not None:
        kind, parts.text = "json", plain
        _add_json(parts)
    elif within := _json_within(text):
        kind = "json"
        _add_around_json(parts, *within)
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
        elif not fences and (settings := find_settings(text, lines, _statements(lines, "[{", "]}"))):
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
            _add_code(parts, lines) if code else _add_fences(parts, spans, set(tables))
        elif is_code(lines):
            kind = "code"
            _add_code(parts, lines)
        elif _are_rows(lines):
            kind = "rows"
            _add_printed_rows(parts, lines)
    return parts.built(kind, offsets) if kind else None


def is_json(text: str) -> bool:
    """Whether `find_structure` takes a text for JSON."""
    return bool(text.strip()) and (_is_json(text) or _plain_json(text) is not None or _json_within(text) is not None)


# -- JSON --------------------------------------------------------------------------------------------------------------
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
        if bare.startswith("{") and bare.endswith("}") and _one_value(bare):
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
    plain = _LAST_COMMA.sub(blank, plain) if not _one_value(plain) else plain
    return plain if _one_value(plain) else None


def _add_around_json(parts: _Parts, start: int, end: int) -> None:
    """
    Add a JSON and the words before and after it. The white space between them, a label of the JSON and the lines of a code
    fence around it are always kept.
    """
    text = parts.text
    before, behind = len(text[:start].rstrip()), len(text) - len(text[end:].lstrip())
    line = text.rfind("\n", 0, before) + 1
    label = text[line:before].strip()
    if label.startswith(_FENCE) or (label.endswith(":") and len(label.split()) <= _LABEL_WORDS):
        _add_prose(parts, 0, len(text[:line].rstrip()))
        parts.add(line, needed=True)
        parts.add(before, needed=True)
    else:
        _add_prose(parts, 0, before)
    parts.add(start, needed=True)
    _add_json(parts, start, end)
    parts.add(behind, needed=True)
    if text.startswith(_FENCE, behind):
        closed = _LINE.match(text, behind).end()
        parts.add(closed, needed=True)
        behind = closed
    _add_prose(parts, behind, len(text))


def _add_json(parts: _Parts, start: int = 0, end: int | None = None) -> None:
    end = len(parts.text) if end is None else end
    lines = not _one_value(parts.text[start:end])
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


def _add_record(parts: _Parts, end: int) -> None:
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
    """A JSON with its records on lines of their own, character by character in the same place."""
    if not is_json(text):
        return text
    signs = list(text)
    for spans, _ in _find_records(text, 0, len(text), False):
        for _, end in spans[:-1]:
            signs[end - 1] = "\n"
    return "".join(signs)


def _add_values(parts: _Parts, start: int, end: int, records: bool) -> None:
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


def _one_value(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _add_between(parts: _Parts, start: int, end: int, records: bool) -> None:
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


# -- code --------------------------------------------------------------------------------------------------------------
def is_code(lines: list[str]) -> bool:
    """Whether lines are program code."""
    shown = [line for line in _outside_comments(_outside_docstrings(lines)) if line.strip()]
    found = sum(bool(_CODE_LINE.match(line)) for line in shown)
    return (
        len(shown) >= _CODE_LINES
        and found >= _CODE_SHARE * len(shown)
        and sum(bool(_SURELY_CODE.match(line)) for line in shown) >= 2
    )


def _outside_docstrings(lines: list[str]) -> list[str]:
    found, quoted = [], False
    for line in lines:
        if not quoted:
            found.append(line)
        if line.count('"""') % 2:
            quoted = not quoted
    return found


def _outside_comments(lines: list[str]) -> list[str]:
    """The lines that are not only comments, because comments may be longer than the code."""
    found, within = [], False
    for line in lines:
        bare = line.strip()
        if within or bare.startswith("/*"):
            within = "*/" not in bare
        elif not _COMMENT.match(bare):
            found.append(line)
    return found


def _block_end(lines: list[str], at: int) -> int | None:
    """
    The line after a comment line, a `<<EOF` text, an SQL clause or a continued line that begins at `at`; `None` for
    other lines.
    """
    line, most = lines[at].strip(), min(len(lines), at + 3 * _STATEMENT_LINES)
    if line.startswith(("/*", "*")):  # line by line, ignoring brackets
        return at + 1
    if heredoc := _HEREDOC.search(line):
        return next((n + 1 for n in range(at + 1, most) if lines[n].strip() == heredoc[1]), None)
    above = lines[max(at - _STATEMENT_LINES, 0) : at + 1]
    # FROM may belong to a Dockerfile.
    if _CLAUSE.match(line) and any(_SQL.match(one) or _DEFINES.match(one) for one in above):
        if line.endswith(";"):
            return at + 1
        own = _indent(lines[at])
        starts = lambda n: _CLAUSE.match(lines[n].lstrip()) and _indent(lines[n]) <= own  # noqa: E731
        found = next((n for n in range(at + 1, most) if starts(n) or lines[n - 1].rstrip().endswith(";")), None)
        return found if found is not None else len(lines) if most == len(lines) else None
    if line.endswith("\\"):
        return next((n + 1 for n in range(at, most) if not lines[n].rstrip().endswith("\\")), None)
    return None


def _indent(line: str) -> int:
    shown = line.expandtabs(4)
    return len(shown) - len(shown.lstrip())


def _statements(lines: list[str], opening: str = "([", closing: str = ")]") -> list[int]:
    """Number of lines of each statement; brackets and triple quotes keep lines together."""
    sizes, at = [], 0
    while at < len(lines):
        end = _block_end(lines, at) if opening == "([" else None
        if end is not None:
            sizes.append(end - at)
            at = end
            continue
        depth, quotes, size, own, ends = 0, 0, 0, opening, closing
        for line in lines[at : at + _QUOTED_LINES]:
            if size >= _STATEMENT_LINES and not quotes % 2:
                break
            size += 1
            quotes += line.count('"""') + line.count("'''")
            if not quotes % 2:
                bare = _QUOTED.sub("", line)
                if size == 1 and opening == "([" and _BEGUN_LITERAL.search(bare):
                    own, ends = "([{", ")]}"
                depth += sum(map(bare.count, own)) - sum(map(bare.count, ends))
            if depth <= 0 and not quotes % 2:
                break
        sizes.append(size if depth <= 0 and not quotes % 2 else 1)
        at += sizes[-1]
    return sizes


def _add_code(parts: _Parts, lines: Iterable[str]) -> None:
    lines = list(lines)
    base, place, rows = len(parts), parts.edges[-1], []
    statements = []
    at = 0
    for size in _statements(lines):
        statement = "".join(lines[at : at + size])
        at += size
        place += len(statement)
        parts.add(place, mark=not statement.strip())
        statements.append(statement)
    full = [number for number, statement in enumerate(statements) if statement.strip()]
    indents = {number: _indent(statements[number]) for number in full}
    for after, number in pairwise(full[::-1]):  # a comment before an "else" stands in the block above it
        if _COMMENT.match(statements[number].strip()) and indents[number] == _indent(statements[after]):
            indents[number] += _CONTINUES.match(statements[after]) is not None or indents[after] > indents[number]
    # Openers of the blocks that are open, outermost first; each with what goes on with it: "else", "}".
    open_: list[list[int]] = []
    for number in [*full, len(statements)]:
        indent = indents.get(number, -1)
        while open_ and indents[open_[-1][0]] >= indent:
            chain = open_.pop()
            if indents[chain[0]] == indent and number > chain[-1] + 1 and _CONTINUES.match(statements[number]):
                open_.append([*chain, number])
                break
            rows += _chained(statements, chain, number)
            for member in chain[1:] if number > chain[0] + 1 else ():
                parts.mark[base + member] = True
            if _FLOW.match(statements[chain[0]]) and any(n in indents for n in range(chain[0] + 1, number)):
                parts.mark[base + chain[0]] = True  # an "if" without its block says nothing
            rows += _filled(statements, chain, number)
        else:
            open_.append([number])
    _tie_comments(parts, statements, base)
    _tie_clauses(parts, statements, base)
    for one, after in pairwise(full):
        if statements[one].lstrip().startswith("@") and indents[one] == indents[after]:
            rows.append((one, after, after + 1))
            parts.mark[base + one] = True
        for blank in range(one + 1, after):
            if not indents[after]:  # outermost statements stay separate
                rows.append((blank, after, after + 1))
    parts.rows += [(a + base, b + base, c + base, base if not statements[a].strip() else -1) for a, b, c in rows]


def _tie_comments(parts: _Parts, statements: list[str], base: int) -> None:
    """Keep the first and last line of a multi-line comment together with any line between them."""
    opened = None
    for number, statement in enumerate(statements):
        if opened is None and statement.lstrip().startswith("/*") and "*/" not in statement:
            opened = number
        elif opened is not None and "*/" in statement:
            for inside in range(opened, number + 1):  # code is kept before comments about it
                parts.severity[base + inside] = SIMILAR
                if not statements[inside].strip(" \t\r\n*"):
                    parts.mark[base + inside] = True
            for edge in (opened, number) if number > opened + 1 else ():
                parts.mark[base + edge] = True
                parts.rows.append((base + edge, base + opened + 1, base + number, -1))
            if number == opened + 1:
                parts.rows += [
                    (base + opened, base + number, base + number + 1, -1),
                    (base + number, base + opened, base + number, -1),
                ]
            opened = None


def _tie_clauses(parts: _Parts, statements: list[str], base: int) -> None:
    """Keep the first clause of an SQL statement and its limiting clauses together with any other clause."""
    number = 0
    while number < len(statements):
        end = number + 1
        if _SQL.match(statements[number]):
            while (
                end < len(statements)
                and not statements[end - 1].rstrip().endswith(";")
                and _CLAUSE.match(statements[end])
            ):
                end += 1
            for at in range(number, end) if end > number + 1 else ():
                if at == number or _LIMITING.match(statements[at]):
                    parts.rows.append((base + at, base + number, base + end, -1))
        number = end


def _filled(statements: list[str], chain: list[int], end: int) -> list[tuple[int, int, int]]:
    """
    What keeps the blocks of an opener and of what goes on with it from being empty, where they are named or commented only: the
    statement of each that costs least. "def f():" without anything behind it does not parse, and "{}" would say that nothing is done.
    """
    rows, root = [], chain[0]
    for number, (opener, after) in enumerate(pairwise([*chain, end])):
        inside = [n for n in range(opener + 1, after) if statements[n].strip()]
        comments = [n for n in inside if _COMMENT.match(statements[n].strip())]
        done = [
            n
            for n in inside
            if n not in comments and not _FLOW.match(statements[n]) and not _CONTINUES.match(statements[n])
        ]
        if not done or not (number or _HEAD.search(statements[root]) or _FLOW.match(statements[root])):
            continue
        least = min(done, key=lambda n: len(statements[n].strip()))
        rows += [(least, n, n + 1) for n in comments]
        if number == 0:
            rows.append((least, root, root + 1))
            if after < end:
                rows.append((least, after + 1, end))
        if number == 1 and _TRIES.match(statements[root]):
            rows += [(one, root + 1, opener) for one in (opener, least)]
    return rows


def _chained(statements: list[str], chain: list[int], end: int) -> list[tuple[int, int, int]]:
    """
    Bonds of an opener and its continuations: they are kept with any line of their blocks, a closing bracket with all
    of them.
    """
    root = chain[0]
    rows = [(root, root + 1, end)] if end > root + 1 else []
    for member, after in zip(chain[1:], [*chain[2:], end]):
        if _CLOSES.match(statements[member]):
            rows += [(member, root + 1, end), (member, root, root + 1)]
        else:
            rows.append((member, member + 1, after))
    return rows


# -- diffs -------------------------------------------------------------------------------------------------------------
def _add_diff(parts: _Parts, lines: list[str]) -> None:
    """
    Add the lines of a diff with their hunk and file. Removed lines belong to the lines that replace them; both come
    before unchanged lines.
    """
    first = next(n for n, line in enumerate(lines) if line.startswith(("diff ", "--- ", "Index: ", "@@ ")))
    _add_prose(parts, 0, len("".join(lines[:first])))
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


def _add_log(parts: _Parts, lines: list[str]) -> None:
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


# -- tables and settings -----------------------------------------------------------------------------------------------
def _add_csv(parts: _Parts, lines: list[str], sizes: list[int]) -> None:
    _add_rows(parts, lines, sizes, 1)
    parts.alone = [0]


def _add_rows(parts: _Parts, lines: list[str], sizes: list[int], heads: int) -> None:
    """Add records of these numbers of lines; the first `heads` lines, the header, are kept with any other record."""
    place, at, base = parts.edges[-1], 0, len(parts)
    for number, size in enumerate(sizes):
        place += sum(map(len, lines[at : at + size]))
        at += size
        parts.add(place, mark=number < heads)
    parts.rows += [(base + head, base + heads, base + len(sizes), -1) for head in range(heads)]


def _add_settings(parts: _Parts, lines: list[str], settings: Settings) -> None:
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
    if alike < _ROW_SHARE * len(full):
        return False
    sentences = sum(len(line) >= _SENTENCE_WORDS and line[-1][-1] in ".!?:…" for line in shown)
    words = [bare_word(word) for line in shown for word in line]
    return sentences <= _ROW_SENTENCES * len(full) and sum(
        word in STOP_WORDS for word in words
    ) <= _ROW_STOP_WORDS * len(words)


def _has_number(line: str) -> bool:
    return any(map(str.isdigit, line))


def _add_printed_rows(parts: _Parts, lines: list[str]) -> None:
    base, place = len(parts), parts.edges[-1]
    for line in lines:
        place += len(line)
        parts.add(place, mark=not line.strip())
    full = [number for number, line in enumerate(lines) if line.strip()]
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


def _add_fences(parts: _Parts, spans: list[tuple[int, int]], tables: set[tuple[int, int]]) -> None:
    """Add words, lines in code fences, and rows of tables."""
    text, place, before_spans = parts.text, 0, []
    for start, end in spans:
        if (start, end) in tables:
            _add_prose(parts, place, start)
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
            continue
        start = max(start, place)
        _add_prose(parts, place, start)
        before_spans.append(len(parts) - 1)
        before = len(parts) - 1
        end = len(text) if "\n" not in text[end:] else text.index("\n", end - 1) + 1
        lines = text[start:end].splitlines(keepends=True)
        opened = len(parts)
        parts.add(start + len(lines[0]), mark=True)
        closed = len(lines) > 1 and lines[-1].strip(" \t\r\n>")[:3] in ("```", "~~~")
        inside = lines[1 : len(lines) - closed]
        body = "".join(inside)
        if body.lstrip()[:1] in ("{", "[") and _one_value(body):
            parts.add(parts.edges[-1] + len(body))  # a JSON without some of its lines does not parse
        else:
            _add_code(parts, inside)
        last = len(parts)
        parts.rows.append((opened, opened + 1, last, -1))
        if before >= 0 and parts.mark[before]:  # the line break before the fence
            parts.rows.append((before, opened + 1, last, 0))
        if closed:
            parts.add(end, mark=True)
            parts.rows.append((last, opened + 1, last, -1))
        place = end
    _add_prose(parts, place, len(text))
    for before in before_spans:
        if (
            before >= 0 and parts.mark[before]
        ):  # where none of it is left, what stands before and behind it stays on two lines
            parts.rows.append((before, before + 1, len(parts), 0))


def _add_prose(parts: _Parts, start: int, end: int) -> None:
    if end > start:
        parts.add_words(parts.text[start:end], np.arange(start, end + 1))
