"""What is read and written is UTF-8 whatever the locale says: no file is opened in an encoding that nobody named."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


def unnamed(source: str) -> list[int]:
    """Lines of calls that read or write text in the encoding of the locale."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = {word.arg for word in node.keywords}
        if (
            name in ("read_text", "write_text")
            and "encoding" not in words
            and len(node.args) < (2 if name == "write_text" else 1)
        ):
            found.append(node.lineno)
        if name in ("open", "fdopen") and "encoding" not in words:
            place = (
                0
                if isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") not in ("os", "gzip")
                else 1
            )
            modes = [*node.args[place : place + 1], *(word.value for word in node.keywords if word.arg == "mode")]
            if not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes) and _is_text(node):
                found.append(node.lineno)
    return found


def _is_text(node: ast.Call) -> bool:
    """`os.open` gives no text, `tarfile.open` and the like neither."""
    return isinstance(node.func, ast.Name) or getattr(node.func.value, "id", "") == "path"


@pytest.mark.parametrize("folder", ["tokforget", "recipes"])
def test_no_file_is_read_or_written_in_the_encoding_of_the_locale(folder):
    found = {
        str(path.relative_to(ROOT)): unnamed(path.read_text(encoding="utf-8"))
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_call_without_an_encoding_is_seen():
    source = "path.read_text()\npath.write_text(x)\nopen(p)\npath.open('w')\nopen(p, 'rb')\npath.open('rb')\nopen(p, encoding='utf-8')\n"
    assert unnamed(source) == [1, 2, 3, 4]


PARSED = """
import json, sys
from dataclasses import dataclass
from tokforget.parsing import parse_arguments

@dataclass
class Arguments:
    output_dir: str = ""

for name in sys.argv[1:]:
    try:
        sys.stdout.buffer.write(parse_arguments((Arguments,), ["--config", name])[0].output_dir.encode() + b"\\n")
    except SystemExit as stop:
        sys.stdout.buffer.write(f"{stop.code}\\n".encode())
    sys.stdout.flush()
"""


def test_a_run_file_is_utf_8_in_any_locale(tmp_path):
    encodings = ["utf-8", "utf-8-sig", "latin1", "utf-16"]
    for encoding in encodings:
        (tmp_path / f"{encoding}.yaml").write_bytes("output_dir: größe\n".encode(encoding))
    # What a locale of ASCII was before Python made UTF-8 of it.
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", PARSED, *(f"{encoding}.yaml" for encoding in encodings)]
    done = subprocess.run(words, capture_output=True, env=plain, cwd=tmp_path, timeout=120)
    assert done.stdout.decode().split() == ["größe", "größe", "2", "2"], done.stderr
    first, second = done.stderr.decode().splitlines()
    assert "the run file latin1.yaml is not UTF-8 (invalid start byte at byte 14). Save it as UTF-8" in first
    assert "the run file utf-16.yaml is not UTF-8 (invalid start byte at byte 0). Save it as UTF-8" in second
