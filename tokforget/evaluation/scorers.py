"""The interface of scorers, and the policy as a scorer."""

from typing import Protocol

import torch

from tokforget.masking import keep_count, top_k_mask
from tokforget.models.forget_model import ForgetModel


class Scorer(Protocol):
    """A method that can be compared at an equal budget. Scorers of the same name are repetitions of one method."""

    name: str
    needs_rate: bool  # whether the scores depend on the rate; if not, they are computed once for all rates

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """Scores `(B, T)` of texts `(B, T)` at the requested rates `(B,)`; the highest are kept."""
        ...


def select(scorer: Scorer, input_ids: torch.Tensor, valid: torch.Tensor, rate: float) -> torch.Tensor:
    """The keep mask `(B, T)` of a scorer at exactly the budget of `rate`."""
    rates = torch.full((len(input_ids),), rate, device=input_ids.device)
    return top_k_mask(scorer.score(input_ids, valid, rates), keep_count(valid.sum(1), rate), valid)


class Policy:
    """The learned policy. Requires: a trained [`ForgetModel`], with or without its reconstructor."""

    needs_rate = True

    def __init__(self, model: ForgetModel, name: str = "policy"):
        self.model, self.name = model, name

    @torch.no_grad()
    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        was_training = self.model.training
        self.model.eval()
        decisions = self.model.policy.decide(input_ids, valid, rate, keep_count(valid.sum(1), rate))
        self.model.train(was_training)
        # The windows are decided one after another: a kept token ranks above every dropped one, whatever their logits.
        return torch.sigmoid(decisions.keep_logits) + decisions.actions
