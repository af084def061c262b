"""
A model folder made to pack well: `python -m tokforget.models.rounding FOLDER`.

The table of projected embeddings is most of a policy's file, and its last bits are noise that no archive can make smaller. Kept
to six bits of mantissa it takes a fifth less in a wheel; a token's keep score moves by less than its rounding error.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tokforget.models.folders import WEIGHTS


TABLE = "policy.tokens.table"
_DROPPED_BITS = 4  # of the ten that float16 has


def rounded(table: torch.Tensor) -> torch.Tensor:
    """A float16 tensor with six bits of mantissa, to the nearest; the same shape and type."""
    unit = 1 << _DROPPED_BITS
    bits = table.contiguous().view(torch.int16).int()
    found = ((bits + unit // 2) & ~(unit - 1)).to(torch.int16).view(torch.float16)
    return torch.where(found.isfinite(), found, table)


def round_table(folder: str | Path) -> None:
    """Round the table of a model folder in place; the file appears whole or not at all."""
    path = Path(folder, WEIGHTS)
    weights = load_file(path)
    weights[TABLE] = rounded(weights[TABLE]).clone()
    partial = path.with_name(f".{path.name}.partial")
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, path)
    path.chmod(0o644)


if __name__ == "__main__":
    round_table(sys.argv[1])
