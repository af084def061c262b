"""The quality floor: by hand, on data whose coverage is known, and through `compress`."""

import json
import shutil
import statistics

import numpy as np
import pytest

from tokforget.compression.compressor import Compressor
from tokforget.compression.quality import Calibration, calibrate, most_broken, token_worth
from tokforget.packaged import forget_model_path


TEXT = "The meeting has been moved to Tuesday, 3 pm, in room B12. Please bring the report, and the signed forms. " * 3


@pytest.mark.parametrize(
    "num_texts, risk, number", [(22, 0.1, 0), (21, 0.1, -1), (200, 0.1, 14), (3, 0.5, -1), (4, 0.5, 0)]
)
def test_so_many_may_be_broken(num_texts, risk, number):
    # By hand: 0.9 ** 22 = .098, 0.9 ** 21 = .109; 0.5 ** 3 = .125, 0.5 ** 4 = .0625. Of 200: by a table of the binomial.
    assert most_broken(num_texts, risk, 0.9) == number
    assert most_broken(20_000, 0.1) in range(1900, 2000)  # no overflow


def test_the_threshold_is_the_lowest_before_too_many_are_broken():
    levels = [0.3, 0.5, 0.7, 0.9]
    assert most_broken(60, 0.1) == 2
    broken = {0.9: 0, 0.7: 2, 0.5: 3, 0.3: 0}  # 0.3 was luck: 0.5 is broken before
    retentions = np.ones((60, 4))
    for place, level in enumerate(levels):
        retentions[: broken[level], place] = 0.6
    found = calibrate(levels, np.tile(levels, (60, 1)), retentions, "reader")
    assert found.needed(0.7, 0.1) == 0.7 and found.needed(0.6, 0.1) == 0.3
    assert found.needed(0.7, 0.15) == 0.7, "the lower risk holds between two"
    assert found.needed(0.7, 0.2) == 0.3  # seven of sixty may be
    assert found.needed(0.96, 0.1) is None  # not calibrated so high
    with pytest.raises(ValueError, match="`risk` must be at least 0.05, .* got 0.01"):
        found.needed(0.7, 0.01)
    retentions[:3, 3] = 0.6
    assert calibrate(levels, np.tile(levels, (60, 1)), retentions, "reader").needed(0.7, 0.1) is None
    with pytest.raises(ValueError, match="3 texts cannot show a risk of even 0.5"):
        calibrate(levels, np.ones((3, 4)), np.ones((3, 4)), "reader")


def test_promises_are_broken_as_seldom_as_said():
    """Of 400 calibrations at most a tenth, and what chance adds to that, gives a threshold that is broken too often."""
    generator = np.random.default_rng(0)
    levels = np.linspace(0.5, 0.95, 10)
    noise = statistics.NormalDist(0, 0.1)
    for risk in (0.1, 0.5):
        wrong, needed = 0, []
        for _ in range(400):
            retentions = levels + generator.normal(0, 0.1, (100, 10))
            worth = calibrate(levels, np.tile(levels, (100, 1)), retentions, "reader").needed(0.7, risk)
            needed.append(1.0 if worth is None else worth)
            wrong += worth is not None and noise.cdf(0.7 - worth) > risk
        assert wrong / 400 <= 0.1 + 3 * (0.1 * 0.9 / 400) ** 0.5
        # 0.828 and 0.7 would do if the truth were known: not a tenth more than that is asked for.
        assert np.mean(needed) < {0.1: 0.828, 0.5: 0.7}[risk] + 0.1


def test_what_is_expected_rises_with_what_is_kept():
    generator = np.random.default_rng(1)
    shares = generator.uniform(0, 1, (50, 6))
    found = calibrate(np.arange(6) / 6, shares, shares + generator.normal(0, 0.2, shares.shape), "reader")
    expected = [found.expected(worth) for worth in np.linspace(0, 1, 30)]
    assert expected == sorted(expected) and expected[0] == 0.0 and expected[-1] == 1.0


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(forget_model_path(), tmp_path / "model")


def with_calibration(folder, thresholds) -> Compressor:
    Calibration(100, "reader", {0.1: thresholds, 0.3: [(1.0, 0.3)]}, [(0.0, 0.0), (1.0, 1.0)]).save(folder)
    return Compressor.from_pretrained(folder)


def test_a_quality_keeps_as_much_worth_as_it_takes_and_not_a_piece_more(folder):
    compressor = with_calibration(folder, [(0.7, 0.6), (0.9, 0.85), (0.95, None)])
    worth = token_worth(compressor.reference_logits(TEXT))
    kept = {}
    for quality, needed in ((0.65, 0.6), (0.9, 0.85)):
        result = compressor.compress(TEXT, quality=quality, unit="word")
        kept[quality] = worth[result.keep_mask].sum() / worth.sum()
        assert kept[quality] >= needed - 1e-9 and kept[quality] < needed + 0.1
        assert result.predicted_retention == pytest.approx(kept[quality], abs=1e-3) and result.returned_whole is None
        assert result.from_json(result.to_json()).predicted_retention == result.predicted_retention
    assert kept[0.65] < kept[0.9]
    assert compressor.compress(TEXT, quality=0.9, risk=0.3).compression_rate < 0.5
    whole = compressor.compress(TEXT, quality=0.95)
    assert whole.text == TEXT and whole.returned_whole == "quality"


def test_a_calibration_of_one_risk_from_before_is_read(folder):
    before = {
        "risk": 0.1,
        "num_texts": 9,
        "reader": "r",
        "thresholds": [[0.9, 0.8], [0.95, None]],
        "curve": [[0, 0], [1, 1]],
    }
    (folder / "calibration.json").write_text(json.dumps(before))
    found = Calibration.load(folder)
    assert found.needed(0.9, 0.1) == 0.8 and found.needed(0.95, 0.1) is None
    assert found.thresholds == {0.1: [(0.9, 0.8), (0.95, None)]}


def test_protected_text_stays_whatever_the_quality(folder):
    compressor = with_calibration(folder, [(0.9, 0.05)])
    result = compressor.compress(TEXT, quality=0.5, unit="word", protect=["numbers"])
    assert result.text.count("B12") == 3 and result.compression_rate < 0.5


def test_what_cannot_be_promised_is_an_error_that_says_what_to_do(folder):
    compressor = Compressor.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"recipes/calibrate_quality.py"):
        compressor.compress([], quality=0.9)
    (folder / "calibration.json").write_text('{"risk": 0.1}')
    with pytest.raises(ValueError, match="is no calibration"):
        Compressor.from_pretrained(folder).compress(TEXT, quality=0.9)
    compressor = with_calibration(folder, [(0.9, 0.5)])
    for options, message in (({"rate": 0.5}, "Pass one of"), ({"nested": True}, "sets a budget for each text"),
                             ({"budget": "corpus"}, "sets a budget for each text")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            compressor.compress(TEXT, quality=0.9, **options)
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        compressor.compress(TEXT, quality=1.5)
    for risk, message in ((0.0, r"`risk` must lie in \(0, 1\), got 0.0"), ("0.1", "`risk` must be a number"),
                          (0.01, "`risk` must be at least 0.1")):  # fmt: skip
        with pytest.raises(ValueError if risk != "0.1" else TypeError, match=message):
            compressor.compress(TEXT, quality=0.9, risk=risk)
    with pytest.raises(ValueError, match="`risk` says how often a `quality` may be missed: pass both"):
        compressor.compress(TEXT, rate=0.5, risk=0.3)
