"""Spark on this machine: the rows are those of a local run, also where Python processes are killed."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.bulk_job import kill_job
from tests.support.bulk_rows import KillingCounter, make_rows
from tokforget.compression.results import COLUMNS
from tokforget.integrations import spark as adapter
from tokforget.integrations.huggingface import compress_column
from tokforget.integrations.spark import compress_spark_dataframe


ROOT = Path(__file__).parents[2]
ROWS = make_rows(240)


def local(rows: list[dict] = ROWS, **options) -> list[dict]:
    """What `compress_column` makes of them."""
    function = compress_column(**options)
    return [row | function(row) for row in rows]


def as_dicts(df) -> list[dict]:
    return sorted((row.asDict() for row in df.collect()), key=lambda row: row["id"])


@pytest.mark.slow
def test_importing_the_module_brings_no_engine_and_a_missing_one_names_the_extra():
    code = (
        "import sys; from tokforget.integrations.spark import compress_spark_dataframe\n"
        "print([name for name in ('pyspark', 'pandas', 'pyarrow') if name in sys.modules])\n"
        "sys.modules['pyspark'] = None\n"
        "compress_spark_dataframe(None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
    line = "tokforget.optional.MissingPackage: `compress_spark_dataframe` needs the package 'pyspark': pip install 'tokforget[spark]'"  # fmt: skip
    assert done.stderr.splitlines()[-1] == line


def test_a_process_loads_the_compressor_once_and_slices_what_spark_hands_over():
    pa = pytest.importorskip("pyarrow")
    function = compress_column(rate=0.4)
    adapter._loaded.cache_clear()
    for rows in (ROWS[:10], ROWS[10:13]):  # two tasks
        part = adapter._Partition(pickle.dumps(function), batch_size=4)
        batches = list(part(iter([pa.RecordBatch.from_pylist(rows)])))
        assert [row for batch in batches for row in batch.to_pylist()] == local(rows, rate=0.4)
        assert max(batch.num_rows for batch in batches) <= 4
    assert adapter._loaded.cache_info().misses == 1


# -- with Spark --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def spark():
    """Spark on this machine alone, with two cores, no page, and up to four attempts of a task."""
    pytest.importorskip("pyspark", reason="Spark is not installed: pip install 'tokforget[spark]'")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Spark needs Java, and there is none")
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    folder = tempfile.mkdtemp(prefix="spark-")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYSPARK_PYTHON", sys.executable)
        patched.setenv("PYTHONPATH", str(ROOT))
        patched.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patched.setenv("SPARK_LOCAL_DIRS", folder)
        builder = SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
        builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
        builder = builder.config("spark.sql.warehouse.dir", f"{folder}/warehouse")
        session = builder.config("spark.driver.extraJavaOptions", f"-Djava.io.tmpdir={folder}").getOrCreate()
        gateway = session.sparkContext._gateway
        try:
            yield session
        finally:
            session.stop()
            gateway.shutdown()
            gateway.proc.stdin.close()  # the Java process ends with it
            gateway.proc.wait(60)
            SparkContext._gateway = SparkContext._jvm = None  # the next one starts its own
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def frame(spark):
    return spark.createDataFrame([tuple(row.values()) for row in ROWS], "id long, text string, question string").repartition(12, "id")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"rate": 0.4, "question_column": "question", "count_tokens": lambda text: len(text.split())}, {"quality": 0.7, "output_column": "text"}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_two_workers_make_what_a_local_run_makes(frame, options):
    short = compress_spark_dataframe(frame, **options)
    assert as_dicts(short) == local(**options)
    added = COLUMNS[1:] if options.get("output_column") == "text" else COLUMNS
    kinds = dict.fromkeys(COLUMNS[1:3], "bigint") | {"compression_rate": "double", "compressed": "string"}
    assert short.dtypes == [*frame.dtypes, *((name, kinds[name]) for name in added)]


@pytest.mark.slow
def test_the_other_columns_stay_as_they_are(spark):
    rows = [("a b c d", 2**60 + 1, [1, None], {"k": "v"}), ("e f g h", None, None, None)]
    before = spark.createDataFrame(rows, "text string, n long, list array<int>, map map<string, string>")
    after = compress_spark_dataframe(before, rate=0.5).select(*before.columns)
    assert after.schema == before.schema
    assert sorted(after.collect(), key=str) == sorted(before.collect(), key=str)


@pytest.mark.slow
def test_the_rows_of_a_killed_worker_are_computed_again(frame, tmp_path):
    counter = KillingCounter(tmp_path, at=150)
    found = as_dicts(compress_spark_dataframe(frame, rate=0.4, count_tokens=counter))
    died, begun = counter.killed()
    assert 0 < begun < len(ROWS) and died != os.getpid()
    assert counter.processes() - {died}, "the other lived on, or one came instead"
    assert found == local(rate=0.4, count_tokens=counter)


@pytest.mark.slow
def test_what_is_wrong_is_one_line(spark, frame):
    wrong = {
        "No column 'txt'; there are 'id', 'text', 'question'": {"column": "txt"},
        "No column 'asked'": {"question_column": "asked"},
        "Column 'id' must hold strings, and holds bigint: convert it first": {"column": "id"},
        "already has question: rename": {"output_column": "question"},
        "in \\(0, 1\\], got 5": {"rate": 5},
        "`budget='corpus'` is spent over the rows": {"budget": "corpus"},
        "`batch_size` must be a whole number of at least 1, got 0": {"batch_size": 0},
    }
    for message, options in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message) as raised:
            compress_spark_dataframe(frame, **options)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="already has Question"):
        compress_spark_dataframe(frame, output_column="Question")
    with pytest.raises(TypeError, match="`df` must be a Spark DataFrame, got a list"):
        compress_spark_dataframe(ROWS)
    assert compress_spark_dataframe(frame.limit(0), rate=0.4).collect() == []
    gaps = spark.createDataFrame([("a",), (None,)], "text string").coalesce(1)
    with pytest.raises(Exception, match="'text' holds None in 1 of 2 rows. Leave these rows out first"):
        compress_spark_dataframe(gaps, rate=0.4).collect()


# -- what is written ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_rows_of_a_killed_worker_are_written_once(spark, frame, tmp_path):
    counter, out = KillingCounter(tmp_path, at=150), tmp_path / "short"
    compress_spark_dataframe(frame, rate=0.4, count_tokens=counter).write.parquet(str(out))
    assert 0 < counter.killed()[1] < len(ROWS) and (out / "_SUCCESS").exists()
    assert as_dicts(spark.read.parquet(str(out))) == local(rate=0.4, count_tokens=counter)


@pytest.mark.slow
def test_a_repeated_run_replaces_what_a_killed_one_has_left(spark, frame, tmp_path):
    from pyspark.errors import AnalysisException

    out, scratch = tmp_path / "short", Path(tempfile.mkdtemp(prefix="spark-"))
    counter = KillingCounter(scratch, at=200)
    command = [sys.executable, "-m", "tests.support.bulk_job", "spark", str(scratch), str(out)]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 300
            while not (scratch / "killed").exists() or not list(out.rglob("task_*/*.parquet")):
                assert job.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.1)
        finally:
            if job.poll() is None:
                kill_job(job.pid)
            job.wait()
    assert not (out / "_SUCCESS").exists() and not list(out.glob("*.parquet")), "no reader takes it for the whole"
    short = compress_spark_dataframe(frame, rate=0.4, count_tokens=counter)
    with pytest.raises(AnalysisException, match="already exists"):
        short.write.parquet(str(out))
    for _ in range(2):
        short.write.mode("overwrite").parquet(str(out))
        assert (out / "_SUCCESS").exists()
        assert as_dicts(spark.read.parquet(str(out))) == local(rate=0.4, count_tokens=counter)
    shutil.rmtree(scratch)
