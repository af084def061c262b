"""The package as pip installs it, without this repository: the wheel holds what the commands need, and they work."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# Where a file of the checkout lies in the wheel.
CARRIED = {
    "recipes": "tokforget/recipes",
    "accelerate_configs": "tokforget/accelerate_configs",
    "hub_cards": "tokforget/hub_cards",
    "tokforget": "tokforget",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, for a build leaves its folders where the sources are."""
    folder = tmp_path_factory.mktemp("build")
    for name in CARRIED:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder of installed packages with tokforget alone; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


def pip(*words) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def run(site: Path, home: Path, *words) -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=home, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def tokforget(site: Path, home: Path, *words) -> str:
    """The console script that pip wrote."""
    return run(site, home, site / "bin" / "tokforget", *words)


@pytest.fixture(scope="module")
def trained(site, home) -> Path:
    tokforget(
        site, home, "train", "--config", "quick_test", "--accelerate_config", "cpu", "--max_steps", "2",
        "--warm_start_steps", "2", "--warm_start_texts", "8", "--sampled_texts", "2", "--max_eval_texts", "4",
        "--max_test_texts", "4", "--batch_size", "4", "--eval_strategy", "no", "--save_strategy", "no",
        "--load_best_model_at_end", "false", "--output_dir", "outputs/quick_test",
    )  # fmt: skip
    return home / "outputs" / "quick_test"


def test_the_wheel_holds_every_file_and_no_other(wheel):
    there = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        f"{inside}/{path.relative_to(ROOT / name).as_posix()}"
        for name, inside in CARRIED.items()
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there == files


def test_it_is_the_installed_package_that_runs(site, home):
    code = "import tokforget, tokforget.shipped as s; print(tokforget.__file__); print(s.in_checkout(), s.recipe_path('train.py'))"
    package, rest = run(site, home, "-c", code).splitlines()
    assert package == f"{site}/tokforget/__init__.py"
    assert rest == f"False {site}/tokforget/recipes/train.py"


def test_training_leaves_a_model_with_its_card(trained):
    assert {row["scorer"] for row in json.loads((trained / "eval_results.json").read_text())["scorers"]} > {"policy"}
    card = (trained / "README.md").read_text()
    assert "{{" not in card and "| 0.7 | self_information |" in card


def test_its_model_is_evaluated(trained, site, home):
    shown = tokforget(
        site, home, "evaluate", "--config", "evaluation_quick", "--max_texts", "4", "--rates", "0.5", "--scorers", "random",
        "head", "--num_random_seeds", "1", "--continuation_tokens", "0", "--speed_target", "embedded", "--speed_lengths", "32", "--speed_new_tokens", "2", "--heatmap_texts", "1", "--use_cpu", "true",
        "--output_dir", "evaluation",
    )  # fmt: skip
    assert "policy" in shown and (home / "evaluation" / "report.md").is_file()
    assert (home / "evaluation" / "heatmap.html").is_file()


def test_it_compresses_with_the_packaged_model_and_with_its_own(trained, site, home):
    (home / "text.txt").write_text("The train left at 7 in the morning and nobody saw it go. " * 4)
    for model in ([], ["--model", trained]):
        short = tokforget(site, home, "compress", "text.txt", "--rate", "0.5", "--quiet", *model)
        assert 0 < len(short) < 0.8 * (home / "text.txt").stat().st_size


def test_metrics_are_loaded_by_path(site, home):
    code = (
        "import evaluate; from tokforget.metrics import metric_path; m = evaluate.load(metric_path('restoration')); "
        "print(m.compute(restored_ids=[[5, 6, 9, 8]], input_ids=[[5, 6, 7, 8]], keep_mask=[[1, 0, 0, 1]]))"
    )
    assert "0.5" in run(site, home, "-c", code)


def test_data_is_prepared_and_staged_for_the_hub(site, home):
    (home / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} trains left. " * 20}) + "\n" for n in range(80))
    )
    tokforget(site, home, "prepare", "--dataset_name", "texts.jsonl", "--tokenizer", "embedded", "--output_dir", "data",
              "--max_length", "32", "--min_length", "8")  # fmt: skip
    shown = tokforget(site, home, "push", "--folder", "data", "--repo_id", "user/data", "--dry_run", "true", "--output_dir",
                      "staged")  # fmt: skip
    assert "Nothing was sent" in shown and "{{" not in (home / "staged" / "README.md").read_text()


def test_a_shipped_reward_is_named_by_the_package(site, home):
    (home / "answers.jsonl").write_text('{"text": "a b", "answer": "b"}\n')
    code = "from tokforget.training.rewards import load_reward; print(load_reward('tokforget.recipes.reward_answer:AnswerReward')[0])"
    assert run(site, home, "-c", code).strip() == "AnswerReward"
