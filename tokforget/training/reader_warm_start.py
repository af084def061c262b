"""
The warm start of a reader's policy: it is fitted to a ranking of words from cheap scores and one pass of the reader.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import trange

from tokforget.masking import seeded_generator
from tokforget.models.forget_model import ForgetModel
from tokforget.models.unit_decisions import pool_units, unit_sizes
from tokforget.training.reader_targets import at_rate
from tokforget.training.reader_texts import ReaderText, collate
from tokforget.training.warm_start import rise_and_fall


_LEARNING_RATE, _BATCH_SIZE = 2e-3, 24
# Batches whose texts are sorted by length together.
_POOL = 8


def fit_ranking(
    model: ForgetModel,
    texts: Sequence[ReaderText],
    targets: Sequence[np.ndarray],
    steps: int,
    min_rate: float,
    max_rate: float,
    seed: int,
    logit_scale: float = 2.5,
) -> list[float]:
    """
    Fit the policy's scores of units to targets by least squares, at random rates.

    Args:
        model ([`ForgetModel`]): Its policy is trained.
        texts (`Sequence[ReaderText]`): Training texts.
        targets (`Sequence[np.ndarray]`): Targets `(R, U)` of every text; see [`tokforget.training.reader_targets`].
        steps (`int`): Steps of the fit.
        min_rate, max_rate (`float`): Range of the random rates.
        seed (`int`): Seed of texts and rates.
        logit_scale (`float`): Factor of the scores after the fit, so that they have the spread of other policies'
            scores.

    Returns:
        `list[float]`: Mean squared difference of each step.
    """
    policy = model.policy.train()
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer, schedule = rise_and_fall(trained, _LEARNING_RATE, steps, weight_decay=0.01)
    generator, order, losses = seeded_generator(seed, 2), [], []
    device = policy.inputs.weight.device
    for _ in trange(steps, desc="Warm start", leave=False):
        if len(order) < _BATCH_SIZE:
            order = _by_length(torch.randperm(len(texts), generator=generator).tolist(), texts, generator)
        picked, order = order[:_BATCH_SIZE], order[_BATCH_SIZE:]
        batch = {
            name: value.to(device)
            for name, value in collate([texts[n] for n in picked]).items()
            if isinstance(value, torch.Tensor)
        }
        num_units = batch["groups"].shape[1]
        rate = min_rate + (max_rate - min_rate) * torch.rand(len(picked), generator=generator).to(device)
        plan = policy.first_plan(batch["input_ids"], batch["attention_mask"].bool(), rate, batch["features"])
        units = pool_units(plan, batch["unit_ids"], num_units)
        there = unit_sizes(batch["unit_ids"], num_units) > 0
        target = torch.zeros_like(units)
        for row, n in enumerate(picked):
            of_text = at_rate(targets[n], float(rate[row]))
            target[row, : len(of_text)] = torch.from_numpy(of_text).to(target)
        # Centre the scores: a shift common to all words of a text does not change the ranking.
        units = units - (units * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        loss = ((units - target).square() * there).sum() / there.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        for part in (*policy.to_logit.parameters(), *policy.direct[2].parameters()):
            part *= logit_scale
    return losses


def _by_length(order: list[int], texts: Sequence[ReaderText], generator: torch.Generator) -> list[int]:
    """The same numbers in batches of texts of similar length, because a passage among others is long."""
    size = _POOL * _BATCH_SIZE
    pools = [
        sorted(order[start : start + size], key=lambda number: len(texts[number].input_ids))
        for start in range(0, len(order), size)
    ]
    batches = [pool[start : start + _BATCH_SIZE] for pool in pools for start in range(0, len(pool), _BATCH_SIZE)]
    return [
        number for place in torch.randperm(len(batches), generator=generator).tolist() for number in batches[place]
    ]
