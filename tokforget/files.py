"""Atomic writes: a file is written whole or not at all."""

import json
import os
from pathlib import Path


def write_json(path: str | Path, content: dict | list) -> None:
    """
    Write `content` as JSON, atomically; see [`write_whole`].

    Raises:
        `ValueError`: If a number in it is not finite, because JSON cannot express it.
    """
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: str | Path, content: bytes) -> None:
    """
    Write a temporary file in the same folder, then rename it: no reader sees half a file. Makes the folder if needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
