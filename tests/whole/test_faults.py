"""Runs that are interrupted, go wrong, or cannot write: what they leave, what they say, and how they go on."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.training.test_forget_trainer import assert_same, make_trainer, rows, weights
from tokforget.training import checkpoints
from tokforget.training.checkpoints import check_output_dir, checkpoint_to_resume
from tokforget.training.config import ForgetConfig
from tokforget.training.faults import CheckpointError, NotFiniteError, RunInterrupted, SaveError, faults_in_one_line
from tokforget.training.forget_trainer import ForgetTrainer
from tokforget.training.resumable_trainer import NumberedTexts
from tokforget.training.rewards import WeightedRewards
from tokforget.training.run_folder import RECORD


ROOT = Path(__file__).parents[2]
SCHEDULE = {
    "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True,
    "save_total_limit": 2, "eval_rates": [0.5],
}  # fmt: skip


class At(TrainerCallback):
    """Does something at one event of one step."""

    def __init__(self, event: str, step: int, act):
        self.step, self.act = step, act
        setattr(self, event, self._happen)

    def _happen(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def steps_in(folder: Path) -> list[int]:
    return [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)]


def same_checkpoints(first: Path, second: Path) -> None:
    """Weights, optimizer, scheduler and random numbers, bit for bit."""
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert_same(load_file(first / name), load_file(second / name))
    names = sorted(path.name for pattern in ("*.pt", "*.pth") for path in first.glob(pattern))
    assert len(names) >= 3
    for name in names:
        states = [torch.load(folder / name, weights_only=False) for folder in (first, second)]
        assert flat(states[0]) == flat(states[1]), name


def flat(state) -> list:
    """All leaves of nested containers, tensors and arrays as bytes."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *flat(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for part in state for leaf in flat(part)]
    return [state.numpy().tobytes() if isinstance(state, torch.Tensor) else getattr(state, "tobytes", lambda: state)()]


@pytest.fixture(scope="module")
def unbroken(base_folder, tokenizer, tmp_path_factory) -> ForgetTrainer:
    trainer = make_trainer(base_folder, tokenizer, tmp_path_factory.mktemp("unbroken"), **SCHEDULE)
    trainer.train()
    return trainer


# -- going on ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [2, 4])  # within an epoch of 4 steps, and at its end
def test_resume_is_the_unbroken_run_to_the_bit(at, base_folder, tokenizer, tmp_path):
    keep_all = SCHEDULE | {"train": rows(16), "save_total_limit": 9}
    unbroken = make_trainer(base_folder, tokenizer, tmp_path / "a", **keep_all)
    unbroken.train()
    resumed = make_trainer(base_folder, tokenizer, tmp_path / "b", **keep_all)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{at}"))
    same_checkpoints(tmp_path / "a" / "checkpoint-6", tmp_path / "b" / "checkpoint-6")
    assert_same(weights(unbroken), weights(resumed))
    assert unbroken.state.best_metric == resumed.state.best_metric is not None
    best = [Path(trainer.state.best_model_checkpoint).name for trainer in (unbroken, resumed)]
    assert best[0] == best[1]
    assert unbroken.lr_scheduler.state_dict() == resumed.lr_scheduler.state_dict()
    logs = [[{k: v for k, v in log.items() if "per_second" not in k and "runtime" not in k} for log in t.state.log_history]
            for t in (unbroken, resumed)]  # fmt: skip
    assert logs[0][:-1] == logs[1][:-1]  # but for the last one, which sums up the time of this process


def test_going_on_after_the_last_step_trains_nothing(unbroken, base_folder, tokenizer, tmp_path):
    """The host would take one more step where a run's length is no multiple of its epoch's."""
    again = make_trainer(base_folder, tokenizer, tmp_path, **SCHEDULE)
    again.train(resume_from_checkpoint=str(Path(unbroken.args.output_dir, "checkpoint-6")))
    assert again.state.global_step == 6
    assert_same(weights(unbroken), weights(again))


def test_auto_resume_says_what_it_does(base_folder, tokenizer, tmp_path, capsys):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, auto_resume=True, **SCHEDULE)
    assert checkpoint_to_resume(trainer.args) is None
    assert "no whole checkpoint: starting at step 0" in capsys.readouterr().err
    trainer.train()
    assert checkpoint_to_resume(trainer.args) == str(tmp_path / "checkpoint-6")
    assert f"Resuming from {tmp_path / 'checkpoint-6'}." in capsys.readouterr().err
    trainer.save_model(str(tmp_path))
    trainer.save_state()
    with pytest.raises(SystemExit) as stop:
        checkpoint_to_resume(trainer.args)
    assert stop.value.code == 0 and "this run has finished" in capsys.readouterr().err
    trainer.args.max_steps = 8
    assert checkpoint_to_resume(trainer.args) == str(tmp_path / "checkpoint-6")
    longer = make_trainer(base_folder, tokenizer, tmp_path, **SCHEDULE | {"max_steps": 8})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 8
    trainer.args.max_steps = 6  # the folder no longer holds a finished run, but one that trained on
    assert checkpoint_to_resume(trainer.args) == str(tmp_path / "checkpoint-8")


def test_going_on_from_nothing(base_folder, tokenizer, tmp_path, capsys):
    trainer = make_trainer(base_folder, tokenizer, tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    for wanted, message in (("last", "holds no checkpoint"), ("nowhere", "no such folder"), (base_folder, "it lacks")):
        args = ForgetConfig(output_dir=str(tmp_path / "run"), resume_from_checkpoint=wanted, use_cpu=True)
        with pytest.raises(SystemExit) as stop:
            checkpoint_to_resume(args)
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_rotation_spares_the_newest_and_the_best_and_clears_what_a_kill_left(tmp_path):
    for age, step in enumerate((8, 2, 4, 6)):  # 8 is of a run that was abandoned: the oldest
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (age, age))
    (tmp_path / ".removed-checkpoint-1" / "adapter").mkdir(parents=True)
    checkpoints.rotate(tmp_path, 2, str(tmp_path / "checkpoint-2"))
    assert steps_in(tmp_path) == [2, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-6"]


def test_a_checkpoint_that_is_being_deleted_is_none(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-2").mkdir()

    def killed(path, **_):
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove(tmp_path / "checkpoint-2")
    assert steps_in(tmp_path) == []


# -- signals -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_at_the_end_of_its_step(number, code, unbroken, base_folder, tokenizer, tmp_path, capfd):
    before = signal.getsignal(number)
    # The host would delete all but the best one at the end of a run.
    trainer = make_trainer(base_folder, tokenizer, tmp_path, **SCHEDULE | {"save_total_limit": 1})
    trainer.add_callback(At("on_step_begin", 2, lambda: os.kill(os.getpid(), number)))
    with pytest.raises(RunInterrupted) as stop:
        trainer.train()
    assert stop.value.code == code and signal.getsignal(number) is before
    error = capfd.readouterr().err
    last = tmp_path / "checkpoint-3"
    assert f"Interrupted after step 3. The last checkpoint is {last}." in error and "--auto_resume true" in error
    assert error.count(f"{signal.Signals(number).name}: finishing this step") == 1
    again = make_trainer(base_folder, tokenizer, tmp_path, **SCHEDULE)
    again.train(resume_from_checkpoint=True)
    assert_same(weights(unbroken), weights(again))
    assert again.state.best_metric == unbroken.state.best_metric


def test_a_signal_without_a_save_strategy_saves_all_the_same(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path)
    trainer.add_callback(At("on_step_begin", 0, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(RunInterrupted):
        trainer.train()
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_a_signal_after_the_last_step(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, **SCHEDULE)
    trainer.add_callback(At("on_train_end", 6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(RunInterrupted) as stop:
        trainer.train()
    assert stop.value.code == 143 and "checkpoint-6" in stop.value.message


SECOND_SIGNAL = """
import os, signal, time
from tokforget.training.faults import SignalWatch
with SignalWatch(announces=True) as watch:
    os.kill(os.getpid(), {0})
    assert watch.received == {0}
    os.kill(os.getpid(), {0})
    time.sleep(60)
    print("still here")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number):
    done = subprocess.run([sys.executable, "-c", SECOND_SIGNAL.format(int(number))], cwd=ROOT, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert done.returncode == -number and "a second signal ends at once" in done.stderr and not done.stdout


# -- numbers that are not finite ---------------------------------------------------------------------------------------
class ExplodingReward:
    """Bits, but infinite at one call."""

    __name__ = "exploding"

    def __init__(self, at: int):
        self.at, self.calls = at, 0

    def __call__(self, episodes):
        self.calls += 1
        return torch.full_like(episodes.token_nll, torch.inf) if self.calls == self.at else -episodes.token_nll


def test_a_loss_that_is_not_finite_names_step_texts_and_checkpoint(base_folder, tokenizer, tmp_path, capsys):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, save_strategy="steps", save_steps=2,
                           gradient_accumulation_steps=2, per_device_train_batch_size=2)  # fmt: skip
    trainer.rewards = WeightedRewards([ExplodingReward(at=6)])
    seen, collate = [], trainer.data_collator

    def watched(texts):
        seen.append([text["text_index"] for text in texts])
        return collate(texts)

    trainer.data_collator = watched
    with pytest.raises(NotFiniteError) as caught:
        trainer.train()
    # Third step, second micro-batch: the sixth.
    wrong = ", ".join(map(str, sorted(seen[5])))
    assert f"The loss of step 3 is not finite. Texts {wrong} of the training set" in str(caught.value)
    assert f"The last checkpoint is {tmp_path / 'checkpoint-2'}." in str(caught.value)
    assert steps_in(tmp_path) == [2]
    assert all(
        torch.isfinite(t.float()).all() for t in load_file(tmp_path / "checkpoint-2/model.safetensors").values()
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, faults_in_one_line():
        raise caught.value
    assert stop.value.code == 1 and len(capsys.readouterr().err.splitlines()) == 1


def test_texts_are_numbered_as_they_stand_in_the_training_set(base_folder, tokenizer, tmp_path):
    texts = rows(8)
    trainer = make_trainer(base_folder, tokenizer, tmp_path, train=texts)
    for batch in trainer.get_train_dataloader():
        for ids, mask, place in zip(batch["input_ids"], batch["attention_mask"], batch["text_index"].tolist()):
            assert ids[mask.bool()].tolist() == texts[place]["input_ids"]


def test_a_gradient_that_is_not_finite(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, save_strategy="steps", save_steps=1, max_grad_norm=0.0)
    weight = trainer.model.policy.to_head.weight
    weight.register_hook(lambda grad: grad * (torch.nan if trainer.state.global_step == 1 else 1))
    with pytest.raises(NotFiniteError, match="The gradient of step 2 is not finite. Texts [0-9]+(, [0-9]+){3} of the"):
        trainer.train()
    assert steps_in(tmp_path) == [1]


def test_weights_that_are_not_finite_are_not_saved(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, save_strategy="steps", save_steps=2)

    def overflow() -> None:
        trainer.model.policy.to_head.weight.data[0, 0] = torch.inf

    trainer.add_callback(At("on_optimizer_step", 3, overflow))
    with pytest.raises(NotFiniteError, match="step 4 left weights .* policy.to_head.weight first.*checkpoint-2"):
        trainer.train()
    assert steps_in(tmp_path) == [2] and not (tmp_path / checkpoints.STAGING).exists()
    with pytest.raises(NotFiniteError):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


# -- files that cannot be written --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "adapter/adapter_config.json"])
def test_a_write_that_the_system_refuses(name, base_folder, tokenizer, tmp_path):
    """From the second save on, files may not grow to the size of one of them: what a full disk does, from the kernel."""
    trainer = make_trainer(base_folder, tokenizer, tmp_path, save_strategy="steps", save_steps=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk() -> None:
        size = (tmp_path / "checkpoint-2" / name).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))

    trainer.add_callback(At("on_step_begin", 3, fill_the_disk))
    try:
        with pytest.raises(SaveError) as caught:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'checkpoint-4'} could not be written" in str(caught.value)
    assert f"The last checkpoint is {tmp_path / 'checkpoint-2'}." in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", RECORD], (
        "the room of the half checkpoint is free"
    )
    checkpoints.check_checkpoint(tmp_path / "checkpoint-2")


def test_a_folder_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    args = ForgetConfig(output_dir=str(tmp_path / "file" / "run"), use_cpu=True)
    with pytest.raises(SystemExit) as stop:
        check_output_dir(args)
    assert stop.value.code == 2 and "cannot be written: Not a directory." in capsys.readouterr().err


def test_a_data_loader_worker_that_dies_ends_the_run(base_folder, tokenizer, tmp_path, monkeypatch):
    """Killed at the seventh text."""
    read = NumberedTexts.__getitem__

    def read_or_die(self, place: int) -> dict:
        if torch.utils.data.get_worker_info() is not None and place == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, place)

    monkeypatch.setattr(NumberedTexts, "__getitem__", read_or_die)
    trainer = make_trainer(base_folder, tokenizer, tmp_path, max_steps=60, dataloader_num_workers=1)
    with pytest.raises(RuntimeError, match="DataLoader worker .* is killed by signal: Killed"):
        trainer.train()


# -- launches ----------------------------------------------------------------------------------------------------------
def launch(base_folder: str, out: Path, *words: str, processes: int = 1, **options) -> subprocess.Popen:
    """`recipes/train.py` on a text of its own, in processes of its own; a launcher leads them if there are several."""
    text = out.parent / "texts.jsonl"
    if not text.exists():
        lines = [
            f'{{"text": "the cat {n} sat on the mat and a dog {n * 7 % 13} ran to the red house"}}' for n in range(80)
        ]
        text.write_text("\n".join(lines))
    command = [
        *([sys.executable] if processes == 1 else launcher(processes)),
        str(ROOT / "recipes/train.py"), "--dataset_name", str(text), "--reconstructor_path", base_folder, "--use_cpu", "true",
        "--output_dir", str(out), "--max_length", "24", "--min_length", "4", "--window", "8", "--max_eval_texts", "4",
        "--max_test_texts", "0", "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2",
        "--max_steps", "24", "--save_strategy", "steps", "--save_steps", "4", "--eval_strategy", "steps",
        "--eval_steps", "4", "--eval_rates", "0.5", "--load_best_model_at_end", "true", "--save_total_limit", "2",
        "--policy_hidden_size", "16", "--ngram_buckets", "256", "--lora_rank", "4", "--logging_steps", "4",
        "--report_to", "none", "--disable_tqdm", "true", "--auto_resume", "true", "--sampled_texts", "6", "--warm_start_steps", "0",
        "--reconstructor_text_fraction", "1", "--policy_learning_rate", "3e-3", "--reconstructor_learning_rate", "2e-3",
        *words,
    ]  # fmt: skip
    return start(command, out.parent, **options)


def launcher(processes: int) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]


def start(command: list[str], folder: Path, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, **options)  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, output


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)


def same_runs(first: Path, second: Path) -> None:
    same_checkpoints(checkpoints.last_checkpoint(first), checkpoints.last_checkpoint(second))
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    states = [checkpoints.read_json(run / checkpoints.STATE) for run in (first, second)]
    assert states[0]["best_metric"] == states[1]["best_metric"] is not None
    assert Path(states[0]["best_model_checkpoint"]).name == Path(states[1]["best_model_checkpoint"]).name


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_the_same_command_goes_on_where_a_signal_stopped_it(processes, number, base_folder, tmp_path):
    code, output = finish(launch(base_folder, tmp_path / "unbroken", processes=processes))
    assert code == 0 and "no whole checkpoint: starting at step 0" in output, output
    process = launch(base_folder, tmp_path / "run", processes=processes)
    wait_for(lambda: steps_in(tmp_path / "run"), process)
    process.send_signal(number)
    code, output = finish(process)
    assert code == (128 + number if processes == 1 else 1), output
    assert re.search(r"Interrupted after step \d+\. The last checkpoint is ", output), output
    assert not (tmp_path / "run" / checkpoints.STATE).exists() and steps_in(tmp_path / "run")[-1] < 24
    code, output = finish(launch(base_folder, tmp_path / "run", processes=processes))
    assert code == 0 and output.count("Resuming from ") == 1, output
    same_runs(tmp_path / "unbroken", tmp_path / "run")
    if processes == 1:
        code, output = finish(launch(base_folder, tmp_path / "run"))
        assert code == 0 and "this run has finished, nothing is trained" in output, output


@pytest.mark.slow
def test_a_process_that_is_killed_takes_the_others_down(base_folder, tmp_path):
    process = launch(base_folder, tmp_path / "run", "--max_steps", "2000", processes=2)
    wait_for(lambda: steps_in(tmp_path / "run"), process)
    workers = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    code, output = finish(process)
    assert code not in (0, -signal.SIGKILL), "the launcher ended with an error, and did not have to be killed"
    assert "SIGKILL" in output or "exitcode: -9" in output.replace("  ", " "), output
    assert checkpoints.last_checkpoint(tmp_path / "run") is not None
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker), 0)


NOT_FINITE_IN_ONE_PROCESS = """
import os, sys
from transformers import AutoTokenizer
from tests.whole.test_faults import ExplodingReward
from tests.training.test_forget_trainer import make_trainer
from tokforget.training.rewards import WeightedRewards
from tokforget.training.faults import faults_in_one_line
base, out = sys.argv[1:]
trainer = make_trainer(base, AutoTokenizer.from_pretrained(base), out, save_strategy="steps", save_steps=2, max_steps=40)
trainer.rewards = WeightedRewards([ExplodingReward(at=3 if os.environ["RANK"] == "1" else 10**9)])
with faults_in_one_line():
    trainer.train()
"""


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both(base_folder, tmp_path):
    (tmp_path / "run.py").write_text(NOT_FINITE_IN_ONE_PROCESS)
    code, output = finish(start([*launcher(2), "run.py", base_folder, str(tmp_path / "out")], tmp_path))
    assert code == 1
    lines = [line for line in output.splitlines() if "run.py: error:" in line]
    assert len(lines) == 1, output
    assert re.search(r"The (loss|gradient) of step 3 is not finite. Texts [\d, ]+ of the training set", lines[0])
    assert steps_in(tmp_path / "out") == [2] and "checkpoint-2" in lines[0]


def without_override() -> None:
    """Root may write anywhere; without this capability it may not, and permissions count for it as for anybody."""
    if os.geteuid() == 0:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
        if libc.prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
            os._exit(77)


@pytest.mark.slow
def test_a_folder_that_becomes_read_only(base_folder, tmp_path):
    out = tmp_path / "run"
    process = launch(base_folder, out, "--max_steps", "2000", preexec_fn=without_override)
    wait_for(lambda: steps_in(out), process)
    out.chmod(0o555)
    code, output = finish(process)
    if code == 77:
        pytest.skip("this root may not give up its right to write anywhere")
    last = output.strip().splitlines()[-1]
    assert code == 1 and "could not be written: [Errno 13] Permission denied" in last, output
    assert f"The last checkpoint is {checkpoints.last_checkpoint(out)}." in last and "Traceback" not in output
    code, output = finish(launch(base_folder, out, preexec_fn=without_override))
    out.chmod(0o755)
    assert code == 2 and "cannot be written: Permission denied." in output.strip().splitlines()[-1], output


@pytest.mark.slow
def test_killed_at_random_moments():
    script = [
        sys.executable,
        "-W",
        "ignore",
        str(ROOT / "tests/support/kill_training.py"),
        "--kills",
        "6",
        "--seed",
        "3",
    ]
    done = subprocess.run(
        script, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0 and "kills survived / tried: 6 / 6" in done.stdout, done.stdout + done.stderr
