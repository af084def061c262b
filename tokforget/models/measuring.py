"""The cost of keep masks under one reconstructor."""

import numpy as np
import torch

from tokforget import scoring
from tokforget.models.reconstructor import Reconstructor


@torch.no_grad()
def measure(
    reconstructor: Reconstructor, input_ids: torch.Tensor, valid: torch.Tensor, keep_mask: torch.Tensor
) -> torch.Tensor:
    """
    Measure keep masks: bits lost, and tokens that a free-running restoration gets exactly right.

    Args:
        reconstructor ([`Reconstructor`]): Scores and restores.
        input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Texts, padded on the right.
        valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.
        keep_mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): True is kept.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 4)`: For each text bits lost, tokens restored exactly, tokens
        dropped, tokens.
    """
    return restore_and_measure(reconstructor, input_ids, valid, keep_mask)[0]


@torch.no_grad()
def restore_and_measure(
    reconstructor: Reconstructor, input_ids: torch.Tensor, valid: torch.Tensor, keep_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`measure`]; also returns the restored ids `(B, T)`."""
    bits = scoring.bits_lost(reconstructor.token_nll(input_ids, keep_mask, valid).nll)
    restored = reconstructor.restore(input_ids.masked_fill(~keep_mask, 0), keep_mask, valid).input_ids
    exact = scoring.exact_restored(restored, input_ids, keep_mask, valid)
    return torch.stack([bits, exact, (~keep_mask & valid).sum(1), valid.sum(1)], -1).float(), restored


def summarise(measured: np.ndarray) -> dict[str, float]:
    """
    From the table `(texts, 4)` of [`measure`]: bits lost per original token, fraction of dropped tokens restored
    exactly.
    """
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
    The cost of dropping each kept token as well: its bits when every `apart`-th kept token is dropped.

    Args:
        reconstructor ([`Reconstructor`]): Scores the tokens.
        input_ids, valid, keep_mask (`torch.Tensor` of shape `(batch_size, num_tokens)`): As for [`measure`].
        apart (`int`): Distance of the tokens dropped together; also the number of passes.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_tokens)`: Bits of kept tokens; 0 elsewhere.
    """
    order = keep_mask.long().cumsum(1) - 1
    bits = torch.zeros(input_ids.shape, device=input_ids.device)
    for turn in range(apart):
        missing = keep_mask & (order % apart == turn)
        if missing.any():
            nll = reconstructor.token_nll(input_ids, keep_mask & ~missing, valid).nll
            bits = torch.where(missing, nll.float(), bits)
    return bits
