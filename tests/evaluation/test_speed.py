"""The speed measurement's arithmetic, by hand and on a tiny target: what is counted, never how fast it is."""

import pytest
import torch

from tests.conftest import make_gpt2
from tokforget.evaluation.baselines import Head, Position
from tokforget.evaluation.speed import answer, break_even, measure_speed, median_seconds, peak_bytes


@pytest.fixture(scope="module")
def target():
    return make_gpt2(200).eval()


def test_an_answer_with_cache_is_that_without(target):
    ids = torch.randint(1, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    tokens = answer(target, ids, 3)
    plain = ids
    for _ in range(3):
        plain = torch.cat([plain, target(plain).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(tokens, plain[:, 9:])


def test_the_first_run_is_not_counted():
    calls = []
    assert median_seconds(lambda: calls.append(1), repeats=3, device=torch.device("cpu")) >= 0
    assert len(calls) == 4


def test_peak_memory_sees_what_is_allocated():
    peak = peak_bytes(lambda: torch.ones(32 * 2**20).sum().item(), torch.device("cpu"))
    if peak is None:
        pytest.skip("this system keeps no high-water mark that can be reset")
    assert 100 * 2**20 < peak < 400 * 2**20  # 128 MB


def test_rows_name_what_was_timed(target):
    rows = measure_speed([Head(), Position()], target, list(range(1, 130)), [16, 32], 0.5, 3, (1, 2), repeats=1)
    assert [(r["scorer"], r["tokens"], r["batch_size"]) for r in rows[:3]] == [
        ("none", 16, 1), ("head", 16, 1), ("position", 16, 1),
    ]  # fmt: skip
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        if row["scorer"] != "none":
            assert row["kept_tokens"] == row["tokens"] // 2
            assert row["first_token_seconds"] > row["compress_seconds"] > 0
            assert row["total_seconds"] > row["compress_seconds"]
    with pytest.raises(ValueError, match="needs 128 tokens of text, got 10"):
        measure_speed([Head()], target, list(range(10)), [64], 0.5, 3, (2,), repeats=1)


def _rows(compress_fixed: float, compress_per_token: float) -> list[dict]:
    """Full: 0.01 s + 1 ms a token, 5 ms per new token; compressed to half, 4 ms per new token."""
    rows = []
    for tokens in (100, 200, 400):
        first = 0.01 + 1e-3 * tokens
        own = 0.01 + 0.5e-3 * tokens + compress_fixed + compress_per_token * tokens
        common = {"tokens": tokens, "batch_size": 1, "new_tokens": 11}
        rows.append({"scorer": "none", "first_token_seconds": first, "total_seconds": first + 0.05, **common})
        rows.append({"scorer": "c", "first_token_seconds": own, "total_seconds": own + 0.04, **common})
    return rows


def test_break_even_by_hand():
    # saved: 0.5 ms - 0.1 ms per token, less 0.02 s: from 50 tokens on
    even = break_even(_rows(0.02, 1e-4), "c")
    assert even["break_even_tokens"] == pytest.approx(50)
    # at 400 tokens: full 0.41 s, own 0.27 s; 1.1 * 4 ms < 5 ms, so the lead only grows
    assert even["worthwhile_new_tokens"] is None
    assert break_even(_rows(0.02, 6e-4), "c")["break_even_tokens"] is None
    assert break_even(_rows(0.0, 0.0), "c")["break_even_tokens"] == pytest.approx(0, abs=1e-6)


def test_the_longest_worthwhile_output_by_hand():
    rows = _rows(0.02, 1e-4)
    for row in rows:
        if row["scorer"] == "c":
            row["total_seconds"] += 0.01  # 5 ms per new token for both
    # 0.41 + 0.005 n = 1.1 (0.27 + 0.005 n): n = 0.113 / 0.0005 = 226 after the first
    assert break_even(rows, "c")["worthwhile_new_tokens"] == pytest.approx(227)
