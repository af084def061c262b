"""Prepared data: the same blocks as without preparation, all or nothing, and refused where they do not belong."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import count, pairwise
from pathlib import Path

import pytest
from datasets import load_from_disk
from huggingface_hub import DatasetCard

from recipes.prepare_data import main
from tests.conftest import make_tokenizer
from tokforget.data import blocks as data
from tokforget.data import splits
from tokforget.data.arguments import DataArguments, PreparationArguments
from tokforget.data.blocks import data_fingerprint, draw_blocks, load_blocks
from tokforget.data.parallel import in_order
from tokforget.data.preparation import prepare
from tokforget.data.sources import Document, Source
from tokforget.data.splits import DocumentSplits, plan_splits
from tokforget.hub.cards import REASONS


ROOT = Path(__file__).parents[2]


def write_documents(path: Path, number: int = 240, seed: int = 0) -> Path:
    """Of mixed length: every 20th a copy of the one before, every 20th nearly one, every 40th blank."""
    draw = random.Random(seed)
    vocabulary = [f"word{n}" for n in range(300)]
    texts: list[str] = []
    for n in range(number):
        text = " ".join(draw.choices(vocabulary, k=draw.choice([2, 30, 90, 250])))
        if n % 20 == 9:
            text = texts[-1]
        elif n % 20 == 15:
            text = texts[-1] + " more"
        elif n % 40 == 38:
            text = " \n"
        texts.append(text)
    path.write_text("\n".join(json.dumps({"body": text}) for text in texts))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_documents(tmp_path_factory.mktemp("source") / "texts.jsonl")


def arguments(source: Path, out: Path, **changes) -> PreparationArguments:
    words = {"dataset_name": str(source), "tokenizer": "tiny", "output_dir": str(out), "text_column": "body"}
    return PreparationArguments(**(words | {"max_length": 64, "min_length": 8} | changes))


@pytest.fixture(scope="module")
def prepared(source, tokenizer, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(arguments(source, out), tokenizer, progress=False)
    return out


def rows_of(folder) -> dict:
    return {split: blocks[:] for split, blocks in load_from_disk(str(folder)).items()}


# -- the same blocks ---------------------------------------------------------------------------------------------------
def test_prepared_and_direct_data_are_the_same(source, prepared, tokenizer):
    direct = load_blocks(str(source), tokenizer, 64, 8, text_column="body")
    again = load_blocks(str(prepared), tokenizer, 64, 8)
    assert {split: blocks[:] for split, blocks in direct.items()} == {s: blocks[:] for s, blocks in again.items()}
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["fingerprint"] == data_fingerprint(direct) == data_fingerprint(again)


def test_the_manifest_counts_what_is_there(source, prepared, tokenizer):
    manifest = json.loads((prepared / "manifest.json").read_text())
    texts = {f"texts.jsonl#{n}": json.loads(line)["body"] for n, line in enumerate(source.read_text().splitlines())}
    documents = 0
    for split, rows in rows_of(prepared).items():
        found = manifest["splits"][split]
        assert found["blocks"] == len(rows["input_ids"]) and found["tokens"] == sum(map(len, rows["input_ids"]))
        assert found["documents"] == len(set(rows["document"])) > 0
        documents += found["documents"]
        for ids, name, start, end in zip(*(rows[key] for key in ("input_ids", "document", "start", "end"))):
            assert tokenizer.decode(ids) == texts[name][start:end]
    dropped = manifest["dropped"]
    assert documents + sum(sum(where.values()) for reason, where in dropped.items()
                           if not reason.endswith("_tokens") and reason != "short_block") == len(texts)  # fmt: skip
    assert sum(dropped["empty"].values()) == 6
    # A copy has the hash, hence the split, of its original; a near copy has not, and counts where it crosses.
    assert sum(dropped["exact_duplicate_within_split"].values()) == 240 - 6 - len(
        {t for t in texts.values() if t.strip()}
    )
    assert sum(dropped["near_duplicate_across_splits"].values()) >= 1
    assert manifest["seed"] == 0 and manifest["arguments"]["max_length"] == 64
    assert manifest["source"]["shares"] == {"validation": 0.08, "test": 0.08}
    assert manifest["tokenizer"]["size"] == len(tokenizer)


@pytest.mark.parametrize(("streaming", "num_proc"), [(True, 1), (False, 2), (True, 2)])
def test_neither_streaming_nor_processes_change_a_byte(source, prepared, tokenizer, tmp_path, streaming, num_proc):
    made = prepare(
        arguments(source, tmp_path / "data", streaming=streaming, num_proc=num_proc), tokenizer, progress=False
    )
    for split in ("train", "validation", "test"):
        one, two = (folder / split / "data-00000-of-00001.arrow" for folder in (prepared, tmp_path / "data"))
        assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()
    reference = json.loads((prepared / "manifest.json").read_text())
    for key in ("splits", "dropped", "fingerprint", "source", "tokenizer"):
        assert made.manifest[key] == reference[key], key


def test_the_seed_draws_documents_and_divides(source, tokenizer, tmp_path):
    found = {}
    for name, changes in {
        "a": {"seed": 0}, "b": {"seed": 1}, "streamed": {"seed": 1, "streaming": True}, "again": {"seed": 1},
    }.items():  # fmt: skip
        made = prepare(
            arguments(source, tmp_path / name, max_sequences=100, **changes), tokenizer, progress=False
        ).manifest
        documents = Counter({split: count["documents"] for split, count in made["splits"].items()})
        left_out = sum(sum(where.values()) for reason, where in made["dropped"].items()
                       if reason in ("too_short", "near_duplicate_across_splits"))  # fmt: skip
        assert documents.total() + left_out == 100
        found[name] = made["fingerprint"]
    assert found["b"] == found["again"] == found["streamed"] != found["a"]


def test_the_embedded_corpus_keeps_the_division_of_the_packaged_model():
    """Documents that are divided by name, as those of the embedded corpus are, stay where they are under any seed."""
    documents = [Document(f"topic/{n}", f"text of {n}") for n in range(200)]
    for by_id in (True, False):
        homes = [
            {document.id: split for split, document in DocumentSplits(source, plan_splits(["train"]), seed=seed)}
            for source in [Source({"train": documents}, divided_by_id=by_id)]
            for seed in (0, 1)
        ]
        assert (homes[0] == homes[1]) == by_id


def test_batches_are_taken_only_as_results_are_asked_for():
    taken = count()
    results = in_order(abs, ((next(taken), -n)[1] for n in range(1000)), num_proc=2)
    assert [next(results) for _ in range(3)] == [(0, 0), (-1, 1), (-2, 2)]
    assert next(taken) < 12
    assert [result for _, result in results] == list(range(3, 1000))


def test_an_exception_of_a_process_is_raised():
    with pytest.raises(TypeError):
        list(in_order(abs, ["no number"], num_proc=2))


# -- all or nothing ----------------------------------------------------------------------------------------------------
def is_running(process_id: str) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and nobody has asked for its exit status


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_and_the_next_one_all(base_folder, tokenizer, tmp_path):
    source = write_documents(tmp_path / "many.jsonl", number=12_000)
    out, staging = tmp_path / "data", tmp_path / ".data.partial"
    words = ["--dataset_name", source, "--text_column", "body", "--tokenizer", base_folder, "--output_dir", out,
             "--num_proc", "2", "--streaming", "true", "--max_length", "64"]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        run = subprocess.Popen(
            [sys.executable, ROOT / "recipes/prepare_data.py", *map(str, words)], cwd=ROOT, stderr=log, stdout=log
        )
        while not (staging / "cache/train.arrow").exists():
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        time.sleep(0.2)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        workers = children.read_text().split() if children.exists() else []
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert staging.exists() and not out.exists(), "killed before the end, else this test shows nothing"
    with pytest.raises(ValueError, match="is no local path"):
        load_blocks(str(out.relative_to(tmp_path)), tokenizer, 64)
    with pytest.raises(ValueError):
        load_blocks(str(staging), tokenizer, 64)
    until = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [worker for worker in workers if is_running(worker)], "workers end with their parent"

    (staging / "stale").write_text("of the killed run")
    write_documents(source, number=240)
    prepare(arguments(source, out), tokenizer, progress=False)
    assert not staging.exists() and not (out / "stale").exists() and not (out / "cache").exists()
    assert len(load_blocks(str(out), tokenizer, 64)["train"])


def test_nothing_is_overwritten(prepared, source, tokenizer, tmp_path):
    before = (prepared / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match="holds prepared data already"):
        prepare(arguments(source, prepared), tokenizer, progress=False)
    assert (prepared / "manifest.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else"):
        prepare(arguments(source, tmp_path / "mine"), tokenizer, progress=False)
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    prepare(arguments(source, tmp_path / "empty"), tokenizer, progress=False)
    assert (tmp_path / "empty/manifest.json").is_file()


def test_a_failed_run_leaves_nothing(source, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no column 'text'"):
        prepare(arguments(source, tmp_path / "data", text_column="text", streaming=True), tokenizer, progress=False)
    with pytest.raises(ValueError, match="The train split of .* is empty"):
        prepare(arguments(source, tmp_path / "data", max_length=9000, min_length=9000), tokenizer, progress=False)
    assert not list(tmp_path.iterdir())


# -- what is prepared is used ------------------------------------------------------------------------------------------
def test_a_run_cuts_prepared_blocks_to_its_own_length(source, prepared, tokenizer):
    cut = load_blocks(str(prepared), tokenizer, 32, 20)
    direct = load_blocks(str(source), tokenizer, 32, 20, text_column="body")
    for split in direct:
        assert cut[split]["input_ids"][:] == direct[split]["input_ids"][:]
        assert cut[split]["document"][:] == direct[split]["document"][:]
        assert set(cut[split].column_names) == {"input_ids", "document"}, "a piece does not know its characters"
    assert {file.name for file in prepared.rglob("*.arrow")} == {"data-00000-of-00001.arrow"}, "read, not written to"


def test_longer_blocks_than_prepared_are_announced(prepared, tokenizer, caplog):
    assert max(map(len, load_blocks(str(prepared), tokenizer, 128)["train"]["input_ids"])) == 64
    assert "`max_length` 128 is not reached" in caplog.text


def test_another_vocabulary_is_refused(prepared, texts):
    with pytest.raises(ValueError, match="was prepared with the tokenizer 'tiny'"):
        load_blocks(str(prepared), make_tokenizer(texts, vocab_size=290), 64)


def test_too_much_left_out_is_an_error(prepared, tokenizer):
    with pytest.raises(ValueError, match="no block of at least 65 tokens"):
        load_blocks(str(prepared), tokenizer, 100, 65)


def test_training_reads_prepared_data(prepared, tokenizer):
    data_args = DataArguments(dataset_name=str(prepared), max_length=64, min_length=8, max_eval_texts=3)
    train, validation, _, record = draw_blocks(data_args, tokenizer)
    assert record["fingerprint"] == json.loads((prepared / "manifest.json").read_text())["fingerprint"]
    assert len(validation) == 3 and sorted(train["input_ids"]) == sorted(rows_of(prepared)["train"]["input_ids"])
    assert {file.name for file in prepared.rglob("*.arrow")} == {"data-00000-of-00001.arrow"}, (
        "nothing is written there"
    )


def test_the_card_says_what_is_known(prepared):
    card = DatasetCard.load(prepared / "README.md")
    manifest = json.loads((prepared / "manifest.json").read_text())
    for split, counts in manifest["splits"].items():
        assert f"| {split} | {counts['documents']:,} | {counts['blocks']:,} | {counts['tokens']:,} |" in card.text
    assert "validation 8 %, test 8 %, seed 0" in card.text and "| documents without text | " in card.text
    assert "None" not in card.text and "{{" not in card.text and "configuration" not in card.text
    blocks = [block for block in card.text.split("\n\n") if block.strip()]
    assert not any(one.startswith("#") and two.startswith("#") for one, two in pairwise(blocks)), "empty heading"


# -- the recipe --------------------------------------------------------------------------------------------------------
def test_the_recipe_prints_what_it_made(source, prepared, base_folder, tmp_path, capsys):
    main(["--data_path", str(source), "--text_column", "body", "--tokenizer", base_folder, "--max_length", "64",
          "--min_length", "8", "--output_dir", str(tmp_path / "data"), "--num_proc", "2"])  # fmt: skip
    shown = capsys.readouterr().out
    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert manifest["fingerprint"] == json.loads((prepared / "manifest.json").read_text())["fingerprint"]
    assert manifest["fingerprint"][:16] in shown and f"{manifest['splits']['train']['tokens']:,}" in shown
    assert "dropped: documents without text" in shown and "tokenizer alone, in one process" in " ".join(shown.split())


def test_every_reason_to_drop_has_words():
    assert set(REASONS) == {
        splits.EMPTY, splits.NOT_DRAWN, splits.OUTSIDE_SHARES, splits.EXACT_WITHIN, splits.EXACT_ACROSS, splits.NEAR_ACROSS,
        data.TOO_SHORT, f"{data.TOO_SHORT}_tokens", data.SHORT_BLOCK, f"{data.SHORT_BLOCK}_tokens",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset_name", "missing.jsonl"], "'missing.jsonl': no such file or folder"),
        (["--dataset_name", "nobody/nothing"], "'nobody/nothing' (configuration None) is no local path and could not be"),
        (["--dataset_name", "embedded", "--val_split", "dev"], "`val_split` 'dev' is neither a split of the source"),
        (["--dataset_name", "embedded", "--max_length", "9"], "`min_length` (32) exceeds `max_length` (9)"),
        (["--dataset_name", "embedded", "--duplicate_threshold", "0"], "must lie in (0, 1], got 0.0"),
        (["--dataset_name", "embedded", "--num_proc", "0"], "`num_proc` must be at least 1, got 0"),
        (["--dataset_name", "embedded", "--max_sequence", "3"], "unknown key `max_sequence`"),
        (["--dataset_name", "embedded", "--device", "cpu"], "unknown key `device`"),
        (["--dataset_name", "embedded", "--tokenizer", "no/such-tokenizer"], "`tokenizer` 'no/such-tokenizer' could not be"),
        (["--dataset_name", "embedded", "--output_dir", str(ROOT)], "holds something else"),
    ],
)  # fmt: skip
def test_what_cannot_be_prepared_is_one_line(words, message, base_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--tokenizer", base_folder, "--output_dir", str(tmp_path / "data"), *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "data").exists()
