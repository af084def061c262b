"""
Numbers from tensors: rate, ratio, bits, token accuracy. Corpus figures are taken from totals, never from means of ratios.
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


# -- prompts of a growing transcript -----------------------------------------------------------------------------------
def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many of the first values of two rows are the same; `(num_a,)` and `(num_b,)`, tokens or bytes."""
    shorter = min(len(a), len(b))
    differs = np.asarray(a[:shorter]) != np.asarray(b[:shorter])
    return int(differs.argmax()) if differs.any() else shorter


def prefix_churn(transcripts: Sequence[Sequence[np.ndarray]]) -> dict[str, float | int]:
    """
    How much of what was sent is changed when it is sent again: a provider's prompt cache holds to the first difference only.

    Args:
        transcripts: The prompts of each transcript, turn after turn, each a row of tokens or of bytes.

    Returns:
        `dict`: `prefix_churn` = changed / sent of all turns but the first ones, `changed`, `sent`, `changed_turns` (a share of these
        turns), `turns`.
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
    What the prompts of growing transcripts cost with a provider that caches prefixes.

    Every prompt of at least `min_cached_tokens` is written to the cache; of a later one of the same transcript the longest prefix
    that was written is read from there, whole blocks of it, and the rest is written. Nothing expires.

    Args:
        transcripts: The prompts of each transcript, turn after turn, each a row of token ids.
        input_price (`float`), cached_read_price (`float`), cache_write_price (`float`): For a million tokens.
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
