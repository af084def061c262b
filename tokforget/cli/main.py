"""
The shell command: `tokforget compress | restore | inspect | diff | serve | export | env`, and the recipes by name, such as `tokforget train`.

Results go to standard output, everything else to standard error. Exit codes: 0 success; 1 an error that is not the
user's; 2 a user's mistake, or some lines could not be read; 130 interrupted.
"""

# Import only light modules here, so that `--help` and `env` do not wait for torch.
import argparse
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tokforget.cli import export
from tokforget.cli.arguments import compress_options, make_parser
from tokforget.cli.files import (
    STDIN,
    Outputs,
    Record,
    UserError,
    check_output_file,
    encode,
    json_line,
    open_output,
    read_parts,
    read_rows,
    read_texts,
    standard_output,
    with_columns,
)
from tokforget.cli.messages import check_options, message_options, read_conversations
from tokforget.cli.recipes import RECIPES, run_recipe
from tokforget.cli.serve import serve
from tokforget.optional import MissingPackage, needed


# Texts compressed in one call: enough to fill the batches, few enough for constant memory.
_GROUP_TEXTS, _GROUP_BYTES = 256, 2_000_000
# Most rejected lines to name; the others are only counted.
_NAMED = 20
# What the summary says of a kind of structure.
_STRUCTURED = {
    "json": "JSON", "code": "code", "log": "a log", "diff": "a diff", "csv": "CSV", "settings": "a settings file",
    "rows": "printed columns",
}  # fmt: skip
# What it says of a text that is returned whole.
_WHOLE = {
    "json": "no quality is calibrated for JSON; `--rate` shortens it.",
    "quality": "no shorter text is sure to reach the quality; a higher `--risk` allows one.",
    "min_tokens": "it has fewer tokens than `--min-tokens`.",
}
# Least bytes of input for a progress bar; for less it would only flicker.
_BAR_BYTES = 1_000_000


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (by default that of the process) and return the exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    words = sys.argv[1:] if argv is None else argv
    if sys.stderr is None:  # started with it closed, as by `2>&-`: nobody reads its messages
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    if words and words[0] in RECIPES:  # the recipe parses its arguments and shows its own warnings
        try:
            with needed(f"`tokforget {words[0]}`"):
                return run_recipe(words[0], words[1:])
        except (UserError, MissingPackage) as error:
            return _say_error(str(error), 2)
    args = make_parser().parse_args(words)
    try:
        with _one_line_warnings(), _ended_in_order():
            return COMMANDS[args.command](args)
    except (UserError, MissingPackage) as error:
        return _say_error(str(error), 2)
    except BrokenPipeError:
        # The reading process has closed the pipe (`| head`). Otherwise the interpreter would report an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        return _say_error(f"{error.filename or 'reading or writing'}: {error.strerror or error}.", 2)
    except OSError as error:
        return _say_error(f"{error.filename or 'writing'}: {error.strerror or error}.", 1)
    except KeyboardInterrupt:
        return _say_error("interrupted.", 130)
    except Exception:
        traceback.print_exc()
        return _say_error("this should not happen; please report it with the lines above and `tokforget env`.", 1)


def _say_error(message: str, code: int) -> int:
    sys.stderr.write(f"tokforget: error: {' '.join(message.split())}\n")
    return code


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print our own warnings in one line, and hide those that libraries address to programmers."""

    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(f"tokforget: warning: {' '.join(str(message).split())}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module="tokforget")
        warnings.showwarning = show
        yield


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM and a closed terminal end the command as Ctrl-C does, and unfinished files are removed."""

    def leave(number, frame):
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        # A signal that is ignored, for instance after `nohup`, stays ignored.
        before = {n: signal.signal(n, leave) for n in numbers if signal.getsignal(n) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- shared by the commands ---------------------------------------------------------------------------------------------
def _read_along(args: argparse.Namespace) -> list[str]:
    """Files that no result may overwrite beside the texts: those of the models, and a vocabulary."""
    names = [args.model, getattr(args, "base_model", None), getattr(args, "count_with", None)]
    files = []
    for path in (Path(name) for name in names if name):
        files += [str(one) for one in path.rglob("*") if one.is_file()] if path.is_dir() else [str(path)]
    return files


def _check_files(files: list[str]) -> None:
    """Check the files before a model is loaded."""
    if "" in files:
        raise UserError("A file's name is empty: name a file, or `-` for standard input.")
    if files.count(STDIN) > 1:
        raise UserError("Standard input, `-`, can be read only once.")
    for name in files:
        if name != STDIN and not Path(name).exists():
            raise UserError(f"{name}: no such file.")
        if Path(name).is_dir():
            raise UserError(f"{name} is a folder: name its files, for instance {name.rstrip('/')}/*.txt.")


# Arguments of the library that are options here, alone or with a value, and how those are written that have another name.
_OPTION = re.compile(
    "`(rate|target_tokens|threshold|quality|risk|unit|protect|min_tokens|min_message_tokens|question|roles|device|count_tokens|"
    "abstain_below|batch_size|gap|omit_records|on_impossible|mark_omissions)(?:=(True)|='([^'`]*)')?`"
)
_WRITTEN = {"count_tokens": "count_with"}


def _as_options(message: str) -> str:
    """A message of the library with the names of the command line."""

    def option(match: re.Match) -> str:
        name = _WRITTEN.get(match[1], match[1]).replace("_", "-")
        return f"`--{name} {match[3]}`" if match[3] else f"`--{name}`"

    return _OPTION.sub(option, message)


@contextmanager
def _users_mistake(place: str = "") -> Iterator[None]:
    """Turn errors of the library about the user's arguments into one line with the names of the command line."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        message = _as_options(str(error))
        raise UserError(f"{place}: {message}" if place else message) from error


def _load(args: argparse.Namespace, options: dict | None = None):
    """Load the compressor and check its options before any text is read."""
    with _users_mistake():
        from tokforget.compression.compressor import Compressor

        compressor = Compressor.from_pretrained(
            args.model, backend=args.backend, base_model=getattr(args, "base_model", None)
        )
        compressor.compress([], **(options or {}))
        if args.device and args.device != "cpu":
            if args.backend not in (None, "torch"):
                raise ValueError(
                    f"`--backend` {args.backend} runs on the CPU: leave out `--device`, or pass `--backend torch`."
                )
            compressor.to(args.device)
    return compressor


# -- compress ----------------------------------------------------------------------------------------------------------
@dataclass
class _Report:
    """Messages on standard error: rejected lines, and a summary at the end."""

    quiet: bool
    noun: str = "texts"
    texts: int = 0
    original_tokens: int = 0
    compressed_tokens: int = 0
    original_chars: int = 0
    chars: int = 0
    vocabulary: str = ""
    unreached: int = 0
    structured: str = ""
    whole: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def add(self, result, is_new: bool = True) -> None:
        self.count(result, result.vocabulary, is_new)
        self.original_chars += result.original_chars
        self.chars += len(result.text)

    def count(self, result, vocabulary: str, is_new: bool = True) -> None:
        """Count only tokens, for results that are not a single text."""
        self.texts += is_new
        self.original_tokens += result.original_tokens
        self.compressed_tokens += result.compressed_tokens
        self.vocabulary = vocabulary

    def tell(self, place: str, result) -> None:
        """
        Note the omissions of a text for the end: `12` is a line that is missing, `12~` one that is partly missing.
        """
        from tokforget.compression.heatmap import printable

        lines = result.diff().lines
        gone = [line for line in lines if line.state != "kept"]
        whole = sum(line.state == "gone" for line in gone)
        self.told.append(
            f"tokforget: {place}: of {len(lines):,} lines {whole:,} are left out and {len(gone) - whole:,} in part (~)\n"
        )
        width = len(str(len(lines)))
        for line in gone:
            said = " … ".join(part.strip() for part, kept in line.parts if not kept and part.strip())
            self.told.append(f"{line.number:>{width}}{'~' if line.state == 'part' else ' '} {printable(said)}\n")

    def warn(self, place: str, result) -> None:
        """Report why a text is above its budget."""
        if result.unreached:
            self.unreached += 1
            if self.unreached <= _NAMED:
                sys.stderr.write(f"tokforget: warning: {place}: {_as_options(result.unreached)}\n")

    def see_whole(self, place: str, reason: str | None) -> None:
        """Remember a text that is returned whole, for the summary."""
        if reason in _WHOLE:
            self.whole.append(f"{place} is returned whole: {_WHOLE[reason]}")

    def see_structure(self, place: str, kind: str | None) -> None:
        """Remember the first text that is not cut by words, for the summary."""
        name = _STRUCTURED.get(kind)
        if name is not None and not self.structured:
            how = "it stays valid" if kind == "json" else "its lines are kept or dropped whole"
            self.structured = f"tokforget: {place} is {name}: {how}. `--unit word` cuts it by words.\n"

    def reject(self, place: str, reason: str) -> None:
        self.rejected.append(place)
        if len(self.rejected) <= _NAMED:
            sys.stderr.write(f"tokforget: {place}: {' '.join(reason.split())}\n")

    def end(self, line_is_open: bool = False) -> int:
        """Print the summary; returns the exit code."""
        if self.unreached > _NAMED:
            sys.stderr.write(f"tokforget: warning: {self.unreached:,} texts are above their budgets.\n")
        if self.told:
            sys.stderr.write("\n" * line_is_open + "".join(self.told))
            line_is_open = False
        if not self.quiet:
            sys.stderr.write("\n" * line_is_open)
            before, after = self.original_tokens, self.compressed_tokens
            rate = f" (rate {after / before:.3f}, {before / after:.1f}x)" if after else ""
            texts = f"{self.texts:,} {self.noun}, " if self.texts != 1 else ""
            of = f" of {self.vocabulary}" if self.vocabulary else ""
            share = f", {self.chars / self.original_chars:.0%} of the characters" if self.original_chars else ""
            sys.stderr.write(f"tokforget: {texts}{before:,} -> {after:,} tokens{of}{rate}{share}\n{self.structured}")
            if self.whole:
                others = len(self.whole) - 1
                more = f" So are {others:,} more." if others > 1 else " So is one more." * others
                sys.stderr.write(f"tokforget: {self.whole[0]}{more}\n")
        if not self.rejected:
            return 0
        left = len(self.rejected) - _NAMED
        more = f", {left:,} of them not named here, the last at {self.rejected[-1]}" if left > 0 else ""
        lines = f"{len(self.rejected):,} lines" if len(self.rejected) > 1 else "one line"
        return _say_error(f"{lines} could not be used and left out{more}.", 2)


def _compress(args: argparse.Namespace) -> int:
    options = compress_options(args)
    check_options(args)
    if args.messages:
        return _compress_messages(args, message_options(args, options["protect"]))
    files = args.files or [STDIN]
    if args.stream:
        _check_stream(args, options)
    if not args.column:
        for name in files:
            if name.lower().endswith((".jsonl", ".ndjson")):
                warnings.warn(
                    f"{name} is compressed as one text; --column NAME compresses a column of its rows.", stacklevel=1
                )
    outputs = Outputs(
        args.output, files, suffix=".json" if args.json and not args.column else "", read_along=_read_along(args)
    )
    _check_files(files)
    if args.stream:
        options = {
            name: options[name] for name in ("rate", "threshold", "unit", "protect", "on_impossible", "question")
        }
    for option in ("column", "question_column", "output_column"):
        if getattr(args, option) == "":
            raise UserError(f"`--{option.replace('_', '-')}` got an empty name: name a column.")
    if args.question_column and (not args.column or args.question):
        raise UserError("`--question-column` is for the rows of --column, and takes the place of --question.")
    if args.output_column is not None:
        _check_output_column(args)
    compressor = _load(args, options)
    if args.question_column and not compressor.takes_question:
        raise UserError("`--question-column`: this model was trained without questions and cannot use one.")
    report = _Report(args.quiet)
    one_call = not args.stream and (args.budget == "corpus" or (len(files) == 1 and not args.column))
    with outputs.open_all() as write, _progress(files, args.quiet or outputs.on_terminal, one_call) as advance:
        if args.stream:
            streams = _compress_streams(compressor, files, options, advance)
            for record, result in streams:
                report.add(result, is_new=result.start == 0)
                write(record.source, _rendered(args, record, result))
        else:
            records = (
                read_rows(files, args.column, report.reject, args.question_column, _new_columns(args))
                if args.column
                else read_texts(files)
            )
            for group in _groups(records, args.budget == "corpus"):
                for record, result in _compress_group(compressor, group, options, report):
                    report.add(result)
                    report.see_whole(record.place, result.returned_whole)
                    if args.unit is None:
                        report.see_structure(record.place, result.kind)
                    if args.report and not args.json:
                        report.tell(record.place, result)
                    write(record.source, _rendered(args, record, result))
                advance(sum(record.size for record in group))
    return report.end(outputs.line_is_open)


def _compress_messages(args: argparse.Namespace, options: dict) -> int:
    """Compress chats; the summary gives the tokens before and after."""
    files = args.files or [STDIN]
    outputs = Outputs(args.output, files, read_along=_read_along(args))
    _check_files(files)
    compressor = _load(args)
    with _users_mistake():
        compressor.compress_messages([], **options)
    report = _Report(args.quiet, noun="chats")
    with outputs.open_all() as write:
        for chat in read_conversations(files, report.reject):
            try:
                result = compressor.compress_messages(chat.messages, system=chat.system, **options)
            except (ValueError, TypeError) as error:
                if chat.record.number is None:
                    raise UserError(f"{chat.record.place}: {error}") from error
                report.reject(chat.record.place, str(error))
                continue
            report.count(result, result.vocabulary)
            data = json_line(result.to_dict()) if args.json else chat.rendered(result.messages)
            write(chat.record.source, data)
    return report.end()


def _check_stream(args: argparse.Namespace, options: dict) -> None:
    unfit = [
        name
        for name in ("target_tokens", "quality", "risk", "prefix_stable", "nested", "tags", "min_tokens")
        if options[name]
    ]
    unfit += [name for name in ("keep_first", "keep_last", "column", "count_with") if getattr(args, name)]
    unfit += [name for name in ("mark_omissions", "omit_records", "report") if getattr(args, name)]
    unfit += ["budget"] if args.budget == "corpus" else []
    if unfit:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unfit)
        raise UserError(f"`--stream` decides block after block and does not go with {names}. It takes --rate or --threshold, --unit "
                        "and --protect; JSONL is read row by row without it.")  # fmt: skip


def _compress_streams(compressor, files: list[str], options: dict, advance) -> Iterator[tuple[Record, object]]:
    for source in files:
        with _users_mistake(source):
            results = compressor.compress_stream(read_parts(source, advance), **options)
            found = next(results, None) or compressor.compress("")  # an empty file has no block
            for result in chain([found], results):
                yield Record(source, "", 0), result


def _groups(records: Iterator[Record], all_at_once: bool) -> Iterator[list[Record]]:
    """Group the records that are compressed in one call."""
    group, size = [], 0
    for record in records:
        group.append(record)
        size += record.size
        if not all_at_once and (len(group) >= _GROUP_TEXTS or size >= _GROUP_BYTES):
            yield group
            group, size = [], 0
    if group:
        yield group


def _compress_group(compressor, group: list[Record], options: dict, report: _Report) -> list[tuple[Record, object]]:
    """Each record with its result. If a text's budget is impossible, a file is an error and a row is rejected."""
    try:
        with _without_places():
            results = compressor.compress([record.text for record in group], **options | _told(group))
        for record, result in zip(group, results):
            report.warn(record.place, result)
        return list(zip(group, results))
    except ValueError as error:
        if options["budget"] == "corpus" or (len(group) == 1 and group[0].line is None):
            raise UserError(f"{group[0].place if len(group) == 1 else 'all texts'}: {error}") from error
    done = []
    for record in group:
        try:
            with _without_places():
                done.append((record, compressor.compress(record.text, **options | _told([record]))))
            report.warn(record.place, done[-1][1])
        except ValueError as error:
            if record.line is None:
                raise UserError(f"{record.place}: {error}") from error
            report.reject(record.place, str(error))
    return done


@contextmanager
def _without_places() -> Iterator[None]:
    """Hide the library's warnings about texts above their budgets; the report gives them with the text's place."""
    from tokforget.compression.compressor import OverBudgetWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OverBudgetWarning)
        yield


def _told(group: list[Record]) -> dict:
    """The argument `question`, for rows with their own questions."""
    questions = [record.question for record in group]
    return {"question": questions} if any(question is not None for question in questions) else {}


def _check_output_column(args: argparse.Namespace) -> None:
    if not args.column:
        raise UserError("`--output-column` is for the rows of --column: name the column of the texts, too.")
    others = _added_columns(args)[1:]
    if args.output_column in others:
        raise UserError(
            f"`--output-column` {args.output_column} is written beside the text, as are {', '.join(others)}: choose another name."
        )


def _text_column(args: argparse.Namespace) -> str:
    from tokforget.compression.results import COLUMNS

    return COLUMNS[0] if args.output_column is None else args.output_column


def _added_columns(args: argparse.Namespace) -> tuple[str, ...]:
    """The columns that a row gets, the compressed text first."""
    from tokforget.compression.results import COLUMNS

    return (_text_column(args), *COLUMNS[1:], *(["compression"] if args.json else []))


def _new_columns(args: argparse.Namespace) -> tuple[str, ...]:
    """Those of the added columns that a row must not have yet: all except a replaced one."""
    return tuple(name for name in _added_columns(args) if name != args.column or args.output_column is None)


def _rendered(args: argparse.Namespace, record: Record, result) -> bytes:
    if args.column:
        from tokforget.compression.results import columns

        full = result.to_dict() | {"model": args.model} | _omitted(args, result) if args.json else {}
        added = columns(result, _text_column(args)) | ({"compression": full} if args.json else {})
        return with_columns(record, added, args.column if args.output_column == args.column else None)
    if args.json:
        named = {"source": record.source, "model": args.model, "compressed_tokens": result.compressed_tokens}
        return json_line(named | result.to_dict() | _omitted(args, result))
    return encode(result.text)


def _omitted(args: argparse.Namespace, result) -> dict:
    return {"omitted": [one.to_dict() for one in result.omitted]} if args.report else {}


@contextmanager
def _progress(files: list[str], hidden: bool, one_call: bool):
    """
    Show a progress bar over the bytes of the input, on a terminal and for longer inputs. If everything is one call,
    only a spinner and the time are shown. Yields the function that advances the bar.
    """
    sizes = [Path(name).stat().st_size if Path(name).is_file() else None for name in files if name != STDIN]
    total = sum(sizes) if len(sizes) == len(files) and None not in sizes else None
    if hidden or not sys.stderr.isatty() or (total is not None and total < _BAR_BYTES):
        yield lambda size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    known = () if one_call else (DownloadColumn(), TimeRemainingColumn())
    shown = (TextColumn("compressing"), BarColumn(), TimeElapsedColumn(), *known)
    with Progress(*shown, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None if one_call else total)
        yield lambda size: progress.advance(task, size)


# -- restore -----------------------------------------------------------------------------------------------------------
def _restore(args: argparse.Namespace) -> int:
    from tokforget.cli.saved_results import read_saved

    if args.batch_size < 1:
        raise UserError(f"`--batch-size` must be at least 1, got {args.batch_size}.")
    files = args.files or [STDIN]
    _check_files(files)
    outputs = Outputs(args.output, files, suffix=".txt" if not args.json else "", read_along=_read_along(args))
    with needed("`tokforget restore`"):  # a missing package is reported before errors in the files
        import tokforget.compression.restoration  # noqa: F401
    compressor = _load(args)
    report = _Report(quiet=True)
    saved = list(read_saved(files, compressor, report.reject))
    with _users_mistake(), _quiet_host():
        restored = compressor.restore([result for _, result in saved], abstain_below=args.abstain_below, gap=args.gap,
                                      batch_size=args.batch_size, progress=False if args.quiet else None)  # fmt: skip
    with outputs.open_all() as write:
        for (record, result), text in zip(saved, restored):
            if not args.quiet:
                sys.stderr.write(f"tokforget: {record.place}: {text.label}\n")
            line = {} if record.number is None else {"line": record.number}
            named = {"source": record.source} | line | text.to_dict()
            end = b"" if record.line is None else b"\n"  # rows need a line break; the blocks of a stream are joined
            begins = result.start == 0  # a later block of a stream continues the text
            write(record.source, json_line(named) if args.json else encode(text.text) + end, begins)
    return report.end()


@contextmanager
def _quiet_host() -> Iterator[None]:
    """Hide Transformers' progress bar and messages while a model is loaded; restoring has its own bar."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


# -- inspect, diff and env ---------------------------------------------------------------------------------------------------
def _inspect(args: argparse.Namespace) -> int:
    return _show(args, lambda compressor, text, options: compressor.explain(text, **options))


def _diff(args: argparse.Namespace) -> int:
    return _show(args, lambda compressor, text, options: compressor.compress(text, **options).diff())


def _show(args: argparse.Namespace, make: Callable) -> int:
    """Show a result on the terminal, or write it as an HTML page."""
    options = compress_options(args)
    _check_files([args.files])
    if args.html is not None:
        check_output_file(args.html, [args.files, *_read_along(args)], "--html")
    record = next(read_texts([args.files]))
    compressor = _load(args, options)
    with _users_mistake(record.place):
        shown = make(compressor, record.text, options)
    if args.html:
        with open_output(args.html) as file:
            file.write(shown.to_html().encode())
    else:
        from rich.console import Console

        console = Console()
        with console.capture() as screen:
            console.print(shown)
        standard_output().write(screen.get().encode())
        sys.stdout.buffer.flush()
    report = _Report(args.quiet)
    report.add(shown.result)
    return report.end()


def _env(args: argparse.Namespace) -> int:
    from tokforget.cli.environment import describe

    with needed("`--torch`"):
        facts = describe(ask_torch=args.torch)
    if args.json:
        standard_output().write(json_line(facts))
    else:
        width = max(map(len, facts)) + 1
        standard_output().write("".join(f"{name + ':':{width}} {value}\n" for name, value in facts.items()).encode())
    sys.stdout.buffer.flush()
    return 0


COMMANDS = {
    "compress": _compress, "restore": _restore, "inspect": _inspect, "diff": _diff, "serve": serve, "export": export.export,
    "env": _env,
}  # fmt: skip
