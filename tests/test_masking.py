"""Budgets and selections."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokforget.masking import keep_count, random_keep_mask, row_noise, seeded_generator, top_k_mask
from tokforget.rates import allowed_tokens, check_rate
from tokforget.training.random_masks import MASK_KINDS, draw_kinds, draw_rates, draw_scores


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


@given(st.lists(st.integers(0, 2_000_000), min_size=1), st.floats(1e-6, 1.0))
def test_plain_numbers_allow_what_tensors_do(num_tokens, rate):
    assert allowed_tokens(np.array(num_tokens), rate).tolist() == keep_count(torch.tensor(num_tokens), rate).tolist()
    assert int(allowed_tokens(num_tokens[0], rate)) == int(keep_count(torch.tensor(num_tokens[:1]), rate))


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


# -- noise of each row ---------------------------------------------------------------------------------------------------
def test_a_row_with_its_own_generator_knows_neither_padding_nor_neighbours():
    lengths = [5, 2, 0, 7]

    def noise(rows: list[int], width: int, draw=torch.rand) -> torch.Tensor:
        valid = torch.arange(width) < torch.tensor([[lengths[row]] for row in rows])
        return row_noise(valid, [seeded_generator(9, row) for row in rows], draw)

    for draw in (torch.rand, torch.randn):
        together = noise([0, 1, 2, 3], 7, draw)
        for row, length in enumerate(lengths):
            alone = noise([row], 12, draw)[0]
            assert torch.equal(alone[:length], together[row, :length]) and not alone[length:].any()
    assert not torch.equal(together[0, :2], together[1, :2])


def test_a_generator_that_serves_two_rows_goes_on():
    valid = torch.ones(2, 3, dtype=torch.bool)
    own = seeded_generator(1, 2)
    assert torch.equal(row_noise(valid, [own, own]).flatten(), torch.rand(6, generator=seeded_generator(1, 2)))


def test_neighbouring_seeds_give_unrelated_numbers():
    first = torch.stack([torch.rand(2, generator=seeded_generator(0, n)) for n in range(2000)])
    # Standard error of a mean of 2,000 uniforms 0.0065, of a correlation 0.022.
    assert torch.allclose(first.mean(0), torch.tensor(0.5), atol=0.03)
    assert abs(torch.corrcoef(torch.stack([first[:-1, 0], first[1:, 0]]))[0, 1]) < 0.1


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_scores_with_a_generator_per_row_do_not_hang_on_the_rest_of_the_batch(kind):
    valid = torch.ones(3, 9, dtype=torch.bool)
    surprisal = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) * 8

    def scores(kinds: list[str]) -> torch.Tensor:
        return draw_scores(kinds, valid, surprisal, [seeded_generator(4, row) for row in range(3)])[1]

    assert torch.equal(scores(["random", kind, "span"]), scores(["frequency", kind, "frequency"]))


# -- masks to train on -------------------------------------------------------------------------------------------------
def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("num_texts", "weights", "counts"), [
    (16, [1.0, 1.0, 2.0], [{4}, {4}, {8}]),
    (5, [1.0, 1.0, 1.0], [{1, 2}] * 3),
    (1, [3.0, 1.0], [{0, 1}] * 2),
])  # fmt: skip
def test_kinds_come_in_their_shares_in_every_batch(num_texts, weights, counts):
    names = MASK_KINDS[: len(weights)]
    totals, draws = dict.fromkeys(names, 0), 400
    for seed in range(draws):
        kinds = draw_kinds(num_texts, names, weights, generator(seed))
        assert len(kinds) == num_texts
        for name, allowed in zip(names, counts):
            assert kinds.count(name) in allowed
            totals[name] += kinds.count(name)
    for name, weight in zip(names, weights):
        # Shares of 400 draws: standard error at most 0.025
        assert totals[name] / (draws * num_texts) == pytest.approx(weight / sum(weights), abs=0.08)


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_every_kind_meets_the_budget_exactly_and_is_nested(kind):
    valid = torch.arange(40) < torch.tensor([[40], [23], [2], [1]])
    surprisal = torch.rand(4, 40, generator=generator()) * 8
    scores = draw_scores([kind] * 4, valid, surprisal, generator(1))
    smaller = None
    for rate in (0.2, 0.5, 0.77):
        counts = keep_count(valid.sum(1), rate)
        mask = top_k_mask(scores, counts, valid)
        assert torch.equal(mask.sum(1), counts) and not (mask & ~valid).any()
        assert smaller is None or not (smaller & ~mask).any()
        smaller = mask


def test_spans_are_longer_than_chance_and_rare_tokens_are_kept():
    valid = torch.ones(600, 60, dtype=torch.bool)
    surprisal = torch.where(torch.arange(60) % 2 == 0, 4.0, 10.0).expand(600, -1)
    counts = torch.full((600,), 30)
    masks = {
        kind: top_k_mask(draw_scores([kind] * 600, valid, surprisal, generator(2)), counts, valid)
        for kind in MASK_KINDS
    }
    runs = {kind: (mask[:, 1:] != mask[:, :-1]).sum(1).float().mean() + 1 for kind, mask in masks.items()}
    # Half of 60 at random: 1 + 59 * 0.51 runs. In segments of 3: a change at a third of those places.
    assert runs["random"] == pytest.approx(31, abs=0.7) and runs["span"] == pytest.approx(11, abs=1)
    # Six bits apart under three bits of noise each: the rare one wins with probability 0.92 pairwise.
    assert masks["frequency"][:, 1::2].float().mean() > 0.8
    assert masks["random"].float().mean(0).std() < 0.04, "no place is favoured"
    assert masks["span"].float().mean(0).std() < 0.04


def test_a_mixed_batch_draws_each_row_by_its_kind():
    valid = torch.ones(300, 40, dtype=torch.bool)
    surprisal = torch.where(torch.arange(40) % 2 == 0, 0.0, 12.0).expand(300, -1)
    scores = draw_scores(["random", "span", "frequency"] * 100, valid, surprisal, generator())
    mask = top_k_mask(scores, torch.full((300,), 20), valid)
    odd = mask[:, 1::2].float().mean(1)
    assert odd[2::3].min() > 0.7 and abs(odd[::3].mean() - 0.5) < 0.05
    changes = (mask[:, 1:] != mask[:, :-1]).sum(1).float()
    assert changes[1::3].mean() < 0.6 * changes[::3].mean()


def test_rates_lie_in_their_range():
    rates = draw_rates(4000, 0.2, 0.8, generator())
    assert rates.min() >= 0.2 and rates.max() < 0.8
    assert rates.mean() == pytest.approx(0.5, abs=0.01)
