"""
The scorers a policy must beat, under the same seam as the policy: one number per token, the highest are kept.

A new scorer is one class with a `name` and a `score`, and one row in the table of tests/test_baselines.py.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from tokforget.masking import keep_count, top_k_mask
from tokforget.modeling import ForgetModel
from tokforget.reconstructor import Reconstructor


class Scorer(Protocol):
    """Anything that can be compared at an equal budget."""

    name: str

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """Scores `(B, T)` for texts `(B, T)` at the requested rates `(B,)`; higher is kept first."""
        ...


def select(scorer: Scorer, input_ids: torch.Tensor, valid: torch.Tensor, rate: float) -> torch.Tensor:
    """The keep mask `(B, T)` of a scorer at exactly the budget of `rate`."""
    rates = torch.full((len(input_ids),), rate, device=input_ids.device)
    return top_k_mask(scorer.score(input_ids, valid, rates), keep_count(valid.sum(1), rate), valid)


class Policy:
    """The learned policy. Requires: a trained [`ForgetModel`]."""

    name = "policy"

    def __init__(self, model: ForgetModel):
        self.model = model

    @torch.no_grad()
    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        was_training = self.model.training
        self.model.eval()
        decisions = self.model.policy.decide(input_ids, valid, rate, keep_count(valid.sum(1), rate))
        self.model.train(was_training)
        # Decided in windows: a kept token outranks every dropped one, whatever their logits were at the time.
        return torch.sigmoid(decisions.keep_logits) + decisions.actions


class Random:
    """Uniformly random tokens: the floor."""

    name = "random"

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return torch.rand(input_ids.shape, generator=self.generator).to(input_ids.device)


class Frequency:
    """
    Inverse document frequency, `log((D + 1) / (df + 1))`, the block as document: rare tokens are kept.

    Requires: the training split. Relates to: a unigram model's surprisal, of which it is the thresholded form.
    """

    name = "frequency"

    def __init__(self, training_texts: Iterable[list[int]], vocab_size: int):
        frequency, num_documents = torch.zeros(vocab_size), 0
        for text in training_texts:
            frequency[torch.as_tensor(text).unique()] += 1
            num_documents += 1
        self.idf = torch.log((num_documents + 1) / (frequency + 1))

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return self.idf.to(input_ids.device)[input_ids]


class Length:
    """Characters of a token: long tokens are kept."""

    name = "length"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int):
        known = min(len(tokenizer), vocab_size)
        lengths = [len(text.strip()) for text in tokenizer.batch_decode([[i] for i in range(known)])]
        self.lengths = torch.tensor(lengths + [0] * (vocab_size - known), dtype=torch.float32)

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return self.lengths.to(input_ids.device)[input_ids]


class Position:
    """Evenly spaced tokens: place alone decides, no place is favoured."""

    name = "position"

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        # The k-th token is kept where the running budget passes a whole number: ranks follow the distance to that.
        counts = keep_count(valid.sum(1), rate)[:, None].double()
        step = counts / valid.sum(1, keepdim=True).clamp(min=1)
        place = torch.arange(input_ids.shape[1], device=input_ids.device)[None] + 0.5
        passed = torch.floor((place + 0.5) * step + 1e-9) - torch.floor((place - 0.5) * step + 1e-9)
        return passed.float()


class Head:
    """The first tokens: prefix truncation under its own name."""

    name = "head"

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return -torch.arange(input_ids.shape[1], device=input_ids.device, dtype=torch.float32).expand(input_ids.shape)


class SelfInformation:
    """
    Surprisal under a full pass of the base model: Selective Context (Li et al. 2023, arXiv 2310.06201) with document
    context and tokens as units. Costs one language-model forward, a hundred times the policy.

    Requires: the reconstructor, whose adapter is switched off.
    """

    name = "self_information"

    def __init__(self, reconstructor: Reconstructor):
        self.reconstructor = reconstructor

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return self.reconstructor.self_information(input_ids, valid)


def baselines(
    reconstructor: Reconstructor, tokenizer: PreTrainedTokenizerBase, training_texts: Iterable[list[int]], seed: int
) -> list[Scorer]:
    """Every baseline, fitted on the training split where it needs one."""
    vocab_size = reconstructor.base_model.get_input_embeddings().weight.shape[0]
    return [
        Random(seed),
        Frequency(training_texts, vocab_size),
        Length(tokenizer, vocab_size),
        Position(),
        Head(),
        SelfInformation(reconstructor),
    ]
