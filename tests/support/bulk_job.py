"""
A bulk job in a process of its own, which stops in the middle for ever: `python -m tests.support.bulk_job ray|spark SCRATCH OUT`.

It compresses the rows of `bulk_rows` and writes them to the folder OUT. The worker that gets to row 200 is stopped by SIGSTOP, and
leaves a mark in SCRATCH; the other goes on. Whoever started the job is to end it, with `kill_job`.
"""

import signal
import sys
from pathlib import Path

import psutil

from tests.support.bulk_rows import KillingCounter, make_rows


def run_ray(scratch: Path, out: Path, counter: KillingCounter) -> None:
    import ray.data

    from tokforget.integrations.ray import compress_ray_dataset

    ray.init(num_cpus=4, include_dashboard=False, _temp_dir=str(scratch / "ray"), object_store_memory=150 * 2**20)
    ds = ray.data.from_items(make_rows(240), override_num_blocks=12)
    short = compress_ray_dataset(ds, rate=0.4, count_tokens=counter, batch_size=16, concurrency=2)
    short.write_parquet(str(out), mode="overwrite")


def run_spark(scratch: Path, out: Path, counter: KillingCounter) -> None:
    from pyspark.sql import SparkSession

    from tokforget.integrations.spark import compress_spark_dataframe

    builder = SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
    spark = builder.config("spark.driver.extraJavaOptions", f"-Djava.io.tmpdir={scratch}").getOrCreate()
    rows = [tuple(row.values()) for row in make_rows(240)]
    df = spark.createDataFrame(rows, "id long, text string, question string").repartition(12, "id")
    compress_spark_dataframe(df, rate=0.4, count_tokens=counter).write.mode("overwrite").parquet(str(out))


def kill_job(pid: int) -> None:
    """SIGKILL for a job and all that it has started: as when a machine is lost."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:  # it went with another
            continue
    _, alive = psutil.wait_procs(family, 60)
    if alive:
        raise RuntimeError(f"still there: {alive}")


if __name__ == "__main__":
    engine, scratch, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    {"ray": run_ray, "spark": run_spark}[engine](scratch, out, KillingCounter(scratch, 200, signal.SIGSTOP))
