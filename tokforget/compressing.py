"""
One call of `compress`: what was asked for, checked, and a text on its way from tokens to a result.
"""

from dataclasses import InitVar, dataclass, field

import numpy as np
import torch

from tokforget.budgets import Ranked, Search, runs, search_budget, search_nested, search_threshold, separated
from tokforget.chunks import search_chunks
from tokforget.masking import check_rate, keep_count
from tokforget.protection import Protection, Segment
from tokforget.results import CompressedText
from tokforget.units import Pieces, cut


# The rate a policy is told lies within what it was trained on; scores that must not depend on a rate are those of 0.5.
_TOLD_RATES = (0.2, 0.8)
_REFERENCE_RATE = 0.5
# Trained logits reach about 15 on either side; a quarter of that spreads the scores over (0.02, 0.98).
_SCORE_SCALE = 4.0


@dataclass(kw_only=True)
class Request:
    """The arguments of `Compressor.compress`, checked; see there."""

    rate: float | None = None
    target_tokens: int | None = None
    threshold: float | None = None
    unit: str = "token"
    protect: InitVar = None
    nested: bool = False
    prefix_stable: bool = False
    budget: str = "per_text"
    tags: bool = False
    min_tokens: int = 0
    on_impossible: str = "raise"
    protection: Protection = field(init=False)

    def __post_init__(self, protect):
        self.protection = Protection.parse(protect)
        budgets = ("rate", "target_tokens", "threshold")
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"Pass one of `rate`, `target_tokens` and `threshold`, got {' and '.join(given)}.")
        if not given:
            self.rate = 0.5
        self._check_values()
        self._check_pairs()

    def _check_values(self) -> None:
        if self.rate is not None:
            check_rate(self.rate)
        target = self.target_tokens
        if target is not None and (not isinstance(target, (int, np.integer)) or target < 1):
            raise ValueError(f"`target_tokens` must be a whole number of at least 1, got {target!r}.")
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise ValueError(f"`threshold` must lie in (0, 1), got {self.threshold}.")
        choices = {"unit": ("token", "word"), "budget": ("per_text", "corpus"), "on_impossible": ("raise", "warn")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        if self.min_tokens < 0:
            raise ValueError(f"`min_tokens` must be at least 0, got {self.min_tokens}.")

    def _check_pairs(self) -> None:
        corpus, stable, threshold = self.budget == "corpus", self.prefix_stable, self.threshold is not None
        target = self.target_tokens is not None
        for clash, message in (
            (corpus and threshold, "A `threshold` is no budget: leave out `budget='corpus'`."),
            (
                corpus and self.tags,
                "`budget='corpus'` spends one budget over all texts; tags give segments their own.",
            ),
            (self.nested and self.tags, "Segments with rates of their own do not nest: leave out `nested` or `tags`."),
            (stable and self.nested, "`prefix_stable` spends its budget from left to right, which does not nest."),
            (stable and corpus, "`prefix_stable` decides each text on its own: leave out `budget='corpus'`."),
            (stable and self.tags, "`prefix_stable` cannot give segments a budget of their own: leave out `tags`."),
            (stable and target, "`prefix_stable` cannot know how long a text will become: pass `rate`."),
            (stable and self.protection.last > 0, "The last tokens of a growing text change: leave out 'last:n'."),
            (self.tags and threshold, "Tags give segments a rate: pass `rate`, not `threshold`."),
            (self.tags and target, "Tags give segments a rate: pass `rate`, not `target_tokens`."),
        ):
            if clash:
                raise ValueError(message)

    def check_texts(self, texts: list, single: bool) -> None:
        """Raise unless these are texts, and as many as the spans allow."""
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(
                    f"`texts` must be a string or a sequence of strings, got {type(text).__name__} {text!r:.60}. Decode "
                    "bytes first, for instance with `.decode('utf-8', 'replace')`."
                )
        if self.protection.spans and not single:
            raise ValueError(
                "Protected spans belong to one text. For several texts pass a function from a text to spans."
            )

    def told_rates(self, lengths: list[int]) -> list[float]:
        """The rate that the policy is told for texts of these many tokens."""
        if self.nested or self.threshold is not None:
            rates = [_REFERENCE_RATE] * len(lengths)
        elif self.rate is not None:
            rates = [self.rate] * len(lengths)
        elif self.budget == "corpus":  # one rate for all: their scores are compared
            rates = [self.target_tokens / max(sum(lengths), 1)] * len(lengths)
        else:
            rates = [self.target_tokens / max(length, 1) for length in lengths]
        return np.clip(rates, *_TOLD_RATES).tolist()


@dataclass
class Item:
    """
    A text on its way through `compress`.

    Args:
        text (`str`), segments (`list[Segment]`): The text without tags, and what they said.
        ids (`np.ndarray` of shape `(num_tokens,)`), offsets (`np.ndarray` of shape `(num_tokens, 2)`): Its tokens.
        chunks (`np.ndarray` of shape `(num_chunks, 2)`, *optional*): Ends of chunks in characters and in tokens.
        logits (`np.ndarray` of shape `(num_tokens,)`), pieces (`Pieces`), ranks (`np.ndarray` of shape `(num_pieces,)`),
        target (`int`, *optional*): What is found on the way; ranks are lower for what is kept first.
        whole (`str`, *optional*): Why the text is returned whole.
    """

    text: str
    segments: list[Segment]
    ids: np.ndarray
    offsets: np.ndarray
    chunks: np.ndarray | None = None
    logits: np.ndarray | None = None
    pieces: Pieces | None = None
    ranks: np.ndarray | None = None
    target: int | None = None
    whole: str | None = None

    def prepare(self, request: Request) -> None:
        """Cut the text into pieces, rank them, and set the text's own target."""
        self.pieces = pieces = cut(self.text, self.offsets, request.unit)
        self.ranks = -pieces.means(self.logits)
        protection, num_tokens = request.protection, len(self.ids)
        if self.chunks is None:
            protected = protection.find(self.text)
        else:
            protected = protection.find_in_chunks(self.text, self.chunks[:, 0].tolist())
        forced = _covered(pieces, protected + [(s.start, s.end) for s in self.segments if s.rate == 1.0])
        forced |= (pieces.starts[:-1] < protection.first) | (pieces.starts[1:] > num_tokens - protection.last)
        excluded = _inside(pieces, [(s.start, s.end) for s in self.segments if s.rate == 0.0]) & ~forced
        if request.budget == "per_text" and request.target_tokens is not None:
            self.target = min(request.target_tokens, num_tokens)
        elif request.budget == "per_text" and request.rate is not None:
            self.target = (
                self._rank_segments(forced, excluded, request.rate)
                if self.segments
                else _count(num_tokens, request.rate)
            )
        self.ranks[excluded] = np.inf
        self.ranks[forced] = -np.inf

    def _rank_segments(self, forced: np.ndarray, excluded: np.ndarray, rate: float) -> int:
        """
        The target of a text whose segments have rates of their own. Every segment's pieces are ranked by the share of the
        segment's quota that they and better ones take, so that one common order serves all segments.
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
        self, keep: np.ndarray, text: str, output_ids: np.ndarray, shortfall: int, tokenizer: str
    ) -> CompressedText:
        """What comes of keeping these pieces."""
        pieces = self.pieces
        kept_spans, dropped_spans = (pieces.chars[np.stack(runs(part), 1)] for part in (keep, ~keep))
        kept_indices = np.flatnonzero(pieces.to_tokens(keep))
        return CompressedText(
            text=text,
            compressed_input_ids=output_ids,
            kept_ids=self.ids[kept_indices],
            kept_indices=kept_indices,
            original_tokens=len(self.ids),
            scores=(1 / (1 + np.exp(-self.logits / _SCORE_SCALE))).astype(np.float32),
            kept_spans=kept_spans,
            dropped_spans=dropped_spans,
            separated=separated(pieces, keep),
            target_tokens=self.target,
            shortfall=shortfall,
            tokenizer=tokenizer,
        )

    def returned_whole(self, tokenizer: str) -> CompressedText:
        """The text as it is, and why."""
        self.pieces = cut(self.text, self.offsets, "token")
        result = self.result(np.ones(len(self.pieces), dtype=bool), self.text, self.ids, 0, tokenizer)
        result.returned_whole = self.whole
        if self.text and not len(self.ids):
            result.kept_spans, result.separated = np.array([[0, len(self.text)]]), np.array([False])
        return result


def search(items: list[Item], request: Request) -> Search:
    """The search for what one budget keeps of these texts."""
    ranked = Ranked([i.text for i in items], [i.pieces for i in items], np.concatenate([i.ranks for i in items]))
    if request.threshold is not None:
        return search_threshold(ranked, _SCORE_SCALE * float(np.log((1 - request.threshold) / request.threshold)))
    if request.budget == "corpus":
        total = sum(len(item.ids) for item in items)
        target = _count(total, request.rate) if request.rate is not None else min(request.target_tokens, total)
        for item in items:
            item.target = target
    if request.prefix_stable:
        ends = items[0].chunks[:, 1]
        targets = keep_count(torch.from_numpy(ends), request.rate).tolist()
        return search_chunks(ranked, np.searchsorted(items[0].pieces.starts, ends).tolist(), targets)
    return (search_nested if request.nested else search_budget)(ranked, items[0].target)


def _count(num_tokens: int, rate: float) -> int:
    return int(keep_count(torch.tensor([num_tokens]), rate))


def _covered(pieces: Pieces, spans: list[tuple[int, int]]) -> np.ndarray:
    """Pieces that share a character with a span; bool."""
    touched = np.zeros(len(pieces) + 1, dtype=np.int64)
    if spans:
        begin, end = np.array(spans, dtype=np.int64).T
        np.add.at(touched, np.searchsorted(pieces.chars, begin, side="right") - 1, 1)
        np.add.at(touched, np.searchsorted(pieces.chars, end, side="left"), -1)
    return np.cumsum(touched)[:-1] > 0


def _inside(pieces: Pieces, spans: list[tuple[int, int]]) -> np.ndarray:
    """Pieces that lie wholly within a span; bool."""
    inside = np.zeros(len(pieces), dtype=bool)
    for begin, end in spans:
        inside |= (pieces.chars[:-1] >= begin) & (pieces.chars[1:] <= end)
    return inside
