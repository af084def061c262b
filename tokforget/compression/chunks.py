"""
Decide texts in chunks, for growing texts and streams: the end, tokens, scores and budget of a chunk do not depend on
later text.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from tokforget.compression.pieces import EXTEND, SPACE, SPACELESS, Pieces, character_classes
from tokforget.compression.protection import LOOK, Finder
from tokforget.compression.search import Choice, Ranked, Search, search_budget
from tokforget.compression.search import try_pieces as try_


# Characters of a chunk, about 100 tokens of English. Chunks are short, because the last, unfinished one may change.
CHUNK = 400
# Tokens before a chunk on which its scores depend.
CONTEXT = 32
# A chunk without a good place to end may grow to this many times its size; then a worse place is used.
_PATIENCE = 4


def chunk_ends(text: str, size: int, unbroken: Finder | None = None) -> list[int]:
    """
    Characters at which finished chunks of a text end. Appending to the text never moves them.

    A chunk ends before the first single white-space character after `size` characters, where no tokenizer joins both
    sides to one token. If there is none for long, a script without spaces may be cut between two characters.

    Args:
        text (`str`): The text.
        size (`int`): Least characters of a chunk.
        unbroken (`Finder`, *optional*): Finds spans within which no chunk may end. It sees `LOOK` characters after an
            end; an end is final once these have arrived.
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
    Decide chunk after chunk. The budget of a chunk is that of the text up to its end, less the tokens of earlier
    chunks.

    Args:
        ranked (`Ranked`): One text.
        ends (`list[int]`): One-after-last piece of each chunk.
        targets (`list[int]`): Most tokens of the output up to the end of each chunk.
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
    settled = Ranked(ranked.texts, ranked.pieces, ranked.ranks)  # without bonds, which each chunk has applied
    whole = yield from try_(settled, keep)
    # Only the last, unfinished chunk may still change; it compensates for tokens that the joints add or save.
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
    """The best pieces from `start` to `end`; those from `tail` to `start` are decided."""
    settled = np.where(keep[tail:start], -np.inf, np.inf)
    ranks = np.concatenate([settled, ranked.ranks[start:end]])
    bonds = None if ranked.bonds is None else ranked.bonds[tail:end]
    if bonds is not None:
        bonds.marks[: start - tail] &= keep[tail:start]  # a dropped mark stays dropped
    part = Ranked(ranked.texts, [ranked.pieces[0][tail:end]], ranks, bonds)
    return (yield from search_budget(part, max(room, 0)))


def _count(text: str, pieces: Pieces, keep: np.ndarray, start: int, end: int) -> Search:
    if start == end:
        return 0
    choice: Choice = yield from try_(Ranked([text], [pieces[start:end]], np.zeros(end - start)), keep[start:end])
    return choice.count


def blocks(parts: Iterable[str], size: int, unbroken: Finder | None = None) -> Iterator[str]:
    """Divide a stream of strings into blocks of at least `size` characters that end where a chunk may end."""
    waiting, length = [], 0
    for part in parts:
        if not isinstance(part, str):
            raise TypeError(f"A stream must yield strings, got {type(part).__name__} {part!r:.60}.")
        waiting.append(part)
        length += len(part)
        if length >= 2 * size:
            text = "".join(waiting)
            ends = chunk_ends(text, size, unbroken) or ([size] if length > 16 * size else [])
            # The rest may be the end of the stream, so keep at least a block of it.
            ends = [end for end in ends if end <= length - size]
            for start, end in zip([0, *ends], ends):
                yield text[start:end]
            waiting = [text[ends[-1] :]] if ends else [text]
            length = len(waiting[0])
    if length:
        yield "".join(waiting)
