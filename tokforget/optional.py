"""Errors for packages that are not installed: a light installation leaves them out, or an extra brings them."""

from collections.abc import Iterator
from contextlib import contextmanager


# Packages that only training, restoring and evaluating import; docs/compressing.md says how to install without them.
_LEFT_OUT = {
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "rouge_score", "datasketch", "jinja2", "tqdm",
    "psutil", "threadpoolctl",
}  # fmt: skip


class MissingPackage(ModuleNotFoundError):
    """A package is not installed. The message says in one line how to install it."""


@contextmanager
def needed(what: str, extra: str | None = None) -> Iterator[None]:
    """
    Context for imports of packages that a light installation leaves out, or that an extra of setup.py brings.

    Args:
        what (`str`): The feature that needs the packages; the message begins with it.
        extra (`str`, *optional*): The extra that installs them.

    Raises:
        [`MissingPackage`]: If an import in the block fails because such a package is not installed.
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
