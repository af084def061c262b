"""Ray Data on this machine: the rows are those of a local run, also where workers are killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.support.bulk_job import kill_job
from tests.support.bulk_rows import KillingCounter, make_rows
from tokforget.compression.results import COLUMNS
from tokforget.integrations.huggingface import compress_column
from tokforget.integrations.ray import BatchCompressor, compress_ray_dataset


ROOT = Path(__file__).parents[2]
ROWS = make_rows(240)


def local(rows: list[dict] = ROWS, **options) -> list[dict]:
    """What `compress_column` makes of them."""
    function = compress_column(**options)
    return [row | function(row) for row in rows]


def by_id(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: row["id"])


# -- without an engine -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("output_column", ["compressed", "text"])
def test_a_batch_of_either_format_is_what_the_function_makes_of_its_rows(output_column):
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    function = compress_column(rate=0.4, question_column="question", output_column=output_column)
    batch, expected = BatchCompressor(function), local(ROWS[:12], rate=0.4, question_column="question", output_column=output_column)  # fmt: skip
    table = batch(pa.Table.from_pylist(ROWS[:12]))
    assert table.to_pylist() == expected and table.column_names == list(expected[0])
    frame = batch(pd.DataFrame(ROWS[:12]))
    assert frame.drop(columns="question").to_dict("records") == [
        {name: value for name, value in row.items() if name != "question"} for row in expected
    ]
    assert batch(pa.Table.from_pylist(ROWS[:12])[:0]).schema == table.schema


def test_what_a_batch_cannot_be_is_one_line():
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    batch = BatchCompressor(compress_column(rate=0.4))
    for missing in (pa.table({"text": ["a", None]}), pd.DataFrame({"text": ["a", None]}), pd.DataFrame({"text": ["a", pd.NA]}, dtype="string")):  # fmt: skip
        with pytest.raises(ValueError, match="'text' holds None in 1 of 2 rows. Leave these rows out first"):
            batch(missing)
    with pytest.raises(ValueError, match="No column 'text'; there are 'txt'"):
        batch(pd.DataFrame({"txt": ["a"]}))
    with pytest.raises(ValueError, match="already has compressed: rename"):
        batch(pa.table({"text": ["a"], "compressed": ["b"]}))
    with pytest.raises(TypeError, match="got a dict: pass `batch_format='pyarrow'`"):
        batch({"text": ["a"]})
    with pytest.raises(ValueError, match="`budget='corpus'` is spent over the rows of a batch"):
        BatchCompressor(compress_column(rate=0.4, budget="corpus"))


@pytest.mark.slow
def test_importing_the_module_brings_no_engine_and_a_missing_one_names_the_extra():
    code = (
        "import sys; from tokforget.integrations.ray import compress_ray_dataset\n"
        "print([name for name in ('ray', 'pandas', 'pyarrow') if name in sys.modules])\n"
        "sys.modules['ray'] = None\n"
        "compress_ray_dataset(None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
    line = "tokforget.optional.MissingPackage: `compress_ray_dataset` needs the package 'ray': pip install 'tokforget[ray]'"  # fmt: skip
    assert done.stderr.splitlines()[-1] == line


# -- with Ray ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ray():
    """Ray on this machine alone: no figures are sent, no page is served, and nothing is left in folders of the user."""
    folder = tempfile.mkdtemp(prefix="ray-")  # sockets lie in it, whose paths must be short
    before = psutil.Process().children(recursive=True)
    with pytest.MonkeyPatch.context() as patched:
        # Before Ray is imported, which reads some of it once.
        patched.setenv("RAY_worker_niceness", "0")  # at Ray's 15 a busy machine hardly gets to them
        patched.setenv("PYTHONPATH", str(ROOT))
        try:
            ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tokforget[ray]'")
            pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'tokforget[ray]'")
            # Four CPUs are promised, whatever the machine has: two actors and beside them what reads and writes.
            ray.init(
                num_cpus=4, include_dashboard=False, _temp_dir=folder,
                object_store_memory=150 * 2**20, log_to_driver=False,
            )  # fmt: skip
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield ray
        finally:
            workers = [one for one in psutil.Process().children(recursive=True) if one not in before]
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()
            _, alive = psutil.wait_procs(workers, 60)  # they end by themselves, a moment later
            for one in alive:
                one.kill()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def dataset(ray):
    return ray.data.from_items(ROWS, override_num_blocks=12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"rate": 0.4, "question_column": "question", "count_tokens": lambda text: len(text.split())}, {"quality": 0.7, "output_column": "text"}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_two_workers_make_what_a_local_run_makes(dataset, options):
    short = compress_ray_dataset(dataset, batch_size=16, concurrency=2, **options)
    assert by_id(short.take_all()) == local(**options)
    assert short.schema().names == [*ROWS[0], *(COLUMNS[1:] if options.get("output_column") == "text" else COLUMNS)]


@pytest.mark.slow
def test_the_class_is_for_calls_of_ones_own(ray, dataset):
    function = compress_column(rate=0.4)
    short = dataset.map_batches(
        BatchCompressor, fn_constructor_args=(function,), batch_format="pandas", batch_size=16,
        compute=ray.data.ActorPoolStrategy(size=2),
    )  # fmt: skip
    assert by_id(short.take_all()) == local(rate=0.4)


@pytest.mark.slow
def test_rows_that_a_filter_has_left_are_compressed_and_none_are_none(dataset):
    """Blocks without a row come along, and a schema that only a run can tell."""
    few = dataset.filter(lambda row: row["id"] in (7, 100))
    kept = compress_ray_dataset(few, rate=0.4, concurrency=1)
    assert by_id(kept.take_all()) == local([ROWS[7], ROWS[100]], rate=0.4)
    none = dataset.filter(lambda row: False)
    assert compress_ray_dataset(none, rate=0.4, concurrency=1).take_all() == []


@pytest.mark.slow
def test_the_rows_of_a_killed_worker_are_computed_again(dataset, tmp_path):
    counter = KillingCounter(tmp_path, at=150)
    short = compress_ray_dataset(dataset, rate=0.4, count_tokens=counter, batch_size=16, concurrency=2)
    found = short.take_all()
    died, begun = counter.killed()
    assert 0 < begun < len(ROWS) and died != os.getpid()
    assert len(counter.processes() - {died}) >= 2, "two others lived on or came instead"
    assert by_id(found) == local(rate=0.4, count_tokens=counter)


@pytest.mark.slow
def test_what_is_wrong_is_one_line(ray, dataset):
    wrong = {
        "No column 'txt'; there are 'id', 'text', 'question'": {"column": "txt"},
        "No column 'asked'": {"question_column": "asked"},
        "Column 'id' must hold strings, and holds int64: convert it first": {"column": "id"},
        "already has question: rename": {"output_column": "question"},
        "in \\(0, 1\\], got 5": {"rate": 5},
        "`budget='corpus'` is spent over the rows": {"budget": "corpus"},
        "`batch_size` must be a whole number of at least 1, got 0": {"batch_size": 0},
    }
    for message, options in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message) as raised:
            compress_ray_dataset(dataset, **options)
        assert "\n" not in str(raised.value)
    with pytest.raises(TypeError, match="`ds` must be a ray.data.Dataset, got a list"):
        compress_ray_dataset(ROWS)
    gaps = ray.data.from_items([{"text": "a"}, {"text": None}])
    with pytest.raises(ray.exceptions.RayTaskError, match="'text' holds None in 1 of 2 rows. Leave these rows out first"):  # fmt: skip
        compress_ray_dataset(gaps, rate=0.4, concurrency=1).take_all()


# -- what is written ---------------------------------------------------------------------------------------------------
def read(folder: Path) -> list[dict]:
    """The rows of all its files, as any reader of a folder finds them."""
    parquet = pytest.importorskip("pyarrow.parquet")
    return by_id([row for path in folder.glob("*.parquet") for row in parquet.read_table(path).to_pylist()])


def dying_sink(folder: Path, mark: Path):
    """Ray's own writer of Parquet, of which one task dies once its file is there."""
    from ray.data._internal.datasource.parquet_datasink import ParquetDatasink

    class Sink(ParquetDatasink):
        def write(self, blocks, ctx):
            done = super().write(blocks, ctx)
            try:
                mark.open("x").close()
            except FileExistsError:
                return done
            os.kill(os.getpid(), signal.SIGKILL)

    return Sink(str(folder))


@pytest.mark.slow
def test_the_file_of_a_killed_writer_is_written_over(dataset, tmp_path):
    """A task that is run again writes under the name it had: its file is there once."""
    short = compress_ray_dataset(dataset, rate=0.4, batch_size=16, concurrency=2)
    short.write_datasink(dying_sink(tmp_path / "short", tmp_path / "died"))
    assert (tmp_path / "died").exists() and len(list((tmp_path / "short").iterdir())) > 1
    assert read(tmp_path / "short") == local(rate=0.4)


@pytest.mark.slow
def test_a_repeated_run_replaces_what_a_killed_one_has_left(dataset, tmp_path):
    part, whole, scratch = tmp_path / "short.part", tmp_path / "short", Path(tempfile.mkdtemp(prefix="ray-"))
    counter = KillingCounter(scratch, at=200)
    command = [sys.executable, "-m", "tests.support.bulk_job", "ray", str(scratch), str(part)]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 300
            while not (scratch / "killed").exists() or not list(part.glob("*.parquet")):
                assert job.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.1)
        finally:
            if job.poll() is None:
                kill_job(job.pid)
            job.wait()
    left = read(part)
    assert 0 < len(left) < len(ROWS), "nothing in the folder says that it is not whole: it goes by its name"
    short = compress_ray_dataset(dataset, rate=0.4, count_tokens=counter, batch_size=16, concurrency=2)
    short.write_parquet(str(part), mode="overwrite")
    os.rename(part, whole)
    assert read(whole) == local(rate=0.4, count_tokens=counter)
    with pytest.raises(OSError):  # and once more is refused, rather than added
        part.mkdir()
        os.rename(part, whole)
    shutil.rmtree(scratch)
