"""The results of compressing and restoring, and their JSON form."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tokforget.compression.omissions import Omission, find_omissions


_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass
class CompressedText:
    """
    A compressed text, with all data to restore it or to locate it in the original.

    Offsets count characters of the original (without tags, if `tags=True`); `dropped_spans` and `kept_spans` together
    cover it. JSON contains the same fields, except `original`.

    Args:
        text (`str`): The compressed text.
        compressed_input_ids (`np.ndarray` of shape `(compressed_tokens,)`): The token ids of `text` after re-encoding,
            as another model reads them.
        kept_ids (`np.ndarray` of shape `(kept_tokens,)`), kept_indices (`np.ndarray` of shape `(kept_tokens,)`): The
            kept tokens of the original, and their indices in it.
        original_tokens (`int`): Tokens of the original, in the vocabulary that the budget counts.
        scores (`np.ndarray` of shape `(num_tokens,)`): Keep score of each token of the original (the model's tokens),
            in (0, 1); the highest are kept first. It is not a probability. In word units the mean over a word counts.
        kept_spans (`np.ndarray` of shape `(num_spans, 2)`), dropped_spans (`np.ndarray` of shape `(num_gaps, 2)`): First
            character and the one after the last.
        separated (`np.ndarray` of shape `(num_spans,)`): True where a space was put before a kept span, because it
            would have fused with the word before it. Everything else in `text` is from the original, except `notes`.
        notes (`list` of `(int, str)`): Text that was added to that of the original, and the character before which it
            is written:
            how often a log line came (`unit="auto"`), and marks of omissions (`mark_omissions`).
        target_tokens (`int`, *optional*): The budget; with `budget="corpus"` that of all texts together.
        shortfall (`int`): Tokens by which `text` is below the budget; negative if protected text exceeds it (with
            `on_impossible="warn"`). With `budget="corpus"` for all texts together.
        kind (`str`, *optional*): Kind of structure by which the text was cut, such as `"json"` or `"code"`; see
            [`tokforget.compression.structure`]. `None` for words and tokens.
        returned_whole (`str`, *optional*): Why nothing was compressed: `"min_tokens"`, `"no tokens"`, `"quality"` if no
            shorter text is guaranteed to reach it, or `"json"`, for which no quality is calibrated.
        unreached (`str`, *optional*): Why the smallest feasible text exceeds the budget.
        predicted_retention (`float`, *optional*): The retention of a reader that the model's calibration predicts;
            `None` without a calibration.
        start (`int`): Offset of the text in its stream (`compress_stream`), in characters.
        tokenizer (`str`): Fingerprint of the tokenizer of the ids.
        vocabulary (`str`): Name of the vocabulary in which `original_tokens`, `compressed_tokens`, `target_tokens` and
            `shortfall` are counted: the model's own, or that of `count_tokens`.
        counted_tokens (`int`, *optional*): Tokens of `text` in that vocabulary; `None` if it is the model's own.
        original_chars (`int`): Characters of the original.
        original (`str`, *optional*): The original, for `omitted` and `diff`. It is not saved; set it on a loaded
            result: `result.original = text`.
        seconds (`float`): The text's share of the time of the call, by tokens.
    """

    text: str
    compressed_input_ids: np.ndarray
    kept_ids: np.ndarray
    kept_indices: np.ndarray
    original_tokens: int
    scores: np.ndarray
    kept_spans: np.ndarray
    dropped_spans: np.ndarray
    separated: np.ndarray
    target_tokens: int | None = None
    shortfall: int = 0
    returned_whole: str | None = None
    predicted_retention: float | None = None
    notes: list = field(default_factory=list)
    start: int = 0
    tokenizer: str = ""
    seconds: float = 0.0
    vocabulary: str = ""
    counted_tokens: int | None = None
    unreached: str | None = None
    original_chars: int = 0
    kind: str | None = None
    original: str | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def keep_mask(self) -> np.ndarray:
        """True where one of the model's tokens of the original was kept `(num_tokens,)`."""
        mask = np.zeros(len(self.scores), dtype=bool)
        mask[self.kept_indices] = True
        return mask

    @property
    def kept_tokens(self) -> int:
        """Number of kept tokens of the original (the model's tokens)."""
        return len(self.kept_indices)

    @property
    def compressed_tokens(self) -> int:
        """Tokens of `text` after re-encoding, in the vocabulary that the budget counts."""
        return len(self.compressed_input_ids) if self.counted_tokens is None else self.counted_tokens

    @property
    def kept_rate(self) -> float:
        """Kept ÷ original tokens, of the mask; 1 for an empty text."""
        return self.kept_tokens / len(self.scores) if len(self.scores) else 1.0

    @property
    def compression_rate(self) -> float:
        """Tokens of `text` ÷ tokens of the original; 1 for an empty text."""
        return self.compressed_tokens / self.original_tokens if self.original_tokens else 1.0

    @property
    def compression_ratio(self) -> float:
        """Tokens of the original ÷ tokens of `text`, shown as "4.0x"; inf if `text` is empty."""
        return 1.0 / self.compression_rate if self.compression_rate else float("inf")

    @property
    def character_rate(self) -> float:
        """
        Characters of `text` ÷ characters of the original, which does not depend on a vocabulary; 1 for an empty text.
        """
        return len(self.text) / self.original_chars if self.original_chars else 1.0

    @property
    def omitted(self) -> list[Omission]:
        """The omissions from left to right, with lines, characters and text. Omitted white space is not listed."""
        return find_omissions(self._original(), self.dropped_spans.tolist())

    def diff(self):
        """
        The original next to the compressed text, line by line: `rich.print` shows it, `to_html(path)` writes a page.
        """
        from tokforget.compression.diff import Diff

        return Diff(self._original(), self)

    def _original(self) -> str:
        if self.original is None:
            raise ValueError(
                "This result was loaded, and the original is not saved with it: set `result.original` to the text it was made of."
            )
        covered = sum(b - a for spans in (self.kept_spans, self.dropped_spans) for a, b in spans.tolist())
        if covered != len(self.original):
            raise ValueError(
                f"`original` has {len(self.original):,} characters, and this result was made of a text with {covered:,}."
            )
        return self.original

    def to_dict(self) -> dict:
        """Plain Python values; scores with four decimals."""
        fields = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
            if name != "original"
        }
        rates = {"kept_rate": self.kept_rate, "compression_rate": self.compression_rate}
        return fields | {"scores": np.round(self.scores.astype(float), 4).tolist()} | rates

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON; also written to `path` if one is given."""
        return write_json(self.to_dict(), path)

    @classmethod
    def from_dict(cls, fields: dict) -> "CompressedText":
        """The inverse of `to_dict`. Raises `ValueError` if a field is missing."""
        kinds = {"compressed_input_ids": np.int64, "kept_ids": np.int64, "kept_indices": np.int64,
                 "scores": np.float32, "kept_spans": np.int64, "dropped_spans": np.int64, "separated": bool}  # fmt: skip
        missing = [name for name in ("text", "original_tokens", *kinds) if name not in fields]
        if missing:
            raise ValueError(f"This is no saved CompressedText: it lacks {', '.join(missing)}.")
        values = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        for name, kind in kinds.items():
            shape = (-1, 2) if name.endswith("_spans") else (-1,)
            values[name] = np.asarray(values[name], dtype=kind).reshape(shape)
        values["notes"] = [tuple(note) for note in values.get("notes", [])]
        return cls(**values)

    @classmethod
    def from_json(cls, source: str | Path) -> "CompressedText":
        """Load a result from JSON text, or from the path of a JSON file."""
        text = str(source)
        if isinstance(source, Path) or not text.lstrip().startswith("{"):
            text = Path(source).read_text(encoding="utf-8")
        return cls.from_dict(json.loads(text))


def encodable(text: str) -> str:
    """The text with each lone surrogate replaced, because no encoding can represent it."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def write_json(fields: dict, path: str | Path | None) -> str:
    """
    The fields as JSON; also written to `path` if one is given. Lone surrogates, which UTF-8 cannot encode, become
    U+FFFD.
    """
    text = json.dumps(fields | {"text": encodable(fields["text"])}, ensure_ascii=False)
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


@dataclass
class RestoredText:
    """
    A restored text: kept tokens are unchanged, dropped ones are predicted by the model. It is never the original.

    Args:
        text (`str`): The restored text; where the model abstains, a visible gap.
        input_ids (`np.ndarray` of shape `(num_tokens,)`): Kept and restored tokens; -1 where the model abstains.
        keep_mask (`np.ndarray` of shape `(num_tokens,)`): True where a token was given.
        confidence (`np.ndarray` of shape `(num_tokens,)`): Probability that the model gave to its prediction, also
            where it abstains; 1 for kept tokens.
        restored_spans (`np.ndarray` of shape `(num_spans, 2)`): Spans of `text` that are predicted, including gaps.
        abstained (`int`): Tokens that the model left out because their confidence was below `abstain_below`.
    """

    text: str
    input_ids: np.ndarray
    keep_mask: np.ndarray
    confidence: np.ndarray
    restored_spans: np.ndarray
    abstained: int = 0
    is_restoration: bool = True

    def __str__(self) -> str:
        return self.text

    @property
    def restored_tokens(self) -> int:
        """Number of predicted tokens."""
        return int((~self.keep_mask & (self.input_ids >= 0)).sum())

    @property
    def label(self) -> str:
        """A line that says that this is a restoration, and how much of it is predicted."""
        guesses = self.confidence[~self.keep_mask]
        mean = f", mean confidence {guesses.mean():.2f}" if len(guesses) else ""
        return (
            f"Restoration, not the original: {self.restored_tokens} of {len(self.input_ids)} tokens guessed"
            f"{f', {self.abstained} left open' if self.abstained else ''}{mean}."
        )

    def to_dict(self) -> dict:
        """Plain Python values; confidence with four decimals."""
        fields = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()
        }
        return fields | {"confidence": np.round(self.confidence.astype(float), 4).tolist(), "label": self.label}

    def to_json(self, path=None) -> str:
        """JSON text, also written to `path` if one is given."""
        return write_json(self.to_dict(), path)


COLUMNS = ("compressed", "original_tokens", "compressed_tokens", "compression_rate")


def columns(result: CompressedText, text_column: str = COLUMNS[0]) -> dict:
    """A result as a row: the compressed text in `text_column`, and its counts."""
    return {text_column: result.text} | counts(result)


def counts(result: CompressedText, prefix: str = "") -> dict:
    """Tokens before and after, and their ratio, with `prefix` before the names."""
    return {
        f"{prefix}original_tokens": result.original_tokens,
        f"{prefix}compressed_tokens": result.compressed_tokens,
        f"{prefix}compression_rate": round(result.compression_rate, 4),
    }
