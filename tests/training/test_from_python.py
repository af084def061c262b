"""What `ForgetTrainer(...).train()` does from Python is what recipes/train.py does: the whole method, to the bit."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file

from tests.conftest import ALL_BY_GRADIENT, make_gpt2, make_model
from tokforget.data.arguments import DataArguments
from tokforget.data.blocks import as_blocks, draw_blocks
from tokforget.models.forget_model import ForgetModel
from tokforget.training.config import ForgetConfig, ReconstructorConfig
from tokforget.training.faults import PreparationError
from tokforget.training.forget_trainer import ForgetTrainer
from tokforget.training.reconstructor_trainer import ReconstructorTrainer


ROOT = Path(__file__).parents[2]
LENGTHS = {"max_length": 40, "min_length": 16}
# The defaults, but for sizes: what is sampled, fitted and trained on is a hundredth.
SMALL = {
    "max_steps": 3, "sampled_texts": 5, "warm_start_steps": 4, "per_device_train_batch_size": 4,
    "reconstructor_text_fraction": 0.25, "seed": 7, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory, texts) -> str:
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    documents = [f"{texts[i]} number {i * 37 % 91} came. " + texts[(i * 7 + 3) % 60] for i in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


def files(folder: Path) -> dict[str, torch.Tensor]:
    weights = {}
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "warm_start/model.safetensors"):
        weights |= {f"{name}:{key}": value for key, value in load_file(folder / name).items()}
    return weights


def by_recipe(base: str, source: str, out: Path, **more) -> None:
    words = {"reconstructor_name_or_path": base, "dataset_name": source, "max_test_texts": 0, "output_dir": out}
    words |= LENGTHS | SMALL | more
    line = [
        word
        for key, value in words.items()
        for word in (f"--{key}", str(value).lower() if value in (True, False) else str(value))
    ]
    runpy.run_path(str(ROOT / "recipes/train.py"))["main"](line)


def by_python(base: str, source: str, out: Path, tokenizer, **more) -> ForgetTrainer:
    train = draw_blocks(DataArguments(dataset_name=source, **LENGTHS), tokenizer)[0]
    args = ForgetConfig(output_dir=str(out), **SMALL | more)
    trainer = ForgetTrainer(model=base, args=args, train_dataset=train, processing_class=tokenizer)
    torch.manual_seed(999)  # what happens to the global generator in between changes nothing before the first step
    trainer.train()
    trainer.save_model(str(out))
    return trainer


def test_python_trains_what_the_recipe_trains(base_folder, source, tokenizer, tmp_path):
    by_recipe(base_folder, source, tmp_path / "recipe")
    trainer = by_python(base_folder, source, tmp_path / "python", tokenizer)
    recipe, python = files(tmp_path / "recipe"), files(tmp_path / "python")
    assert recipe.keys() == python.keys() and len(recipe) > 40
    different = [name for name in recipe if not torch.equal(recipe[name], python[name])]
    assert not different, different
    # And none of it for lack of doing anything.
    assert trainer.model.policy.ngrams.total > 0
    assert len(trainer.train_dataset) > 5 and (tmp_path / "python/sampled_texts").is_dir()
    started = ForgetModel.from_pretrained(tmp_path / "python/warm_start", with_reconstructor=False)
    assert started.policy.to_logit.weight.abs().max() > 0
    assert any(
        not torch.equal(python[f"warm_start/{name}"], python[name]) for name in python if name.startswith("model.")
    )
    record = json.loads((tmp_path / "recipe/training_config.json").read_text())
    assert record["data"]["blocks"]["sampled"] == 5


@pytest.mark.slow
def test_two_processes_train_what_two_processes_of_the_recipe_train(base_folder, source, tmp_path):
    """The same comparison under a launcher; Python's side is this file, run as a script."""
    import os
    import subprocess

    words = ["--num_processes", "2", "--mixed_precision", "no", "--config_file", "accelerate_configs/multi_gpu.yaml"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for side, out in (("recipe", tmp_path / "recipe"), ("python", tmp_path / "python")):
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *words]
        done = subprocess.run([*launcher, __file__, side, base_folder, source, str(out)], cwd=ROOT, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    recipe, python = files(tmp_path / "recipe"), files(tmp_path / "python")
    assert recipe.keys() == python.keys() and all(torch.equal(recipe[name], python[name]) for name in recipe)


def test_a_resumed_run_is_the_unbroken_one_with_all_of_the_method(base_folder, source, tokenizer, tmp_path):
    """Sampled texts come from the folder, the policy from the checkpoint; the warm start is not done twice."""
    schedule = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    unbroken = by_python(base_folder, source, tmp_path, tokenizer, **schedule)
    whole = {name: value.clone() for name, value in unbroken.model.state_dict().items()}
    start = (tmp_path / "warm_start/model.safetensors").stat().st_mtime_ns
    args = ForgetConfig(output_dir=str(tmp_path), **SMALL | schedule)
    train = draw_blocks(DataArguments(dataset_name=source, **LENGTHS), tokenizer)[0]
    again = ForgetTrainer(model=base_folder, args=args, train_dataset=train, processing_class=tokenizer)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    different = [name for name, value in again.model.state_dict().items() if not torch.equal(value, whole[name])]
    assert not different, different
    assert (tmp_path / "warm_start/model.safetensors").stat().st_mtime_ns == start
    lost = ForgetConfig(output_dir=str(tmp_path / "elsewhere"), **SMALL | schedule)
    elsewhere = ForgetTrainer(model=base_folder, args=lost, train_dataset=train, processing_class=tokenizer)
    with pytest.raises(PreparationError, match="had sampled texts there"):
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_run_learns_from_the_warm_start_data_of_another(base_folder, source, tokenizer, tmp_path):
    """The same texts and bits: a run of the same seed is the same run."""
    first = by_python(base_folder, source, tmp_path / "first", tokenizer)
    shared = str(tmp_path / "first/warm_start_data")
    second = by_python(
        base_folder, source, tmp_path / "second", tokenizer, warm_start_data_path=shared, sampled_texts=None
    )
    assert not (tmp_path / "second/sampled_texts").exists()
    assert len(first.train_dataset) == len(second.train_dataset)
    assert all(torch.equal(v, second.model.state_dict()[n]) for n, v in first.model.state_dict().items())


def test_a_trained_policy_keeps_its_ranking_unless_a_warm_start_is_asked_for(base_folder, tokenizer, tmp_path):
    """The default warm start is for a fresh policy: on a trained one it would fit another ranking, 24 times as sharp."""
    rows = [{"input_ids": torch.randint(1, 250, (12,)).tolist()} for _ in range(8)]
    quick = SMALL | {"sampled_texts": 0, "max_steps": 1, "policy_learning_rate": 0.0, "warm_start_steps": None}
    trained, fresh = make_model(base_folder, tokenizer), make_model(base_folder, tokenizer)
    torch.nn.init.zeros_(fresh.policy.to_logit.weight)
    for name, model in (("trained", trained), ("fresh", fresh)):
        before = model.policy.to_logit.weight.detach().clone()
        args = ForgetConfig(output_dir=str(tmp_path / name), **quick)
        args.default_warm_start_steps = 2
        trainer = ForgetTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        assert torch.equal(before, model.policy.to_logit.weight) == (name == "trained")
        assert trainer.run_record["warm_start_steps"] == (0 if name == "trained" else 2)


# -- names and data sets -----------------------------------------------------------------------------------------------
def test_a_trained_model_is_gone_on_from_by_its_name(base_folder, tokenizer, tmp_path):
    saved = make_model(base_folder, tokenizer, layout="infill")
    saved.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    args = ForgetConfig(output_dir=str(tmp_path / "out"), use_cpu=True, **ALL_BY_GRADIENT)
    rows = [{"input_ids": [5, 6, 7, 8]}] * 2
    trainer = ForgetTrainer(model=str(tmp_path / "trained"), args=args, train_dataset=rows)
    assert trainer.processing_class.get_vocab() == tokenizer.get_vocab()
    assert torch.equal(trainer.model.policy.to_head.weight, saved.policy.to_head.weight)
    assert trainer.model.reconstructor.layout == trainer.run_record["layout"] == "infill"
    assert any(p.requires_grad for p in trainer.model.reconstructor.parameters())


def test_a_reconstructor_is_trained_by_its_name(base_folder, texts, tmp_path):
    args = ReconstructorConfig(
        output_dir=str(tmp_path), use_cpu=True, max_steps=1, per_device_train_batch_size=2, save_strategy="no"
    )
    documents = Dataset.from_dict({"text": [". ".join(texts[n : n + 3]) for n in range(8)]})
    trainer = ReconstructorTrainer(base_folder, args, documents)
    trainer.train()
    trainer.save_model(str(tmp_path))
    record = json.loads((tmp_path / "training_config.json").read_text())
    assert (record["layout"], record["lora_rank"], record["base_model_name_or_path"]) == ("prefix", 16, base_folder)
    longest = max(len(row) for row in trainer.train_dataset.texts["input_ids"])
    assert longest == trainer.model.max_tokens == 47, "the default 96 does not fit this model twice"


def test_texts_are_cut_as_a_run_cuts_them(tokenizer, texts):
    text = ". ".join(texts[:4]) + "<|endoftext|>"
    rows = Dataset.from_dict({"text": [text, "short"], "id": [1, 2]})
    blocks = as_blocks(rows, tokenizer, max_length=20, min_length=5)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    found = [token for block in blocks for token in block]
    assert [len(block) for block in blocks[:-1]] == [20] * (len(blocks) - 1) and 5 <= len(blocks[-1]) <= 20
    assert found == ids[: len(found)] and len(ids) - len(found) < 5
    assert tokenizer.eos_token_id not in found
    ready = Dataset.from_dict({"input_ids": [[1, 2]], "text": ["x"]})
    assert as_blocks(ready, None) is ready


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (Dataset.from_dict({"content": ["a"]}), ValueError, "`input_ids` (blocks of token ids) or `text`, and has content"),
        (Dataset.from_dict({"text": ["a b"]}), ValueError, "No text of `train_dataset` has 32 tokens"),
        (DatasetDict(train=Dataset.from_dict({"text": ["a b"]})), ValueError, "holds the splits train; pass one of them"),
        (Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), TypeError, "is a stream"),
        (["a text"], ValueError, "must be dictionaries with `input_ids` or `text`"),
        ([], ValueError, "training set is empty"),
        (None, ValueError, "training set is empty"),
    ],
)  # fmt: skip
def test_a_data_set_that_cannot_be_learnt_from(given, error, message, model, tokenizer, tmp_path):
    args = ForgetConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)")):
        ForgetTrainer(model=model, args=args, train_dataset=given, processing_class=tokenizer)


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match="there is no tokenizer for it: pass `processing_class`"):
        as_blocks([{"text": "a"}], None)


def test_what_is_no_model(base_folder, tokenizer, tmp_path):
    args, rows = ForgetConfig(output_dir=str(tmp_path), use_cpu=True), [{"input_ids": [1, 2]}]
    with pytest.raises(TypeError, match="must be a `ForgetModel` or a name .*, got `GPT2LMHeadModel`"):
        ForgetTrainer(model=make_gpt2(300), args=args, train_dataset=rows)
    with pytest.raises(ValueError, match="could not be loaded"):
        ForgetTrainer(model=str(tmp_path / "gone"), args=args, train_dataset=rows)
    alone = ForgetModel(make_model(base_folder, tokenizer).config)
    with pytest.raises(ValueError, match="has no reconstructor"):
        ForgetTrainer(model=alone, args=args, train_dataset=rows)


# -- the reconstructor's random masks ----------------------------------------------------------------------------------
def test_random_masks_do_not_depend_on_the_count_tables(base_folder, tokenizer, tmp_path):
    """What a run without tables is compared with: the same random masks, kinds and all."""
    drawn = []
    rows = [
        {"input_ids": torch.randint(1, 250, (12,), generator=torch.Generator().manual_seed(n)).tolist()}
        for n in range(8)
    ]
    for buckets in (256, 0):
        args = ForgetConfig(output_dir=str(tmp_path), use_cpu=True, **ALL_BY_GRADIENT, random_mask_fraction=0.5)
        model = make_model(base_folder, tokenizer, ngram_buckets=buckets)
        trainer = ForgetTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        batch = trainer.data_collator(rows)
        numbers = trainer._number(len(rows))
        drawn.append(trainer._draw(batch, numbers, trainer._generators(numbers))["random_keep_mask"])
    assert drawn[0].shape == (32, 12) and torch.equal(*drawn)


if __name__ == "__main__":  # one of the two sides of the test of several processes
    from transformers import AutoTokenizer

    side, base, source, out = sys.argv[1:]
    if side == "recipe":
        by_recipe(base, source, Path(out))
    else:
        by_python(base, source, Path(out), AutoTokenizer.from_pretrained(base))
