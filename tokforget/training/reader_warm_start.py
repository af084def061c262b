"""
A ranking of words to start from: what cheap scores and one pass of the reader know, taught to the policy in advance.

Without a question a word's target is its form and its rarity, the bits it carries, and the same of its sentence: sentences that
carry much, kept nearly whole, serve a reader better than the best words of all of them (LOG.md). With a question, the sentence
that holds the answer and the answer itself stand above the rest, so that the fit learns how likely a sentence is to hold it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import trange

from tokforget.masking import seeded_generator
from tokforget.models.forget_model import ForgetModel
from tokforget.models.unit_decisions import pool_units, unit_sizes
from tokforget.models.word_features import FORM, PLACE, TEXT
from tokforget.readers.language_model import Reader
from tokforget.training.reader_texts import ReaderText, collate
from tokforget.training.warm_start import rise_and_fall


# Weights of the target, found on held-out lookups by the reader itself (LOG.md); the question's are those of certainty.
_BITS, _SENTENCE, _NEIGHBOUR, _PLACE = 0.5, 3.0, 0.3, 1.5
_HOME, _ANSWER, _PUNCTUATION = 6.0, 2.0, 0.2
_LEARNING_RATE, _BATCH_SIZE = 2e-3, 24


def reader_bits(reader: Reader, texts: Sequence[str], progress: str | None = None) -> list[np.ndarray]:
    """Self-information of every token of each text, bits, by the reader; one pass over each."""
    return reader.token_bits([""] * len(texts), texts, progress)


def target_scores(text: ReaderText, bits: np.ndarray) -> np.ndarray:
    """
    The target of every unit `(U,)`, of mean 0; higher is kept first.

    Args:
        bits (`np.ndarray` of shape `(T,)`): Of each token, see [`reader_bits`].
    """
    first = text.pieces.starts[:-1]
    of_unit = text.features[first]
    form = {name: of_unit[:, place] for place, name in enumerate(FORM)}
    name = of_unit[:, len(FORM) + len(PLACE) + TEXT.index("name")]
    most = np.maximum.reduceat(bits, first)
    scores = form["idf"] + name - form["stop_word"] + _BITS * (most - most.mean()) / (most.std() + 1e-6)
    size = np.bincount(text.sentences)
    mean = np.bincount(text.sentences, scores) / np.maximum(size, 1)
    padded = np.pad(scores, 2, mode="edge")
    around = padded[1:-3] + padded[3:-1] + 0.5 * (padded[:-4] + padded[4:])
    bare = np.array(
        [not any(c.isalnum() for c in text.text[a:b]) for a, b in zip(text.pieces.chars[:-1], text.pieces.chars[1:])]
    )
    total = (
        scores + _SENTENCE * mean[text.sentences] + _NEIGHBOUR * around - _PLACE * np.arange(len(scores)) / len(scores)
    )
    total = total - _PUNCTUATION * bare
    if text.question is not None:
        for one in text.asked:
            inside = (text.pieces.chars[:-1] < one.end) & (text.pieces.chars[1:] > one.start)
            total = total + _HOME * np.isin(text.sentences, text.sentences[inside]) + _ANSWER * inside
    return total - total.mean()


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
    Fit the policy's plan over units to [`target_scores`], by squares, the rate drawn at random.

    Args:
        logit_scale (`float`): What the plan is multiplied by when the fit is through, so that scores spread as those of other
            policies do.

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
            order = torch.randperm(len(texts), generator=generator).tolist()
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
            target[row, : len(targets[n])] = torch.from_numpy(targets[n]).to(target)
        # A shift common to a text's words ranks nothing.
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
