"""
The baselines that a policy must beat. They have the policy's interface: one number per token, and the highest are
kept.

A new baseline is a class with a `name` and a `score`, an entry in `BASELINES`, and a row in the table of
tests/evaluation/test_baselines.py. Baselines that need a language model are in lm_baselines.py; the upper bound is in
oracle.py. Scores do not depend on batching.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from tokforget.evaluation.lm_baselines import IterativePruning, LeaveOneOut, SelfInformation
from tokforget.evaluation.oracle import GreedyOracle
from tokforget.evaluation.scorers import Scorer
from tokforget.evaluation.vocabulary import WORD_CLASSES, Vocabulary
from tokforget.masking import keep_count
from tokforget.models.reconstructor import Reconstructor


_FUNCTION, _PUNCTUATION, _SPACE = (WORD_CLASSES.index(name) for name in ("function", "punctuation", "space"))
# Larger than any other score: added to one group of tokens, it ranks them above the other group.
_FIRST = 1e6
_MEAN_SPAN = 6.0


# -- chance ------------------------------------------------------------------------------------------------------------
class Random:
    """Uniformly random tokens: the lower anchor of a comparison."""

    name, needs_rate = "random", False

    def __init__(self, seed: int):
        self.seed = seed

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(input_ids.shape)
        for row, (present, generator) in enumerate(_generators(input_ids, valid, self.seed)):
            scores[row, present] = torch.rand(int(present.sum()), generator=generator)
        return scores.to(input_ids.device)


class RandomSpans:
    """Random spans of consecutive tokens, six on average: chance, but in whole phrases. Relates to: `Random`."""

    name, needs_rate = "random_spans", False

    def __init__(self, seed: int):
        self.seed = seed

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(input_ids.shape)
        for row, (present, generator) in enumerate(_generators(input_ids, valid, self.seed)):
            begins = torch.rand(int(present.sum()), generator=generator) < 1 / _MEAN_SPAN
            of_span = torch.rand(len(begins) + 1, generator=generator)
            scores[row, present] = of_span[begins.long().cumsum(0)]
        return scores.to(input_ids.device)


def _generators(
    input_ids: torch.Tensor, valid: torch.Tensor, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Generator]]:
    """
    For each text the indices of its tokens and a generator seeded by them: draws do not depend on batch or padding.
    """
    for ids, present in zip(input_ids.cpu(), valid.cpu()):
        digest = hashlib.blake2b(ids[present].numpy().tobytes(), digest_size=4, key=str(seed).encode()).digest()
        yield present, torch.Generator().manual_seed(int.from_bytes(digest, "big"))


# -- counts ------------------------------------------------------------------------------------------------------------
class Frequency:
    """
    Inverse document frequency, `log((D + 1) / (df + 1))`, with a block as document: rare tokens are kept.

    Requires: the training split. Relates to: the surprisal of a unigram model, which counts every occurrence.
    """

    name, needs_rate = "frequency", False

    def __init__(self, training_texts: Iterable[list[int]], vocab_size: int):
        frequency, num_documents = torch.zeros(vocab_size), 0
        for text in training_texts:
            frequency[torch.as_tensor(text).unique()] += 1
            num_documents += 1
        self.idf = torch.log((num_documents + 1) / (frequency + 1))

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return self.idf.to(input_ids.device)[input_ids]


class TfIdf:
    """
    Frequency in the text times IDF: keeps tokens that are frequent here and rare elsewhere. Requires: `Frequency`.
    """

    name, needs_rate = "tf_idf", False

    def __init__(self, frequency: Frequency):
        self.frequency = frequency

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        same = (input_ids[:, :, None] == input_ids[:, None, :]) & valid[:, None, :]
        term_frequency = same.sum(2) / valid.sum(1, keepdim=True).clamp(min=1)
        return term_frequency * self.frequency.score(input_ids, valid, rate)


class StopWords:
    """
    Function words, punctuation and white space are dropped first; within each of the two groups, the lowest IDF is.

    Requires: `Frequency`, an English vocabulary. Relates to: the stop-word baseline of PCRL (Jung and Kim 2023, arXiv
    2308.08758), filled to the budget.
    """

    name, needs_rate = "stop_words", False

    def __init__(self, frequency: Frequency, vocabulary: Vocabulary):
        classes = vocabulary.classes
        carries = (classes != _FUNCTION) & (classes != _PUNCTUATION) & (classes != _SPACE)
        self.scores = frequency.idf + _FIRST * carries

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return self.scores.to(input_ids.device)[input_ids]


class Length:
    """Characters of a token: long tokens are kept."""

    name, needs_rate = "length", False

    def __init__(self, vocabulary: Vocabulary):
        self.lengths = vocabulary.lengths

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return self.lengths.to(input_ids.device)[input_ids]


# -- position ----------------------------------------------------------------------------------------------------------
class Position:
    """Evenly spaced tokens (uniform stride)."""

    name, needs_rate = "position", True

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        # The running budget grows by the rate at each token. A token is kept where it passes a whole number; the
        # distance to that number is the rank.
        counts = keep_count(valid.sum(1), rate)[:, None].double()
        step = counts / valid.sum(1, keepdim=True).clamp(min=1)
        place = _places(input_ids)[None] + 0.5
        passed = torch.floor((place + 0.5) * step + 1e-9) - torch.floor((place - 0.5) * step + 1e-9)
        return passed.float()


class Head:
    """The first tokens: truncation at the end."""

    name, needs_rate = "head", False

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return -_places(input_ids).float().expand(input_ids.shape)


class Tail:
    """The last tokens."""

    name, needs_rate = "tail", False

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return _places(input_ids).float().expand(input_ids.shape)


class HeadTail:
    """
    First and last tokens, half of the budget each. Relates to: attention sinks and a recent window (arXiv 2309.17453).
    """

    name, needs_rate = "head_tail", False

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        from_head = _places(input_ids).expand(input_ids.shape)
        return -torch.minimum(from_head, valid.sum(1, keepdim=True) - 1 - from_head).float()


def _places(input_ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(input_ids.shape[1], device=input_ids.device)


# -- all of them -------------------------------------------------------------------------------------------------------
@dataclass
class ScorerContext:
    """
    What the baselines need.

    Args:
        reconstructor ([`Reconstructor`]): The judge. Its base model, with the adapter off, is the baselines' language
        model.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the texts.
        training_texts (`list[list[int]]`): Token ids of the training split, for the count tables.
        seeds (`list[int]`): One repetition of each random baseline per seed.
    """

    reconstructor: Reconstructor
    tokenizer: PreTrainedTokenizerBase
    training_texts: Iterable[list[int]]
    seeds: list[int]

    @cached_property
    def vocab_size(self) -> int:
        return self.reconstructor.base_model.get_input_embeddings().weight.shape[0]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.vocab_size)

    @cached_property
    def frequency(self) -> Frequency:
        return Frequency(self.training_texts, self.vocab_size)


def _self_information(context: str, unit: str) -> Callable[[ScorerContext], list[Scorer]]:
    return lambda scorer_context: [
        SelfInformation(scorer_context.reconstructor, scorer_context.vocabulary, context, unit)
    ]


BASELINES: dict[str, Callable[[ScorerContext], list[Scorer]]] = {
    "random": lambda scorer_context: [Random(seed) for seed in scorer_context.seeds],
    "random_spans": lambda scorer_context: [RandomSpans(seed) for seed in scorer_context.seeds],
    "frequency": lambda scorer_context: [scorer_context.frequency],
    "tf_idf": lambda scorer_context: [TfIdf(scorer_context.frequency)],
    "stop_words": lambda scorer_context: [StopWords(scorer_context.frequency, scorer_context.vocabulary)],
    "length": lambda scorer_context: [Length(scorer_context.vocabulary)],
    "position": lambda scorer_context: [Position()],
    "head": lambda scorer_context: [Head()],
    "tail": lambda scorer_context: [Tail()],
    "head_tail": lambda scorer_context: [HeadTail()],
    "self_information": _self_information("document", "token"),
    "self_information_words": _self_information("document", "word"),
    "self_information_sentences": _self_information("sentence", "token"),
    "self_information_sentence_words": _self_information("sentence", "word"),
    "iterative_pruning": lambda scorer_context: [IterativePruning(scorer_context.reconstructor)],
    "leave_one_out": lambda scorer_context: [LeaveOneOut(scorer_context.reconstructor)],
    "greedy_oracle": lambda scorer_context: [GreedyOracle(scorer_context.reconstructor)],
}
# Baselines without a language model: a policy must beat them clearly.
CHEAP_BASELINES = tuple(BASELINES)[:10]
# Baselines of the comparison after training; recipes/evaluate.py compares with all.
CLOSING_BASELINES = ("random", "frequency", "length", "position", "head", "self_information")


def baselines(names: Iterable[str], scorer_context: ScorerContext) -> list[Scorer]:
    """The named baselines; random ones come once per seed. Raises `ValueError` for an unknown name."""
    names = list(names)
    if unknown := [name for name in names if name not in BASELINES]:
        raise ValueError(f"Unknown baseline {unknown[0]!r}; there are {', '.join(BASELINES)}.")
    return [scorer for name in names for scorer in BASELINES[name](scorer_context)]
