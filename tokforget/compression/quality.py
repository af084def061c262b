"""
A quality floor: the shortest text for which a reader's retention is guaranteed, by calibration on held-out texts.

Every token has a worth, computed from its score. The *worth kept* is the share of a text's total worth in the output.
For each calibration text the smallest worth kept is known from which on a reader's retention stays above a quality.
The threshold is a quantile of these values, so that a new text of the same kind falls below the quality with a
probability of at most `risk`.

Source: split conformal prediction, Papadopoulos et al. 2002; Angelopoulos and Bates 2021, 2107.07511.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tokforget.files import CALIBRATION, write_json


# Calibrated qualities; between two of them the threshold of the higher one applies.
QUALITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
# Divisor of the logits, which spread over about 5 on either side. Without it a few words would have nearly all of the
# worth, and qualities could not be distinguished: over 128 texts a quality of 0.5 needed a share of .991, one of 0.9 a
# share of .999995.
_SOFTNESS = 8.0


@dataclass(frozen=True)
class Calibration:
    """
    The calibration of a model.

    Args:
        risk (`float`): Highest probability that a text like those of the calibration falls below its quality.
        num_texts (`int`): Texts of the calibration.
        reader (`str`): The reader whose retention was measured.
        thresholds (`list`): `(quality, needed worth)`; `None` if only the whole text reaches the quality.
        curve (`list`): `(worth kept, mean retention)`, rising: the expected retention.
    """

    risk: float
    num_texts: int
    reader: str
    thresholds: list[tuple[float, float | None]]
    curve: list[tuple[float, float]]

    def needed(self, quality: float) -> float | None:
        """The worth that must be kept for a quality; `None` if only the whole text reaches it."""
        for level, worth in self.thresholds:
            if level >= quality - 1e-9:
                return worth
        return None

    def expected(self, worth: float) -> float:
        """Mean retention of the calibration texts at this worth kept."""
        shares, retentions = zip(*self.curve)
        return float(np.interp(worth, shares, retentions))

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder, CALIBRATION), asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> "Calibration":
        """
        Load the calibration of a model folder.

        Raises:
            `ValueError`: If the folder has no calibration, or a broken one.
        """
        path = Path(folder, CALIBRATION)
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {CALIBRATION}, so that no quality can be promised: pass `rate`, or calibrate the model with "
                "recipes/calibrate_quality.py."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            pairs = {name: [tuple(pair) for pair in content[name]] for name in ("thresholds", "curve")}
            return cls(float(content["risk"]), int(content["num_texts"]), str(content["reader"]), **pairs)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no calibration: {error}.") from error


def token_worth(logits: np.ndarray) -> np.ndarray:
    """The worth of each token `(T,)`: its keep logit through a softplus, so that it is positive."""
    return np.logaddexp(0.0, np.asarray(logits, dtype=np.float64) / _SOFTNESS)


def smallest_share(shares: Sequence[float], retentions: Sequence[float], quality: float) -> float:
    """
    The smallest worth kept from which on a text's retention stays above the quality; 1 if only the whole text reaches
    it. It is always a measured point, because retention between two points is unknown.
    """
    order = np.argsort(shares)
    found = 1.0
    for place in reversed(order):
        if retentions[place] < quality:
            break
        found = float(shares[place])
    return found


def calibrate(shares: np.ndarray, retentions: np.ndarray, risk: float, reader: str) -> Calibration:
    """
    Calibrate a model from measurements.

    Args:
        shares (`np.ndarray` of shape `(num_texts, num_rates)`): Worth kept of each text at several rates.
        retentions (`np.ndarray` of the same shape): Retention of each text at these rates.
        risk (`float`): Highest probability that a text falls below its quality, in (0, 1).
        reader (`str`): Name of the reader.

    Returns:
        [`Calibration`]: Thresholds and expected retention.

    Raises:
        `ValueError`: If there are too few texts for this risk.
    """
    num_texts = len(shares)
    rank = math.ceil((num_texts + 1) * (1 - risk))
    if rank > num_texts:
        raise ValueError(
            f"{num_texts} texts cannot show a risk of {risk}; at least {math.ceil(1 / risk) - 1} are needed."
        )
    thresholds: list[tuple[float, float | None]] = []
    for quality in QUALITIES:
        needed = np.sort([smallest_share(s, r, quality) for s, r in zip(shares, retentions)])[rank - 1]
        thresholds.append((quality, None if needed >= 1.0 else float(needed)))
    return Calibration(risk, num_texts, reader, thresholds, _rising(shares.ravel(), retentions.ravel()))


def _rising(shares: np.ndarray, retentions: np.ndarray) -> list[tuple[float, float]]:
    """
    Mean retention in twenty equal bins of the shares, made monotone (pool adjacent violators), from 0 to the whole
    text.
    """
    order = np.argsort(shares)
    parts = [part for part in np.array_split(order, 20) if len(part)]
    blocks = [[float(shares[p].mean()), float(np.clip(retentions[p], 0, 1).mean()), len(p)] for p in parts]
    merged: list[list[float]] = []
    for block in blocks:
        merged.append(list(block))
        while len(merged) > 1 and merged[-2][1] > merged[-1][1]:
            x, y, n = merged.pop()
            a, b, m = merged[-1]
            merged[-1] = [(a * m + x * n) / (m + n), (b * m + y * n) / (m + n), m + n]
    return [(0.0, 0.0), *((round(x, 4), round(y, 4)) for x, y, _ in merged), (1.0, 1.0)]
