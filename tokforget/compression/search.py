"""
Find the pieces that a budget keeps. The budget counts the tokens of the output string after re-encoding.

Joining kept pieces can merge tokens ("," and ")" become one) or need more tokens (a space before a fragment), so the
count of the mask is only a first guess. A search is a generator that yields candidate strings and receives their token
counts, so that the searches of many texts share calls of the tokenizer.
"""

from collections.abc import Callable, Generator, Iterable, Sized
from dataclasses import dataclass, field, replace

import numpy as np

from tokforget.compression.meaning import Bonds
from tokforget.compression.pieces import Pieces


# Most rounds of a search; then it returns its best result. Texts of random bytes need most rounds.
_ROUNDS = 24
# After so many rounds without a fitting candidate, the room is halved.
_CREEPING = 8
# After so many rounds, a result of one token below the budget is accepted.
_PATIENCE = 3
# Corrections of the first guess for pieces that bonds add, before anything is tokenised.
_GUESSES = 2
# Rounds of removing lone words; each round may leave other words alone.
_CLEARINGS = 3
# A rank after all scored pieces and before those that must be dropped.
_LAST = 1e5
# Number of pieces that are tried if the best remaining one does not fit.
_CANDIDATES = 12

# A search yields candidate strings and is sent their encodings, objects whose `len` is the token count.
Search = Generator[list[str], list[Sized], "Choice"]


@dataclass
class Ranked:
    """
    Texts with a common budget (usually only one text), with all their pieces in one row.

    Args:
        texts (`list[str]`), pieces (`list[Pieces]`): The texts and their pieces.
        ranks (`np.ndarray` of shape `(num_pieces,)`): The lowest are kept first; -inf for pieces that must stay, inf
            for pieces that must be dropped. Ties go to the earlier piece.
        bonds (`Bonds`, *optional*): Pieces that are kept together with others, whatever their rank. Of pieces that
            must be dropped, bonds keep only marks.
        scale (`float`, *optional*): The model's tokens per counted token, if the budget counts another vocabulary. It
            gives the first guess; the counts decide.
        alone (`np.ndarray` of shape `(num_pieces,)`, *optional*): Pieces that may be kept without their bonds if
            nothing else fits; bool.
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
        """
        The best pieces that fit into `room` tokens `(num_pieces,)`, bool; smaller ones may replace one that is too
        large.
        """
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
        Complete a keep mask by its bonds. A comma before the end of a sentence is removed if the words between them
        are dropped ("for example,."). Pieces that must stay are never removed.
        """
        if self.bonds is None:
            return keep
        allowed, gone = (self.ranks != np.inf) | self.bonds.marks, np.zeros(len(keep), dtype=bool)
        while True:
            # Pieces that were kept only with the comma are removed, too.
            done = self.bonds.complete(keep & ~gone, allowed) & ~gone
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
    """A keep mask over pieces, with its output strings and their encodings, and the room of the search it came from."""

    keep: np.ndarray
    outputs: list[str]
    encoded: list[Sized]
    room: int | None = None
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
    """Whether a space is put before each run of kept pieces; bool."""
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
    if pieces.notes or pieces.similar or pieces.records or pieces.lines is not None:
        return _join_with_notes(text, notes_of(pieces, keep), starts, ends, spaces)
    return "".join([" " + text[a:b] if apart else text[a:b] for a, b, apart in zip(starts, ends, spaces)])


def notes_of(pieces: Pieces, keep: np.ndarray) -> list[tuple[int, str]]:
    """
    The notes of an output, each with the character before which it is written: counts of lines, marks of omissions.
    """
    notes = [(place, note) for piece, place, note in pieces.notes if keep[piece]]
    for members, ends, same in pieces.similar:
        kept = keep[members]
        left_out = len(members) - int(kept.sum())
        if (0 if same else 1) < left_out < len(members):
            note = f" (x{left_out + 1})" if same else f" (… {left_out} similar lines)"
            notes.append((ends[int(np.argmax(kept))], note))
    latest = np.maximum.accumulate(np.where(keep, np.arange(len(keep)), -1)) if pieces.records else None
    for members, counts, separator in pieces.records:
        kept = keep[members]
        for first, last in zip(*runs(~kept)) if keep.any() else ():
            before = latest[members[first]]  # the record itself is not kept
            place = int(pieces.chars[before + 1] if before >= 0 else pieces.chars[np.argmax(keep)])
            notes.append((place, f'"… {sum(counts[first:last])} left out"' + separator * bool(last < len(members))))
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


def search_budget(ranked: Ranked, target: int, room: int | None = None) -> Search:
    """
    The best pieces whose output has at most `target` tokens and is as near to it as possible.

    It starts from `room`, by default the token count of the mask, and corrects it by the difference, then interpolates
    between the nearest counts on both sides of the target. If the pieces that must stay do not fit, it returns the
    smallest choice, which exceeds the target.
    """
    floor, total = ranked.forced_tokens, int(ranked.totals[-1])
    scale, spare = ranked.scale or 1.0, _spare(ranked)
    # (room, count): the largest room known to fit, the smallest known not to fit.
    low, high = (floor - 1, 0), (total + 1, 0)
    room = _first_room(ranked, target) if room is None else min(max(room, floor), total)
    best = smallest = None
    for round_ in range(_ROUNDS):
        choice = yield from try_pieces(ranked, ranked.fill(room))
        choice.room = room
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
            room = (low[0] + high[0]) // 2  # bonds may give the same result for many values of room
        elif not low[1] or not high[1]:
            room += round((target - choice.count) * scale)
        elif round_ % 3:
            room = low[0] + (high[0] - low[0]) * (target - low[1]) // (high[1] - low[1])
        else:
            room = (low[0] + high[0]) // 2  # interpolation alone may converge slowly
        room = min(max(room, low[0] + 1), high[0] - 1)
    if best is None and smallest is None:
        smallest = yield from try_pieces(ranked, ranked.fill(floor))
    return smallest if best is None else (yield from _top_up(ranked, best, target))


def _first_room(ranked: Ranked, target: int) -> int:
    """
    Room for the best pieces, so that they and the pieces of their bonds have about `target` tokens by the mask's
    count.
    """
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
    As [`search_budget`], then again without remnants, the only kept words of their sentences. Their tokens are worth
    as much or more elsewhere (LOG.md), and the output has no sentences like "Building.".
    """
    choice, ranks = (yield from search_budget(ranked, target)), ranked.ranks
    for _ in range(_CLEARINGS if ranked.bonds is not None else 0):
        alone = ranked.bonds.remnants(choice.keep) & np.isfinite(ranks) & (ranks > -_LAST)
        if not alone.any() or not (choice.keep & ranked.bonds.words & ~alone).any():
            break
        ranks = ranked.bonds.defer_leading(ranks + _LAST * alone)
        # Few ranks differ, so the room that was right is nearly right again.
        again = yield from search_budget(replace(ranked, ranks=ranks), target, choice.room)
        if not again.keep.any() or again.count > target:
            break
        choice = again
    return choice


def _spare(ranked: Ranked) -> int:
    """
    Tokens by which a result may be below the budget before more pieces are tried; 0 for another vocabulary's tokens.
    """
    return 1 if ranked.scale is None else 0


def _top_up(ranked: Ranked, choice: Choice, target: int) -> Search:
    """If the next piece does not fit, try one of the pieces after it."""
    while target - choice.count > _spare(ranked):
        waiting = ranked.order[~choice.keep[ranked.order]][:_CANDIDATES]
        masks = [ranked.complete(choice.keep | (np.arange(len(choice.keep)) == piece)) for piece in waiting]
        outputs = [ranked.render(keep) for keep in masks]
        encoded = iter((yield [text for texts in outputs for text in texts]))
        tried = [
            Choice(keep, texts, [next(encoded) for _ in texts], choice.room) for keep, texts in zip(masks, outputs)
        ]
        better = [one for one in tried if choice.count < one.count <= target]
        if not better:
            break
        choice = max(better, key=lambda one: one.count)
    return choice


def search_nested(ranked: Ranked, target: int) -> Search:
    """
    Like [`search_budget`], but a smaller target always keeps a subset of the pieces of a larger one.

    It is a bisection over the number of best pieces. Every target uses the same midpoints, and at each one a larger
    target goes right whenever a smaller one does. Therefore results are nested even if the count is not monotone.
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
    """Complete a keep mask over pieces by its bonds, and count the tokens of the output."""
    keep = ranked.complete(keep)
    outputs = ranked.render(keep)
    return Choice(keep, outputs, (yield outputs))


def run_searches(searches: Iterable[Search], encode: Callable[[list[str]], list[Sized]]) -> list[Choice]:
    """
    Run searches together: in each round `encode`, the tokenizer, is called once for the candidates of all searches.
    """
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
