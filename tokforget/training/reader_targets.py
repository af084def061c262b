"""
Targets of the warm start: a score for every word, from cheap features and one pass of the reader.

Without a question a word's target is a weighted sum of its form, its rarity, its bits, and the mean bits of its
sentence: informative sentences, kept nearly whole, help a reader more than the best words of all sentences (LOG.md).
The best weights depend on the kind of text and on the rate; the reader can choose them, by lookups in training texts
([`choose_weights`]). With a question, the answer and the sentence that contains it get higher scores than the rest, so
that the fit learns how likely a sentence is to contain the answer.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tokforget.compression.search import Ranked, join
from tokforget.files import write_json
from tokforget.models.word_features import FORM, PLACE, TEXT
from tokforget.readers.benchmark import retention
from tokforget.readers.language_model import Reader
from tokforget.training.reader_texts import ReaderText


# The rates at which weights are chosen; for a rate between two of them, their targets are interpolated.
RATES = (0.3, 0.5, 0.7)
# Weights of a text with a question, where the answer's place is known.
_HOME, _ANSWER, _PUNCTUATION = 6.0, 2.0, 0.2


@dataclass(frozen=True)
class TargetWeights:
    """
    Weights of a word's target, besides its form and rarity.

    Args:
        bits (`float`): Weight of the word's self-information, standardised over the text.
        sentence (`float`): Weight of the mean self-information of its sentence.
        neighbours (`float`): Weight of the mean self-information of the words around it.
        place (`float`): How much lower the target of the last word of a text is than that of the first.
    """

    bits: float = 0.5
    sentence: float = 3.0
    neighbours: float = 0.3
    place: float = 1.5


# The first is the best for all kinds together, tuned by hand (LOG.md); the others vary one weight.
CANDIDATES = (
    TargetWeights(),
    TargetWeights(bits=2.0),
    TargetWeights(bits=5.0),
    TargetWeights(sentence=10.0),
    TargetWeights(bits=2.0, sentence=10.0),
    TargetWeights(bits=5.0, sentence=10.0),
    TargetWeights(bits=2.0, sentence=1.0),
    TargetWeights(bits=2.0, place=0.0),
    TargetWeights(bits=2.0, place=4.0),
)


def target_scores(
    text: ReaderText, bits: np.ndarray, weights: Sequence[TargetWeights] = (TargetWeights(),)
) -> np.ndarray:
    """
    Targets of every unit for each of `weights`, `(R, U)`, each row with mean 0; the highest are kept.

    Args:
        text (`ReaderText`): The text.
        bits (`np.ndarray` of shape `(T,)`): Self-information of each token.
        weights (`Sequence[TargetWeights]` of length R): For all weights the targets are scaled to the spread of
            `TargetWeights()`, so that a question counts equally against them.
    """
    usual = _score(text, bits, TargetWeights()).std()
    rows = []
    for one in weights:
        total = _score(text, bits, one)
        total = total * (usual / (total.std() + 1e-6))
        if text.question is not None:
            for asked in text.asked:
                inside = (text.pieces.chars[:-1] < asked.end) & (text.pieces.chars[1:] > asked.start)
                total = total + _HOME * np.isin(text.sentences, text.sentences[inside]) + _ANSWER * inside
        rows.append(total - total.mean())
    return np.stack(rows)


def _score(text: ReaderText, bits: np.ndarray, weights: TargetWeights) -> np.ndarray:
    first = text.pieces.starts[:-1]
    of_unit = text.features[first]
    form = {name: of_unit[:, place] for place, name in enumerate(FORM)}
    name = of_unit[:, len(FORM) + len(PLACE) + TEXT.index("name")]
    most = np.maximum.reduceat(bits, first)
    scores = form["idf"] + name - form["stop_word"] + weights.bits * (most - most.mean()) / (most.std() + 1e-6)
    mean = np.bincount(text.sentences, scores) / np.maximum(np.bincount(text.sentences), 1)
    padded = np.pad(scores, 2, mode="edge")
    around = padded[1:-3] + padded[3:-1] + 0.5 * (padded[:-4] + padded[4:])
    bare = np.array(
        [not any(c.isalnum() for c in text.text[a:b]) for a, b in zip(text.pieces.chars[:-1], text.pieces.chars[1:])]
    )
    place = np.arange(len(scores)) / len(scores)
    return (
        scores
        + weights.sentence * mean[text.sentences]
        + weights.neighbours * around
        - weights.place * place
        - _PUNCTUATION * bare
    )


def at_rate(targets: np.ndarray, rate: float) -> np.ndarray:
    """Targets `(U,)` at a rate, interpolated from the targets `(R, U)` at [`RATES`]."""
    place = np.interp(rate, RATES, np.arange(len(RATES)))
    low = min(int(place), len(RATES) - 2)
    return targets[low] + (place - low) * (targets[low + 1] - targets[low])


# -- chosen by the reader ----------------------------------------------------------------------------------------------


def choose_weights(
    reader: Reader, texts: Sequence[ReaderText], bits: Sequence[np.ndarray], path: Path
) -> dict[str, list[TargetWeights]]:
    """
    Choose the weights for every kind, one for each of [`RATES`].

    Each of [`CANDIDATES`] ranks the words of the texts, and the reader's retention is measured. The gain of a
    candidate over the first one is the mean of its gain on the kind and its gain on all kinds, because a few texts say
    little about a kind.

    Args:
        reader ([`Reader`]): The reader.
        texts (`Sequence[ReaderText]`): Texts of training sources, without a question, some of each kind.
        bits (`Sequence[np.ndarray]`): Self-information of their tokens, `(T,)` each.
        path (`Path`): File for the retention of every candidate at every rate, kind by kind; a stopped run resumes
            with the next kind. It is measured again if texts or candidates differ.
    """
    kinds = sorted({text.kind for text in texts})
    facts = {
        "candidates": [asdict(one) for one in CANDIDATES],
        "rates": list(RATES),
        "texts": {kind: [text.text[:40] for text in texts if text.kind == kind] for kind in kinds},
    }
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if {name: stored.get(name) for name in facts} != facts:
        stored = facts | {"retention": {}}
    for kind in tqdm(
        [kind for kind in kinds if kind not in stored["retention"]], desc="Weights of targets", leave=False
    ):
        own = [(text, of_text) for text, of_text in zip(texts, bits) if text.kind == kind]
        stored["retention"][kind] = _retention(reader, *zip(*own)).round(4).tolist()
        write_json(path, stored)
    return _best(stored)


def read_weights(path: str | Path) -> dict[str, list[TargetWeights]]:
    """
    The weights that [`choose_weights`] chose in an earlier run.

    Raises:
        `ValueError`: If the file cannot be read, or has other rates than [`RATES`].
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        if stored["rates"] == list(RATES):
            return _best(stored)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"`target_weights` {str(path)!r} cannot be read ({type(error).__name__}): pass the target_weights.json of a finished run."
        ) from error
    raise ValueError(
        f"`target_weights` {str(path)!r} is of the rates {stored['rates']}; those of this version are {list(RATES)}."
    )


def _best(stored: dict) -> dict[str, list[TargetWeights]]:
    gains = {kind: np.array(values) - np.array(values)[0] for kind, values in stored["retention"].items()}
    common = np.mean(list(gains.values()), axis=0)
    candidates = [TargetWeights(**one) for one in stored["candidates"]]
    return {kind: [candidates[n] for n in (own + common).argmax(0)] for kind, own in gains.items()}


def _retention(reader: Reader, texts: Sequence[ReaderText], bits: Sequence[np.ndarray]) -> np.ndarray:
    """Retention of each candidate at each rate, `(C, R)`."""
    pairs = [[(one.suffix, one.target) for one in text.asked] for text in texts]

    def read(outputs: Sequence[str]) -> np.ndarray:
        return np.concatenate(reader.span_bits(list(zip(outputs, pairs))))

    none, full = read([""] * len(texts)), read([text.text for text in texts])
    scores = [target_scores(text, of_text, CANDIDATES) for text, of_text in zip(texts, bits)]
    found = np.zeros((len(CANDIDATES), len(RATES)))
    for c in range(len(CANDIDATES)):
        for r, rate in enumerate(RATES):
            outputs = [_shortened(text, row[c], rate) for text, row in zip(texts, scores)]
            found[c, r] = retention(read(outputs), full, none)
    return np.nan_to_num(found)  # texts that do not help the reader have no influence


def _shortened(text: ReaderText, scores: np.ndarray, rate: float) -> str:
    """The text with only the highest-scored units that fit the budget, as one string."""
    ranked = Ranked([text.text], [text.pieces], -scores)
    return join(text.text, text.pieces, ranked.fill(max(1, int(rate * len(text.input_ids)))))
