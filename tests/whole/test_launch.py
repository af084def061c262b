"""
What launchers get wrong is one line; and a run is the same run under every one of them.

The slow tests launch the recipes as the README does, on the CPU: 1 process, 2 gloo processes, DeepSpeed on 2 processes; and
FSDP2 by tests/support/fsdp_on_cpu.py.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import ALL_BY_GRADIENT, make_model
from tests.training.test_forget_trainer import make_trainer, rows, weights
from tokforget import launch
from tokforget.compression.compressor import Compressor
from tokforget.launch import check_evaluation, check_launcher, check_run, unsupported
from tokforget.models.forget_model import ForgetModel
from tokforget.training.config import ForgetConfig


ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in (ROOT / "accelerate_configs").glob("*.yaml")}


# -- the traps, one line each ------------------------------------------------------------------------------------------
def refused(capsys, check, *args) -> str:
    with pytest.raises(SystemExit) as stop:
        check(*args)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    return line


def arguments(tmp_path, **args) -> ForgetConfig:
    return ForgetConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **(ALL_BY_GRADIENT | args))


def test_copies_that_do_not_know_of_each_other(capsys, tmp_path):
    check_run(arguments(tmp_path), {})
    check_run(arguments(tmp_path), {"WORLD_SIZE": "1"})
    for check, given in ((check_run, arguments(tmp_path)), (check_evaluation, 1)):
        line = refused(capsys, check, given, {"WORLD_SIZE": "2"})
        assert "2 processes were started, but each would run alone" in line
        assert "ACCELERATE_USE_CPU=true accelerate launch --config_file accelerate_configs/multi_gpu.yaml" in line
    check_evaluation(2, {"WORLD_SIZE": "2"})


@pytest.mark.parametrize("wanted", ["bf16", "fp16", "fp8"])
def test_a_precision_that_would_overrule_the_run(wanted, capsys, tmp_path, caplog):
    line = refused(capsys, check_run, arguments(tmp_path), {"ACCELERATE_MIXED_PRECISION": wanted})
    assert f"asks for mixed precision '{wanted}', the run for 'no'" in line and "`--mixed_precision no`" in line
    check_evaluation(1, {"ACCELERATE_MIXED_PRECISION": wanted})
    assert "computes in float32" in caplog.text


def test_a_precision_that_agrees_or_that_the_run_overrules(tmp_path):
    assert None is check_run(arguments(tmp_path), {"ACCELERATE_MIXED_PRECISION": "no"})
    assert None is check_run(arguments(tmp_path, bf16=True), {"ACCELERATE_MIXED_PRECISION": "no"})
    assert None is check_run(arguments(tmp_path, bf16=True), {"ACCELERATE_MIXED_PRECISION": "bf16"})


def test_what_the_device_cannot_do(monkeypatch):
    monkeypatch.setattr(launch, "emulates_bf16", lambda: False)
    assert unsupported("cpu", 0, "bf16", {}) is None and unsupported("cuda", 1, "fp16", {}) is None
    assert "`fp16` needs a CUDA GPU" in unsupported("cpu", 0, "fp16", {})
    assert "One process sees 4 GPUs" in unsupported("cuda", 4, "no", {})
    assert "FSDP was asked for" in unsupported("cpu", 0, "no", {"ACCELERATE_USE_FSDP": "true"})
    assert unsupported("cuda", 1, "no", {"ACCELERATE_USE_FSDP": "true"}) is None


def test_bf16_on_a_cpu_that_would_emulate_it(monkeypatch):
    for told, refused in (
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64", "sve": True}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        reason = unsupported("cpu", 0, "bf16", {})
        assert (reason is not None and "AVX512-BF16" in reason) == refused
        assert unsupported("cpu", 0, "no", {}) is None


def test_several_processes_that_became_one(capsys):
    started = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}
    assert "started this one alone" in refused(capsys, check_launcher, started)
    check_launcher(started | {"WORLD_SIZE": "2"})
    check_launcher(started | {"OMPI_COMM_WORLD_SIZE": "2"})
    check_launcher({"MASTER_PORT": "29500"})


def test_deepspeed_says_what_it_lacks(capsys, tmp_path, monkeypatch):
    wanted = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "PATH": str(tmp_path)}
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    assert '`pip install -e ".[deepspeed]"`' in refused(capsys, check_launcher, wanted)
    monkeypatch.setattr(launch, "find_spec", lambda name: object())
    assert "no C++ compiler 'c++'" in refused(capsys, check_launcher, wanted)
    assert "no C++ compiler 'my-c++'" in refused(capsys, check_launcher, wanted | {"CXX": "my-c++"})
    for tool in ("c++", "ninja"):
        if tool == "ninja":
            assert "`pip install ninja`" in refused(capsys, check_launcher, wanted)
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setattr(launch.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python's headers" in refused(capsys, check_launcher, wanted)
    (tmp_path / "Python.h").touch()
    check_launcher(wanted)


def test_deepspeed_that_would_be_left_out(capsys):
    wanted = {"ACCELERATE_USE_DEEPSPEED": "true"}
    line = refused(capsys, check_launcher, wanted | {"ACCELERATE_USE_CPU": "True"})
    assert "leaves it out" in line and "`--use_cpu true`" in line


# -- the table of what was run -----------------------------------------------------------------------------------------
def test_every_configuration_stands_in_the_table_once():
    table = (ROOT / "docs/hardware.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in table.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(CONFIGS)


def test_configurations_say_what_their_names_say():
    for stem, path in CONFIGS.items():
        keys = yaml.safe_load(path.read_text())
        kind = {"cpu": "NO", "single_gpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp2": "FSDP"}.get(stem, "DEEPSPEED")
        assert keys["distributed_type"] == kind and keys["mixed_precision"] == "no"
        if kind == "DEEPSPEED":
            assert keys["deepspeed_config"]["zero_stage"] == int(stem[-1])


# -- how a batch is spread -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reconstructor_text_fraction", [1.0, 0.5])
def test_a_batch_in_parts_is_the_whole_batch(reconstructor_text_fraction, base_folder, tokenizer, tmp_path):
    """Masks that are really drawn, and a share of random ones that gives only some texts one."""
    runs = []
    for batch_size, parts in ((8, 1), (4, 2), (2, 4)):
        trainer = make_trainer(
            base_folder, tokenizer, tmp_path / str(parts), per_device_train_batch_size=batch_size, max_steps=3,
            gradient_accumulation_steps=parts, random_mask_fraction=0.1, adam_epsilon=1e-5, logging_steps=1,
            reconstructor_text_fraction=reconstructor_text_fraction,
        )  # fmt: skip
        start = weights(trainer)
        trainer.train()
        runs.append((weights(trainer), [log for log in trainer.state.log_history if "loss" in log]))
    whole, logs = runs[0]
    assert max((whole[name] - start[name]).abs().max() for name in whole) > 1e-3
    for parts, their_logs in runs[1:]:
        for name in whole:
            assert torch.allclose(whole[name], parts[name], atol=1e-6), name
        for log, other in zip(logs, their_logs, strict=True):
            assert log["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_another_step_another_seed_and_another_text_draw_anew(base_folder, tokenizer, tmp_path):
    same = {"input_ids": list(range(10, 26))}
    trainer = make_trainer(base_folder, tokenizer, tmp_path, train=[same] * 16, per_device_train_batch_size=4)
    seen = []
    decide = trainer.model.policy.decide
    trainer.model.policy.decide = lambda *args, **kwargs: seen.append(decide(*args, **kwargs)) or seen[-1]
    trainer.train()
    masks = torch.cat([decisions.actions for decisions in seen])
    assert masks.shape == (6 * 4 * 4, 16)
    # 96 draws of 16 tokens: by chance two agree now and then, not as often as shared noise would have it.
    assert len(masks.unique(dim=0)) > 90


def test_an_epoch_ends_on_a_whole_batch(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(
        base_folder,
        tokenizer,
        tmp_path,
        train=rows(22),
        gradient_accumulation_steps=2,
        max_steps=-1,
        num_train_epochs=2,
    )
    batches = []
    trainer.data_collator = lambda texts, collate=trainer.data_collator: batches.append(texts) or collate(texts)
    trainer.train()
    assert [len(batch) for batch in batches] == [4] * 8 and trainer.state.global_step == 4
    for epoch in (batches[:4], batches[4:]):
        assert len({tuple(text["input_ids"]) for batch in epoch for text in batch}) == 16, "no text twice in an epoch"
    few = make_trainer(base_folder, tokenizer, tmp_path, train=rows(3), max_steps=2)
    few.train()
    assert few.state.global_step == 2, "fewer texts than a batch are a batch"


# -- launches ------------------------------------------------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory, base_folder, texts, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    (folder / "texts.json").write_text(json.dumps([f"{text} number {n}" for n, text in enumerate(texts)]))
    make_model(base_folder, tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "training_config.json").write_text(json.dumps({"seed": 0, "layout": "prefix"}))
    return folder


def launched(site: Path, launcher: str, *words, cpu_variable: bool = False) -> subprocess.CompletedProcess:
    """
    A recipe under a launcher, as a shell would start it: one thread per process, a port of its own. What DeepSpeed compiles
    stays in torch's cache (`TORCH_EXTENSIONS_DIR`): the first of these runs on a machine takes minutes longer.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_", "MASTER_", "WORLD_"))}
    environment = clean | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "300", "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    if cpu_variable:
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [*launcher.format(port=free_port()).split(), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)


ONE = "accelerate launch --config_file accelerate_configs/cpu.yaml"
TWO = ("accelerate launch --config_file accelerate_configs/multi_gpu.yaml --num_processes 2 --mixed_precision no "
       "--main_process_port {port}")  # fmt: skip
ZERO = "accelerate launch --config_file accelerate_configs/deepspeed_zero%d.yaml --num_processes 2 --main_process_port {port}"
FSDP = ("accelerate launch --config_file accelerate_configs/fsdp2.yaml --num_processes 2 --main_process_port {port} "
        "tests/support/fsdp_on_cpu.py")  # fmt: skip
# Name: launcher, by variable or by argument on the CPU, texts per process.
MATRIX = {
    "one": (ONE, False, 8), "two": (TWO, True, 4), "zero1": (ZERO % 1, False, 4), "zero2": (ZERO % 2, False, 4),
    "zero3": (ZERO % 3, False, 4), "fsdp2": (FSDP, True, 4),
}  # fmt: skip
_DATA = ["--max_length", "40", "--min_length", "8", "--max_test_texts", "4", "--max_eval_texts", "6"]
# A larger epsilon: where a gradient is next to zero, Adam would make a step of full size out of its rounding.
_RUN = [
    "--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "1",
    "--load_best_model_at_end", "true", "--report_to", "none", "--disable_tqdm", "true", "--lora_rank", "2",
    "--warmup_steps", "1", "--seed", "0", "--adam_epsilon", "1e-5",
]  # fmt: skip
# Rates that move the weights in four steps, so that runs that differ would be seen to.
_POLICY = [
    "--policy_learning_rate",
    "3e-3",
    "--reconstructor_learning_rate",
    "2e-3",
    "--sampled_texts",
    "8",
    "--warm_start_steps",
    "2",
    "--window",
    "8",
    "--ngram_buckets",
    "256",
    "--policy_hidden_size",
    "16",
    # Not as many texts train the reconstructor in one process as in the other.
    "--reconstructor_text_fraction",
    "0.3",
]


def train(site: Path, base_folder: str, name: str, recipe: str, *more, out: Path | None = None) -> tuple[Path, str]:
    launcher, by_variable, batch_size = MATRIX[name]
    out = out or site / f"{recipe}_{name}"
    result = launched(
        site, launcher, f"recipes/{recipe}.py", "--data_path", site / "texts.json", "--reconstructor_path", base_folder,
        *_DATA, *_RUN, *more, "--batch_size", batch_size, "--output_dir", out,
        *([] if by_variable else ["--use_cpu", "true"]), cpu_variable=by_variable,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return out, result.stdout + result.stderr  # the trainer's own lines are log records


@pytest.fixture(scope="module")
def joint(site, base_folder) -> dict[str, tuple[Path, str]]:
    pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    return {name: train(site, base_folder, name, "train", *_POLICY) for name in MATRIX}


def saved(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors") | load_file(out / "adapter" / "adapter_model.safetensors")


def logs(out: Path) -> list[dict]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [log for log in history if "grad_norm" in log]


def largest_difference(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    # The table is stored in float16 and says again what the projection says.
    return max(
        (first[n].double() - second[n].double()).abs().max().item() for n in first if n != "policy.tokens.table"
    )


@pytest.mark.slow
def test_two_processes_with_half_the_batch_are_one_with_the_whole(joint, base_folder, tokenizer):
    (one, _), (two, _) = joint["one"], joint["two"]
    assert largest_difference(saved(one), saved(two)) < 1e-6
    moved = largest_difference(saved(one), saved(one / "checkpoint-2"))
    assert moved > 1e-4, "and not because nothing moved"
    for log, other in zip(logs(one), logs(two), strict=True):
        for name in ("loss", "grad_norm", "policy_loss", "reconstruction_loss", "rate", "entropy"):
            assert log[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    results = [json.loads((out / "eval_results.json").read_text())["scorers"] for out in (one, two)]
    for row, other in zip(*results, strict=True):
        assert row["scorer"] == other["scorer"] and row["bits_lost"] == pytest.approx(other["bits_lost"], rel=1e-4)


@pytest.mark.slow
def test_deepspeed_trains_the_same_weights(joint):
    two = saved(joint["two"][0])
    # DeepSpeed clips a gradient by its own formula: where one is clipped, weights differ in their last bit.
    for stage, allowed in ((1, 1e-6), (2, 1e-4), (3, 1e-4)):
        out = joint[f"zero{stage}"][0]
        assert (out / "checkpoint-4" / "global_step4").is_dir(), "DeepSpeed was really there"
        assert largest_difference(two, saved(out)) <= allowed


@pytest.mark.slow
def test_fsdp_trains_the_same_weights(joint):
    out = joint["fsdp2"][0]
    assert (out / "checkpoint-4" / "pytorch_model_fsdp.bin").is_file(), "FSDP was really there"
    assert largest_difference(saved(joint["two"][0]), saved(out)) < 1e-6
    results = [json.loads((joint[name][0] / "eval_results.json").read_text())["scorers"] for name in MATRIX]
    for others in results[1:]:
        assert [row["scorer"] for row in others] == [row["scorer"] for row in results[0]]
        assert all(
            row["bits_lost"] == pytest.approx(one["bits_lost"], rel=1e-4) for row, one in zip(others, results[0])
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "fsdp2"])
def test_a_divided_run_goes_on_to_the_bit(name, joint, site, base_folder):
    """Those of one process and of two copies: tests/whole/test_faults.py."""
    unbroken, resumed = joint[name][0], site / f"resumed_{name}"
    shutil.copytree(unbroken, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    train(site, base_folder, name, "train", *_POLICY, "--resume_from_checkpoint", "last", out=resumed)
    for folder in ("", "checkpoint-4"):
        for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
            assert (unbroken / folder / file).read_bytes() == (resumed / folder / file).read_bytes(), (folder, file)


@pytest.mark.slow
def test_the_first_process_alone_speaks_and_writes(joint):
    files = {p.name for p in joint["one"][0].iterdir()}
    for name, (out, printed) in joint.items():
        assert printed.count("Blocks of up to") == printed.count("Warm start on") == 1, name
        assert sum(line.strip().startswith("self_in") for line in printed.splitlines()) == 1, name
        assert {p.name for p in out.iterdir()} == files, name
        states = {p.name for p in (out / "checkpoint-4").glob("rng_state*")}
        assert states == ({"rng_state.pth"} if name == "one" else {"rng_state_0.pth", "rng_state_1.pth"})


@pytest.mark.slow
def test_every_saved_folder_loads_and_compresses_alike(joint, texts):
    found = {}
    for name, (out, _) in joint.items():
        ForgetModel.from_pretrained(out)
        compressor = Compressor.from_pretrained(str(out))
        found[name] = [compressor.compress(text, rate=rate).text for text in texts[:8] for rate in (0.3, 0.6)]
    assert all(of_launch == found["one"] for of_launch in found.values())
    assert len(set(found["one"])) > 8


@pytest.mark.slow
def test_the_reconstructor_alone(site, base_folder):
    """It is measured before it is trained, after which the host would average no gradients."""
    pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    names = ("one", "two", "zero2", "zero3", "fsdp2")
    outs = {name: train(site, base_folder, name, "train_reconstructor")[0] for name in names}
    adapters = {name: load_file(out / "adapter_model.safetensors") for name, out in outs.items()}
    assert largest_difference(adapters["one"], adapters["two"]) < 1e-6
    for name in names[2:]:
        assert largest_difference(adapters["two"], adapters[name]) < 1e-4, name
    assert (
        largest_difference(adapters["one"], load_file(outs["one"] / "checkpoint-2" / "adapter_model.safetensors"))
        > 1e-4
    )
    figures = [json.loads((out / "eval_results.json").read_text())["reconstructor"] for out in outs.values()]
    for row, *others in zip(*figures, strict=True):
        assert all(row["bits_lost"] == pytest.approx(other["bits_lost"], rel=1e-5) for other in others)


@pytest.mark.slow
def test_evaluation_in_two_processes_is_that_of_one(site):
    def rows_of(name: str, launcher: str, *more, cpu_variable: bool) -> list[dict]:
        result = launched(
            site, launcher, "recipes/evaluate.py", "--model_path", site / "model", "--dataset_name", site / "texts.json",
            "--max_length", "40", "--min_length", "8", "--max_texts", "6", "--batch_size", "2", "--rates", "0.5", "--scorers",
            "random", "frequency", "--num_random_seeds", "2", "--output_dir", site / name, *more, cpu_variable=cpu_variable,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("report.md") == 1
        assert json.loads((site / name / "evaluation_config.json").read_text())["num_processes"] == (
            1 if launcher == ONE else 2
        )
        both = [json.loads((site / name / f"{kind}_results.json").read_text()) for kind in ("model", "baseline")]
        scorers = [row for part in both for row in part["scorers"]]
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in scorers]

    one = rows_of("evaluation_one", ONE, "--use_cpu", "true", cpu_variable=False)
    assert one == rows_of("evaluation_two", TWO, cpu_variable=True) and len(one) == 4
    assert one == rows_of("evaluation_fsdp", FSDP, cpu_variable=True)
    pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    assert one == rows_of("evaluation_zero", ZERO % 3, "--use_cpu", "true", cpu_variable=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "cpu_variable", "message"),
    [
        (TWO, False, "2 processes were started, but each would run alone"),
        (TWO.replace("--mixed_precision no", "--mixed_precision bf16"), True, "the run for 'no'"),
        (TWO.replace("--config_file", "--cpu --config_file"), False, "started this one alone"),
        (TWO.replace("multi_gpu", "fsdp2"), True, "FSDP was asked for"),
        (ZERO % 2, True, "under ACCELERATE_USE_CPU Accelerate leaves it out"),
    ],
    ids=["copies", "precision", "one-of-several", "fsdp", "deepspeed-left-out"],
)
def test_traps_as_the_launchers_set_them(launcher, cpu_variable, message, site):
    if "deepspeed" in launcher:
        pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    if torch.cuda.is_available() and message.startswith("2 processes"):
        pytest.skip("with GPUs two processes do know of each other")
    words = ["--data_path", "embedded", "--reconstructor_path", "embedded", "--output_dir", site / "refused"]
    result = launched(site, launcher, "recipes/train.py", *words, cpu_variable=cpu_variable)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("train.py: error: ")]
    assert lines and all(message in line for line in lines), result.stderr[-3000:]
    assert not (site / "refused").exists()


TRAINING = (ROOT / "docs" / "training.md").read_text()


def test_the_page_on_training_launches_what_the_slow_tests_launch():
    section = TRAINING.split("## On your hardware")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if "launch --config" in line]
    on_cpu = [line for line in lines if "USE_CPU" in line or "--use_cpu" in line]
    known = [launcher.split(" --main_process_port")[0] for launcher, _, _ in MATRIX.values()]
    assert len(on_cpu) == 2 and all(any(launcher in line for launcher in known) for line in on_cpu)
