"""Names of the files in a folder, and atomic writes: a file is written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# A model's folder; an adapter is in its folder `ADAPTER`, or is the folder of a reconstructor.
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter", "adapter_config.json", "adapter_model.safetensors"
# The records of a training, of its measurements, of a reader benchmark, of a calibration; and the trainer's own state.
TRAINING, RESULTS, READER_RESULTS = "training_config.json", "eval_results.json", "reader_results.json"
CALIBRATION, TRAINER_STATE = "calibration.json", "trainer_state.json"
# The record of prepared data.
MANIFEST = "manifest.json"


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
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder for writing, and rename it to `path` if the block raises no error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    os.replace(partial, path)
