"""
Documents to training, validation and test: by the source's own splits or by shares, and no document in two of them.
"""

import hashlib
import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import length_hint

import numpy as np
from tqdm.auto import tqdm

from tokforget.data.duplicates import THRESHOLD, NearDuplicates, signature
from tokforget.data.parallel import in_order
from tokforget.data.sources import SPLIT_WORDS, Document, Source


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.08
# Below this many documents a hash may leave a split empty.
_FEW_DOCUMENTS = 50
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 64, 2**18

# Why a document is left out, as the manifest counts it.
EMPTY = "empty"
NOT_DRAWN = "not_drawn"
OUTSIDE_SHARES = "outside_shares"
EXACT_WITHIN = "exact_duplicate_within_split"
EXACT_ACROSS = "exact_duplicate_across_splits"
NEAR_ACROSS = "near_duplicate_across_splits"


def split_of(
    name: str,
    validation_share: float = HELD_OUT_SHARE,
    test_share: float = HELD_OUT_SHARE,
    train_share: float = 1.0,
    seed: int = 0,
) -> str | None:
    """
    Split of a document, from a hash of its name (or text): it does not depend on the other documents or on their order.

    Seed 0 hashes the name alone. A document beyond `train_share` has no split.

    >>> split_of("topic/assert")
    'train'
    """
    draw = _draw(f"{seed}:{name}" if seed else name)
    for split, share in (("validation", validation_share), ("test", test_share), ("train", train_share)):
        if draw < share:
            return split
        draw -= share
    return None


def _draw(key: str) -> float:
    """Uniform in [0, 1), from a hash."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


@dataclass
class SplitPlan:
    """
    Which of the source's splits become training, validation and test, and what is cut from the training split.

    Args:
        own (`dict[str, str]`): For each split of ours that the source has itself, the name it has there; `train` always.
        shares (`dict[str, float]`): For the others their share of the documents of the source's training split. The rest
            is for training, unless `train` has a share too.
    """

    own: dict[str, str]
    shares: dict[str, float] = field(default_factory=dict)


def plan_splits(
    available: Iterable[str],
    train_split: str | None = None,
    val_split: str | None = None,
    test_split: str | None = None,
) -> SplitPlan:
    """
    Decide where each split comes from.

    Args:
        available (`Iterable[str]`): Names of the source's splits.
        train_split, val_split, test_split (`str`, *optional*): The name of one of them, or a share in (0, 1) of the
            source's training documents. By default the split of the source that goes by that name (`validation` also as
            valid, val or dev), else for validation and test a share of 0.08, and for training a source's only split.

    Raises:
        `ValueError`: If a named split does not exist, two splits are the same, or shares exceed 1.
    """
    available = list(available)
    listed = ", ".join(f"`{name}`" for name in available)
    own, shares = {}, {}
    for split, option, wanted in zip(SPLITS, ("train_split", "val_split", "test_split"),
                                     (train_split, val_split, test_split)):  # fmt: skip
        share = _as_share(wanted)
        if wanted is None or share is not None:
            found = next((n for n in available if SPLIT_WORDS.get(n.lower()) == split and n not in own.values()), None)
            if split == "train" and found is None and len(available) == 1:
                found = available[0]
            if split == "train" and found is None:
                raise ValueError(f"The source has no training split; it has {listed}. Name one as `train_split`.")
            if share is not None or found is None:
                shares[split] = HELD_OUT_SHARE if share is None else share
            if split == "train" or (share is None and found is not None):
                own[split] = found
        elif wanted in available:
            own[split] = wanted
        else:
            raise ValueError(
                f"`{option}` {wanted!r} is neither a split of the source, which has {listed}, nor a share in (0, 1)."
            )
    if len(set(own.values())) < len(own):
        raise ValueError(f"`train_split`, `val_split` and `test_split` must differ, got {own}.")
    if sum(shares.values()) > 1 + 1e-9 or ("train" not in shares and sum(shares.values()) >= 1):
        raise ValueError(f"The shares of the splits must sum to 1 at most, training included, got {shares}.")
    return SplitPlan(own, shares)


def _as_share(wanted: str | None) -> float | None:
    try:
        share = float(wanted)
    except (TypeError, ValueError):
        return None
    if not 0 < share < 1:
        raise ValueError(f"A split given as a share must lie in (0, 1), got {wanted}.")
    return share


class DocumentSplits:
    """
    The documents of a source by split, duplicates across splits left out: a held-out copy stays, a training copy goes,
    and of a copy in validation and in test the one in test stays. Exact duplicates within a split go, too.

    Iterating gives `(split, document)` in the source's order. Near duplicates among the training documents are for the
    caller to ask about, since that is the long part and can be spread over processes:
    `near_duplicates.match(signature(document.text))`; or [`without_near_duplicates`] does it.

    Memory: the index of held-out documents (about 8 KB each) and a 64-bit hash per training document.

    Args:
        source (`Source`): Where the documents come from.
        plan (`SplitPlan`): Where each split comes from.
        seed (`int`): Of the division by shares and of the draw. The embedded corpus keeps its division, since the packaged
            model was trained on its training part.
        max_sequences (`int`, *optional*): Documents taken from each of the source's splits, drawn without replacement.
        duplicate_threshold (`float`): See [`NearDuplicates`].
        num_proc (`int`): Processes for the signatures of held-out documents; the result is the same for any number.
        progress (`bool`): Show progress bars.

    A source with fewer than 50 documents is divided within each document, by place (`by_place`).
    """

    def __init__(
        self,
        source: Source,
        plan: SplitPlan,
        seed: int = 0,
        max_sequences: int | None = None,
        duplicate_threshold: float = THRESHOLD,
        num_proc: int = 1,
        progress: bool = False,
    ):
        self.source, self.plan, self.seed = source, plan, seed
        self._num_proc, self._progress = num_proc, progress
        self.dropped: Counter[tuple[str, str]] = Counter()  # (reason, split): documents
        self.near_duplicates = NearDuplicates(duplicate_threshold)
        self._highest_draw = {
            name: self._draw_documents(source.splits[name], max_sequences)
            for name in (plan.own.values() if max_sequences else ())
        }
        self.by_place = bool(plan.shares) and self._has_few_documents()
        self._held_out: set[int] = set()
        self._reasons: dict[str, list[str | None]] = {"validation": [], "test": []}
        self._read_held_out()

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        self.dropped.clear()
        seen: set[int] = set()
        held_out_reasons = {split: iter(reasons) for split, reasons in self._reasons.items()}
        for split, document, reason in self._shown(self._assigned(), "Documents", self.plan.own.values()):
            if reason is None and split == "train":
                key = _text_key(document.text)
                reason = EXACT_ACROSS if key in self._held_out else EXACT_WITHIN if key in seen else None
                seen.add(key)
            elif reason is None:
                reason = next(held_out_reasons[split])
            if reason is None:
                yield split, document
            else:
                self.dropped[reason, split] += 1

    def without_near_duplicates(self) -> Iterator[tuple[str, Document]]:
        """The documents that stay, in one process."""
        for split, document in self:
            if split == "train" and self.near_duplicates and self.near_duplicates.match(signature(document.text)):
                self.dropped[NEAR_ACROSS, split] += 1
            else:
                yield split, document

    # -- passes over the source ----------------------------------------------------------------------------------------
    def _draw_documents(self, documents: Iterable[Document], count: int) -> float:
        """The highest draw among the `count` lowest of distinct texts: those at or below it are taken."""
        lowest: list[float] = []  # a heap of the negatives, the highest on top
        taken: set[float] = set()
        for document in documents:
            draw = self._draw_of(document)
            if draw in taken or not document.text.strip() or (len(lowest) == count and draw > -lowest[0]):
                continue
            taken.add(draw)
            heapq.heappush(lowest, -draw)
            if len(lowest) > count:
                taken.remove(-heapq.heappop(lowest))
        return -lowest[0] if lowest else 0.0

    def _draw_of(self, document: Document) -> float:
        return _draw(f"draw {self.seed}:{document.text}")

    def _has_few_documents(self) -> bool:
        self.by_place = False
        texts: set[int] = set()
        for split, document, reason in self._assigned():
            if split in ("train", *self.plan.shares) and reason in (None, OUTSIDE_SHARES):
                texts.add(_text_key(document.text))
                if len(texts) == _FEW_DOCUMENTS:
                    return False
        logger.warning("Only %d documents: each is divided by place instead of being in one split.", len(texts))
        return True

    def _read_held_out(self) -> None:
        """Decide on every held-out document, and index those that stay."""
        found: dict[str, list[tuple[int, np.ndarray | None]]] = {"validation": [], "test": []}
        splits = [name for split, name in self.plan.own.items() if split != "train" or self.plan.shares]
        assigned = self._shown(self._assigned(held_out_only=True), "Held-out documents", splits)
        documents = ((split, document) for split, document, reason in assigned if reason is None and split != "train")
        work = _signatures if self.near_duplicates.is_on else _no_signatures
        for batch, signatures in in_order(work, in_batches(documents), self._num_proc):
            for (split, document), values in zip(batch, signatures):
                found[split].append((_text_key(document.text), values))
        for split in ("test", "validation"):
            seen: set[int] = set()
            staying = []
            for key, values in found[split]:
                if key in seen:
                    reason = EXACT_WITHIN
                elif key in self._held_out:
                    reason = EXACT_ACROSS
                elif self.near_duplicates.is_on and self.near_duplicates.match(values):
                    reason = NEAR_ACROSS
                else:
                    reason = None
                    staying.append(values)
                seen.add(key)
                self._reasons[split].append(reason)
            self._held_out |= seen
            for values in staying if self.near_duplicates.is_on else ():
                self.near_duplicates.add(values)  # after the split: only duplicates across splits go

    def _assigned(self, held_out_only: bool = False) -> Iterator[tuple[str, Document, str | None]]:
        """Every document with its split, and the reason to leave it out if there is one already."""
        for split, name in self.plan.own.items():
            if held_out_only and split == "train" and not self.plan.shares:
                continue
            highest = self._highest_draw.get(name)
            for document in self.source.splits[name]:
                if not document.text.strip():
                    yield split, document, EMPTY
                elif highest is not None and self._draw_of(document) > highest:
                    yield split, document, NOT_DRAWN
                elif split == "train" and self.plan.shares:
                    yield from self._divided(document)
                else:
                    yield split, document, None

    def _divided(self, document: Document) -> Iterator[tuple[str, Document, str | None]]:
        shares = [self.plan.shares.get(split, 0.0) for split in SPLITS]
        train, validation, test = shares
        train = train or 1 - validation - test
        if not self.by_place:
            by_id = self.source.divided_by_id
            key, seed = (document.id, 0) if by_id else (document.text, self.seed)
            split = split_of(key, validation, test, train if shares[0] else 1.0, seed)
            yield split or "train", document, None if split else OUTSIDE_SHARES
            return
        text = document.text
        places = [round(share * len(text)) for share in (train, 1 - validation - test, 1 - test)]
        ends = [_next_space(text, place) for place in places]
        starts = [0, ends[1], ends[2]]
        for split, start, end in zip(SPLITS, starts, (ends[0], ends[2], len(text))):
            if text[start:end].strip():
                yield split, replace(document, text=text[start:end], start=start), None
        if text[ends[0] : ends[1]].strip():
            yield "train", replace(document, text=text[ends[0] : ends[1]], start=ends[0]), OUTSIDE_SHARES

    def _shown(self, items: Iterable, title: str, splits: Iterable[str]) -> Iterable:
        if not self._progress:
            return items
        documents = 0 if self.by_place else sum(length_hint(self.source.splits[name], 0) for name in splits)
        return tqdm(items, title, total=documents or None, unit=" documents", mininterval=0.5)


def in_batches(documents: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    """Batches of up to 64 documents that end once they hold 2^18 characters."""
    documents = iter(documents)
    while batch := list(itertools.islice(documents, 1)):
        characters = len(batch[0][1].text)
        while len(batch) < _BATCH_DOCUMENTS and characters < _BATCH_CHARACTERS:
            following = next(documents, None)
            if following is None:
                break
            batch.append(following)
            characters += len(following[1].text)
        yield batch


def _signatures(batch: list[tuple[str, Document]]) -> list[np.ndarray]:
    return [signature(document.text) for _, document in batch]


def _no_signatures(batch: list[tuple[str, Document]]) -> list[None]:
    return [None] * len(batch)


def _text_key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _next_space(text: str, place: int) -> int:
    """The first white space from `place` on: no word is cut in two."""
    return next((at for at in range(place, len(text)) if text[at].isspace()), len(text))
