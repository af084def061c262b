"""The random keep masks that a reconstructor trains on: their rates, kinds and scores."""

from collections.abc import Callable, Iterable, Sequence

import torch

from tokforget.masking import Generators, row_noise


MASK_KINDS = ("random", "span", "frequency")


# Mean length of the segments that a span mask keeps or drops as a whole: the span length of T5's corruption (Raffel et al.
# 2020, arXiv 1910.10683). Differs: neighbouring segments may both be dropped, so that spans are longer at lower rates.
_SEGMENT_TOKENS = 3


# Noise on a token's surprisal in bits; it gives masks between random and purely by frequency.
_NOISY_FREQUENCY_BITS = 3.0


def draw_rates(num_texts: int, low: float, high: float, generator: Generators | None = None) -> torch.Tensor:
    """Rates `(num_texts,)`, uniform between `low` and `high`."""
    return low + (high - low) * row_noise(torch.ones(num_texts, 1, dtype=torch.bool), generator).squeeze(1)


def draw_kinds(
    num_texts: int, kinds: Sequence[str], weights: Sequence[float], generator: torch.Generator | None = None
) -> list[str]:
    """
    Draw a kind of mask for each text, with probabilities proportional to `weights`.

    The number of texts of each kind is its share of `num_texts`, rounded up or down, and exact on average (systematic
    sampling, Madow and Madow 1944), so that no kind is over-represented in a small batch by chance.
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
        # One score per segment, so that segments are kept or dropped as a whole, except for the one that the budget
        # cuts.
        scores[some] = scores[some].gather(1, starts.long().cumsum(1))
    return scores  # (B, T)


def unigram_surprisal(texts: Iterable[list[int]], vocab_size: int) -> torch.Tensor:
    """
    Surprisal in bits `(vocab_size,)` of each token id under its frequency in the texts, with add-one smoothing. It
    does not use a policy's count tables, so that a reconstructor trains on the same masks with and without them.
    """
    counts = torch.ones(vocab_size)
    for text in texts:
        ids = torch.as_tensor(text, dtype=torch.long)
        counts.index_add_(0, ids, torch.ones(len(ids)))
    return torch.log2(counts.sum() / counts)
