"""
Numbers from tensors: rate, ratio, bits, token accuracy. Corpus figures are taken from totals, never from means of ratios.
"""

import torch


def compression_rate(keep_mask: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Kept / original per text, `(B,)` in [0, 1]; padding excluded, `nan` for an empty text."""
    return (keep_mask & valid).sum(1) / valid.sum(1)


def compression_ratio(keep_mask: torch.Tensor, valid: torch.Tensor) -> float:
    """Original / kept over the whole corpus, from totals; 4.0 means four times smaller."""
    kept = int((keep_mask & valid).sum())
    if kept == 0:
        raise ValueError("`compression_ratio` is undefined: no token was kept.")
    return int(valid.sum()) / kept


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
