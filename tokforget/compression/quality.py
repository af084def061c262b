"""
A quality floor: the shortest text for which a reader's retention is guaranteed, by calibration on held-out texts.

Every token has a worth, computed from its score. The *worth kept* is the share of a text's total worth in the output.
Held-out texts are compressed to several levels of worth kept, and a reader's retention is measured at each. From the
highest level downwards, a binomial test rejects that more than a share `risk` of all such texts falls below the quality.
The threshold is the lowest level before the first that is not rejected. For every quality and risk the guarantee holds
with probability `CONFIDENCE` over the draw of the held-out texts.

Source: Learn then Test with a fixed sequence, Angelopoulos et al. 2021, arXiv 2110.01052.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tokforget.files import CALIBRATION, write_json


# Calibrated qualities and risks; between two of them the threshold of the higher quality and of the lower risk applies.
QUALITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
RISKS = (0.05, 0.1, 0.2, 0.3, 0.5)
CONFIDENCE = 0.9
# The default of `risk`.
RISK = 0.1
# Logits spread over about 5 on either side. Taken as they are, a few words would hold all of the worth, and what the rest is worth
# to a reader could not be told: of 128 texts a quality of 0.5 took a share of .991, one of 0.9 of .999995.
_SOFTNESS = 8.0


@dataclass(frozen=True)
class Calibration:
    """
    The calibration of a model.

    Args:
        num_texts (`int`): Texts of the calibration.
        reader (`str`): The reader whose retention was measured.
        thresholds (`dict`): For each risk (highest share of texts below the quality), a list of `(quality, needed
            worth)`; `None` if only the whole text reaches the quality.
        curve (`list`): `(worth kept, mean retention)`, rising: the expected retention.
    """

    num_texts: int
    reader: str
    thresholds: dict[float, list[tuple[float, float | None]]]
    curve: list[tuple[float, float]]

    def needed(self, quality: float, risk: float) -> float | None:
        """
        The worth that must be kept for a quality; `None` if only the whole text reaches it.

        Raises:
            `ValueError`: If no risk as low as `risk` was calibrated.
        """
        calibrated = [one for one in sorted(self.thresholds) if one <= risk + 1e-9]
        if not calibrated:
            raise ValueError(
                f"`risk` must be at least {min(self.thresholds)}, the lowest that this model is calibrated for, got {risk}: more "
                "texts in recipes/calibrate_quality.py can show a lower one."
            )
        for level, worth in self.thresholds[calibrated[-1]]:
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
            thresholds = content["thresholds"]
            if isinstance(thresholds, list):  # written when a calibration was for one risk
                thresholds = {content["risk"]: thresholds}
            thresholds = {float(risk): [tuple(pair) for pair in pairs] for risk, pairs in thresholds.items()}
            curve = [tuple(pair) for pair in content["curve"]]
            return cls(int(content["num_texts"]), str(content["reader"]), thresholds, curve)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no calibration: {error}.") from error


def token_worth(logits: np.ndarray) -> np.ndarray:
    """The worth of each token `(T,)`: its keep logit through a softplus, so that it is positive."""
    return np.logaddexp(0.0, np.asarray(logits, dtype=np.float64) / _SOFTNESS)


def most_broken(num_texts: int, risk: float, confidence: float = CONFIDENCE) -> int:
    """
    The critical value of the test: the most of `num_texts` texts that may fall below a quality. It is the largest `k` with
    P(Binomial(num_texts, risk) <= k) <= 1 - confidence; -1 if there is none.
    """
    found, chance = -1, 0.0
    for k in range(num_texts + 1):
        ways = math.lgamma(num_texts + 1) - math.lgamma(k + 1) - math.lgamma(num_texts - k + 1)
        chance += math.exp(ways + k * math.log(risk) + (num_texts - k) * math.log1p(-risk))
        if chance > 1 - confidence:
            return found
        found = k
    return found


def calibrate(levels: Sequence[float], shares: np.ndarray, retentions: np.ndarray, reader: str) -> Calibration:
    """
    Calibrate a model from measurements.

    Args:
        levels (`Sequence[float]`): Least worth kept, rising.
        shares (`np.ndarray` of shape `(num_texts, num_levels)`): Worth kept of each text at each level.
        retentions (`np.ndarray` of the same shape): Retention of each text at each level.
        reader (`str`): Name of the reader.

    Returns:
        [`Calibration`]: Thresholds and expected retention.

    Raises:
        `ValueError`: If there are too few texts for every risk.
    """
    num_texts = len(shares)
    allowed = {risk: most_broken(num_texts, risk) for risk in RISKS}
    thresholds: dict[float, list[tuple[float, float | None]]] = {}
    for risk in (risk for risk, number in allowed.items() if number >= 0):
        thresholds[risk] = []
        for quality in QUALITIES:
            threshold = None
            for place in reversed(range(len(levels))):
                if (retentions[:, place] < quality).sum() > allowed[risk]:
                    break
                threshold = float(levels[place])
            thresholds[risk].append((quality, threshold))
    if not thresholds:
        raise ValueError(f"{num_texts} texts cannot show a risk of even {max(RISKS)}: take more, at least 100.")
    return Calibration(num_texts, reader, thresholds, _rising(shares.ravel(), retentions.ravel()))


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
