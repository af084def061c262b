"""`tokforget train` and its neighbours start the recipes, and their exit codes come through."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from tests.conftest import make_gpt2
from tokforget.cli import main as cli
from tokforget.cli import recipes
from tokforget.shipped import hardware_file, in_checkout, recipe_path, run_file, shipped_folder


ROOT = Path(__file__).parents[2]


# -- names -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["quick_test", "quick_test.yaml", "recipes/quick_test.yaml"])
def test_a_shipped_run_file_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_file(name) == ROOT / "recipes" / "quick_test.yaml"
    assert (
        hardware_file("cpu")
        == hardware_file("accelerate_configs/cpu.yaml")
        == ROOT / "accelerate_configs" / "cpu.yaml"
    )


def test_a_file_of_ones_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quick_test.yaml").write_text("max_steps: 1\n")
    assert run_file("quick_test.yaml") == Path("quick_test.yaml")
    Path("cpu").mkdir()  # a folder is no hardware file
    assert hardware_file("cpu") == ROOT / "accelerate_configs" / "cpu.yaml"


@pytest.mark.parametrize("name", ["quik_test", "elsewhere/quick_test.yaml", "quick_test.yml", ""])
def test_a_name_that_is_neither_lists_what_is_shipped(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be read.*shipped are data_prep, .*quick_test"):
        run_file(name)


def test_every_command_has_its_script():
    assert in_checkout()
    for recipe in recipes.RECIPES.values():
        assert recipe_path(recipe.script).is_file(), recipe
    with pytest.raises(FileNotFoundError, match="install tokforget again"):
        shipped_folder("no_such_folder")


def test_the_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n    {name}" in shown for name in (*cli.COMMANDS, *recipes.RECIPES))


# -- words -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def launched(monkeypatch) -> list:
    """What the launcher would be called with, read by its own parser."""
    calls = []
    monkeypatch.setattr(recipes, "_launch", lambda words: calls.append(launch_command_parser().parse_args(words)) or 0)
    return calls


def test_the_launcher_gets_its_options_and_the_recipe_all_others(launched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--config", "quick_test", "--num_processes", "2", "--gradient_accumulation_steps=3", "--mixed_precision=no",
             "--accelerate_config", "multi_gpu", "--use_cpu", "true"]  # fmt: skip
    assert cli.main(["train", *words]) == 0
    (args,) = launched
    assert args.config_file == str(ROOT / "accelerate_configs" / "multi_gpu.yaml")
    assert (args.num_processes, args.mixed_precision, args.gradient_accumulation_steps) == (2, "no", None)
    assert args.training_script == str(ROOT / "recipes" / "train.py")
    assert args.training_script_args == [
        "--config",
        "quick_test",
        "--gradient_accumulation_steps=3",
        "--use_cpu",
        "true",
    ]


def test_a_hardware_file_of_ones_own(launched, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text((ROOT / "accelerate_configs" / "cpu.yaml").read_text())
    cli.main(["evaluate", f"--accelerate_config={own}"])
    assert launched[0].config_file == str(own) and launched[0].training_script.endswith("evaluate.py")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--accelerate_config", "gpu"], "the hardware file gpu cannot be read"),
        (["train", "--accelerate_config"], "`--accelerate_config` needs a value"),
        (["train", "--accelerate_config", "cpu", "--num_processes"], "`--num_processes` needs a value"),
        (["push", "--accelerate_config", "cpu"], "`tokforget push` is one process and launches none"),
        (["prepare", "--accelerate_config", "cpu"], "`tokforget prepare` is one process and launches none"),
    ],
)  # fmt: skip
def test_what_cannot_be_launched_is_one_line(words, message, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("tokforget: error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("command", recipes.RECIPES)
def test_without_hardware_the_recipe_runs_here_and_refuses_as_a_script(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = list(sys.argv)
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--no_such_key", "1"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and sys.argv == before
    assert error.startswith(f"{recipes.RECIPES[command].script}: error: unknown key `no_such_key`"), error


def test_the_leaderboard_hands_its_hardware_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ["--config", "leaderboard", "--output_dir", "board", "--dry_run", "true"]
    assert cli.main(["leaderboard", "--accelerate_config", "single_gpu", *words]) == 0
    assert (
        f"--config_file {ROOT / 'accelerate_configs' / 'single_gpu.yaml'} recipes/train.py" in capsys.readouterr().out
    )
    assert not list(tmp_path.iterdir())


# -- processes ---------------------------------------------------------------------------------------------------------
def shell(*words, cwd: Path, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tokforget", *map(str, words)], cwd=cwd, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("hardware", ["cpu", "multi_gpu"])
def test_one_line_and_exit_code_2_through_the_launcher(hardware, tmp_path):
    words = ["--accelerate_config", hardware, "--mixed_precision", "no", "--config", "quick_test", "--window", "500"]
    run = shell("train", *words, cwd=tmp_path, ACCELERATE_USE_CPU="true")
    _, error = run.communicate(timeout=300)
    assert run.returncode == 2, error
    lines = [line for line in error.splitlines() if line]
    assert len(lines) == (1 if hardware == "cpu" else 2) and all("at least two windows" in line for line in lines), (
        error
    )


@pytest.mark.slow
def test_a_signal_to_the_launcher_ends_the_run_with_a_checkpoint(tmp_path, tokenizer):
    make_gpt2(len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    run = shell(
        "train", "--accelerate_config", "cpu", "--config", "quick_test", "--reconstructor_path", "base", "--max_steps", "5000",
        "--warm_start_steps", "0", "--sampled_texts", "0", "--save_steps", "2", "--eval_strategy", "no",
        "--load_best_model_at_end", "false", "--batch_size", "4", "--reward_funcs", "simple", "--max_length", "32",
        "--min_length", "8", "--window", "8", "--output_dir", "out",
        cwd=tmp_path,
    )  # fmt: skip
    until = time.monotonic() + 300
    while not list(tmp_path.glob("out/checkpoint-*")) and time.monotonic() < until and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    out, error = run.communicate(timeout=300)
    assert run.returncode == 143, error[-2000:]
    assert "checkpoint-" in out + error and "Traceback" not in error
