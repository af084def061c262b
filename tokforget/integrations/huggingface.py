"""A function for `datasets.map`, and a callable like a `transformers` pipeline."""

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from tokforget.compression.compressor import Compressor
from tokforget.compression.counting import TokenCounter
from tokforget.compression.request import check_rows
from tokforget.compression.results import COLUMNS, columns
from tokforget.forks import share_cores
from tokforget.integrations._common import check_batch_size, ready, without_other_budgets


class ColumnCompressor:
    """
    The function that [`compress_column`] returns. The same model and options pickle to the same bytes, so that `map`
    finds its cache and can start processes.
    """

    def __init__(
        self,
        compressor: Compressor,
        column: str,
        options: dict,
        question_column: str | None = None,
        output_column: str = COLUMNS[0],
    ):
        self.compressor, self.column, self.options, self.question_column = compressor, column, options, question_column
        self.output_column = output_column

    @property
    def added(self) -> tuple[str, ...]:
        """The columns that it writes, the compressed text first."""
        return (self.output_column, *COLUMNS[1:])

    def check_columns(self, names: Iterable[str]) -> None:
        """Raise `ValueError` if a column that is read is missing, or a column would be overwritten."""
        names = list(names)
        for column in (self.column, self.question_column):
            if column is not None and column not in names:
                raise ValueError(f"No column {column!r}; there are {', '.join(map(repr, names))}.")
        taken = [name for name in self.added if name in names and not name == self.column == self.output_column]
        if taken:
            raise ValueError(
                f"The data set already has {', '.join(taken)}: rename or remove what would be overwritten, or name another "
                "`output_column` for the text."
            )

    def __call__(self, rows: dict) -> dict:
        if not isinstance(rows, Mapping) and hasattr(rows, "column_names"):
            raise TypeError(
                "Rows came as a table of Arrow or Polars, and what is read is a dictionary of columns: map `dataset.with_format(None)`."
            )
        self.check_columns(rows)
        share_cores(os.getpid())
        texts = rows[self.column]
        if texts is not None and (isinstance(texts, bytes) or not isinstance(texts, Iterable)):
            raise TypeError(
                f"Column {self.column!r} must hold strings, and holds a {type(texts).__name__}, {texts!r:.60}."
            )
        missing = [texts] if texts is None else [] if isinstance(texts, str) else [t for t in texts if t is None]
        if missing:
            raise ValueError(
                f"Column {self.column!r} holds None in {len(missing)} of {1 if texts is None else len(texts)} rows. Leave these rows out "
                f"first: `dataset.filter(lambda row: row[{self.column!r}] is not None)`, in Spark `df.dropna(subset=[{self.column!r}])`."
            )
        questions = None if self.question_column is None else rows[self.question_column]
        told = {} if questions is None else {"question": questions if isinstance(texts, str) else list(questions)}
        if isinstance(texts, str):
            return columns(self.compressor.compress(texts, **self.options, **told), self.output_column)
        results = self.compressor.compress(list(texts), **self.options, **told)
        done = [columns(result, self.output_column) for result in results]
        return {name: [row[name] for row in done] for name in self.added}

    def __getstate__(self) -> dict:
        # Without its folder: the model's location does not matter, except for the calibration that `quality` needs.
        promised = self.options.get("quality") is not None
        return {
            "compressor": Compressor(self.compressor.policy, self.compressor.tokenizer),
            "calibration": self.compressor.calibration if promised else None,
            "column": self.column,
            "options": self.options,
            "question_column": self.question_column,
            "output_column": self.output_column,
        }

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        calibration = state.pop("calibration")
        vars(self).update(state)
        if calibration is not None:
            self.compressor.calibration = calibration


def compress_column(
    compressor: Compressor | str | Path | None = None,
    column: str = "text",
    question_column: str | None = None,
    output_column: str = COLUMNS[0],
    **options,
) -> ColumnCompressor:
    """
    A function for `datasets.Dataset.map`, with `batched=True` or without, and with any `num_proc`.

    It adds the columns `compressed`, `original_tokens`, `compressed_tokens` and `compression_rate`. With
    `budget="corpus"` the texts of a batch share a budget.

    Args:
        compressor (`Compressor`, `str` or `Path`, *optional*): A compressor, or its folder or Hub id; the packaged
            model by default.
        column (`str`): Column of the texts.
        question_column (`str`, *optional*): Column of the questions, for a model that takes questions.
        output_column (`str`): Column for the compressed text. It must not exist, except that `column` itself may be
            replaced.
        **options: As in `Compressor.compress`. The tokenizer that `count_tokens` names is loaded here and pickled.

    Returns:
        [`ColumnCompressor`]: The function.

    Raises:
        `ValueError`, `TypeError`: If the model or an option is wrong.

    >>> dataset.map(compress_column(column="article", rate=0.3), batched=True)  # doctest: +SKIP
    """
    if output_column in COLUMNS[1:]:
        raise ValueError(
            f"`output_column` {output_column!r} is written beside the text, as are {', '.join(COLUMNS[1:])}: choose another name."
        )
    compressor = ready(compressor, options)
    if (
        options.get("count_tokens") is not None
    ):  # the cache of `map` depends on the tokenizer's content, not on its path
        options["count_tokens"] = TokenCounter.of(options["count_tokens"])
    if question_column is not None and not compressor.takes_question:
        raise ValueError("`question_column` needs a model that takes questions; this one was trained without.")
    return ColumnCompressor(compressor, column, options, question_column, output_column)


class CompressionPipeline:
    """
    Compression with the calls of a `transformers` pipeline: a text or a list gives a list of dictionaries; any other
    iterable (a generator, a data set's column) gives an iterator over dictionaries.

    Args:
        model (`Compressor`, `str` or `Path`, *optional*): A compressor, or its folder or Hub id; the packaged model by
            default.
        device (*optional*): Device of the policy.
        batch_size (`int`): Texts per batch of an iterable.
        **options: As in `Compressor.compress`; each call may override them.

    >>> pipe = CompressionPipeline(rate=0.5)  # doctest: +SKIP
    >>> pipe("The meeting has been moved to Tuesday.", rate=0.3)[0]["compressed"]  # doctest: +SKIP
    """

    task = "prompt-compression"

    def __init__(self, model: Compressor | str | Path | None = None, device=None, batch_size: int = 64, **options):
        self.compressor, self.batch_size, self.options = ready(model, options), batch_size, options
        check_batch_size(batch_size)
        if device is not None:
            self.compressor.to(device)

    def __call__(self, inputs: str | list[str] | Iterable[str], **options) -> list[dict] | Iterator[dict]:
        options = self._merged(options)
        if isinstance(inputs, str):
            return [columns(self.compressor.compress(inputs, **options))]
        if isinstance(inputs, (list, tuple)):
            return [columns(result) for result in self.compressor.compress(inputs, **options)]
        check_rows(inputs)
        ready(self.compressor, options)  # now, not at the first result
        return self._one_by_one(iter(inputs), options)

    def _merged(self, options: dict) -> dict:
        """The constructor's options, overridden by the call's; a budget of any kind replaces one of another kind."""
        return without_other_budgets(self.options, options) | options

    def _one_by_one(self, texts: Iterator[str], options: dict) -> Iterator[dict]:
        while batch := list(islice(texts, self.batch_size)):
            yield from (columns(result) for result in self.compressor.compress(batch, **options))
