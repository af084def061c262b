"""
Scores for texts of any length: the policy scores batches of windows that have the length of its training texts.

Overlapping windows of the same number of tokens cover a text. The score of a token comes from the window in which it is
farthest from an edge. The windows depend only on the text, and padding adds exact zeros, so that a text has bitwise the
same scores alone and in a batch. A policy without count features reads few tokens around each; its windows overlap by
these, so that its scores are those of the whole text.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tokforget.models.array_policy import TOGETHER, ArrayPolicy


if TYPE_CHECKING:
    from tokforget.models.policy import KeepMaskPolicy


# On 5,760 tokens of stories with one budget at rate 0.5, windows of 128 with margins of 16 lose 0.601 bits per token,
# windows of 256 lose 0.607, of 1,024 0.625, and the whole text at once 0.630 (the policy was trained on 96 tokens).
WINDOW, MARGIN = 128, 16
# Windows for a policy that reads at most `_WIDEST` tokens on each side: as long as its buffers fit in a core's cache.
_LONG_WINDOW, _WIDEST = 512, 32
# Tokens per forward pass: enough for efficient matrix products, few enough for the cache.
_TOKENS_AT_ONCE = 1024
# Products over fewer rows use another code path of the BLAS, which rounds differently.
_SHORTEST = 16
# Scores are rounded, so that mathematically equal scores are equal; the step is far below relevant differences.
_STEPS = 4096.0


def layout(num_tokens: int, window: int = WINDOW, margin: int = MARGIN) -> np.ndarray:
    """
    Windows over a text `(num_windows, 4)`: first token and end, and first token and end of the part whose scores are
    used; none for an empty text.
    """
    if not num_tokens:
        return np.zeros((0, 4), int)
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

    The score is the policy's plan before the first decision. On held-out texts its masks lose the same bits as
    decisions window by window (LOG.md). A plan takes one pass, needs no budget, and ranks all tokens of a text of any
    length.

    Args:
        policy (`KeepMaskPolicy`, in evaluation mode, `ArrayPolicy` or `OnnxPolicy`): Computes the plans.
        texts (`list[np.ndarray]`): Token ids `(num_tokens,)` of each text.
        rates (`list[float]`): The policy's input rate for each text.
        features (`list[np.ndarray]`, *optional*): Features `(num_tokens, NUM_FEATURES)` of each text, for a policy
            with word features.

    Returns:
        `list[np.ndarray]`: Unbounded float32 logits `(num_tokens,)` of each text; the highest are kept.

    Raises:
        `ValueError`: If a score is not finite.
    """
    lengths = [len(text) for text in texts]
    ids = np.concatenate([*texts, np.zeros(0, np.int64)]).astype(np.int64)
    scores = np.zeros(len(ids), dtype=np.float32)
    bases = np.cumsum([0, *lengths])
    size = (WINDOW, MARGIN) if policy.reach is None or policy.reach > _WIDEST else (_LONG_WINDOW, policy.reach)
    tables = [layout(length, *size) for length in lengths]
    windows = np.concatenate([np.zeros((0, 4), int), *(table + base for table, base in zip(tables, bases))])
    window_rates = np.repeat(rates, [len(table) for table in tables])
    own = None
    if features is not None:  # slices, because a copy of all features would take much of the memory
        own = [told[first:end] for table, told in zip(tables, features) for first, end, *_ in table]
    for rows in _batches(windows[:, 1] - windows[:, 0]):
        told = None if own is None else [own[row] for row in rows]
        _score_rows(policy, ids, windows[rows], window_rates[rows], scores, told)
    if not np.isfinite(scores).all():  # sorting nan would keep the order of the text, and only truncate it
        raise ValueError(
            "The model's scores are not finite: its weights hold nan or infinity, or its precision is too low for them. Load it in "
            "float32 (`dtype=None`), or save it again."
        )
    return [scores[base : base + length] for base, length in zip(bases, lengths)]


def _batches(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of rows of similar length, to reduce padding."""
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
    features: list[np.ndarray] | None,
) -> None:
    """Score one batch of windows, and write the used parts to `scores`; `features` are those of each window."""
    starts, ends, first, last = (column[:, None] for column in windows.T)
    longest = max((ends - starts).max(), _SHORTEST)
    place = starts + np.arange(-(-longest // TOGETHER) * TOGETHER)
    valid = place < ends
    within = np.minimum(place, len(ids) - 1)
    told = None
    if features is not None:
        told = np.zeros((*place.shape, features[0].shape[1]), dtype=np.float32)
        for row, of_window in zip(told, features):
            row[: len(of_window)] = of_window
    plan = policy.plan_arrays(ids[within], valid, rates, told)
    own = (place >= first) & (place < last)
    scores[place[own]] = np.round(plan[own] * _STEPS) / _STEPS
