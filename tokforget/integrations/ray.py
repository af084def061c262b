"""
A column of texts in a Ray data set: `pip install tokforget[ray]`.

Each actor of `map_batches` holds one compressor. The result for a row depends only on that row, and an actor has no
other effects. Therefore a batch that is computed again, because an actor or its machine was lost, has the same result.
"""

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
    import pandas
    import pyarrow
    import ray.data


class BatchCompressor:
    """
    A class for `ray.data.Dataset.map_batches` with `batch_format="pyarrow"` or `"pandas"`, to choose the arguments of
    the actors (GPUs, memory, labels); otherwise [`compress_ray_dataset`] is shorter. Ray makes one instance per actor.

    Args:
        function (`ColumnCompressor`): The result of [`tokforget.integrations.huggingface.compress_column`]. It
            contains the model: the machines of a cluster need tokforget, but no model folder.

    >>> ds.map_batches(  # doctest: +SKIP
    ...     BatchCompressor, fn_constructor_args=(compress_column(column="article", rate=0.3),), batch_format="pandas",
    ...     batch_size=64, compute=ray.data.ActorPoolStrategy(size=8), num_cpus=1,
    ... )
    """

    def __init__(self, function: ColumnCompressor):
        check_each_row_alone(function.options)
        self.function = function

    def __call__(self, batch: "pyarrow.Table | pandas.DataFrame") -> "pyarrow.Table | pandas.DataFrame":
        if hasattr(batch, "column_names"):
            return compress_table(self.function, batch)
        if not hasattr(batch, "columns"):
            raise TypeError(
                f"A batch must be a table, got a {type(batch).__name__}: pass `batch_format='pyarrow'` or `'pandas'`."
            )
        self.function.check_columns(batch.columns)
        read = [name for name in (self.function.column, self.function.question_column) if name is not None]
        # pandas has several missing values; the compressor's checks know only None.
        values = {name: batch[name].astype(object).where(batch[name].notna(), None).tolist() for name in read}
        return batch.assign(**self.function(values))


def compress_ray_dataset(
    ds: "ray.data.Dataset",
    column: str = "text",
    question_column: str | None = None,
    output_column: str = COLUMNS[0],
    model: Compressor | str | Path | None = None,
    concurrency: int | tuple[int, int] | None = None,
    batch_size: int = 64,
    **options,
) -> "ray.data.Dataset":
    """
    Compress a column of a Ray data set, row by row, with the same result as
    [`tokforget.integrations.huggingface.compress_column`] for `datasets.map`. Nothing is computed until the returned
    data set is consumed, except the schema if Ray does not know it yet.

    Args:
        ds (`ray.data.Dataset`): Any data set.
        column (`str`): Column of the texts.
        question_column (`str`, *optional*): Column of the questions, for a model that takes questions; a row may have
            none.
        output_column (`str`): Column for the compressed text; `original_tokens`, `compressed_tokens` and
            `compression_rate` are added, too. None of them may exist, except that `column` itself may be replaced.
        model (`Compressor`, `str` or `Path`, *optional*): A compressor, or its folder or Hub id; the packaged model by
            default. It is loaded here and sent to the actors: other machines need neither the folder nor a network.
        concurrency (`int` or `(int, int)`, *optional*): Number of actors, or the least and the most; by default one
            per free CPU. Leave a CPU for reading and writing.
        batch_size (`int`): Rows per batch of an actor.
        **options: As in `Compressor.compress`: `rate`, `target_tokens`, `quality`, `protect` and so on. Each row has
            its own budget.

    Returns:
        `ray.data.Dataset`: The rows with four more columns, in Ray's order.

    Raises:
        `ValueError`: If a column is missing or would be overwritten, or options exclude each other.
        `TypeError`: If `ds` is no Ray data set, or a column does not hold strings. Rows without a text are only found
            by the actors.
        [`tokforget.optional.MissingPackage`]: If Ray Data is not installed.

    >>> compress_ray_dataset(ray.data.read_parquet("articles"), "article", rate=0.3, concurrency=8)  # doctest: +SKIP
    """
    with needs_extra("`compress_ray_dataset`", "ray", "ray", "pyarrow", "pandas"):
        import pyarrow as pa
        import ray.data
    if not isinstance(ds, ray.data.Dataset):
        raise TypeError(f"`ds` must be a ray.data.Dataset, got a {type(ds).__name__}: `ray.data.from_huggingface` and others make one.")  # fmt: skip
    check_batch_size(batch_size)
    check_each_row_alone(options)
    function = compress_column(model, column, question_column, output_column, **options)
    schema = ds.schema()
    if schema is not None:  # the schema of an empty data set is unknown
        function.check_columns(schema.names)
        for name, kind in zip(schema.names, schema.types):
            if name in (column, question_column) and isinstance(kind, pa.DataType):
                is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
                check_text_column(name, is_text, kind)
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    pool = {} if concurrency is None else {"min_size": least, "max_size": most}
    return ds.map_batches(
        BatchCompressor,
        fn_constructor_args=(function,),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(**pool),
        udf_modifying_row_count=False,
    )
