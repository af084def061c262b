"""
What the shell command reads and writes. Text in is text out, byte for byte: UTF-8 without newline translation, and bytes
that are no UTF-8 travel as surrogate escapes (PEP 383), so that they come out as they went in unless they are dropped.
"""

import codecs
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


STDIN = "-"
_SURROGATES = re.compile("[\ud800-\udfff]")
_BLOCK_BYTES = 65_536


class UserError(Exception):
    """What the user asked for cannot be done; ends the command with one line and exit code 2."""


@dataclass
class Record:
    """
    One text of the input.

    Args:
        source (`str`): The file it comes from, `"-"` for standard input.
        text (`str`): The text.
        size (`int`): Bytes of the input it took, for the progress bar.
        number (`int`, *optional*), line (`str`, *optional*): Of a JSONL row: its line number from 1, and the line itself.
        question (`str`, *optional*): What will be asked about the text.
    """

    source: str
    text: str
    size: int
    number: int | None = None
    line: str | None = None
    question: str | None = None

    @property
    def place(self) -> str:
        """Where it stands, as compilers say it."""
        return self.source if self.number is None else f"{self.source}:{self.number}"


# -- in ----------------------------------------------------------------------------------------------------------------
@contextmanager
def open_input(source: str) -> Iterator[BinaryIO]:
    """A file, or standard input for `-`, in bytes."""
    if source != STDIN:
        with open(source, "rb") as file:
            yield file
        return
    if sys.stdin.isatty():
        sys.stderr.write("tokforget: reading from the terminal; end with Ctrl-D.\n")
    yield sys.stdin.buffer


def decode(data: bytes) -> str:
    """Bytes as text, losslessly."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The inverse of `decode`; surrogates that stand for no byte, which only JSON can bring, become U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text).encode()


def read_texts(sources: list[str]) -> Iterator[Record]:
    """Each file as one text."""
    for source in sources:
        with open_input(source) as file:
            data = file.read()
        yield Record(source, decode(data), len(data))


def read_parts(source: str, advance: Callable[[int], None]) -> Iterator[str]:
    """One file in parts of some 64 kB, never splitting a character; `advance` is told the bytes of each."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with open_input(source) as file:
        while data := file.read(_BLOCK_BYTES):
            yield decoder.decode(data)
            advance(len(data))
    yield decoder.decode(b"", final=True)


def read_rows(
    sources: list[str], column: str, reject: Callable[[str, str], None], question_column: str | None = None
) -> Iterator[Record]:
    """The rows of JSONL files. What is no row with a text in `column` goes to `reject(place, reason)`; blank lines to nobody."""
    for source in sources:
        with open_input(source) as file:
            for number, data in enumerate(file, 1):
                if data.strip():
                    record = Record(source, "", len(data), number)
                    try:
                        record.line, record.text, record.question = _row(data, number, column, question_column)
                    except (ValueError, RecursionError) as error:
                        reject(record.place, str(error) or "nested too deeply")
                    else:
                        yield record


def _row(data: bytes, number: int, column: str, question_column: str | None) -> tuple[str, str, str | None]:
    """A line as text without its ending, what stands in its column, and its question."""
    try:
        line = data.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but {_kind(row)}")
    for name in (column, question_column):
        if name is None:
            continue
        if name not in row:
            raise ValueError(f"no column {name!r}; it has {', '.join(map(repr, list(row)[:8])) or 'none'}")
        if not isinstance(row[name], str):
            raise ValueError(f"column {name!r} holds {_kind(row[name])}, not a text")
    return line, row[column], None if question_column is None else row[question_column]


def _kind(value) -> str:
    return {"NoneType": "null", "list": "an array", "dict": "an object", "str": "a text", "bool": "a boolean"}.get(
        type(value).__name__, "a number"
    )


# -- out ---------------------------------------------------------------------------------------------------------------
def json_line(fields: dict) -> bytes:
    r"""Fields as one line of JSON. Lone surrogates are written as escapes (`\udc80`), so that they too come back."""
    text = json.dumps(fields, ensure_ascii=False)
    return _escaped(text).encode() + b"\n"


def with_columns(record: Record, columns: dict) -> bytes:
    """A row with columns added behind its own, which stay letter for letter as they were (numbers, order, spaces)."""
    added = json.dumps(columns, ensure_ascii=False)
    return f"{record.line[:-1].rstrip()}, {_escaped(added)[1:]}\n".encode()


def _escaped(text: str) -> str:
    return text if text.isascii() else _SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


@contextmanager
def open_output(path: str | None) -> Iterator[BinaryIO]:
    """
    Standard output, or a file that appears, whole, only when all went well: reading and writing the same file is safe, and
    a failure leaves what was there before.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path).resolve()
    if target.exists() and not target.is_file():  # a device or a pipe cannot be replaced
        with open(target, "wb") as file:
            yield file
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(part, "xb") as file:
            yield file
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


class Outputs:
    """
    Where results go: standard output, one file, or a folder with a file for each source.

    Args:
        path (`str`, *optional*): Nothing for standard output; a folder that exists or a name that ends in a slash; or a file.
        sources (`list[str]`): The inputs, which name the files in a folder.
        suffix (`str`): What is added to these names.
    """

    def __init__(self, path: str | None, sources: list[str], suffix: str = ""):
        self.last = b""  # byte that was written
        self.path, self.suffix = path, suffix
        self.is_folder = path is not None and (Path(path).is_dir() or path.endswith(("/", os.sep)))
        if not self.is_folder:
            if path is not None and not Path(path).resolve().parent.is_dir():
                raise UserError(f"`--output` {path}: no such folder.")
            return
        names = [Path(source).name for source in sources]
        if STDIN in sources:
            raise UserError("`--output` is a folder, but standard input has no name for its file: name a file.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(
                f"`--output` is a folder, and several inputs are called {twice[0]}: write them one by one."
            )
        Path(path).mkdir(parents=True, exist_ok=True)

    @property
    def on_terminal(self) -> bool:
        """Whether results are shown where a progress bar would be, too."""
        return self.path is None and sys.stdout.isatty()

    @property
    def line_is_open(self) -> bool:
        """Whether a message would follow on the same line of the terminal."""
        return self.on_terminal and self.last not in (b"", b"\n")

    @contextmanager
    def open_all(self) -> Iterator[Callable[[str, bytes], None]]:
        """A function that takes a source and bytes of its result. Sources must come one after the other."""
        if not self.is_folder:
            with open_output(self.path) as file:

                def write_on(source: str, data: bytes) -> None:
                    self.last = data[-1:] or self.last
                    file.write(data)

                yield write_on
            return
        with ExitStack() as stack:
            current: list = [None, None]  # source and its file

            def write(source: str, data: bytes) -> None:
                if source != current[0]:
                    stack.close()
                    path = Path(self.path, Path(source).name + self.suffix)
                    current[:] = source, stack.enter_context(open_output(str(path)))
                current[1].write(data)

            yield write
