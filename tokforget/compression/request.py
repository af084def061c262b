"""
The checked arguments of one call of `compress`.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import InitVar, dataclass, field

import numpy as np

from tokforget.compression.counting import TokenCounter
from tokforget.compression.protection import PRESET, Protection
from tokforget.rates import check_flag, check_number, check_rate, check_whole


@dataclass(kw_only=True)
class Request:
    """The checked arguments of `Compressor.compress`; see there."""

    rate: float | None = None
    target_tokens: int | None = None
    threshold: float | None = None
    quality: float | None = None
    risk: float | None = None
    unit: str | None = None
    protect: InitVar = PRESET
    nested: bool = False
    prefix_stable: bool = False
    budget: str = "per_text"
    tags: bool = False
    min_tokens: int = 0
    on_impossible: str | None = None
    mark_omissions: bool = False
    omit_records: bool = False
    count_tokens: InitVar = None
    trained_unit: InitVar[str] = "token"
    by_default: bool = field(default=False, init=False)
    protection: Protection = field(init=False)
    counter: TokenCounter | None = field(init=False)

    def __post_init__(self, protect, count_tokens, trained_unit):
        self.protection = Protection.parse(protect)
        self.counter = TokenCounter.of(count_tokens)
        if self.unit is None:
            self.by_default = True
            by_structure = trained_unit == "word" and not (self.quality is not None or self.prefix_stable or self.tags)
            self.unit = "auto" if by_structure else trained_unit
        budgets = ("rate", "target_tokens", "threshold", "quality")
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"Pass one of `rate`, `target_tokens`, `threshold` and `quality`, got {' and '.join(given)}."
            )
        if not given:
            self.rate = 0.5
        self._check_values()
        self._check_pairs()

    def _check_values(self) -> None:
        if self.rate is not None:
            check_rate(self.rate)
        if self.target_tokens is not None:
            check_whole(self.target_tokens, "target_tokens", 1)
        for name in ("threshold", "quality", "risk"):
            if getattr(self, name) is not None:
                check_number(getattr(self, name), name)
        for name in ("nested", "prefix_stable", "tags", "mark_omissions", "omit_records"):
            check_flag(getattr(self, name), name)
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise ValueError(f"`threshold` must lie in (0, 1), got {self.threshold}.")
        if self.quality is not None and not 0.0 < self.quality <= 1.0:
            raise ValueError(f"`quality` must lie in (0, 1], got {self.quality}.")
        if self.risk is not None and not 0.0 < self.risk < 1.0:
            raise ValueError(f"`risk` must lie in (0, 1), got {self.risk}.")
        choices = {
            "unit": ("token", "word", "auto"),
            "budget": ("per_text", "corpus"),
            "on_impossible": (None, "raise", "warn"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                allowed = tuple(one for one in allowed if one is not None)
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        check_whole(self.min_tokens, "min_tokens", 0)

    def _check_pairs(self) -> None:
        corpus, stable, threshold = self.budget == "corpus", self.prefix_stable, self.threshold is not None
        quality = self.quality is not None
        target = self.target_tokens is not None
        for clash, message in (
            (self.risk is not None and not quality, "`risk` says how often a `quality` may be missed: pass both."),
            (
                quality and (corpus or stable or self.tags or self.nested),
                "`quality` sets a budget for each text: leave out `budget='corpus'`, `prefix_stable`, `tags` and `nested`.",
            ),
            (
                self.unit == "auto" and (stable or self.tags or quality),
                "`unit='auto'` looks at a text as a whole: leave out `prefix_stable`, `tags` and `quality`, or pass 'word'.",
            ),
            (
                self.omit_records and self.unit != "auto",
                "`omit_records` needs `unit='auto'`, which goes without `quality`, `tags` and `prefix_stable`: leave it out, or these.",
            ),
            (corpus and threshold, "A `threshold` is no budget: leave out `budget='corpus'`."),
            (
                corpus and self.tags,
                "`budget='corpus'` spends one budget over all texts; tags give segments their own.",
            ),
            (self.nested and self.tags, "Segments with rates of their own do not nest: leave out `nested` or `tags`."),
            (stable and self.nested, "`prefix_stable` spends its budget from left to right, which does not nest."),
            (stable and corpus, "`prefix_stable` decides each text on its own: leave out `budget='corpus'`."),
            (
                stable and self.counter is not None,
                "`prefix_stable` decides chunk after chunk in the model's own tokens: leave out `count_tokens`.",
            ),
            (
                stable and self.mark_omissions,
                "`prefix_stable` changes nothing before, and marks of what is left out would: leave out `mark_omissions`.",
            ),
            (stable and self.tags, "`prefix_stable` cannot give segments a budget of their own: leave out `tags`."),
            (stable and target, "`prefix_stable` cannot know how long a text will become: pass `rate`."),
            (stable and self.protection.last > 0, "The last tokens of a growing text change: leave out 'last:n'."),
            (self.tags and threshold, "Tags give segments a rate: pass `rate`, not `threshold`."),
            (self.tags and target, "Tags give segments a rate: pass `rate`, not `target_tokens`."),
        ):
            if clash:
                raise ValueError(message)

    def check_texts(self, texts: list, single: bool) -> None:
        """Raise `TypeError` unless all are strings, and `ValueError` if spans are given for several texts."""
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"Text {place} of `texts` must be a string, got {_shown(text)}. {_advice(text)}")
        if self.protection.spans and not single:
            raise ValueError(
                "Protected spans belong to one text. For several texts pass a function from a text to spans."
            )

    @property
    def keeps_json(self) -> bool:
        """Whether JSON stays whole: no quality is calibrated for it, and by words it would not parse."""
        return self.quality is not None and self.by_default

    def conditioning_rates(self, lengths: list[int]) -> list[float]:
        """The conditioning rates: the rate that the policy gets as input, for texts with these numbers of tokens."""
        if self.nested or self.threshold is not None or self.quality is not None:
            rates = [_REFERENCE_RATE] * len(lengths)
        elif self.rate is not None:
            rates = [self.rate] * len(lengths)
        elif self.budget == "corpus":  # one rate for all, because their scores are compared
            rates = [self.target_tokens / max(sum(lengths), 1)] * len(lengths)
        else:
            rates = [self.target_tokens / max(length, 1) for length in lengths]
        return np.clip(rates, *_TOLD_RATES).tolist()


def as_texts(texts: str | Iterable[str]) -> list[str]:
    """The texts of a call as a list. Raises `TypeError` for anything but a string or a sequence."""
    if isinstance(texts, str):
        return [texts]
    check_rows(texts)
    return list(texts)


def check_rows(texts: Iterable[str]) -> None:
    """`TypeError` for what is no row of texts, or one in which the keys or the bytes would be taken for them."""
    names = _column_names(texts)
    if names is not None or isinstance(texts, bytes | bytearray | Set) or not isinstance(texts, Iterable):
        advice = _advice(texts)
        if names is not None:
            advice = f"Pass one of its columns, there are {', '.join(map(repr, names[:8])) or 'none'}."
        raise TypeError(f"`texts` must be a string or a sequence of strings, got {_shown(texts)}. {advice}")


def _column_names(texts: object) -> list | None:
    """Of a dictionary or a table, of pandas, Polars, PyArrow or `datasets`: what iterating gives of it is no row of texts."""
    if isinstance(texts, Mapping):
        return list(texts)
    for name in ("column_names", "columns"):
        names = getattr(texts, name, None)
        if names is not None and not isinstance(names, str) and not callable(names):
            return list(names)
    return None


def _shown(value: object) -> str:
    return "None" if value is None else " ".join(f"a {type(value).__name__}, {value!r:.60}".split())


def _advice(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return "Decode bytes first, for instance with `.decode('utf-8', 'replace')`."
    if value is None:
        return "Leave out what is missing, or pass an empty text for it."
    return "Pass the text itself." if not isinstance(value, Set) else "Pass a list: a set has no order."


# The policy's rate is limited to the range of its training. Scores that must not depend on a rate use 0.5.
_TOLD_RATES = (0.2, 0.8)


_REFERENCE_RATE = 0.5


# Trained logits reach about 15 on either side; divided by 4 they give scores in (0.02, 0.98).
_SCORE_SCALE = 4.0
