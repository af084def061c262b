"""On a GPU: the figures of the CPU, whole runs, and models that load where there is none. Skipped without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import make_model
from tokforget.compression.compressor import Compressor
from tokforget.evaluation.oracle import GreedyOracle
from tokforget.masking import keep_count, random_keep_mask
from tokforget.training.sampled_texts import sample_blocks
from tokforget.training.warm_start import TARGETS, target_bits, warm_start


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def pair(base_folder, tokenizer):
    """The same model on the CPU and on the GPU."""
    return make_model(base_folder, tokenizer).eval(), make_model(base_folder, tokenizer).eval().cuda()


def test_decisions_and_log_probabilities(pair, batch):
    ids, valid = batch
    rate = torch.tensor([0.3, 0.5, 0.7])
    on_cpu, on_gpu = pair
    assert torch.equal(
        on_cpu.keep_mask(ids, valid, rate), on_gpu.keep_mask(ids.cuda(), valid.cuda(), rate.cuda()).cpu()
    )
    drawn = []
    for model in pair:
        device = model.device
        generators = [torch.Generator().manual_seed(n) for n in range(12)]
        counts = keep_count(valid.sum(1), rate).to(device)
        drawn.append(
            model.policy.decide(
                ids.to(device), valid.to(device), rate.to(device), counts, num_masks=4, generator=generators
            )
        )
    assert torch.equal(drawn[0].actions, drawn[1].actions.cpu())
    torch.testing.assert_close(drawn[0].log_probs, drawn[1].log_probs.cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", ["prefix", "infill"])
def test_bits_and_gradients(base_folder, tokenizer, batch, layout):
    ids, valid = batch
    keep_mask = random_keep_mask(keep_count(valid.sum(1), 0.5), valid, torch.Generator().manual_seed(0))
    nll, gradients = [], []
    for device in ("cpu", "cuda"):
        model = make_model(base_folder, tokenizer, layout=layout).to(device)
        bits = model.reconstructor.token_nll(ids.to(device), keep_mask.to(device), valid.to(device)).nll
        bits.sum().backward()
        nll.append(bits.detach().cpu())
        gradients.append([p.grad.cpu() for p in model.reconstructor.parameters() if p.requires_grad])
    torch.testing.assert_close(*nll, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", ["prefix", "infill"])
def test_restoration_and_oracle(base_folder, tokenizer, batch, layout):
    ids, valid = batch
    keep_mask = random_keep_mask(keep_count(valid.sum(1), 0.5), valid, torch.Generator().manual_seed(0))
    restored, best = [], []
    for device in ("cpu", "cuda"):
        reconstructor = make_model(base_folder, tokenizer, layout=layout).eval().to(device).reconstructor
        on_device = [part.to(device) for part in (ids, keep_mask, valid)]
        restored.append(reconstructor.restore(*on_device).input_ids.cpu())
        rate = torch.full((3,), 0.5, device=device)
        best.append(GreedyOracle(reconstructor).score(on_device[0], on_device[2], rate).cpu())
    assert torch.equal(*restored) and torch.equal(*best)


@pytest.mark.parametrize("target", TARGETS)
def test_the_warm_start_learns_what_the_cpu_learns(pair, target):
    texts = [torch.randint(1, 200, (n,), generator=torch.Generator().manual_seed(n)) for n in (8, 12, 20, 5)]
    losses = []
    for model in pair:
        bits = target_bits(model, texts, target)
        losses.append(warm_start(model, texts, bits, 10, 0.2, 0.8, seed=0, learning_rate=1e-3, batch_size=2))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_sampled_texts_are_as_long_and_begin_alike(pair):
    blocks = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14]]
    drawn = sample_blocks(pair[1].reconstructor, blocks, 6, 2, seed=0)
    assert sorted(len(row) for row in drawn) == [4] * 3 + [6] * 3
    assert all(row[:2] in ([5, 6], [11, 12]) for row in drawn)


def test_a_compressor_on_the_gpu_writes_what_one_on_the_cpu_writes():
    texts = ["The quick brown fox jumps over the lazy dog, twice on Sundays. " * n for n in (1, 2, 5)]
    on_cpu, on_gpu = (Compressor.from_pretrained(device=device) for device in ("cpu", "cuda"))
    assert [r.text for r in on_cpu.compress(texts, rate=0.5)] == [r.text for r in on_gpu.compress(texts, rate=0.5)]


def launch(*words: str) -> str:
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    hardware = ["--config_file", "accelerate_configs/single_gpu.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*launcher, *hardware, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.slow
def test_recipes_on_one_gpu(tmp_path):
    """A reconstructor, a policy from it, an evaluation: all by `single_gpu.yaml`, in bfloat16 where the GPU has it."""
    start, out = str(tmp_path / "start"), str(tmp_path / "policy")
    short = [
        "--max_steps",
        "6",
        "--eval_steps",
        "3",
        "--save_steps",
        "3",
        "--max_test_texts",
        "8",
        "--logging_steps",
        "2",
    ]
    launch(
        "recipes/train_reconstructor.py", "--config", "recipes/reconstructor_cpu.yaml", *short, "--output_dir", start
    )
    launch(
        "recipes/train.py", "--config", "recipes/quick_test.yaml", *short, "--reconstructor_path", start,
        "--warm_start_steps", "20", "--warm_start_texts", "64", "--sampled_texts", "64", "--output_dir", out,
    )  # fmt: skip
    record = json.loads(Path(out, "training_config.json").read_text())
    assert record["run"]["device"] == torch.cuda.get_device_name() and record["bf16"] == torch.cuda.is_bf16_supported()
    rows = json.loads(Path(out, "eval_results.json").read_text())["scorers"]
    assert all(0 < row["bits_lost"] < 20 for row in rows)
    launch(
        "recipes/evaluate.py", "--config", "recipes/evaluation_quick.yaml", "--model_path", out, "--max_texts", "4",
        "--num_random_seeds", "1", "--speed_lengths", "64", "--speed_repeats", "1", "--output_dir", str(tmp_path / "evaluation"),
    )  # fmt: skip
    assert (tmp_path / "evaluation" / "report.md").is_file()
    compressed = Compressor.from_pretrained(out, device="cpu").compress("Trained on a GPU, read on a CPU.", rate=0.5)
    assert 0 < len(compressed.kept_ids) < compressed.original_tokens
