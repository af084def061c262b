"""
Keep or drop whole units of a text: words, of which each takes as many tokens of the budget as it has.

All units of a text are decided at once. Which of them are kept is drawn with an expected number of tokens equal to the budget.
"""

import torch
from torch.nn import functional as F

from tokforget.masking import Generators, row_noise
from tokforget.models.policy import Decisions, meet_budget


def pool_units(token_values: torch.Tensor, unit_ids: torch.Tensor, num_units: int) -> torch.Tensor:
    """
    The mean of a token's value over each unit, `(B, num_units)`; 0 for a unit without tokens.

    Args:
        token_values (`torch.FloatTensor` of shape `(B, T)`): A value per token.
        unit_ids (`torch.LongTensor` of shape `(B, T)`): The unit of each token, -1 on padding.
    """
    place = unit_ids.clamp(min=0)
    present = (unit_ids >= 0).to(token_values.dtype)
    total = token_values.new_zeros(len(token_values), num_units).scatter_add(1, place, token_values * present)
    return total / unit_sizes(unit_ids, num_units).clamp(min=1).to(token_values.dtype)


def unit_sizes(unit_ids: torch.Tensor, num_units: int) -> torch.Tensor:
    """Tokens of each unit `(B, num_units)`; `unit_ids` as in [`pool_units`]."""
    sizes = torch.zeros(len(unit_ids), num_units, dtype=torch.long, device=unit_ids.device)
    return sizes.scatter_add(1, unit_ids.clamp(min=0), (unit_ids >= 0).long())


def decide_units(
    logits: torch.Tensor,
    sizes: torch.Tensor,
    counts: torch.Tensor,
    bound: float,
    num_masks: int,
    generator: Generators,
    groups: torch.Tensor | None = None,
    group_noise: float = 0.0,
) -> Decisions:
    """
    Draw keep masks over units.

    With `group_noise` each group of units, a sentence, gets a common random shift of its logits before the budget is met, so
    that masks differ in whole sentences and not in single words alone. Shifted means are actions, too: a group's is drawn from
    a normal distribution around the mean of its logits, and the units given it. Both are credited, each unit of a group with
    its part of the shift; the gradient of what is returned is that of the joint log-probability, unbiased. Crediting the
    units alone is unbiased as well, but takes for noise what the shift did, twice of it or more (LOG.md).

    Args:
        logits (`torch.FloatTensor` of shape `(B, U)`): A plan, not bounded.
        sizes (`torch.LongTensor` of shape `(B, U)`): Tokens of each unit; 0 on padding.
        counts (`torch.LongTensor` of shape `(B,)`): Tokens to keep.
        bound (`float`): See [`meet_budget`].
        num_masks (`int`): Masks per text; those of one text stand side by side.
        generator (`torch.Generator`, or a list of one for each mask): The draw.
        groups (`torch.LongTensor` of shape `(B, U)`, *optional*): The group of each unit.
        group_noise (`float`): Standard deviation of a group's shift, in the unit of the logits.

    Returns:
        `Decisions` over units, of `B * num_masks` masks.
    """
    logits, sizes, counts = (part.repeat_interleave(num_masks, 0) for part in (logits, sizes, counts))
    valid = sizes > 0
    of_shift = 0.0
    if group_noise and groups is not None:
        groups = groups.repeat_interleave(num_masks, 0)
        # A number for each unit, of which as many serve as there are groups.
        shift = row_noise(valid, generator, torch.randn).to(logits.dtype)
        members = torch.zeros_like(shift).scatter_add(1, groups, valid.to(shift.dtype))
        mean = torch.zeros_like(shift).scatter_add(1, groups, logits * valid) / members.clamp(min=1)
        inner = logits - mean.gather(1, groups)
        of_shift = _shift_score(logits, shift, members, groups, valid) / group_noise
        logits = inner + (mean.detach() + group_noise * shift).gather(1, groups)
    biased = meet_budget(logits, counts, valid, bound, sizes)
    actions = ((row_noise(valid, generator) < torch.sigmoid(biased)) & valid).long()
    log_probs = F.logsigmoid(torch.where(actions.bool(), biased, -biased)) * valid + of_shift
    probability = torch.sigmoid(biased)
    entropy = (F.softplus(biased) - biased * probability) * valid
    return Decisions(actions=actions, keep_logits=biased * valid, log_probs=log_probs, entropy=entropy)


def _shift_score(
    logits: torch.Tensor, shift: torch.Tensor, members: torch.Tensor, groups: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """
    A zero `(N, U)` whose gradient is that of the shifts' log-density, of spread 1, shared among the units of each group. A shift
    of all groups alike does nothing behind the budget, so that their common part is noise and goes.
    """
    present = (members > 0).to(shift.dtype)
    centred = (
        shift - (shift * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    ) / members.clamp(min=1)
    return (logits - logits.detach()) * valid * centred.gather(1, groups)
