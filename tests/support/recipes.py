"""A recipe called in this process, which spares the seconds that a new one takes to import torch and Transformers."""

import importlib
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest.mock import patch


class Called(NamedTuple):
    """What the shell would see of it."""

    returncode: int
    stdout: str
    stderr: str


def call(recipe: str, *words) -> Called:
    """`python recipes/<recipe>.py words`, as far as one process can show it; an exception is not caught."""
    module = importlib.import_module(f"recipes.{recipe}")
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", [f"{recipe}.py"]):
        try:
            code = module.main([*map(str, words)]) or 0
        except SystemExit as end:
            code = end.code
    return Called(code, out.getvalue(), err.getvalue())
