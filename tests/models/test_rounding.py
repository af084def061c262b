"""A table of fewer bits: near the old one, smaller when packed, and still a model."""

import shutil
import zlib

import torch
from safetensors.torch import load_file

from tokforget import Compressor
from tokforget.models.rounding import TABLE, round_table, rounded
from tokforget.packaged import forget_model_path


def test_six_bits_of_mantissa_are_left():
    values = torch.cat([torch.randn(2000), torch.tensor([0.0, -0.0, 65504.0, -65504.0, 1e-7, 3.0])]).half()
    found = rounded(values)
    assert found.dtype == torch.float16 and found.isfinite().all()
    normal = values.abs() > 1e-4
    assert ((found - values).float().abs()[normal] <= values.float().abs()[normal] * 2**-7).all()
    assert torch.equal(rounded(found), found) and found[-1] == 3.0
    assert len(found[:-4].unique()) < len(values[:-4].unique())


def test_a_folder_packs_smaller_and_decides_as_before(tmp_path):
    folder = shutil.copytree(forget_model_path(), tmp_path / "model")
    before = load_file(folder / "model.safetensors")
    round_table(folder)
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before if name != TABLE)
    size = lambda table: len(zlib.compress(table.numpy().tobytes()))  # noqa: E731
    assert size(after[TABLE]) < 0.9 * size(before[TABLE])
    text = "Return the number of items in a container. Call 555-0199 if it fails, or write to the list."
    first, second = (
        Compressor.from_pretrained(model).compress(text, rate=0.5) for model in (forget_model_path(), folder)
    )
    assert (first.keep_mask == second.keep_mask).mean() > 0.9
