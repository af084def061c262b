"""
Round a model's table so that its folder compresses better: `python -m tokforget.models.rounding FOLDER`.

The table of projected embeddings is most of a policy's file, and its last bits are noise that no archive can compress.
With six bits of mantissa it takes a fifth less space in a wheel. The keep score of a token changes by less than its
rounding error.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tokforget.files import WEIGHTS, replacing


TABLE = "policy.tokens.table"
_DROPPED_BITS = 4  # of the ten bits of float16's mantissa


def rounded(table: torch.Tensor) -> torch.Tensor:
    """Round a float16 tensor to six bits of mantissa, to the nearest; the same shape and type."""
    unit = 1 << _DROPPED_BITS
    bits = table.contiguous().view(torch.int16).int()
    found = ((bits + unit // 2) & ~(unit - 1)).to(torch.int16).view(torch.float16)
    return torch.where(found.isfinite(), found, table)


def round_table(folder: str | Path) -> None:
    """Round the table of a model folder in place; the file is replaced atomically."""
    path = Path(folder, WEIGHTS)
    weights = load_file(path)
    weights[TABLE] = rounded(weights[TABLE]).clone()
    with replacing(path) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
    path.chmod(0o644)


if __name__ == "__main__":
    round_table(sys.argv[1])
