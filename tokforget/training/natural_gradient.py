"""
One step of the natural policy gradient over the last layer of a reader's policy.

The masks of a good policy differ little in their true value, and much by the targets that happen to be drawn: less
than a hundredth of a difference between two masks is seen again with other targets in the same text (LOG.md). A
gradient through all weights moves in thousands of directions, of which few carry signal. Here the advantages of many
masks of one policy are regressed on the last layer's inputs, summed over the words that a mask keeps. This regression
gives the natural gradient of that layer's weights (Kakade 2002, "A Natural Policy Gradient"; Peters and Schaal 2008,
"Natural Actor-Critic", the episodic form). Differs: a ridge penalty, whose strength is chosen on left-out texts; the
effect of the number of kept tokens is removed first, as a price.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from tokforget.files import replacing
from tokforget.masking import keep_count, seeded_generator
from tokforget.models.policy import KeepMaskPolicy
from tokforget.models.unit_decisions import decide_units, pool_units, unit_sizes
from tokforget.training.random_masks import draw_rates
from tokforget.training.reader_texts import ReaderText, collate


_FOLDS = 5
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_TEXTS_AT_ONCE = 8


@dataclass
class Moments:
    """
    Sums of products over masks, separately for texts with and without a question and for each fold of the texts.

    Args:
        products (`np.ndarray` of shape `(2, 5, P + 2, P + 2)`): Products of: the number of kept tokens, the last
            layer's inputs summed over the kept words, and the advantage; each centred over the masks of a text.
        spread (`np.ndarray` of shape `(P, P)`): Covariance of the last layer's inputs over the words of a text, summed.
        masks (`np.ndarray` of shape `(2,)`), texts (`int`): Number of masks and texts so far.
        identity (`str`): Identifies policy, texts and settings, so that the sums of one run are not continued by
            another.
    """

    products: np.ndarray
    spread: np.ndarray
    masks: np.ndarray
    texts: int = 0
    identity: str = ""

    @classmethod
    def empty(cls, width: int, identity: str = "") -> "Moments":
        return cls(
            np.zeros((2, _FOLDS, width + 2, width + 2)), np.zeros((width, width)), np.zeros(2), identity=identity
        )

    @classmethod
    def load(cls, path: Path, width: int, identity: str) -> "Moments":
        """
        Load a file; empty sums if there is none.

        Raises:
            `ValueError`: If the sums belong to another policy, other texts or other settings.
        """
        if not path.is_file():
            return cls.empty(width, identity)
        with np.load(path) as stored:
            if str(stored["identity"]) != identity:
                raise ValueError(
                    f"{path} holds sums of another policy, other texts or other settings. Continue with those, take another folder, or "
                    "delete the file to begin anew."
                )
            return cls(stored["products"], stored["spread"], stored["masks"], int(stored["texts"]), identity)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))

    def add(self, of_masks: np.ndarray, inputs: np.ndarray, asked: bool) -> None:
        """
        Add one text.

        Args:
            of_masks (`np.ndarray` of shape `(M, P + 2)`): For each mask the number of kept tokens, the inputs summed
                over the kept units, and the reward.
            inputs (`np.ndarray` of shape `(U, P)`): The last layer's inputs for all units, with mean 0.
            asked (`bool`): Whether the policy was given a question.
        """
        centred = of_masks - of_masks.mean(0)
        self.products[int(asked), self.texts % _FOLDS] += centred.T @ centred
        self.spread += np.cov(inputs, rowvar=False, bias=True)
        self.masks[int(asked)] += len(of_masks)
        self.texts += 1

    def balanced(self) -> np.ndarray:
        """
        Products `(5, P + 1, P + 1)` of texts with and without a question together, without the effect of the number of
        kept tokens. Rewards of both kinds are divided by their own spread, because the reward of a single question
        varies much more than that of many lookups.
        """
        total = np.zeros((_FOLDS, *(size - 1 for size in self.products.shape[2:])))
        for kind, masks in zip(self.products, self.masks):
            if masks:
                free = np.stack([_without_price(fold, kind.sum(0)) for fold in kind])
                spread = np.sqrt(max(free.sum(0)[-1, -1] / masks, 1e-12))
                free[:, -1] /= spread
                free[:, :, -1] /= spread
                total += free
        return total


def direction(moments: Moments) -> tuple[np.ndarray, dict[str, float]]:
    """
    Direction of the step: weights `(P,)` of the last layer's inputs.

    Also returns their `correlation` with the advantages of left-out texts, at the `ridge` with the highest
    correlation.
    """
    products = moments.balanced()
    found = [(_held_out(products, ridge), ridge) for ridge in _RIDGES]
    correlation, ridge = max(found)
    return _solve(products.sum(0), ridge), {"correlation": correlation, "ridge": ridge}


def _without_price(fold: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """
    Products `(P + 1, P + 1)` of one fold after the number of kept tokens is regressed out, with the slopes of all
    folds.
    """
    if whole[0, 0] <= 0:
        return fold[1:, 1:]
    slope = whole[0, 1:] / whole[0, 0]
    price = np.outer(slope, fold[0, 1:])
    return fold[1:, 1:] - price - price.T + fold[0, 0] * np.outer(slope, slope)


def _solve(products: np.ndarray, ridge: float) -> np.ndarray:
    of_inputs, with_advantage = products[:-1, :-1], products[:-1, -1]
    scale = np.sqrt(np.maximum(np.diag(of_inputs), 1e-12))
    correlated = of_inputs / np.outer(scale, scale)
    return np.linalg.solve(correlated + ridge * np.eye(len(scale)), with_advantage / scale) / scale


def _held_out(products: np.ndarray, ridge: float) -> float:
    """Correlation of predicted and observed advantages; each fold is predicted from the others (cross-validation)."""
    covariance = foretold = 0.0
    for fold in products:
        weights = _solve(products.sum(0) - fold, ridge)
        covariance += float(weights @ fold[:-1, -1])
        foretold += float(weights @ fold[:-1, :-1] @ weights)
    return covariance / max(np.sqrt(max(foretold, 0.0) * products.sum(0)[-1, -1]), 1e-12)


def take_step(policy: KeepMaskPolicy, moments: Moments, size: float) -> dict[str, float]:
    """
    Move the last layer along [`direction`], so that the scores of a text's words change by `size` times their own
    spread. No step is taken if left-out texts do not confirm the direction.

    Returns:
        `dict`: `texts`, `correlation`, `ridge`, and `step`, the factor of the direction.
    """
    weights, facts = direction(moments)
    spread = moments.spread / max(moments.texts, 1)
    last = last_layer(policy)
    own = torch.cat([part.weight[0] for part in last]).detach().double().cpu().numpy()
    change = np.sqrt(max(weights @ spread @ weights, 0.0))
    step = size * np.sqrt(max(own @ spread @ own, 0.0)) / change if facts["correlation"] > 0 and change > 0 else 0.0
    with torch.no_grad():
        for part, moved in zip(last, np.split(step * weights, [last[0].in_features])):
            part.weight[0] += torch.from_numpy(moved).to(part.weight)
    return {"texts": moments.texts, "step": float(step)} | facts


def last_layer(policy: KeepMaskPolicy) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    return policy.to_logit, policy.direct[2]


@torch.no_grad()
def gather(
    policy: KeepMaskPolicy,
    texts: Sequence[ReaderText],
    rewards: Callable[[list[ReaderText], np.ndarray], np.ndarray],
    path: Path,
    num_masks: int,
    rates: tuple[float, float],
    sharpness: float,
    sentence_noise: float,
    seed: int,
) -> Moments:
    """
    Draw masks of a policy, have the reader score them, and collect the [`Moments`] for [`direction`]. Resumes from the
    file `path`, and writes it regularly.

    Args:
        policy ([`KeepMaskPolicy`]): The policy.
        texts (`Sequence[ReaderText]`): The texts.
        rewards (`Callable`): From texts and their masks over units `(B * num_masks, U)`, consecutive for each text, to
            rewards `(B * num_masks,)` in bits.
        path (`Path`): File of the sums.
        num_masks (`int`): Masks per text.
        rates (`tuple[float, float]`): Lowest and highest rate of the masks.
        sharpness (`float`): Factor of the logits while masks are drawn.
        sentence_noise (`float`): Spread in logits of the random shift that the words of a sentence share.
        seed (`int`): Seed of the masks.
    """
    policy.eval()
    device = policy.inputs.weight.device
    weights = sha256(b"".join(part.detach().cpu().numpy().tobytes() for part in policy.parameters())).hexdigest()
    asked = sha256("".join(repr((text.text, text.question, text.asked)) for text in texts).encode()).hexdigest()
    identity = repr((weights, asked, num_masks, rates, sharpness, sentence_noise, seed))
    moments = Moments.load(path, sum(part.in_features for part in last_layer(policy)), identity)
    with tqdm(total=len(texts), initial=moments.texts, desc="Natural gradient", leave=False) as bar:
        for start in range(moments.texts, len(texts), _TEXTS_AT_ONCE):
            chunk = list(texts[start : start + _TEXTS_AT_ONCE])
            batch = {
                name: value.to(device) for name, value in collate(chunk).items() if isinstance(value, torch.Tensor)
            }
            valid, unit_ids, num_units = batch["attention_mask"].bool(), batch["unit_ids"], batch["groups"].shape[1]
            rate = draw_rates(len(chunk), *rates, [seeded_generator(seed, start + n, 3) for n in range(len(chunk))])
            inputs = policy.last_inputs(batch["input_ids"], valid, rate.to(device), batch["features"])
            plan = policy.last_layer(inputs)
            sizes = unit_sizes(unit_ids, num_units)
            own = [seeded_generator(seed, start + n, 4 + m) for n in range(len(chunk)) for m in range(num_masks)]
            decisions = decide_units(
                sharpness * pool_units(plan, unit_ids, num_units), sizes, keep_count(valid.sum(1), rate.to(device)),
                policy.logit_bound, num_masks, own, batch["groups"], sentence_noise,
            )  # fmt: skip
            keep = decisions.actions.bool()
            found = rewards(chunk, keep.cpu().numpy())
            pooled = torch.stack(
                [pool_units(part, unit_ids, num_units) for part in inputs.unbind(-1)], -1
            )  # (B, U, P)
            for n, text in enumerate(chunk):
                here = slice(n * num_masks, (n + 1) * num_masks)
                units = pooled[n, : len(text.pieces)].double().cpu().numpy()
                # Centre the inputs: a component common to all words of a text ranks nothing; it would only tell texts
                # apart.
                units = units - units.mean(0)
                kept = keep[here, : len(text.pieces)].double().cpu().numpy()
                tokens = kept @ sizes[n, : len(text.pieces)].double().cpu().numpy()
                rows = np.column_stack([tokens, kept @ units, found[here]])
                moments.add(rows, units, text.question is not None)
            moments.save(path)
            bar.update(len(chunk))
    return moments
