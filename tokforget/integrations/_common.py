"""Shared code of the integrations: load a compressor, check options, and describe results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tokforget.compression.compressor import Compressor
from tokforget.compression.results import CompressedText
from tokforget.optional import MissingPackage
from tokforget.rates import check_whole


if TYPE_CHECKING:
    import pyarrow

    from tokforget.integrations.huggingface import ColumnCompressor


# Prefix of the names that are added to a user's own metadata.
PREFIX = "tokforget_"


def _is_told_apart(options: dict) -> bool:
    """Whether each text has its own budget; a threshold or a common budget may leave nothing of a text."""
    return options.get("threshold") is None and options.get("budget", "per_text") == "per_text"


def compress_documents(compressor: Compressor, texts: list[str], options: dict, **told) -> list[CompressedText]:
    """
    As `compress`, for retrieved documents. A document so short that its own budget would leave nothing is returned
    whole. If a threshold or a common budget leaves nothing of a document, the result is empty.
    """
    options = options | told
    results = compressor.compress(texts, **options)
    lost = [n for n, (text, result) in enumerate(zip(texts, results)) if text.strip() and not result.text.strip()]
    if lost and _is_told_apart(options):
        question = options.get("question")
        of_lost = question if question is None or isinstance(question, str) else [question[n] for n in lost]
        budget = {"rate": 1.0, "target_tokens": None, "quality": None, "risk": None, "question": of_lost}
        for n, whole in zip(lost, compressor.compress([texts[n] for n in lost], **options | budget)):
            results[n] = whole
    return results


def without_other_budgets(options: dict, of_call: dict) -> dict:
    """The options without their budget where a call brings its own; a `quality` of the call keeps the `risk`."""
    budgets = {"rate", "target_tokens", "threshold", "quality"}
    if not budgets & of_call.keys():
        return options
    replaced = budgets if of_call.get("quality") is not None else budgets | {"risk"}
    return {name: value for name, value in options.items() if name not in replaced}


def ready(compressor: Compressor | str | Path | None, options: dict) -> Compressor:
    """
    The compressor that a user passes: a loaded one, a folder or Hub id, or None for the packaged model.

    Raises:
        `ValueError`, `TypeError`: If the compressor or the options of `compress` are wrong; this is checked before the
        first text.
    """
    if not isinstance(compressor, Compressor):
        compressor = Compressor.from_pretrained(compressor)
    compressor.compress([], **options)
    return compressor


@contextmanager
def needs_extra(what: str, extra: str, *packages: str) -> Iterator[None]:
    """
    Context for imports of packages that an extra of setup.py installs.

    Args:
        what (`str`): The feature that needs the packages; the message begins with it.
        extra (`str`): The extra.
        *packages (`str`): Import names of these packages; errors about other packages are not changed.

    Raises:
        [`tokforget.optional.MissingPackage`]: If one of the packages is not installed; the message names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in packages:
            raise
        raise MissingPackage(
            f"{what} needs the package {package!r}: pip install 'tokforget[{extra}]'", name=error.name
        ) from error


def check_each_row_alone(options: dict) -> None:
    """Raise `ValueError` for a budget shared by several rows, because the engine decides which rows form a batch."""
    if options.get("budget", "per_text") != "per_text":
        raise ValueError(
            f"`budget={options['budget']!r}` is spent over the rows of a batch, and which rows those are an engine decides anew "
            "in each run: leave it out, so that each row has its own."
        )


def check_batch_size(batch_size: int) -> None:
    """Raise `ValueError` unless `batch_size` is a whole number of at least 1."""
    check_whole(batch_size, "batch_size", 1)


def check_text_column(column: str, is_text: bool, kind: object) -> None:
    """Raise `TypeError` if the schema says that a column does not hold strings."""
    if not is_text:
        raise TypeError(f"Column {column!r} must hold strings, and holds {kind}: convert it first.")


def compress_table(function: "ColumnCompressor", table: "pyarrow.Table") -> "pyarrow.Table":
    """
    The table with the columns that `function` writes. They are appended, except that a replaced text column keeps its
    place. The other columns are not copied.
    """
    import pyarrow as pa

    function.check_columns(table.column_names)
    read = [name for name in (function.column, function.question_column) if name is not None]
    done = function({name: table.column(name).to_pylist() for name in read})
    texts = table.schema.field(function.column).type
    for name, values in done.items():
        # Engines compare the types of a column's blocks, so an empty block needs the type of a full one.
        kind = texts if name == function.output_column else pa.float64() if name == "compression_rate" else pa.int64()
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, pa.array(values, kind))
        else:
            table = table.append_column(name, pa.array(values, kind))
    return table
