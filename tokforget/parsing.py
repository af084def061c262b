"""The parser of all recipes: from YAML and the command line to dataclasses, with errors of one line."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from tokforget.recipe_keys import ALIASES, unknown_key
from tokforget.shipped import run_file


DEVICES = {"cpu": "true", "cuda": "false", "gpu": "false"}


def check_at_least(arguments, name: str, least: int) -> None:
    if getattr(arguments, name) < least:
        raise ValueError(f"`{name}` must be at least {least}, got {getattr(arguments, name)}.")


class _OnceLoader(yaml.SafeLoader):
    """As `yaml.safe_load`, which takes the last of two values of one key without a word."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the run file has the key `{twice}` twice; leave out one of them.")
        return super().construct_mapping(node, deep)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each key, and does not wrap the description, because it holds a command."""


class _OneLineParser(HfArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {as_written(' '.join(message.split()))}\n")


def parse_arguments(
    dataclass_types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple:
    """
    Arguments of a recipe. The command line overrides `--config file.yaml`, which overrides the defaults.

    YAML values are converted as words of the command line are, so that a wrong type is an error in both. An unknown
    key, a wrong type or a forbidden combination prints one line and exits with code 2.

    Returns:
        `tuple`: One instance of each dataclass.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _OneLineParser(
        dataclass_types,
        description=description,
        allow_abbrev=False,
        usage="%(prog)s [--config FILE.yaml] [--key value ...]",
        formatter_class=_HelpFormatter,
    )
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="Run file: a path, or a shipped name such as `quick_test`; any of the keys below.",
    )
    if "--use_cpu" in parser._option_string_actions:
        parser.add_argument("--device", metavar="cpu|cuda", help="The same as `use_cpu`.")
    for alias, name in ALIASES.items():
        if f"--{name}" in parser._option_string_actions:
            parser.add_argument(f"--{alias}", help=argparse.SUPPRESS)
    has_host_keys = _group_by_dataclass(parser, dataclass_types, with_host="--help-all" in argv)
    if has_host_keys:
        parser.add_argument(
            "--help-all",
            action="help",
            help="These, and the host's: `output_dir`, `max_steps`, `seed`, `save_steps` and a hundred more.",
        )
    words = _without_aliases(_with_config(argv, parser), parser)
    known = set(parser._option_string_actions)
    for word in words:
        if word.startswith("--") and word.split("=")[0] not in known:
            parser.error(unknown_key(word.split("=")[0].lstrip("-"), known))
    try:
        # After the dataclasses comes the rest, --config and --device, which are handled already.
        return parser.parse_args_into_dataclasses(words, look_for_args_file=False)[: len(dataclass_types)]
    except (ValueError, TypeError) as error:
        parser.error(str(error))


def _group_by_dataclass(parser: argparse.ArgumentParser, dataclass_types: Sequence[type], with_host: bool) -> bool:
    """
    Group the keys by the class of this package that declares them, in the order of the fields. Transformers' own keys
    follow, or are left out of the help. Returns whether there are any.
    """
    owners = {field.name: _owner(kind, field.name) for kind in dataclass_types for field in dataclasses.fields(kind)}
    groups: dict[type | None, argparse._ArgumentGroup] = {}
    for owner in dict.fromkeys([owner for owner in owners.values() if owner is not None]):
        groups[owner] = parser.add_argument_group(owner.__name__, owner.__doc__.strip().splitlines()[0])
    heading = ("TrainingArguments", "Keys of Transformers' trainer.") if with_host else (None, None)
    groups[None] = parser.add_argument_group(*heading)
    for action in [action for action in parser._actions if action.dest in owners]:
        owner = owners[action.dest]
        parser._optionals._group_actions.remove(action)
        groups[owner]._group_actions.append(action)
        action.option_strings = action.option_strings[:1]  # the spelling with dashes also works, but is not shown
        if owner is None and not with_host:
            action.help = argparse.SUPPRESS
    return bool(groups[None]._group_actions)


def _owner(kind: type, name: str) -> type | None:
    """The class of this package that declares a field or changes its default; `None` for Transformers' own fields."""
    package = __name__.partition(".")[0]
    classes = [base for base in kind.__mro__ if name in vars(base).get("__annotations__", {})]
    return next(
        (base for base in reversed(classes) if base.__module__.partition(".")[0] in (package, "recipes", "__main__")),
        None,
    )


def _with_config(argv: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Put the keys of `--config FILE` in front of the command line, as words."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in argv:
        return argv
    at = argv.index("--config")
    if at + 1 >= len(argv):
        parser.error("`--config` needs the path of a YAML file, or the name of a shipped one.")
    path = Path(argv[at + 1])
    try:
        path = run_file(argv[at + 1])
        keys = yaml.load(path.read_text(encoding="utf-8-sig"), _OnceLoader)  # in UTF-8, whatever the locale says
    except UnicodeDecodeError as error:
        parser.error(
            f"the run file {path} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8, for instance with `iconv -f "
            "LATIN1 -t UTF-8`."
        )
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"the run file {path} cannot be read: {error.strerror}.")
    except yaml.YAMLError as error:
        parser.error(f"the run file {path} is not YAML: {error}")
    if not isinstance(keys, dict):
        parser.error(f"the run file {path} must be a mapping of keys to values.")
    words: list[str] = []
    for key, value in keys.items():
        if f"--{key}" not in parser._option_string_actions:
            parser.error(unknown_key(key, set(parser._option_string_actions), f" in {path}"))
        words += _as_words(key, value, path, parser)
    return words + argv[:at] + argv[at + 2 :]


def _as_words(key: str, value: object, path: Path, parser: argparse.ArgumentParser) -> list[str]:
    if value is None:
        if parser.get_default(ALIASES.get(key, key)) is not None:
            parser.error(f"the key `{key}` in {path} has no value.")
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{key}", json.dumps(value)]
    return [f"--{key}", str(value)]


def _without_aliases(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    out = []
    _written.clear()
    for word in words:
        name, equals, value = word.partition("=")
        target = f"--{ALIASES.get(name[2:].replace('-', '_'))}" if name.startswith("--") else None
        if target in parser._option_string_actions:  # a recipe may have a key of its own with the alias's name
            _written[target[2:]] = name[2:]
            name = target
        elif name.startswith("--"):
            _written.pop(name[2:], None)  # passed again, by its own name
        out += [name, value] if equals and name.startswith("--") else [word if equals else name]
    while "--device" in out and "--device" in parser._option_string_actions:
        at = out.index("--device")
        device = out[at + 1] if at + 1 < len(out) else ""
        if device not in DEVICES:
            parser.error(f"`--device` must be cpu or cuda, got {device!r}.")
        out[at : at + 2] = ["--use_cpu", DEVICES[device]]
    return out


def say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def refuse(message: str) -> NoReturn:
    """End a recipe because of a user's mistake: print one line, exit with code 2."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {as_written(' '.join(message.split()))}\n")
    sys.exit(2)


_written: dict[str, str] = {}  # keys of this process's command line, and the aliases that the user typed for them


def as_written(message: str) -> str:
    """The message with keys named as the user typed them: `data_path` after `--data_path x`, not `dataset_name`."""
    for name, alias in _written.items():
        message = message.replace(f"`{name}`", f"`{alias}`")
    return message


def as_record(*arguments) -> dict:
    """Every resolved argument, ready for JSON, without secrets."""
    record = {}
    for group in arguments:
        values = group.to_dict() if isinstance(group, TrainingArguments) else dataclasses.asdict(group)
        record.update({k: v for k, v in values.items() if not k.endswith("_token")})
    return json.loads(json.dumps(record, default=str))
