r"""
The episode batch, and the way from rewards over returns to advantages.

An episode is one text under one keep mask, decided in `S` windows. Rewards are given per token `(N, T)` or per
decision `(N, S)`, in bits, higher is better. With `d(t, u)` the distance of two tokens and `s(t)` the window of a
token,

    token return      C_t = sum_u decay ** d(t, u) r_u
    advantage         A_t = (C_t + R_s(t)) - mean of the same over the other masks of the text

The reward `R_s` of a decision is credited to the tokens of its own window.

The kernel is two-sided because a kept token helps the reconstructor to predict its neighbours on *both* sides, those
in earlier windows included. `decay = 1` gives every token the reward of the whole text: unbiased, but very noisy on
long texts.
"""

from dataclasses import dataclass

import torch


@dataclass
class EpisodeBatch:
    """
    A batch of `N = texts * num_masks` episodes; those of one text are consecutive.

    Args:
        input_ids (`torch.LongTensor` of shape `(N, T)`), valid (`torch.BoolTensor` of shape `(N, T)`): The texts.
        rate (`torch.FloatTensor` of shape `(N,)`): Requested rate.
        keep_mask (`torch.BoolTensor` of shape `(N, T)`): True for a kept token.
        keep_probability (`torch.FloatTensor` of shape `(N, T)`): The policy's probability of keeping each token,
            detached.
        token_nll (`torch.FloatTensor` of shape `(N, T)`): Bits, detached; 0 for kept tokens and padding.
        token_correct (`torch.BoolTensor` of shape `(N, T)`): True for a dropped token that the reconstructor ranks
            first.
        window (`int`): Tokens per decision.
        num_masks (`int`): Episodes per text.
        keep_price (`float`, *optional*): Bits per kept token; with `None` each reward estimates the marginal price.
    """

    input_ids: torch.Tensor
    valid: torch.Tensor
    rate: torch.Tensor
    keep_mask: torch.Tensor
    keep_probability: torch.Tensor
    token_nll: torch.Tensor
    token_correct: torch.Tensor
    window: int
    num_masks: int
    keep_price: float | None = None

    @property
    def num_decisions(self) -> int:
        """`S`, the number of decisions of the longest text."""
        return -(-self.input_ids.shape[1] // self.window)

    @property
    def decisions_per_episode(self) -> torch.Tensor:
        """Number of decisions of each text, `(N,)`."""
        return -(-self.valid.sum(1) // self.window)

    @property
    def dropped(self) -> torch.Tensor:
        return ~self.keep_mask & self.valid  # (N, T)

    def price(self, distortion: torch.Tensor) -> torch.Tensor:
        r"""
        Lagrange price of a kept token, `(N,)`, in the unit of `distortion` `(N, T)`.

        The policy's own bias meets the budget, so the multiplier does not need a search. It is the mean distortion of
        the tokens at the margin, `sum p (1 - p) distortion / sum p (1 - p)` over the tokens dropped from a text under
        any of its masks. The expected count is fixed, so a constant price does not change the exact gradient; it
        removes the noise of the count from the estimate.
        """
        if self.keep_price is not None:
            return distortion.new_full((len(distortion),), self.keep_price)
        margin = self.keep_probability * (1 - self.keep_probability) * self.dropped
        by_text = torch.stack([(margin * distortion).sum(1), margin.sum(1)]).view(2, -1, self.num_masks).sum(2)
        return (by_text[0] / by_text[1].clamp(min=1e-6)).repeat_interleave(self.num_masks)

    def per_decision(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `(N, T)` over each window: `(N, S)`."""
        padded = torch.nn.functional.pad(values, (0, self.num_decisions * self.window - values.shape[1]))
        return padded.view(len(values), self.num_decisions, self.window).sum(2)

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        """Repeat a value per decision `(N, S)` for each token of its window: `(N, T)`."""
        return values.repeat_interleave(self.window, 1)[:, : self.input_ids.shape[1]]


def token_returns(rewards: torch.Tensor, decay: float) -> torch.Tensor:
    """
    Token returns `C` `(N, T)` of token rewards `(N, T)`, in the same unit: one product with the `(T, T)` weights
    above.
    """
    position = torch.arange(rewards.shape[1], device=rewards.device)
    distance = (position[:, None] - position[None, :]).abs()
    weight = torch.as_tensor(decay, dtype=rewards.dtype) ** distance  # (T, T), symmetric; 0 ** 0 is 1
    return rewards @ weight.to(rewards)  # (N, T)


def leave_one_out_advantages(returns: torch.Tensor, num_masks: int) -> torch.Tensor:
    r"""
    Advantage of each keep mask over the mean return of the other masks of the same text, at each position.

    Args:
        returns (`torch.FloatTensor` of shape `(num_texts * num_masks, places)`):
            Returns in bits, higher is better; the masks of a text are consecutive rows. A `nan` in a row marks an
            episode that could not be scored.
        num_masks (`int`): Masks per text.

    Returns:
        `torch.FloatTensor` of the same shape and unit, detached: sums to zero over the scored masks of a text; zero
        for an episode that could not be scored, or that is the only scored one of its text.

    Raises:
        `ValueError`: If `num_masks` is below 2, because a mask is compared with the others.

    Source: Ahmadian et al. 2024, arXiv 2402.14740 (RLOO). Differs: one baseline per position, without unscored
    episodes.

    >>> leave_one_out_advantages(torch.tensor([[1.0], [0.0], [0.0]]), num_masks=3).squeeze(1)
    tensor([ 1.0000, -0.5000, -0.5000])
    """
    if num_masks < 2:
        raise ValueError(
            f"`num_masks` must be at least 2, got {num_masks}: a mask is compared with the text's others."
        )
    returns = returns.detach().view(-1, num_masks, returns.shape[-1])
    scored = ~torch.isnan(returns).any(2, keepdim=True)  # (texts, masks, 1)
    known = torch.where(scored, returns, 0.0)
    others = scored.sum(1, keepdim=True) - 1
    baseline = (known.sum(1, keepdim=True) - known) / others.clamp(min=1)
    return torch.where(scored & (others > 0), known - baseline, 0.0).flatten(0, 1)
