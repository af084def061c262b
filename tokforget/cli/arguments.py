"""The arguments of the shell command, and what `--help` says of them."""

import argparse
import difflib
import sys

from tokforget import __version__
from tokforget.cli import export, serve
from tokforget.cli.files import STDIN, UserError
from tokforget.cli.recipes import RECIPES


_COMPRESS_HELP = """
Text files or standard input to standard output. Several files follow each other, or with `--output folder/` become a file
each. Text that is not dropped is reproduced byte for byte, line endings and bytes that are no UTF-8 included.

With --column the input is JSONL: every row keeps its columns letter for letter and gets `compressed`, `original_tokens`,
`compressed_tokens` and `compression_rate` (with --json also `compression`, for restore). --output-column names another column
for the compressed text; one that a row has already is refused, but for that of --column, whose text is then replaced. A line
that cannot be used is left out and named with its number on standard error; the others are written, and the exit code is 2.

With --messages the input is a chat: a JSON list of messages of OpenAI or Anthropic, a request that holds one, or JSON Lines of
either, and so is the output. System, last user message and calls of tools stay; results of tools and older turns are shortened.

  tokforget compress notes.txt --rate 0.3
  cat notes.txt | tokforget compress --target-tokens 500 --protect numbers --protect '/Figure \\d+/'
  tokforget compress rows.jsonl --column text --output short.jsonl
  tokforget compress rows.jsonl --column text --output-column short_text --output short.jsonl
  tokforget compress --messages chat.json --stable --rate 0.5
  tokforget compress notes.txt --json --output notes.json && tokforget restore notes.json
"""
_RESTORE_HELP = """
Reads what `tokforget compress --json` wrote. The result is a guess where tokens were dropped; standard error says so.

  tokforget restore notes.json --abstain-below 0.3
"""
_INSPECT_HELP = """
The heat map of keep scores. Colours where there is a terminal; for a pager: FORCE_COLOR=1 tokforget inspect FILE | less -R
"""
_DIFF_HELP = """
What is left out is struck where there is a terminal with colours, and stands in brackets elsewhere.

  tokforget diff notes.txt --rate 0.3
  tokforget diff notes.txt --rate 0.3 --html diff.html
"""
# Those of [`tokforget.compression.compressor`], which is not imported for a help page.
BACKENDS = ("numpy", "torch", "onnx", "onnx-int8")
_RECIPES_HELP = """
From `prepare` on the commands are recipes. Each takes `--config` with a shipped run file's name or a path, and any key of it:

  tokforget train --config quick_test --max_steps 50
  tokforget train --config full_training --accelerate_config multi_gpu --num_processes 4
  tokforget evaluate --config evaluation_quick --model_path outputs/quick_test

Without --accelerate_config (cpu, single_gpu, multi_gpu, ..., or a path) a recipe is one process, on the GPU if there is one.
"""


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        sys.stderr.write(f"{self.prog}: error: {message} (`{self.prog} --help` lists what exists)\n")
        sys.exit(2)

    def parse_known_args(self, args=None, namespace=None):
        """As the host's, but that a command's parser refuses what it does not know itself: it knows what is meant, and its help."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [*self._option_string_actions, *self._commands()]
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1, 0.7)
            self.error(f"unrecognized arguments: {' '.join(unknown)}.{f' Did you mean {near[0]}?' if near else ''}")
        return namespace, unknown

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), list(map(str, action.choices)), 1, 0.6)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r} (choose from {', '.join(map(str, action.choices))}).{hint}"
            )

    def _commands(self) -> list[str]:
        return [name for action in self._actions if isinstance(action.choices, dict) for name in action.choices]


def make_parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="tokforget", description="Shorten prompts to a budget, and restore what was dropped.",
                            epilog=_RECIPES_HELP, allow_abbrev=False,
                            formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--version", action="version", version=f"tokforget {__version__}")
    names = " | ".join(("compress", "restore", "inspect", "diff", "serve", "export", "env", *RECIPES))
    commands = parser.add_subparsers(metavar=names, dest="command", required=True)

    def add(name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary}\n{details}", allow_abbrev=False,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        return command

    compress = add("compress", "Shorten texts to a budget.", _COMPRESS_HELP)
    _add_input(compress, "text files, or `-`, the default, for standard input", several=True)
    _add_budget(compress)
    _add_output(compress)
    compress.add_argument("--json", action="store_true",
                          help="one JSON object per text and line, with everything that `restore` needs")  # fmt: skip
    compress.add_argument("--column", metavar="NAME", help="read JSONL and compress this column of its rows")
    compress.add_argument("--question-column", metavar="NAME", help="with --column: the question of each row")
    compress.add_argument("--output-column", metavar="NAME",
                          help="with --column: where the compressed text goes (default: compressed); the name of --column "
                               "itself replaces the original")  # fmt: skip
    _add_messages(compress)
    compress.add_argument("--report", choices=("omissions",),
                          help="omissions: say on standard error what is left out, by lines; with --json, as `omitted` in the "
                               "output")  # fmt: skip
    compress.add_argument("--stream", action="store_true", help="decide block after block: any length in flat memory")

    restore = add("restore", "Fill the gaps of compressed texts, as a guess.", _RESTORE_HELP)
    _add_input(restore, "files from `compress --json`, or `-`, the default, for standard input", several=True)
    restore.add_argument("--abstain-below", type=float, metavar="P",
                         help="leave a visible gap where the confidence is below this, in (0, 1]")  # fmt: skip
    restore.add_argument("--base-model", metavar="NAME",
                         help="folder or id of the base model (default: the id that the model was trained over)")  # fmt: skip
    restore.add_argument("--gap", default="[…]", metavar="TEXT", help="what stands for a gap (default: %(default)s)")
    restore.add_argument("--batch-size", type=int, default=16, metavar="N", help="windows at once (default: 16)")
    restore.add_argument("--json", action="store_true", help="one JSON object per text, with confidences and spans")
    _add_output(restore)

    inspect = add("inspect", "Show what is kept of a text, and each token's score.", _INSPECT_HELP)
    _add_input(inspect, "a text file, or `-`, the default, for standard input", several=False)
    _add_budget(inspect)
    diff = add("diff", "Show a text beside what is left of it, line by line.", _DIFF_HELP)
    _add_input(diff, "a text file, or `-`, the default, for standard input", several=False)
    _add_budget(diff)
    for command in (inspect, diff):
        command.add_argument("--html", metavar="OUT.html", help="write a page instead of showing it here")
        command.add_argument("--quiet", action="store_true", help="no summary on standard error")

    serve.add_arguments(add("serve", "Compress over HTTP, with a page that shows what is kept.", serve.HELP))

    export.add_arguments(add("export", "Write a model's policy for another runtime: ONNX Runtime.", export.HELP))

    env = add("env", "Print versions and devices, for a bug report.")
    env.add_argument("--json", action="store_true", help="as one JSON object")
    env.add_argument("--torch", action="store_true", help="import torch and say what it sees")

    for name, recipe in RECIPES.items():  # listed here; their words are read by the recipe
        commands.add_parser(name, help=recipe.summary, add_help=False)
    return parser


def _add_input(command: argparse.ArgumentParser, what: str, several: bool) -> None:
    command.add_argument("files", nargs="*" if several else "?", default=[STDIN] if several else STDIN, metavar="FILE",
                         help=what)  # fmt: skip
    command.add_argument(
        "--model", metavar="FOLDER", help="a trained model's folder or Hub id (default: the packaged model)"
    )
    command.add_argument("--device", metavar="cpu|cuda", help="where the policy runs (default: cpu)")
    command.add_argument("--backend", choices=BACKENDS,
                         help="what the policy is computed with (default: torch for another device than the CPU, else NumPy); onnx: the "
                              "graph that `tokforget export` wrote into the model's folder")  # fmt: skip


def _add_messages(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("messages of a chat")
    group.add_argument("--messages", action="store_true", help="read and write messages: JSON, or JSON Lines of chats")
    group.add_argument("--stable", action="store_true",
                       help="decide each message alone, so that a provider's prompt cache holds while the chat grows")  # fmt: skip
    group.add_argument(
        "--no-question", action="store_true", help="do not take the question from the last user message"
    )
    group.add_argument("--roles", metavar="LIST",
                       help="whose texts are shortened, out of tool,assistant,user (default: all three; with --stable: tool)")  # fmt: skip
    group.add_argument(
        "--min-message-tokens", type=int, metavar="N", help="leave shorter messages whole (default: 32)"
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", "-o", metavar="PATH", help="a file, or a folder for one file per input")
    command.add_argument("--quiet", "-q", action="store_true", help="no progress bar and no summary on standard error")


def _add_budget(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what is kept")
    budget = group.add_mutually_exclusive_group()
    budget.add_argument("--rate", type=float, metavar="R", help="fraction of tokens kept, in (0, 1] (default: 0.5)")
    budget.add_argument("--target-tokens", type=int, metavar="N", help="tokens kept, at most")
    budget.add_argument("--threshold", type=float, metavar="S", help="keep what scores at least this, in (0, 1)")
    budget.add_argument(
        "--quality",
        type=float,
        metavar="Q",
        help="as little as the model's calibration allows for a reader to retain this share",
    )
    group.add_argument(
        "--risk",
        type=float,
        metavar="P",
        help="share of texts that may fall below --quality, in (0, 1) (default: 0.1)",
    )
    group.add_argument(
        "--count-with",
        metavar="VOCABULARY",
        help="whose tokens are counted: a tokenizer.json, a folder with one, a Hub id, or a name of tiktoken such as o200k_base or "
        "gpt-4o (default: the model's own)",
    )
    group.add_argument(
        "--unit",
        choices=("token", "word", "auto"),
        help="what is dropped whole; auto: words, but JSON stays JSON, and code and logs go by lines (default: what the model was "
        "trained by)",
    )
    group.add_argument(
        "--question", metavar="TEXT", help="what will be asked about the text: what answers it is kept first"
    )
    group.add_argument("--protect", action="append", default=[], metavar="WHAT",
                       help="what must stay, repeatable: numbers, urls, emails, paths, code_fences, inline_code, identifiers, "
                            "negations, sentence_ends, line_breaks, roles, or /regular expression/; by words negations, ends of "
                            "sentences and line breaks are kept as far as they fit in any case, unless it is none")  # fmt: skip
    group.add_argument("--keep-first", type=int, metavar="N", help="keep the first N tokens")
    group.add_argument("--keep-last", type=int, metavar="N", help="keep the last N tokens")
    group.add_argument("--prefix-stable", action="store_true", help="appending to a text changes nothing before")
    group.add_argument("--nested", action="store_true", help="a smaller budget keeps a subset of a larger one's")
    group.add_argument("--budget", choices=("per_text", "corpus"), default="per_text",
                       help="corpus: one budget over all texts (default: per_text)")  # fmt: skip
    group.add_argument(
        "--tags", action="store_true", help="read <keep>, <keep rate=0.8>, <drop>, <llmlingua ...> segments"
    )
    group.add_argument("--mark-omissions", action="store_true",
                       help="write into the output which lines are gone, such as [… lines 12-18], within the budget")  # fmt: skip
    group.add_argument("--min-tokens", type=int, metavar="N",
                       help="leave shorter texts whole (default: 0; with --messages --rate a chat of less than 500)")  # fmt: skip
    group.add_argument("--on-impossible", choices=("raise", "warn"),
                       help="where what is protected, or JSON, exceeds the budget: stop, or warn and return the smallest that is "
                            "possible (default: warn with --unit auto, else raise)")  # fmt: skip


def compress_options(args: argparse.Namespace) -> dict:
    """The arguments of `Compressor.compress`."""
    names = ("rate", "target_tokens", "threshold", "quality", "risk", "unit", "prefix_stable", "nested", "budget", "tags", "min_tokens",
             "on_impossible", "question", "mark_omissions")  # fmt: skip
    protect = [f"re:{item[1:-1]}" if len(item) > 2 and item[0] == item[-1] == "/" else item for item in args.protect]
    for name, count in (("first", args.keep_first), ("last", args.keep_last)):
        if count is not None and count < 0:
            raise UserError(f"`--keep-{name}` takes a number of tokens of at least 0, got {count}.")
        protect += [f"{name}:{count}"] if count else []
    given = {name: getattr(args, name) for name in names}
    given |= {"protect": protect or "readable", "count_tokens": args.count_with}
    return given | {"min_tokens": args.min_tokens or 0}
