"""Every run file parses, every script runs as documented, and the quick test's output is what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from recipes.leaderboard import LeaderboardArguments
from recipes.show_sample import whole_sentences
from tests.conftest import make_tokenizer
from tests.support.recipes import Called, call
from tokforget import Compressor
from tokforget.cli.recipes import run_recipe
from tokforget.data.arguments import DataArguments, PreparationArguments
from tokforget.evaluation.arguments import EvaluationArguments
from tokforget.models.arguments import ModelArguments, ReconstructorArguments
from tokforget.models.forget_model import ForgetModel
from tokforget.models.starting_models import load_by_arguments
from tokforget.parsing import parse_arguments
from tokforget.readers.arguments import ReaderArguments
from tokforget.training.config import ForgetConfig, ReconstructorConfig
from tokforget.training.reader_arguments import ReaderPolicyArguments, ReaderPolicyConfig


ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "recipes").glob("*.yaml"))
JOINT = (DataArguments, ModelArguments, ForgetConfig)
RECONSTRUCTOR = (DataArguments, ReconstructorArguments, ReconstructorConfig)
EVALUATION = (EvaluationArguments,)
# What a run file is for, where it is not for recipes/train.py.
TYPES = {
    "data_prep.yaml": (PreparationArguments,),
    "reconstructor_cpu.yaml": RECONSTRUCTOR,
    "reconstructor_gpu.yaml": RECONSTRUCTOR,
    "evaluation.yaml": EVALUATION,
    "evaluation_quick.yaml": EVALUATION,
    "reader_benchmark.yaml": (ReaderArguments,),
    "reader_benchmark_quick.yaml": (ReaderArguments,),
    "reader_policy.yaml": (ReaderPolicyArguments, ReaderPolicyConfig),
    "leaderboard.yaml": (LeaderboardArguments,),
    "leaderboard_gpu.yaml": (LeaderboardArguments,),
}
# What a run file leaves to its user.
ASKED_FOR = {
    "reader_benchmark.yaml": ["--corpus", "my_texts"],
    "reader_benchmark_quick.yaml": ["--corpus", "my_texts"],
    "reader_policy.yaml": ["--corpus", "my_texts"],
}
HARDWARE = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_every_run_file_parses(run):
    types = TYPES.get(run.name, JOINT)
    hardware = ["--use_cpu"] if types in (JOINT, RECONSTRUCTOR) else []
    groups = parse_arguments(types, ["--config", str(run), *hardware, *ASKED_FOR.get(run.name, [])])
    keys = yaml.safe_load(run.read_text())
    for key, value in keys.items():
        found = next(getattr(group, key) for group in groups if hasattr(group, key))
        parsed = getattr(
            found, "value", found
        )  # the host turns some words into enumerations, and "none" into no tracker
        assert parsed == value or (key, parsed, value) == ("report_to", [], "none"), key


@pytest.mark.parametrize("hardware", HARDWARE, ids=lambda path: path.name)
def test_hardware_files_say_where_and_nothing_else(hardware):
    keys = yaml.safe_load(hardware.read_text())
    assert keys["compute_environment"] == "LOCAL_MACHINE"
    assert not set(keys) & {"learning_rate", "max_steps", "gradient_accumulation_steps", "dataset_name"}
    assert "accelerate launch --config_file accelerate_configs/" + hardware.name in hardware.read_text()


QUICK = [
    "--config", "quick_test", "--max_steps", "4", "--warm_start_steps", "4", "--warm_start_texts", "16", "--eval_steps", "2",
    "--save_steps", "2", "--max_eval_texts", "4", "--max_test_texts", "6", "--logging_steps", "2", "--batch_size", "4",
    "--reward_type", "simple", "--sampled_texts", "5", "--reconstructor_text_fraction", "0.25",
    "--max_length", "48", "--min_length", "16", "--window", "24",
]  # fmt: skip


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory) -> tuple[Path, Called]:
    """The quick test, cut to four steps on texts of half the length."""
    out = tmp_path_factory.mktemp("quick") / "run"
    result = call("train", *QUICK, "--use_cpu", "true", "--output_dir", out)
    assert result.returncode == 0, result.stderr
    return out, result


@pytest.mark.slow
def test_the_launcher_of_the_readme_gives_the_same_run(quick_run, tmp_path):
    out, _ = quick_run
    accelerate = Path(sys.executable).with_name("accelerate")
    result = subprocess.run(
        [accelerate, "launch", "--config_file", "accelerate_configs/cpu.yaml", "recipes/train.py", *QUICK, "--output_dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name
    ours, theirs = (json.loads((folder / "eval_results.json").read_text()) for folder in (out, tmp_path))
    assert without_times(theirs["scorers"]) == without_times(ours["scorers"])


def without_times(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


@pytest.mark.slow
def test_the_quick_test_leaves_what_it_says(quick_run):
    out, result = quick_run
    results = json.loads((out / "eval_results.json").read_text())
    rows = results["scorers"]
    assert len(bytes.fromhex(results["data_fingerprint"])) == 32
    assert {row["scorer"] for row in rows} == {
        "policy",
        "random",
        "frequency",
        "length",
        "position",
        "head",
        "self_information",
    }
    assert {row["rate"] for row in rows} == {0.3, 0.5, 0.7}
    for row in rows:
        assert {"scorer", "rate", "bits_lost", "exact_restored", "texts"} <= row.keys() and row["texts"] == 6
    assert "self_in" in result.stdout
    said = " ".join(result.stdout.split())  # however wide the terminal is
    assert "Before the first step: 5 texts sampled, a warm start of 4 steps." in said
    assert "`--sampled_texts 0 --warm_start_steps 0`" in said, "what a run of few steps is to leave out"
    record = json.loads((out / "training_config.json").read_text())
    assert (
        record["reward_funcs"] == ["simple"]
        and record["per_device_train_batch_size"] == 4
        and record["data"]["blocks"]["sampled"] == 5
    )
    assert record["trainable_parameters"]["policy"] <= 1_200_000
    ForgetModel.from_pretrained(out)
    card = (out / "README.md").read_text()
    assert "| 0.7 | self_information |" in card and "{{" not in card


@pytest.mark.slow
def test_another_run_learns_from_its_warm_start_data_and_goes_on_from_its_policy(quick_run, tmp_path):
    out, _ = quick_run
    start = ForgetModel.from_pretrained(out / "warm_start", with_reconstructor=False)
    trained = ForgetModel.from_pretrained(out, with_reconstructor=False)
    assert not torch.equal(start.policy.to_head.weight, trained.policy.to_head.weight)
    words = [
        "--config", "quick_test", "--use_cpu", "true", "--max_test_texts", "0",
        "--warm_start_texts", "16", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
        "--batch_size", "4", "--max_length", "48", "--min_length", "16", "--window", "24",
    ]  # fmt: skip
    again = call(
        "train",
        *words,
        "--warm_start_data_path",
        out / "warm_start_data",
        "--output_dir",
        tmp_path / "short",
        "--max_steps",
        "1",
    )
    assert again.returncode == 2 and "of other texts than this run's" in again.stderr, again.stderr[-3000:]
    again = call("train", *words, "--policy_name_or_path", out / "warm_start", "--warm_start_steps", "0", "--max_steps", "1",
                "--policy_learning_rate", "0", "--output_dir", tmp_path / "on")  # fmt: skip
    assert again.returncode == 0, again.stderr[-3000:]
    kept = ForgetModel.from_pretrained(tmp_path / "on", with_reconstructor=False)
    assert torch.equal(kept.policy.to_head.weight, start.policy.to_head.weight)


@pytest.mark.slow
def test_a_sample_is_compressed_and_restored(quick_run):
    out, _ = quick_run
    shown = call("show_sample", "--model", out)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "dropped exact" in shown.stdout and "what another model would read" in shown.stdout
    text = "The disarded parts are not shipped, they are never shipped."
    shown = call("show_sample", "--model", out, "--text", text)
    result = Compressor.from_pretrained(out).compress(text, rate=0.5)
    title = f"Compressed, {result.compressed_tokens} tokens: what another model would read"
    assert title in shown.stdout and "".join(result.text.split()) in "".join(shown.stdout.split(title)[1].split())


def test_a_sample_begins_and_ends_with_a_sentence():
    assert whole_sentences("and so on. It came. Then it went! And the rest of") == "It came. Then it went!"
    assert (
        whole_sentences("One. Two.") == "One. Two." and whole_sentences("no sentence at all") == "no sentence at all"
    )


def test_a_sample_of_no_model_is_one_line(tmp_path):
    shown = call("show_sample", "--model", tmp_path)
    assert shown.returncode == 2
    assert (
        shown.stderr.strip().splitlines()[-1].startswith("show_sample.py: error:")
        and "is not a tokforget model" in shown.stderr
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data_path", "missing.txt", "--reconstructor_path", "embedded"], "'missing.txt': no such file or folder"),
        (["--data_path", "embedded", "--reconstructor_path", "no/such-model"], "no/such-model"),
        (["--data_path", "embedded", "--reconstructor_path", "embedded", "--max_length", "4000"], "tokens that fit this model"),
        (["--data_path", "embedded", "--reconstructor_path", "embedded", "--window", "200"], "at least two windows"),
        (["--data_path", "x", "--reconstructor_path", "y", "--resume_from_checkpoint", "gone"], "'gone': no such folder"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_one_line_and_not_zero(words, message, tmp_path):
    failed = call("train", *words, "--output_dir", tmp_path, "--device", "cpu")
    assert failed.returncode == 2
    assert message in failed.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "eval_results.json").exists()


def test_a_reward_of_the_working_directory_is_found(tmp_path, monkeypatch, capsys):
    """Accepted as a reward, so that the next thing wrong is what is reported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the recipe adds
    (tmp_path / "my_rewards.py").write_text("def mine(episodes):\n    return -episodes.token_nll\n")
    words = [
        "--data_path",
        "embedded",
        "--reconstructor_path",
        "embedded",
        "--early_stopping_patience",
        "2",
        "--device",
        "cpu",
    ]
    for reward, message in [
        ("my_rewards:mine", "needs `load_best_model_at_end"),
        ("my_rewards:other", "cannot be imported"),
    ]:
        with pytest.raises(SystemExit) as end:
            run_recipe("train", [*words, "--reward_funcs", reward])
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_run_goes_on_from_a_trained_policy(model, base_folder, tokenizer, texts, tmp_path):
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    # The shape is the trained policy's, whatever the arguments say.
    args = ModelArguments(base_folder, policy_name_or_path=str(tmp_path / "trained"), policy_hidden_size=99)
    found = load_by_arguments(args, tokenizer, max_length=40)
    ours = model.policy.state_dict()
    assert all(
        torch.equal(ours[name], value) for name, value in found.policy.state_dict().items() if "table" not in name
    )
    assert found.config.hidden_size == model.config.hidden_size and found.config.window == model.config.window
    other = make_tokenizer([text.upper() for text in texts])
    other.save_pretrained(tmp_path / "trained")
    with pytest.raises(ValueError, match="reads another vocabulary than the reconstructor"):
        load_by_arguments(args, tokenizer, max_length=40)
    with pytest.raises(ValueError, match="holds a model of type 'gpt2', not 'tokforget'"):
        load_by_arguments(ModelArguments(base_folder, policy_name_or_path=base_folder), tokenizer, max_length=40)
