"""Files in a folder: their names, and how they are written whole or not at all."""

import json
import os
from pathlib import Path


def write_json(path: str | Path, content: dict | list) -> None:
    """Written beside and renamed; refuses numbers that JSON has no name for."""
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: str | Path, content: bytes) -> None:
    """Written beside and renamed: nobody meets half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
