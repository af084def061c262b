"""Bootstrap confidence intervals over texts."""

import numpy as np


_DRAWS = 2000


def bootstrap_interval(values: np.ndarray, weights: np.ndarray, seed: int, draws: int = _DRAWS) -> tuple[float, float]:
    """95 % interval of `sum(values) / sum(weights)` over texts drawn with replacement."""
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    totals = weights[picks].sum(1)
    ratios = values[picks].sum(1)[totals > 0] / totals[totals > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def ratio_interval(values: np.ndarray, weights: np.ndarray, seed: int) -> tuple[float, float] | None:
    """
    As [`bootstrap_interval`], for weights whose sum may be zero or negative in a draw. `None` if more than 2.5 % of
    the draws are like that, because the ratio then has no interval.
    """
    picks = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
    totals = weights[picks].sum(1)
    return bootstrap_interval(values, weights, seed) if (totals > 0).mean() > 0.975 else None
