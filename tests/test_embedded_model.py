"""The packaged model: small enough, whole, and as good as its record says."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokforget.data import embedded_documents, embedded_model_path, split_of


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(embedded_model_path())


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
