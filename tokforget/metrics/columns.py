"""
The base of the metric modules: the columns that they read. A column has the same meaning in all metrics. A caller may
give any subset of a metric's columns, where `evaluate` itself requires all of them.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import evaluate
import numpy as np
from datasets import Features, List, Value

from tokforget.readers.language_model import load_tokenizer
from tokforget.readers.words import encode


_IDS, _BITS, _TEXT = List(Value("int64")), Value("float64"), Value("string")

# name: type, meaning
COLUMNS = {
    "predictions": (_TEXT, "restored texts"),
    "references": (_TEXT, "original texts"),
    "compressed": (_TEXT, "compressed texts, the kept tokens as a string"),
    "input_ids": (_IDS, "token ids of the original texts"),
    "restored_ids": (_IDS, "token ids of the restored texts, position by position"),
    "keep_mask": (_IDS, "1 for a kept token, 0 for a dropped one"),
    "attention_mask": (_IDS, "1 for a token, 0 for padding; without it there is no padding"),
    "token_nll": (List(_BITS), "bits of every token, `-log2 p`; those of kept tokens are ignored"),
    "bits": (_BITS, "bits of all dropped tokens of a text"),
    "num_dropped": (Value("int64"), "dropped tokens of a text"),
    "num_tokens": (Value("int64"), "tokens of a text"),
    "nll_full": (_BITS, "bits of a continuation given the full context"),
    "nll_compressed": (_BITS, "bits of the same continuation given the compressed context"),
    "nll_none": (_BITS, "bits of the same continuation given no context"),
    "context": (_TEXT, "full contexts"),
    "compressed_context": (_TEXT, "compressed contexts"),
    "continuation": (_TEXT, "what follows the contexts"),
    "num_continuation_tokens": (Value("int64"), "tokens of a continuation"),
    "bits_full": (_BITS, "bits of a target after a prompt with the full passage"),
    "bits_compressed": (_BITS, "bits of the same target after a prompt with the compressed passage"),
    "bits_none": (_BITS, "bits of the same target after a prompt without passage"),
    "prompt_full": (_TEXT, "prompts with the full passage"),
    "prompt_compressed": (_TEXT, "the same prompts with the compressed passage"),
    "prompt_none": (_TEXT, "the same prompts without passage"),
    "target": (_TEXT, "the correct continuation of a prompt"),
    "passage": (_TEXT, "name of the passage that a target is about"),
    "prompts": (List(_TEXT), "prompts of a growing transcript as they were sent, turn after turn"),
    "prompt_ids": (List(_IDS), "token ids of the same prompts"),
}
OPTIONS = {
    "tokenizer": "name, folder or object of a tokenizer",
    "model": "name, folder or object of a causal language model",
    "seed": "seed of the bootstrap interval",
    "batch_size": "texts per forward pass of the model",
    "rouge_types": "which of rouge1 .. rouge9, rougeL and rougeLsum",
    "use_aggregator": "whether to return the mean over texts or a list with one value per text",
    "use_stemmer": "whether to apply Porter's stemmer for English before words are compared",
    "statistic": '"fmeasure", "precision", "recall", or "all" three under keys of their own',
    "input_price": "price of a million tokens outside the cache",
    "cached_read_price": "price of a million tokens read from the cache",
    "cache_write_price": "price of a million tokens written to the cache",
    "min_cached_tokens": "shorter prompts and shorter prefixes are not cached",
    "block_tokens": "length of a cached prefix in tokens is a multiple of this",
    "tokenize": "function from a text to its words, instead of the English default",
}


class ColumnMetric(evaluate.Metric):
    """
    A metric that computes what the given columns allow. A subclass sets `inputs`, `options`, `summary` and, if it has
    a reference, `source`. It defines `_compute` with the inputs and options as optional arguments.

    Columns and options of the other metrics are ignored, so that `evaluate.combine` can pass the same arguments to all
    metrics. Unknown names are an error.
    """

    inputs: tuple[str, ...]
    options: tuple[str, ...] = ()
    summary: str
    source: str = ""

    def _info(self) -> evaluate.MetricInfo:
        described = [f"    {name}: {COLUMNS[name][1]}" for name in self.inputs]
        described += [f"    {name} (to `compute` only): {OPTIONS[name]}" for name in self.options]
        return evaluate.MetricInfo(
            description=self.summary,
            citation=self.source,
            inputs_description="\nColumns:\n" + "\n".join(described) + "\n",
            features=self._features(self.inputs),
        )

    def _features(self, names: Sequence[str]) -> Features:
        return Features({name: COLUMNS[name][0] for name in names})

    def add(self, *, prediction=None, reference=None, **columns) -> None:
        """Add one text. `prediction` and `reference` are singular; the other columns keep their names."""
        columns = {"predictions": prediction, "references": reference} | columns
        self.add_batch(**{name: [value] for name, value in columns.items() if value is not None})

    def add_batch(self, *, predictions=None, references=None, **columns) -> None:
        """
        Add texts. Every batch must give the same columns, and all columns of a batch the same number of rows;
        otherwise `ValueError` is raised.
        """
        columns |= {"predictions": predictions, "references": references}
        self._check_names(columns)
        # In a fixed order, because the files of several processes are read as one.
        given = {name: columns[name] for name in self.inputs if columns.get(name) is not None}
        self._check_rows(given)
        if self.writer is None:
            # From here on `evaluate` requires exactly the columns of the first batch.
            self.info.features = self._features(list(given))
        elif set(given) != set(self.info.features):
            raise ValueError(
                f"The first batch brought {sorted(self.info.features)}, this one {sorted(given)}. Every batch must bring "
                "the same columns."
            )
        super().add_batch(**given)

    def compute(self, *, predictions=None, references=None, **arguments) -> dict | None:
        """
        Compute the metric over the texts added before and those given here; `None` in all processes but process 0.

        Raises:
            `ValueError`: If no text or none of the metric's columns was given, or a name is unknown.
        """
        arguments |= {"predictions": predictions, "references": references}
        self._check_names(arguments)
        given = {name: arguments[name] for name in self.inputs if arguments.get(name) is not None}
        if given:
            self.add_batch(**given)
        if not len(self):
            raise ValueError(f"The metric {self.name!r} was given no text. It takes {self._choices()}.")
        try:
            return super().compute(**{name: value for name, value in arguments.items() if name in self.options})
        except Exception:
            self._discard()
            raise
        finally:
            self.info.features = self._features(self.inputs)

    def _discard(self) -> None:
        """
        Release the files of a failed computation: `evaluate` leaves them locked, and the next call would wait for
        them.
        """
        self.data = None
        for lock, path in zip(self.filelocks or [], self.file_paths or []):
            Path(path).unlink(missing_ok=True)
            lock.release()

    def _choices(self) -> str:
        return ", ".join(f"`{name}`" for name in self.inputs)

    def _check_names(self, arguments: dict) -> None:
        for name in arguments:
            if name not in COLUMNS and name not in OPTIONS:
                raise ValueError(
                    f"The metric {self.name!r} knows no {name!r}. Its columns are {self._choices()}; its options are "
                    f"{', '.join(self.options) or 'none'}."
                )

    def _check_rows(self, given: dict) -> None:
        if not given:
            raise ValueError(f"The metric {self.name!r} was given none of its columns: {self._choices()}.")
        rows = {name: len(values) for name, values in given.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"The columns must have as many rows each, got {rows}.")
        for name, values in given.items():
            if COLUMNS[name][0] == _TEXT and isinstance(values, str):
                raise TypeError(f"`{name}` must be a list of strings, got a string. For one text use `add`.")


# -- checks of what was collected --------------------------------------------------------------------------------------
def missing(metric: evaluate.Metric, *choices: Sequence[str]) -> ValueError:
    """The error for columns that are not sufficient for any result of the metric."""
    ways = "; or ".join(" and ".join(f"`{name}`" for name in names) for names in choices)
    return ValueError(f"The metric {metric.name!r} cannot be computed from {list(metric.info.features)}. Give {ways}.")


def check_lengths(**columns: Sequence[Sequence] | None) -> None:
    """Raise `ValueError` unless each text has the same number of values in every column that is not `None`."""
    given = {name: rows for name, rows in columns.items() if rows is not None}
    for place, rows in enumerate(zip(*given.values())):
        lengths = dict(zip(given, map(len, rows)))
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Text {place} must have as many values in each of its columns, got {lengths}.")


def without_padding(attention_mask: Sequence[Sequence[int]] | None, **columns: Sequence[Sequence]) -> list[list[list]]:
    """
    Remove from each text the positions where `attention_mask` is 0. Raises `ValueError` for unequal lengths or values
    other than 0 and 1.
    """
    check_lengths(attention_mask=attention_mask, **columns)
    for name, masks in {"keep_mask": columns.get("keep_mask"), "attention_mask": attention_mask}.items():
        found = set().union(*map(set, masks or [])) - {0, 1}
        if found:
            raise ValueError(f"`{name}` must hold 1 and 0, got {sorted(found, key=str)[:3]}.")
    if attention_mask is None:
        return [list(map(list, rows)) for rows in columns.values()]
    return [
        [[v for v, is_token in zip(row, mask) if is_token] for row, mask in zip(rows, attention_mask)]
        for rows in columns.values()
    ]


def prompt_rows(
    metric: "ColumnMetric",
    prompts: Sequence[Sequence[str]] | None,
    prompt_ids: Sequence | None,
    tokenizer,
    as_bytes: bool = False,
) -> list[list[np.ndarray]]:
    """
    The prompts of each transcript as rows of numbers: token ids, or UTF-8 bytes if `as_bytes` is set and there is no
    tokenizer.

    Raises:
        `ValueError`: If both columns or none were given, or a tokenizer is missing.
    """
    if (prompts is None) == (prompt_ids is None):
        if prompts is not None:
            raise ValueError("Give either `prompts` or `prompt_ids`, not both.")
        raise missing(metric, ["prompts"], ["prompt_ids"])
    if prompt_ids is not None:
        return [[np.array(ids, dtype=np.int64) for ids in transcript] for transcript in prompt_ids]
    if tokenizer is None and as_bytes:
        return [[np.frombuffer(p.encode("utf-8", "surrogatepass"), np.uint8) for p in one] for one in prompts]
    if tokenizer is None:
        raise ValueError(
            "Strings are counted in tokens: pass `tokenizer` (a name, folder or object), or `prompt_ids`."
        )
    tokenizer = load_tokenizer(tokenizer)
    return [[np.array(ids, dtype=np.int64) for ids in encode(one, tokenizer)] for one in prompts]


def count_kept(keep_mask: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Number of kept tokens and of all tokens, over all texts. Raises `ValueError` if there is no token."""
    kept, tokens = sum(map(sum, keep_mask)), sum(map(len, keep_mask))
    if tokens == 0:
        raise ValueError("The texts have no token at all.")
    return kept, tokens


def check_counts(num_dropped: Sequence[int], num_tokens: Sequence[int]) -> None:
    for place, (dropped, tokens) in enumerate(zip(num_dropped, num_tokens)):
        if not 0 <= dropped <= tokens:
            raise ValueError(f"Text {place}: `num_dropped` must lie in [0, num_tokens], got {dropped} of {tokens}.")
    if sum(num_tokens) == 0:
        raise ValueError("The texts have no token at all.")


def check_bits(bits: Sequence[float]) -> None:
    """Raise `ValueError` unless all bits `-log2 p` are finite and, except for rounding, not negative."""
    for place, value in enumerate(bits):
        if not -1e-3 <= value < math.inf:
            raise ValueError(f"Bits must be `-log2 p` in [0, inf), got {value} at place {place}.")
