"""The packaged model: small enough, whole, and as good as its record says."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import train_base_model
from tests.conftest import make_gpt2
from tokforget.data.embedded_corpus import embedded_documents
from tokforget.data.splits import split_of
from tokforget.models.reconstructor_folder import load_trainable
from tokforget.packaged import base_model_path


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(base_model_path())


def test_it_is_small_and_holds_no_pickle(folder):
    files = list(folder.iterdir())
    assert sum(file.stat().st_size for file in files) <= 10_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "training_record.json", "README.md"} <= {
        f.name for f in files
    }
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl")]


def test_its_validation_loss_is_the_recorded_one(folder):
    """On held-out documents of the running Python, whose text differs a little from that of the record's."""
    record = json.loads((folder / "training_record.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = [text for name, text in embedded_documents().items() if split_of(name) == "validation"]
    width = 2 * record["training"]["length"]
    stream = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = torch.tensor(stream[: len(stream) // width * width]).view(-1, width)[::2]
    with torch.no_grad():
        losses = [model(input_ids=batch, labels=batch).loss.item() for batch in rows.split(16)]
    assert sum(losses) / len(losses) == pytest.approx(record["validation_nats_per_token"], abs=0.15)


def test_the_card_says_what_the_record_says(folder):
    record, card = json.loads((folder / "training_record.json").read_text()), (folder / "README.md").read_text()
    assert f"{record['validation_nats_per_token']:.2f} nats" in card
    assert f"{record['parameters']:,} parameters" in card


def test_the_recipe_trains_a_base_model_on_other_text(tmp_path, monkeypatch, capsys):
    """A tokenizer of its own, prefix rows, the best evaluation kept, and a folder that a reconstructor starts from."""
    source, out, draw = tmp_path / "texts.jsonl", tmp_path / "base", random.Random(0)
    vocabulary = [
        f"{first}{second}" for first in ("sea", "old", "red", "day") for second in ("bird", "house", "rain", "s")
    ]
    documents = [" ".join(draw.choices(vocabulary, k=80)) for _ in range(120)]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    shape = "--vocab_size 300 --layers 1 --heads 2 --width 16 --length 16 --batch_size 4 --max_steps 12 --eval_steps 4"
    words = f"--dataset_name {source} {shape} --use_cpu --peak_tflops 1 --output_dir {out}".split()
    monkeypatch.setattr(sys, "argv", ["train_base_model.py", *words, "--dataset_name", "no_such.jsonl"])
    with pytest.raises(SystemExit):
        train_base_model.main()
    assert "no_such.jsonl" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["train_base_model.py", *words, "--length", "4000"])
    with pytest.raises(SystemExit):
        train_base_model.main()
    assert "no row of 8000 tokens in validation, test: pass more text" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["train_base_model.py", *words])
    train_base_model.main()
    record = json.loads((out / "training_record.json").read_text())
    assert 0 < record["validation_nats_per_token"] < 6 and record["best_step"] == 12
    assert record["tokens_per_second"] > 0 and 0 < record["model_flops_utilization"] < 1
    assert not (out / "README.md").exists(), "the card is the packaged model's"
    tokenizer = AutoTokenizer.from_pretrained(out)
    reconstructor = load_trainable(str(out), tokenizer, "prefix", lora_rank=2)
    assert reconstructor.max_tokens == 16


def test_a_folder_of_something_else_is_not_deleted(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "notes.txt"):
        monkeypatch.setattr(sys, "argv", ["train_base_model.py", "--output_dir", str(folder)])
        with pytest.raises(SystemExit) as ended:
            train_base_model.parse()
        assert ended.value.code == 2 and "holds something else than a model of this recipe" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    for name in ("new/", "none"):
        monkeypatch.setattr(sys, "argv", ["train_base_model.py", "--output_dir", f"{tmp_path}/{name}"])
        assert train_base_model.parse().output_dir == str(tmp_path / name.rstrip("/"))


def test_flops_and_pace_by_hand():
    # Two layers of width 32: 12 * 32 * 32 weights and 13 * 32 biases and norms each; the head, the final norm.
    model = make_gpt2(100)
    matrices = 2 * (12 * 32 * 32 + 13 * 32) + 100 * 32 + 2 * 32
    flops = train_base_model.training_flops_per_token(model, 64)
    assert flops == 6 * matrices + 12 * 2 * 32 * 64
    figures = train_base_model.pace([10**6] * 10 + [5, 15], [9.0] * 10 + [1.0, 3.0], 10**12, peak_tflops=20.0)
    assert figures == {"tokens_per_second": 5, "tflops": 5.0, "model_flops_utilization": 0.25}
