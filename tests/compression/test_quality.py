"""The quality floor: by hand, on data whose coverage is known, and through `compress`."""

import shutil

import numpy as np
import pytest

from tokforget.compression.compressor import Compressor
from tokforget.compression.quality import Calibration, calibrate, smallest_share, token_worth
from tokforget.packaged import forget_model_path


TEXT = "The meeting has been moved to Tuesday, 3 pm, in room B12. Please bring the report, and the signed forms. " * 3


def test_the_worth_from_which_a_quality_holds():
    shares = [0.3, 0.5, 0.7, 0.9]
    assert smallest_share(shares, [0.2, 0.85, 0.7, 0.95], 0.8) == 0.9  # 0.5 was luck: 0.7 is below again
    assert smallest_share(shares, [0.9, 0.85, 0.9, 0.95], 0.8) == 0.3
    assert smallest_share(shares, [0.9, 0.85, 0.9, 0.7], 0.8) == 1.0
    assert smallest_share(shares[::-1], [0.95, 0.7, 0.85, 0.2], 0.8) == 0.9


def test_the_threshold_is_the_right_order_statistic():
    # Text i needs 0.1 * i: of nine texts and a risk of 0.2 the eighth smallest.
    shares = np.tile(np.arange(1, 11) / 10, (9, 1))
    retentions = (shares >= np.arange(1, 10)[:, None] / 10 - 1e-9).astype(float)
    found = calibrate(shares, retentions, 0.2, "reader")
    assert found.needed(0.9) == pytest.approx(0.8)
    assert found.needed(0.96) is None  # not calibrated so high
    with pytest.raises(ValueError, match="at least 9 are needed"):
        calibrate(shares[:5], retentions[:5], 0.1, "reader")


def test_promises_are_broken_as_seldom_as_said():
    generator = np.random.default_rng(0)

    def texts(number):
        shares = np.sort(generator.uniform(0.2, 1.0, (number, 8)), 1)
        return shares, np.clip(shares + generator.normal(0, 0.1, (number, 8)), 0, 1.2)

    broken = []
    for _ in range(200):
        needed = calibrate(*texts(60), 0.1, "reader").needed(0.7)
        shares, retentions = texts(40)
        for share, retention in zip(shares, retentions):
            above = share >= (1.0 if needed is None else needed)
            broken.append(above.any() and retention[above][0] < 0.7)
    assert np.mean(broken) <= 0.1


def test_what_is_expected_rises_with_what_is_kept():
    generator = np.random.default_rng(1)
    shares = generator.uniform(0, 1, (50, 6))
    found = calibrate(shares, shares + generator.normal(0, 0.2, shares.shape), 0.1, "reader")
    expected = [found.expected(worth) for worth in np.linspace(0, 1, 30)]
    assert expected == sorted(expected) and expected[0] == 0.0 and expected[-1] == 1.0


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(forget_model_path(), tmp_path / "model")


def with_calibration(folder, thresholds) -> Compressor:
    Calibration(0.1, 100, "reader", thresholds, [(0.0, 0.0), (1.0, 1.0)]).save(folder)
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
    whole = compressor.compress(TEXT, quality=0.95)
    assert whole.text == TEXT and whole.returned_whole == "quality"


def test_protected_text_stays_whatever_the_quality(folder):
    compressor = with_calibration(folder, [(0.9, 0.05)])
    result = compressor.compress(TEXT, quality=0.5, unit="word", protect=["numbers"])
    assert result.text.count("B12") == 3 and result.compression_rate < 0.5


def test_what_cannot_be_promised_is_an_error_that_says_what_to_do(folder):
    compressor = Compressor.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"recipes/calibrate_quality.py"):
        compressor.compress(TEXT, quality=0.9)
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
