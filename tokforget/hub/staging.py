"""
Publish a run's folder: the files of the model, or the prepared blocks, with a card.

The folder is first staged, that is copied in the form it will have on the Hub, and then sent. Other files in it, such
as checkpoints, optimizer states and logs, are never read.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import DatasetCardData

from tokforget.files import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    MANIFEST,
    RESULTS,
    TOKENIZER,
    TRAINING,
    WEIGHTS,
    write_json,
)
from tokforget.hub.cards import PLOT, render, write_card
from tokforget.hub.client import Uploaded, upload
from tokforget.local_paths import local_paths, without_local_paths
from tokforget.models.folders import MODEL_TYPE, check_model_folder


CARD = "README.md"
EVALUATION = "evaluation"
_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
_MODEL_FILES = (CONFIG, WEIGHTS, "generation_config.json")
_TOKENIZER_FILES = (
    TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
RECORDS = (TRAINING, RESULTS)
_EVALUATION_FILES = ("*.md", "*.png", "*.html", "*.json")
_LARGEST_PART = 500_000_000  # bytes of one Parquet file, as `datasets` divides


class Kind(NamedTuple):
    """
    A kind of folder: its name, the type of its repository, the template of its card, the patterns of file names that a
    push owns in the repository, and the file that identifies an earlier push.
    """

    name: str
    repo_type: str
    template: str
    owned: tuple[str, ...]
    mark: str


_OWNED = (*_MODEL_FILES, *_ADAPTER_FILES, *(f"{ADAPTER}/{name}" for name in _ADAPTER_FILES), *_TOKENIZER_FILES, *RECORDS,
          CARD, PLOT, f"{EVALUATION}/*")  # fmt: skip
MODEL = Kind("model", "model", "model.md", _OWNED, TRAINING)
RECONSTRUCTOR = Kind("reconstructor", "model", "reconstructor.md", _OWNED, TRAINING)
DATA = Kind("prepared data", "dataset", "dataset.md", ("data/*.parquet", MANIFEST, CARD), MANIFEST)


def kind_of(folder: str | Path) -> Kind:
    """
    The kind of a folder: a model, a reconstructor or prepared data.

    Raises:
        `ValueError`: If it is none of these.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return DATA
    config = folder / CONFIG
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == MODEL_TYPE:
        return MODEL
    recorded = (folder / TRAINING).is_file()
    if recorded and all((folder / name).is_file() for name in _ADAPTER_FILES):
        return RECONSTRUCTOR
    if recorded and config.is_file() and (folder / WEIGHTS).is_file():
        return RECONSTRUCTOR
    raise ValueError(
        f"{str(folder)!r} holds neither a tokforget model nor a reconstructor nor prepared data. Pass the folder that "
        "recipes/train.py, recipes/train_reconstructor.py or recipes/prepare_data.py wrote."
    )


def stage(
    folder: str | Path,
    target: str | Path,
    name: str,
    license: str | None = None,
    evaluation_path: str | Path | None = None,
    with_tokenizer: bool = True,
) -> Kind:
    """
    Write a copy of a folder in the form it will have on the Hub.

    Args:
        folder (`str` or `Path`): Folder of a model, a reconstructor or prepared data.
        target (`str` or `Path`): New or empty folder to write.
        name (`str`): Id on the Hub, for the card.
        license (`str`, *optional*): Licence of a model. For data the card states the licence of their source, if
            known.
        evaluation_path (`str` or `Path`, *optional*): An evaluation's folder; the folder's `evaluation/` by default.
        with_tokenizer (`bool`): Whether to refuse a model without a tokenizer, because it could not compress.

    Returns:
        [`Kind`]: The kind of the folder.

    Raises:
        `ValueError`, `OSError`: If the folder lacks a file, or `target` is not empty.
    """
    folder, target, kind = Path(folder), Path(target), kind_of(folder)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"`output_dir` {str(target)!r} is not empty; name another folder, or remove this one.")
    if kind is DATA and (license or evaluation_path):
        raise ValueError("Prepared data take no `license`, theirs is their source's, and no `evaluation_path`.")
    target.mkdir(parents=True, exist_ok=True)
    if kind is DATA:
        _stage_data(folder, target, name)
        return kind
    if kind is MODEL:
        check_model_folder(folder)
    if with_tokenizer and not (folder / TOKENIZER).is_file():
        raise ValueError(
            f"{folder} lacks {TOKENIZER}, without which nobody can compress. Save the tokenizer there first."
        )
    weights = [*_MODEL_FILES, *(f"{ADAPTER}/{file}" for file in _ADAPTER_FILES)] if kind is MODEL else [
        *(_ADAPTER_FILES if (folder / _ADAPTER_FILES[0]).is_file() else _MODEL_FILES)
    ]  # fmt: skip
    for file in (*weights, *_TOKENIZER_FILES, *RECORDS):
        if (folder / file).is_file():
            (target / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / file, target / file)
    _take_out_paths(target, RECORDS)
    files = _stage_evaluation(Path(evaluation_path or folder / EVALUATION), target, evaluation_path is not None)
    write_card(target, kind.template, name, license, files)
    return kind


def _take_out_paths(folder: Path, files: Sequence[str]) -> None:
    """
    Remove the paths of this machine from the records that are published. The config of a model keeps the path of a
    local base model, because nobody could restore without it, not even on this machine.
    """
    for file in files:
        if (folder / file).is_file():
            record = json.loads((folder / file).read_text(encoding="utf-8"))
            if without_local_paths(record) != record:
                write_json(folder / file, without_local_paths(record))


def _stage_evaluation(source: Path, target: Path, required: bool) -> list[str]:
    """
    Copy the report of an evaluation, its plots and the numbers behind them, without the paths of this machine. Returns
    the names of the copied files.
    """
    if not (source / "evaluation_config.json").is_file():
        if required:
            raise ValueError(f"`evaluation_path` {str(source)!r} is no output folder of recipes/evaluate.py.")
        return []
    files = sorted({path.name for pattern in _EVALUATION_FILES for path in source.glob(pattern) if path.is_file()})
    (target / EVALUATION).mkdir()
    places = local_paths(json.loads((source / "evaluation_config.json").read_text(encoding="utf-8")))
    for file in files:
        path = Path(shutil.copyfile(source / file, target / EVALUATION / file))
        if places and path.suffix == ".json":
            record = json.loads(path.read_text(encoding="utf-8"))
            if (shown := _replaced(record, places)) != record:
                write_json(path, shown)
        elif places and path.suffix in (".md", ".html"):  # a report that was written with local paths
            text = path.read_text(encoding="utf-8")
            for place in sorted(places, key=len, reverse=True):
                for written, shown in ((place, places[place]), (escape(place), escape(places[place]))):
                    text = text.replace(written, shown)
            path.write_text(text, encoding="utf-8")
    return files


def _replaced(value, places: dict[str, str]):
    """
    The record with paths replaced. Only whole values are replaced, because the text of a sample may contain a slash.
    """
    if isinstance(value, dict):
        return {key: _replaced(inner, places) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, places) for inner in value]
    return places.get(value, value) if isinstance(value, str) else value


def _stage_data(folder: Path, target: Path, name: str) -> None:
    """
    Write the blocks as Parquet files with their order and types, their manifest, and a card that locates each split.
    """
    from datasets import load_from_disk

    blocks = load_from_disk(str(folder))
    (target / "data").mkdir()
    for split, rows in blocks.items():
        parts = max(1, math.ceil(rows.data.nbytes / _LARGEST_PART))
        for part in range(parts):
            file = target / "data" / f"{split}-{part:05d}-of-{parts:05d}.parquet"
            rows.shard(parts, part, contiguous=True).to_parquet(str(file))
    shutil.copyfile(folder / MANIFEST, target / MANIFEST)
    _take_out_paths(target, [MANIFEST])
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    write_data_card(target, manifest, name, on_hub=True)


def write_data_card(folder: Path, manifest: dict, name: str, on_hub: bool = False) -> None:
    """Write `README.md` of prepared data from their manifest, for a folder on disk or for `load_dataset(name)`."""
    from tokforget.hub.cards import REASONS

    source = manifest["source"]
    files = [{"split": split, "path": f"data/{split}-*"} for split in manifest["splits"]]
    text = render(
        "dataset.md",
        DatasetCardData(
            configs=[{"config_name": "default", "data_files": files}] if on_hub else None,
            license=source.get("license") if source.get("on_hub") else None,  # others state no identifier
            source_datasets=[source["dataset_name"]] if source.get("on_hub") else None,
            tags=["tokforget"],
        ),
        name=name,
        on_hub=on_hub,
        reasons=REASONS,
        **manifest,
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def share(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
    **staging,
) -> Uploaded:
    """
    Stage a folder and send it in one commit. Files that remain from an earlier push to the same repository are
    removed.

    Args:
        folder (`str` or `Path`): See [`stage`].
        repo_id (`str`), private (`bool`, *optional*), revision (`str`, *optional*), token (`str`, *optional*), message
            (`str`, *optional*): See [`upload`].
        **staging: Further arguments of [`stage`].

    Returns:
        [`Uploaded`]: Id, commit and address.

    Raises:
        `ValueError`, `OSError`: If the folder cannot be staged.
        [`HubError`]: If it is not certain that every file arrived.
    """
    with tempfile.TemporaryDirectory(prefix="tokforget-") as staged:
        kind = stage(folder, staged, repo_id, **staging)
        return send(staged, kind, repo_id, private, revision, token, message)


def send(
    staged: str | Path,
    kind: Kind,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
) -> Uploaded:
    """Send a folder that [`stage`] wrote; see [`share`]."""
    return upload(
        staged,
        repo_id,
        kind.repo_type,
        private,
        revision,
        token,
        message or f"Upload {kind.name}",
        kind.owned,
        kind.mark,
    )
