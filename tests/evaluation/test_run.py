"""A whole evaluation on real, tiny models: repeatable, shared between processes, and a report that only repeats its files."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_model
from tests.support.recipes import call
from tokforget import plots
from tokforget.evaluation.report import write_report


ROOT = Path(__file__).parents[2]
FAST = ["random", "frequency", "head", "self_information", "greedy_oracle"]
FILES = {
    "evaluation_config.json", "model_results.json", "baseline_results.json", "downstream_results.json",
    "speed_results.json", "samples.json", "training_log.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base_folder, tokenizer, texts) -> Path:
    """Two model folders as training leaves them, texts to compress, questions to answer."""
    folder = tmp_path_factory.mktemp("evaluation")
    for seed in (0, 1):
        make_model(base_folder, tokenizer, seed=seed).save_pretrained(folder / f"model_{seed}")
        tokenizer.save_pretrained(folder / f"model_{seed}")
        record = {"seed": seed, "layout": "prefix"}
        (folder / f"model_{seed}" / "training_config.json").write_text(json.dumps(record))
    log = {"log_history": [{"step": s, "bits_lost": 3.0 - s / 10, "rate": 0.5, "entropy": 0.6} for s in (1, 2, 3)]}
    (folder / "model_0" / "trainer_state.json").write_text(json.dumps(log))
    documents = [f"{texts[i]} number {i * 37 % 91} came. " + texts[(i * 7 + 3) % 60] for i in range(60)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    questions = [
        {"passage": "the cat sat on the mat", "question": "did it sit", "answer": True},
        {"passage": "it rained all day", "question": "was it dry", "answer": False},
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return folder


def words(folder: Path, base_folder: str, out: str) -> list:
    return [
        "--model_path", f"policy={folder / 'model_0'}", f"policy={folder / 'model_1'}", f"other={folder / 'model_1'}",
        "--dataset_name", folder / "texts.jsonl", "--max_length", "24", "--min_length", "8", "--max_texts", "8",
        "--batch_size", "3", "--rates", "0.5", "0.7", "--scorers", *FAST, "--num_random_seeds", "2",
        "--continuation_tokens", "8", "--questions", folder / "questions.jsonl", "--question_scorers", "head", "random",
        "--max_new_tokens", "3", "--speed_target", base_folder, "--speed_lengths", "12", "24", "--speed_batch_sizes", "1",
        "2", "--speed_new_tokens", "2", "--speed_repeats", "1", "--heatmap_texts", "2", "--use_cpu", "true",
        "--output_dir", folder / out,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(folder, base_folder) -> Path:
    result = call("evaluate", *words(folder, base_folder, "out"))
    assert result.returncode == 0, result.stderr[-3000:]
    assert "greedy_oracle" in result.stdout and "written: " in result.stdout
    return folder / "out"


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def results(folder: Path) -> list[dict]:
    return read(folder, "model_results.json")["scorers"] + read(folder, "baseline_results.json")["scorers"]


def without_times(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def test_every_file_is_there_and_rows_are_complete(evaluated):
    assert {path.name for path in evaluated.iterdir()} >= FILES
    rows = results(evaluated)
    names = {row["scorer"] for row in rows}
    assert names == {"policy", "other", "keep_all", *FAST}
    common = {"dataset", "seed", "rate", "bits_lost", "bits_lost_interval", "exact_restored", "compression_rate",
              "compression_rate_reencoded", "retention", "texts", "rougeL", "kept_by_class", "data_fingerprint"}  # fmt: skip
    for row in rows:
        assert common <= row.keys(), row["scorer"]
        if row["scorer"] != "keep_all":
            assert {"seconds_per_token", "oracle_gap_closed"} <= row.keys()
    policy = next(row for row in rows if row["scorer"] == "policy")
    assert policy["runs"] == 2 and len(policy["bits_lost_runs"]) == 2, "two training seeds under one label"
    assert [m["seed"] for m in read(evaluated, "evaluation_config.json")["models"]] == [0, 1, 1]


def test_keep_all_is_the_ceiling_and_random_the_floor_of_the_scale(evaluated):
    rows = results(evaluated)
    keep_all = next(row for row in rows if row["scorer"] == "keep_all")
    assert keep_all["bits_lost"] == 0 and keep_all["exact_restored"] == 1.0 and keep_all["rougeL"] == 1.0
    # An untrained reader may gain nothing from the context; then there is no scale, and none is made up.
    assert keep_all["continuation_bits"] == keep_all["continuation_bits_full"]
    assert keep_all["retention"] is None or keep_all["retention"] == pytest.approx(1.0)
    for rate in (0.5, 0.7):
        by_name = {row["scorer"]: row for row in rows if row["rate"] == rate}
        assert by_name["random"]["oracle_gap_closed"] == 0 and by_name["greedy_oracle"]["oracle_gap_closed"] == 1
        assert by_name["greedy_oracle"]["bits_lost"] == min(row["bits_lost"] for row in by_name.values())
        assert len({row["compression_rate"] for row in by_name.values()}) == 1, "equal budgets"


def test_two_training_seeds_are_the_mean_of_the_two(evaluated):
    rows = results(evaluated)
    for rate in (0.5, 0.7):
        policy, other = (next(r for r in rows if r["scorer"] == n and r["rate"] == rate) for n in ("policy", "other"))
        assert policy["bits_lost_runs"][1] == pytest.approx(other["bits_lost"])
        assert policy["bits_lost"] == pytest.approx(sum(policy["bits_lost_runs"]) / 2)
        assert policy["bits_lost_runs"][0] != policy["bits_lost_runs"][1], "another checkpoint, another figure"


def test_every_number_of_the_report_stands_in_a_file(evaluated):
    """Each number as it is printed must be some value of the JSON files, rounded or scaled as the report says."""
    values: set[float] = set()

    def collect(item) -> None:
        if isinstance(item, dict):
            item = list(item.values())
        if isinstance(item, list):
            for part in item:
                collect(part)
        elif isinstance(item, int | float):
            values.add(float(item))

    for name in FILES - {"samples.json", "training_log.json"}:
        collect(read(evaluated, name))
    printed = {f"{v * scale:.{digits}f}" for v in values for digits in range(5) for scale in (1, 100, 1e-6)}
    printed |= {f"{v:g}" for v in values}
    lines = [line for line in (evaluated / "report.md").read_text().splitlines() if line.startswith("|")]
    table = "\n".join(line for line in lines if "`" not in line and "95 %" not in line and "1.1 times" not in line)
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])", re.sub(r"^\| [\w ]+ ", "| ", table, flags=re.M))
    assert len(numbers) > 150
    assert [number for number in numbers if number not in printed and number != "-0.00"] == []


def test_report_and_plots_are_drawn_from_the_files_alone(evaluated, tmp_path):
    for name in FILES:
        shutil.copy(evaluated / name, tmp_path / name)
    written = {path.name for path in write_report(tmp_path)}
    plots = {
        "rate_distortion.png",
        "exact_restored.png",
        "quality_time.png",
        "word_classes.png",
        "training_curves.png",
    }
    assert written == plots | {"report.md", "heatmap.html"}
    assert (tmp_path / "report.md").read_text() == (evaluated / "report.md").read_text()
    assert all((tmp_path / plot).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for plot in plots)
    with pytest.raises(FileNotFoundError, match="no evaluation's output folder"):
        write_report(tmp_path / "nowhere")


def test_the_report_names_no_place_on_this_machine(evaluated, folder, base_folder, tmp_path):
    """The JSON files say where all lay, for oneself; what is shown to others does not, whatever lies in the files."""
    config = read(evaluated, "evaluation_config.json")
    assert str(folder) in json.dumps(config)
    for name in ("report.md", "heatmap.html"):
        text = (evaluated / name).read_text()
        assert str(folder) not in text and str(base_folder) not in text and str(folder.parent) not in text, name
    old, new = config["datasets"][0]["dataset"], "/a/secret/texts.jsonl"
    for name in FILES:
        text = (evaluated / name).read_text().replace(json.dumps(old), json.dumps(new))
        (tmp_path / name).write_text(text)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "secret" not in text and "\n## texts.jsonl\n" in text and "| texts | texts.jsonl (" in text
    assert "secret" not in (tmp_path / "heatmap.html").read_text()


def test_without_matplotlib_the_report_has_no_plots(evaluated, tmp_path, monkeypatch, caplog):
    for name in FILES:
        shutil.copy(evaluated / name, tmp_path / name)
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert {path.name for path in write_report(tmp_path)} == {"report.md", "heatmap.html"}
    tables = [line for line in (evaluated / "report.md").read_text().splitlines() if line.startswith("|")]
    assert [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("|")] == tables
    assert "without plots: matplotlib is missing. `pip install matplotlib`" in caplog.text


def test_plots_show_the_scorers_asked_for_and_tables_all(evaluated, tmp_path):
    for name in FILES:
        shutil.copy(evaluated / name, tmp_path / name)
    plots = ("rate_distortion.png", "exact_restored.png", "quality_time.png", "word_classes.png")
    write_report(tmp_path)
    same = all((tmp_path / plot).read_bytes() == (evaluated / plot).read_bytes() for plot in plots)
    assert same, "the same numbers draw the same plots, so a difference below is that of the scorers"
    config = read(tmp_path, "evaluation_config.json")
    config["arguments"]["plot_scorers"] = ["policy", "random"]
    (tmp_path / "evaluation_config.json").write_text(json.dumps(config))
    write_report(tmp_path)
    assert all((tmp_path / plot).read_bytes() != (evaluated / plot).read_bytes() for plot in plots)
    assert "| greedy_oracle |" in (tmp_path / "report.md").read_text()


def test_the_heat_map_escapes_text_and_tells_right_from_wrong(evaluated, tmp_path):
    for name in FILES:
        shutil.copy(evaluated / name, tmp_path / name)
    sample = {
        "scorer": "s", "rate": 0.5, "dataset": "d", "text": 1, "tokens": ["<b>", " cat", " sat"],
        "kept": [True, False, False], "restored": ["<b>", " cat", " ran"], "exact": [True, True, False],
    }  # fmt: skip
    (tmp_path / "samples.json").write_text(json.dumps([sample]))
    write_report(tmp_path)
    html = (tmp_path / "heatmap.html").read_text()
    assert '<span class="kept">&lt;b&gt;</span><span class="right"> cat</span>' in html
    assert '<span class="wrong"> sat</span><span class="guess"> ran</span>' in html


def check_alike(evaluated: Path, other: Path) -> None:
    assert without_times(results(other)) == without_times(results(evaluated))
    assert read(other, "downstream_results.json") == read(evaluated, "downstream_results.json")


@pytest.mark.slow
def test_two_runs_agree_to_the_last_digit(evaluated, folder, base_folder):
    result = call("evaluate", *words(folder, base_folder, "again"))
    assert result.returncode == 0, result.stderr
    check_alike(evaluated, folder / "again")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_launched_processes_agree_with_it(evaluated, folder, base_folder, processes):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    launcher = [sys.executable] if processes == 1 else torchrun
    out = f"launched_{processes}"
    result = subprocess.run(
        [*launcher, "recipes/evaluate.py", *map(str, words(folder, base_folder, out))],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": os.environ["HF_HOME"], "COLUMNS": "100"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    check_alike(evaluated, folder / out)
    assert read(folder / out, "evaluation_config.json")["num_processes"] == processes


def test_the_baselines_alone(folder, tmp_path):
    common = ["--reconstructor_path", folder / "model_0", "--dataset_name", folder / "texts.jsonl", "--max_length", "24",
              "--min_length", "8", "--max_texts", "4", "--use_cpu", "true", "--output_dir", tmp_path / "out"]  # fmt: skip
    result = call("run_baselines", *common, "--scorers", "random", "frequency", "--rates", "0.5")
    assert result.returncode == 0, result.stderr[-2000:]
    assert [row["scorer"] for row in results(tmp_path / "out")] == ["random", "frequency", "keep_all"]
    refused = call("run_baselines", *common, "--model_path", folder / "model_0")
    assert refused.returncode == 2 and "`model_path` belongs to recipes/evaluate.py" in refused.stderr


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--scorers", "entropy"], "Unknown baseline 'entropy'; there are random, "),
        (["--rates", "1.5"], "`rates` must lie in (0, 1], got 1.5"),
        (["--model_path", "nowhere/model"], "nowhere/model"),
        (["--dataset_name", "nowhere.jsonl"], "'nowhere.jsonl'"),
        (["--layout", "infill"], "was trained for 'prefix'"),
        (["--max_length", "480"], "480"),
        (["--speed_rate", "1.0"], "`speed_rate` must be below 1"),
        (["--speed_target", "embedded", "--speed_lengths", "250"], "a prompt of 250 and 32 new ones do not fit"),
        (["--questions", "nowhere.json"], "no such file"),
        (["--split", "dev"], "has no split 'dev', but train, validation, test"),
        (["--model_path", "random=x"], "which is a baseline's name"),
        (
            ["--plot_scorers", "policy", "frequency"],
            "names 'frequency', which is not compared; there are policy, random",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_be_loaded_is_one_line_and_writes_nothing(extra, message, folder, tmp_path):
    common = ["--model_path", folder / "model_0", "--reconstructor_path", folder / "model_0", "--dataset_name",
              folder / "texts.jsonl", "--scorers", "random", "--max_length", "24", "--min_length", "8", "--max_texts", "4",
              "--rates", "0.5", "--use_cpu", "true", "--output_dir", tmp_path / "out"]  # fmt: skip
    keys = {word for word in extra if word.startswith("--")}
    kept, skipping = [], False
    for word in map(str, common):
        skipping = word in keys if word.startswith("--") else skipping
        kept += [] if skipping else [word]
    result = call("evaluate", *kept, *extra)
    assert result.returncode == 2, result.stderr[-2000:]
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("evaluate.py: error: ") and message in line
    assert not (tmp_path / "out").exists()
