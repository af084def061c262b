"""
Input and output of the shell command. Kept text is reproduced byte for byte: UTF-8 without newline translation. Bytes
that are not UTF-8 are read as surrogate escapes (PEP 383), and are written unchanged unless they are dropped.
"""

import codecs
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


STDIN = "-"
_SURROGATES = re.compile("[\ud800-\udfff]")
_BETWEEN = re.compile(r"[\s:,]*")  # characters between the keys and values of a JSON object
_BLOCK_BYTES = 65_536
# Enough to know the longest mark of what is no text.
_MARK_BYTES = 64
_UTF_16 = "Convert it first, for instance with `iconv -f UTF-16 -t UTF-8`."
_UNPACK, _EXTRACT = "Unpack it first.", "Take the text out of it first."
# First bytes of formats that are not text, with their names and advice. A longer mark comes before its prefix.
_NO_TEXT = (
    (b"\xff\xfe\x00\x00", "UTF-32", _UTF_16.replace("16", "32")),
    (b"\x00\x00\xfe\xff", "UTF-32", _UTF_16.replace("16", "32")),
    (b"\xff\xfe", "UTF-16", _UTF_16), (b"\xfe\xff", "UTF-16", _UTF_16),
    (b"\x1f\x8b", "a gzip archive", _UNPACK.replace("it", "it with `gunzip`")),
    (b"BZh", "a bzip2 archive", _UNPACK), (b"\xfd7zXZ", "an xz archive", _UNPACK), (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"PK\x03\x04", "a zip archive or an office document", _EXTRACT), (b"PAR1", "a Parquet table", _EXTRACT),
    (b"%PDF-", "a PDF", _EXTRACT), (b"{\\rtf", "an RTF document", _EXTRACT), (b"SQLite format 3\0", "an SQLite database", _EXTRACT),
    (b"\x89PNG", "an image", _EXTRACT), (b"\xff\xd8\xff", "an image", _EXTRACT), (b"GIF8", "an image", _EXTRACT),
    (b"\x93NUMPY", "an array of NumPy", _EXTRACT), (b"\x80\x04\x95", "a pickle", _EXTRACT), (b"\x80\x05\x95", "a pickle", _EXTRACT),
)  # fmt: skip
# Bytes that are not UTF-8, and control characters that no text has; escapes and backspaces of terminals occur in logs.
_NO_CHARACTERS = re.compile("[\udc80-\udcff\x00-\x07\x0e-\x1a\x1c-\x1f]")
# Above this share of zeros a file is no text, however short it is.
_ZEROS = 1 / 16


class UserError(Exception):
    """A user's mistake; it ends the command with one line and exit code 2."""


@dataclass
class Record:
    """
    One text of the input.

    Args:
        source (`str`): Its file, `"-"` for standard input.
        text (`str`): The text.
        size (`int`): Its bytes in the input, for the progress bar.
        number (`int`, *optional*), line (`str`, *optional*): For a JSONL row its line number from 1, and the line
            itself.
        question (`str`, *optional*): The question about the text.
    """

    source: str
    text: str
    size: int
    number: int | None = None
    line: str | None = None
    question: str | None = None

    @property
    def place(self) -> str:
        """Its place in the form of compiler messages, `file:line`."""
        return self.source if self.number is None else f"{self.source}:{self.number}"


# -- in ----------------------------------------------------------------------------------------------------------------
@contextmanager
def open_input(source: str) -> Iterator[io.BufferedReader]:
    """
    Open a file, or standard input for `-`, in binary mode.

    Raises:
        `UserError`: If the file does not begin with text.
    """
    if source != STDIN:
        with open(source, "rb", buffering=_BLOCK_BYTES) as file:
            check_is_text(file.peek(_BLOCK_BYTES), source)
            yield file
        return
    if sys.stdin is None:  # started with its standard input closed, as by `<&-`
        raise UserError("There is no standard input to read from: it is closed. Name a file.")
    if sys.stdin.isatty():
        sys.stderr.write("tokforget: reading from the terminal; end with Ctrl-D.\n")
    buffer = sys.stdin.buffer
    # Of a pipe a peek sees what has come so far, which may be a single byte.
    beginning = buffer.read(_MARK_BYTES) if not sys.stdin.isatty() else b""
    check_is_text(beginning + (buffer.peek() if hasattr(buffer, "peek") else b""), source)
    yield io.BufferedReader(_Continued(beginning, buffer), _BLOCK_BYTES)


class _Continued(io.RawIOBase):
    """A stream of which the beginning was read already."""

    def __init__(self, beginning: bytes, rest: BinaryIO):
        self.beginning, self.rest = beginning, rest

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        data = self.beginning[: len(target)]
        if data:
            self.beginning = self.beginning[len(data) :]
        else:
            data = self.rest.read1(len(target))
        target[: len(data)] = data
        return len(data)


def check_is_text(beginning: bytes, source: str) -> None:
    """
    Raise `UserError` if the first bytes of an input are those of an archive, an image, a document, or of another
    encoding than UTF-8. A few bytes that are not UTF-8 are allowed, because logs contain them; they are written
    unchanged.
    """
    for mark, kind, advice in _NO_TEXT:
        if beginning.startswith(mark):
            raise UserError(f"{source} is {kind}, and what is read is UTF-8 text. {advice}")
    sample = beginning[:_BLOCK_BYTES]
    zeros = sample.count(0)
    if zeros > len(sample) * _ZEROS:
        order = "LE" if sample[1::2].count(0) > sample[::2].count(0) else "BE"
        raise UserError(
            f"{source} is no UTF-8 text: {zeros:,} of its first {len(sample):,} bytes are zero. If it is UTF-16, convert it first, for "
            f"instance with `iconv -f UTF-16{order} -t UTF-8`; of any other file, take the text out of it."
        )
    broken = len(_NO_CHARACTERS.findall(sample.decode("utf-8", "surrogateescape")))
    if broken >= 8 and broken > len(sample) / 4:
        raise UserError(
            f"{source} is no UTF-8 text: {broken:,} of its first {len(sample):,} bytes are no characters. Convert it first, for "
            "instance with `iconv -f LATIN1 -t UTF-8`, or take the text out of the document."
        )


def decode(data: bytes) -> str:
    """Decode bytes to text without loss."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The inverse of `decode`. Surrogates that do not encode a byte (only JSON can contain them) become U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text).encode()


def read_texts(sources: list[str]) -> Iterator[Record]:
    """Read each file as one text."""
    for source in sources:
        with open_input(source) as file:
            data = file.read()
        yield Record(source, decode(data), len(data))


def read_parts(source: str, advance: Callable[[int], None]) -> Iterator[str]:
    """Read a file in parts of about 64 kB without splitting a character; `advance` gets the bytes of each part."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with open_input(source) as file:
        while data := file.read(_BLOCK_BYTES):
            yield decoder.decode(data)
            advance(len(data))
    yield decoder.decode(b"", final=True)


def read_rows(
    sources: list[str],
    column: str,
    reject: Callable[[str, str], None],
    question_column: str | None = None,
    added: Sequence[str] = (),
) -> Iterator[Record]:
    """
    Read the rows of JSONL files. A line that is not a row with a text in `column`, or that already has a key in
    `added`, is passed to `reject(place, reason)`. Blank lines are skipped.
    """
    for source in sources:
        with open_input(source) as file:
            for number, data in enumerate(file, 1):
                if data.strip():
                    record = Record(source, "", len(data), number)
                    try:
                        record.line, record.text, record.question = _row(data, number, column, question_column, added)
                    except (ValueError, RecursionError) as error:
                        reject(record.place, str(error) or "nested too deeply")
                    else:
                        yield record


def _row(
    data: bytes, number: int, column: str, question_column: str | None, added: Sequence[str]
) -> tuple[str, str, str | None]:
    """A line as text without its line ending, the value of its column, and its question."""
    try:
        line = data.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        row = json.loads(line, object_pairs_hook=unique_keys)
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
    taken = [name for name in added if name in row]
    if taken:
        raise ValueError(
            f"it has {', '.join(map(repr, taken))} already, which would stand there twice: rename or remove it"
        )
    return line, row[column], None if question_column is None else row[question_column]


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object. Raises `ValueError` for a duplicate key, because programs read such objects differently."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in it")
    return row


def _kind(value) -> str:
    return {"NoneType": "null", "list": "an array", "dict": "an object", "str": "a text", "bool": "a boolean"}.get(
        type(value).__name__, "a number"
    )


# -- out ---------------------------------------------------------------------------------------------------------------
def json_line(fields: dict | list, indent: int | None = None) -> bytes:
    r"""
    Fields as one line of JSON, or as several lines with an indent. Lone surrogates are written as escapes (`\udc80`).
    """
    text = json.dumps(fields, ensure_ascii=False, indent=indent)
    return _escaped(text).encode() + b"\n"


def with_columns(record: Record, columns: dict, replaced: str | None = None) -> bytes:
    """
    A row with columns appended. Its own columns stay exactly as they were written (numbers, order, spaces). A
    `replaced` column keeps its place and gets the value in `columns`.
    """
    line, added = record.line, dict(columns)
    if replaced is not None:
        start, end = _value_span(line, replaced)
        line = line[:start] + _escaped(json.dumps(added.pop(replaced), ensure_ascii=False)) + line[end:]
    return f"{line[:-1].rstrip()}, {_escaped(json.dumps(added, ensure_ascii=False))[1:]}\n".encode()


def _value_span(line: str, name: str) -> tuple[int, int]:
    """Start and end of a key's value in a line that is a JSON object."""
    decoder, at = json.JSONDecoder(), 1
    while True:
        key, at = decoder.raw_decode(line, _BETWEEN.match(line, at).end())
        start = _BETWEEN.match(line, at).end()
        _, at = decoder.raw_decode(line, start)
        if key == name:
            return start, at


def _escaped(text: str) -> str:
    return text if text.isascii() else _SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def standard_output() -> BinaryIO:
    """Standard output in bytes; `UserError` if the process was started without one, as by `>&-`."""
    if sys.stdout is None:
        raise UserError(
            "There is no standard output to write to: it is closed. Leave it open, or name a file where a command takes one."
        )
    return sys.stdout.buffer


@contextmanager
def open_output(path: str | None) -> Iterator[BinaryIO]:
    """
    Standard output, or a file that is written atomically: after a failure the old file is unchanged.
    """
    if path is None:
        yield standard_output()
        sys.stdout.buffer.flush()
        return
    target = Path(path).resolve()
    if target.exists() and not target.is_file():  # a device or a pipe cannot be replaced
        with open(target, "wb") as file:
            yield file
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            file = open(part, "xb")  # noqa: SIM115 - closed below
        except OSError as error:
            error.filename = path  # as the user knows it
            raise
        with file:
            yield file
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def refuse_input_as_output(path: Path, sources: list[str], option: str = "--output") -> None:
    """Raise `UserError` if a result would overwrite one of the inputs, because dropped text would be lost."""
    named_as, path = path, path.resolve()  # where it is written: `nothing/../a.txt` is `a.txt`
    if not path.is_file():
        return
    for source in sources:
        try:
            there = os.stat(source) if source != STDIN else os.fstat(sys.stdin.fileno())
        except (OSError, ValueError):  # a missing file is reported elsewhere; standard input may have no file
            continue
        if os.path.samestat(there, path.stat()):
            named = "standard input" if source == STDIN else source
            raise UserError(
                f"`{option}` {named_as} is an input itself ({named}), and what is dropped would be lost. Name another file."
            )


def check_output_file(path: str, sources: list[str], option: str = "--output") -> None:
    """`UserError` if no file can be written there, or if it is an input."""
    if not path:
        raise UserError(f"`{option}` got an empty name: name a file.")
    try:
        Path(path).resolve()
        if Path(path).is_symlink():  # from Python 3.13 on `resolve` says nothing of a loop
            with suppress(FileNotFoundError):
                os.stat(path)
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # links that lead to each other; what no system takes for a name
        raise UserError(f"`{option}` {path}: {getattr(error, 'strerror', None) or error}.") from error
    if Path(path).is_dir():
        raise UserError(f"`{option}` {path} is a folder: name a file in it.")
    if not Path(path).resolve().parent.is_dir():
        raise UserError(f"`{option}` {path}: no such folder.")
    refuse_input_as_output(Path(path), sources, option)


class Outputs:
    """
    The outputs: standard output, one file, or a folder with one file per source. Results in one file or on standard
    output are separated by line breaks.

    Args:
        path (`str`, *optional*): A file; an existing folder, or a name that ends in a slash; by default standard
            output.
        sources (`list[str]`): The inputs; the files in a folder have their names.
        suffix (`str`): Suffix of these names.
        read_along (`list[str]`): Other files that no result may overwrite.

    Raises:
        `UserError`: If the output cannot be written there, or two inputs would have the same file.
    """

    def __init__(self, path: str | None, sources: list[str], suffix: str = "", read_along: Sequence[str] = ()):
        self.last = b""  # the last byte written
        self.path, self.suffix = path, suffix
        self.is_folder = bool(path) and (Path(path).is_dir() or path.endswith(("/", os.sep)))
        if not self.is_folder:
            if path is not None:
                check_output_file(path, [*sources, *read_along])
            return
        names = [Path(source).name for source in sources]
        if STDIN in sources:
            raise UserError("`--output` is a folder, but standard input has no name for its file: name a file.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(
                f"`--output` is a folder, and several inputs are called {twice[0]}: write them one by one."
            )
        for name in names:
            refuse_input_as_output(Path(path, name + suffix), [*sources, *read_along])
        Path(path).mkdir(parents=True, exist_ok=True)

    @property
    def on_terminal(self) -> bool:
        """Whether results go to the terminal, where a progress bar would be, too."""
        return self.path is None and sys.stdout is not None and sys.stdout.isatty()

    @property
    def line_is_open(self) -> bool:
        """Whether the last line on the terminal is unfinished, so that a message would continue it."""
        return self.on_terminal and self.last not in (b"", b"\n")

    @contextmanager
    def open_all(self) -> Iterator[Callable[..., None]]:
        """
        Yields a function `write(source, data, begins)`. `begins` is whether a new text begins with `data`; a new
        source always begins one. The results of a source must be consecutive.
        """
        with ExitStack() as stack:
            current: list = [None, None]  # the source and its file

            def write(source: str, data: bytes, begins: bool = False) -> None:
                begins |= source != current[0]
                if current[1] is None or (self.is_folder and source != current[0]):
                    stack.close()
                    path = str(Path(self.path, Path(source).name + self.suffix)) if self.is_folder else self.path
                    current[1], self.last = stack.enter_context(open_output(path)), b""
                if begins and data and self.last not in (b"", b"\n"):
                    current[1].write(b"\n")
                current[0], self.last = source, data[-1:] or self.last
                current[1].write(data)

            if not self.is_folder:  # create an empty file even if nothing is written
                current[1] = stack.enter_context(open_output(self.path))
            yield write
