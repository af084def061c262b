"""
What a budget may not touch: built-in protectors, the user's own, and segments marked in the text.

Every pattern is linear in the text: it begins at the edge of a run of its own characters, and its parts cannot match the
same character in two ways.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tokforget.compression.meaning import find_line_breaks, find_negations, find_roles, find_sentence_ends


Finder = Callable[[str], Iterable[tuple[int, int]]]

_NAME = r"[\w.@%+~-]"
_PATTERNS = {
    # 7, -3.5, 1,000, 12:30, 2024-05-01, $9.99, 50 %, 1e-5, and words with a digit in them: GPT2, 3rd
    "numbers": r"(?<!\w)[$€£¥]?[+\-−]?[^\W\d]*\d\w*(?:[.,:/'’+-][^\W\d]*\d\w*)*(?:\s?[%‰°])?",
    "urls": r"(?<!\w)(?:[A-Za-z][A-Za-z0-9+.-]{1,15}://|www\.|mailto:)[^\s<>\"`]+",
    "emails": r"(?<![\w.+%-])[\w.+%-]+@[\w-]+(?:\.[\w-]+)+",
    "paths": (
        rf"(?<![\w.~/:%@+-])(?:(?:~|\.\.?)?/(?:{_NAME}+/)*{_NAME}+/?|(?:{_NAME}+/){{2,}}{_NAME}*|(?:{_NAME}+/)+{_NAME}*\.\w+)"
        r"|(?<!\w)(?:[A-Za-z]:\\|\\\\)[^\s\"<>|*?]+"
    ),
    "inline_code": r"(?<!`)`[^`\n]+`(?!`)|(?<!`)``(?!`)(?:[^`\n]|`(?!`))+``(?!`)",
    # snake_case, camelCase, CamelCase, ACRONYM, dotted.name, call(), --flag, $VARIABLE, @name, #tag, 0xFF, UUIDs
    "identifiers": (
        r"(?<!\w)[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?!\w)"
        r"|(?<!\w)(?:[^\W\d]\w*(?:\.[^\W\d]\w*)+(?:\(\))?|[^\W\d]\w*\(\))"
        r"|(?<!\w)(?:[^\W_]*_\w+|[a-z0-9]+[A-Z]\w*|[A-Z][a-z0-9]+[A-Z]\w*|[A-Z]{2}\w*|[A-Z][0-9]\w*|0x[0-9A-Fa-f]+)"
        r"|(?<![\w-])--?[A-Za-z][\w-]*|(?<![\w$@#])[$@#]\w+|\$\{\w+\}"
    ),
}  # fmt: skip
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*", re.MULTILINE)
# Ends a sentence rather than a URL or a path.
_TRAILING = ".,;:!?'*_"
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))


def _code_fences(text: str) -> Iterator[tuple[int, int]]:
    """From an opening fence to its closing one, or to the end of the text."""
    start, opened = 0, ""
    for fence in _FENCE.finditer(text):
        mark = fence[1]
        if not opened:
            start, opened = fence.start(), mark
        elif mark[0] == opened[0] and len(mark) >= len(opened) and fence[0].strip() == mark:
            yield start, fence.end()
            opened = ""
    if opened:
        yield start, len(text)


def _matches(pattern: re.Pattern) -> Finder:
    return lambda text: (match.span() for match in pattern.finditer(text))


def _trimmed(pattern: re.Pattern) -> Finder:
    """Matches without the punctuation of the sentence around them, and without a bracket that opened outside."""

    def find(text: str) -> Iterator[tuple[int, int]]:
        for match in pattern.finditer(text):
            start, end = match.span()
            surplus = {
                close: text.count(close, start, end) - text.count(open_, start, end) for open_, close in _BRACKETS
            }
            while end > start and (text[end - 1] in _TRAILING or surplus.get(text[end - 1], 0) > 0):
                if text[end - 1] in surplus:
                    surplus[text[end - 1]] -= 1
                end -= 1
            yield start, end

    return find


BUILT_IN: dict[str, Finder] = {
    name: (_trimmed if name in ("urls", "paths") else _matches)(re.compile(pattern))
    for name, pattern in _PATTERNS.items()
} | {
    "code_fences": _code_fences,
    "negations": find_negations,
    "sentence_ends": find_sentence_ends,
    "line_breaks": find_line_breaks,
    "roles": find_roles,
}
# What keeps a text readable as far as the budget allows; [`tokforget.compression.meaning`] says how. By words it stays on beside
# what is protected by name, because a "not" that is lost turns what is protected round.
PRESET, NO_PRESET = "readable", "none"


@dataclass
class Protection:
    """
    What is kept whatever the budget.

    Args:
        finders (`list`): Functions from a text to the character spans that are kept.
        spans (`list`): Character spans given outright; for a single text.
        first (`int`), last (`int`): Tokens kept at both ends.
        readable (`bool`): Whether negations, limits and marks come first or along, by words and as far as the budget allows.
    """

    finders: list[Finder] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    first: int = 0
    last: int = 0
    readable: bool = False

    @classmethod
    def parse(cls, protect) -> "Protection":
        """
        From what a user writes: one item or several of them. An item is the name of a built-in protector, a compiled
        regular expression or `"re:<pattern>"`, `"first:<n>"`, `"last:<n>"` (tokens), a span `(start, end)` in characters,
        or a function from a text to such spans. The preset `"readable"` stays on beside any of them; nothing at all, or
        `"none"`, switches it off.
        """
        found = cls()
        single = isinstance(protect, (str, re.Pattern)) or callable(protect) or _is_span(protect)
        items = [protect] if single else list(protect or ())
        presets = [item for item in items if isinstance(item, str) and item in (PRESET, NO_PRESET)]
        if len(set(presets)) > 1:
            raise ValueError(
                f"`protect` got both {PRESET!r} and {NO_PRESET!r}, which switches it off; leave out one of them."
            )
        found.readable = bool(items) and NO_PRESET not in presets
        for item in items:
            if item not in presets:
                found._add(item)
        return found

    def _add(self, item) -> None:
        if isinstance(item, re.Pattern):
            self.finders.append(_matches(item))
        elif _is_span(item):
            if not 0 <= item[0] <= item[1]:
                raise ValueError(f"A protected span is (start, end) in characters with 0 <= start <= end, got {item}.")
            self.spans.append((int(item[0]), int(item[1])))
        elif callable(item):
            self.finders.append(item)
        elif not isinstance(item, str):
            raise TypeError(
                f"`protect` takes names, regular expressions, spans and functions, got a {type(item).__name__}: {item!r}."
            )
        elif item in BUILT_IN:
            self.finders.append(BUILT_IN[item])
        elif item.startswith("re:"):
            try:
                self.finders.append(_matches(re.compile(item[3:])))
            except re.error as error:
                raise ValueError(f"`protect` got a broken regular expression, {item[3:]!r}: {error}.") from error
        elif match := re.fullmatch(r"(first|last):(\d+)", item):
            setattr(self, match[1], max(getattr(self, match[1]), int(match[2])))
        else:
            raise ValueError(
                f"`protect` knows no {item!r}. It takes {', '.join(sorted(BUILT_IN))}, 'readable' or 'none', 'first:20', "
                "'last:5' (tokens), 're:<pattern>', a compiled regular expression, a span (start, end) or a function."
            )

    def find(self, text: str) -> list[tuple[int, int]]:
        """Character spans of `text` that must stay."""
        for _, end in self.spans:
            if end > len(text):
                raise ValueError(f"A protected span ends at character {end}, but the text has {len(text)}.")
        return [*self.spans, *((int(a), int(b)) for finder in self.finders for a, b in finder(text) if a < b)]

    def find_in_chunks(self, text: str, ends: list[int]) -> list[tuple[int, int]]:
        """
        Like `find`, but what is protected up to an end depends on the text up to it, and reaches back one chunk at most.
        A code fence protects from its opening on, so it is looked for in the whole text.
        """
        found = Protection([finder for finder in self.finders if finder is _code_fences], self.spans).find(text)
        local = Protection([finder for finder in self.finders if finder is not _code_fences])
        for before, start, end in zip([0, 0, *ends], [0, *ends], ends):
            spans = local.find(text[before:end])
            found += [(max(a + before, start), b + before) for a, b in spans if b + before > start]
        return found


def _is_span(item) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(i, int) for i in item)


# -- segments ----------------------------------------------------------------------------------------------------------
_TAG = re.compile(r"<(/?)(llmlingua|keep|drop)\b([^<>]*)>")
_ATTRIBUTE = re.compile(r"[\s,]*(\w+)\s*=\s*[\"']?([\w.]+)[\"']?")


@dataclass(frozen=True)
class Segment:
    """Characters `start` to `end` are to be cut to `rate`: 1 keeps them byte for byte, 0 drops them."""

    start: int
    end: int
    rate: float


def parse_tags(text: str) -> tuple[str, list[Segment]]:
    """
    Take the tags out of a text: `<keep>...</keep>`, `<keep rate=0.8>...</keep>`, `<drop>...</drop>`, and LLMLingua's
    `<llmlingua, rate=0.4, compress=False>...</llmlingua>`.

    Returns:
        `tuple`: The text without tags, and its segments in that text's characters. A tag without a rate of its own
        leaves its text to the common budget.

    Raises:
        `ValueError`: If tags are nested, unclosed or have attributes that mean nothing.
    """
    plain, segments, opened, position, length = [], [], None, 0, 0
    for tag in _TAG.finditer(text):
        plain.append(text[position : tag.start()])
        length += len(plain[-1])
        position = tag.end()
        if tag[1]:
            if opened is None or opened[0] != tag[2]:
                raise ValueError(f"Tag {tag[0]} at character {tag.start()} closes nothing that is open.")
            if opened[1] is not None:
                segments.append(Segment(opened[2], length, opened[1]))
            opened = None
        elif opened is not None:
            raise ValueError(f"Tag {tag[0]} at character {tag.start()} stands inside <{opened[0]}>; tags do not nest.")
        else:
            opened = (tag[2], _rate_of(tag), length)
    if opened is not None:
        raise ValueError(f"Tag <{opened[0]}> is never closed.")
    return "".join([*plain, text[position:]]), segments


def _rate_of(tag: re.Match) -> float | None:
    if _ATTRIBUTE.sub("", tag[3]).strip(" ,/"):
        raise ValueError(
            f"Tag {tag[0]} at character {tag.start()} cannot be read. Write for instance <keep rate=0.8>."
        )
    given = dict(_ATTRIBUTE.findall(tag[3]))
    allowed = {"llmlingua": {"rate", "compress"}, "keep": {"rate"}, "drop": set()}[tag[2]]
    if given.keys() - allowed:
        raise ValueError(f"Tag {tag[0]} takes {sorted(allowed) or 'no attributes'}, got {sorted(given)}.")
    if tag[2] == "drop":
        return 0.0
    if given.get("compress", "True").lower() not in ("true", "false"):
        raise ValueError(f"Tag {tag[0]}: `compress` must be True or False.")
    if given.get("compress", "True").lower() == "false" or (tag[2] == "keep" and "rate" not in given):
        return 1.0
    if "rate" not in given:
        return None
    try:
        rate = float(given["rate"])
    except ValueError:
        rate = -1.0
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"Tag {tag[0]}: `rate` must lie in [0, 1], got {given['rate']}.")
    return rate
