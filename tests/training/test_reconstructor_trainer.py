"""The reconstructor alone: it learns, it resumes, pads are nothing to it, and the joint loop starts from what it saves."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import make_gpt2, pair_texts
from tokforget.data.arguments import DataArguments
from tokforget.models.arguments import ReconstructorArguments
from tokforget.models.forget_model import ForgetModel
from tokforget.models.reconstructor import LAYOUTS
from tokforget.models.reconstructor_folder import load_reconstructor, load_trainable, recorded_layout
from tokforget.parsing import parse_arguments
from tokforget.training import reconstructor_trainer
from tokforget.training.config import ReconstructorConfig
from tokforget.training.random_masks import unigram_surprisal
from tokforget.training.reconstructor_trainer import ReconstructorTrainer


ROOT = Path(__file__).parents[2]


def rows(num_texts: int = 48, num_tokens: int = 16) -> list[dict]:
    ids = torch.randint(1, 250, (num_texts, num_tokens), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row[: num_tokens - n % 3]} for n, row in enumerate(ids.tolist())]


def make_trainer(
    base, tokenizer, out, train=None, evaluate=None, layout="prefix", use_peft=True, **args
) -> ReconstructorTrainer:
    defaults = {
        "max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2, "save_strategy": "no", "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "warmup_steps": 1, "seed": 3, "learning_rate": 1e-2,
    }  # fmt: skip
    torch.manual_seed(0)
    reconstructor = load_trainable(str(base), tokenizer, layout, lora_rank=4, lora_alpha=8, use_peft=use_peft)
    return ReconstructorTrainer(
        model=reconstructor, args=ReconstructorConfig(output_dir=str(out), **(defaults | args)),
        train_dataset=rows() if train is None else train, eval_dataset=rows(8) if evaluate is None else evaluate,
        processing_class=tokenizer, run_record={"layout": layout, "use_peft": use_peft, "lora_rank": 4,
                                                "base_model_name_or_path": str(base), "dataset_name": "rows",
                                                "mask_kinds": ["random"], "min_rate": 0.2, "max_rate": 0.8},
    )  # fmt: skip


def weights(trainer: ReconstructorTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different


# -- learning ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def lively_folder(tokenizer, tmp_path_factory) -> str:
    """Embeddings large enough that a frozen head can prefer one token to another, as a pretrained one can."""
    folder = tmp_path_factory.mktemp("lively")
    make_gpt2(len(tokenizer), initializer_range=0.2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("use_peft", "share"), [(True, 0.88), (False, 0.6)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_learns_and_an_adapter_leaves_the_base_as_it_was(
    layout, use_peft, share, lively_folder, tokenizer, tmp_path
):
    """Every second token repeats the first, of 23 kinds; 40 steps take off an eighth of the bits, or half of them."""
    texts = [{"input_ids": ids} for ids in pair_texts(200, 16, seed=0).tolist()]
    trainer = make_trainer(
        lively_folder, tokenizer, tmp_path, train=texts[:188], evaluate=texts[188:], layout=layout, use_peft=use_peft,
        max_steps=40, per_device_train_batch_size=16, learning_rate=2e-2 if use_peft else 1e-2, logging_steps=20,
    )  # fmt: skip
    before, start = weights(trainer), trainer.evaluate()
    trainer.train()
    after, end = weights(trainer), trainer.evaluate()
    assert end["eval_bits_lost"] < share * start["eval_bits_lost"], (start["eval_bits_lost"], end["eval_bits_lost"])
    assert end["eval_exact_restored_0.5"] > start["eval_exact_restored_0.5"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {name for name in before if "lora_" in name} if use_peft else before.keys()
    assert changed == expected
    log = [log for log in trainer.state.log_history if "loss" in log]
    assert {"bits_per_dropped/random", "bits_per_dropped/span", "bits_per_dropped/frequency"} <= log[-1].keys()
    assert log[-1]["loss"] < log[0]["loss"] and 0.2 <= log[-1]["rate"] <= 0.8


def test_padding_and_neighbours_change_neither_loss_nor_gradient(base_folder, tokenizer, tmp_path, monkeypatch):
    """The loss of three texts in one padded batch is the mean of their losses alone, and so are the gradients."""
    trainer = make_trainer(base_folder, tokenizer, tmp_path, min_rate=0.5, max_rate=0.5)
    torch.nn.init.normal_(next(p for n, p in trainer.model.named_parameters() if "lora_B" in n), std=0.3)
    places = torch.arange(16) * 7 % 11  # masks that do not hang on the shape of the batch
    monkeypatch.setattr(
        reconstructor_trainer, "draw_scores", lambda kinds, valid, *_: places[: valid.shape[1]].float() * valid
    )
    texts = [{"input_ids": list(range(5, 5 + length))} for length in (12, 7, 3)]

    def loss_and_gradients(some: list[dict], pad: int = 0):
        batch = trainer.data_collator(some)
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, pad)
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}

    together, gradients = loss_and_gradients(texts)
    other_pads, other_gradients = loss_and_gradients(texts, pad=77)
    assert together == other_pads
    assert_same(gradients, other_gradients)
    alone = [loss_and_gradients([text]) for text in texts]
    assert together == pytest.approx(sum(loss for loss, _ in alone) / 3, rel=1e-5)
    assert len(gradients) > 10 and any(g.abs().max() > 1e-3 for g in gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, sum(one[name] for _, one in alone) / 3, atol=1e-5), name


def test_the_loss_is_the_mean_over_texts_of_bits_per_dropped_token(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, mask_kinds=["span"], train=rows(4), max_steps=1)
    loss, outputs = trainer.compute_loss(trainer.model, trainer.data_collator(rows(4)), return_outputs=True)
    per_text = [bits[bits > 0].mean().item() for bits in outputs["token_nll"].detach()]
    assert loss.item() == pytest.approx(sum(per_text) / 4, rel=1e-5)


# -- repeatable --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("use_peft", [True, False])
def test_a_resumed_run_is_the_unbroken_one(use_peft, base_folder, tokenizer, tmp_path):
    schedule = {
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "use_peft": use_peft,
        "layout": "infill",
    }
    unbroken = make_trainer(base_folder, tokenizer, tmp_path / "a", **schedule)
    unbroken.train()
    resumed = make_trainer(base_folder, tokenizer, tmp_path / "b", **schedule)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert_same(weights(unbroken), weights(resumed))
    assert unbroken.state.best_metric == resumed.state.best_metric
    last = [[log for log in t.state.log_history if "bits_lost" in log][-1] for t in (unbroken, resumed)]
    assert all(last[0][k] == last[1][k] for k in last[0] if k != "tokens_per_second")
    assert not (tmp_path / "a" / ".saving").exists() and not list(tmp_path.rglob("training_args.bin"))


def test_every_evaluation_sees_the_same_masks(base_folder, tokenizer, tmp_path):
    """Whatever the batch, the seed and the steps in between: the figures of an untouched model stay the same."""
    found = []
    for batch_size, seed in ((8, 3), (3, 4)):
        trainer = make_trainer(base_folder, tokenizer, tmp_path, per_device_eval_batch_size=batch_size, seed=seed,
                               learning_rate=0.0, max_steps=1, layout="infill")  # fmt: skip
        found += [trainer.evaluate(), (trainer.train(), trainer.evaluate())[1]]
    for metrics in found[1:]:
        for rate in ("0.3", "0.5", "0.7"):
            assert metrics[f"eval_bits_lost_{rate}"] == pytest.approx(found[0][f"eval_bits_lost_{rate}"], rel=1e-5)
            assert metrics[f"eval_exact_restored_{rate}"] == found[0][f"eval_exact_restored_{rate}"]
    tokens = [len(row["input_ids"]) for row in rows(8)]
    assert found[0]["eval_compression_rate_0.3"] == pytest.approx(sum(int(n * 0.3) for n in tokens) / sum(tokens))
    assert found[0]["eval_bits_lost"] == pytest.approx(
        sum(found[0][f"eval_bits_lost_{r}"] for r in (0.3, 0.5, 0.7)) / 3
    )


def test_half_of_the_evaluation_masks_keep_the_rare_tokens(base_folder, tokenizer, tmp_path):
    """Of the odd places, whose masks follow the surprisal: the rare half of the tokens is kept much more often."""
    texts = [{"input_ids": [1, 100 + n % 90] * 8} for n in range(64)]
    trainer = make_trainer(base_folder, tokenizer, tmp_path, train=texts, evaluate=texts)
    scores = torch.stack([row["scores"] for row in trainer._with_scores(texts)])
    rare_kept = (scores > scores.median(1, keepdim=True).values)[:, 1::2].float().mean(1)
    assert rare_kept[1::2].mean() > 0.8 and abs(rare_kept[::2].mean() - 0.44) < 0.1  # 7 of 16 lie above the median


def test_the_best_model_is_kept_and_training_stops_early(base_folder, tokenizer, tmp_path):
    trainer = make_trainer(
        base_folder, tokenizer, tmp_path, max_steps=16, eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, save_total_limit=2, early_stopping_patience=1, learning_rate=1.0,
        layout="infill",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step < 16
    evaluations = [log["eval_bits_lost"] for log in trainer.state.log_history if "eval_bits_lost" in log]
    assert trainer.state.best_metric == min(evaluations)
    assert trainer.evaluate()["eval_bits_lost"] == pytest.approx(min(evaluations))


def test_surprisal_by_hand():
    # Counts 2, 1, 0 and one more each: 3, 2, 1 of 6.
    bits = unigram_surprisal([[0, 1], [0]], vocab_size=3)
    assert torch.allclose(bits, torch.tensor([1.0, 1.5849625, 2.5849625]))


# -- the folder --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def saved(base_folder, tokenizer, tmp_path_factory) -> dict[bool, tuple[Path, ReconstructorTrainer]]:
    """A LoRA run and a full run in the infill layout, saved."""
    folders = {}
    for use_peft in (True, False):
        folder = tmp_path_factory.mktemp("saved") / ("adapter" if use_peft else "model")
        trainer = make_trainer(base_folder, tokenizer, folder, layout="infill", use_peft=use_peft)
        trainer.train()
        trainer.save_model(str(folder))
        folders[use_peft] = (folder, trainer)
    return folders


def test_what_is_saved(saved, base_folder, batch):
    common = {"README.md", "tokenizer.json", "tokenizer_config.json", "training_config.json"}
    for use_peft, (folder, trainer) in saved.items():
        own = (
            {"adapter_config.json", "adapter_model.safetensors"}
            if use_peft
            else {"config.json", "generation_config.json", "model.safetensors"}
        )
        assert {p.name for p in folder.iterdir()} == common | own
        card = (folder / "README.md").read_text()
        assert "{{" not in card and "Layout `infill`" in card
        assert not re.search(r"^#+ .*\n+(?=#|\Z)", card, re.MULTILINE), "a heading without text"
        reconstructor = load_reconstructor(str(folder), AutoTokenizer.from_pretrained(folder))
        assert reconstructor.layout == "infill" and not any(p.requires_grad for p in reconstructor.parameters())
        keep_mask = torch.arange(12).expand(3, -1) % 2 == 0
        trainer.model.eval()
        with torch.no_grad():
            expected = trainer.model.token_nll(batch[0], keep_mask, batch[1]).nll
            assert torch.allclose(expected, reconstructor.token_nll(batch[0], keep_mask, batch[1]).nll, atol=1e-5)
    whole = AutoModelForCausalLM.from_pretrained(saved[False][0])
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    assert whole.config.model_type == "gpt2" and not torch.equal(whole.lm_head.weight, base.lm_head.weight)


def test_the_joint_model_goes_on_with_the_adapter(saved, tokenizer):
    folder, trainer = saved[True]
    model = ForgetModel.from_base(str(folder), tokenizer, layout="infill", ngram_buckets=256)
    assert_same(weights(trainer), {n: p.detach() for n, p in model.reconstructor.named_parameters()})
    trainable = {n for n, p in model.reconstructor.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert model.config.marker_token_id == trainer.model.marker_token_id


def test_the_joint_model_puts_a_fresh_adapter_on_a_whole_model(saved, tokenizer):
    folder, _ = saved[False]
    model = ForgetModel.from_base(str(folder), tokenizer, layout="infill", ngram_buckets=256)
    assert model.config.base_model_name_or_path == str(folder)
    stored, embeddings = load_file(folder / "model.safetensors"), model.reconstructor.base_model.transformer.wte.weight
    assert torch.equal(stored["transformer.wte.weight"], embeddings) and not embeddings.requires_grad
    assert all(not p.any() for n, p in model.reconstructor.named_parameters() if "lora_B" in n)


def test_another_layout_is_refused_and_a_plain_model_has_none(saved, base_folder, tokenizer, tmp_path):
    for folder, _ in saved.values():
        with pytest.raises(ValueError, match="was trained for 'infill'. Pass `--layout infill`"):
            ForgetModel.from_base(str(folder), tokenizer, layout="prefix")
    assert recorded_layout(base_folder) is None and recorded_layout("openai-community/gpt2") is None
    with pytest.raises(ValueError, match="does not record a layout"):
        load_reconstructor(base_folder, tokenizer)


def test_an_adapter_can_be_gone_on_with_or_merged_into_a_whole_model(saved, tokenizer, batch):
    folder, trainer = saved[True]
    keep_mask = torch.arange(12).expand(3, -1) % 3 == 0
    trainer.model.eval()
    for use_peft in (True, False):
        reconstructor = load_trainable(str(folder), tokenizer, "infill", use_peft=use_peft)
        with torch.no_grad():
            assert torch.allclose(
                trainer.model.token_nll(batch[0], keep_mask, batch[1]).nll,
                reconstructor.token_nll(batch[0], keep_mask, batch[1]).nll, atol=1e-4,
            )  # fmt: skip
        lora = [n for n, p in reconstructor.named_parameters() if "lora_" in n and p.requires_grad]
        assert bool(lora) == use_peft
        assert use_peft or all(p.requires_grad for p in reconstructor.parameters())


def test_a_full_run_into_the_folder_of_a_lora_run_leaves_one_model(base_folder, tokenizer, tmp_path):
    for use_peft in (True, False, True):
        trainer = make_trainer(base_folder, tokenizer, tmp_path, use_peft=use_peft)
        trainer.save_model(str(tmp_path))
        assert (tmp_path / "adapter_config.json").exists() == use_peft
        assert (tmp_path / "config.json").exists() == (not use_peft)
        assert json.loads((tmp_path / "training_config.json").read_text())["use_peft"] == use_peft


# -- arguments and the recipe ------------------------------------------------------------------------------------------
BAD = [
    (["--mask_kinds", "random", "spans"], "`mask_kinds` must be different ones of random, span, frequency"),
    (["--mask_kinds", "span", "span"], "got ['span', 'span']"),
    (["--mask_weights", "1", "2"], "got 3 `mask_kinds` and 2 `mask_weights`"),
    (["--mask_weights", "1", "0", "1"], "leave a kind without weight out"),
    (["--learning_rate", "-1"], "`learning_rate` must be finite and not negative, got -1"),
    (["--min_rate", "0"], "must lie in (0, 1], got 0.0"),
    (["--max_rate", "1"], "`min_rate` <= `max_rate` < 1"),
    (["--layout", "suffix"], "`layout` must be 'prefix' or 'infill'"),
    (["--lora_rank", "0"], "`lora_rank` must be at least 1, got 0"),
    (["--early_stopping_patience", "2"], "needs `load_best_model_at_end: true`"),
    (["--num_masks", "4"], "unknown key `num_masks`"),
    (["--use_peft", "perhaps"], "perhaps"),
    (["--activation_checkpointing", "true"], "is not supported"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_one_line_and_exit_code_2(words, message, capsys):
    needed = ["--dataset_name", "embedded", "--model_name_or_path", "embedded", "--use_cpu", "true"]
    with pytest.raises(SystemExit) as stop:
        parse_arguments((DataArguments, ReconstructorArguments, ReconstructorConfig), [*needed, *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1, error


def recipe(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(base_folder, texts, tmp_path_factory) -> tuple[Path, list[str]]:
    """The recipe on a text file and the two-layer model; its folder, and the words it was launched with."""
    root = tmp_path_factory.mktemp("recipe")
    (root / "texts.json").write_text(json.dumps([f"{text} number {n}" for n, text in enumerate(texts)]))
    words = [
        "--data_path", str(root / "texts.json"), "--max_length", "40", "--min_length", "8", "--max_test_texts", "2",
        "--max_eval_texts", "4", "--output_dir", str(root / "out"), "--max_steps", "4", "--batch_size", "4", "--device", "cpu",
        "--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "1", "--report_to", "none",
        "--layout", "infill", "--lora_rank", "2", "--mask_kinds", "random", "frequency", "--mask_weights", "3", "1",
        "--disable_tqdm", "true",
    ]  # fmt: skip
    recipe("train_reconstructor").main([*words, "--reconstructor_path", base_folder])
    return root / "out", words


def test_the_recipe_records_what_it_did(trained, base_folder):
    out, _ = trained
    results = json.loads((out / "eval_results.json").read_text())
    rows = results["reconstructor"]
    assert [(row["stage"], row["rate"]) for row in rows] == [
        (s, r) for s in ("before", "after") for r in (0.3, 0.5, 0.7)
    ]
    assert (
        results["texts"] == 2
        and results["split"] == "test"
        and results["layout"] == "infill"
        and results["seed"] == 42
    )
    assert re.fullmatch("[0-9a-f]{64}", results["data_fingerprint"])
    record = json.loads((out / "training_config.json").read_text())
    assert record["mask_weights"] == [3.0, 1.0] and record["lora_rank"] == 2 and record["use_peft"] is True
    assert record["base_model_name_or_path"] == base_folder and record["trainable_parameters"] > 1000
    card = (out / "README.md").read_text()
    assert "| after | 0.7 |" in card and "2 test texts" in card
    assert (out / "checkpoint-4" / "optimizer.pt").is_file()


def test_train_py_starts_from_the_folder(trained, capsys):
    out, words = trained
    data = words[:8]
    shape = ["--window", "8", "--ngram_buckets", "256", "--policy_hidden_size", "16", "--max_steps", "1",
             "--batch_size", "2", "--device", "cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no",
             "--output_dir", str(out.parent / "joint"), "--reconstructor_learning_rate", "0", "--max_test_texts", "0",
             "--sampled_texts", "0", "--warm_start_steps", "0", "--reconstructor_text_fraction", "1"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        recipe("train").main([*data, *shape, "--reconstructor_path", str(out)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "was trained for 'infill'" in error and error.count("\n") == 1
    recipe("train").main([*data, *shape, "--reconstructor_path", str(out), "--layout", "infill"])
    first = load_file(out / "adapter_model.safetensors")
    joint = load_file(out.parent / "joint" / "adapter" / "adapter_model.safetensors")
    assert_same(first, joint)  # its learning rate was 0: the very adapter


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reconstructor_path", "no/such-model"], "'no/such-model' could not be loaded"),
        (["--reconstructor_path", "{base}", "--max_length", "4000"], "exceeds the 95 tokens that fit this model's context"),
        (["--reconstructor_path", "{out}", "--layout", "prefix"], "was trained for 'infill'. Pass `--layout infill`"),
        (["--reconstructor_path", "{base}", "--resume_from_checkpoint", "gone"], "'gone': no such folder"),
        (["--reconstructor_path", "{base}", "--output_dir", "{empty}", "--resume_from_checkpoint", "last"], "holds no checkpoint"),
        (["--reconstructor_path", "{base}", "--resume_from_checkpoint", "{base}"], "it lacks trainer_state.json, optimizer"),
        (["--reconstructor_path", "{base}", "--data_path", "missing.txt"], "'missing.txt': no such file or folder"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_one_line(words, message, trained, base_folder, tmp_path, capsys):
    out, launched = trained
    words = [word.format(base=base_folder, out=out, empty=tmp_path) for word in words]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        recipe("train_reconstructor").main([*launched, "--output_dir", str(tmp_path), *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error.strip().splitlines()[-1] and "Traceback" not in error


def test_last_resumes_from_the_newest_checkpoint(trained, base_folder):
    """Six steps after four are two more: the record goes on where it stopped."""
    out, words = trained
    more = ["--reconstructor_path", base_folder, "--resume_from_checkpoint", "last", "--max_steps", "6"]
    recipe("train_reconstructor").main([*words, *more])
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert [log["step"] for log in state["log_history"] if "loss" in log] == [1, 2, 3, 4, 5, 6]
