"""
Calibrate the quality floor of a model: retention of a reader, measured on validation sources, checked on test sources.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch

from tokforget.compression.compressor import Compressor
from tokforget.compression.quality import RISK, Calibration, calibrate, token_worth
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
    # A calibration that promises no quality, but by which `quality` is the worth to keep.
    levels = sorted(args.levels)
    compressor.calibration = Calibration(0, "", {RISK: [(level, level) for level in levels]}, [(0.0, 0.0), (1.0, 1.0)])
    shares, retentions = [], []
    for level in levels:
        results = compressor.compress(known.texts, quality=level, unit=compressor.policy.unit)
        shares.append(
            [worth_kept(result, compressor.reference_logits(text)) for result, text in zip(results, known.texts)]
        )
        retentions.append(known.retention([result.text for result in results]))
        rates = [result.compression_rate for result in results]
        print(f"worth {level}: rate {np.mean(rates):.3f}, retention {np.mean(retentions[-1]):.3f}", flush=True)
    reader_name = describe_base(args.reader_name_or_path)["name"]
    calibration = calibrate(levels, np.array(shares).T, np.array(retentions).T, reader_name)
    calibration.save(args.model_path)
    compressor = Compressor.from_pretrained(args.model_path)
    print(f"Calibrated on {len(known.texts)} texts, {args.lookups_per_text} lookups each, of {args.model_path}:")
    for risk, thresholds in calibration.thresholds.items():
        print(
            f"risk {risk}: {[(quality, None if worth is None else round(worth, 3)) for quality, worth in thresholds]}"
        )
    for risk in args.check_risks:
        if risk < min(calibration.thresholds):
            print(f"risk {risk}: {len(known.texts)} texts cannot show it; take more.")
            continue
        for quality in args.check_qualities:
            _check(compressor, foreign, quality, risk)


def _check(compressor: Compressor, texts: LookupTexts, quality: float, risk: float) -> None:
    """Print how often a promise is broken, and at which rate it is kept."""
    results = compressor.compress(texts.texts, quality=quality, risk=risk, unit=compressor.policy.unit)
    found = texts.retention([result.text for result in results])
    rates = np.array([result.compression_rate for result in results])
    whole = np.mean([result.returned_whole is not None for result in results])
    by_kind = {
        kind: f"{np.mean(found[[k == kind for k in texts.kinds]] < quality):.2f}" for kind in sorted(set(texts.kinds))
    }
    print(
        f"quality {quality}, risk {risk}: rate {rates.mean():.3f}, retention {np.mean(found):.3f}, below it "
        f"{np.mean(found < quality):.3f} of {len(found)} test texts, whole {whole:.2f}; by kind {by_kind}",
        flush=True,
    )
