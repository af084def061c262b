"""Find code in a text by the fences of Markdown, as in CommonMark."""

import re
from collections.abc import Iterator


_FENCE = re.compile(r"`{3,}(?=[^`\n]*$)|~{3,}")
_QUOTE = re.compile(r"(?: {0,3}>[ \t]?)*")
_LIST_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])(?:[ \t]+|$)")
# A fence with more spaces than this before it is a line of code.
_FENCE_INDENT = 3


def find_code_fences(text: str) -> Iterator[tuple[int, int]]:
    """
    Spans of fenced code: from an opening fence to its closing one, or to the end of its list item, its quote or the
    text, as in CommonMark.
    """
    return iter(scan_fences(text)[0])


def scan_fences(text: str, mark: str = "") -> tuple[list[tuple[int, int]], str]:
    """
    Code fences of a text.

    Args:
        text (`str`): The text.
        mark (`str`): Mark of the fence that is open at the beginning of the text; "" for none.

    Returns:
        `tuple`: Spans of the fences in characters, and the mark of the fence that is open at the end of the text, ""
            for none.
    """
    found: list[tuple[int, int]] = []
    if not mark and "```" not in text and "~~~" not in text:
        return found, ""
    start = inside = quotes = 0  # state of the open fence; `inside` is the indentation of the list item's content
    place = 0
    for line in text.splitlines(keepends=True):
        begin, place = place, place + len(line)
        depth = (quote := _QUOTE.match(line)[0]).count(">")
        rest = line[len(quote) :].expandtabs(4).rstrip()
        indent = len(rest) - len(rest.lstrip())
        if mark:
            if depth < quotes or (rest and indent < inside):  # the fence ends with its list item or quote
                found.append((start, begin))
                mark = ""
            elif rest.strip() == mark[0] * len(rest.strip()) and len(rest.strip()) >= len(mark):
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
