"""Scorers at equal budgets, the table's arithmetic, and what a comparison can tell apart."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from tokforget import scoring
from tokforget.evaluation import comparison as evaluation
from tokforget.evaluation.baselines import (
    CLOSING_BASELINES,
    Frequency,
    Head,
    Length,
    Position,
    Random,
    ScorerContext,
    baselines,
)
from tokforget.evaluation.comparison import (
    Comparison,
    _check_equal_budgets,
    _shared_out,
    compare,
    judge,
    print_table,
    rows_of,
)
from tokforget.evaluation.scorers import Policy, select
from tokforget.evaluation.vocabulary import Vocabulary
from tokforget.files import write_json
from tokforget.intervals import bootstrap_interval
from tokforget.models.measuring import measure, summarise


NAMES = ["policy", "random", "frequency", "length", "position", "head", "self_information"]


@pytest.fixture
def scorers(model, tokenizer):
    training = [list(range(5, 25)), list(range(5, 15)), [7, 7, 7, 290]]
    return [
        Policy(model),
        *baselines(CLOSING_BASELINES, ScorerContext(model.reconstructor, tokenizer, training, seeds=[0])),
    ]


@pytest.fixture
def wide():
    ids = torch.randint(1, 299, (6, 30), generator=torch.Generator().manual_seed(1))
    valid = torch.arange(30) < torch.tensor([30, 30, 25, 17, 9, 4])[:, None]
    return ids.masked_fill(~valid, 0), valid


def test_one_row_per_scorer(scorers):
    assert [scorer.name for scorer in scorers] == NAMES


def test_the_policy_scorer_is_the_policy_mask(scorers, model, wide):
    model.eval()
    mask = model.keep_mask(wide[0], wide[1].long(), torch.full((6,), 0.3))
    assert torch.equal(select(scorers[0], *wide, 0.3), mask)


def test_baselines_by_hand(tokenizer):
    ids = torch.tensor([[5, 6, 7, 290, 8, 9]])
    valid = torch.ones_like(ids, dtype=torch.bool)
    frequency = Frequency([[5, 6, 7], [5, 6], [5]], 300)
    assert select(frequency, ids, valid, 0.5).tolist() == [[False, False, False, True, True, True]]
    assert select(Head(), ids, valid, 0.5).tolist() == [[True, True, True, False, False, False]]
    assert select(Position(), ids, valid, 0.5).tolist() == [[False, True, False, True, False, True]]
    long, short = (tokenizer(text)["input_ids"] for text in (" the", "a"))
    assert len(long) == len(short) == 1
    long, short = long[0], short[0]
    pair = torch.tensor([[short, long]])
    assert select(Length(Vocabulary(tokenizer, 300)), pair, pair.bool(), 0.5).tolist() == [[False, True]]


def test_position_is_evenly_spread():
    ids = torch.zeros(1, 100, dtype=torch.long)
    mask = select(Position(), ids, ids == 0, 0.3)[0]
    assert mask.view(10, 10).sum(1).tolist() == [3] * 10


def test_self_information_keeps_what_surprises(model, scorers, wide):
    bits = model.reconstructor.self_information(*wide)
    mask = select(scorers[-1], *wide, 0.5)
    for row in range(6):
        kept, dropped = bits[row][mask[row]], bits[row][~mask[row] & wide[1][row]]
        assert kept.min() >= dropped.max()


# -- the table ---------------------------------------------------------------------------------------------------------
def test_measure_and_summarise(model, wide):
    keep_mask = select(Random(0), *wide, 0.5)
    with torch.no_grad():
        nll = model.reconstructor.token_nll(wide[0], keep_mask, wide[1]).nll
    measured = measure(model.reconstructor, *wide, keep_mask)
    assert torch.allclose(measured[:, 0], nll.sum(1))
    assert torch.equal(measured[:, 2] + keep_mask.sum(1), wide[1].sum(1).float())
    summary = summarise(measured.double().numpy())
    assert summary["bits_lost"] == pytest.approx(float(nll.sum() / wide[1].sum()), rel=1e-5)
    assert summary["compression_rate"] == pytest.approx(float(keep_mask.sum() / wide[1].sum()))


def test_keeping_all_is_the_ceiling(model, wide):
    summary = summarise(measure(model.reconstructor, *wide, wide[1]).double().numpy())
    assert summary == {"bits_lost": 0.0, "exact_restored": 1.0, "compression_rate": 1.0}


def test_compare_is_paired_repeatable_and_prints(model, scorers, wide, capsys):
    batches = [(wide[0][:4], wide[1][:4]), (wide[0][4:, :9], wide[1][4:, :9])]
    rows = compare(scorers[:1] + scorers[2:4], model.reconstructor, batches, [0.3, 0.5])
    again = compare(scorers[:1] + scorers[2:4], model.reconstructor, batches, [0.3, 0.5])
    assert all(row.pop("seconds_per_token") > 0 for row in rows + again)
    assert rows == again, "one seed, one table"
    assert [(r["scorer"], r["rate"], r["texts"]) for r in rows[:2]] == [("policy", 0.3, 6), ("frequency", 0.3, 6)]
    for row in rows:
        low, high = row["bits_lost_interval"]
        assert low <= row["bits_lost"] <= high
        if row["scorer"] != "policy":
            policy = next(r for r in rows if r["scorer"] == "policy" and r["rate"] == row["rate"])
            assert row["excess_bits"] == pytest.approx(row["bits_lost"] - policy["bits_lost"])
            assert row["excess_exact"] == pytest.approx(row["exact_restored"] - policy["exact_restored"])
            low, high = row["excess_exact_interval"]
            assert low <= row["excess_exact"] <= high
    print_table(rows)
    assert "frequency" in capsys.readouterr().out


def test_an_unequal_budget_is_refused(model, wide, scorers):
    first, other = judge(scorers[:1], model.reconstructor, [wide], [0.5]) + judge(
        scorers[2:3], model.reconstructor, [wide], [0.5]
    )
    _check_equal_budgets([first, other])
    other.runs[0][0, 2] += 1
    with pytest.raises(AssertionError, match="frequency kept other counts than policy at rate 0.5"):
        _check_equal_budgets([first, other])


def test_repetitions_are_averaged_and_their_spread_is_told(model, wide):
    alone = [rows_of(judge([Random(seed)], model.reconstructor, [wide], [0.5]))[0]["bits_lost"] for seed in (0, 1, 2)]
    (row,) = rows_of(judge([Random(seed) for seed in (0, 1, 2)], model.reconstructor, [wide], [0.5]))
    assert row["runs"] == 3 and row["bits_lost_runs"] == pytest.approx(alone)
    assert row["bits_lost"] == pytest.approx(np.mean(alone))
    assert row["bits_lost_std"] == pytest.approx(np.std(alone, ddof=1))


def test_the_gap_closed_by_hand():
    """Random loses 4 bits, the oracle 1, the scorer 2: two thirds of the way."""
    tables = {"policy": 2.0, "random": 4.0, "greedy_oracle": 1.0}
    comparisons = [
        Comparison(name, 0.5, [np.array([[bits, 1.0, 2.0, 4.0]] * 3)], seconds=1.2) for name, bits in tables.items()
    ]
    rows = rows_of(comparisons)
    assert [row["oracle_gap_closed"] for row in rows] == pytest.approx([2 / 3, 0.0, 1.0])
    assert rows[0]["oracle_gap_closed_interval"] == pytest.approx((2 / 3, 2 / 3))
    assert rows[0]["seconds_per_token"] == pytest.approx(0.1)
    assert rows[1]["excess_bits"] == pytest.approx(0.5)


@pytest.mark.parametrize("num_batches", [5, 1])
def test_batches_are_dealt_out_and_put_together_in_order(num_batches, monkeypatch):
    """With real processes: tests/whole/test_launch.py. One of two processes may have nothing to do."""
    parts = [[[n] for n in range(process, num_batches, 2)] for process in (0, 1)]
    for process in (0, 1):
        state = SimpleNamespace(process_index=process, num_processes=2)
        monkeypatch.setattr(evaluation, "PartialState", lambda state=state: state)
        given: list[list] = []
        monkeypatch.setattr(evaluation, "gather_object", lambda own, given=given: given.extend(own) or parts)
        assert _shared_out(range(num_batches), lambda n: [n]) == [[n] for n in range(num_batches)]
        assert given == [parts[process]]


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        values, weights = rng.normal(2.0, 1.0, 60), np.ones(60)
        low, high = bootstrap_interval(values, weights, seed=trial, draws=400)
        hits += low <= 2.0 <= high
    assert hits >= 87, f"a 95 % interval covered {hits} times in 100"  # 87 lies 3.7 standard deviations below 95


def test_json_is_whole_or_not_there(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"value": 1.5})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"value": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a" / "x.json", {"value": float("nan")})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"value": 1.5}


def test_rate_and_ratio_come_from_totals():
    keep = torch.tensor([[True, False, False, False], [True, True, False, False]])
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    assert scoring.compression_rate(keep, valid).tolist() == [0.25, 1.0]
    assert scoring.compression_ratio(keep, valid) == 2.0
    with pytest.raises(ValueError, match="no token was kept"):
        scoring.compression_ratio(keep & False, valid)


def test_another_checkpoint_gives_other_numbers(base_folder, tokenizer, wide, model):
    other = make_model(base_folder, tokenizer, seed=9)
    rows = compare([Policy(model), Policy(other, "other")], model.reconstructor, [wide], [0.5])
    assert rows[0]["bits_lost"] != rows[1]["bits_lost"]
