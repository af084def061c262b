"""Rewards by hand, their order, and what a user's function may do."""

import pytest
import torch

from tests.training.test_episodes import episodes
from tokforget.training.rewards import REWARDS, WeightedRewards, exact_runs, information_theoretic, load_reward, simple


def test_information_theoretic_by_hand():
    batch = episodes([[4.0, 0.0], [0.0, 2.0]], [[False, True], [True, False]], keep_price=1.5)
    assert information_theoretic(batch).tolist() == [[-4.0, -1.5], [-1.5, -2.0]]


def test_simple_counts_what_is_not_restored():
    batch = episodes([[4.0, 3.0, 0.0]], [[False, False, True]], num_masks=1, keep_price=0.25)
    batch.token_correct = torch.tensor([[True, False, False]])
    assert simple(batch).tolist() == [[0.0, -1.0, -0.25]]


def test_exact_runs_end_at_the_first_wrong_token_and_begin_anew_behind_a_kept_one():
    dropped = [True, True, True, False, True, True]
    batch = episodes([[1.0] * 6], [[not lost for lost in dropped]], num_masks=1, keep_price=0.25)
    batch.token_correct = torch.tensor([[True, False, True, False, True, False]])
    assert exact_runs(batch).tolist() == [[0.0, -1.0, -1.0, -0.25, 0.0, -1.0]]


def test_padding_is_neither_kept_nor_dropped():
    batch = episodes([[4.0, 0.0]], [[False, False]], valid=[[True, False]], num_masks=1, keep_price=9.0)
    for reward in REWARDS.values():
        assert reward(batch)[0, 1] == 0


def test_more_bits_never_pay_and_fewer_kept_never_cost():
    low = episodes([[1.0, 0.0, 3.0]], [[False, True, False]], num_masks=1, keep_price=0.5)
    high = episodes([[2.0, 0.0, 3.0]], [[False, True, False]], num_masks=1, keep_price=0.5)
    fewer = episodes([[1.0, 0.0, 3.0]], [[False, False, False]], num_masks=1, keep_price=0.5)
    total = [information_theoretic(batch).sum().item() for batch in (low, high, fewer)]
    assert total[1] < total[0] < total[2]


def double_bits(batch):
    return -2 * batch.per_decision(batch.token_nll)


def test_weights_names_and_shapes():
    batch = episodes([[4.0, 0.0], [0.0, 2.0]], [[False, True], [True, False]], keep_price=1.0)
    rewards = WeightedRewards(["information_theoretic", "tests.training.test_rewards:double_bits"], [1.0, 0.5])(batch)
    assert rewards.per_token.tolist() == [[-4.0, -1.0], [-1.0, -2.0]]
    assert rewards.per_decision.tolist() == [[-4.0], [-2.0]]
    assert rewards.by_name["double_bits"].tolist() == [-8.0, -4.0]


def test_an_exception_propagates_and_a_wrong_shape_is_named():
    batch = episodes([[4.0, 0.0]], [[False, True]], num_masks=1)
    with pytest.raises(ZeroDivisionError):
        WeightedRewards([lambda b: 1 / 0])(batch)
    with pytest.raises(ValueError, match=r"returned shape \(3,\); allowed"):
        WeightedRewards([lambda b: torch.zeros(3)])(batch)
    with pytest.raises(ValueError, match="returned a float"):
        WeightedRewards([lambda b: 0.0])(batch)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("informative", "Unknown reward 'informative'"),
        ("no.such:thing", "cannot be imported"),
        ("os:sep", "cannot be called"),
    ],
)
def test_a_reward_that_does_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        load_reward(name)


def test_two_rewards_of_one_name():
    with pytest.raises(ValueError, match="share a name"):
        WeightedRewards(["simple", "simple"])
