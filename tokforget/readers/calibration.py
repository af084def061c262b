"""
Calibrate the quality floor of a model: retention of a reader, measured on validation sources, checked on test sources.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch

from tokforget.compression.compressor import Compressor
from tokforget.compression.quality import calibrate, token_worth
from tokforget.compression.results import CompressedText
from tokforget.hub.cards import describe_base
from tokforget.readers.calibration_arguments import CalibrationArguments
from tokforget.readers.language_model import Reader
from tokforget.readers.spans import Lookup, find_lookups
from tokforget.readers.tasks import draw_passages, read_corpus
from tokforget.readers.word_counts import WordCounts


# Texts whose words are counted, to select the spans of lookups.
_COUNTED = 200
# Texts that give the reader fewer bits about their spans are left out, because their retention is noise.
_LEAST_WORTH = 8.0


class LookupTexts:
    """
    Texts of a corpus with lookups, to measure the retention of compressed versions.

    Args:
        reader ([`Reader`]): The reader.
        passages (`Sequence[tuple[str, str]]`): `(kind, text)`.
        counts ([`WordCounts`]): Word counts that select the spans of lookups.
    """

    def __init__(
        self, reader: Reader, passages: Sequence[tuple[str, str]], counts: WordCounts, num_lookups: int, seed: int
    ):
        self.reader = reader
        asked = [
            (kind, text, find_lookups(text, counts, num_lookups, random.Random(f"calibration {seed} {text}")))
            for kind, text in passages
        ]
        asked = [row for row in asked if row[2]]
        full = self._bits([text for _, text, _ in asked], [lookups for _, _, lookups in asked])
        none = self._bits([""] * len(asked), [lookups for _, _, lookups in asked])
        telling = [place for place in range(len(asked)) if none[place] - full[place] >= _LEAST_WORTH]
        self.kinds, self.texts, self.lookups = ([asked[place][part] for place in telling] for part in range(3))
        self.full, self.none = full[telling], none[telling]

    def _bits(self, texts: Sequence[str], lookups: Sequence[Sequence[Lookup]]) -> np.ndarray:
        pairs = [[(one.suffix, one.target) for one in of_text] for of_text in lookups]
        return np.array([bits.sum() for bits in self.reader.span_bits(list(zip(texts, pairs)))])

    def retention(self, outputs: Sequence[str]) -> np.ndarray:
        """Retention of each text in its compressed version, `(num_texts,)`: 1 for the whole text, 0 for no text."""
        return (self.none - self._bits(outputs, self.lookups)) / (self.none - self.full)


def worth_kept(result: CompressedText, logits: np.ndarray) -> float:
    """Fraction of a text's total value (by its scores) that a result kept."""
    worth = token_worth(logits)
    return float(worth[result.keep_mask].sum() / worth.sum())


def calibrate_model(args: CalibrationArguments) -> None:
    """Measure, write calibration.json to the model's folder, and print how well it holds on test sources."""
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    reader = Reader.from_pretrained(args.reader_name_or_path, device)
    compressor = Compressor.from_pretrained(args.model_path)
    counts = WordCounts.of_texts(
        text
        for number, (_, text) in enumerate(read_corpus(args.corpus, "train", args.kinds))
        if number % 20 == 0 or number < _COUNTED
    )
    held_out = [draw_passages(read_corpus(args.corpus, split, kinds), args.texts_per_kind, args.passage_characters, args.seed)
                for split, kinds in (("validation", args.kinds), ("test", ()))]  # fmt: skip
    known, foreign = (LookupTexts(reader, passages, counts, args.lookups_per_text, args.seed) for passages in held_out)
    shares, retentions = [], []
    for rate in args.rates:
        results = compressor.compress(known.texts, rate=rate, nested=True)
        # Nested, so that units are ranked by the scores of the reference rate, as for a `quality`.
        shares.append(
            [worth_kept(result, compressor.reference_logits(text)) for result, text in zip(results, known.texts)]
        )
        retentions.append(known.retention([result.text for result in results]))
    calibration = calibrate(
        np.array(shares).T, np.array(retentions).T, args.risk, describe_base(args.reader_name_or_path)["name"]
    )
    calibration.save(args.model_path)
    compressor = Compressor.from_pretrained(args.model_path)
    print(f"Calibrated on {len(known.texts)} texts, risk {args.risk}: {calibration.thresholds}")
    for quality in args.check_qualities:
        results = compressor.compress(foreign.texts, quality=quality)
        found = foreign.retention([result.text for result in results])
        rates = np.array([result.compression_rate for result in results])
        whole = np.mean([result.returned_whole is not None for result in results])
        by_kind = {
            kind: f"{np.mean(found[[k == kind for k in foreign.kinds]] < quality):.2f}"
            for kind in sorted(set(foreign.kinds))
        }
        print(
            f"quality {quality}: rate {rates.mean():.3f}, retention {np.mean(found):.3f}, below it {np.mean(found < quality):.3f} of "
            f"{len(found)} test texts, whole {whole:.2f}; by kind {by_kind}"
        )
