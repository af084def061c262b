"""Returns, advantages and prices, by hand and by slow loops."""

import pytest
import torch

from tokforget.training.episodes import EpisodeBatch, leave_one_out_advantages, token_returns


def episodes(token_nll, keep_mask, valid=None, num_masks=2, window=2, **fields) -> EpisodeBatch:
    token_nll, keep_mask = torch.tensor(token_nll), torch.tensor(keep_mask)
    valid = torch.ones_like(keep_mask) if valid is None else torch.tensor(valid)
    fields = {"keep_probability": torch.full_like(token_nll, 0.5)} | fields
    return EpisodeBatch(
        input_ids=torch.zeros_like(token_nll, dtype=torch.long), valid=valid, rate=torch.full((len(token_nll),), 0.5),
        keep_mask=keep_mask, token_nll=token_nll, token_correct=torch.zeros_like(keep_mask), window=window,
        num_masks=num_masks, **fields,
    )  # fmt: skip


def test_token_returns_match_a_loop():
    rewards = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    for decay in (0.0, 0.3, 1.0):
        returns = token_returns(rewards, decay)
        for n in range(2):
            for t in range(7):
                expected = sum(decay ** abs(t - u) * float(rewards[n, u]) for u in range(7))
                assert float(returns[n, t]) == pytest.approx(expected, abs=1e-5)


def test_decay_zero_is_the_own_reward_and_one_the_whole_text():
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    assert torch.equal(token_returns(rewards, decay=0.0), rewards)
    assert token_returns(rewards, decay=1.0).tolist() == [[7.0, 7.0, 7.0]]


def test_advantages_by_hand_and_zero_sum():
    returns = torch.tensor(
        [[1.0, 5.0], [0.0, 5.0], [0.0, 5.0], [2.0, 0.0], [4.0, 0.0], [6.0, 3.0]], requires_grad=True
    )
    advantages = leave_one_out_advantages(returns, num_masks=3)
    expected = [[1, 0], [-0.5, 0], [-0.5, 0], [-3, -1.5], [0, -1.5], [3, 3]]
    assert advantages.tolist() == expected
    assert not advantages.requires_grad, "an advantage that carries a gradient descends its own reward"


def test_an_unscored_episode_leaves_the_baseline():
    nan = torch.nan
    advantages = leave_one_out_advantages(
        torch.tensor([[nan, 9.0], [1.0, 0.0], [3.0, 2.0], [nan, 0.0], [nan, 0.0], [1.0, 1.0]]), 3
    )
    assert advantages.tolist() == [[0, 0], [-2, -2], [2, 2], [0, 0], [0, 0], [0, 0]]


def test_one_mask_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        leave_one_out_advantages(torch.zeros(4, 1), num_masks=1)


def test_price_is_the_mean_at_the_margin_of_each_text():
    batch = episodes(
        [[4.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0]], [[False, True], [True, False], [True, True], [True, True]],
        keep_probability=torch.tensor([[0.5, 0.5], [0.5, 0.9], [0.5, 0.5], [0.5, 0.5]]),
    )  # fmt: skip
    expected = (0.25 * 4 + 0.09 * 2) / (0.25 + 0.09)
    assert batch.price(batch.token_nll).tolist() == pytest.approx([expected, expected, 0.0, 0.0])


def test_windows_and_back():
    batch = episodes([[1.0, 2.0, 4.0]], [[False, False, False]], valid=[[True, True, True]], num_masks=1, window=2)
    assert batch.num_decisions == 2
    assert batch.per_decision(batch.token_nll).tolist() == [[3.0, 4.0]]
    assert batch.per_token(torch.tensor([[3.0, 4.0]])).tolist() == [[3.0, 3.0, 4.0]]
    short = episodes([[1.0, 0.0, 0.0]], [[False, False, False]], valid=[[True, False, False]], num_masks=1)
    assert short.decisions_per_episode.tolist() == [1]
