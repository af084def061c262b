"""
Protected text, which must stay whatever the budget: by built-in and user-defined finders, and by tags in the text.
"""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tokforget.compression.fences import Place, find_code_fences, scan_fences
from tokforget.compression.meaning import find_line_breaks, find_negations, find_roles, find_sentence_ends
from tokforget.compression.wholes import PATTERNS, find, find_wholes, matches


Finder = Callable[[str], Iterable[tuple[int, int]]]

_INLINE_CODE = re.compile(r"(?<!`)`[^`\n]+`(?!`)|(?<!`)``(?!`)(?:[^`\n]|`(?!`))+``(?!`)")


def _matches(pattern: re.Pattern) -> Finder:
    return partial(matches, pattern)


BUILT_IN: dict[str, Finder] = {name: partial(find, name) for name in PATTERNS} | {
    "inline_code": _matches(_INLINE_CODE),
    "code_fences": find_code_fences,
    "negations": find_negations,
    "sentence_ends": find_sentence_ends,
    "line_breaks": find_line_breaks,
    "roles": find_roles,
}
# Characters after the end of a chunk that are searched for spans that must not be cut there.
LOOK = 100
# The preset that keeps a text readable as far as the budget allows; see [`tokforget.compression.meaning`]. In word
# units it applies in addition to other protection, because a lost "not" would invert the meaning of protected text.
PRESET, NO_PRESET = "readable", "none"


@dataclass
class Protection:
    """
    The protected text of a request.

    Args:
        finders (`list`): Functions from a text to the character spans to keep.
        spans (`list`): Explicit character spans, for a single text.
        first (`int`), last (`int`): Tokens kept at both ends.
        place (`Place`): Where in Markdown the text begins; for the blocks of a stream.
        readable (`bool`): Whether negations, limits and marks come first or along, by words and as far as the budget allows.
    """

    finders: list[Finder] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    first: int = 0
    last: int = 0
    place: Place = field(default_factory=Place)
    readable: bool = False

    @classmethod
    def parse(cls, protect) -> "Protection":
        """
        Parse a user's `protect`: one item or several. An item is the name of a built-in protector, a compiled regular
        expression or `"re:<pattern>"`, `"first:<n>"`, `"last:<n>"` (tokens), a span `(start, end)` in characters, or a
        function from a text to such spans. The preset `"readable"` applies in addition; an empty `protect` or `"none"`
        switches it off.

        Raises:
            `ValueError`: If a name is unknown, a pattern or a span is wrong, or items exclude each other.
            `TypeError`: If an item has an unsupported type.
        """
        found = cls()
        single = isinstance(protect, (str, bytes, re.Pattern)) or callable(protect) or _is_span(protect)
        if not single and protect is not None and not isinstance(protect, Iterable):
            protect = [protect]  # the error below names its type
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
            if isinstance(item.pattern, bytes):
                raise TypeError(
                    f"`protect` got a regular expression for bytes, {item.pattern!r:.80}: compile it from a string."
                )
            self.finders.append(_matches(item))
        elif _is_span(item):
            if not 0 <= item[0] <= item[1]:
                raise ValueError(f"A protected span is (start, end) in characters with 0 <= start <= end, got {item}.")
            self.spans.append((int(item[0]), int(item[1])))
        elif callable(item):
            self.finders.append(item)
        elif not isinstance(item, str):
            raise TypeError(
                f"`protect` takes names, regular expressions, spans and functions, got a {type(item).__name__}: {item!r:.80}."
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
            near = difflib.get_close_matches(item, [*BUILT_IN, PRESET, NO_PRESET], 1, 0.7)
            hint = " Several are passed one by one." if "," in item else f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"`protect` knows no {item!r:.80}.{hint} It takes {', '.join(sorted(BUILT_IN))}, 'readable' or 'none', 'first:20', "
                "'last:5' (tokens), 're:<pattern>', a compiled regular expression, a span (start, end) or a function."
            )

    def find(self, text: str) -> list[tuple[int, int]]:
        """The protected character spans of `text`. Raises `ValueError` if an explicit span exceeds the text."""
        for _, end in self.spans:
            if end > len(text):
                raise ValueError(f"A protected span ends at character {end}, but the text has {len(text)}.")
        fences = scan_fences(text, self.place)[0] if self.keeps_fences else []
        finders = [finder for finder in self.finders if finder is not find_code_fences]
        return [*self.spans, *fences, *(span for finder in finders for span in _spans_of(finder, text))]

    @property
    def keeps_fences(self) -> bool:
        """Whether code fences are protected; these may be longer than a block."""
        return find_code_fences in self.finders

    def unbroken(self, unit: str) -> Finder:
        """
        A finder of the spans within which no chunk and no block of a stream may end: all protected ones except code
        fences.
        """
        finders = [finder for finder in self.finders if finder is not find_code_fences]
        finders += [find_wholes] if unit == "word" else []
        return lambda text: (span for finder in finders for span in _spans_of(finder, text))

    def find_in_chunks(self, text: str, ends: list[int]) -> list[tuple[int, int]]:
        """
        Like `find`, but the protection before an end depends only on the text up to `LOOK` characters after it, and
        reaches back at most one chunk. Code fences are searched in the whole text, because a fence protects from its
        opening on.
        """
        found = Protection([finder for finder in self.finders if finder is find_code_fences], self.spans).find(text)
        local = Protection([finder for finder in self.finders if finder is not find_code_fences])
        for before, start, end in zip([0, 0, *ends], [0, *ends], ends):
            spans = local.find(text[before : end + LOOK])
            found += [
                (max(a + before, start), min(b + before, end))
                for a, b in spans
                if b + before > start and a + before < end
            ]
        return found


def _spans_of(finder: Finder, text: str) -> Iterator[tuple[int, int]]:
    """The spans that a function finds in a text, without empty ones; a span outside of the text is an error."""
    found = finder(text)
    if not isinstance(found, Iterable):
        raise TypeError(
            f"A function in `protect` gave a {type(found).__name__}, {found!r:.60}; it must give spans (start, end) in characters, or an "
            "empty list."
        )
    for span in found:
        try:
            start, end = map(operator.index, span)
        except (TypeError, ValueError):
            start, end = -1, -1
        if not 0 <= start <= end <= len(text):
            raise ValueError(
                f"A function in `protect` gave {span!r}; a span is (start, end) in characters with 0 <= start <= end <= {len(text)}, "
                "the length of the text it was given."
            )
        if start < end:
            yield start, end


def _is_span(item) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(hasattr(i, "__index__") for i in item)


# -- segments ----------------------------------------------------------------------------------------------------------
# The end of a tag's name: `<keep-alive>` and `<drop.column>` are text.
_TAG = re.compile(r"<(/?)(llmlingua|keep|drop)(?=[\s,/>])([^<>]*)>")
_ATTRIBUTE = re.compile(r"[\s,]*(\w+)\s*=\s*[\"']?([\w.]+)[\"']?")


@dataclass(frozen=True)
class Segment:
    """A segment with its own rate: characters `start` to `end`; 1 keeps them byte for byte, 0 drops them."""

    start: int
    end: int
    rate: float


def parse_tags(text: str) -> tuple[str, list[Segment]]:
    """
    Remove the tags from a text: `<keep>...</keep>`, `<keep rate=0.8>...</keep>`, `<drop>...</drop>`, and LLMLingua's
    `<llmlingua, rate=0.4, compress=False>...</llmlingua>`.

    Returns:
        `tuple`: The text without tags, and its segments in that text's characters. The text of a tag without a rate
        belongs to the common budget.

    Raises:
        `ValueError`: If tags are nested or unclosed, or have unknown attributes.
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
