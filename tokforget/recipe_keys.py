"""
The keys of a recipe, read from its source code: a mistyped key is reported at once, before torch and transformers are
imported.

This module runs nothing. It only finds keys and run files that do not exist; `tokforget.parsing` reads those that do.
"""

import ast
import difflib
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tokforget.shipped import run_file


# Aliases: names that are usual in training scripts, and the fields that they set.
ALIASES = {
    "data_path": "dataset_name",
    "reconstructor_path": "reconstructor_name_or_path",
    "model_name_or_path": "reconstructor_name_or_path",
    "max_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "learning_rate_policy": "policy_learning_rate",
    "learning_rate_reconstructor": "reconstructor_learning_rate",
    "reward_type": "reward_funcs",
}


# Former names of keys, in older records and run files. Using one is an error that gives the new name.
RENAMED = {
    "warm_start_teacher": "warm_start_target",
    "lesson_path": "warm_start_data_path",
    "warm_start_sharpness": "warm_start_logit_scale",
    "random_mask_share": "random_mask_fraction",
    "reconstruction_share": "reconstructor_text_fraction",
    "variants": "ablations",
    "variant_seeds": "ablation_seeds",
}


def unknown_key(key: object, known: set[str], where: str = "") -> str:
    """The error message for an unknown key; it suggests the most similar key that exists."""
    key = str(key).replace("-", "_")  # a YAML key may be a number
    if f"--{RENAMED.get(key)}" in known:
        return f"unknown key `{key}`{where}: it is called `{RENAMED[key]}` now."
    near = difflib.get_close_matches(key, sorted({word.lstrip("-").replace("-", "_") for word in known}), 1, 0.75)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"unknown key `{key}`{where}.{hint} `--help` lists the keys that exist."


def refuse_unknown_keys(script: str | Path, words: Sequence[str] | None = None) -> None:
    """
    End the process as the parser would, with one line and exit code 2, if the command line or its run file has an
    unknown key, or if the run file does not exist. All other mistakes are left to the parser, and so are recipes whose
    keys cannot be read from their source.

    Args:
        script (`str` or `Path`): The recipe.
        words (`list[str]`, *optional*): The command line; that of this process by default.
    """
    message = find_mistake(script, sys.argv[1:] if words is None else words)
    if message is not None:
        sys.stderr.write(f"{Path(script).name}: error: {' '.join(message.split())}\n")
        sys.exit(2)


def find_mistake(script: str | Path, words: Sequence[str]) -> str | None:
    """
    The error message for a missing run file or for the first unknown key (keys of the run file come before those of
    the command line); `None` if there is no such mistake.
    """
    known = known_keys(Path(script))
    if known is None:
        return None
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" in words[:-1]:
        try:
            path = run_file(words[words.index("--config") + 1])
        except ValueError as error:
            return str(error)
        for key in _run_file_keys(path):
            if f"--{key}" not in known:
                return unknown_key(key, known, f" in {path}")
    for word in words:
        if word.startswith("--") and word.split("=")[0] not in known:
            return unknown_key(word.split("=")[0].lstrip("-"), known)
    return None


def _run_file_keys(path: Path) -> list:
    """The keys of a run file; empty if it cannot be read, because the parser reports that."""
    import yaml

    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, OSError, yaml.YAMLError):
        return []
    return list(keys) if isinstance(keys, dict) else []


def known_keys(script: Path) -> set[str] | None:
    """
    Every key that a recipe's parser accepts, with its dashes: the fields of its dataclasses and of their base classes,
    Transformers' included. `None` if the sources of one of these classes are not found.
    """
    try:
        module = _module(script)
        fields = {name: field for kind in _dataclasses_of(module) for name, field in _fields(kind, module).items()}
    except (_NotFound, OSError, SyntaxError, UnicodeDecodeError):
        return None
    known = {"-h", "--help", "--help-all", "--config"}
    for name, (is_switch, aliases) in fields.items():
        known |= {f"--{name}", f"--{name.replace('_', '-')}", *aliases}
        if is_switch:
            known |= {f"--no_{name}", f"--no-{name.replace('_', '-')}"}
    if "--use_cpu" in known:
        known.add("--device")
    return known | {f"--{alias}" for alias, name in ALIASES.items() if f"--{name}" in known}


# -- sources -----------------------------------------------------------------------------------------------------------
class _NotFound(Exception):
    """A name whose definition is not found in the sources."""


class _Module(NamedTuple):
    """
    The contents of one source file.

    Attributes:
        name (`str`): Its import name; empty for a script.
        is_package (`bool`): Whether it is a package, so that its relative imports begin in itself.
        classes (`dict`): Class definitions by name.
        imports (`dict`): For each imported name its module, with leading dots where it is relative, and its name
            there.
        tree (`ast.Module`): The syntax tree.
    """

    name: str
    is_package: bool
    classes: dict[str, ast.ClassDef]
    imports: dict[str, tuple[str, str]]
    tree: ast.Module


@cache
def _module(path: Path, name: str = "") -> _Module:
    tree = ast.parse(path.read_bytes())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    imports = {
        alias.asname or alias.name: ("." * node.level + (node.module or ""), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return _Module(name, path.name == "__init__.py", classes, imports, tree)


def _imported(name: str) -> _Module:
    """The module of that name. No code is run, because only the top package is looked up, and its files are read."""
    top, *rest = name.split(".")
    spec = find_spec(top)
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in (Path(folder, *rest, "__init__.py"), Path(folder, *rest).with_suffix(".py")):
            if path.is_file():
                return _module(path, name)
    raise _NotFound(name)


def _class(name: str, module: _Module) -> tuple[ast.ClassDef, _Module]:
    """The class that a module knows by this name, and the module that defines it."""
    for _ in range(8):  # follow imports that pass a name on
        if name in module.classes:
            return module.classes[name], module
        if name not in module.imports:
            break
        source, name = module.imports[name]
        level = len(source) - len(source.lstrip("."))
        if level:
            parts = module.name.split(".")
            above = parts[: len(parts) - level + module.is_package]
            source = ".".join([*above, source.lstrip(".")]).rstrip(".")
        module = _imported(source)
    raise _NotFound(name)


def _dataclasses_of(module: _Module) -> list[str]:
    """The names in `parse_arguments((A, B), ...)` or `begin((A, B), ...)`."""
    found = [
        node.args[0].elts
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("parse_arguments", "begin")
        and node.args
        and isinstance(node.args[0], ast.Tuple)
    ]
    if len(found) != 1 or not all(isinstance(name, ast.Name) for name in found[0]):
        raise _NotFound("parse_arguments")
    return [name.id for name in found[0]]


def _fields(name: str, module: _Module) -> dict[str, tuple[bool, list[str]]]:
    """
    The fields of a dataclass. For each: whether it is a flag that is on by default (the parser then adds
    `--no_<field>`), and its aliases.
    """
    kind, module = _class(name, module)
    fields: dict[str, tuple[bool, list[str]]] = {}
    for base in reversed(kind.bases):
        if not isinstance(base, ast.Name):
            raise _NotFound(ast.unparse(base))
        fields |= _fields(base.id, module)
    for node in kind.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        annotation = ast.unparse(node.annotation)
        told = {}
        if isinstance(node.value, ast.Call):
            told = {word.arg: word.value for word in node.value.keywords}
        if "ClassVar" in annotation or _is(told.get("init"), False):
            continue
        is_on = _is(node.value, True) or _is(told.get("default"), True)
        inside = ast.walk(node.value) if isinstance(node.value, ast.Call) else []
        texts = [one.value for one in inside if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        aliases = [text for text in texts if text.startswith("-") and " " not in text]
        fields[node.target.id] = is_on and annotation in ("bool", "bool | None", "Optional[bool]"), aliases
    return fields


def _is(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
