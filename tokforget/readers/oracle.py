"""How far a compressor could go: the best words found by search with the reader itself, which has seen the answer."""

import time

import numpy as np

from tokforget.readers.language_model import Reader
from tokforget.readers.tasks import ReadingItem
from tokforget.readers.text_compressors import fill
from tokforget.readers.word_counts import split_words


# Proposals that the reader reads in one batch.
_PROPOSALS = 8


def search_best_words(
    reader: Reader, item: ReadingItem, budget: int, start: np.ndarray, seconds: float, seed: int = 0
) -> tuple[str, float]:
    """
    Words of a passage that leave its target the fewest bits, by random exchange: batches of proposals that swap one to four
    words each, the best of them taken if it is an improvement.

    Args:
        budget (`int`): Most tokens of the output.
        start (`np.ndarray` of shape `(num_words,)`): Ranks to begin with, higher is kept first.
        seconds (`float`): Time of the search.

    Returns:
        `tuple`: The output, and the bits of the target after it. Not a bound: a longer search finds better.
    """
    generator = np.random.default_rng(seed)
    spans = split_words(item.passage)
    ranks = np.argsort(np.argsort(start, kind="stable"), kind="stable").astype(float)

    def output_of(scores: np.ndarray) -> str:
        return fill(item.passage, spans, scores, budget, lambda text: reader.counts([text])[0])

    def bits_of(outputs: list[str]) -> np.ndarray:
        return reader.bits([item.prompt(output) for output in outputs], [item.target] * len(outputs))

    best = output_of(ranks)
    best_bits = float(bits_of([best])[0])
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        proposals = []
        for _ in range(_PROPOSALS):
            moved = ranks.copy()
            # Neighbours move together half of the time: what stands around an answer is needed with it.
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
    return best, best_bits
