"""
Cards: the templates of `hub_cards/`, filled from the records in a folder. A card states only what these records
contain.

    config.json, adapter/adapter_config.json   architecture
    training_config.json                       every argument, data, hardware, time, versions
    eval_results.json                          the numbers of the tables, of the plot and of `model-index`
    reader_results.json                        rows of the reader benchmark
"""

import json
import re
from dataclasses import MISSING
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tokforget.files import CONFIG, READER_RESULTS, RESULTS, TRAINING
from tokforget.models.folders import MODEL_TYPE
from tokforget.packaged import EMBEDDED
from tokforget.recipe_keys import RENAMED
from tokforget.shipped import CARDS, shipped_folder


PLOT = "rate_quality.png"
# Entries of the record that the card shows in a section of their own.
_SECTIONS = ("data", "run", "trainable_parameters")
# Keys of `TrainingArguments` that say where a run was and what it logged, and nothing about the model.
_OF_ONE_MACHINE = {"output_dir", "logging_dir", "local_rank", "run_name", "report_to", "disable_tqdm", "log_level", "use_cpu",
                   "dataloader_pin_memory", "accelerator_config", "hub_model_id", "push_to_hub"}  # fmt: skip


def template_path(name: str) -> Path:
    """Path of a template of `hub_cards/`. Raises `FileNotFoundError` if the installation lacks it."""
    path = shipped_folder(CARDS) / name
    if path.is_file():
        return path
    raise FileNotFoundError(f"The card template {name} is missing from the installation; install tokforget again.")


def render(template: str, card_data, **facts) -> str:
    """Fill a template. A name that the template uses and `facts` lacks is an error, not an empty string."""
    environment = Environment(
        loader=FileSystemLoader(template_path(template).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    text = environment.get_template(template).render(card_data=card_data.to_yaml(), **facts)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_card(
    folder: str | Path,
    template: str = "model.md",
    name: str | None = None,
    license: str | None = None,
    evaluation: list[str] | None = None,
) -> None:
    """
    Write `README.md` of a model from the records in its folder, and `rate_quality.png` if there are measurements and
    matplotlib is installed.

    Args:
        folder (`str` or `Path`): Folder of a model or of a reconstructor.
        template (`str`): `model.md` for policy and reconstructor, `reconstructor.md` for a reconstructor alone,
            `reader_policy.md` for a policy trained on the losses of a reader.
        name (`str`, *optional*): The model that the card's code loads: an id on the Hub; the folder itself by default.
        license (`str`, *optional*): Licence of the model.
        evaluation (`list[str]`, *optional*): Files in the folder's `evaluation/` that the card links to.
    """
    folder = Path(folder)
    name = name or str(folder)
    config, training, results = (_read(folder / file) for file in (CONFIG, TRAINING, RESULTS))
    base = describe_base(config.get("base_model_name_or_path") or training.get("base_model_name_or_path"))
    rows, texts = _rows(results), results.get("texts") or next(iter(_rows(results)), {}).get("texts")
    text = render(
        template,
        _metadata(name, config, training, results, base, license),
        name=name,
        config=config,
        arguments_of=training | {new: training[old] for old, new in RENAMED.items() if old in training},
        arguments=_arguments(training),
        data=training.get("data"),
        run=training.get("run"),
        results=results,
        rows=rows,
        texts=texts,
        rates=sorted({row["rate"] for row in rows}),
        base=base,
        retention=[
            row | {"retention_interval": row.get("interval")}
            for row in _read(folder / READER_RESULTS).get("rows", [])
            if row["retention"] is not None
        ],
        plot=_draw(folder / PLOT, rows, results),
        evaluation=sorted(evaluation or []),
    )
    ModelCard(text)  # metadata that the Hub would refuse is an error here
    (folder / "README.md").write_text(text, encoding="utf-8")


def describe_base(name: str | None) -> dict:
    """
    How a card describes a base model: the `name` it shows, the `id` to load, whether it is on the Hub or embedded.
    """
    if not name:
        return {"name": None, "id": None, "on_hub": False, "embedded": False, "here": False}
    embedded, here = name == EMBEDDED, Path(name).exists()
    on_hub = not embedded and not here and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is not None
    return {"name": name if embedded or on_hub else Path(name).name, "id": name, "on_hub": on_hub,
            "embedded": embedded, "here": here}  # fmt: skip


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _rows(results: dict) -> list[dict]:
    """The measured rows: those of scorers, or of a reconstructor before and after training."""
    return results.get("scorers") or results.get("reconstructor") or []


def _arguments(training: dict) -> list[tuple[str, str]]:
    """
    Every argument that has a value, as JSON; of Transformers' own keys only those that differ from their default.
    """
    usual = _host_defaults()
    return [
        (key, json.dumps(_without_none(value)).replace("|", "\\|"))
        for key, value in training.items()
        if value is not None
        and key not in _SECTIONS
        and not key.endswith("_token")
        and not (key in usual and (key in _OF_ONE_MACHINE or usual[key] == value))
    ]


def _host_defaults() -> dict:
    """The keys of `TrainingArguments` with their defaults, in the form of a record."""
    from transformers import TrainingArguments

    found = {}
    for key, field in TrainingArguments.__dataclass_fields__.items():
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found[key] = getattr(default, "value", None if default is MISSING else default)
    return found


def _without_none(value):
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value


# -- metadata ----------------------------------------------------------------------------------------------------------
def _metadata(
    name: str, config: dict, training: dict, results: dict, base: dict, license: str | None
) -> ModelCardData:
    whole = training.get("use_peft") is False
    adapted = config.get("has_adapter", True)
    source = (training.get("data") or {}).get("source", {})
    measured = _eval_results(results, source)
    return ModelCardData(
        license=license,
        # Not `peft`: the snippet that the Hub shows for it loads the adapter and not the policy.
        library_name="tokforget" if config.get("model_type") == MODEL_TYPE else "transformers" if whole else "peft",
        tags=[
            "tokforget",
            *(["trl"] if adapted else []),
            *(["lora"] if adapted and not whole else []),
            "prompt-compression",
        ],
        base_model=base["id"] if base["on_hub"] else None,
        base_model_relation=("finetune" if whole else "adapter") if base["on_hub"] and adapted else None,
        datasets=[source["dataset_name"]] if source.get("on_hub") else None,
        model_name=Path(name).name if measured else None,
        eval_results=measured or None,
    )


def _eval_results(results: dict, source: dict) -> list[EvalResult]:
    """The `model-index`: the published model's measured numbers at every rate, copied from the record."""
    rows = _rows(results)
    own = [
        row for row in rows if row.get("stage", "after") == "after" and row.get("scorer") == (rows[0].get("scorer"))
    ]
    dataset = Path(source.get("dataset_name") or results.get("dataset") or "").name
    dataset_type = source["dataset_name"] if source.get("on_hub") else dataset
    return [
        EvalResult(
            task_type="text-compression",
            dataset_type=dataset_type,
            dataset_name=dataset,
            dataset_config=source.get("dataset_config"),
            dataset_revision=source.get("revision") if source.get("on_hub") else None,
            dataset_split=results.get("split", "test"),
            metric_type=metric,
            metric_name=f"{words} at rate {row['rate']:g}",
            metric_value=row[metric],
        )
        for row in own
        for metric, words in (
            ("bits_lost", "Bits lost per original token"),
            ("exact_restored", "Share of dropped tokens restored exactly"),
        )
        if dataset
    ]


# -- the plot ----------------------------------------------------------------------------------------------------------
def _draw(path: Path, rows: list[dict], results: dict) -> bool:
    """Draw bits lost against rate, if there are rows and matplotlib is installed; return whether there is a plot."""
    if not rows or find_spec("matplotlib") is None:
        path.unlink(missing_ok=True)  # a plot of earlier results
        return False
    from tokforget.plots import draw_rate_quality

    named = [row if "scorer" in row else row | {"scorer": f"{row['stage']} training"} for row in rows]
    draw_rate_quality(path, named, Path(results.get("dataset") or "").name)
    return True


# -- numbers -----------------------------------------------------------------------------------------------------------
def _with_interval(row: dict, key: str, percent: bool = False) -> str:
    """`1.639 [1.580, 1.701]`, or `30.9 % [28.8, 33.1]`; without brackets where no interval was measured."""
    scale, digits = (100, 1) if percent else (1, 3)
    text = f"{scale * row[key]:.{digits}f}" + (" %" if percent else "")
    if (interval := row.get(f"{key}_interval")) is not None:
        text += f" [{scale * interval[0]:.{digits}f}, {scale * interval[1]:.{digits}f}]"
    return text


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.1f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


_FILTERS = {
    "with_interval": _with_interval,
    "duration": _duration,
    "count": "{:,}".format,
    "g": "{:g}".format,
    "string": json.dumps,
}


# Reasons for leaving out documents and blocks, in words. Reasons that arise while cutting blocks are counted in
# tokens, too.
REASONS = {
    "empty": "documents without text",
    "not_drawn": "documents beyond `max_sequences`",
    "outside_shares": "documents outside the shares",
    "exact_duplicate_within_split": "documents that stand in the split already",
    "exact_duplicate_across_splits": "documents that stand in a held-out split",
    "near_duplicate_across_splits": "documents that nearly stand in a held-out split",
    "too_short": "documents below `min_length`",
    "too_short_tokens": "their tokens",
    "short_block": "last blocks below `min_length`",
    "short_block_tokens": "their tokens",
}
