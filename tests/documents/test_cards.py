"""Cards: whole, true to the records, and nothing in them that is not known."""

import html
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard
from transformers import TrainingArguments

from recipes import push_to_hub
from tokforget.data.blocks import load_blocks
from tokforget.files import write_json
from tokforget.hub.cards import write_card
from tokforget.hub.staging import DATA, MODEL, RECONSTRUCTOR, kind_of, stage
from tokforget.local_paths import local_paths, without_local_paths
from tokforget.packaged import forget_model_path


def headings_without_text(card: str) -> list[str]:
    """Headings that are followed by a heading, or by nothing."""
    code = re.sub(r"```.*?```", "code", card, flags=re.DOTALL)
    blocks = [block.strip() for block in re.split(r"\n\s*\n", code) if block.strip()]
    return [one for one, two in pairwise([*blocks, "#"]) if one.startswith("#") and two.startswith("#")]


def check_card(card: str) -> None:
    assert not headings_without_text(card)
    assert not re.search(r"None|[Uu]nknown|[Uu]ndefined|null|nan\b|\{\{|\}\}\n|\{%|%\}|<this folder>|TODO", card), card
    assert not re.search(r"\n{3}|[ \t]\n\n", card.split("---\n", 2)[2])
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    for table in tables:
        rows = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1 and len(rows) > 2, table


def numbers_of(record) -> set[float]:
    if isinstance(record, dict | list):
        inner = record.values() if isinstance(record, dict) else record
        return set().union(*(numbers_of(value) for value in inner)) if inner else set()
    return {float(record)} if isinstance(record, int | float) and not isinstance(record, bool) else set()


def check_table(card: str, header: str, record) -> int:
    """Every number of the table with this header stands in the record; how many there were."""
    table = re.search(rf"^{re.escape(header)}\n((?:\|.*\n)+)", card, re.MULTILINE)[1]
    known, found = numbers_of(record), 0
    for cell in re.findall(r"\| ([^|]*\d[^|]*) (?=\|)", table.replace(" |", " | ")):
        scale = 100 if "%" in cell else 1
        for number in re.findall(r"-?[\d,]*\.?\d+", cell):
            digits = len(number.partition(".")[2])
            value = float(number.replace(",", ""))
            assert any(abs(scale * other - value) <= 0.5000001 * 10**-digits for other in known), (number, cell)
            found += 1
    return found


@pytest.fixture
def packaged(tmp_path) -> Path:
    return Path(shutil.copytree(forget_model_path(), tmp_path / "model"))


def record(folder: Path, **changes) -> dict:
    path = folder / "training_config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))
    return content


RUN = {
    "device": "CPU (test)", "processes": 2, "threads": 1, "steps": 400, "resumed_from_step": 100, "seconds": 150.0,
    "tokens": 300000, "versions": {"python": "3.11.0", "tokforget": "0.1.0", "torch": "2.13.0"},
}  # fmt: skip
SOURCE = {
    "dataset_name": "user/texts",
    "dataset_config": "raw",
    "revision": "abc",
    "license": ["cc-by-sa-3.0"],
    "on_hub": True,
}


# -- a model -----------------------------------------------------------------------------------------------------------
def test_a_models_card_is_whole_and_its_numbers_stand_in_the_records(packaged):
    blocks = {"train": 5134, "validation": 64, "test": 96}
    record(packaged, run=RUN, data={"source": SOURCE, "fingerprint": "f" * 64, "blocks": blocks})
    write_card(packaged, name="user/model", license="mit")
    card = (packaged / "README.md").read_text()
    results = json.loads((packaged / "eval_results.json").read_text())
    check_card(card)
    rows = results["scorers"]
    assert check_table(card, "| rate | scorer | bits lost | exact | kept |\n|---|---|---|---|---|", rows) == 8 * len(
        rows
    )
    for name in {row["scorer"] for row in rows}:
        assert card.count(name) >= 3
    for section in (
        "Use",
        "Rate and quality",
        "Training",
        "Data",
        "Limits and risks",
        "Hardware and time",
        "Versions",
        "Citation",
    ):
        assert f"\n## {section}\n" in card, section
    assert "`user/texts`, configuration `raw`, revision abc" in card and "Licence of the source: cc-by-sa-3.0." in card
    assert "CPU (test), 2 processes with 1 CPU thread each" in card
    assert "the first 100 of them in an earlier, interrupted run" in card and "300,000 tokens, 2000 per second" in card
    assert (packaged / "rate_quality.png").read_bytes().startswith(b"\x89PNG") and "](rate_quality.png)" in card
    training = json.loads((packaged / "training_config.json").read_text())
    shown = set(re.findall(r"^\| `(\w+)` \| `", card, re.MULTILINE))
    usual = TrainingArguments.__dataclass_fields__
    own = {key for key, value in training.items() if value is not None and key not in usual}
    assert own - {"run", "data", "trainable_parameters"} <= shown
    # Of the host's keys those that somebody set.
    assert {"max_steps", "learning_rate", "seed"} & shown and not shown & {
        "output_dir",
        "adam_beta1",
        "local_rank",
        "use_cache",
    }
    assert all(getattr(usual[key].default, "value", usual[key].default) != training[key] for key in shown & set(usual))


def test_the_metadata_say_what_was_measured(packaged):
    record(
        packaged, data={"source": SOURCE, "fingerprint": "f" * 64, "blocks": {"train": 1, "validation": 1, "test": 1}}
    )
    config = json.loads((packaged / "config.json").read_text()) | {"base_model_name_or_path": "openai-community/gpt2"}
    (packaged / "config.json").write_text(json.dumps(config))
    write_card(packaged, name="user/model", license="mit")
    data = ModelCard.load(packaged / "README.md").data
    assert ModelCard.load(packaged / "README.md").data.to_dict() == ModelCard(f"---\n{data}\n---\n").data.to_dict()
    assert data.license == "mit" and data.library_name == "tokforget" and data.base_model == "openai-community/gpt2"
    assert data.to_dict()["base_model_relation"] == "adapter" and data.datasets == ["user/texts"]
    assert {"tokforget", "lora", "prompt-compression"} <= set(data.tags) and data.model_name == "model"
    rows = [
        row for row in json.loads((packaged / "eval_results.json").read_text())["scorers"] if row["scorer"] == "policy"
    ]
    measured = {(result.metric_type, result.metric_name[-3:]): result.metric_value for result in data.eval_results}
    assert measured == {
        (metric, f"{row['rate']:g}"): row[metric] for row in rows for metric in ("bits_lost", "exact_restored")
    }
    assert {result.dataset_type for result in data.eval_results} == {"user/texts"}


def test_what_is_not_recorded_is_not_written(packaged):
    """A model that somebody saved by hand: config and weights, nothing else."""
    for name in ("training_config.json", "eval_results.json"):
        (packaged / name).unlink()
    write_card(packaged, name="user/model")
    card = (packaged / "README.md").read_text()
    check_card(card)
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == ["Use", "Limits and risks", "Citation"]
    assert "model-index" not in card and "license" not in card and not (packaged / "rate_quality.png").exists()


def test_old_measurements_leave_no_plot(packaged):
    write_card(packaged)
    assert (packaged / "rate_quality.png").is_file()
    (packaged / "eval_results.json").unlink()
    write_card(packaged)
    assert (
        not (packaged / "rate_quality.png").exists() and "Rate and quality" not in (packaged / "README.md").read_text()
    )


def test_a_local_base_model_is_not_promised(packaged, tmp_path):
    config = json.loads((packaged / "config.json").read_text()) | {
        "base_model_name_or_path": "/somewhere/else/my-gpt2"
    }
    (packaged / "config.json").write_text(json.dumps(config))
    write_card(packaged, name="user/model")
    card = (packaged / "README.md").read_text()
    assert "Restoring needs the base model `my-gpt2`, which is not part of this folder" in card
    assert (
        "compressor.restore" not in card and "base_model:" not in card and "/somewhere" not in card.split("## Rate")[0]
    )


@pytest.mark.parametrize("staged", [False, True])
def test_the_code_of_a_models_card_runs(packaged, tmp_path, staged, capsys):
    folder = packaged
    if staged:
        folder = tmp_path / "staged"
        stage(packaged, folder, str(folder))
    else:
        write_card(packaged)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert "B12" in capsys.readouterr().out


# -- staging -----------------------------------------------------------------------------------------------------------
MODEL_FOLDER = {
    "README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json", "eval_results.json",
    "model.safetensors", "rate_quality.png", "tokenizer.json", "tokenizer_config.json", "training_config.json",
}  # fmt: skip


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def clutter(folder: Path) -> None:
    """What lies in a run's folder beside the model."""
    for name in ("checkpoint-2/optimizer.pt", "checkpoint-2/model.safetensors", "training_args.bin", "trainer_state.json",
                 ".env", "notes.txt", "adapter/optimizer.pt", "runs/events.out", ".saving/x", "optimizer.pt"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret")


def test_only_the_files_of_the_model_are_sent(packaged, tmp_path):
    clutter(packaged)
    assert stage(packaged, tmp_path / "staged", "user/model") is MODEL
    assert files_of(tmp_path / "staged") == MODEL_FOLDER
    for name in MODEL_FOLDER - {"README.md", "rate_quality.png"}:
        assert (tmp_path / "staged" / name).read_bytes() == (packaged / name).read_bytes()
    assert '"user/model"' in (tmp_path / "staged" / "README.md").read_text()


def test_an_evaluation_goes_along(packaged, tmp_path):
    source = tmp_path / "evaluated"
    source.mkdir()
    for name in (
        "evaluation_config.json",
        "model_results.json",
        "report.md",
        "rate_distortion.png",
        "heatmap.html",
        "x.pt",
    ):
        (source / name).write_text("{}")
    stage(packaged, tmp_path / "staged", "user/model", evaluation_path=source)
    names = {f"evaluation/{path.name}" for path in source.iterdir() if path.name != "x.pt"}
    assert files_of(tmp_path / "staged") == MODEL_FOLDER | names
    card = (tmp_path / "staged" / "README.md").read_text()
    assert "[report.md](evaluation/report.md)" in card and "](evaluation/rate_distortion.png)" in card
    check_card(card)


def test_a_reconstructors_card(packaged, tmp_path):
    folder = tmp_path / "reconstructor"
    shutil.copytree(packaged / "adapter", folder)
    shutil.copyfile(packaged / "tokenizer.json", folder / "tokenizer.json")
    shutil.copyfile(packaged / "tokenizer_config.json", folder / "tokenizer_config.json")
    rows = [
        {"stage": stage, "rate": rate, "bits_lost": 3 - rate - (stage == "after"), "exact_restored": rate / 2,
         "compression_rate": rate, "texts": 4}
        for stage in ("before", "after") for rate in (0.25, 0.75)
    ]  # fmt: skip
    training = {
        "base_model_name_or_path": "embedded", "layout": "prefix", "use_peft": True, "lora_rank": 16, "max_length": 96,
        "mask_kinds": ["random", "span"], "min_rate": 0.2, "max_rate": 0.8, "trainable_parameters": 245760, "run": RUN,
    }  # fmt: skip
    results = {
        "reconstructor": rows,
        "texts": 4,
        "split": "test",
        "dataset": "embedded",
        "seed": 0,
        "layout": "prefix",
    }
    (folder / "training_config.json").write_text(json.dumps(training))
    (folder / "eval_results.json").write_text(json.dumps(results))
    assert stage(folder, tmp_path / "staged", str(tmp_path / "staged")) is RECONSTRUCTOR
    card = (tmp_path / "staged" / "README.md").read_text()
    check_card(card)
    assert check_table(card, "| training | rate | bits lost | exact | kept |\n|---|---|---|---|---|", rows) == 16
    data = ModelCard.load(tmp_path / "staged" / "README.md").data
    assert {result.metric_value for result in data.eval_results} == {1.75, 1.25, 0.125, 0.375}, "those after training"
    assert files_of(tmp_path / "staged") == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "eval_results.json", "rate_quality.png",
        "tokenizer.json", "tokenizer_config.json", "training_config.json",
    }  # fmt: skip
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, base_folder, texts) -> Path:
    from recipes.prepare_data import main

    folder = tmp_path_factory.mktemp("prepared")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    main(["--data_path", str(folder / "texts.jsonl"), "--tokenizer", base_folder, "--max_length", "24", "--min_length",
          "4", "--output_dir", str(folder / "data")])  # fmt: skip
    return folder / "data"


def test_prepared_data_are_staged_as_load_dataset_reads_them(prepared, tokenizer, tmp_path):
    from datasets import load_dataset

    (prepared / "notes.txt").write_text("mine")
    assert kind_of(prepared) is DATA
    stage(prepared, tmp_path / "staged", "user/data")
    assert files_of(tmp_path / "staged") == {
        "README.md", "manifest.json", *(f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")),
    }  # fmt: skip
    card = (tmp_path / "staged" / "README.md").read_text()
    manifest = json.loads((prepared / "manifest.json").read_text())
    check_card(card)
    assert check_table(card, "| split | documents | blocks | tokens |\n|---|---|---|---|", manifest["splits"]) == 9
    assert 'load_dataset("user/data")' in card and "licen" not in card.lower()
    assert DatasetCard.load(tmp_path / "staged" / "README.md").data.to_dict()["configs"][0]["config_name"] == "default"
    read = load_dataset(str(tmp_path / "staged"), cache_dir=str(tmp_path / "cache"))
    own = load_blocks(str(prepared), tokenizer, 24, 4)
    for split in own:
        assert read[split].features == own[split].features and read[split][:] == own[split][:]


def test_the_licence_of_the_source_is_stated_where_it_is_known(prepared, tmp_path):
    folder = Path(shutil.copytree(prepared, tmp_path / "data"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["source"] |= SOURCE
    (folder / "manifest.json").write_text(json.dumps(manifest))
    stage(folder, tmp_path / "staged", "user/data")
    card = DatasetCard.load(tmp_path / "staged" / "README.md")
    assert "The source's own card states: cc-by-sa-3.0." in card.text
    assert card.data.license == ["cc-by-sa-3.0"] and card.data.to_dict()["source_datasets"] == ["user/texts"]


def test_nothing_published_names_a_place_on_this_machine(packaged, tmp_path):
    data = tmp_path / "data" / "secret.jsonl"
    data.parent.mkdir()
    data.write_text("")
    source = SOURCE | {"dataset_name": str(data), "on_hub": False}
    record(packaged, data={"source": source, "fingerprint": "f" * 64, "blocks": {"train": 1, "validation": 1, "test": 1}},
           dataset_name=str(data), output_dir=str(tmp_path / "out"), reconstructor_name_or_path="C:\\\\models\\\\mine",
           warm_start_data_path="../other/warm_start_data", policy_name_or_path="user/policy")  # fmt: skip
    stage(packaged, tmp_path / "staged", "user/model")
    for path in (tmp_path / "staged").rglob("*"):
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8")
            assert str(tmp_path) not in text and "../other" not in text and "C:" not in text, path
    training = json.loads((tmp_path / "staged" / "training_config.json").read_text())
    assert training["dataset_name"] == training["data"]["source"]["dataset_name"] == "secret.jsonl"
    assert (
        training["policy_name_or_path"] == "user/policy"
        and '| `dataset_name` | `"secret.jsonl"` |' in (tmp_path / "staged" / "README.md").read_text()
    )
    assert json.loads((packaged / "training_config.json").read_text())["dataset_name"] == str(
        data
    )  # one's own record stays


def test_an_evaluation_and_data_are_published_without_their_places(packaged, prepared, tmp_path):
    source = tmp_path / "evaluated"
    data, model, judge = (str(tmp_path / "secret <é>" / name) for name in ("texts.jsonl", "mine", "judge"))
    config = {
        "arguments": {"model_path": [f"policy={model}"], "reader_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "models": [{"label": "policy", "path": model}], "reconstructor": judge, "datasets": [{"dataset": data}],
    }  # fmt: skip
    samples = [{"dataset": data, "tokens": ["/", "/home", f" {model}", "~"]}]
    for name, record in (("evaluation_config", config), ("model_results", {"scorers": [{"dataset": data}]}),
                         ("samples", samples)):  # fmt: skip
        write_json(source / f"{name}.json", record)
    before = f"of `{data}`, judged by {judge}"  # as reports were written once
    (source / "report.md").write_text(before, encoding="utf-8")
    (source / "heatmap.html").write_text(f"<h2>{html.escape(data)}</h2>", encoding="utf-8")
    stage(packaged, tmp_path / "staged", "user/model", evaluation_path=source)
    found = tmp_path / "staged" / "evaluation"
    config = json.loads((found / "evaluation_config.json").read_text())
    assert config["arguments"]["model_path"] == ["policy=mine"] and config["models"][0]["path"] == "mine"
    assert config["arguments"]["reader_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert json.loads((found / "model_results.json").read_text()) == {"scorers": [{"dataset": "texts.jsonl"}]}
    # The texts themselves are none of our places, and stay to the letter.
    assert json.loads((found / "samples.json").read_text()) == [samples[0] | {"dataset": "texts.jsonl"}]
    assert (found / "report.md").read_text() == "of `texts.jsonl`, judged by judge"
    assert (found / "heatmap.html").read_text() == "<h2>texts.jsonl</h2>"
    assert (source / "report.md").read_text() == before  # one's own files stay
    stage(prepared, tmp_path / "blocks", "user/data")
    assert str(prepared.parent) in (prepared / "manifest.json").read_text()
    for name in ("manifest.json", "README.md"):
        text = (tmp_path / "blocks" / name).read_text()
        assert str(prepared.parent) not in text and "texts.jsonl" in text


# -- the recipe --------------------------------------------------------------------------------------------------------
def test_a_dry_run_writes_the_exact_folder_and_sends_nothing(packaged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clutter(packaged)
    push_to_hub.main(["--folder", str(packaged), "--repo_id", "user/model", "--dry_run", "true", "--private", "true"])
    shown = capsys.readouterr().out
    staged = tmp_path / "outputs/hub/model"
    assert files_of(staged) == MODEL_FOLDER
    for name in MODEL_FOLDER:
        assert re.search(rf"^ +{(staged / name).stat().st_size:,}  {re.escape(name)}$", shown, re.MULTILINE), name
    assert "Nothing was sent" in shown and "user/model, branch main, private if it is new" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folder", "nowhere", "--repo_id", "user/model"], "'nowhere' holds neither a tokforget model nor"),
        (["--folder", "{model}", "--repo_id", "user/a/b"], "`repo_id` must be `user/name`"),
        (["--folder", "{model}", "--repo_id", "user/m", "--evaluation_path", "{tmp}"], "is no output folder of recipes/evaluate"),
        (["--folder", "{model}", "--repo_id", "user/m", "--output_dir", "{model}"], "is not empty; name another folder"),
        (["--folder", "{model}", "--repo_id", "user/m", "--commit_message", " "], "`commit_message` must not be empty"),
        (["--folder", "{model}", "--repo_id", "user/m", "--publik", "true"], "unknown key `publik`"),
        (["--folder", "{data}", "--repo_id", "user/d", "--license", "mit"], "Prepared data take no `license`"),
        (["--folder", "{broken}", "--repo_id", "user/m"], "it lacks model.safetensors"),
        (["--folder", "{no_tokenizer}", "--repo_id", "user/m"], "lacks tokenizer.json"),
        (["--folder", "{model}", "--repo_id", "user/m"], "OfflineModeIsEnabled"),
    ],
)  # fmt: skip
def test_what_cannot_be_pushed_is_one_line(words, message, packaged, prepared, tmp_path, monkeypatch, capsys):
    for name, missing in (("broken", "model.safetensors"), ("no_tokenizer", "tokenizer.json")):
        shutil.copytree(packaged, tmp_path / name)
        (tmp_path / name / missing).unlink()
    places = {"model": packaged, "data": prepared, "tmp": tmp_path}
    places |= {name: tmp_path / name for name in ("broken", "no_tokenizer")}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        push_to_hub.main([word.format(**places) for word in words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/ann/data/texts.jsonl", "texts.jsonl"),
        ("../data/texts.jsonl", "texts.jsonl"),
        ("data/private/texts.jsonl", "texts.jsonl"),
        ("data/private/runs/", "runs"),
        ("~/texts.jsonl", "texts.jsonl"),
        ("file:///home/ann/texts.jsonl", "texts.jsonl"),
        ("C:\\Users\\ann\\texts.jsonl", "texts.jsonl"),
        ("C:/Users/ann/texts.jsonl", "texts.jsonl"),
        ("data\\private\\texts.jsonl", "texts.jsonl"),
        ("\\\\server\\share\\texts.jsonl", "texts.jsonl"),
        ("policy=runs/private/first", "policy=first"),
        (Path("/home/ann/texts.jsonl"), "texts.jsonl"),
        ("org/model", "org/model"),
        ("https://example.org/a/b/texts.jsonl", "https://example.org/a/b/texts.jsonl"),
        ("hf://datasets/org/name/x.parquet", "hf://datasets/org/name/x.parquet"),
        ("my_package.rewards:mine", "my_package.rewards:mine"),
        ("one of / a kind / of text", "one of / a kind / of text"),
        ("embedded", "embedded"),
    ],
    ids=str,
)
def test_of_a_path_of_this_machine_its_last_name_is_published(value, shown):
    assert without_local_paths({"a": [value], "b": (value,)}) == {"a": [shown], "b": [shown]}
    assert local_paths((value,)) == ({} if value == shown else {str(value): shown})
