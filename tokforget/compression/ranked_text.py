"""A text between tokenisation and result: its scores, its pieces, and their ranks."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tokforget.compression.chunks import search_chunks
from tokforget.compression.meaning import Bonds, find_bonds
from tokforget.compression.omissions import Lines
from tokforget.compression.parts import Structure
from tokforget.compression.pieces import Pieces, cut
from tokforget.compression.protection import Segment
from tokforget.compression.quality import token_worth
from tokforget.compression.request import _SCORE_SCALE, Request
from tokforget.compression.results import CompressedText
from tokforget.compression.search import (
    Ranked,
    Search,
    notes_of,
    runs,
    search_budget,
    search_nested,
    search_threshold,
    search_without_remnants,
    separated,
    try_pieces,
)
from tokforget.compression.structure import find_structure
from tokforget.rates import allowed_tokens


@dataclass
class RankedText:
    """
    A text while `compress` processes it.

    Args:
        text (`str`), segments (`list[Segment]`): The text without tags, and the segments that the tags mark.
        ids (`np.ndarray` of shape `(num_tokens,)`), offsets (`np.ndarray` of shape `(num_tokens, 2)`): Its tokens.
        chunks (`np.ndarray` of shape `(num_chunks, 2)`, *optional*): Ends of chunks in characters and in tokens.
        features (`np.ndarray` of shape `(num_tokens, NUM_FEATURES)`, *optional*): For a policy with word features.
        logits (`np.ndarray` of shape `(num_tokens,)`), pieces (`Pieces`), ranks (`np.ndarray` of shape `(num_pieces,)`),
        target (`int`, *optional*), bonds (`Bonds`, *optional*): Computed during the processing; the lowest ranks are
            kept first.
        kind (`str`, *optional*): Kind of a structured text; see [`tokforget.compression.structure`].
        alone (`np.ndarray` of shape `(num_pieces,)`, *optional*): See [`tokforget.compression.structure.Structure`];
            bool.
        ends (`int`, *optional*): The character after which nothing is kept.
        near_question (`np.ndarray` of shape `(num_tokens,)`, *optional*): With a question that has a word of the text,
            how near each token's sentence is to the one that shares most with it, from 0 to 1.
        total (`int`, *optional*): Tokens of the text in the vocabulary that the budget counts; by default the model's.
        returned_whole_because (`str`, *optional*): Why the text is returned whole.
        worth_needed (`float`), pieces_needed (`int`): With a `quality`, the share of its worth that the output must hold, and
            the number of pieces for it.
    """

    text: str
    segments: list[Segment]
    ids: np.ndarray
    offsets: np.ndarray
    chunks: np.ndarray | None = None
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    pieces: Pieces | None = None
    ranks: np.ndarray | None = None
    target: int | None = None
    bonds: Bonds | None = None
    kind: str | None = None
    alone: np.ndarray | None = None
    ends: int | None = None
    near_question: np.ndarray | None = None
    total: int | None = None
    returned_whole_because: str | None = None
    worth_needed: float = 1.0
    pieces_needed: int = 0

    @property
    def num_counted(self) -> int:
        """Tokens of the text in the vocabulary that the budget counts."""
        return len(self.ids) if self.total is None else self.total

    def prepare(self, request: Request) -> None:
        """Cut the text into pieces, rank them, and set the text's own target."""
        protection, num_tokens = request.protection, len(self.ids)
        unit, needed = request.unit, []
        structure = None
        if unit == "auto":
            unit, structure = "word", self._find_structure(request)
        if structure is not None:
            self.alone, self.ends = structure.alone, None
            self.kind, self.pieces, self.bonds, needed = (
                structure.kind,
                structure.pieces,
                structure.bonds,
                structure.needed,
            )
        else:
            self.pieces = self._cut(unit)
            if protection.readable and unit == "word":
                self.bonds = self._find_bonds()
        if request.mark_omissions and self.kind != "json":
            self.pieces.lines = Lines(self.text)
        pieces = self.pieces
        self.ranks = -pieces.means(self.logits)
        # Shares of one text cannot be compared with the scores of another.
        alone = request.budget == "per_text" and request.threshold is None
        asked = self.near_question is not None
        if asked and request.threshold is None and request.quality is None:
            self.ranks -= _NEAR * pieces.means(self.near_question)
        if structure is not None and structure.blocks and alone and not asked:
            self.ranks = self._shared_evenly(structure.blocks)
        if self.bonds is not None:
            self.ranks = self.bonds.rank(self.ranks)
        if structure is not None and not asked and request.threshold is None:
            self.ranks = self.ranks - _FAR * structure.severity
        for first, last in structure.groups if structure is not None else ():
            own = np.where(self.bonds.marks[first:last], np.inf, self.ranks[first:last])
            self.ranks[first + int(np.argmin(own))] -= _FAR
        if self.chunks is None:
            protected = protection.find(self.text)
        else:
            protected = protection.find_in_chunks(self.text, self.chunks[:, 0].tolist())
        forced = _covered(pieces, protected + [(s.start, s.end) for s in self.segments if s.rate == 1.0])
        if structure is not None:
            forced |= needed
            for first, last in structure.required:
                own = np.where(self.bonds.marks[first:last], np.inf, self.ranks[first:last])
                forced[first + int(np.argmin(own))] = True
        forced |= (pieces.starts[:-1] < protection.first) | (pieces.starts[1:] > num_tokens - protection.last)
        for group in structure.pieces.shared if structure is not None else ():
            forced[group] |= forced[group].any()  # no part of a record stays without the others
        excluded = _inside(pieces, [(s.start, s.end) for s in self.segments if s.rate == 0.0]) & ~forced
        if self.ends is not None:
            excluded |= (pieces.chars[:-1] >= self.ends) & ~forced
        if request.budget == "per_text" and request.target_tokens is not None:
            self.target = min(request.target_tokens, self.num_counted)
        elif request.budget == "per_text" and request.rate is not None:
            self.target = (
                # Quotas of segments are in the model's tokens; convert their sum to the counted tokens.
                self._rank_segments(forced, excluded, request.rate) * self.num_counted // num_tokens
                if self.segments
                else _count(self.num_counted, request.rate)
            )
        self.ranks[excluded] = np.inf
        if self.bonds is not None:
            self.bonds.marks &= ~excluded
            # Marks are never kept alone. With a quality they come last instead, because the worth of all pieces counts
            # there.
            self.ranks[self.bonds.marks] = np.inf if request.quality is None else _FAR
        self.ranks[forced] = -np.inf
        if request.quality is not None:
            self.pieces_needed = self._pieces_for_worth(self.worth_needed)

    def _shared_evenly(self, blocks: list[tuple[int, int]]) -> np.ndarray:
        """
        Ranks by which the words between fences and tables, and these, keep the same share of their tokens. Scores of words
        and means of lines are spread differently: by them half of a page would be its tables, and its sentences three words.
        """
        within = np.zeros(len(self.pieces), dtype=bool)
        for first, last in blocks:
            within[first:last] = True
        ranks = np.empty(len(self.pieces))
        for own in (np.flatnonzero(within), np.flatnonzero(~within)):
            order = own[np.argsort(self.ranks[own], kind="stable")]
            taken = np.cumsum(self.pieces.sizes[order])
            ranks[order] = taken / max(int(taken[-1]), 1) if len(order) else taken
        return ranks

    def _find_structure(self, request: Request) -> Structure | None:
        """The structure of the text, unless its lines are too long for the budget."""
        structure = find_structure(self.text, self.offsets, request.protection.readable, request.omit_records)
        if request.omit_records and request.budget == "per_text" and request.threshold is None:
            structure = self._with_records(structure, request)
        if (
            structure is None
            or structure.kind == "json"
            or request.budget == "corpus"
            or request.threshold is not None
        ):
            return structure
        target = self._own_tokens(request)
        if structure.kind == "csv":  # if not all column names fit, keep as many as do
            self.ends = int(structure.pieces.chars[1])
        counts = ~structure.bonds.marks if structure.alone is None else ~structure.bonds.marks | structure.alone
        return structure if structure.pieces.sizes[counts].min(initial=target + 1) <= target else None

    def _own_tokens(self, request: Request) -> int:
        """The budget of this text in the model's tokens."""
        target = request.target_tokens or _count(self.num_counted, request.rate)
        return target * len(self.ids) // max(self.num_counted, 1)

    def _with_records(self, structure: Structure | None, request: Request) -> Structure | None:
        """
        The same structure, unless the budget is too small for any record of a JSON, but not for all of them without the
        words of their strings.
        """
        if structure is None or structure.kind != "json" or not structure.pieces.shared or structure.required:
            return structure
        target, sizes = self._own_tokens(request), structure.pieces.sizes
        least = min(int(sizes[group[0]]) for group in structure.pieces.shared)
        if int(sizes[structure.needed].sum()) + least + _NOTE_TOKENS <= target:
            return structure
        whole = find_structure(self.text, self.offsets, request.protection.readable)
        return whole if int(whole.pieces.sizes[whole.needed].sum()) <= target else structure

    def _cut(self, unit: str) -> Pieces:
        """
        The pieces of the whole text. In word units each chunk is cut on its own, so that appended text cannot extend a
        word beyond the end of a chunk.
        """
        if self.chunks is None or unit != "word":
            return cut(self.text, self.offsets, unit)
        edges = [(0, 0), *self.chunks.tolist()]
        return Pieces.joined(
            [cut(self.text[a:b], self.offsets[first:last] - a, unit) for (a, first), (b, last) in pairwise(edges)]
        )

    def _find_bonds(self) -> Bonds:
        """The bonds of the whole text, or of each chunk on its own, so that appended text does not change them."""
        if self.chunks is None:
            return find_bonds(self.text, self.pieces)
        ends, parts = self.chunks[:, 0].tolist(), []
        for start, end in zip([0, *ends], ends):
            first, last = np.searchsorted(self.pieces.chars[:-1], [start, end])
            own = self.pieces[first:last]
            own.chars = own.chars - start
            parts.append(find_bonds(self.text[start:end], own))
        bonds = Bonds.joined(parts)
        bonds.begin[bonds.begin >= 0] = 0  # a line break at the beginning of a chunk separates it from earlier chunks
        return bonds

    def _pieces_for_worth(self, needed: float) -> int:
        """Number of best-ranked pieces that hold this share of the text's worth."""
        worth = np.add.reduceat(token_worth(self.logits), self.pieces.starts[:-1])
        share = np.cumsum(worth[np.argsort(self.ranks, kind="stable")]) / worth.sum()
        return min(int(np.searchsorted(share, needed - 1e-9)) + 1, len(self.pieces))

    def worth_kept(self, keep: np.ndarray) -> float:
        """Share of the text's worth in the kept pieces; see [`tokforget.compression.quality`]."""
        worth = np.add.reduceat(token_worth(self.logits), self.pieces.starts[:-1])
        return float(worth[keep].sum() / worth.sum())

    def _rank_segments(self, forced: np.ndarray, excluded: np.ndarray, rate: float) -> int:
        """
        The target of a text whose segments have their own rates. The rank of a piece is the share of its segment's
        quota that it and better pieces take, so that all segments share one order.
        """
        sizes, owner = self.pieces.sizes, np.zeros(len(self.pieces), dtype=np.int64)
        owner[forced | excluded] = -1
        quotas = {0: rate}
        for number, segment in enumerate(self.segments, 1):
            if 0.0 < segment.rate < 1.0:
                owner[_inside(self.pieces, [(segment.start, segment.end)]) & (owner == 0)] = number
                quotas[number] = segment.rate
        target = int(sizes[forced].sum())
        for number, own_rate in quotas.items():
            mine = np.flatnonzero(owner == number)
            if len(mine):
                order = mine[np.argsort(self.ranks[mine], kind="stable")]
                taken = np.cumsum(sizes[order])
                quota = _count(int(taken[-1]), own_rate)
                self.ranks[order] = taken / quota
                target += quota
        return target

    def result(
        self,
        keep: np.ndarray,
        text: str,
        output_ids: np.ndarray,
        shortfall: int,
        tokenizer: str,
        vocabulary: str = "",
        counted: int | None = None,
    ) -> CompressedText:
        """The result of keeping these pieces."""
        pieces = self.pieces
        kept_spans, dropped_spans = (pieces.chars[np.stack(runs(part), 1)] for part in (keep, ~keep))
        kept_indices = np.flatnonzero(pieces.to_tokens(keep))
        return CompressedText(
            text=text,
            compressed_input_ids=output_ids,
            kept_ids=self.ids[kept_indices],
            kept_indices=kept_indices,
            original_tokens=self.num_counted,
            scores=(1 / (1 + np.exp(-self.logits / _SCORE_SCALE))).astype(np.float32),
            kept_spans=kept_spans,
            dropped_spans=dropped_spans,
            separated=separated(pieces, keep),
            notes=notes_of(pieces, keep),
            target_tokens=self.target,
            shortfall=shortfall,
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            counted_tokens=counted,
            original_chars=len(self.text),
            kind=self.kind,
            original=self.text,
        )

    def returned_whole(self, tokenizer: str, vocabulary: str = "") -> CompressedText:
        """The result that returns the text whole, with the reason."""
        self.pieces = cut(self.text, self.offsets, "token")
        everything = np.ones(len(self.pieces), dtype=bool)
        result = self.result(everything, self.text, self.ids, 0, tokenizer, vocabulary, self.total)
        result.returned_whole = self.returned_whole_because
        if self.text and not len(self.ids):
            result.kept_spans, result.separated = np.array([[0, len(self.text)]]), np.array([False])
        return result


def search(items: list[RankedText], request: Request) -> Search:
    """The search for the pieces of these texts that one budget keeps."""
    bonds = None
    if any(item.bonds is not None for item in items):
        bonds = Bonds.joined([item.bonds or Bonds.none(len(item.pieces)) for item in items])
    scale = None
    if items[0].total is not None:
        scale = sum(len(item.ids) for item in items) / max(sum(item.total for item in items), 1)
    ranked = Ranked(
        [i.text for i in items], [i.pieces for i in items], np.concatenate([i.ranks for i in items]), bonds, scale
    )
    ranked.alone = items[0].alone if len(items) == 1 else None
    if request.threshold is not None:
        return search_threshold(ranked, _SCORE_SCALE * float(np.log((1 - request.threshold) / request.threshold)))
    if request.quality is not None:
        bonds = ranked.bonds
        if bonds is not None:
            bonds.clause_marks[:] = False  # a quality counts the worth of every piece
        return try_pieces(ranked, ranked.best(max(items[0].pieces_needed, ranked.num_forced)))
    if request.budget == "corpus":
        total = sum(item.num_counted for item in items)
        target = _count(total, request.rate) if request.rate is not None else min(request.target_tokens, total)
        for item in items:
            item.target = target
    whole = ranked.sizes.sum() if scale is None else sum(item.num_counted for item in items)
    if bonds is not None and (request.rate == 1.0 or (items[0].target or 0) >= whole):
        for item in items:
            # these notes describe omissions
            item.pieces.notes, item.pieces.similar, item.pieces.records = [], [], []
        ranked = Ranked(
            ranked.texts,
            ranked.pieces,
            np.where(bonds.marks, np.minimum(ranked.ranks, _FAR), ranked.ranks),
            scale=scale,
        )
    if request.prefix_stable:
        ends = items[0].chunks[:, 1]
        targets = allowed_tokens(ends, request.rate).tolist()
        return search_chunks(ranked, np.searchsorted(items[0].pieces.starts, ends).tolist(), targets)
    if request.nested:
        return search_nested(ranked, items[0].target)
    return _search_budget(ranked, items[0].target)


def _search_budget(ranked: Ranked, target: int) -> Search:
    """The pieces that a budget keeps. If no piece fits together with its bonds, pieces without their bonds."""
    choice = yield from search_without_remnants(ranked, target)
    marked = any(pieces.lines is not None for pieces in ranked.pieces)
    if marked and (choice.count > target or not choice.keep.any()):
        for pieces in ranked.pieces:  # marks are only kept as far as they fit
            pieces.lines = None
        choice = yield from search_without_remnants(ranked, target)
    if ranked.alone is not None and not choice.keep.any():
        ranks = np.where(ranked.alone, np.where(np.isposinf(ranked.ranks), 0.0, ranked.ranks), np.inf)
        choice = yield from search_budget(Ranked(ranked.texts, ranked.pieces, ranks, scale=ranked.scale), target)
    if ranked.bonds is not None and not choice.keep.any():
        # First try pieces that bonds keep in any case, because the best word may need more pieces than fit.
        ranks, along = ranked.ranks.copy(), np.unique(ranked.bonds.pieces)
        ranks[along] -= _FAR
        choice = yield from search_budget(
            Ranked(ranked.texts, ranked.pieces, ranks, ranked.bonds, ranked.scale, ranked.alone), target
        )
    if ranked.bonds is not None and not choice.keep.any():
        # Then ignore bonds: first pieces that are not misleading without them.
        bound = ranked.bonds.misleading()
        ranks = ranked.ranks.copy()
        ranks[bound] = np.where(np.isinf(ranks[bound]), ranks[bound], np.maximum(ranks[bound], 0) + _FAR)
        # Then misleading pieces: negations first, then those that bonds would keep.
        ranks[along] -= np.where(bound[along], _FAR / 2, 0)
        ranks[ranked.bonds.denies & ranked.bonds.marks] = _FAR / 4
        single = ranked.bonds.last - ranked.bonds.first == 1
        single &= np.isfinite(ranks[ranked.bonds.pieces])
        np.minimum.at(ranks, ranked.bonds.pieces[single], ranks[ranked.bonds.first[single]] - 1e-3)
        wordless = [
            not any(one.isalnum() for one in text[start:end])
            for text, pieces in zip(ranked.texts, ranked.pieces)
            for start, end in pairwise(pieces.chars.tolist())
        ]
        ranks[wordless] += 2 * _FAR
        choice = yield from search_budget(Ranked(ranked.texts, ranked.pieces, ranks, scale=ranked.scale), target)
    return choice


# Tokens of a note in place of records.
_NOTE_TOKENS = 10
# What a word or a line gains, in logits, if its sentence shares most with the question. The policy learns the mean worth
# of such a sentence, which is low if the match is uncertain; but beside the answer other words are worth nothing to a
# reader who is asked (LOG.md). Not with a threshold or a quality, which compare the policy's own scores.
_NEAR = 16.0
# Larger than any difference of two scores.
_FAR = 1e6


def _count(num_tokens: int, rate: float) -> int:
    return int(allowed_tokens(num_tokens, rate))


def _covered(pieces: Pieces, spans: list[tuple[int, int]]) -> np.ndarray:
    """Pieces that share a character with a span; bool."""
    touched = np.zeros(len(pieces) + 1, dtype=np.int64)
    if spans:
        begin, end = np.array(spans, dtype=np.int64).T
        np.add.at(touched, np.searchsorted(pieces.chars, begin, side="right") - 1, 1)
        np.add.at(touched, np.searchsorted(pieces.chars, end, side="left"), -1)
    return np.cumsum(touched)[:-1] > 0


def _inside(pieces: Pieces, spans: list[tuple[int, int]]) -> np.ndarray:
    """Pieces that are completely within a span; bool."""
    inside = np.zeros(len(pieces), dtype=bool)
    for begin, end in spans:
        inside |= (pieces.chars[:-1] >= begin) & (pieces.chars[1:] <= end)
    return inside
