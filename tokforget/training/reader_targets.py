"""
What a policy is taught before it decides by itself: a score for every word, from cheap facts and one pass of the reader.

Without a question a word's target is its form and its rarity, the bits it carries, and the same of its sentence: sentences that
carry much, kept nearly whole, serve a reader better than the best words of all of them (LOG.md). How much each of these counts
differs between kinds of text and between rates; the reader itself chooses, by lookups in training texts ([`choose_weights`]).
With a question, the sentence that holds the answer and the answer itself stand above the rest, so that the fit learns how likely a
sentence is to hold it.
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


# The rates at which weights are chosen; between two of them targets are mixed.
RATES = (0.3, 0.5, 0.7)
# Of the question, those of certainty.
_HOME, _ANSWER, _PUNCTUATION = 6.0, 2.0, 0.2


@dataclass(frozen=True)
class TargetWeights:
    """
    What counts in a word's target beside its form and rarity.

    Args:
        bits (`float`): Of its self-information, standardised over the text.
        sentence (`float`): Of the mean of its sentence.
        neighbours (`float`): Of the words around it.
        place (`float`): How much less the last word of a text counts than the first.
    """

    bits: float = 0.5
    sentence: float = 3.0
    neighbours: float = 0.3
    place: float = 1.5


# The first is the best over all kinds by hand (LOG.md); the others stand around it.
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
    The targets of every unit `(R, U)`, each of mean 0; higher is kept first.

    Args:
        bits (`np.ndarray` of shape `(T,)`): Self-information of each token.
        weights (`Sequence[TargetWeights]`, R of them): Whatever they are, the targets spread as those of `TargetWeights()` do,
            so that a question is worth the same beside them.
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
    """Of targets `(R, U)` at [`RATES`] those at another rate `(U,)`: the two beside it, mixed."""
    place = np.interp(rate, RATES, np.arange(len(RATES)))
    low = min(int(place), len(RATES) - 2)
    return targets[low] + (place - low) * (targets[low + 1] - targets[low])


# -- chosen by the reader ----------------------------------------------------------------------------------------------


def choose_weights(
    reader: Reader, texts: Sequence[ReaderText], bits: Sequence[np.ndarray], path: Path
) -> dict[str, list[TargetWeights]]:
    """
    The weights of every kind, one for each of [`RATES`].

    Each of [`CANDIDATES`] ranks the words of the texts, and the reader is asked what they hold. What a kind gains over the
    first candidate is half its own gain and half that of all kinds, because a few texts say little about a kind.

    Args:
        texts (`Sequence[ReaderText]`): Of training sources, without a question, some of each kind.
        bits (`Sequence[np.ndarray]`): Self-information of their tokens.
        path (`Path`): Where retention of every candidate at every rate is kept, kind by kind: a run that was stopped goes on
            with the next kind. Measured anew if texts or candidates are others.
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
    What [`choose_weights`] chose in an earlier run.

    Raises:
        `ValueError`: If the file is none of its own, or is of other rates.
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
    """What each candidate keeps at each rate `(C, R)`."""
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
    return np.nan_to_num(found)  # texts that tell nothing choose nothing


def _shortened(text: ReaderText, scores: np.ndarray, rate: float) -> str:
    """The units of the highest scores that fit in the budget, as one string."""
    ranked = Ranked([text.text], [text.pieces], -scores)
    return join(text.text, text.pieces, ranked.fill(max(1, int(rate * len(text.input_ids)))))
