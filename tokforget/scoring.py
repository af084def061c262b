"""
Numbers from tensors: rate, ratio, bits, token accuracy. Corpus figures are taken from totals, never from means of ratios.
"""

import math
from collections.abc import Sequence

import torch


def compression_rate(keep_mask: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Kept / original per text, `(B,)` in [0, 1]; padding excluded, `nan` for an empty text."""
    return (keep_mask & valid).sum(1) / valid.sum(1)


def compression_ratio(keep_mask: torch.Tensor, valid: torch.Tensor) -> float:
    """Original / kept over the whole corpus, from totals; 4.0 means four times smaller."""
    return rate_and_ratio(int((keep_mask & valid).sum()), int(valid.sum()))["compression_ratio"]


def bits_lost(token_nll: torch.Tensor) -> torch.Tensor:
    """Bits that a text lost in the eyes of the reconstructor, `(B,)`: the sum over its dropped tokens."""
    return token_nll.sum(1)


def exact_restored(
    restored_ids: torch.Tensor, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Number of dropped tokens of each text that a restoration got exactly right, `(B,)`; kept ones do not count."""
    return ((restored_ids == input_ids) & ~keep_mask & valid).sum(1)


def per_text_mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Mean of `values` `(B, T)` over the places `where` is True, `(B,)`; 0 where there is none."""
    return (values * where).sum(1) / where.sum(1).clamp(min=1)


# -- figures of a corpus, from its totals ------------------------------------------------------------------------------
def rate_and_ratio(kept: int, original: int) -> dict[str, float]:
    """`compression_rate` = kept / original and `compression_ratio` = original / kept, of token counts over a corpus."""
    if original < 1:
        raise ValueError("A compression rate is undefined: the texts have no token at all.")
    if kept < 1:
        raise ValueError(f"`compression_ratio` is undefined: no token was kept of {original}.")
    return {"compression_rate": kept / original, "compression_ratio": original / kept}


def mask_bits(kept: int, original: int) -> float:
    """
    Bits per original token that the keep mask itself costs at most when it travels with the kept tokens: the entropy
    of a coin that falls on "kept" as often as the mask does.

    >>> mask_bits(1, 2)
    1.0
    """
    shares = [kept / original, 1 - kept / original]
    return -math.fsum(share * math.log2(share) for share in shares if share > 0) + 0.0


def bits_lost_per_token(bits: Sequence[float], dropped: int, tokens: int) -> dict[str, float]:
    """
    Args:
        bits (`Sequence[float]`): Bits of dropped tokens or of whole texts, in any grouping.
        dropped (`int`): Dropped tokens of all texts.
        tokens (`int`): Tokens of all texts.

    Returns:
        `dict`: `bits_lost` per original token, `bits_per_dropped_token` (0.0 where none was dropped) and
        `bits_lost_total`.
    """
    if not 0 <= dropped <= tokens or tokens < 1:
        raise ValueError(f"`dropped` must lie in [0, tokens] and `tokens` be at least 1, got {dropped} of {tokens}.")
    total = math.fsum(bits)  # exact, so that the order of the texts cannot be seen in the last digit
    return {
        "bits_lost": total / tokens,
        "bits_per_dropped_token": total / dropped if dropped else 0.0,
        "bits_lost_total": total,
    }


def context_retention(
    nll_full: Sequence[float], nll_compressed: Sequence[float], nll_none: Sequence[float], num_tokens: int
) -> dict[str, float | None]:
    """
    How much of what the full context tells a reader about a continuation the compressed one still tells.

    Args:
        nll_full, nll_compressed, nll_none (`Sequence[float]`):
            Bits of each continuation, given the full, the compressed and no context. The same tokens in all three.
        num_tokens (`int`): Tokens of all continuations.

    Returns:
        `dict`: `context_retention` = (none - compressed) / (none - full) of the totals, `None` where the full context is
        worth nothing to the reader; `context_gain` = what it is worth, in bits per token; `perplexity_ratio` =
        perplexity with the compressed context / with the full one; bits per token of the three cases.
    """
    if num_tokens < 1:
        raise ValueError(f"`num_tokens` must be at least 1, got {num_tokens}: there is no continuation to predict.")
    full, compressed, none = (math.fsum(nll) / num_tokens for nll in (nll_full, nll_compressed, nll_none))
    return {
        "context_retention": (none - compressed) / (none - full) if none > full else None,
        "context_gain": none - full,
        "perplexity_ratio": 2 ** (compressed - full),
        "bits_per_token_full": full,
        "bits_per_token_compressed": compressed,
        "bits_per_token_none": none,
    }
