"""
A column of texts in a Spark data frame: `pip install tokforget[spark]`.

Each Python process of an executor holds one compressor. What it writes of a row depends on that row alone, and it writes nothing
elsewhere: a task that Spark runs again, or twice at once, has the same result. `PYSPARK_PYTHON` must name a Python that has
tokforget.
"""

import pickle
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokforget.compression.compressor import Compressor
from tokforget.compression.results import COLUMNS
from tokforget.integrations._common import (
    check_batch_size,
    check_each_row_alone,
    check_text_column,
    compress_table,
    needs_extra,
)
from tokforget.integrations.huggingface import ColumnCompressor, compress_column


if TYPE_CHECKING:
    import pyarrow
    from pyspark.sql import DataFrame


@lru_cache(maxsize=2)  # a pipeline may compress two columns in turn
def _loaded(function: bytes) -> ColumnCompressor:
    """What was pickled, loaded once in this process: Spark hands it to every task, and keeps its Python processes."""
    return pickle.loads(function)


class _Partition:
    """
    The function of `mapInArrow`: the batches of a partition, each with the columns that are added. `function` is a pickled
    `ColumnCompressor`.
    """

    def __init__(self, function: bytes, batch_size: int):
        self.function, self.batch_size = function, batch_size

    def __call__(self, batches: "Iterator[pyarrow.RecordBatch]") -> "Iterator[pyarrow.RecordBatch]":
        import pyarrow as pa

        for batch in batches:
            for start in range(0, batch.num_rows, self.batch_size):
                rows = pa.Table.from_batches([batch.slice(start, self.batch_size)])
                yield from compress_table(_loaded(self.function), rows).to_batches()


def compress_spark_dataframe(
    df: "DataFrame",
    column: str = "text",
    question_column: str | None = None,
    output_column: str = COLUMNS[0],
    model: Compressor | str | Path | None = None,
    batch_size: int = 64,
    **options,
) -> "DataFrame":
    """
    Compress a column of a Spark data frame, as [`tokforget.integrations.huggingface.compress_column`] does for `datasets.map`:
    row by row with the same result. It is a narrow transformation, by `mapInArrow`, so that the other columns keep their
    values to the bit; as many tasks run at once as Spark has cores and the frame has partitions.

    Args:
        df (`pyspark.sql.DataFrame`): Of any source.
        column (`str`): Where the texts are.
        question_column (`str`, *optional*): Where the question of each text is, for a model that takes questions; a row may
            have none.
        output_column (`str`): Where the compressed text goes; `original_tokens`, `compressed_tokens` and `compression_rate`
            stand beside it. A column that is there already is refused, but for `column` itself, whose texts are then replaced.
        model (`Compressor`, `str` or `Path`, *optional*): Or the folder or Hub id of one; the packaged model without. It is read
            here and sent along: executors need neither the folder nor a network.
        batch_size (`int`): Rows that a task compresses at once.
        **options: As in `Compressor.compress`: `rate`, `target_tokens`, `quality`, `protect` and so on; each row has a budget of
            its own.

    Returns:
        `pyspark.sql.DataFrame`: The rows with four more columns: a string, two `bigint` and a `double`.

    Raises:
        `ValueError`: If a column is missing or would be overwritten, or options exclude each other.
        `TypeError`: If this is no data frame, or a column holds no strings. Rows without a text are found by the tasks.
        [`tokforget.optional.MissingPackage`]: If PySpark or PyArrow is not installed.

    >>> compress_spark_dataframe(spark.read.parquet("articles"), "article", rate=0.3)  # doctest: +SKIP
    """
    with needs_extra("`compress_spark_dataframe`", "spark", "pyspark", "pyarrow"):
        import pyarrow  # noqa: F401
        from pyspark import cloudpickle
        from pyspark.sql.types import DoubleType, LongType, StringType, StructField, StructType
    if not hasattr(df, "mapInArrow"):  # Spark Connect has a class of its own
        raise TypeError(
            f"`df` must be a Spark DataFrame, got a {type(df).__name__}: `spark.createDataFrame` makes one."
        )
    check_batch_size(batch_size)
    check_each_row_alone(options)
    function = compress_column(model, column, question_column, output_column, **options)
    function.check_columns(_as_spark_reads(df, function.added))
    for field in df.schema.fields:
        if field.name in (column, question_column):
            check_text_column(field.name, isinstance(field.dataType, StringType), field.dataType.simpleString())
    kinds = {name: DoubleType() if name == "compression_rate" else LongType() for name in COLUMNS[1:]}
    added = [StructField(name, kinds.get(name, StringType())) for name in function.added if name not in df.columns]
    # Spark's own pickle takes functions that no module holds, such as a lambda in `count_tokens`.
    return df.mapInArrow(_Partition(cloudpickle.dumps(function), batch_size), StructType([*df.schema.fields, *added]))


def _as_spark_reads(df: "DataFrame", added: tuple[str, ...]) -> list[str]:
    """The names of its columns; one that Spark does not tell from a column that is added, by case alone, has that one's name."""
    if df.sparkSession.conf.get("spark.sql.caseSensitive") == "true":
        return df.columns
    same = {name.lower(): name for name in added}
    return [name if name in added else same.get(name.lower(), name) for name in df.columns]
