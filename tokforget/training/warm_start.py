"""
The warm start: the policy learns which tokens the reconstructor's model cannot predict.

It is a regression over the training texts before the joint loop. The target, the bits of each token, costs one or two
passes of the language model per text, once. The policy gradient then starts from a ranking instead of random
decisions, and learns what bits alone do not contain: which tokens help to predict their neighbours, and at which rate.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import trange

from tokforget.models.forget_model import ForgetModel
from tokforget.models.measuring import probe
from tokforget.training.config import TARGETS


if TYPE_CHECKING:
    from datasets import Dataset


# Limit of the target: a token of 20 bits is kept wherever one of 14 bits is, but would dominate the fit.
_MOST_BITS = 14.0
# Larger than the logarithm of any target, so that one bad step does not overflow.
_MOST_LOG_BITS = 6.0
_TARGET_BATCH = 32
# Settings of the fit; no run has needed others.
_LEARNING_RATE, _BATCH_SIZE = 3e-3, 32
# Leaving out every second token gives the same ranking as every eighth, with a quarter of the passes (LOG.md).
_APART = 2


@torch.no_grad()
def target_bits(model: ForgetModel, texts: list[torch.Tensor], target: str) -> list[torch.Tensor]:
    """
    Bits of every token of each text.

    Args:
        model ([`ForgetModel`]): A model with its reconstructor.
        texts (`list[torch.LongTensor]`): Token ids, `(T,)` each.
        target (`str`): `"self_information"`: surprisal under the base model, which sees the left side; one pass per
            text. `"leave_one_out"`: the reconstructor's bits when every second token is missing, with both sides
            visible; two passes per text.

    Returns:
        `list[torch.FloatTensor]`: Bits `(T,)` of each text, in the order of `texts`.

    Raises:
        `ValueError`: If the target is unknown.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {', '.join(TARGETS)}, got {target!r}.")
    reconstructor = model.reconstructor
    was_training = reconstructor.training
    reconstructor.eval()
    found: list[torch.Tensor | None] = [None] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # needs little padding
    for start in range(0, len(texts), _TARGET_BATCH):
        places = by_length[start : start + _TARGET_BATCH]
        input_ids, valid = _pad([texts[place] for place in places], model.device)
        if target == "self_information":
            bits = reconstructor.self_information(input_ids, valid)
        else:
            bits = probe(reconstructor, input_ids, valid, valid, _APART)
        for place, row in zip(places, bits.cpu()):
            found[place] = row[: len(texts[place])]
    reconstructor.train(was_training)
    return found


def save_warm_start_data(folder: str | Path, texts: list[torch.Tensor], bits: list[torch.Tensor]) -> None:
    """Save texts `(T,)` and the bits of their tokens `(T,)` for other runs, in the columns `input_ids` and `bits`."""
    from datasets import Dataset

    shutil.rmtree(folder, ignore_errors=True)
    columns = {"input_ids": [text.tolist() for text in texts], "bits": [of_text.tolist() for of_text in bits]}
    Dataset.from_dict(columns).save_to_disk(str(folder))


def load_warm_start_data(folder: str, training_texts: list[list[int]]) -> "Dataset":
    """
    Load the data that [`save_warm_start_data`] wrote: the training texts, followed by the sampled ones.

    Raises:
        `ValueError`: If the folder has no such data, or data of other training texts.
    """
    from datasets import load_from_disk

    try:
        stored = load_from_disk(folder, keep_in_memory=True)
        same = stored["input_ids"][: len(training_texts)] == list(training_texts) and "bits" in stored.column_names
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"`warm_start_data_path` {folder!r} holds no warm-start data: {error}. Pass the folder `warm_start_data/` of a run."
        ) from error
    if not same:
        raise ValueError(
            f"The warm-start data in {folder!r} are of other texts than this run's. Leave out `warm_start_data_path`: texts are "
            "then sampled, and the target is asked, anew."
        )
    return stored


def warm_start(
    model: ForgetModel,
    texts: list[torch.Tensor],
    bits: list[torch.Tensor],
    steps: int,
    min_rate: float,
    max_rate: float,
    seed: int,
    logit_scale: float = 24.0,
    learning_rate: float = _LEARNING_RATE,
    batch_size: int = _BATCH_SIZE,
) -> list[float]:
    """
    Fit the policy's first plan to the target's bits, at random rates: the plan predicts the logarithm of a token's
    bits.

    The loss is the Poisson deviance, which has the same minimum as least squares, the mean. The spread of the bits
    grows with the bits, so that least squares would leave the order of the cheap tokens to chance, and this order
    matters at high rates (LOG.md).

    Args:
        model ([`ForgetModel`]): Its policy is trained.
        texts (`list[torch.LongTensor]`), bits (`list[torch.FloatTensor]`): Training texts, and their [`target_bits`].
        steps (`int`), learning_rate (`float`), batch_size (`int`): Settings of AdamW. The learning rate rises over a
            twentieth of the steps and falls along a cosine.
        min_rate, max_rate (`float`): Range of the random rates.
        seed (`int`): Seed of texts and rates.
        logit_scale (`float`): Factor of the fitted logarithm after the fit. If a token has `e` times the bits of
            another, its keep logit is higher by this factor, so that the first masks of the joint loop differ only at
            the margin of the budget. With soft masks the policy gradient gains mostly by sharpening them, at the cost
            of the order of the tokens (LOG.md).

    Returns:
        `list[float]`: Mean deviance of each step in bits; 0 is a perfect fit.
    """
    targets = [of_text.clamp(max=_MOST_BITS) for of_text in bits]
    log_mean = torch.cat(targets).mean().log()
    policy = model.policy.train()
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer, schedule = rise_and_fall(trained, learning_rate, steps)
    generator, order, losses = torch.Generator().manual_seed(seed), [], []
    for _ in trange(steps, desc="Warm start", leave=False):
        if len(order) < batch_size:
            order = torch.randperm(len(texts), generator=generator).tolist()
        picked, order = order[:batch_size], order[batch_size:]
        input_ids, valid = _pad([texts[n] for n in picked], model.device)
        target = torch.cat([targets[n] for n in picked]).to(model.device)  # in the order of the places in `valid`
        rate = min_rate + (max_rate - min_rate) * torch.rand(len(picked), generator=generator).to(model.device)
        # The scale is applied after the fit, because the learning rate is tuned for unscaled logits.
        log_bits = (policy.first_plan(input_ids, valid, rate)[valid] + log_mean).clamp(max=_MOST_LOG_BITS)
        deviance = torch.xlogy(target, target) - target * log_bits - target + log_bits.exp()
        loss = 2 * deviance.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        for part in policy.to_logit.parameters():
            part *= logit_scale
    return losses


def rise_and_fall(
    parameters: list[torch.nn.Parameter], learning_rate: float, steps: int, weight_decay: float = 0.0
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a learning rate that rises over a twentieth of the steps and falls along a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    total = max(steps, 3)  # the schedule divides by the length of the rise, at least two steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=total, pct_start=max(0.05, 2 / total), cycle_momentum=False
    )
    return optimizer, schedule


def _pad(texts: list[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token ids to `(B, T)` with 0; also returns `valid` `(B, T)`, False on padding."""
    input_ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    lengths = torch.tensor([len(text) for text in texts])
    return input_ids.to(device), (torch.arange(input_ids.shape[1]) < lengths[:, None]).to(device)
