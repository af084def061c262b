"""
Scores for texts of any length: the policy sees windows like the texts it was trained on, many at a time.

A text is covered by windows of `WINDOW` tokens that overlap; each token's score comes from the window in which it lies
farthest from a cut. Where the windows lie depends on the text alone, and padding adds exact zeros, so a text's scores
are the same alone and in a batch, to the last bit.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tokforget.models.array_policy import TOGETHER, ArrayPolicy


if TYPE_CHECKING:
    from tokforget.models.policy import KeepMaskPolicy


# Scores of 5,760 tokens of stories, one budget over all: windows of 128 with margins of 16 lose 0.601 bits per token at
# rate 0.5, of 256 0.607, of 1,024 0.625, the whole text at once 0.630 (the policy was trained on 96 tokens).
WINDOW, MARGIN = 128, 16
# Tokens in one forward: enough to keep the matrix products busy, few enough for the cache.
_TOKENS_AT_ONCE = 1024
# A product over fewer rows takes another path through the BLAS, with another rounding.
_SHORTEST = 16
# Rounding makes what is equal on paper equal in memory; a step is far below any difference that matters.
_STEPS = 4096.0


def layout(num_tokens: int, window: int = WINDOW, margin: int = MARGIN) -> np.ndarray:
    """Windows over a text `(num_windows, 4)`: first token, end, and the part whose scores are taken from it."""
    stride = window - 2 * margin
    starts = np.arange(0, max(num_tokens - window, 0) + stride, stride) if num_tokens > window else np.zeros(1, int)
    ends = np.minimum(starts + window, num_tokens)
    cuts = np.concatenate([[0], starts[1:] + margin, [num_tokens]])
    return np.stack([starts, ends, cuts[:-1], cuts[1:]], 1)


def score(
    policy: "KeepMaskPolicy | ArrayPolicy",
    texts: list[np.ndarray],
    rates: list[float],
    features: list[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """
    Keep scores of every token of every text.

    The score is the policy's plan before any decision is taken. On held-out texts its masks lose the same bits as
    the window-by-window decisions (LOG.md), and a plan is one pass, needs no budget, and ranks all tokens of a
    text of any length.

    Args:
        policy (`KeepMaskPolicy`, in evaluation mode, `ArrayPolicy` or `OnnxPolicy`): Gives the plans.
        texts (`list[np.ndarray]`): Token ids of each text.
        rates (`list[float]`): The rate that the policy is told, for each text.
        features (`list[np.ndarray]`, *optional*): Of each text `(num_tokens, NUM_FEATURES)`, for a policy that takes them.

    Returns:
        `list[np.ndarray]`: float32 logits of the policy, not bounded; higher is kept first.
    """
    lengths = [len(text) for text in texts]
    ids = np.concatenate([*texts, np.zeros(0, np.int64)]).astype(np.int64)
    scores = np.zeros(len(ids), dtype=np.float32)
    bases = np.cumsum([0, *lengths])
    tables = [layout(length) + base for length, base in zip(lengths, bases) if length]
    if not tables:
        return [scores[:0] for _ in texts]
    windows = np.concatenate(tables)
    window_rates = np.repeat([r for r, n in zip(rates, lengths) if n], [len(table) for table in tables])
    told = None if features is None else np.concatenate(features)
    for rows in _batches(windows[:, 1] - windows[:, 0]):
        _score_rows(policy, ids, windows[rows], window_rates[rows], scores, told)
    if not np.isfinite(scores).all():  # an order of them would be that of the text: it would only be cut off
        raise ValueError(
            "The model's scores are not finite: its weights hold nan or infinity, or its precision is too low for them. Load it in "
            "float32 (`dtype=None`), or save it again."
        )
    return [scores[base : base + length] for base, length in zip(bases, lengths)]


def _batches(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of similar length together, so that little is padding."""
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        end = start + max(1, _TOKENS_AT_ONCE // max(sizes[order[start]], _SHORTEST))
        yield order[start:end]
        start = end


def _score_rows(
    policy: "KeepMaskPolicy | ArrayPolicy",
    ids: np.ndarray,
    windows: np.ndarray,
    rates: np.ndarray,
    scores: np.ndarray,
    features: np.ndarray | None,
) -> None:
    """Score one batch of windows, and write the parts that are theirs into `scores`."""
    starts, ends, first, last = (column[:, None] for column in windows.T)
    longest = max((ends - starts).max(), _SHORTEST)
    place = starts + np.arange(-(-longest // TOGETHER) * TOGETHER)
    valid = place < ends
    within = np.minimum(place, len(ids) - 1)
    plan = policy.plan_arrays(ids[within], valid, rates, None if features is None else features[within])
    own = (place >= first) & (place < last)
    scores[place[own]] = np.round(plan[own] * _STEPS) / _STEPS
