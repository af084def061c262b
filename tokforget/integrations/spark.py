"""
A column of texts in a Spark data frame: `pip install tokforget[spark]`.

Each Python process of an executor holds one compressor. The result for a row depends only on that row, and a task has
no other effects. Therefore a task that Spark runs again, or twice at once, has the same result. `PYSPARK_PYTHON` must
name a Python in which tokforget is installed.
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
    """Unpickle the function once per process: Spark passes it to every task and reuses its Python processes."""
    return pickle.loads(function)


class _Partition:
    """
    The function for `mapInArrow`: adds the columns to each batch of a partition. `function` is a pickled
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
    Compress a column of a Spark data frame, row by row, with the same result as
    [`tokforget.integrations.huggingface.compress_column`] for `datasets.map`. It is a narrow transformation by
    `mapInArrow`; the other columns are not changed. The number of concurrent tasks depends on Spark's cores and the
    partitions of the frame.

    Args:
        df (`pyspark.sql.DataFrame`): Any data frame.
        column (`str`): Column of the texts.
        question_column (`str`, *optional*): Column of the questions, for a model that takes questions; a row may have
            none.
        output_column (`str`): Column for the compressed text; `original_tokens`, `compressed_tokens` and
            `compression_rate` are added, too. None of them may exist, except that `column` itself may be replaced.
        model (`Compressor`, `str` or `Path`, *optional*): A compressor, or its folder or Hub id; the packaged model by
            default. It is loaded here and sent to the executors, which need neither the folder nor a network.
        batch_size (`int`): Rows per batch of a task.
        **options: As in `Compressor.compress`: `rate`, `target_tokens`, `quality`, `protect` and so on. Each row has
            its own budget.

    Returns:
        `pyspark.sql.DataFrame`: The rows with four more columns: a string, two `bigint` and a `double`.

    Raises:
        `ValueError`: If a column is missing or would be overwritten, or options exclude each other.
        `TypeError`: If `df` is no data frame, or a column does not hold strings. Rows without a text are only found by
            the tasks.
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
    # Spark's own pickle supports functions that are in no module, such as a lambda in `count_tokens`.
    return df.mapInArrow(_Partition(cloudpickle.dumps(function), batch_size), StructType([*df.schema.fields, *added]))


def _as_spark_reads(df: "DataFrame", added: tuple[str, ...]) -> list[str]:
    """
    The names of the columns. Spark may ignore case; a name that then equals an added column's is replaced by that
    name.
    """
    if df.sparkSession.conf.get("spark.sql.caseSensitive") == "true":
        return df.columns
    same = {name.lower(): name for name in added}
    return [name if name in added else same.get(name.lower(), name) for name in df.columns]
