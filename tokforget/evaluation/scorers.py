"""What a scorer is, and the policy as one."""

from typing import Protocol

import torch

from tokforget.masking import keep_count, top_k_mask
from tokforget.models.forget_model import ForgetModel


class Scorer(Protocol):
    """Anything that can be compared at an equal budget. Scorers of one name are repetitions of one method."""

    name: str
    needs_rate: bool  # whether the scores change with the rate; if not, they are taken once for all rates

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """Scores `(B, T)` for texts `(B, T)` at the requested rates `(B,)`; higher is kept first."""
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
        # Decided in windows: a kept token outranks every dropped one, whatever their logits were at the time.
        return torch.sigmoid(decisions.keep_logits) + decisions.actions
