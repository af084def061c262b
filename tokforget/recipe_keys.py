"""
The keys of a recipe, read from its source: a mistyped one is told at once, before torch and transformers are imported.

Nothing is run and nothing is decided here but that a key or a run file does not exist; `tokforget.parsing` reads what does.
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


# Names that people know from scripts of this kind, and the fields that do the same.
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


# What keys were called in records and run files of before; the old name is an error that says the new one.
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
    """What to say of a key that does not exist, the nearest one that does included."""
    key = str(key).replace("-", "_")  # YAML has keys that are no words
    if f"--{RENAMED.get(key)}" in known:
        return f"unknown key `{key}`{where}: it is called `{RENAMED[key]}` now."
    near = difflib.get_close_matches(key, sorted({word.lstrip("-").replace("-", "_") for word in known}), 1, 0.75)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"unknown key `{key}`{where}.{hint} `--help` lists the keys that exist."


def refuse_unknown_keys(script: str | Path, words: Sequence[str] | None = None) -> None:
    """
    End the process, with the line and the exit code of the parser, if the command line or the run file that it names has a key
    that the recipe does not have, or there is no such run file. Whatever else may be wrong is left to the parser, as are recipes
    whose source says too little.

    Args:
        script (`str` or `Path`): The recipe.
        words (`list[str]`, *optional*): Its command line; the process's own by default.
    """
    message = find_mistake(script, sys.argv[1:] if words is None else words)
    if message is not None:
        sys.stderr.write(f"{Path(script).name}: error: {' '.join(message.split())}\n")
        sys.exit(2)


def find_mistake(script: str | Path, words: Sequence[str]) -> str | None:
    """
    What is to be said of the first key that does not exist, those of the run file before those of the command line, or of a run
    file that does not; `None` if there is nothing of the kind.
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
    """The keys of a run file; none of one that cannot be read, of which the parser has to tell."""
    import yaml

    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, OSError, yaml.YAMLError):
        return []
    return list(keys) if isinstance(keys, dict) else []


def known_keys(script: Path) -> set[str] | None:
    """
    Every word that a recipe's parser takes for a key, with its dashes: of the dataclasses that it is given, by their names, and of
    their bases, the host's included. `None` if one of them is not found in the sources.
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
    """A name that the sources do not lead to."""


class _Module(NamedTuple):
    """
    What stands in a file.

    Attributes:
        name (`str`): As it is imported, of a script nothing.
        is_package (`bool`): Whether names relative to it begin in it.
        classes (`dict`), imports (`dict`): By name; of what is imported the module, with dots where it is relative, and the name.
        tree (`ast.Module`): All of it.
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
    """A module by its name; none is run, for that of the package at the top is looked for alone."""
    top, *rest = name.split(".")
    spec = find_spec(top)
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in (Path(folder, *rest, "__init__.py"), Path(folder, *rest).with_suffix(".py")):
            if path.is_file():
                return _module(path, name)
    raise _NotFound(name)


def _class(name: str, module: _Module) -> tuple[ast.ClassDef, _Module]:
    """A class by the name that it has in a module, and the module in which it stands."""
    for _ in range(8):  # imports that hand a name on
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
    """Of each field of a dataclass: whether it is a switch that is on, which has a `no_` beside it, and its other names."""
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
