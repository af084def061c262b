"""Budgets in tokens over words of several, and a policy gradient that is exact with shifts of whole sentences."""

import itertools

import torch

from tokforget.masking import seeded_generator
from tokforget.models.policy import meet_budget
from tokforget.models.unit_decisions import decide_units, pool_units, unit_sizes


UNIT_IDS = torch.tensor([[0, 0, 1, 2, 2, 2], [0, 1, 1, 2, -1, -1]])


def test_sizes_and_means_of_units():
    values = torch.tensor([[1.0, 3.0, 5.0, 0.0, 3.0, 6.0], [2.0, 4.0, 8.0, 1.0, 99.0, 99.0]])
    assert unit_sizes(UNIT_IDS, 4).tolist() == [[2, 1, 3, 0], [1, 2, 1, 0]]
    assert pool_units(values, UNIT_IDS, 4).tolist() == [[2.0, 5.0, 3.0, 0.0], [2.0, 6.0, 1.0, 0.0]]


def test_the_expected_number_of_tokens_is_the_budget():
    logits, sizes = torch.randn(5, 30), torch.randint(1, 5, (5, 30))
    counts = torch.tensor([10, 20, 30, 40, 50])
    biased = meet_budget(logits, counts, sizes > 0, 8.0, sizes)
    assert torch.allclose((torch.sigmoid(biased) * sizes).sum(1), counts.float(), atol=1e-3)


def test_sampled_masks_keep_the_budget_on_average():
    logits, sizes = torch.randn(1, 40), torch.randint(1, 4, (1, 40))
    groups = (torch.arange(40) // 8)[None]
    decisions = decide_units(
        logits, sizes, torch.tensor([30]), 8.0, 4000, seeded_generator(0), groups, group_noise=2.0
    )
    kept = (decisions.actions * sizes).sum(1).float()
    assert abs(kept.mean() - 30) < 4 * kept.std() / 4000**0.5


def test_a_shift_of_groups_makes_words_of_a_sentence_alike():
    sizes, groups = torch.ones(1, 40, dtype=torch.long), (torch.arange(40) // 8)[None]

    def spread(noise):
        found = decide_units(
            torch.zeros(1, 40), sizes, torch.tensor([20]), 8.0, 2000, seeded_generator(1), groups, noise
        )
        return found.actions.view(-1, 5, 8).float().mean(2).var(0).mean()  # of a sentence's share

    assert spread(3.0) > 4 * spread(0.0)


def test_the_gradient_is_that_of_the_expected_reward_with_shifts():
    # All masks of three words, by hand, under many shifts of the two groups.
    logits = torch.tensor([[0.3, -0.2, 0.5]], requires_grad=True)
    sizes, counts, groups = torch.tensor([[1, 2, 1]]), torch.tensor([2]), torch.tensor([[0, 0, 1]])
    reward = lambda a: 2.0 * a[0] + a[1] * a[2] - 0.5 * a[2]  # noqa: E731
    draws = 200_000
    sampled = decide_units(logits, sizes, counts, 8.0, draws, seeded_generator(3), groups, 1.0)
    rewards = torch.stack([reward(a) for a in sampled.actions.float()])
    estimate = torch.autograd.grad(((rewards - rewards.mean()) * sampled.log_probs.sum(1)).mean(), logits)[0]
    # The shifts that were drawn, again.
    shift = torch.randn(draws, 3, generator=seeded_generator(3)).gather(1, groups.expand(draws, 3))
    biased = meet_budget(
        logits + shift, counts.expand(draws), torch.ones(draws, 3, dtype=torch.bool), 8.0, sizes.expand(draws, 3)
    )
    p = torch.sigmoid(biased)
    expected = sum(
        reward(torch.tensor(a, dtype=torch.float))
        * torch.stack([p[:, i] if a[i] else 1 - p[:, i] for i in range(3)]).prod(0)
        for a in itertools.product((0, 1), repeat=3)
    ).mean()
    exact = torch.autograd.grad(expected, logits)[0]
    assert exact.abs().max() > 0.2
    assert torch.allclose(estimate, exact, atol=0.02), (estimate, exact)


def test_what_a_shift_did_is_credited_to_its_sentence():
    # The reward is one sentence's share: crediting its words alone would leave most of it to chance.
    logits, sizes = torch.zeros(1, 40, requires_grad=True), torch.ones(1, 40, dtype=torch.long)
    groups, first = (torch.arange(40) // 8)[None], torch.arange(40) < 8
    sampled = decide_units(logits, sizes, torch.tensor([20]), 8.0, 500, seeded_generator(0), groups, 4.0)
    rewards = sampled.actions[:, first].float().mean(1)
    estimates = torch.stack(
        [
            torch.autograd.grad(advantage * sampled.log_probs[n].sum(), logits, retain_graph=True)[0][0, first].sum()
            for n, advantage in enumerate(rewards - rewards.mean())
        ]
    )
    units_alone = (rewards - rewards.mean()) * (sampled.actions - torch.sigmoid(sampled.keep_logits.detach()))[
        :, first
    ].sum(1)
    ratio = lambda x: float(x.mean() / x.std())  # noqa: E731
    assert ratio(estimates) > 2 * ratio(units_alone) > 0


def test_padding_takes_nothing_and_changes_nothing():
    logits, sizes, counts = torch.randn(1, 6), torch.tensor([[1, 2, 1, 3, 1, 2]]), torch.tensor([5])
    padded = torch.nn.functional.pad(logits, (0, 3)), torch.nn.functional.pad(sizes, (0, 3))
    alone = decide_units(logits, sizes, counts, 8.0, 2, [seeded_generator(0), seeded_generator(1)])
    beside = decide_units(*padded, counts, 8.0, 2, [seeded_generator(0), seeded_generator(1)])
    assert torch.equal(beside.actions[:, :6], alone.actions) and not beside.actions[:, 6:].any()
    assert torch.equal(beside.log_probs[:, 6:], torch.zeros(2, 3))
