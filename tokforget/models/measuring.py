"""What a keep mask costs under one reconstructor."""

import numpy as np
import torch

from tokforget import scoring
from tokforget.models.reconstructor import Reconstructor


@torch.no_grad()
def measure(
    reconstructor: Reconstructor, input_ids: torch.Tensor, valid: torch.Tensor, keep_mask: torch.Tensor
) -> torch.Tensor:
    """
    Bits lost, tokens restored exactly (free-running), tokens dropped and tokens in all, per text.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 4)`.
    """
    return restore_and_measure(reconstructor, input_ids, valid, keep_mask)[0]


@torch.no_grad()
def restore_and_measure(
    reconstructor: Reconstructor, input_ids: torch.Tensor, valid: torch.Tensor, keep_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What [`measure`] returns, and the restored ids `(B, T)` it was read from."""
    bits = scoring.bits_lost(reconstructor.token_nll(input_ids, keep_mask, valid).nll)
    restored = reconstructor.restore(input_ids.masked_fill(~keep_mask, 0), keep_mask, valid).input_ids
    exact = scoring.exact_restored(restored, input_ids, keep_mask, valid)
    return torch.stack([bits, exact, (~keep_mask & valid).sum(1), valid.sum(1)], -1).float(), restored


def summarise(measured: np.ndarray) -> dict[str, float]:
    """Totals of `(texts, 4)` from [`measure`]: bits lost per original token, share of dropped tokens restored."""
    bits, exact, dropped, tokens = measured.sum(0)
    return {
        "bits_lost": float(bits / tokens),
        "exact_restored": float(exact / dropped) if dropped else 1.0,
        "compression_rate": float(1 - dropped / tokens),
    }


@torch.no_grad()
def probe(
    reconstructor: Reconstructor, input_ids: torch.Tensor, valid: torch.Tensor, keep_mask: torch.Tensor, apart: int
) -> torch.Tensor:
    """
    What each kept token would cost if it were dropped as well: its bits, with every `apart`-th kept token missing.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_tokens)`: Bits; 0 where nothing is kept.
    """
    order = keep_mask.long().cumsum(1) - 1
    bits = torch.zeros(input_ids.shape, device=input_ids.device)
    for turn in range(apart):
        missing = keep_mask & (order % apart == turn)
        if missing.any():
            nll = reconstructor.token_nll(input_ids, keep_mask & ~missing, valid).nll
            bits = torch.where(missing, nll.float(), bits)
    return bits
