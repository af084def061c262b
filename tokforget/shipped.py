"""
The shipped files: recipes and run files, hardware files, card templates. A checkout keeps them next to the package, a
wheel inside it.

Users name their own file by its path, and a shipped file by its name alone, from any folder: `quick_test`, `cpu`.
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
    """Whether the recipes come from a checkout and not from an installed wheel."""
    return shipped_folder(RECIPES).parent != _PACKAGE


def recipe_path(file_name: str) -> Path:
    """The script `recipes/<file_name>`."""
    return shipped_folder(RECIPES) / file_name


def run_file(name: str) -> Path:
    """The run file at a path, or the shipped run file of that name. Raises `ValueError` if there is neither."""
    return _find(name, RECIPES, "run file", "--config")


def hardware_file(name: str) -> Path:
    """
    The hardware file at a path, or the shipped hardware file of that name. Raises `ValueError` if there is neither.
    """
    return _find(name, HARDWARE, "hardware file", "--accelerate_config")


def _find(name: str, folder: str, what: str, key: str) -> Path:
    """
    A path to an existing file is returned unchanged. Otherwise `name`, `name.yaml` and `<folder>/name.yaml` all mean
    the shipped file, so that a documented command also works outside a checkout.

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
