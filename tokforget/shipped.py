"""
The files that a checkout keeps beside the package and a wheel inside it: recipes and run files, hardware files, card templates.

A file of one's own is named by its path; a shipped one by its name alone, from any folder: `quick_test`, `cpu`.
"""

from pathlib import Path


RECIPES, HARDWARE, CARDS = "recipes", "accelerate_configs", "hub_cards"
_PACKAGE = Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """
    Where `recipes`, `accelerate_configs` or `hub_cards` lies.

    Raises:
        `FileNotFoundError`: If this installation carries no such folder.
    """
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"The folder {name} is missing from this installation; install tokforget again.")


def in_checkout() -> bool:
    """Whether the recipes are those of a clone, and not of an installed wheel."""
    return shipped_folder(RECIPES).parent != _PACKAGE


def recipe_path(file_name: str) -> Path:
    """The script `recipes/<file_name>`."""
    return shipped_folder(RECIPES) / file_name


def run_file(name: str) -> Path:
    """The run file of a path, or the shipped one of that name; see `_find`."""
    return _find(name, RECIPES, "run file", "--config")


def hardware_file(name: str) -> Path:
    """The hardware file of a path, or the shipped one of that name; see `_find`."""
    return _find(name, HARDWARE, "hardware file", "--accelerate_config")


def _find(name: str, folder: str, what: str, key: str) -> Path:
    """
    A path that is a file is taken as it is. Otherwise `name`, `name.yaml` and `<folder>/name.yaml` all mean the shipped file,
    so that a documented command also works outside a clone.

    Raises:
        `ValueError`: If there is neither; the message lists what is shipped.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(shipped_folder(folder).glob("*.yaml"))}
    if path.parent in (Path(), Path(folder)) and path.suffix in ("", ".yaml") and path.stem in shipped:
        return shipped[path.stem]
    raise ValueError(
        f"the {what} {name} cannot be read: there is no such file. Pass the path of one, or a shipped name: "
        f"`{key} {next(iter(shipped))}`; shipped are {', '.join(shipped)}."
    )
