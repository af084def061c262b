"""
Analyse texts that are kept or dropped by whole lines: the severity of log lines, rows of tables, keys of settings.

These functions take the lines of a text and return facts about them; they do not make pieces.
"""

import csv
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field


# -- logs --------------------------------------------------------------------------------------------------------------
# Severities of log lines; the highest are kept first, and among equals the scores decide.
FAILED, TROUBLE, WARNING, PLAIN, SIMILAR = 3, 2, 1, 0, -1

_FAILED = re.compile(
    r"\b(?:ERROR|ERR|FATAL|CRITICAL|CRIT|SEVERE|EMERG|EMERGENCY|ALERT|PANIC)\b|^[\[<]?[EF]\d{4}\b|\bpanic:|"
    r"[\[<](?:error|fatal|critical|crit|alert|emerg)[\]>:]|\blevel=\"?(?:error|fatal|critical|panic)\b|^\s*Caused by:|\bException in thread\b|"
    r"^(?:[\w$]+\.)*[A-Z]\w*(?:Error|Exception)\b|^E {3,}\S"
)
_TROUBLE = re.compile(
    r"(?<!\b0 )\bfail(?:ed|ure|s|ing)?\b(?!\s*[=:]\s*0\b)|\bexception\b|\btraceback\b|\btimed[ -]?out\b|\btimeout\b|\brefused\b|\bdenied\b|"
    r"\baborted\b|\bcrash(?:ed)?\b|\bout of memory\b|\bsegfault\b|\bpanic\b|\bunreachable\b",
    re.IGNORECASE,
)
_WARNING = re.compile(r"\b(?:WARN|WARNING)\b|^[\[<]?W\d{4}\b|[\[<]warn(?:ing)?[\]>:]|\blevel=\"?warn")
_TRACE = re.compile(r"^\s*Traceback \(most recent call last\)")
_FRAME = re.compile(r"^(?:\s+\S|\t)")
# Frames of stack traces: Java and JavaScript, Python, Ruby, Rust and Go, debuggers.
_STACK_FRAME = re.compile(
    r"\s+at \S|\s*File \"[^\"]+\", line \d+|\s+\.\.\. \d+ (?:more|common)|\s+from \S+:\d+:in |\s+\d+: \S|\s*#\d+\s+\S|\t\S+\.\w+:\d+"
)
_TRACE_SHARE, _TRACE_FRAMES = 0.8, 2
# Parts that differ between similar lines: numbers, ids, quoted names, addresses, paths with a number.
_DIFFERS = re.compile(r"\"[^\"]*\"|'[^']*'|\b[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]+)*\b|[\w./:-]*\d[\w./:-]*")


def template(line: str) -> str:
    """The template of a log line: the part that it shares with similar lines."""
    return _DIFFERS.sub("#", line)


def severities(lines: Sequence[str]) -> list[int]:
    """
    Severity of each log line: `FAILED`, `TROUBLE`, `WARNING` or `PLAIN`; frames of a stack trace have that of the
    failure.
    """
    found, within = [], False
    for line in lines:
        if _TRACE.match(line):
            within = True
            found.append(TROUBLE)
        elif within and _FRAME.match(line):
            found.append(TROUBLE)
        elif within:  # the line after the frames names the exception
            within = False
            found.append(FAILED)
        elif _FAILED.search(line):
            found.append(FAILED)
        elif _TROUBLE.search(line):
            found.append(TROUBLE)
        else:
            found.append(WARNING if _WARNING.search(line) else PLAIN)
    return found


def trace_frames(lines: Sequence[str]) -> list[int] | None:
    """
    The number of lines of each part of a stack trace; a frame has the lines of its source below it. `None` if the lines are
    no stack trace.
    """
    sizes, frames, known, at = [], 0, 0, 0
    while at < len(lines):
        end = at + 1
        if _STACK_FRAME.match(lines[at]):
            frames += 1
            if lines[at].lstrip().startswith("File "):
                depth = len(lines[at]) - len(lines[at].lstrip())
                while end < len(lines) and lines[end].strip() and len(lines[end]) - len(lines[end].lstrip()) > depth:
                    end += 1
            known += end - at
        elif _FAILED.search(lines[at]) or _TRACE.match(lines[at]):
            known += 1
        sizes.append(end - at)
        at = end
    shown = sum(bool(line.strip()) for line in lines)
    return sizes if frames >= _TRACE_FRAMES and known >= _TRACE_SHARE * shown else None


# -- tables ------------------------------------------------------------------------------------------------------------
_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*")
_CSV_LINES, _CSV_FIELDS, _CELL_WORDS = 4, 3, 6


def find_tables(text: str) -> list[tuple[int, int]]:
    """
    Span of each Markdown table in characters: a header, a row of dashes, and at least one more row, in whole lines.
    """
    found, place, begin, count = [], 0, 0, 0
    before = ("", 0)
    for line in [*text.splitlines(keepends=True), ""]:
        bare = line.rstrip("\r\n")
        if count:
            if "|" in bare:
                count += 1
            else:
                found += [(begin, place)] * (count > 2)
                count = 0
        elif "|" in before[0] and "|" in bare and "-" in bare and _RULE.fullmatch(bare):
            begin, count = before[1], 2
        before = (bare, place)
        place += len(line)
    return found


def csv_rows(lines: Sequence[str]) -> list[int] | None:
    """Number of lines of each CSV record, beginning with the header; `None` if the text is not CSV."""
    if len(lines) < _CSV_LINES:
        return None
    for mark in ",;\t|":
        if sum(mark in line for line in lines) < len(lines) * 0.8:
            continue
        reader = csv.reader(lines, delimiter=mark, strict=True)
        rows, sizes, at = [], [], 0
        try:
            for row in reader:
                if row:
                    rows.append(row)
                    sizes.append(reader.line_num - at)
                elif sizes:  # an empty line belongs to the record before it
                    sizes[-1] += reader.line_num - at
                else:
                    return None
                at = reader.line_num
        except csv.Error:
            continue
        width = len(rows[0]) if rows else 0
        cells = [cell for row in rows for cell in row]
        if (
            width >= _CSV_FIELDS
            and len(rows) >= _CSV_LINES
            and all(len(row) == width for row in rows)
            and sum(len(cell.split()) for cell in cells) <= _CELL_WORDS * len(cells)
            and all(cell.strip() and len(cell.split()) <= _CELL_WORDS for cell in rows[0])
        ):
            return sizes
    return None


# -- settings ----------------------------------------------------------------------------------------------------------
_KEY = re.compile(r"\s*(?:- +)*(?:[\w./$-]+|\"[^\"]+\"|'[^']+'|<<) ?:(?:\s|$)|\s*- |\s*-$|\s*#|---\s*$")
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[_.-][a-z0-9]+)*")
_PARENT = re.compile(
    r"\s*(?:- +)*[^\s#][^#]*:\s*(?:[&!]\S+\s*)?(?:#.*)?$|\s*(?:- +)*[^\s#].*:\s*[|>][-+\d]*\s*(?:#.*)?$"
)
_SECTION = re.compile(r"\s*(\[\[?)\s*([^\[\]#]+?)\s*\]\]?\s*(?:#.*)?$")
_INI_SETTING = re.compile(r"[\w.-]+(?: [\w.-]+){0,3}\s*=|\s+\S")
_ANCHOR, _ALIAS = re.compile(r"(?<![\w&])&([\w-]+)(?=\s|$)"), re.compile(r"(?<![\w*])\*([\w-]+)(?=\s|$|[,\]}])")
_SETTINGS_LINES, _SETTINGS_SHARE, _VALUE_WORDS, _MOST_CHARACTERS = 3, 0.7, 8, 200_000


@dataclass
class Settings:
    """
    Settings, as entries of whole lines.

    Args:
        sizes (`list[int]`): Lines of each entry.
        spans (`list[tuple[int, int, int]]`): `(entry, first, end)`: the entry is kept with any entry from `first` to
            before `end`.
        empty (`set[int]`): Entries without meaning of their own: the name of a section, a key whose value is a block.
    """

    sizes: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    empty: set[int] = field(default_factory=set)


def find_settings(text: str, lines: Sequence[str], statements: Sequence[int]) -> Settings | None:
    """
    The entries of a YAML, TOML or INI file; `None` for any other text.

    Args:
        text (`str`), lines (`Sequence[str]`): The file, and its lines with their line ends.
        statements (`Sequence[int]`): Number of lines of each statement, by brackets and quotes.
    """
    shown = [line for line in lines if line.strip()]
    if len(shown) < _SETTINGS_LINES or len(text) > _MOST_CHARACTERS:
        return None
    if "=" in text and (_is_toml(text) or _is_ini(shown)):
        return _toml(_grouped(lines, statements))
    if sum(bool(_KEY.match(line)) for line in shown) >= _SETTINGS_SHARE * len(shown) and _is_yaml(text, shown):
        return _yaml(_grouped(lines, statements))
    return None


def _is_toml(text: str) -> bool:
    try:
        return bool(tomllib.loads(text.replace("\r\n", "\n")))
    except (ValueError, RecursionError):
        return False


def _is_ini(shown: Sequence[str]) -> bool:
    """Sections with nothing but settings and comments in them, the first of these behind a section's name."""
    said = [line for line in shown if line.lstrip()[0] not in ";#"]
    return (
        len(said) >= _SETTINGS_LINES
        and bool(_SECTION.match(said[0]))
        and all(_SECTION.match(line) or _INI_SETTING.match(line) for line in said)
    )


def _is_yaml(text: str, shown: Sequence[str]) -> bool:
    """
    Whether it is YAML with a block or a list and short values; a letter or a conversation may also be valid YAML.
    """
    nested = any(_PARENT.match(line) or line.lstrip().startswith("- ") for line in shown)
    if not nested and not _are_names([line.split(":", 1)[0] for line in shown if not line.lstrip().startswith("#")]):
        return False
    values = [line.split(":", 1)[1].split(" #")[0] for line in shown if _KEY.match(line) and ":" in line]
    if len(values) < _SETTINGS_LINES or sum(len(value.split()) > _VALUE_WORDS for value in values) > len(values) / 4:
        return False
    items = [line for line in shown if line.lstrip().startswith("- ")]
    if sum(line.rstrip().endswith((".", "!", "?")) for line in items) > len(items) / 4:  # a list of sentences
        return False
    import yaml  # a slow import, and few texts look like YAML

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        documents = [one for one in yaml.load_all(text, Loader=loader) if one is not None]
    except (yaml.YAMLError, ValueError, RecursionError):
        return False
    return bool(documents) and all(isinstance(one, (dict, list)) for one in documents)


def _are_names(keys: Sequence[str]) -> bool:
    """Whether flat keys are names of settings, such as `max_steps`, and not those who speak or parts of a form."""
    return (
        len(set(keys)) == len(keys)
        and all(_NAME.fullmatch(key) for key in keys)
        and sum(len(re.split("[_.-]", key)) > 1 for key in keys) >= _SETTINGS_LINES - 1
    )


def _grouped(lines: Sequence[str], statements: Sequence[int]) -> list[list[str]]:
    groups, at = [], 0
    for size in statements:
        groups.append(list(lines[at : at + size]))
        at += size
    return groups


def _toml(groups: Sequence[Sequence[str]]) -> Settings:
    made = Settings([len(group) for group in groups])
    sections = [(number, match) for number, group in enumerate(groups) if (match := _SECTION.match(group[0]))]
    for place, (number, match) in enumerate(sections):
        after = sections[place + 1 :]
        if match[1] == "[[":  # without it the tables after it would have another meaning
            after = [one for one in after if not one[1][2].startswith(match[2] + ".")]
        made.spans.append((number, number + 1, after[0][0] if after else len(groups)))
        made.empty.add(number)
    made.empty |= {number for number, group in enumerate(groups) if not "".join(group).strip()}
    return made


def _yaml(groups: Sequence[Sequence[str]]) -> Settings:
    made = Settings([len(group) for group in groups])
    depth = [_depth(group[0]) for group in groups]
    full = [number for number, group in enumerate(groups) if "".join(group).strip()]
    made.empty |= set(range(len(groups))) - set(full)
    ends = {}
    for place, number in enumerate(full):
        if groups[number][0].startswith("---"):
            following = [n for n in full[place + 1 :] if groups[n][0].startswith("---")]
            ends[number] = following[0] if following else len(groups)
        else:
            ends[number] = len(groups)
            for later in full[place + 1 :]:
                item = groups[later][0].lstrip().startswith("- ") and not groups[number][0].lstrip().startswith("- ")
                if depth[later] < depth[number] or (depth[later] == depth[number] and not item):
                    ends[number] = later
                    break
        if ends[number] > number + 1:
            made.spans.append((number, number + 1, ends[number]))
            if groups[number][0].startswith("---") or _PARENT.match(groups[number][0]):
                made.empty.add(number)
    for number in full:
        for name in _ANCHOR.findall("".join(groups[number])):
            users = [n for n in full if name in _ALIAS.findall("".join(groups[n]))]
            made.spans += [(one, n, n + 1) for n in users for one in range(number, ends[number])]
    return made


def _depth(line: str) -> int:
    return -1 if line.startswith("---") else len(line) - len(line.lstrip())
