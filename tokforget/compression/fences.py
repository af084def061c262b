"""Find code in a text by the fences of Markdown, as in CommonMark."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache


_FENCE = re.compile(r"`{3,}(?=[^`\n]*$)|~{3,}")
_QUOTE = re.compile(r"(?: {0,3}>[ \t]?)*")
_LIST_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])(?:[ \t]+|$)")
# A fence with more spaces than this before it is a line of code.
_FENCE_INDENT = 3
# Characters of an unfinished line that are remembered: whether it is a fence shows at its beginning.
_TOLD = 1_000


@cache
def _quotes(depth: int) -> re.Pattern:
    return re.compile(rf"(?: {{0,3}}>[ \t]?){{0,{depth}}}")


@dataclass(frozen=True)
class Place:
    """
    Where in Markdown a text begins that goes on with another one.

    Args:
        mark (`str`): Of the fence that is open where the line began, "" for none.
        inside (`int`): The indentation of the content of the list item that the line stands in.
        quotes (`int`): Of the quotes around the open fence, how many there are.
        line (`str`): What there is of the line already, its beginning at least.
    """

    mark: str = ""
    inside: int = 0
    quotes: int = 0
    line: str = ""


def find_code_fences(text: str) -> Iterator[tuple[int, int]]:
    """
    Spans of fenced code: from an opening fence to its closing one, or to the end of its list item, its quote or the
    text, as in CommonMark.
    """
    return iter(scan_fences(text)[0]) if "```" in text or "~~~" in text else iter(())


def scan_fences(text: str, place: Place | None = None) -> tuple[list[tuple[int, int]], Place]:
    """
    Code fences of a text that may go on with another one.

    Returns:
        `tuple`: Their characters, and the place at which the text ends.
    """
    place = place or Place()
    mark, inside, quotes, before = place.mark, place.inside, place.quotes, len(place.line)
    text = place.line + text
    found: list[tuple[int, int]] = []
    start = end = 0  # of the open fence, and of the line
    for line in text.splitlines(keepends=True):
        begin, end = end, end + len(line)
        place = Place(mark, inside, quotes, "" if line.splitlines()[0] != line else line[:_TOLD])
        depth, rest, indent = _parted(line, quotes if mark else None)  # in a fence a further quote is a line of code
        if mark:
            if depth < quotes or (rest and indent < inside):  # the fence ends with its list item or quote
                found.append((start, begin))
                mark = ""
                depth, rest, indent = _parted(line)
            elif (
                indent - inside <= _FENCE_INDENT
                and rest.strip() == mark[0] * len(rest.strip())
                and len(rest.strip()) >= len(mark)
            ):
                found.append((start, begin + len(line.rstrip())))
                mark = ""
                continue
            else:
                continue
        if rest and indent < inside:
            inside = 0
        body = rest[inside:]
        while item := _LIST_ITEM.match(body.lstrip()) if len(body) - len(body.lstrip()) <= _FENCE_INDENT else None:
            inside = len(rest) - len(body.lstrip()[item.end() :])
            body = rest[inside:]
        fence = _FENCE.match(body.lstrip())
        if fence and len(body) - len(body.lstrip()) <= _FENCE_INDENT:
            start, mark, quotes = begin, fence[0], depth
    if mark:
        found.append((start, len(text)))
    spans = [(max(a - before, 0), b - before) for a, b in found if b > before]
    return spans, place if place.line else Place(mark, inside, quotes)


def _parted(line: str, depth: int | None = None) -> tuple[int, str, int]:
    """Of a line the depth of the quotes it stands in, at most `depth`, what stands there, and its indentation."""
    quote = (_QUOTE if depth is None else _quotes(depth)).match(line)[0]
    rest = line[len(quote) :].expandtabs(4).rstrip()
    return quote.count(">"), rest, len(rest) - len(rest.lstrip())
