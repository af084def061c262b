"""Remove this machine's folders from records that are published: each path becomes its last name; Hub ids stay."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from tokforget.packaged import EMBEDDED


_LOCAL_PATH = re.compile(r"(?:/|\.{1,2}[\\/]|~|[A-Za-z]:[\\/]|\\\\|file:/)")
# Not at its beginning, but by its parts: an id of the Hub has one slash, and an address is none of this machine.
_RELATIVE_PATH = re.compile(r"(?!\w+://)[^\s/\\]+(?:(?:/[^\s/\\]+){2,}/?|(?:\\[^\s/\\]+)+\\?)")
_LABELLED = re.compile(r"(-{0,2}\w[\w.-]*=)(.+)")  # as in `--model_path policy=outputs/policy`
_LONGEST = 1024


def without_local_paths(value):
    """
    The record with each local path replaced by its last name. A label before a path (`label=path`) and Hub ids stay.
    """
    if isinstance(value, dict):
        return {key: without_local_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(inner) for inner in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and len(value) < _LONGEST and "\n" not in value and value != EMBEDDED:
        label, path = _parted(value)
        if _LOCAL_PATH.match(path) or _RELATIVE_PATH.fullmatch(path) or ("/" in path and Path(path).exists()):
            return label + _last_name(path)
    return value


def local_paths(record) -> dict[str, str]:
    """Every local path in a record, with the name that replaces it."""
    if isinstance(record, dict | list | tuple):
        inner = record.values() if isinstance(record, dict) else record
        return {path: name for one in inner for path, name in local_paths(one).items()}
    shown = without_local_paths(record)
    return {} if shown == record else {str(record): shown}


def shown_names(names: Iterable[str]) -> dict[str, str]:
    """
    Names of sources as a report shows them, without folders. Sources that differ only in their folders get a number.

    >>> shown_names(["embedded", "/a/texts.jsonl", "/b/texts.jsonl"])
    {'embedded': 'embedded', '/a/texts.jsonl': 'texts.jsonl', '/b/texts.jsonl': 'texts.jsonl (2)'}
    """
    shown: dict[str, str] = {}
    for name in dict.fromkeys(names):
        short = without_local_paths(name)
        same = sum(without_local_paths(other) == short for other in shown)
        shown[name] = f"{short} ({same + 1})" if same else short
    return shown


def command_without_local_paths(command: str, folder: str) -> str:
    """
    A command line for publication. A path within `folder` begins with the last name of `folder`; any other absolute
    path becomes its last name. Relative paths stay, because they mean the same file in every checkout.
    """
    root, words = Path(folder).absolute(), []
    for word in shlex.split(command):
        label, path = _parted(word)
        if _LOCAL_PATH.match(path):
            inside = Path(path).absolute().is_relative_to(root)
            path = Path(root.name, Path(path).absolute().relative_to(root)).as_posix() if inside else _last_name(path)
        words.append(label + path)
    return shlex.join(words)


def _parted(value: str) -> tuple[str, str]:
    """The label before a path, with its `=`, and the path."""
    labelled = _LABELLED.fullmatch(value)
    return ("", value) if labelled is None else (labelled[1], labelled[2])


def _last_name(path: str) -> str:
    """The last name of a path; the root has none and is returned unchanged."""
    return Path(path.replace("\\", "/")).name or path
