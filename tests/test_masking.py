"""Budgets and selections."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokforget.masking import check_rate, keep_count, random_keep_mask, top_k_mask


@given(st.integers(1, 3000), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_count_never_exceeds_the_budget_and_is_monotone(num_tokens, rate, other):
    tokens = torch.tensor([num_tokens])
    count, other_count = int(keep_count(tokens, rate)), int(keep_count(tokens, other))
    assert 1 <= count <= num_tokens
    assert count <= max(1, rate * num_tokens * (1 + 1e-5) + 1e-5)
    assert count > rate * num_tokens - 1 - 1e-6
    assert (count <= other_count) if rate <= other else (count >= other_count)


@pytest.mark.parametrize(
    ("num_tokens", "rate", "count"), [(100, 0.29, 29), (10, 0.7, 7), (3, 0.5, 1), (1, 0.01, 1), (0, 0.5, 0)]
)
def test_count_by_hand(num_tokens, rate, count):
    tokens = torch.tensor([num_tokens])
    assert int(keep_count(tokens, rate)) == count
    assert int(keep_count(tokens, torch.tensor([rate], dtype=torch.float32))) == count, (
        "a float32 rate is the same rate"
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40))
def test_the_kept_are_the_highest(seed, num_tokens, length):
    length = min(length, num_tokens)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (2, num_tokens), generator=generator).float()  # many ties
    valid = torch.arange(num_tokens).expand(2, -1) < length
    counts = torch.randint(0, length + 1, (2,), generator=generator)
    mask = top_k_mask(scores, counts, valid)
    assert torch.equal(mask.sum(1), counts)
    assert not (mask & ~valid).any()
    for row in range(2):
        kept, dropped = scores[row][mask[row]], scores[row][valid[row] & ~mask[row]]
        assert len(kept) == 0 or len(dropped) == 0 or kept.min() >= dropped.max()


def test_ties_go_to_the_earlier_token_and_minus_infinity_beats_padding():
    valid = torch.tensor([[True, True, True, False]])
    assert top_k_mask(torch.zeros(1, 4), torch.tensor([2]), valid).tolist() == [[True, True, False, False]]
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf, 9.0]])
    assert top_k_mask(scores, torch.tensor([2]), valid).tolist() == [[True, True, False, False]]


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="nan"):
        top_k_mask(torch.tensor([[torch.nan, 1.0]]), torch.tensor([1]), torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("rate", [0.0, -0.1, 4.0, float("nan")])
def test_a_rate_outside_its_range_says_what_to_do(rate):
    with pytest.raises(ValueError, match="fraction of tokens kept"):
        check_rate(rate)


def test_random_masks_are_uniform():
    valid = torch.ones(4000, 6, dtype=torch.bool)
    mask = random_keep_mask(torch.full((4000,), 2), valid, torch.Generator().manual_seed(0))
    # 4,000 draws at 1/3: standard error 0.0075
    assert torch.allclose(mask.float().mean(0), torch.tensor(1 / 3), atol=0.03)
