"""
Keep-mask algebra: how many tokens a budget allows, and which ones the scores select. The only place that rounds.

A keep mask is boolean, True is kept; padding is never kept. A compression rate is kept / original.

The masks that a reconstructor trains on come in kinds: `random` tokens, random contiguous `span`s, and `frequency`, the
rare tokens kept, by a noisy surprisal.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch


# 0.29 * 100 is 28.999999999999996 in floating point; a budget that is met on paper must be met here.
_ROUNDING_SLACK = 1e-6
MASK_KINDS = ("random", "span", "frequency")
# Mean length of the segments that a span mask keeps or drops as a whole: the span length of T5's corruption (Raffel et al.
# 2020, arXiv 1910.10683). Differs: neighbouring segments may fall together, so that spans grow as the rate falls.
_SEGMENT_TOKENS = 3
# Bits of noise on a token's surprisal: masks between plain random and plain frequency.
_NOISY_FREQUENCY_BITS = 3.0


def check_rate(rate: float) -> float:
    """Return `rate` if it is a compression rate in (0, 1], else raise `ValueError`."""
    if not 0.0 < float(rate) <= 1.0:
        raise ValueError(
            f"`compression_rate` must lie in (0, 1], got {rate}. It is the fraction of tokens kept; for four times "
            "smaller pass 0.25."
        )
    return float(rate)


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
    # A rate that arrives in float32 (0.3 -> 0.30000001) is the decimal that was asked for.
    allowed = torch.floor(num_tokens.double() * rate + _ROUNDING_SLACK * num_tokens.double().clamp(min=1)).long()
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
    # Sorting by (valid, score): a score of -inf on a real token must still win over padding.
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
    # Hashed: torch's own seeding looks at 32 bits and makes streams of neighbouring seeds from neighbouring states.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


def row_noise(
    valid: torch.Tensor, generator: Generators | None = None, draw: Callable[..., torch.Tensor] = torch.rand
) -> torch.Tensor:
    """
    Noise `(B, T)`, uniform or from another `draw`.

    A row that has its own generator draws as many numbers as it has tokens in `valid` `(B, T)`: neither padding nor its
    neighbours change them. One generator may serve several rows, in their order.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return draw(valid.shape, generator=generator).to(valid.device)
    drawn = [draw(length, generator=own) for length, own in zip(valid.sum(1).tolist(), generator, strict=True)]
    return torch.zeros(valid.shape, device=valid.device).masked_scatter(
        valid, torch.cat([torch.empty(0), *drawn]).to(valid.device)
    )


# -- masks to train on -------------------------------------------------------------------------------------------------
def draw_rates(num_texts: int, low: float, high: float, generator: Generators | None = None) -> torch.Tensor:
    """Rates `(num_texts,)`, uniform between `low` and `high`."""
    return low + (high - low) * row_noise(torch.ones(num_texts, 1, dtype=torch.bool), generator).squeeze(1)


def draw_kinds(
    num_texts: int, kinds: Sequence[str], weights: Sequence[float], generator: torch.Generator | None = None
) -> list[str]:
    """
    A kind of mask for each text, in the shares of `weights`.

    Every kind comes up its share of `num_texts`, rounded up or down, and exactly so on average (systematic sampling, Madow
    and Madow 1944): a small batch has no kind in excess by chance.
    """
    edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    places = (torch.arange(num_texts) + torch.rand((), dtype=torch.float64, generator=generator)) / num_texts
    index = torch.searchsorted(edges / edges[-1], places, right=True).clamp(max=len(kinds) - 1)
    return [kinds[i] for i in index.tolist()]


def draw_scores(
    kinds: Sequence[str],
    valid: torch.Tensor,
    surprisal: torch.Tensor | None = None,
    generator: Generators | None = None,
) -> torch.Tensor:
    """
    Random scores whose top-k is a mask of the given kind, at any count.

    Args:
        kinds (`list[str]` of length `batch_size`): One of `MASK_KINDS` for each text.
        valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.
        surprisal (`torch.FloatTensor` of shape `(batch_size, num_tokens)`, *optional*):
            Bits of each token under a unigram model; needed for `frequency`.
        generator (`torch.Generator`, or a list of one for each text, *optional*): See [`row_noise`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_tokens)`: For [`top_k_mask`], which keeps the highest.
    """
    scores = row_noise(valid, generator)
    rows = {kind: [row for row, other in enumerate(kinds) if other == kind] for kind in MASK_KINDS}

    def noise_of(rows: list[int], draw: Callable[..., torch.Tensor]) -> torch.Tensor:
        own = generator if isinstance(generator, torch.Generator | None) else [generator[row] for row in rows]
        return row_noise(valid[rows], own, draw)

    if some := rows["frequency"]:
        scores[some] = surprisal[some] + _NOISY_FREQUENCY_BITS * noise_of(some, torch.randn)
    if some := rows["span"]:
        starts = noise_of(some, torch.rand) < 1 / _SEGMENT_TOKENS
        starts[:, 0] = False
        # One score per segment: it is kept or dropped as a whole, but for the one that the budget cuts.
        scores[some] = scores[some].gather(1, starts.long().cumsum(1))
    return scores  # (B, T)
