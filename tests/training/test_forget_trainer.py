"""Runs of the trainer as a whole: repeatable, resumable, accumulating, and clear about what it cannot do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import which

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ALL_BY_GRADIENT, make_model
from tokforget.models.forget_model import ForgetModel, check_model_folder
from tokforget.training.config import ForgetConfig
from tokforget.training.forget_trainer import ForgetTrainer


def rows(num_texts: int = 48, num_tokens: int = 16) -> list[dict]:
    ids = torch.randint(1, 250, (num_texts, num_tokens), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row[: num_tokens - n % 3]} for n, row in enumerate(ids.tolist())]


def make_trainer(base_folder, tokenizer, out, train=None, reward_funcs=None, **args) -> ForgetTrainer:
    defaults = {
        "max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2, "save_strategy": "no", "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "warmup_steps": 1, "seed": 3,
    } | ALL_BY_GRADIENT  # fmt: skip
    config = ForgetConfig(output_dir=str(out), **(defaults | args))
    if reward_funcs is not None:
        config.reward_funcs = reward_funcs
    return ForgetTrainer(
        model=make_model(base_folder, tokenizer), args=config, train_dataset=rows() if train is None else train,
        eval_dataset=rows(8), processing_class=tokenizer,
    )  # fmt: skip


def weights(trainer: ForgetTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different


def test_two_seeded_runs_are_alike_and_another_seed_is_not(base_folder, tokenizer, tmp_path):
    runs = []
    for seed in (3, 3, 4):
        trainer = make_trainer(base_folder, tokenizer, tmp_path / f"{len(runs)}", seed=seed)
        trainer.train()
        runs.append(weights(trainer))
    assert_same(runs[0], runs[1])
    assert any(not torch.equal(runs[0][n], runs[2][n]) for n in runs[0])


def test_some_texts_train_the_reconstructor_and_all_of_them_the_policy(base_folder, tokenizer, tmp_path):
    """A third of six texts: the 3rd and the 6th. Their rows alone move the adapter, and the policy feels no difference."""
    grads, losses = {}, {}
    for share in (1.0, 1 / 3):
        trainer = make_trainer(base_folder, tokenizer, tmp_path / str(share), reconstructor_text_fraction=share,
                               per_device_train_batch_size=6, random_mask_fraction=0.0)  # fmt: skip
        seen = []
        forward = trainer.model.forward
        trainer.model.forward = lambda *args, f=forward, s=seen, **kw: s.append(f(*args, **kw)) or s[-1]
        batch = trainer.data_collator(rows(6))
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch).backward()
        grads[share] = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        losses[share] = seen[0]
    whole, part = losses[1.0], losses[1 / 3]
    assert torch.equal(whole.actions, part.actions) and torch.allclose(whole.token_nll, part.token_nll, atol=1e-5)
    learning = torch.tensor([False, False, True] * 2).repeat_interleave(4)
    assert torch.allclose(part.bits_per_dropped, whole.bits_per_dropped[learning], atol=1e-5)
    trainer.model.zero_grad()
    valid = batch["attention_mask"].bool().repeat_interleave(4, 0)[learning]
    keep = whole.actions.bool()[learning]
    nll = trainer.model.reconstructor(batch["input_ids"].repeat_interleave(4, 0)[learning], keep, valid)
    (nll.sum(1) / (~keep & valid).sum(1)).mean().backward()
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            expected = p.grad if "reconstructor." in name else grads[1.0][name]
            assert torch.allclose(grads[1 / 3][name], expected, atol=1e-5), name
    assert any(grads[1 / 3][n].abs().max() > 1e-3 for n in grads[1.0] if "reconstructor." in n)


def test_a_resumed_run_is_the_unbroken_one(base_folder, tokenizer, tmp_path):
    schedule = {
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "load_best_model_at_end": False,
    }
    unbroken = make_trainer(base_folder, tokenizer, tmp_path / "a", **schedule)
    unbroken.train()
    resumed = make_trainer(base_folder, tokenizer, tmp_path / "b", **schedule)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert_same(weights(unbroken), weights(resumed))
    optimizers = [t.optimizer.state_dict()["state"] for t in (unbroken, resumed)]
    for index, state in optimizers[0].items():
        assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(optimizers[1][index][k])) for k in state)
    assert unbroken.state.best_metric == resumed.state.best_metric
    last = [[log for log in t.state.log_history if "policy_loss" in log][-1] for t in (unbroken, resumed)]
    assert all(last[0][k] == last[1][k] for k in last[0] if k != "tokens_per_second")


def test_the_best_model_is_kept_and_training_stops_early(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(
        base_folder, tokenizer, tmp_path, max_steps=12, eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, save_total_limit=2, early_stopping_patience=1,
        # A policy that learns much too fast gets worse soon.
        policy_learning_rate=0.5, reconstructor_learning_rate=0.5,
    )  # fmt: skip
    trainer.train()
    evaluations = [log["eval_bits_lost"] for log in trainer.state.log_history if "eval_bits_lost" in log]
    assert trainer.state.best_metric == min(evaluations)
    assert Path(trainer.state.best_model_checkpoint).is_dir()
    best = ForgetModel.from_pretrained(trainer.state.best_model_checkpoint)
    assert_same({n: p for n, p in best.named_parameters() if n.startswith("policy.")},
                {n: p for n, p in trainer.model.named_parameters() if n.startswith("policy.")})  # fmt: skip
    assert trainer.state.global_step < 12, f"evaluations {evaluations} never stopped the run"


def test_evaluation_is_at_the_budget_and_at_each_rate(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, eval_rates=[0.25, 0.5])
    metrics = trainer.evaluate()
    tokens = [len(row["input_ids"]) for row in rows(8)]
    for rate in (0.25, 0.5):
        assert metrics[f"eval_compression_rate_{rate:g}"] == pytest.approx(
            sum(int(n * rate + 1e-6) for n in tokens) / sum(tokens)
        )
        assert 0 <= metrics[f"eval_exact_restored_{rate:g}"] <= 1
    assert metrics["eval_bits_lost"] == pytest.approx(
        (metrics["eval_bits_lost_0.25"] + metrics["eval_bits_lost_0.5"]) / 2
    )
    assert metrics["eval_bits_lost_0.25"] > metrics["eval_bits_lost_0.5"]


def test_accumulated_gradients_are_those_of_the_whole_batch(base_folder, tokenizer, tmp_path, monkeypatch):
    """The same keep masks at batch 4 x 1 and 1 x 4: the loss is a mean of means per text."""
    grads = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        trainer = make_trainer(base_folder, tokenizer, tmp_path / f"{batch_size}", max_steps=1, warmup_steps=0,
                               per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
                               random_mask_fraction=0.0, max_grad_norm=1e9, train=rows(4))  # fmt: skip
        decide = trainer.model.policy.decide

        def fixed(input_ids, valid, rate, counts, num_masks=1, generator=None, actions=None, decide=decide):
            place = torch.arange(input_ids.shape[1])
            masks = torch.stack([(input_ids.repeat_interleave(num_masks, 0)[n] * (n % num_masks + 3) + place) % 5 < 2
                                 for n in range(len(input_ids) * num_masks)])  # fmt: skip
            rate = torch.full_like(rate, 0.5)
            counts = valid.sum(1) // 2
            return decide(
                input_ids,
                valid,
                rate,
                counts,
                num_masks,
                actions=(masks & valid.repeat_interleave(num_masks, 0)).long(),
            )

        monkeypatch.setattr(trainer.model.policy, "decide", fixed)
        seen = {}

        def capture(optimizer, args, kwargs, trainer=trainer, seen=seen):
            seen.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

        trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(capture)
        trainer.train()
        grads.append(seen)
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 20
    for name in grads[0]:
        assert torch.allclose(grads[0][name], grads[1][name], rtol=1e-3, atol=1e-5), name


def test_two_learning_rates(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(
        base_folder, tokenizer, tmp_path, policy_learning_rate=0.0, reconstructor_learning_rate=1e-2
    )
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("policy."), name


def test_the_saved_folder_is_complete_and_holds_no_pickle(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    files = {str(p.relative_to(tmp_path / "final")) for p in (tmp_path / "final").rglob("*") if p.is_file()}
    assert files == {
        "config.json", "model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "training_config.json", "README.md",
    }  # fmt: skip
    record = json.loads((tmp_path / "final" / "training_config.json").read_text())
    assert record["num_masks"] == 4 and record["policy_learning_rate"] == 3e-3


def test_hardware_time_and_tokens_are_recorded_and_old_measurements_go(base_folder, tokenizer, tmp_path):
    (tmp_path / "eval_results.json").write_text("{}")  # of the weights that this training replaces
    schedule = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    trainer = make_trainer(base_folder, tokenizer, tmp_path, **schedule)
    trainer.save_model(str(tmp_path / "untrained"))
    assert "run" not in json.loads((tmp_path / "untrained" / "training_config.json").read_text())
    trainer.train()
    trainer.save_model(str(tmp_path))
    assert not (tmp_path / "eval_results.json").exists()
    run = json.loads((tmp_path / "training_config.json").read_text())["run"]
    assert (run["steps"], run["resumed_from_step"], run["processes"], run["threads"]) == (4, 0, 1, 1)
    assert (
        run["seconds"] > 0
        and run["device"].startswith("CPU")
        and torch.__version__.startswith(run["versions"]["torch"])
    )
    sizes = [int(batch["attention_mask"].sum()) for batch in trainer.get_train_dataloader()]
    assert 0 < run["tokens"] <= 4 * max(sizes)
    resumed = make_trainer(base_folder, tokenizer, tmp_path / "again", **schedule)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    facts = resumed.run_facts(resumed.args, resumed.state)
    assert (facts["steps"], facts["resumed_from_step"]) == (4, 2) and 0 < facts["tokens"] < run["tokens"]


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_a_hub_strategy_that_sends_optimizer_states_is_refused(strategy, tmp_path):
    with pytest.raises(ValueError, match=f"`hub_strategy` must be 'end' or 'every_save', got '{strategy}'"):
        ForgetConfig(output_dir=str(tmp_path), use_cpu=True, hub_strategy=strategy)


# -- rewards that fail -------------------------------------------------------------------------------------------------
def half_unscored(episodes):
    rewards = -episodes.token_nll
    rewards[::2] = torch.nan
    return rewards


def none_scored(episodes):
    return torch.full_like(episodes.token_nll, torch.nan)


def fails(episodes):
    raise RuntimeError("the judge is away")


def test_nan_rewards_are_left_out_and_counted(base_folder, tokenizer, tmp_path, caplog):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, reward_funcs=[half_unscored])
    trainer.train()
    log = [log for log in trainer.state.log_history if "policy_loss" in log][-1]
    assert log["frac_unscored"] == 0.5
    assert "nan reward" in caplog.text
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_no_scored_episode_leaves_the_policy_as_it_is(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, reward_funcs=[none_scored], entropy_coef=0.0)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert_same(
        {n: p for n, p in before.items() if n.startswith("policy.")},
        {n: p for n, p in after.items() if n.startswith("policy.")},
    )
    assert any(not torch.equal(before[n], after[n]) for n in before), "the reconstructor still learns"


def test_an_exception_in_a_reward_ends_the_run(base_folder, tokenizer, tmp_path):
    with pytest.raises(RuntimeError, match="the judge is away"):
        make_trainer(base_folder, tokenizer, tmp_path, reward_funcs=[fails]).train()


def test_simple_reward_trains(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, reward_funcs=["simple", "information_theoretic"])
    trainer.train()
    log = [log for log in trainer.state.log_history if "policy_loss" in log][-1]
    assert -1 <= log["rewards/simple"] <= 0 and log["rewards/information_theoretic"] < -1


def test_bfloat16_autocast_trains_to_similar_figures(base_folder, tokenizer, tmp_path):
    logs = []
    for bf16 in (False, True):
        trainer = make_trainer(base_folder, tokenizer, tmp_path / str(bf16), bf16=bf16, max_steps=2)
        trainer.train()
        logs.append(next(log for log in trainer.state.log_history if "policy_loss" in log))
    assert logs[1]["reconstruction_loss"] == pytest.approx(logs[0]["reconstruction_loss"], rel=0.02)
    assert logs[0]["reconstruction_loss"] != logs[1]["reconstruction_loss"], "it was switched on"


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(which("g++") is None, reason="needs a C++ compiler"),
                pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # of torch's own parts
            ],
        ),
    ],
)
def test_a_compiled_run_learns_what_another_learns(base_folder, tokenizer, tmp_path, backend):
    logs = []
    for chosen in (None, backend):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer = make_trainer(
            base_folder,
            tokenizer,
            tmp_path / str(chosen),
            torch_compile_backend=chosen,
            reconstructor_text_fraction=0.25,
        )
        trainer.train()
        logs.append([log for log in trainer.state.log_history if "policy_loss" in log])
    names = ("loss", "grad_norm", "policy_loss", "reconstruction_loss", "bits_lost")
    for plain, compiled in zip(*logs):
        assert [compiled[name] for name in names] == pytest.approx([plain[name] for name in names], rel=1e-3)
    counters = torch._dynamo.utils.counters
    # Texts of one width: rows that train the reconstructor, and rows that do not.
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_an_empty_training_set(base_folder, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="training set is empty"):
        make_trainer(base_folder, tokenizer, tmp_path, train=[])


def test_texts_of_one_token_and_shorter_than_a_window(base_folder, tokenizer, tmp_path):
    short = [{"input_ids": [7]}, {"input_ids": [7, 8]}, {"input_ids": [7, 8, 9]}, {"input_ids": [5]}] * 4
    trainer = make_trainer(base_folder, tokenizer, tmp_path, train=short, max_steps=2)
    trainer.train()
    log = [log for log in trainer.state.log_history if "policy_loss" in log][-1]
    assert log["decisions_per_episode"] == 1 and log["rate"] > 0.5
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


# -- interrupted saves -------------------------------------------------------------------------------------------------
def test_a_save_that_fails_leaves_the_last_checkpoint(base_folder, tokenizer, tmp_path, monkeypatch):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, save_strategy="steps", save_steps=2)
    save_rng = ForgetTrainer._save_rng_state

    def full_disk(self, output_dir):
        if self.state.global_step >= 4:
            raise OSError(28, "No space left on device")
        save_rng(self, output_dir)

    monkeypatch.setattr(ForgetTrainer, "_save_rng_state", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]
    check_model_folder(tmp_path / "checkpoint-2")
    monkeypatch.setattr(ForgetTrainer, "_save_rng_state", save_rng)
    again = make_trainer(base_folder, tokenizer, tmp_path, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6 and (tmp_path / "checkpoint-6").is_dir()
    assert not (tmp_path / ".saving").exists()


KILLED_RUN = """
import sys
from tests.conftest import *
from tests.training.test_forget_trainer import make_trainer
from transformers import AutoTokenizer
base, out = sys.argv[1:]
make_trainer(base, AutoTokenizer.from_pretrained(base), out, max_steps=5000, save_strategy="steps", save_steps=1).train()
"""


@pytest.mark.slow
def test_killed_at_any_moment_every_visible_checkpoint_is_whole(base_folder, tmp_path):
    """Saving at every step, killed in the middle: whatever is called a checkpoint loads with its optimizer."""
    process = subprocess.Popen([sys.executable, "-c", KILLED_RUN, base_folder, str(tmp_path)], cwd=Path(__file__).parents[2],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("checkpoint-*"))) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) >= 4
    for checkpoint in checkpoints:
        check_model_folder(checkpoint)
        load_file(checkpoint / "model.safetensors")
        assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == int(
            checkpoint.name.split("-")[1]
        )
        torch.load(checkpoint / "optimizer.pt", weights_only=True)
        assert (checkpoint / "rng_state.pth").stat().st_size > 0
