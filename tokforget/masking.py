"""
Keep-mask algebra: how many tokens a budget allows, and which ones the scores select. The only place that rounds.

A keep mask is boolean, True is kept; padding is never kept. A compression rate is kept / original.

A reconstructor trains on three kinds of masks: `random` tokens, random contiguous `span`s, and `frequency`, which
keeps the tokens of highest surprisal after noise is added.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from tokforget.rates import ROUNDING_SLACK


def keep_count(num_tokens: torch.Tensor, rate: torch.Tensor | float) -> torch.Tensor:
    """
    Number of tokens that a rate allows: the largest count that does not exceed `rate * num_tokens`, but at least 1.

    Args:
        num_tokens (`torch.LongTensor` of shape `(batch_size,)`): Tokens of each text, padding excluded.
        rate (`float` or `torch.FloatTensor` of shape `(batch_size,)`): Fraction to keep, in (0, 1].

    Returns:
        `torch.LongTensor` of shape `(batch_size,)`: 0 for an empty text, else in `[1, num_tokens]`, monotone in `rate`.

    >>> keep_count(torch.tensor([10, 3, 1, 0]), 0.5)
    tensor([5, 1, 1, 0])
    """
    rate = torch.as_tensor(rate, dtype=torch.float64, device=num_tokens.device)
    # A float32 rate (0.3 -> 0.30000001) is rounded to the decimal that the caller meant.
    allowed = torch.floor(num_tokens.double() * rate + ROUNDING_SLACK * num_tokens.double().clamp(min=1)).long()
    return torch.minimum(allowed.clamp(min=1), num_tokens)


def top_k_mask(scores: torch.Tensor, counts: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """
    Keep exactly `counts` tokens of each text, those with the highest scores; ties go to the earlier token.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, num_tokens)`):
            Higher is kept first; `inf` marks a protected token. `nan` is an error.
        counts (`torch.LongTensor` of shape `(batch_size,)`): Tokens to keep, at most the valid ones.
        valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_tokens)`: The keep mask.
    """
    if torch.isnan(scores).any():
        raise ValueError("Scores contain nan: a token without a score can be neither kept nor dropped.")
    scores = scores.masked_fill(~valid, -torch.inf)
    # Sort by (valid, score): a real token with a score of -inf must still come before padding.
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    order = order.gather(1, torch.argsort(valid.gather(1, order).int(), dim=1, descending=True, stable=True))
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (ranks < counts[:, None]) & valid  # (B, T)


def random_keep_mask(counts: torch.Tensor, valid: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Keep exactly `counts` `(B,)` tokens of each text, chosen uniformly without replacement; `(B, T)` bool."""
    noise = torch.rand(valid.shape, generator=generator).to(valid.device)
    return top_k_mask(noise, counts, valid)


# -- randomness --------------------------------------------------------------------------------------------------------
# One generator for a whole batch, or one for each row.
Generators = torch.Generator | Sequence[torch.Generator]


def seeded_generator(*words: int) -> torch.Generator:
    """A generator for each tuple of non-negative numbers, such as a seed and the number of a text."""
    # Hash the numbers: torch's own seeding uses only 32 bits and starts neighbouring seeds from neighbouring states.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


def row_noise(
    valid: torch.Tensor, generator: Generators | None = None, draw: Callable[..., torch.Tensor] = torch.rand
) -> torch.Tensor:
    """
    Noise `(B, T)`, uniform or from another `draw`.

    A row with its own generator draws one number for each of its tokens in `valid` `(B, T)`, so that neither padding
    nor other rows change its noise. Several rows may share one generator; they draw in order.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return draw(valid.shape, generator=generator).to(valid.device)
    drawn = [draw(length, generator=own) for length, own in zip(valid.sum(1).tolist(), generator, strict=True)]
    return torch.zeros(valid.shape, device=valid.device).masked_scatter(
        valid, torch.cat([torch.empty(0), *drawn]).to(valid.device)
    )


# -- masks to train on -------------------------------------------------------------------------------------------------
