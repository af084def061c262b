"""
Training texts of a reader's policy: units, features, and the targets of the reader.

By default half of the texts get a question. It consists of words around a span ([`tokforget.readers.cloze`]) or is cut
from the text, and that span is the only target. The other texts have several target spans, which the policy does not
know.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tokforget.compression.pieces import Pieces, cut
from tokforget.models.word_features import Rarity, token_features
from tokforget.readers.cloze import cloze_question
from tokforget.readers.spans import find_lookups
from tokforget.readers.tasks import draw_passages
from tokforget.readers.word_counts import WordCounts
from tokforget.text_units import split_sentences


# Among the texts with a question, the fraction whose question consists of scattered words; the other questions are the
# words before the span.
_CLOZE_SHARE = 0.75
# Between two passages of a prompt.
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Asked:
    """
    A target of the reader.

    Args:
        suffix (`str`), target (`str`): What follows the text in the prompt, and the answer that the reader should
            give.
        start (`int`), end (`int`): The answer's characters in the text.
    """

    suffix: str
    target: str
    start: int
    end: int


@dataclass
class ReaderText:
    """
    The text of an episode.

    Args:
        kind (`str`), text (`str`): The text and its kind.
        question (`str`, *optional*): The question that the policy gets.
        asked (`list[Asked]`): The targets of the reader.
        input_ids (`np.ndarray` of shape `(T,)`), features (`np.ndarray` of shape `(T, F)`): Inputs of the policy.
        pieces (`Pieces`): The units; see [`tokforget.compression.pieces`].
        sentences (`np.ndarray` of shape `(U,)`): The sentence of each unit.
    """

    kind: str
    text: str
    question: str | None
    asked: list[Asked]
    input_ids: np.ndarray = field(repr=False)
    features: np.ndarray = field(repr=False)
    pieces: Pieces = field(repr=False)
    sentences: np.ndarray = field(repr=False)

    @property
    def unit_ids(self) -> np.ndarray:
        """The unit of each token `(T,)`."""
        return np.repeat(np.arange(len(self.pieces)), self.pieces.sizes)


class ReaderTexts:
    """
    Makes [`ReaderText`]s from passages.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The policy's tokenizer; a fast one.
        rarity ([`Rarity`]): Rarities from the policy's word table.
        counts ([`WordCounts`]): Word counts that decide which spans are rare enough to be targets.
        lookups_per_text (`int`): Target spans of a text without a question.
        question_share (`float`): Fraction of the texts with a question.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rarity: Rarity,
        counts: WordCounts,
        lookups_per_text: int = 6,
        question_share: float = 0.5,
    ):
        self.tokenizer, self.rarity, self.counts = tokenizer, rarity, counts
        self.lookups_per_text, self.question_share = lookups_per_text, question_share

    def can_ask(self, text: str) -> bool:
        """Whether a text has a span that can be a target."""
        return bool(find_lookups(text, self.counts, 1, random.Random(0)))

    def without_question(self, kind: str, text: str, seed: int | str) -> ReaderText | None:
        """As `__call__`, but always without a question."""
        lookups = self._lookups(text, random.Random(f"reader text {seed} {text}"))
        return self.encoded(kind, text, None, [_asked(one) for one in lookups]) if lookups else None

    def _lookups(self, text: str, generator: random.Random) -> list:
        return find_lookups(text, self.counts, self.lookups_per_text, generator)

    def __call__(self, kind: str, text: str, seed: int | str) -> ReaderText | None:
        """
        Make the [`ReaderText`] of a passage; `None` if it has no span that can be a target. Random choices depend only
        on `seed` and the text.
        """
        generator = random.Random(f"reader text {seed} {text}")
        lookups = self._lookups(text, generator)
        if not lookups:
            return None
        question, asked = None, [_asked(one) for one in lookups]
        if generator.random() < self.question_share:
            lookup = generator.choice(lookups)
            question = (
                cloze_question(text, lookup, self.counts, generator) if generator.random() < _CLOZE_SHARE else None
            )
            question = question or lookup.cue
            # The reader's prompt quotes the text: it answers such prompts much better than scattered words (LOG.md).
            asked = [_asked(lookup)]
        return self.encoded(kind, text, question, asked)

    def encoded(self, kind: str, text: str, question: str | None, asked: list[Asked]) -> ReaderText:
        """Encode a text: tokens, units and features."""
        return self._with_units(kind, text, question, asked, *self._tokens(text))

    def among(self, text: ReaderText, others: Sequence[str], place: int) -> ReaderText:
        """
        A text with a question as one of several passages, as a search puts them into a prompt: `others` with the text
        in between, at this `place`. The tokens are those of the passages and of the empty line between two
        ([`SEPARATOR`]), so that values of tokens can be joined in the same way.
        """
        passages = [*others[:place], text.text, *others[place:]]
        before = sum(len(one) + len(SEPARATOR) for one in passages[:place])
        joined, start = [], 0
        for part in [part for one in passages for part in (SEPARATOR, one)][1:]:
            ids, offsets = self._tokens(part)
            joined.append((ids, offsets + start))
            start += len(part)
        asked = [replace(one, start=one.start + before, end=one.end + before) for one in text.asked]
        ids, offsets = (np.concatenate(parts) for parts in zip(*joined))
        return self._with_units(text.kind, SEPARATOR.join(passages), text.question, asked, ids, offsets)

    def _tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
        encoded = self.tokenizer(text, **options, verbose=False)
        return np.array(encoded["input_ids"], np.int64), np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)

    def _with_units(
        self, kind: str, text: str, question: str | None, asked: list[Asked], ids: np.ndarray, offsets: np.ndarray
    ) -> ReaderText:
        pieces = cut(text, offsets, "word")
        ends = np.array([end for _, end in split_sentences(text)] or [len(text)])
        middles = (pieces.chars[:-1] + pieces.chars[1:] - 1) / 2
        sentences = np.minimum(np.searchsorted(ends, middles, side="right"), len(ends) - 1)
        features = token_features(text, offsets, self.rarity, question, headings=False)
        return ReaderText(kind, text, question, asked, ids, features, pieces, sentences)


def _asked(lookup) -> Asked:
    return Asked(lookup.suffix, lookup.target, lookup.start, lookup.end)


def collate(texts: Sequence[ReaderText]) -> dict:
    """
    Pad texts to a batch.

    Returns:
        `dict`: `input_ids` and `attention_mask` `(B, T)`, `features` `(B, T, F)`, `unit_ids` `(B, T)`, -1 on padding, `groups`
        `(B, U)`, and the `texts` themselves.
    """
    width, units = max(len(t.input_ids) for t in texts), max(len(t.pieces) for t in texts)
    input_ids, mask = (np.zeros((len(texts), width), np.int64) for _ in range(2))
    features = np.zeros((len(texts), width, texts[0].features.shape[1]), np.float32)
    unit_ids, groups = np.full((len(texts), width), -1), np.zeros((len(texts), units), np.int64)
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        input_ids[row, :length], mask[row, :length], features[row, :length] = text.input_ids, 1, text.features
        unit_ids[row, :length], groups[row, : len(text.pieces)] = text.unit_ids, text.sentences
    tensors = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "features": features,
        "unit_ids": unit_ids,
        "groups": groups,
    }
    return {name: torch.from_numpy(value) for name, value in tensors.items()} | {"texts": list(texts)}


def draw_stretches(
    documents: Iterable[tuple[str, str]], per_kind: int, lengths: Sequence[int], seed: int
) -> list[tuple[str, str]]:
    """
    Draw `per_kind` passages `(kind, text)` of each kind, in random order, from as many documents as possible: if a
    kind has few documents, each gives several. The lengths in characters are those of `lengths`, used in turn.
    """
    by_kind: dict[str, list[str]] = {}
    for kind, text in documents:
        by_kind.setdefault(kind, []).append(text)
    found = []
    for kind in sorted(by_kind):
        drawn: dict[str, None] = {}
        for turn in range(-(-per_kind // len(by_kind[kind])) + len(lengths)):
            length = lengths[turn % len(lengths)]
            rows = ((kind, text) for text in by_kind[kind])
            drawn |= dict.fromkeys(text for _, text in draw_passages(rows, per_kind, length, seed + turn))
            if len(drawn) >= per_kind * len(lengths):
                break
        texts = sorted(drawn)
        random.Random(f"{seed} {kind}").shuffle(texts)
        found += [(kind, text) for text in texts[:per_kind]]
    random.Random(seed).shuffle(found)
    return found
