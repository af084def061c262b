"""
Sources of documents: a Hub data set, local files, the embedded corpus. Each is read as a stream of documents.

If a source cannot be loaded, an error names what was tried; no other text is used instead.
"""

import gzip
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from typing import IO

from tokforget.data.embedded_corpus import PYTHON_LICENSE, embedded_documents
from tokforget.packaged import EMBEDDED


logger = logging.getLogger(__name__)

DOCUMENT_END = "<|endoftext|>"
# File formats by the ending, in lower case.
_KINDS = {".txt": "text", ".tokens": "text", ".json": "json", ".jsonl": "lines", ".ndjson": "lines", ".csv": "csv", ".tsv": "csv",
          ".parquet": "parquet"}  # fmt: skip
_READABLE = ".txt, .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .tokens (all but .parquet also as .gz)"
# Words in the name of a file or a Hub split, and the split that they mean.
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A text with a stable name. For a part of a document, `start` is the offset of its first character, else 0."""

    id: str
    text: str
    start: int = 0


@dataclass
class Source:
    """
    The documents of a source, by its own splits.

    Args:
        splits (`dict[str, Iterable[Document]]`): Each can be iterated any number of times, always in the same order.
        revision (`str`, *optional*): Commit of a Hub data set, or the version of the Python whose documentation is
            read.
        config (`str`, *optional*): Configuration of a Hub data set.
        on_hub (`bool`): Whether it is a Hub data set.
        license (`list[str]`, *optional*): Licences that the card of a Hub data set states, or that of Python's
            documentation.
        divided_by_id (`bool`): Whether a document's name, not its text, decides its split.
    """

    splits: dict[str, Iterable[Document]]
    revision: str | None = None
    config: str | None = None
    on_hub: bool = False
    license: list[str] | None = None
    divided_by_id: bool = False


@dataclass
class _Stream:
    """Documents that are read again for each iteration."""

    read: Callable[[], Iterator[Document]]

    def __iter__(self) -> Iterator[Document]:
        return self.read()


def open_source(
    dataset_name: str, dataset_config: str | None = None, text_column: str = "text", streaming: bool = False
) -> Source:
    """
    Open a source, without reading more of it than needed.

    Args:
        dataset_name (`str`): `"embedded"`, a local file or folder, or a Hub data set's id.
        dataset_config (`str`, *optional*): Configuration on the Hub; no other source has one.
        text_column (`str`): Column with the text.
        streaming (`bool`): Read from the file or from the Hub in each pass, instead of first loading (files) or
            downloading (Hub) all documents.

    Returns:
        `Source`: If there are several local files, the name of each states a split (`train.jsonl`,
        `wiki.valid.tokens`, `test/a.txt`) and one of them is for training, these are the splits; otherwise all files
        form the split `train`. Lines of WikiText are joined to articles if the name of the data set or file contains
        `wiki` and the first line with text is a ` = Title = ` heading. A text file is one document, or several
        separated by `<|endoftext|>`.

    Raises:
        `FileNotFoundError`, `ValueError`: If there is nothing to load; the message names what was tried.
    """
    path = Path(dataset_name)
    is_local = dataset_name == EMBEDDED or path.exists()
    if dataset_name == EMBEDDED:
        documents = [Document(name, text) for name, text in embedded_documents().items()]
        return Source(
            {"train": documents}, revision=f"Python {python_version()}", divided_by_id=True, license=[PYTHON_LICENSE]
        )
    if not is_local:
        if not may_be_on_hub(dataset_name):
            raise FileNotFoundError(f"`dataset_name` {dataset_name!r}: no such file or folder.")
        return _open_hub(dataset_name, dataset_config, text_column, streaming)
    splits = {}
    for name, files in _files_by_split(path).items():
        stream = _Stream(lambda files=files: _file_documents(path, files, text_column))
        splits[name] = stream if streaming else list(stream)
    return Source(splits)


def may_be_on_hub(dataset_name: str) -> bool:
    """Whether a name that is not a local path may be an id on the Hub; otherwise it is a path that does not exist."""
    return not (_kind(Path(dataset_name)) or dataset_name.startswith((".", "/", "~")))


# -- the Hub -----------------------------------------------------------------------------------------------------------
def _open_hub(dataset_name: str, dataset_config: str | None, text_column: str, streaming: bool) -> Source:
    from datasets import load_dataset_builder

    tried = f"`dataset_name` {dataset_name!r} (configuration {dataset_config!r})"
    try:
        builder = load_dataset_builder(dataset_name, dataset_config)
        if streaming:
            source = builder.as_streaming_dataset()
        else:
            builder.download_and_prepare()
            source = builder.as_dataset()
    except Exception as error:  # the library raises many kinds of errors; each ends the run and names what was tried
        raise ValueError(
            f"{tried} is no local path and could not be loaded from the Hub: {_in_one_line(error)}"
        ) from error
    commit = re.search(r"@([^/]+)", str(builder.base_path or ""))

    def rows(split) -> Iterator[str | None]:
        if text_column in (split.column_names or []):
            split = split.select_columns([text_column])  # the others, images among them, need no decoding
        try:
            for row in split:
                yield _column(row, text_column, dataset_name)
        except OSError as error:
            raise ValueError(f"{tried} broke off while it was read from the Hub: {_in_one_line(error)}") from error

    def documents(name: str, split) -> Iterator[Document]:
        for at, text in enumerate(_articles_if_wiki(dataset_name, rows(split))):
            yield Document(f"{name}#{at}", text)

    streams = {name: _Stream(lambda n=name, s=split: documents(n, s)) for name, split in source.items()}
    revision = commit[1] if commit else None
    return Source(streams, revision, dataset_config, on_hub=True, license=_stated_license(dataset_name, revision))


def _stated_license(dataset_name: str, revision: str | None) -> list[str] | None:
    """The licences that the card of a data set states; `None` if the card cannot be read or states none."""
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

    try:
        card = DatasetCard.load(hf_hub_download(dataset_name, "README.md", repo_type="dataset", revision=revision))
    except (EntryNotFoundError, OfflineModeIsEnabled):
        return None
    stated = card.data.to_dict().get("license") or []
    named = [license for license in ([stated] if isinstance(stated, str) else stated) if license != "unknown"]
    return named or None


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# -- local files -------------------------------------------------------------------------------------------------------
def _kind(path: Path) -> str | None:
    return _KINDS.get(_ending(path))


def _ending(path: Path) -> str:
    """The ending of a file's name in lower case, without `.gz`."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _files_by_split(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"train": [path]}
    if (path / "dataset_dict.json").is_file():
        raise ValueError(f"{path} is a saved data set without a `manifest.json`: not made by recipes/prepare_data.py.")
    there = sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in there if _kind(file)]
    if not files:
        raise ValueError(f"The folder {path} holds none of {_READABLE}.")
    others = [file.relative_to(path).as_posix() for file in there if not _kind(file)]
    others = [name for name in others if not name.startswith(".") and "/." not in name]
    if others:
        logger.warning(
            "%d of %d files in %s are left out, of no kind that is read: %s. Read are %s.",
            len(others), len(there), path, ", ".join(others[:5]) + (", ..." if others[5:] else ""), _READABLE,
        )  # fmt: skip
    splits: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z0-9]+", file.relative_to(path).as_posix().lower())
        named = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        splits.setdefault(named.pop() if len(named) == 1 else "", []).append(file)
    return splits if "train" in splits and "" not in splits and len(splits) > 1 else {"train": files}


def _file_documents(root: Path, files: list[Path], text_column: str) -> Iterator[Document]:
    for file in files:
        name = file.name if root == file else file.relative_to(root).as_posix()
        try:
            for at, text in enumerate(_file_texts(file, text_column)):
                yield Document(f"{name}#{at}", text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no UTF-8 text and none of {_READABLE}: {error}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error


def _file_texts(file: Path, text_column: str) -> Iterator[str]:
    kind = _kind(file) or "text"
    if kind == "text":
        with _open(file) as lines:
            first, lines = _first_text(lines)
            if _kind(file) is None:
                _refuse_hidden_rows(file, first)
            yield from join_articles(lines) if _begins_wiki(file.name, first) else _marked_texts(lines)
        return
    readers = {
        "json": _json_rows,
        "lines": lambda file, _: line_rows(file),
        "csv": _csv_rows,
        "parquet": _parquet_rows,
    }
    rows = (_column(row, text_column, str(file)) for row in readers[kind](file, text_column))
    yield from _articles_if_wiki(file.name, rows)


def _refuse_hidden_rows(file: Path, first: str) -> None:
    """
    Raise `ValueError` if a file of unknown kind begins with a row of JSON: read as plain text, its syntax would be
    learnt.
    """
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict | list) or first.strip() in ("{", "[", "[{"):
        raise ValueError(
            f"{file} holds JSON, and its name does not say so: it would be read as one text, braces and all. Name it .jsonl (a row "
            "on each line) or .json; or .txt, if that is what is meant."
        )


def _open(file: Path) -> IO[str]:
    return (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rt", encoding="utf-8-sig")


def _marked_texts(lines: Iterable[str]) -> Iterator[str]:
    """The texts between end marks; blank ones, such as the one after the last mark, are skipped."""
    parts: list[str] = []
    for line in lines:
        *ended, rest = line.split(DOCUMENT_END)
        for part in ended:
            if text := "".join([*parts, part]).strip():
                yield text
            parts = []
        parts.append(rest)
    if text := "".join(parts).strip():
        yield text


def _json_rows(file: Path, text_column: str) -> Iterator[object]:
    """
    The rows of a JSON file: a list of texts or objects, or one object whose text column is a list, or JSON lines.
    """
    with _open(file) as stream:
        try:
            content = json.load(stream)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise
            content = None
    if content is None:
        yield from line_rows(file)
        return
    if isinstance(content, dict) and isinstance(content.get(text_column), list):
        content = content[text_column]
    if not isinstance(content, list):
        keys = f" with the keys {list(content)[:8]}" if isinstance(content, dict) else ""
        raise ValueError(f"{file} must hold a list of texts or of objects, got {type(content).__name__}{keys}.")
    yield from content


def line_rows(file: Path) -> Iterator[object]:
    """
    The values of a file of JSON lines, `.gz` or not. A line that is not JSON raises `ValueError` with file and line.
    """
    with _open(file) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{file}, line {number}, is not JSON: {error}") from error


def _csv_rows(file: Path, text_column: str) -> Iterator[dict]:
    import pandas

    try:
        form = {"chunksize": 256, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        with pandas.read_csv(file, sep="\t" if _ending(file) == ".tsv" else ",", **form) as chunks:
            for chunk in chunks:
                yield from chunk.to_dict("records")
    except pandas.errors.ParserError as error:
        raise ValueError(f"{file} is not CSV: {_in_one_line(error)}") from error
    except pandas.errors.EmptyDataError:
        return


def _parquet_rows(file: Path, text_column: str) -> Iterator[dict]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            columns = [text_column] if text_column in table.schema_arrow.names else None
            for batch in table.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not Parquet: {_in_one_line(error)}") from error


def _column(row: object, text_column: str, source: str) -> str | None:
    """The text of a row: the row itself, or its text column; `None` if the column is empty."""
    if isinstance(row, dict):
        if text_column not in row:
            raise ValueError(
                f"{source} has no column {text_column!r}; its columns are {list(row)}. Set `text_column`."
            )
        row = row[text_column]
    if row is not None and not isinstance(row, str):
        raise ValueError(
            f"{source}: the column {text_column!r} must hold text, got {type(row).__name__} {str(row)[:60]!r}."
        )
    return row


# -- WikiText ----------------------------------------------------------------------------------------------------------
def join_articles(lines: Iterable[str | None]) -> Iterator[str]:
    """Join the lines of WikiText to articles; a heading of the first level, ` = Title = `, begins a new article."""
    article: list[str] = []
    for line in lines:
        line = line or ""
        if _is_title(line):
            if text := "".join(article).strip():
                yield text
            article = []
        article.append(line if line.endswith("\n") else f"{line}\n")
    if text := "".join(article).strip():
        yield text


def _is_title(line: str) -> bool:
    text = line.strip()
    return text.startswith("= ") and text.endswith(" =") and not text.startswith("= =") and "\n" not in text


def _first_text(rows: Iterable[str | None]) -> tuple[str, Iterator[str | None]]:
    """The first row that is not blank, and an iterator over all rows."""
    read = []
    for row in (rows := iter(rows)):
        read.append(row)
        if row and row.strip():
            return row, itertools.chain(read, rows)
    return "", iter(read)


def _begins_wiki(name: str, first: str) -> bool:
    return "wiki" in name.lower() and _is_title(first)


def _articles_if_wiki(name: str, rows: Iterable[str | None]) -> Iterator[str]:
    first, rows = _first_text(rows)
    yield from join_articles(rows) if _begins_wiki(name, first) else (row or "" for row in rows)
