"""What a light installation leaves out, and what an extra brings: the line that names it where it is used."""

from collections.abc import Iterator
from contextlib import contextmanager


# Import names of what only training, restoring and measuring need; docs/compressing.md says how to install without.
_LEFT_OUT = {
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "rouge_score", "datasketch", "jinja2", "tqdm",
    "psutil",
}  # fmt: skip


class MissingPackage(ModuleNotFoundError):
    """A package that is not installed, and how to have it, in one line."""


@contextmanager
def needed(what: str, extra: str | None = None) -> Iterator[None]:
    """
    Imports of what a light installation leaves out, or of what an extra of setup.py brings.

    Args:
        what (`str`): What they are for; begins the message.
        extra (`str`, *optional*): The extra that brings them.

    Raises:
        [`MissingPackage`]: If one of these packages is not installed.
    """
    try:
        yield
    except MissingPackage:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if extra is not None and package != "tokforget":
            raise MissingPackage(
                f'{what} needs the package {package!r}: pip install "tokforget[{extra}]"', name=error.name
            ) from error
        if package not in _LEFT_OUT:
            raise
        raise MissingPackage(
            f"{what} needs the package {package!r}, which a light installation leaves out: install tokforget with its "
            "dependencies, without `--no-deps`.",
            name=error.name,
        ) from error
