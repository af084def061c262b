"""The network and its sampler."""

import pytest
import torch

from tokforget.masking import keep_count
from tokforget.models.policy import SEARCHES, KeepMaskPolicy, meet_budget


def make_policy(**shape) -> KeepMaskPolicy:
    torch.manual_seed(0)
    policy = KeepMaskPolicy(
        200, 8, **({"hidden_size": 16, "dilations": (1, 2), "head_size": 16, "window": 4, "ngram_buckets": 64} | shape)
    )
    policy.ngrams.fit([list(range(1, 100))])
    policy.tokens.table.normal_()
    torch.nn.init.normal_(policy.to_logit.weight)
    return policy


def decide(policy, batch, rate=0.5, **kwargs):
    ids, valid = batch
    return policy.decide(ids, valid, torch.full((len(ids),), rate), keep_count(valid.sum(1), rate), **kwargs)


def test_default_size_is_within_the_limit():
    policy = KeepMaskPolicy(50_257, 768)
    assert sum(p.numel() for p in policy.parameters()) <= 1_200_000


def test_keep_frequency_is_the_probability(batch):
    """2,000 samples of the first window: standard error at most 0.011."""
    policy = make_policy()
    decisions = decide(policy, batch, num_masks=2000, generator=torch.Generator().manual_seed(1))
    sampled = decisions.actions.view(3, 2000, 12)[:, :, :4].float().mean(1)
    probability = torch.sigmoid(decisions.keep_logits).view(3, 2000, 12)[:, :, :4]
    assert torch.allclose(probability, probability[:, :1].expand_as(probability)), (
        "first window: nothing decided before"
    )
    valid = batch[1][:, :4]
    assert (sampled - probability[:, 0])[valid].abs().max() < 0.05


def test_log_prob_is_that_of_the_action_taken(batch):
    decisions = decide(make_policy(), batch, num_masks=5, generator=torch.Generator().manual_seed(1))
    probability = torch.sigmoid(decisions.keep_logits)
    expected = torch.where(decisions.actions.bool(), probability, 1 - probability).log()
    valid = batch[1].repeat_interleave(5, 0)
    assert torch.allclose(decisions.log_probs[valid], expected[valid], atol=1e-5)
    assert (
        not decisions.log_probs[~valid].any()
        and not decisions.actions[~valid].any()
        and not decisions.entropy[~valid].any()
    )


def test_given_actions_are_scored_as_when_sampled(batch):
    policy = make_policy()
    sampled = decide(policy, batch, num_masks=5, generator=torch.Generator().manual_seed(1))
    replayed = decide(policy, batch, num_masks=5, actions=sampled.actions)
    assert torch.equal(sampled.log_probs, replayed.log_probs)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9, 1.0])
def test_the_best_mask_keeps_exactly_the_budget(batch, rate):
    decisions = decide(make_policy(), batch, rate)
    assert torch.equal(decisions.actions.sum(1), keep_count(batch[1].sum(1), rate))


def test_sampled_count_is_the_budget_in_expectation():
    policy = make_policy()
    ids = torch.randint(1, 200, (1, 48), generator=torch.Generator().manual_seed(0))
    decisions = decide(policy, (ids, torch.ones_like(ids, dtype=torch.bool)), 0.3, num_masks=1000,
                       generator=torch.Generator().manual_seed(0))  # fmt: skip
    # Later windows answer for what earlier ones kept, so the spread is that of the last window only.
    assert decisions.actions.sum(1).float().mean() == pytest.approx(14, abs=0.25)
    assert decisions.actions.sum(1).float().std() < 2


def test_decisions_taken_change_later_ones_only(batch):
    policy = make_policy()
    ids, valid = batch[0][:1], batch[1][:1]
    actions = torch.zeros(2, 12, dtype=torch.long)
    actions[1, 1] = 1
    decisions = policy.decide(ids, valid, torch.tensor([0.5]), torch.tensor([6]), num_masks=2, actions=actions)
    assert torch.equal(decisions.keep_logits[0, :4], decisions.keep_logits[1, :4])
    assert not torch.allclose(decisions.keep_logits[0, 4:], decisions.keep_logits[1, 4:])


def test_the_rate_is_seen(batch):
    policy = make_policy()
    low, high = (policy.trunk(*batch, torch.full((3,), rate))[0] for rate in (0.2, 0.8))
    assert not torch.allclose(low, high)


def test_padding_and_neighbours_change_nothing(batch):
    policy = make_policy()
    together = decide(policy, batch, 0.5)
    for row, length in enumerate(batch[1].sum(1).tolist()):
        alone = decide(policy, (batch[0][row : row + 1, :length], batch[1][row : row + 1, :length]), 0.5)
        assert torch.equal(together.actions[row, :length], alone.actions[0])
        assert torch.allclose(together.keep_logits[row, :length], alone.keep_logits[0], atol=1e-5)


def test_the_bias_carries_its_gradient():
    """Against finite differences of the solved probabilities."""
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    valid, counts = torch.tensor([[True, True, True, True]]), torch.tensor([2])
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)

    def value(at: torch.Tensor) -> torch.Tensor:
        return (torch.sigmoid(meet_budget(at, counts, valid, bound=8.0)) * weights).sum()

    value(logits).backward()
    for t in range(4):
        step = torch.zeros_like(logits)
        step[0, t] = 1e-3
        numeric = (value(logits.detach() + step) - value(logits.detach() - step)) / 2e-3
        assert logits.grad[0, t] == pytest.approx(numeric.item(), abs=1e-4)
    assert logits.grad.sum() == pytest.approx(0, abs=1e-9), "a shift of all logits changes nothing"


@pytest.fixture(params=["cpu", "cuda"])
def search(request, monkeypatch) -> None:
    """The bias is searched for as on a CPU, and as on a GPU."""
    monkeypatch.setitem(SEARCHES, "cpu", SEARCHES[request.param])


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("offset", [-60.0, 0.0, 60.0])
def test_the_bound_leaves_the_margin_alone_wherever_it_lies(offset):
    """Eight cheap tokens far below one dear one, or all of them far off: two to keep, and their odds are told apart."""
    logits = torch.tensor([[70.0, 3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0]]) + offset
    biased = meet_budget(logits, torch.tensor([2]), torch.ones(1, 9, dtype=torch.bool), bound=8.0)
    assert torch.sigmoid(biased).sum() == pytest.approx(2, abs=1e-3)
    assert biased.abs().max() <= 8
    assert (biased[0, 1] - biased[0, 2]).item() == pytest.approx(1, abs=0.05)


@pytest.mark.usefixtures("search")
def test_a_budget_out_of_reach_goes_as_far_as_the_bound():
    valid = torch.tensor([[True, True, True, False]])
    for count, sign in ((-1, -1), (0, -1), (3, 1), (9, 1)):
        biased = meet_budget(torch.tensor([[40.0, 0.0, -40.0, 0.0]]), torch.tensor([count]), valid, bound=8.0)
        assert torch.allclose(biased[0, :3], torch.full((3,), sign * 8.0), atol=0.05), count


@pytest.mark.parametrize("sizes", [None, torch.arange(200) % 3 + 1])
def test_both_searches_find_the_same_logits(sizes, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = 20 * torch.randn(50, 200, generator=generator)
    valid = torch.arange(200) < torch.randint(1, 201, (50, 1), generator=generator)
    weigh = valid.long() if sizes is None else valid * sizes
    counts = (weigh.sum(1) * torch.rand(50, generator=generator)).long()
    found = []
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(SEARCHES, "cpu", SEARCHES[device])
        found.append(meet_budget(logits, counts, valid, 8.0, sizes))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    kept = (torch.sigmoid(found[1]) * weigh).sum(1)
    inside = (counts > 0) & (counts < weigh.sum(1))
    torch.testing.assert_close(kept[inside], counts[inside].float(), rtol=1e-3, atol=0.1)


def test_a_text_shorter_than_a_window_is_one_decision():
    policy = make_policy(window=64)
    ids = torch.tensor([[5, 6, 7]])
    decisions = decide(policy, (ids, torch.ones_like(ids, dtype=torch.bool)), 0.5)
    assert decisions.actions.sum() == 1
