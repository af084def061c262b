"""Where code stands in a text: the fences of Markdown, as CommonMark has them."""

import re
from collections.abc import Iterator
from functools import cache


_FENCE = re.compile(r"`{3,}(?=[^`\n]*$)|~{3,}")
_QUOTE = re.compile(r"(?: {0,3}>[ \t]?)*")
_LIST_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])(?:[ \t]+|$)")
# More than this many spaces before it, and a fence is a line of code.
_FENCE_INDENT = 3


@cache
def _quotes(depth: int) -> re.Pattern:
    return re.compile(rf"(?: {{0,3}}>[ \t]?){{0,{depth}}}")


def find_code_fences(text: str) -> Iterator[tuple[int, int]]:
    """
    From an opening fence to its closing one, or to the end of the list item, the quote or the text that it stands in; as
    CommonMark has it.
    """
    return iter(scan_fences(text)[0])


def scan_fences(text: str, mark: str = "") -> tuple[list[tuple[int, int]], str]:
    """
    Code fences of a text that begins within one, if `mark` is that fence's.

    Returns:
        `tuple`: Their characters, and the mark of the one that is open where the text ends, "" for none.
    """
    found: list[tuple[int, int]] = []
    if not mark and "```" not in text and "~~~" not in text:
        return found, ""
    start = inside = quotes = 0  # of the open fence; `inside` is the indentation of the list item's content
    place = 0
    for line in text.splitlines(keepends=True):
        begin, place = place, place + len(line)
        quote = (_QUOTE if not mark else _quotes(quotes)).match(line)[0]  # in a fence a further one is a line of code
        depth = quote.count(">")
        rest = line[len(quote) :].expandtabs(4).rstrip()
        indent = len(rest) - len(rest.lstrip())
        if mark:
            if depth < quotes or (rest and indent < inside):  # what it stands in ends, and the fence with it
                found.append((start, begin))
                mark = ""
                quote = _QUOTE.match(line)[0]
                depth = quote.count(">")
                rest = line[len(quote) :].expandtabs(4).rstrip()
                indent = len(rest) - len(rest.lstrip())
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
    return found, mark
