"""
A ranking to start from: the policy learns, token by token, what the reconstructor's model cannot predict.

One regression over the training texts before the joint loop. The teacher costs a language-model pass per text once; the
policy gradient then starts from a ranking instead of a coin, and learns what bits alone do not say: which tokens tell about
their neighbours, and at which rate.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import trange

from tokforget.models.forget_model import ForgetModel
from tokforget.models.measuring import probe


if TYPE_CHECKING:
    from datasets import Dataset


TEACHERS = ("self_information", "leave_one_out")
# A token of 20 bits is kept at any rate that one of 14 is kept at: what is beyond would rule the fit.
_MOST_BITS = 14.0
# Above the logarithm of any bits: one bad step must not overflow.
_MOST_LOG_BITS = 6.0
_TARGET_BATCH = 32
# Of the fit; no run has needed others.
_LEARNING_RATE, _BATCH_SIZE = 3e-3, 32
# With every second token missing the ranking is that of leaving out every eighth, at a quarter of the passes (LOG.md).
_APART = 2


@torch.no_grad()
def teacher_bits(model: ForgetModel, texts: list[torch.Tensor], teacher: str) -> list[torch.Tensor]:
    """
    Bits of every token of each text, `(T,)` each, in the order given.

    Args:
        texts (`list[torch.LongTensor]`): Token ids.
        teacher (`str`): `"self_information"`: surprisal under the base model, what stands to the left given; one pass per
            text. `"leave_one_out"`: bits the reconstructor loses when every second token is missing, what stands on both
            sides given; two passes per text.
    """
    reconstructor = model.reconstructor
    was_training = reconstructor.training
    reconstructor.eval()
    found: list[torch.Tensor | None] = [None] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # little padding
    for start in range(0, len(texts), _TARGET_BATCH):
        places = by_length[start : start + _TARGET_BATCH]
        input_ids, valid = _pad([texts[place] for place in places], model.device)
        if teacher == "self_information":
            bits = reconstructor.self_information(input_ids, valid)
        else:
            bits = probe(reconstructor, input_ids, valid, valid, _APART)
        for place, row in zip(places, bits.cpu()):
            found[place] = row[: len(texts[place])]
    reconstructor.train(was_training)
    return found


def write_lesson(folder: str | Path, texts: list[torch.Tensor], bits: list[torch.Tensor]) -> None:
    """Texts and their teacher's bits, columns `input_ids` and `bits`, for other runs to learn from."""
    from datasets import Dataset

    shutil.rmtree(folder, ignore_errors=True)
    columns = {"input_ids": [text.tolist() for text in texts], "bits": [of_text.tolist() for of_text in bits]}
    Dataset.from_dict(columns).save_to_disk(str(folder))


def read_lesson(folder: str, training_texts: list[list[int]]) -> "Dataset":
    """
    What [`write_lesson`] wrote: the training texts, and behind them the sampled ones.

    Raises:
        `ValueError`: If there is no lesson, or it is one on other texts.
    """
    from datasets import load_from_disk

    try:
        lesson = load_from_disk(folder, keep_in_memory=True)
        same = lesson["input_ids"][: len(training_texts)] == list(training_texts)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"`lesson_path` {folder!r} holds no lesson: {error}") from error
    if not same:
        raise ValueError(f"The lesson in {folder!r} is on other texts than this run's; draw and ask anew without it.")
    return lesson


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
    Fit the policy's first plan, as the logarithm of the bits that a token would lose, to the teacher's bits, the requested
    rate drawn at random.

    By Poisson deviance and not by squares: bits spread as widely as they are high, and squares would leave the order of
    the cheap tokens, which is what counts at high rates, to chance (LOG.md). Its minimum is the mean all the same.

    Args:
        texts (`list[torch.LongTensor]`), bits (`list[torch.FloatTensor]`): Training texts, and of [`teacher_bits`] theirs.
        steps (`int`), learning_rate (`float`), batch_size (`int`): Of AdamW, the rate rising over a twentieth of the steps
            and falling along a cosine.
        logit_scale (`float`): What the fitted logarithm is multiplied by in the end. The keep logit of a token of `e` times the
            bits of another is then higher by so much, and the first masks of the joint loop differ at the margin of the
            budget alone. Where they are soft, nearly all that the policy gradient can gain is sharper ones, and it pays for
            them with the order of the tokens (LOG.md).

    Returns:
        `list[float]`: Mean deviance of each step, bits; 0 is a perfect fit.
    """
    targets = [of_text.clamp(max=_MOST_BITS) for of_text in bits]
    log_mean = torch.cat(targets).mean().log()
    policy = model.policy.train()
    optimizer = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0
    )
    total = max(steps, 3)  # the schedule divides by the length of its rise, which takes two steps at least
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=total, pct_start=max(0.05, 2 / total), cycle_momentum=False
    )
    generator, order, losses = torch.Generator().manual_seed(seed), [], []
    for _ in trange(steps, desc="Warm start", leave=False):
        if len(order) < batch_size:
            order = torch.randperm(len(texts), generator=generator).tolist()
        picked, order = order[:batch_size], order[batch_size:]
        input_ids, valid = _pad([texts[n] for n in picked], model.device)
        target = torch.cat([targets[n] for n in picked]).to(model.device)  # in the order of `valid`'s places
        rate = min_rate + (max_rate - min_rate) * torch.rand(len(picked), generator=generator).to(model.device)
        # Scaled when the fit is through: its learning rate is that of unscaled logits.
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


def _pad(texts: list[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `(B, T)`, 0 on padding, and their validity."""
    input_ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    lengths = torch.tensor([len(text) for text in texts])
    return input_ids.to(device), (torch.arange(input_ids.shape[1]) < lengths[:, None]).to(device)
