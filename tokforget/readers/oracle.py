"""The oracle: a search for the best words with the reader itself, which uses the answer."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from tokforget.readers.language_model import Reader
from tokforget.readers.tasks import ReadingItem
from tokforget.readers.text_compressors import fill
from tokforget.text_units import split_words


# Proposals per batch of the reader.
_PROPOSALS = 8


def gate_ranks(reader: Reader, item: ReadingItem) -> np.ndarray:
    """
    First-order importance of each word of the passage for the target, `(num_words,)`, higher is more important: the
    decrease of the target's bits per unit of a gate on the embeddings of the word's tokens, at open gates. Takes one
    backward pass.

    Source: Michel et al. 2019, "Are sixteen heads really better than one?", 1905.10650. Differs: words instead of
    heads.
    """
    spans, model = split_words(item.passage), reader.model
    before, after, target = (reader.token_ids([text])[0] for text in (item.before, item.after, item.target))
    passage, places = reader.token_ids([item.passage])[0], reader.token_places(item.passage)
    ends = np.array([end for _, end in spans])
    word = np.minimum(np.searchsorted(ends, [(a + b - 1) / 2 for a, b in places], side="right"), len(spans) - 1)
    row = torch.tensor([[reader.start, *before, *passage, *after, *target]], device=model.device)
    gates = torch.ones(len(spans), device=model.device, requires_grad=True)
    with torch.enable_grad():
        scale = torch.ones(row.shape[1], device=model.device)
        scale = scale.index_put(
            (torch.arange(len(passage), device=model.device) + 1 + len(before),),
            gates[torch.as_tensor(word, device=model.device)],
        )
        embedded = model.get_input_embeddings()(row).detach()
        embedded = embedded * scale[None, :, None].to(embedded.dtype)
        logits = model(inputs_embeds=embedded[:, :-1], use_cache=False).logits[0, -len(target) :].float()
        F.cross_entropy(logits, row[0, -len(target) :], reduction="sum").backward()
    return -gates.grad.cpu().numpy()


def search_best_words(
    reader: Reader, item: ReadingItem, budget: int, starts: Sequence[np.ndarray], steps: int, seed: int = 0
) -> tuple[str, float]:
    """
    Search for the words of a passage that give its target the fewest bits. The search begins with the best of several
    starts. It then tries batches of proposals that swap one to four words each, and takes the best one if it is an
    improvement.

    Args:
        reader ([`Reader`]): Scores the proposals.
        item ([`ReadingItem`]): The passage and its target.
        budget (`int`): Most tokens of the output.
        starts (`Sequence` of `np.ndarray` of shape `(num_words,)`): Ranks to begin with, at least one; the highest are
            kept.
        steps (`int`): Batches of eight proposals; 0 returns the best start.
        seed (`int`): Seed of the proposals.

    Returns:
        `tuple`: The output, and the bits of the target after it. This is no bound, because a longer search finds
            better words.
    """
    generator = np.random.default_rng(seed)
    spans = split_words(item.passage)

    def output_of(scores: np.ndarray) -> str:
        return fill(item.passage, spans, scores, budget, lambda text: reader.counts([text])[0])

    def bits_of(outputs: list[str]) -> np.ndarray:
        # The prompt before the passage is read once for all proposals. A space at its end is moved to the passage, so
        # that the tokens are those of the whole string.
        shared = item.before.rstrip(" ")
        lead = item.before[len(shared) :]
        asked = [(lead + output + item.after, item.target) for output in outputs]
        return reader.span_bits([(shared, asked)])[0]

    orders = [np.argsort(np.argsort(start, kind="stable"), kind="stable").astype(float) for start in starts]
    outputs = [output_of(order) for order in orders]
    bits = bits_of(outputs)
    first = int(np.argmin(bits))
    best, best_bits, ranks = outputs[first], float(bits[first]), orders[first]
    for _ in range(steps):
        proposals = []
        for _ in range(_PROPOSALS):
            moved = ranks.copy()
            # In half of the proposals neighbours move together, because an answer needs its surrounding words.
            size, first = int(generator.integers(1, 5)), int(generator.integers(len(spans)))
            chosen = (
                np.arange(first, min(first + size, len(spans)))
                if generator.random() < 0.5
                else generator.integers(len(spans), size=size)
            )
            moved[chosen] = generator.choice([-1.0, len(spans) + 1.0], size=len(chosen)) + generator.random(
                len(chosen)
            )
            proposals.append(moved)
        outputs = [output_of(moved) for moved in proposals]
        bits = bits_of(outputs)
        winner = int(np.argmin(bits))
        if bits[winner] < best_bits:
            best, best_bits = outputs[winner], float(bits[winner])
            ranks = np.argsort(np.argsort(proposals[winner], kind="stable"), kind="stable").astype(float)
    # Measure the result again, in the way in which all other compressors are measured.
    ((final,),) = reader.span_bits([(item.before + best, [(item.after, item.target)])])
    return best, float(final)
