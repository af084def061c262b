"""The code of the README and of docs/ runs, their commands name things that exist, and the site builds."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from recipes.leaderboard import LeaderboardArguments
from tests.training.test_episodes import episodes
from tokforget.data.arguments import DataArguments, PreparationArguments
from tokforget.evaluation.arguments import EvaluationArguments
from tokforget.evaluation.transcript_arguments import TranscriptArguments
from tokforget.hub.arguments import PushArguments
from tokforget.models.arguments import ModelArguments, ReconstructorArguments
from tokforget.packaged import forget_model_path
from tokforget.parsing import parse_arguments
from tokforget.readers.arguments import ReaderArguments
from tokforget.readers.calibration_arguments import CalibrationArguments
from tokforget.training.config import ForgetConfig, ReconstructorConfig
from tokforget.training.episodes import EpisodeBatch
from tokforget.training.reader_arguments import ReaderPolicyArguments, ReaderPolicyConfig
from tokforget.training.rewards import WeightedRewards


ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
# Blocks that start an engine of processes run in a process of their own, where the engine is installed.
ENGINE = re.compile(r"^(?:import|from) (ray|pyspark)\b", re.MULTILINE)
# The code of hub.md needs a Hub: tests/hub/test_client.py runs it against one. A page's blocks follow each other.
BLOCKS = {
    name: blocks
    for name, page in PAGES.items()
    if name != "hub.md" and (blocks := re.findall(r"```python\n(.*?)```", page, re.DOTALL))
}
PYTHON = {name: [block for block in blocks if not ENGINE.search(block)] for name, blocks in BLOCKS.items()}
ENGINE_BLOCKS = {found[1]: block for blocks in BLOCKS.values() for block in blocks if (found := ENGINE.search(block))}
COMMANDS = [
    line
    for page in PAGES.values()
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in block.splitlines()
    if line
]


@pytest.fixture
def quick_test_folder(tmp_path, monkeypatch) -> Path:
    """A folder in which the quick test has been run, as far as the README's code can see."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(forget_model_path(), tmp_path / "outputs" / "quick_test")
    return tmp_path


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page == "training.md" else ()) for page in PYTHON]
)
def test_python_blocks_run(page, quick_test_folder, capsys):
    names = {}
    for block in PYTHON[page]:
        check_block(block, names, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "pyspark"])
def test_blocks_of_engines_run(engine, tmp_path):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    if engine == "pyspark" and shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Spark needs Java, and there is none")
    scratch = tempfile.mkdtemp(prefix="bulk-")  # Ray's sockets lie in it, whose paths must be short
    alone = {
        "PYTHONPATH": str(ROOT), "TMPDIR": scratch, "OMP_NUM_THREADS": "1", "HOME": scratch,
        "RAY_TMPDIR": scratch, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_worker_niceness": "0",
        "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1",
    }  # fmt: skip
    (tmp_path / "block.py").write_text(ENGINE_BLOCKS[engine])
    try:
        done = subprocess.run([sys.executable, "block.py"], cwd=tmp_path, env=os.environ | alone, capture_output=True, text=True, timeout=600)  # fmt: skip
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].strip() == "200", "each row is there once"


def check_block(block: str, names: dict, capsys) -> None:
    """Every statement of a block is executed, and nothing goes wrong: what stands behind `except` is not."""
    executed = set()

    def trace(frame, event, argument):
        if frame.f_code.co_filename == "README.md":
            executed.add(frame.f_lineno)
            return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        known = dict(names)
        exec(compile(block, "README.md", "exec"), names)
        for reward in rewards_in({name: value for name, value in names.items() if known.get(name) is not value}):
            check_reward(reward)
    finally:
        sys.settrace(before)
    missed = [line for line in lines_to_execute(block) if line not in executed]
    assert not missed, [block.splitlines()[line - 1] for line in missed]
    if any("print(" in line for number, line in enumerate(block.splitlines(), 1) if number in executed):
        assert capsys.readouterr().out.strip()


def lines_to_execute(block: str) -> set[int]:
    """First lines of all statements, docstrings and what an error would lead to aside."""
    tree = ast.parse(block)
    handlers = {n for handler in ast.walk(tree) if isinstance(handler, ast.ExceptHandler) for n in ast.walk(handler)}
    strings = {n for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    statements = {n for n in ast.walk(tree) if isinstance(n, ast.stmt)} - handlers - strings
    return {n.lineno for n in statements}


def rewards_in(names: dict) -> list[Callable]:
    """The functions of a block that take episodes: nobody calls them there."""
    functions = [value for value in names.values() if inspect.isfunction(value)]
    return [f for f in functions if EpisodeBatch in [p.annotation for p in inspect.signature(f).parameters.values()]]


def check_reward(reward: Callable) -> None:
    """It is accepted as a reward, and its wish counts."""
    keep_mask = [[True, False, True, False], [False, True, False, True]]
    batch = episodes(torch.ones(2, 4).tolist(), keep_mask)
    batch.input_ids[:] = 4_000
    rewarded = WeightedRewards([reward], [1.0])(batch)
    assert torch.isfinite(rewarded.per_token).all() and rewarded.per_token.any()


def test_a_block_that_fails_or_skips_a_line_is_seen(quick_test_folder, capsys):
    for block in (
        "try:\n    1 / 0\n    x = 1\nexcept ZeroDivisionError:\n    print('no')\n",
        "def never_called():\n    return 1\n",
    ):
        with pytest.raises(AssertionError):
            check_block(block, {}, capsys)


RECIPES = {
    "train.py": (DataArguments, ModelArguments, ForgetConfig),
    "train_reconstructor.py": (DataArguments, ReconstructorArguments, ReconstructorConfig),
    "prepare_data.py": (PreparationArguments,),
    "evaluate.py": (EvaluationArguments,),
    "run_baselines.py": (EvaluationArguments,),
    "push_to_hub.py": (PushArguments,),
    "leaderboard.py": (LeaderboardArguments,),
    "train_reader_policy.py": (ReaderPolicyArguments, ReaderPolicyConfig),
    "calibrate_quality.py": (CalibrationArguments,),
    "cache_cost.py": (TranscriptArguments,),
    "reader_benchmark.py": (ReaderArguments,),
}
LAUNCHES = [c for c in COMMANDS if re.search(rf"recipes/({'|'.join(RECIPES)}) ".replace(".", r"\."), c)]


@pytest.mark.parametrize("command", LAUNCHES)
def test_commands_of_recipes_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    launcher, name, words = re.match(r"(.*)recipes/(\w+\.py)(.*)", command).groups()
    assert launcher == "python " or Path(re.search(r"--config_file (\S+)", launcher)[1]).is_file()
    types = RECIPES[name]
    trains = any(issubclass(kind, TrainingArguments) for kind in types)
    parse_arguments(types, [*words.split(), *(["--use_cpu"] if trains else [])])


def test_every_recipe_of_the_workflow_is_shown():
    shown = {re.search(r"recipes/(\w+\.py)", command)[1] for command in LAUNCHES}
    assert shown >= {"train.py", "train_reconstructor.py", "prepare_data.py", "evaluate.py", "train_reader_policy.py"}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(COMMANDS), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_that_are_named_exist():
    for page in PAGES.values():
        for path in re.findall(r"(?:recipes|accelerate_configs|tokforget)/[\w/]+\.(?:py|yaml)", page):
            assert (ROOT / path).is_file(), path


def test_the_readme_is_short_and_its_links_lead_somewhere():
    readme = PAGES["README.md"]
    assert len(readme.encode()) <= 10_000
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert pages >= {Path(name).stem for name in PAGES if name != "README.md"}


# -- make and CI -------------------------------------------------------------------------------------------------------
def recipe_of(target: str) -> list[str]:
    """The commands that `make target` would run, beside the installation."""
    printed = subprocess.run(
        ["make", "-n", "-o", "install", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return printed.splitlines()


def test_make_runs_the_two_suites():
    assert [line for line in recipe_of("test") if "/pytest -q tests -n auto" in line]
    assert [line for line in recipe_of("test-slow") if line.endswith("/pytest -q tests -m slow")]
    assert "-m 'not slow'" in (ROOT / "pyproject.toml").read_text(), "the default suite leaves the slow tests out"


@pytest.mark.parametrize("fails", [None, "test"])
def test_ci_runs_the_checks_and_both_suites_and_stops_at_the_first_failure(fails, tmp_path):
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/called"\ntest "$1" != "{fails}"\n')
    make.chmod(0o755)
    done = subprocess.run([ROOT / ".ci" / "run"], env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    called = (tmp_path / "called").read_text().split()
    expected = ["quality", "test", "test-slow"]
    assert called == (expected if fails is None else expected[: expected.index(fails) + 1])
    assert (done.returncode == 0) == (fails is None)
    shown = {word for command in COMMANDS for word in re.findall(r"^make ([\w-]+)", command)}
    assert {"test"} <= shown, "the README names the suite that CI runs"
