"""
Figures from tensors: rate, ratio, bits, token accuracy. Figures of a corpus are ratios of totals, never means of
ratios.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch


def compression_rate(keep_mask: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Kept / original per text, `(B,)` in [0, 1]; padding excluded, `nan` for an empty text."""
    return (keep_mask & valid).sum(1) / valid.sum(1)


def compression_ratio(keep_mask: torch.Tensor, valid: torch.Tensor) -> float:
    """Original / kept over the whole corpus, from totals; 4.0 means four times smaller."""
    return rate_and_ratio(int((keep_mask & valid).sum()), int(valid.sum()))["compression_ratio"]


def bits_lost(token_nll: torch.Tensor) -> torch.Tensor:
    """
    Bits that each text lost under the reconstructor.

    Args:
        token_nll (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): Bits of each dropped token, 0 elsewhere.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`: The sum over the dropped tokens.
    """
    return token_nll.sum(1)


def exact_restored(
    restored_ids: torch.Tensor, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """
    Number of dropped tokens of each text that were restored exactly, `(B,)`. All arguments are `(B, T)`; kept tokens
    do not count.
    """
    return ((restored_ids == input_ids) & ~keep_mask & valid).sum(1)


def per_text_mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Mean of `values` `(B, T)` over the places `where` is True, `(B,)`; 0 where there is none."""
    return (values * where).sum(1) / where.sum(1).clamp(min=1)


# -- figures of a corpus, from its totals ------------------------------------------------------------------------------
def rate_and_ratio(kept: int, original: int) -> dict[str, float]:
    """
    `compression_rate` = kept / original and `compression_ratio` = original / kept, from the token counts of a corpus.

    Raises:
        `ValueError`: If one of the counts is 0.
    """
    if original < 1:
        raise ValueError("A compression rate is undefined: the texts have no token at all.")
    if kept < 1:
        raise ValueError(f"`compression_ratio` is undefined: no token was kept of {original}.")
    return {"compression_rate": kept / original, "compression_ratio": original / kept}


def mask_bits(kept: int, original: int) -> float:
    """
    Most bits per original token that the keep mask itself costs if it is sent along with the kept tokens: the entropy
    of a coin that shows "kept" as often as the mask does.

    >>> mask_bits(1, 2)
    1.0
    """
    shares = [kept / original, 1 - kept / original]
    return -math.fsum(share * math.log2(share) for share in shares if share > 0) + 0.0


def bits_lost_per_token(bits: Sequence[float], dropped: int, tokens: int) -> dict[str, float]:
    """
    Bits lost over a corpus, from its totals.

    Args:
        bits (`Sequence[float]`): Bits of dropped tokens or of whole texts, in any grouping.
        dropped (`int`): Dropped tokens of all texts.
        tokens (`int`): Tokens of all texts.

    Returns:
        `dict`: `bits_lost` per original token, `bits_per_dropped_token` (0.0 if none was dropped) and
            `bits_lost_total`.

    Raises:
        `ValueError`: If `tokens` is 0 or `dropped` exceeds it.
    """
    if not 0 <= dropped <= tokens or tokens < 1:
        raise ValueError(f"`dropped` must lie in [0, tokens] and `tokens` be at least 1, got {dropped} of {tokens}.")
    total = math.fsum(bits)  # exact, so that the result does not depend on the order of the texts
    return {
        "bits_lost": total / tokens,
        "bits_per_dropped_token": total / dropped if dropped else 0.0,
        "bits_lost_total": total,
    }


def context_retention(
    nll_full: Sequence[float], nll_compressed: Sequence[float], nll_none: Sequence[float], num_tokens: int
) -> dict[str, float | None]:
    """
    Share of the information about a continuation that the compressed context keeps.

    Args:
        nll_full, nll_compressed, nll_none (`Sequence[float]`):
            Bits of each continuation, given the full, the compressed and no context. The same tokens in all three.
        num_tokens (`int`): Tokens of all continuations.

    Returns:
        `dict`: `context_retention` = (none - compressed) / (none - full) of the totals, `None` if the full context
        does not help the reader; `context_gain` = (none - full) in bits per token; `perplexity_ratio` = perplexity
        with the compressed context / with the full one; and the bits per token of the three cases.
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


# -- prompts of growing transcripts ------------------------------------------------------------------------------------
def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix of two rows `(num_a,)` and `(num_b,)`, in tokens or bytes."""
    shorter = min(len(a), len(b))
    differs = np.asarray(a[:shorter]) != np.asarray(b[:shorter])
    return int(differs.argmax()) if differs.any() else shorter


def prefix_churn(transcripts: Sequence[Sequence[np.ndarray]]) -> dict[str, float | int]:
    """
    How much of a prompt changes when it is sent again in the next turn. A provider's prompt cache only covers the
    tokens before the first difference.

    Args:
        transcripts: The prompts of each transcript, turn after turn, each a row of tokens or of bytes.

    Returns:
        `dict`: `prefix_churn` = changed / sent over all turns but the first of each transcript, `changed`, `sent`,
        `changed_turns` (the fraction of these turns that changed something), `turns`.

    Raises:
        `ValueError`: If no transcript has a second prompt after one that is not empty.
    """
    pairs = [pair for prompts in transcripts for pair in pairwise(prompts)]
    changed = [len(before) - common_prefix(before, after) for before, after in pairs]
    sent = sum(len(before) for before, _ in pairs)
    if not sent:
        raise ValueError(
            "Churn is undefined: no transcript has a prompt with anything in it and another one behind it."
        )
    return {
        "prefix_churn": sum(changed) / sent,
        "changed": sum(changed),
        "sent": sent,
        "changed_turns": sum(map(bool, changed)) / len(pairs),
        "turns": len(pairs),
    }


def cache_cost(
    transcripts: Sequence[Sequence[np.ndarray]],
    input_price: float,
    cached_read_price: float,
    cache_write_price: float,
    min_cached_tokens: int = 1024,
    block_tokens: int = 1,
) -> dict[str, float | int]:
    """
    Cost of the prompts of growing transcripts with a provider that caches prefixes.

    Every prompt of at least `min_cached_tokens` is written to the cache. A later prompt of the same transcript reads
    its longest cached prefix, in whole blocks, and writes the rest. Nothing expires.

    Args:
        transcripts: The prompts of each transcript, turn after turn, each a row of token ids.
        input_price (`float`), cached_read_price (`float`), cache_write_price (`float`): Price of a million tokens.
        min_cached_tokens (`int`): Shorter prompts and shorter prefixes are not cached.
        block_tokens (`int`): Cached prefixes are multiples of it.

    Returns:
        `dict`: `cost`, `cost_without_cache`, `tokens`, `cached_tokens`, `written_tokens`, `turns`.
    """
    tokens = cached = written = turns = 0
    for prompts in transcripts:
        kept: list[np.ndarray] = []
        for prompt in prompts:
            tokens, turns = tokens + len(prompt), turns + 1
            if len(prompt) < min_cached_tokens:
                continue
            found = max((common_prefix(one, prompt) for one in kept), default=0)
            found = found // block_tokens * block_tokens if found >= min_cached_tokens else 0
            cached, written = cached + found, written + len(prompt) - found
            kept.append(prompt)
    plain = tokens - cached - written
    cost = (plain * input_price + cached * cached_read_price + written * cache_write_price) / 1e6
    return {
        "cost": cost,
        "cost_without_cache": tokens * input_price / 1e6,
        "tokens": tokens,
        "cached_tokens": cached,
        "written_tokens": written,
        "turns": turns,
    }
