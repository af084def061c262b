"""
The embedded corpus: the documentation of the running Python, so that tokforget can train without a download.
"""

import ast
import functools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path


PYTHON_LICENSE = "Python Software Foundation License"  # licence of Python's documentation
# Folders of the standard library that hold no documentation for users: its own tests, vendored and generated code.
_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "lib2to3",
    "idlelib",
}


@functools.cache  # reading takes seconds; callers must not change the result
def embedded_documents() -> dict[str, str]:
    """
    The English documentation of CPython, read from the running interpreter.

    Returns:
        `dict[str, str]`: About 600 documents, 2 MB: the reference topics of `pydoc_data` and, for each module of the
        standard library, its docstrings in file order. A docstring that repeats one of an earlier module is left out,
        so that each text is in one document only. The text depends on the Python version.

    Raises:
        `FileNotFoundError`: If this Python was installed without its library sources or `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "The embedded corpus needs `pydoc_data.topics`, which this Python was installed without. Install the full "
            "standard library, or pass `dataset_name` a file, a folder or a Hub data set."
        ) from error
    first_name = {text.strip(): name for name, text in sorted(topics.items(), reverse=True)}  # some share a text
    documents = {f"topic/{name}": text for text, name in sorted(first_name.items(), key=lambda item: item[1])}
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    for path in _library_files(library):
        docstrings = [text for text in _docstrings(path) if not (text in seen or seen.add(text))]
        if docstrings:
            documents[f"module/{path.relative_to(library).as_posix()}"] = "\n\n".join(docstrings)
    if not seen:
        raise FileNotFoundError(
            f"The embedded corpus needs the sources of the standard library, and {library} has none. Install them, or "
            "pass `dataset_name` a file, a folder or a Hub data set."
        )
    return documents


def _library_files(library: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("config-"))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _docstrings(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if docstring := ast.get_docstring(node):
                yield docstring
