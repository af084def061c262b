"""
Texts in chunks whose ends, tokens, scores and budgets look at nothing behind them: for texts that grow, and for streams.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from tokforget.compression.pieces import EXTEND, SPACE, SPACELESS, Pieces, character_classes
from tokforget.compression.protection import LOOK, Finder
from tokforget.compression.search import Choice, Ranked, Search, search_budget
from tokforget.compression.search import try_pieces as try_


# Characters of a chunk, about 100 tokens of English: short enough for the last, unfinished one to be small.
CHUNK = 400
# Tokens before a chunk that its scores look at.
CONTEXT = 32
# A chunk without a good place to end may grow to this many times its size before a worse one is taken.
_PATIENCE = 4


def chunk_ends(text: str, size: int, unbroken: Finder | None = None) -> list[int]:
    """
    Characters at which finished chunks of a text end. Appending to the text never moves them.

    A chunk ends before the first single white-space character behind `size` characters: there no tokenizer joins what is
    before to what is after. Where none comes for long, a script without spaces may also be cut between two characters.

    Args:
        text (`str`), size (`int`): The text, and characters of a chunk at least.
        unbroken (`Finder`, *optional*): Finds spans within which no chunk may end, as far as they show in the `LOOK`
            characters behind an end; an end is final once these are there.
    """
    classes = character_classes(text)
    space = classes & SPACE > 0
    lone = np.flatnonzero(space[1:-1] & ~space[:-2] & ~space[2:]) + 1
    spaceless = np.flatnonzero((classes[1:] & (SPACELESS | EXTEND) == SPACELESS) & ~space[:-1]) + 1
    ends, start, least = [], 0, size
    while True:
        limit = start + _PATIENCE * size
        end = _first(lone, least, len(text))
        if end is None or end >= limit:
            worse = _first(spaceless, least, len(text) - 1)
            if worse is not None and len(text) > limit + 1:
                end = worse if end is None else min(end, worse)
        if end is None or (unbroken is not None and end + LOOK > len(text)):
            return ends
        if unbroken is not None and end < limit:
            spans = unbroken(text[start : end + LOOK])
            later = max((b for a, b in spans if a < end - start < b), default=0)
            if later:
                least = start + later
                continue
        ends.append(end)
        start, least = end, end + size


def _first(places: np.ndarray, least: int, below: int) -> int | None:
    index = np.searchsorted(places, least)
    return int(places[index]) if index < len(places) and places[index] < below else None


def search_chunks(ranked: Ranked, ends: list[int], targets: list[int]) -> Search:
    """
    Decide chunk after chunk, each with what the text up to its end may take less what was taken before.

    Args:
        ranked (`Ranked`): One text.
        ends (`list[int]`): One-after-last piece of each chunk.
        targets (`list[int]`): Tokens that the output may have up to the end of each chunk.
    """
    text, pieces = ranked.texts[0], ranked.pieces[0]
    keep = np.zeros(len(pieces), dtype=bool)
    used, tail, start = 0, 0, 0
    for end, target in zip(ends, targets):
        before = yield from _count(text, pieces, keep, tail, start)
        choice = yield from _decide(ranked, keep, tail, start, end, target - used + before)
        keep[start:end] = choice.keep[start - tail :]
        used += choice.count - before
        last = (tail, start, end, target - used + choice.count)
        tail, start = (start if keep[start:end].any() else tail), end
    settled = Ranked(ranked.texts, ranked.pieces, ranked.ranks)  # what comes along was decided with each chunk
    whole = yield from try_(settled, keep)
    # Only the last chunk, which is unfinished, may still be changed: what the joints made of the count is settled there.
    for _ in range(_PATIENCE):
        if whole.count <= targets[-1] or not keep[last[1] : last[2]].any():
            break
        tail, start, end, room = last
        last = (tail, start, end, room - (whole.count - targets[-1]))
        choice = yield from _decide(ranked, keep, tail, start, end, last[3])
        keep[start:end] = choice.keep[start - tail :]
        whole = yield from try_(settled, keep)
    return whole


def _decide(ranked: Ranked, keep: np.ndarray, tail: int, start: int, end: int, room: int) -> Search:
    """The best pieces from `start` to `end`, where those from `tail` to `start` are settled."""
    settled = np.where(keep[tail:start], -np.inf, np.inf)
    ranks = np.concatenate([settled, ranked.ranks[start:end]])
    bonds = None if ranked.bonds is None else ranked.bonds[tail:end]
    if bonds is not None:
        bonds.marks[: start - tail] &= keep[tail:start]  # what was dropped stays so
    part = Ranked(ranked.texts, [ranked.pieces[0][tail:end]], ranks, bonds)
    return (yield from search_budget(part, max(room, 0)))


def _count(text: str, pieces: Pieces, keep: np.ndarray, start: int, end: int) -> Search:
    if start == end:
        return 0
    choice: Choice = yield from try_(Ranked([text], [pieces[start:end]], np.zeros(end - start)), keep[start:end])
    return choice.count


def blocks(parts: Iterable[str], size: int, unbroken: Finder | None = None) -> Iterator[str]:
    """A stream of strings as blocks of at least `size` characters that end where a chunk may end; the last is longer."""
    waiting, length = [], 0
    for part in parts:
        if not isinstance(part, str):
            raise TypeError(f"A stream must yield strings, got {type(part).__name__} {part!r:.60}.")
        waiting.append(part)
        length += len(part)
        if length >= 2 * size:
            text = "".join(waiting)
            ends = chunk_ends(text, size, unbroken) or ([size] if length > 16 * size else [])
            # What is left may be the end of the stream: at least a block's worth stays with it.
            ends = [end for end in ends if end <= length - size]
            for start, end in zip([0, *ends], ends):
                yield text[start:end]
            waiting = [text[ends[-1] :]] if ends else [text]
            length = len(waiting[0])
    if length:
        yield "".join(waiting)
