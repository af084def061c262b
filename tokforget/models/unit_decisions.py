"""
Decisions over units of a text: whole words, which cost their number of tokens.

All units of a text are decided at once. Masks are drawn so that the expected number of kept tokens equals the budget.
"""

import torch
from torch.nn import functional as F

from tokforget.masking import Generators, row_noise
from tokforget.models.policy import Decisions, meet_budget


def pool_units(token_values: torch.Tensor, unit_ids: torch.Tensor, num_units: int) -> torch.Tensor:
    """
    The mean of the tokens' values over each unit, `(B, num_units)`; 0 for a unit without tokens.

    Args:
        token_values (`torch.FloatTensor` of shape `(B, T)`): A value per token.
        unit_ids (`torch.LongTensor` of shape `(B, T)`): The unit of each token, -1 on padding.
    """
    place = unit_ids.clamp(min=0)
    present = (unit_ids >= 0).to(token_values.dtype)
    total = token_values.new_zeros(len(token_values), num_units).scatter_add(1, place, token_values * present)
    return total / unit_sizes(unit_ids, num_units).clamp(min=1).to(token_values.dtype)


def unit_sizes(unit_ids: torch.Tensor, num_units: int) -> torch.Tensor:
    """Number of tokens of each unit `(B, num_units)`; `unit_ids` as in [`pool_units`]."""
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

    With `group_noise` all units of a group (a sentence) get a common random shift of their logits before the budget is
    met, so that masks differ in whole sentences and not only in single words. The shifted mean of a group is an
    action, too: it is drawn from a normal distribution around the mean of the group's logits, and the units are drawn
    given this mean. Both actions are credited, and each unit of a group gets its part of the shift's log-density; the
    gradient of the returned log-probabilities is that of the joint log-probability, and unbiased. Crediting only the
    units is unbiased as well, but treats the effect of the shift as noise, which at least doubles the noise (LOG.md).

    Args:
        logits (`torch.FloatTensor` of shape `(B, U)`): An unbounded plan.
        sizes (`torch.LongTensor` of shape `(B, U)`): Tokens of each unit; 0 on padding.
        counts (`torch.LongTensor` of shape `(B,)`): Tokens to keep.
        bound (`float`): See [`meet_budget`].
        num_masks (`int`): Masks per text; those of one text are consecutive.
        generator (`torch.Generator`, or a list of one for each mask): Draws masks and shifts.
        groups (`torch.LongTensor` of shape `(B, U)`, *optional*): The group of each unit.
        group_noise (`float`): Standard deviation of a group's shift, in the unit of the logits.

    Returns:
        [`Decisions`]: Over units, for `B * num_masks` masks.
    """
    logits, sizes, counts = (part.repeat_interleave(num_masks, 0) for part in (logits, sizes, counts))
    valid = sizes > 0
    of_shift = 0.0
    if group_noise and groups is not None:
        groups = groups.repeat_interleave(num_masks, 0)
        # Draw a number for each unit; only as many as there are groups are used.
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
    A zero `(N, U)` whose gradient is that of the log-density of the shifts (with spread 1), divided among the units of
    each group. A shift common to all groups has no effect after the budget is met, so the mean shift is removed as
    noise.
    """
    present = (members > 0).to(shift.dtype)
    centred = (
        shift - (shift * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    ) / members.clamp(min=1)
    return (logits - logits.detach()) * valid * centred.gather(1, groups)
