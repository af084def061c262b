"""
Divide documents into training, validation and test, by the source's own splits or at random; no document is in two
splits.
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

# Reasons for leaving out a document, as the manifest counts them.
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
    Split of a document, from a hash of its name (or text). It does not depend on other documents or on their order.

    Args:
        name (`str`): Name or text of the document.
        validation_share, test_share, train_share (`float`): Fractions of the documents. A document that falls into
            none of them has no split (`None`).
        seed (`int`): Another seed gives another division; 0 hashes the name alone.

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
    """A uniform number in [0, 1), from a hash of `key`."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


@dataclass
class SplitPlan:
    """
    Which splits of the source become training, validation and test, and what is cut from the training split.

    Args:
        own (`dict[str, str]`): From our name of a split to the name that the source has for it; always contains
            `train`.
        shares (`dict[str, float]`): For the other splits, the fraction of the source's training documents to cut for
            each. The rest is for training, unless `train` has a fraction too.
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
        train_split, val_split, test_split (`str`, *optional*): The name of one of them, or a fraction in (0, 1) of the
            source's training documents. By default the source's split of that name (`validation` is also called valid,
            val or dev). Without one, validation and test get a fraction of 0.08 each, and training gets the source's
            only split.

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
    The documents of a source by split, without duplicates across splits. A document that is in training and in a
    held-out split stays in the held-out one; one that is in validation and test stays in test. Exact duplicates within
    a split are left out, too.

    Iterating gives `(split, document)` in the source's order. It does not look for near duplicates among the training
    documents, because that takes longest and the caller may spread it over processes:
    `near_duplicates.match(signature(document.text))`. [`without_near_duplicates`] does it in one process.

    Memory: the index of held-out documents (about 8 KB each) and a 64-bit hash per training document.

    Args:
        source (`Source`): Where the documents come from.
        plan (`SplitPlan`): Where each split comes from.
        seed (`int`): Seed of the random division and of the draw. The embedded corpus is always divided alike, because
            the packaged model was trained on its training part.
        max_sequences (`int`, *optional*): Documents drawn from each of the source's splits, without replacement.
        duplicate_threshold (`float`): See [`NearDuplicates`].
        num_proc (`int`): Processes for the signatures of held-out documents; the result is the same for any number.
        progress (`bool`): Show progress bars.

    If a source has fewer than 50 documents, each document is cut into a training, a validation and a test part
    (`by_place`).
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
        """Iterate over the documents that remain after near duplicates are removed, in one process."""
        for split, document in self:
            if split == "train" and self.near_duplicates and self.near_duplicates.match(signature(document.text)):
                self.dropped[NEAR_ACROSS, split] += 1
            else:
                yield split, document

    # -- passes over the source ----------------------------------------------------------------------------------------
    def _draw_documents(self, documents: Iterable[Document], count: int) -> float:
        """Threshold of the draw: the `count` distinct texts whose random number does not exceed it are taken."""
        lowest: list[float] = []  # a heap of negated numbers, so that the highest is on top
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
        """Decide which held-out documents to keep, and index them."""
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
                self.near_duplicates.add(values)  # only after the whole split: near duplicates within a split stay

    def _assigned(self, held_out_only: bool = False) -> Iterator[tuple[str, Document, str | None]]:
        """Every document with its split, and the reason to leave it out, if one is known yet."""
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
    """Batches of at most 64 documents; a batch also ends when it holds 2^18 characters."""
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
    """The first white space at or after `place`, so that no word is cut in two."""
    return next((at for at in range(place, len(text)) if text[at].isspace()), len(text))
