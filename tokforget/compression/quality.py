"""
A quality floor: the shortest text for which a reader's retention is promised, by calibration on held-out texts.

A text's words have scores; the *worth kept* is the share of their summed worth that an output holds. For each calibration text
it is known how much has to be kept until what a reader can still look up never falls below a quality again. The floor's
threshold is a quantile of that, so that a new text of the same kind falls below the quality with a probability of at most `risk`
(split conformal prediction, Papadopoulos et al. 2002; Angelopoulos and Bates 2021, 2107.07511).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tokforget.files import write_json


CALIBRATION = "calibration.json"
# Qualities that are calibrated; between two of them the higher one's threshold holds.
QUALITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
# Logits spread over about 5 on either side. Taken as they are, a few words would hold all of the worth, and what the rest is worth
# to a reader could not be told: of 128 texts a quality of 0.5 took a share of .991, one of 0.9 of .999995.
_SOFTNESS = 8.0


@dataclass(frozen=True)
class Calibration:
    """
    Args:
        risk (`float`): Probability that a promise is broken, at most, for a text like those of the calibration.
        num_texts (`int`): Texts of the calibration.
        reader (`str`): Whose retention is promised.
        thresholds (`list`): `(quality, worth kept that it takes)`; a worth of `None` cannot be promised.
        curve (`list`): `(worth kept, mean retention)`, rising: what is expected.
    """

    risk: float
    num_texts: int
    reader: str
    thresholds: list[tuple[float, float | None]]
    curve: list[tuple[float, float]]

    def needed(self, quality: float) -> float | None:
        """Worth that has to be kept for a quality; `None` where only the whole text will do."""
        for level, worth in self.thresholds:
            if level >= quality - 1e-9:
                return worth
        return None

    def expected(self, worth: float) -> float:
        """Mean retention of calibration texts of which so much worth was kept."""
        shares, retentions = zip(*self.curve)
        return float(np.interp(worth, shares, retentions))

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder, CALIBRATION), asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> "Calibration":
        """
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
    """What each token adds to the worth of a text `(T,)`, positive: its keep score, floored softly at zero."""
    return np.logaddexp(0.0, np.asarray(logits, dtype=np.float64) / _SOFTNESS)


def smallest_share(shares: Sequence[float], retentions: Sequence[float], quality: float) -> float:
    """
    The worth from which on a text's retention never falls below the quality again; 1 if only the whole text will do. Between
    two points that were measured the upper one is taken: nothing is known of what lies between.
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
    Args:
        shares (`np.ndarray` of shape `(num_texts, num_rates)`), retentions (of the same shape): Worth kept, and what a reader
            could still look up, of each text at several rates.
        risk (`float`): In (0, 1).

    Raises:
        `ValueError`: If there are too few texts to promise anything at this risk.
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
    """Mean retention in twenty equal parts of the shares, made to rise (pool adjacent violators), from 0 to the whole text."""
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
