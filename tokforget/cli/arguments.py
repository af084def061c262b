"""The arguments of the shell command, and their help."""

import argparse
import difflib
import sys

from tokforget import __version__
from tokforget.cli import export, serve
from tokforget.cli.files import STDIN, UserError
from tokforget.cli.recipes import RECIPES


_COMPRESS_HELP = """
Reads text files or standard input and writes to standard output. Several files are written one after another, or with
`--output folder/` to one file each. Kept text is reproduced byte for byte, including line endings and bytes that are not UTF-8.

With --column the input is JSONL: every row keeps its columns unchanged and gets `compressed`, `original_tokens`,
`compressed_tokens` and `compression_rate` (with --json also `compression`, for restore). --output-column names another column
for the compressed text. It must not exist, except that the column of --column may be replaced. A line that cannot be used is
left out and reported with its number on standard error; the other lines are written, and the exit code is 2.

With --messages the input is a chat: a JSON list of messages of OpenAI or Anthropic, a request that contains one, or JSON Lines of
either; the output has the same form. The system message, the last user message and tool calls stay; tool results and older turns
are shortened.

  tokforget compress notes.txt --rate 0.3
  cat notes.txt | tokforget compress --target-tokens 500 --protect numbers --protect '/Figure \\d+/'
  tokforget compress rows.jsonl --column text --output short.jsonl
  tokforget compress rows.jsonl --column text --output-column short_text --output short.jsonl
  tokforget compress --messages chat.json --stable --rate 0.5
  tokforget compress notes.txt --json --output notes.json && tokforget restore notes.json
"""
_RESTORE_HELP = """
Reads the output of `tokforget compress --json`. Restored tokens are predictions; a line on standard error says so.

  tokforget restore notes.json --abstain-below 0.3
"""
_INSPECT_HELP = """
Shows the heat map of keep scores, in colours on a terminal. For a pager: FORCE_COLOR=1 tokforget inspect FILE | less -R
"""
_DIFF_HELP = """
Dropped text is struck through on a terminal with colours, and in brackets elsewhere.

  tokforget diff notes.txt --rate 0.3
  tokforget diff notes.txt --rate 0.3 --html diff.html
"""
# Copied from [`tokforget.compression.compressor`], which a help page should not import.
BACKENDS = ("numpy", "torch", "onnx", "onnx-int8")
_RECIPES_HELP = """
The commands from `prepare` on are recipes. Each takes `--config` with the name of a shipped run file or a path, and any of its keys:

  tokforget train --config quick_test --max_steps 50
  tokforget train --config full_training --accelerate_config multi_gpu --num_processes 4
  tokforget evaluate --config evaluation_quick --model_path outputs/quick_test

Without --accelerate_config (cpu, single_gpu, multi_gpu, ..., or a path) a recipe runs in one process, on the GPU if there is one.
"""


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        sys.stderr.write(f"{self.prog}: error: {message} (`{self.prog} --help` lists what exists)\n")
        sys.exit(2)

    def parse_known_args(self, args=None, namespace=None):
        """
        As in argparse, but a subcommand's parser reports unknown arguments itself, because it can suggest the right
        one.
        """
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
                          help="omissions: report on standard error which lines are left out; with --json, as `omitted` in the "
                               "output")  # fmt: skip
    compress.add_argument(
        "--stream", action="store_true", help="decide block after block, for texts of any length in constant memory"
    )

    restore = add("restore", "Fill the gaps of compressed texts, as a guess.", _RESTORE_HELP)
    _add_input(restore, "files from `compress --json`, or `-`, the default, for standard input", several=True)
    restore.add_argument("--abstain-below", type=float, metavar="P",
                         help="leave a visible gap where the confidence is below this, in (0, 1]")  # fmt: skip
    restore.add_argument("--base-model", metavar="NAME",
                         help="folder or id of the base model (default: the id that the model was trained over)")  # fmt: skip
    restore.add_argument("--gap", default="[…]", metavar="TEXT", help="text shown for a gap (default: %(default)s)")
    restore.add_argument("--batch-size", type=int, default=16, metavar="N", help="windows per batch (default: 16)")
    restore.add_argument("--json", action="store_true", help="one JSON object per text, with confidences and spans")
    _add_output(restore)

    inspect = add("inspect", "Show what is kept of a text, and each token's score.", _INSPECT_HELP)
    _add_input(inspect, "a text file, or `-`, the default, for standard input", several=False)
    _add_budget(inspect)
    diff = add("diff", "Show a text next to its compressed version, line by line.", _DIFF_HELP)
    _add_input(diff, "a text file, or `-`, the default, for standard input", several=False)
    _add_budget(diff)
    for command in (inspect, diff):
        command.add_argument("--html", metavar="OUT.html", help="write an HTML page instead of showing it here")
        command.add_argument("--quiet", action="store_true", help="no summary on standard error")

    serve.add_arguments(add("serve", "Compress over HTTP, with a page that shows the kept text.", serve.HELP))

    export.add_arguments(add("export", "Write a model's policy for another runtime: ONNX Runtime.", export.HELP))

    env = add("env", "Print versions and devices, for a bug report.")
    env.add_argument("--json", action="store_true", help="as one JSON object")
    env.add_argument("--torch", action="store_true", help="import torch and show the devices it finds")

    for name, recipe in RECIPES.items():  # only listed here; the recipe parses its own arguments
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
                         help="library that computes the policy (default: torch for another device than the CPU, else NumPy); onnx uses "
                              "the graph that `tokforget export` wrote to the model's folder")  # fmt: skip


def _add_messages(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("messages of a chat")
    group.add_argument("--messages", action="store_true", help="read and write messages: JSON, or JSON Lines of chats")
    group.add_argument("--stable", action="store_true",
                       help="decide each message on its own, so that a provider's prompt cache stays valid while the chat grows")  # fmt: skip
    group.add_argument(
        "--no-question", action="store_true", help="do not take the question from the last user message"
    )
    group.add_argument("--roles", metavar="LIST",
                       help="roles whose texts are shortened, out of tool,assistant,user (default: all three; with --stable: tool)")  # fmt: skip
    group.add_argument(
        "--min-message-tokens", type=int, metavar="N", help="leave shorter messages whole (default: 32)"
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", "-o", metavar="PATH", help="a file, or a folder for one file per input")
    command.add_argument("--quiet", "-q", action="store_true", help="no progress bar and no summary on standard error")


def _add_budget(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("budget and kept text")
    budget = group.add_mutually_exclusive_group()
    budget.add_argument("--rate", type=float, metavar="R", help="fraction of tokens kept, in (0, 1] (default: 0.5)")
    budget.add_argument("--target-tokens", type=int, metavar="N", help="most tokens kept")
    budget.add_argument("--threshold", type=float, metavar="S", help="keep what scores at least this, in (0, 1)")
    budget.add_argument(
        "--quality",
        type=float,
        metavar="Q",
        help="the shortest result for which a reader retains this share, by the model's calibration",
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
        help="tokenizer that counts: a tokenizer.json, a folder with one, a Hub id, or a name of tiktoken such as o200k_base or "
        "gpt-4o (default: the model's own)",
    )
    group.add_argument(
        "--unit",
        choices=("token", "word", "auto"),
        help="unit that is kept or dropped as a whole; auto: words, but JSON stays JSON, and code and logs are cut by lines (default: "
        "auto if the model was trained by words; word with --quality, --prefix-stable and --tags)",
    )
    group.add_argument(
        "--question", metavar="TEXT", help="question about the text; the words that answer it are kept first"
    )
    group.add_argument("--protect", action="append", default=[], metavar="WHAT",
                       help="text that must stay, repeatable: numbers, urls, emails, paths, code_fences, inline_code, identifiers, "
                            "negations, sentence_ends, line_breaks, roles, or /regular expression/; by words, negations, ends of "
                            "sentences and line breaks are always kept as far as they fit, unless this is none")  # fmt: skip
    group.add_argument("--keep-first", type=int, metavar="N", help="keep the first N tokens")
    group.add_argument("--keep-last", type=int, metavar="N", help="keep the last N tokens")
    group.add_argument(
        "--prefix-stable", action="store_true", help="appending to a text does not change the earlier result"
    )
    group.add_argument(
        "--nested", action="store_true", help="a smaller budget keeps a subset of the tokens of a larger one"
    )
    group.add_argument("--budget", choices=("per_text", "corpus"), default="per_text",
                       help="corpus: one budget over all texts (default: per_text)")  # fmt: skip
    group.add_argument(
        "--tags", action="store_true", help="read <keep>, <keep rate=0.8>, <drop>, <llmlingua ...> segments"
    )
    group.add_argument("--mark-omissions", action="store_true",
                       help="mark missing lines in the output, such as [… lines 12-18], within the budget")  # fmt: skip
    group.add_argument("--omit-records", action="store_true",
                       help="drop whole records of JSON, with a string in their place such as \"… 12 left out\"")  # fmt: skip
    group.add_argument("--min-tokens", type=int, metavar="N",
                       help="leave shorter texts whole (default: 0; with --messages --rate a chat of less than 500)")  # fmt: skip
    group.add_argument("--on-impossible", choices=("raise", "warn"),
                       help="if protected text or JSON exceeds the budget: raise an error, or warn and return the smallest possible "
                            "result (default: warn of JSON, code and the like, else raise)")  # fmt: skip


def compress_options(args: argparse.Namespace) -> dict:
    """The arguments of `Compressor.compress`."""
    names = ("rate", "target_tokens", "threshold", "quality", "risk", "unit", "prefix_stable", "nested", "budget", "tags", "min_tokens",
             "on_impossible", "question", "mark_omissions", "omit_records")  # fmt: skip
    protect = [f"re:{item[1:-1]}" if len(item) > 2 and item[0] == item[-1] == "/" else item for item in args.protect]
    for name, count in (("first", args.keep_first), ("last", args.keep_last)):
        if count is not None and count < 0:
            raise UserError(f"`--keep-{name}` takes a number of tokens of at least 0, got {count}.")
        protect += [f"{name}:{count}"] if count else []
    given = {name: getattr(args, name) for name in names}
    given |= {"protect": protect or "readable", "count_tokens": args.count_with}
    return given | {"min_tokens": args.min_tokens or 0}
