"""
Find what stands above a sentence and says what it is about: headings, and questions before their answers.

A heading is a line of Markdown or HTML, an underlined line, or a short line alone after an empty one. The passage beneath
seldom repeats its words.
"""

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise


_MARKDOWN = re.compile(r"(#{1,6})\s+\S")
_HTML = re.compile(r"<h([1-6])\b", re.IGNORECASE)
_UNDERLINE = re.compile(r"={3,}|-{3,}")
_FENCE = ("```", "~~~")
_QUESTION = re.compile(r"\?[\"'”’»)*_]*$")
# A plain heading begins with a letter, a number or a mark of emphasis, and does not end like a sentence or a list.
_PLAIN = re.compile(r"(?:\[\d+\]\s+)?[\w*_](?:.*[^\s.,;!?…])?", re.UNICODE)
_MOST_WORDS = 10
# Levels 1 to 6 are those of Markdown and HTML.
_PLAIN_LEVEL, _QUESTION_LEVEL = 7, 8


def find_heads(sentences: Sequence[str]) -> list[tuple[int, ...]]:
    """
    The heads of each sentence.

    Args:
        sentences (`Sequence[str]`): Consecutive sentences, each with the white space before or after it.

    Returns:
        `list[tuple[int, ...]]`: For each sentence the indices of the headings of its section and of the sections around
        it, outermost first, and of the question that it follows. A question heads the rest of its paragraph, or the
        next paragraph if it ends its own.
    """
    shown = [sentence.strip() for sentence in sentences]
    after_break = _after_break(sentences)
    heads: list[tuple[int, ...]] = []
    open_heads: list[tuple[int, int]] = []  # level and index
    fence = None
    for place, own in enumerate(shown):
        if (
            after_break[place]
            and open_heads
            and open_heads[-1][0] == _QUESTION_LEVEL
            and open_heads[-1][1] < place - 1
        ):
            open_heads.pop()
        if own.startswith(_FENCE) and fence in (None, own[:3]):
            fence = own[:3] if fence is None else None
        level = None if fence or own.startswith(_FENCE) else _level(shown, after_break, place)
        if level is not None:
            while open_heads and open_heads[-1][0] >= level:
                open_heads.pop()
        heads.append(tuple(index for _, index in open_heads))
        if level is not None:
            open_heads.append((level, place))
    return heads


def paragraph_numbers(sentences: Sequence[str]) -> list[int]:
    """The number of each sentence's paragraph, from 0; an empty line ends one. Sentences as for [`find_heads`]."""
    breaks = _after_break(sentences)
    return list(accumulate(breaks[1:], initial=0)) if breaks else []


def _after_break(sentences: Sequence[str]) -> list[bool]:
    """Whether an empty line is before each sentence."""
    found = []
    for before, own in pairwise(["", *sentences]):
        between = before[len(before.rstrip()) :] + own[: len(own) - len(own.lstrip())]
        found.append(between.count("\n") > 1)
    return found


def _level(shown: Sequence[str], after_break: Sequence[bool], place: int) -> int | None:
    own = shown[place]
    if found := _MARKDOWN.match(own):
        return len(found[1])
    if found := _HTML.match(own):
        return int(found[1])
    last = place + 1 == len(shown)
    if not last and _UNDERLINE.fullmatch(shown[place + 1]):
        return 1 if shown[place + 1][0] == "=" else 2
    if _QUESTION.search(own):
        return _QUESTION_LEVEL
    alone = (place == 0 or after_break[place]) and not last
    return _PLAIN_LEVEL if alone and len(own.split()) <= _MOST_WORDS and _PLAIN.fullmatch(own) else None
