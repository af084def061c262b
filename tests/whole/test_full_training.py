"""
The documented full run, GPT-2 on WikiText from the Hub, against a Hub on this machine that serves small ones under these
ids: prepare, train, push, download, compress. Nothing but the address of the Hub, caches and a few sizes differ.
"""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard

from tests.conftest import make_gpt2, make_tokenizer
from tests.documents.test_cards import check_card
from tests.support.loopback_hub import ROOT, LoopbackHub
from tokforget.local_paths import without_local_paths


pytestmark = pytest.mark.slow

WORDS = [
    "river",
    "stone",
    "letter",
    "winter",
    "garden",
    "engine",
    "harbour",
    "music",
    "silver",
    "bridge",
    "market",
    "village",
    "summer",
    "captain",
    "orchard",
]
CONFIG = "wikitext-103-raw-v1"


def articles(first: int, number: int) -> list[str]:
    """Lines as WikiText has them: a title, an empty line, paragraphs."""
    lines = []
    for n in range(first, first + number):
        said = [
            f"the {WORDS[(n * 7 + i) % 15]} of {WORDS[(n + i * i) % 15]} was {n * 13 + i} years old" for i in range(40)
        ]
        lines += [
            "",
            f" = {WORDS[n % 15].title()} {n} = \n",
            "",
            f" {' , '.join(said[:20])} . \n",
            f" {' , '.join(said[20:])} . \n",
        ]
    return lines


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    tokenizer = make_tokenizer(articles(0, 30), vocab_size=400)
    folder = tmp_path_factory.mktemp("gpt2")
    make_gpt2(len(tokenizer), n_positions=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    splits = {"train": articles(0, 30), "validation": articles(30, 6), "test": articles(36, 6)}
    files = {}
    for split, lines in splits.items():
        pq.write_table(pa.table({"text": lines}), table := io.BytesIO())
        files[f"{CONFIG}/{split}-00000-of-00001.parquet"] = table.getvalue()
    paths = [{"split": split, "path": f"{CONFIG}/{split}-*"} for split in splits]
    metadata = {"license": ["cc-by-sa-3.0", "gfdl"], "configs": [{"config_name": CONFIG, "data_files": paths}]}
    files["README.md"] = f"---\n{yaml.safe_dump(metadata)}---\n\n# WikiText\n".encode()
    with LoopbackHub() as hub:
        hub.publish_folder("openai-community/gpt2", folder)
        hub.publish("Salesforce/wikitext", files, "datasets")
        yield hub


def run(hub: LoopbackHub, home: Path, *words) -> str:
    env = hub.environment(home)
    done = subprocess.run([*map(str, words)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


def test_prepare_train_push_download_compress(hub, tmp_path):
    out, data, home = tmp_path / "full", tmp_path / "data", tmp_path / "home"
    short = ["--max_length", 96, "--min_length", 32]
    run(hub, home, sys.executable, "recipes/prepare_data.py", "--config", "recipes/data_prep.yaml", *short,
        "--output_dir", data, "--num_proc", 1)  # fmt: skip
    run(hub, home, sys.executable, "recipes/push_to_hub.py", "--folder", data, "--repo_id", "user/wikitext-blocks")
    trained = run(
        hub, home, Path(sys.executable).with_name("accelerate"), "launch", "--config_file", "accelerate_configs/cpu.yaml",
        "recipes/train.py", "--config", "recipes/full_training.yaml", *short, "--max_steps", 2, "--warm_start_steps", 3, "--eval_steps", 2,
        "--save_steps", 2, "--batch_size", 2, "--reconstructor_text_fraction", 0.5, "--max_train_texts", 8, "--max_eval_texts", 2, "--max_test_texts", 3,
        "--use_cpu", "true", "--output_dir", out, "--push_to_hub", "true", "--hub_model_id", "user/wiki",
        "--disable_tqdm", "true",
    )  # fmt: skip
    commit = hub.repos["models", "user/wiki"].branches["main"]
    assert f"Pushed: {hub.url}/user/wiki/commit/{commit}" in trained
    files = hub.files("user/wiki")
    assert files.keys() == {
        "README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json", "eval_results.json",
        "model.safetensors", "rate_quality.png", "tokenizer.json", "tokenizer_config.json", "training_config.json",
    }  # fmt: skip
    for name in files.keys() - {"README.md"}:
        if name == "training_config.json":  # which goes without the folders of this machine
            assert json.loads(files[name]) == without_local_paths(json.loads((out / name).read_text()))
        else:
            assert files[name] == (out / name).read_bytes(), name
    assert len(hub.messages("user/wiki")) == 2, "one commit after the initial one"
    check_full_card(hub, files)
    check_data(hub, data)

    # Another process, an empty cache, no token.
    text = "the river of stone was 13 years old , the letter of winter was 14 years old . " * 3
    line = [sys.executable, "-m", "tokforget", "compress", "--model", "user/wiki", "--rate", "0.5", "--json"]
    fetched = json.loads(
        subprocess.run(
            line, env=hub.environment(tmp_path / "other", token=None), cwd=tmp_path, input=text, text=True,
            capture_output=True, timeout=300, check=True,
        ).stdout
    )  # fmt: skip
    line[5] = str(out)
    own = json.loads(
        subprocess.run(
            line, env=hub.environment(tmp_path / "third"), cwd=tmp_path, input=text, text=True, capture_output=True,
            timeout=300, check=True,
        ).stdout
    )  # fmt: skip
    assert 0 < fetched["compressed_tokens"] <= fetched["original_tokens"] / 2
    timed = ("model", "seconds")
    assert {key: v for key, v in fetched.items() if key not in timed} == {
        key: v for key, v in own.items() if key not in timed
    }


def check_full_card(hub: LoopbackHub, files: dict[str, bytes]) -> None:
    text = files["README.md"].decode()
    check_card(text)
    card, commit = ModelCard(text), hub.repos["datasets", "Salesforce/wikitext"].branches["main"]
    assert card.data.base_model == "openai-community/gpt2" and card.data.datasets == ["Salesforce/wikitext"]
    assert {result.dataset_revision for result in card.data.eval_results} == {commit}
    assert f"`Salesforce/wikitext`, configuration `{CONFIG}`, revision {commit}" in text
    assert "Licence of the source: cc-by-sa-3.0, gfdl." in text and "8 training and 2 validation blocks" in text
    assert 'from_pretrained("user/wiki")' in text and 'subfolder="adapter"' in text and "compressor.restore" in text
    results = json.loads(files["eval_results.json"])["scorers"]
    assert {row["scorer"] for row in results} >= {"policy", "random", "frequency", "self_information"}
    run = json.loads(files["training_config.json"])["run"]
    assert run["steps"] == 2 and run["processes"] == run["threads"] == 1 and run["tokens"] > 0 and run["seconds"] > 0
    assert f"{run['tokens']:,} tokens" in text and run["device"] in text


def check_data(hub: LoopbackHub, folder: Path) -> None:
    files = hub.files("user/wikitext-blocks", repo_type="datasets")
    assert json.loads(files["manifest.json"]) == without_local_paths(
        json.loads((folder / "manifest.json").read_text())
    )
    card = files["README.md"].decode()
    check_card(card)
    assert (
        "The source's own card states: cc-by-sa-3.0, gfdl." in card
        and "source_datasets:\n- Salesforce/wikitext" in card
    )
