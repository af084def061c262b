"""
From documents to padded batches: load, split by document, tokenise, cut into blocks, collate. Also the embedded corpus.

A source that cannot be loaded is an error that names what was tried; no other text ever takes its place.
"""

import ast
import hashlib
import json
import logging
import os
import sysconfig
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokforget.packing import cut_blocks


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
# Folders of the standard library that hold no documentation for users: its own tests, vendored and generated code.
_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "lib2to3",
    "idlelib",
}
_DOCUMENT_END = "<|endoftext|>"
# Below this many documents a hash may leave a split empty.
_FEW_DOCUMENTS = 50
_LOCAL_BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


# -- the embedded corpus and base model ------------------------------------------------------------------------------
def embedded_model_path() -> str:
    """Folder of the small GPT-2 and its tokenizer that the package carries."""
    return str(resources.files("tokforget") / "embedded_model")


def embedded_documents() -> dict[str, str]:
    """
    The English documentation that every CPython carries, read from the running interpreter.

    Returns:
        `dict[str, str]`: About 600 documents, 2 MB: the reference topics of `pydoc_data` and, for each module of the
        standard library, its docstrings in file order. A docstring that an earlier module has word for word is left
        out, so that a text is in one document only. The text is that of the running Python version.

    Raises:
        `FileNotFoundError`: If this Python was installed without its library sources or `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "The embedded corpus needs `pydoc_data.topics`, which this Python was installed without. Install the full "
            "standard library, or pass `dataset_name` a file, a folder or a Hub data set."
        ) from error
    first_name = {text.strip(): name for name, text in sorted(topics.items(), reverse=True)}  # some share their text
    documents = {f"topic/{name}": text for text, name in sorted(first_name.items(), key=lambda item: item[1])}
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    for path in _library_files(library):
        docstrings = [text for text in _docstrings(path) if not (text in seen or seen.add(text))]
        if docstrings:
            documents[f"module/{path.relative_to(library).as_posix()}"] = "\n\n".join(docstrings)
    if not seen:
        raise FileNotFoundError(
            f"The embedded corpus needs the sources of the standard library, and {library} has none. Install them, or "
            "pass `dataset_name` a file, a folder or a Hub data set."
        )
    return documents


def _library_files(library: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("config-"))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _docstrings(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if docstring := ast.get_docstring(node):
                yield docstring


# -- documents and their split ---------------------------------------------------------------------------------------
def split_of(name: str, validation_share: float = 0.08, test_share: float = 0.08) -> str:
    """
    Split of a document, from a hash of its name: it does not depend on the other documents, on order or on a seed.

    >>> split_of("topic/assert")
    'train'
    """
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if draw < validation_share:
        return "validation"
    return "test" if draw < validation_share + test_share else "train"


def load_documents(
    dataset_name: str, dataset_config: str | None = None, text_column: str = "text"
) -> dict[str, list[str]]:
    """
    Documents by split.

    Args:
        dataset_name (`str`): `"embedded"`, a local file or folder, or a Hub data set's id.
        dataset_config (`str`, *optional*): Configuration on the Hub.
        text_column (`str`): Column with the text. A text file is one document, or several with `<|endoftext|>` between.

    Returns:
        `dict[str, list[str]]`: `train`, `validation` and `test`. A source's own splits are used; other sources are divided
        by document, from a hash of the text. Where documents are too few for that, each is divided by place: its first
        84 % to train, then 8 % to validation and to test.

    Raises:
        `FileNotFoundError`, `ValueError`: Naming what was tried, if there is nothing to load.
    """
    if dataset_name == EMBEDDED:
        splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for name, text in embedded_documents().items():
            splits[split_of(name)].append(text)
        return splits
    path = Path(dataset_name)
    if path.exists():
        return _divide(_local_documents(path, text_column))
    if path.suffix in _LOCAL_BUILDERS or dataset_name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"`dataset_name` {dataset_name!r}: no such file or folder.")
    from datasets import load_dataset

    try:
        source = load_dataset(dataset_name, dataset_config)
    except Exception as error:  # the library's errors are many; each of them ends the run, with what was tried
        raise ValueError(
            f"`dataset_name` {dataset_name!r} (configuration {dataset_config!r}) is no local path and could not be loaded "
            f"from the Hub: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    documents = {name: _texts_of(split, text_column, dataset_name) for name, split in source.items()}
    if "wikitext" in dataset_name.lower():
        documents = {name: join_articles(lines) for name, lines in documents.items()}
    if {"train", "validation", "test"} <= documents.keys():
        return {name: documents[name] for name in ("train", "validation", "test")}
    return _divide([text for texts in documents.values() for text in texts])


def _local_documents(path: Path, text_column: str) -> list[str]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _LOCAL_BUILDERS)
    if not files:
        raise ValueError(f"The folder {path} holds none of {', '.join(_LOCAL_BUILDERS)}.")
    texts: list[str] = []
    for file in files:
        texts += _file_documents(file, text_column)
    return texts


def _file_documents(file: Path, text_column: str) -> list[str]:
    if file.suffix == ".json":
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, list) and all(isinstance(item, str) for item in content):
            return content  # a plain list of texts, which the json builder does not read
    if _LOCAL_BUILDERS.get(file.suffix, "text") == "text":
        try:
            return [text for part in file.read_text(encoding="utf-8").split(_DOCUMENT_END) if (text := part.strip())]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no UTF-8 text and none of {', '.join(_LOCAL_BUILDERS)}: {error}") from error
    from datasets import load_dataset

    split = load_dataset(_LOCAL_BUILDERS[file.suffix], data_files=str(file), split="train")
    return _texts_of(split, text_column, str(file))


def _texts_of(split: "Dataset", text_column: str, source: str) -> list[str]:
    if text_column not in split.column_names:
        raise ValueError(
            f"{source} has no column {text_column!r}; its columns are {split.column_names}. Set `text_column`."
        )
    return list(split[text_column])


def join_articles(lines: list[str]) -> list[str]:
    """WikiText's lines to articles; a new one begins at a heading of the first level, ` = Title = `."""
    articles: list[list[str]] = []
    for line in lines:
        text = line.strip()
        is_title = text.startswith("= ") and text.endswith(" =") and not text.startswith("= =")
        if is_title or not articles:
            articles.append([])
        articles[-1].append(line)
    return [text for article in articles if (text := "".join(article).strip())]


def _divide(texts: list[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    texts = list(dict.fromkeys(texts))  # a document that occurs twice must not stand in two splits
    if len(texts) >= _FEW_DOCUMENTS:
        for text in texts:
            splits[split_of(text)].append(text)
        return splits
    logger.warning("Only %d documents: each is divided by place instead of being in one split.", len(texts))
    for text in texts:
        first, second = (_next_space(text, round(share * len(text))) for share in (0.84, 0.92))
        for name, part in zip(splits, (text[:first], text[first:second], text[second:])):
            if part.strip():
                splits[name].append(part)
    return splits


def _next_space(text: str, place: int) -> int:
    """The first white space from `place` on: no word is cut in two."""
    return next((at for at in range(place, len(text)) if text[at].isspace()), len(text))


# -- documents to blocks -----------------------------------------------------------------------------------------------
def load_blocks(
    dataset_name: str,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    min_length: int = 1,
    dataset_config: str | None = None,
    text_column: str = "text",
) -> "DatasetDict":
    """
    Tokenised blocks by split, each with `input_ids` and the number of its `document`.

    Returns:
        `datasets.DatasetDict`: `train`, `validation`, `test`. Blocks of fewer than `min_length` tokens are left out.

    Raises:
        `ValueError`: If a split comes out empty.
    """
    from datasets import Dataset, DatasetDict

    splits = {}
    for name, texts in load_documents(dataset_name, dataset_config, text_column).items():
        rows: dict[str, list] = {"input_ids": [], "document": []}
        # The end token must not be read out of a text that happens to spell it.
        encoded = (
            tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
            if texts
            else []
        )
        for document, ids in enumerate(encoded):
            for block in cut_blocks(ids, max_length):
                if len(block) >= min_length:
                    rows["input_ids"].append(block)
                    rows["document"].append(document)
        if not rows["input_ids"]:
            raise ValueError(
                f"The {name} split of {dataset_name!r} is empty: {len(texts)} documents, no block of at least {min_length} "
                f"tokens. Give more text, or lower `min_length`."
            )
        splits[name] = Dataset.from_dict(rows)
    return DatasetDict(splits)


class BlockCollator:
    """Pads blocks on the right: `input_ids` `(B, T)` and `attention_mask` `(B, T)`."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        blocks = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        input_ids = torch.nn.utils.rnn.pad_sequence(blocks, batch_first=True, padding_value=self.pad_token_id)
        lengths = torch.tensor([len(block) for block in blocks])
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": input_ids, "attention_mask": attention_mask}
