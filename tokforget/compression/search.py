"""
Which pieces a budget keeps, exactly: what is counted is the output string, tokenised again.

Joining what is left can merge tokens ("," and ")" become one) or need more of them (a fragment set apart by a space), so
the count of the mask is only a first guess. A search asks for the token count of a candidate and gets it back, so that
the searches of many texts share their calls of the tokenizer.
"""

from collections.abc import Callable, Generator, Iterable, Sized
from dataclasses import dataclass, field, replace

import numpy as np

from tokforget.compression.meaning import Bonds
from tokforget.compression.pieces import Pieces


# Rounds of a search beyond which it takes what it has; texts of random bytes need most.
_ROUNDS = 24
# Rounds without one that fits, after which the room is halved.
_CREEPING = 8
# Rounds after which a budget missed by one token is good enough.
_PATIENCE = 3
# Corrections of a first guess by what comes along, before anything is tokenised.
_GUESSES = 2
# How often words that are alone are cleared away; others may be left alone then.
_CLEARINGS = 3
# Behind all that is ranked by its score, before what must go.
_LAST = 1e5
# Pieces that are tried where the best one left does not fit.
_CANDIDATES = 12

# What a search yields: candidate strings. What it is sent: each of them tokenised, anything whose `len` is the count.
Search = Generator[list[str], list[Sized], "Choice"]


@dataclass
class Ranked:
    """
    Texts that share one budget (usually one), their pieces in one row.

    Args:
        texts (`list[str]`), pieces (`list[Pieces]`): The texts and how they are cut.
        ranks (`np.ndarray` of shape `(num_pieces,)`): Lower is kept first; -inf for what must stay, inf for what must
            go. Ties go to the earlier piece.
        bonds (`Bonds`, *optional*): Which pieces come along with which, whatever their rank. Of
            those that must go only marks do.
        scale (`float`, *optional*): Of these tokens, how many come on one that is counted, where the budget is in tokens of
            another vocabulary. It leads to the first guess; what is kept is decided by counts.
        alone (`np.ndarray` of shape `(num_pieces,)`, *optional*): What may be kept without what comes along, where nothing else fits;
            bool.
    """

    texts: list[str]
    pieces: list[Pieces]
    ranks: np.ndarray
    bonds: Bonds | None = None
    scale: float | None = None
    alone: np.ndarray | None = None
    order: np.ndarray = field(init=False)
    sizes: np.ndarray = field(init=False)
    totals: np.ndarray = field(init=False)
    num_forced: int = field(init=False)

    def __post_init__(self):
        order = np.argsort(self.ranks, kind="stable")
        self.order = order[: len(order) - int(np.isposinf(self.ranks).sum())]
        self.sizes = np.concatenate([np.zeros(0, np.int64), *(pieces.sizes for pieces in self.pieces)])
        self.totals = np.concatenate([[0], np.cumsum(self.sizes[self.order])])
        self.num_forced = int(np.isneginf(self.ranks).sum())

    @property
    def forced_tokens(self) -> int:
        return int(self.totals[self.num_forced])

    def best(self, count: int) -> np.ndarray:
        """The best `count` pieces `(num_pieces,)`, bool."""
        keep = np.zeros(len(self.ranks), dtype=bool)
        keep[self.order[:count]] = True
        return keep

    def fill(self, room: int) -> np.ndarray:
        """The best pieces that fit into `room` tokens; where one is too large, smaller ones behind it may take its place."""
        count = max(int(np.searchsorted(self.totals, room, side="right")) - 1, self.num_forced)
        keep, left = self.best(count), room - int(self.totals[count])
        sizes = self.sizes[self.order]
        while left > 0 and count < len(self.order):
            fitting = np.flatnonzero(sizes[count:] <= left)
            if not len(fitting):
                break
            count += int(fitting[0])
            keep[self.order[count]] = True
            left -= int(sizes[count])
            count += 1
        return keep

    def complete(self, keep: np.ndarray) -> np.ndarray:
        """
        A keep mask with what comes along by its bonds, and without a comma that would stand before the end of a sentence because
        what followed it is gone: "for example,." Of what must stay nothing goes.
        """
        if self.bonds is None:
            return keep
        allowed, gone = (self.ranks != np.inf) | self.bonds.marks, np.zeros(len(keep), dtype=bool)
        while True:
            done = self.bonds.complete(keep & ~gone, allowed) & ~gone  # what came with the comma alone goes, too
            loose = self.bonds.dangling(done) & (self.ranks != -np.inf)
            if not loose.any():
                return done
            gone |= loose

    def render(self, keep: np.ndarray) -> list[str]:
        """The output string of each text."""
        if len(self.texts) == 1:
            return [join(self.texts[0], self.pieces[0], keep)]
        bounds = np.cumsum([0, *map(len, self.pieces)])
        return [join(text, pieces, keep[start:end])
                for text, pieces, start, end in zip(self.texts, self.pieces, bounds, bounds[1:])]  # fmt: skip


@dataclass
class Choice:
    """A keep mask over pieces, and its output strings with their tokens after re-encoding."""

    keep: np.ndarray
    outputs: list[str]
    encoded: list[Sized]
    count: int = field(init=False)

    def __post_init__(self):
        self.count = sum(map(len, self.encoded))


def runs(keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one-after-last index of each run of True."""
    framed = np.zeros(len(keep) + 2, dtype=bool)
    framed[1:-1] = keep
    edges = (framed[1:] != framed[:-1]).nonzero()[0]
    return edges[::2], edges[1::2]


def separated(pieces: Pieces, keep: np.ndarray) -> np.ndarray:
    """Which runs of kept pieces are set apart by a space from the run before them; bool."""
    return _apart(pieces, *runs(keep))


def _apart(pieces: Pieces, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    apart = pieces.bound[first]
    apart[:1] = False
    apart[1:] &= ~pieces.blank[last[:-1] - 1]
    return apart


def join(text: str, pieces: Pieces, keep: np.ndarray) -> str:
    """The kept pieces as one string."""
    first, last = runs(keep)
    starts, ends = pieces.chars[first].tolist(), pieces.chars[last].tolist()
    spaces = _apart(pieces, first, last).tolist()
    if pieces.notes or pieces.similar or pieces.lines is not None:
        return _join_with_notes(text, notes_of(pieces, keep), starts, ends, spaces)
    return "".join([" " + text[a:b] if apart else text[a:b] for a, b, apart in zip(starts, ends, spaces)])


def notes_of(pieces: Pieces, keep: np.ndarray) -> list[tuple[int, str]]:
    """What is written beside the kept pieces, and before which character of the text: counts of lines, marks of what is gone."""
    notes = [(place, note) for piece, place, note in pieces.notes if keep[piece]]
    for members, ends, same in pieces.similar:
        kept = keep[members]
        left_out = len(members) - int(kept.sum())
        if (0 if same else 1) < left_out < len(members):
            note = f" (x{left_out + 1})" if same else f" (… {left_out} similar lines)"
            notes.append((ends[int(np.argmax(kept))], note))
    if pieces.lines is not None and keep.any():
        first, last = runs(keep)
        apart = separated(pieces, keep).tolist()
        notes += pieces.lines.marks(pieces.chars[first].tolist(), pieces.chars[last].tolist(), apart)
    return sorted(notes, key=lambda note: note[0])


def _join_with_notes(
    text: str, notes: list[tuple[int, str]], starts: list[int], ends: list[int], spaces: list[bool]
) -> str:
    parts, waiting = [], notes[::-1]
    for start, end, apart in zip(starts, ends, spaces):
        parts.append(" " * apart)
        while waiting and waiting[-1][0] <= end:
            place, note = waiting.pop()
            parts += [text[start:place], note]
            start = place
        parts.append(text[start:end])
    return "".join(parts)


def search_budget(ranked: Ranked, target: int) -> Search:
    """
    The best pieces whose output has at most `target` tokens, and as near to it as can be found.

    Starts from the mask's own count and corrects it by the difference, then interpolates between the nearest counts on
    both sides of the target. Returns the smallest choice, above the target, if what must stay does not fit.
    """
    floor, total = ranked.forced_tokens, int(ranked.totals[-1])
    scale, spare = ranked.scale or 1.0, _spare(ranked)
    low, high = (floor - 1, 0), (total + 1, 0)  # (room, count): the largest known to fit, the smallest known not to
    room, best, smallest = _first_room(ranked, target), None, None
    for round_ in range(_ROUNDS):
        choice = yield from try_pieces(ranked, ranked.fill(room))
        if room == floor:
            smallest = choice
        if choice.count <= target:
            best = choice if best is None or choice.count > best.count else best
            low = max(low, (room, choice.count))
        else:
            high = min(high, (room, choice.count))
        if (
            choice.count == target
            or high[0] - low[0] <= 1
            or (best and round_ >= _PATIENCE and target - best.count <= spare)
        ):
            break
        if high[1] and not low[1] and round_ >= _CREEPING:
            room = (low[0] + high[0]) // 2  # what is brought along may stay the same for long
        elif not low[1] or not high[1]:
            room += round((target - choice.count) * scale)
        elif round_ % 3:
            room = low[0] + (high[0] - low[0]) * (target - low[1]) // (high[1] - low[1])
        else:
            room = (low[0] + high[0]) // 2  # interpolation alone may creep
        room = min(max(room, low[0] + 1), high[0] - 1)
    if best is None and smallest is None:
        smallest = yield from try_pieces(ranked, ranked.fill(floor))
    return smallest if best is None else (yield from _top_up(ranked, best, target))


def _first_room(ranked: Ranked, target: int) -> int:
    """Room for the best pieces, so that they and what comes along have about `target` tokens by the mask's own count."""
    floor, total, wanted = ranked.forced_tokens, int(ranked.totals[-1]), round(target * (ranked.scale or 1.0))
    room = min(max(wanted, floor), total)
    for _ in range(_GUESSES if ranked.bonds is not None else 0):
        over = int(ranked.sizes[ranked.complete(ranked.fill(room))].sum()) - wanted
        if over <= 0 or room - over < floor:
            break
        room -= over
    return room


def search_without_remnants(ranked: Ranked, target: int) -> Search:
    """
    As [`search_budget`], and again without words that were all that was left of their sentences: what they take is worth
    as much or more elsewhere (LOG.md), and whoever reads is spared "Building.".
    """
    choice, ranks = (yield from search_budget(ranked, target)), ranked.ranks
    for _ in range(_CLEARINGS if ranked.bonds is not None else 0):
        alone = ranked.bonds.remnants(choice.keep) & np.isfinite(ranks) & (ranks > -_LAST)
        if not alone.any() or not (choice.keep & ranked.bonds.words & ~alone).any():
            break
        ranks = ranked.bonds.led(ranks + _LAST * alone)
        again = yield from search_budget(replace(ranked, ranks=ranks), target)
        if not again.keep.any() or again.count > target:
            break
        choice = again
    return choice


def _spare(ranked: Ranked) -> int:
    """By how many tokens a budget may be missed without a look at more pieces: another's tokens are filled to the last."""
    return 1 if ranked.scale is None else 0


def _top_up(ranked: Ranked, choice: Choice, target: int) -> Search:
    """Where the next piece would bring more tokens than there is room for, take one of those behind it."""
    while target - choice.count > _spare(ranked):
        waiting = ranked.order[~choice.keep[ranked.order]][:_CANDIDATES]
        masks = [ranked.complete(choice.keep | (np.arange(len(choice.keep)) == piece)) for piece in waiting]
        outputs = [ranked.render(keep) for keep in masks]
        encoded = iter((yield [text for texts in outputs for text in texts]))
        tried = [Choice(keep, texts, [next(encoded) for _ in texts]) for keep, texts in zip(masks, outputs)]
        better = [one for one in tried if choice.count < one.count <= target]
        if not better:
            break
        choice = max(better, key=lambda one: one.count)
    return choice


def search_nested(ranked: Ranked, target: int) -> Search:
    """
    Like [`search_budget`], but a smaller target always keeps a subset of what a larger one keeps.

    Bisection over the number of best pieces. The points that are looked at are the same for every target, and at each
    one a larger target goes right wherever a smaller one does, so the results nest even where the count is not monotone.
    """
    low, high = ranked.num_forced, len(ranked.order) + 1
    best = yield from try_pieces(ranked, ranked.best(low))
    while high - low > 1:
        middle = (low + high) // 2
        choice = yield from try_pieces(ranked, ranked.best(middle))
        if choice.count <= target:
            low, best = middle, choice
        else:
            high = middle
    return best


def search_threshold(ranked: Ranked, threshold_rank: float) -> Search:
    """Every piece whose rank is at most `threshold_rank`."""
    return (yield from try_pieces(ranked, ranked.ranks <= threshold_rank))


def try_pieces(ranked: Ranked, keep: np.ndarray) -> Search:
    """Have the output of a keep mask over pieces, with what comes along, counted."""
    keep = ranked.complete(keep)
    outputs = ranked.render(keep)
    return Choice(keep, outputs, (yield outputs))


def run_searches(searches: Iterable[Search], encode: Callable[[list[str]], list[Sized]]) -> list[Choice]:
    """Run searches side by side: `encode`, the tokenizer, is called once a round for the candidates of all of them."""
    searches = list(searches)
    found: list[Choice | None] = [None] * len(searches)
    replies: dict[int, list[Sized] | None] = dict.fromkeys(range(len(searches)))
    while replies:
        asked: dict[int, list[str]] = {}
        for index, reply in replies.items():
            try:
                asked[index] = searches[index].send(reply)
            except StopIteration as stop:
                found[index] = stop.value
        encoded = iter(encode([text for texts in asked.values() for text in texts]) if asked else [])
        replies = {index: [next(encoded) for _ in texts] for index, texts in asked.items()}
    return found
