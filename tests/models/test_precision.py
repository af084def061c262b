"""A model of any precision scores, is saved and comes back; none of them makes nan of what was counted."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tokforget.compression.compressor import Compressor
from tokforget.models.forget_model import ForgetModel
from tokforget.models.word_table import WordTable
from tokforget.packaged import forget_model_path


TEXT = "The meeting has been moved to Tuesday, 3 pm, in room B12. Please bring the report, and the signed forms."
WAYS = {
    "half": lambda model: model.half(),
    "to bfloat16": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
}


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return Compressor.from_pretrained("embedded").compress(TEXT).scores


@pytest.mark.parametrize("way", WAYS)
def test_a_model_in_any_precision_is_saved_and_scores_as_it_did(way, whole, tmp_path):
    model = WAYS[way](ForgetModel.from_pretrained(forget_model_path()))
    assert model.policy.ngrams.total.dtype == torch.int64 and int(model.policy.ngrams.total) == 857_212
    model.save_pretrained(tmp_path)
    shutil.copy(Path(forget_model_path(), "tokenizer.json"), tmp_path)
    result = Compressor.from_pretrained(tmp_path).compress(TEXT)
    np.testing.assert_allclose(result.scores, whole, atol=0.05 if way == "to bfloat16" else 0.01)
    assert "NaN" not in result.to_json() and result.compressed_tokens == result.target_tokens
    assert load_file(tmp_path / "model.safetensors")["policy.tokens.table"].dtype == torch.float16


@pytest.mark.parametrize("asked, dtype", [(torch.float16, torch.float16), ("bfloat16", torch.bfloat16), (None, torch.float32),
                                          ("auto", torch.float32), ("torch.float64", torch.float64)], ids=str)  # fmt: skip
def test_the_precision_is_the_one_that_was_asked_for(asked, dtype, whole):
    for name in ("dtype", "torch_dtype"):
        model = ForgetModel.from_pretrained(forget_model_path(), **{name: asked})
        assert {p.dtype for p in model.parameters()} == {dtype} and model.dtype == dtype
    compressor = Compressor.from_pretrained("embedded", dtype=asked)
    if asked is not None:
        scores = compressor.compress(TEXT).scores
        assert {p.dtype for p in compressor.policy.parameters()} == {dtype}
        np.testing.assert_allclose(scores, whole, atol=0.05)


@pytest.mark.parametrize("asked", ["int8", torch.int64, "nonsense", 16])
def test_what_is_no_precision_is_named(asked):
    with pytest.raises(ValueError, match=r"`dtype` must be a floating type such as torch.bfloat16, got "):
        ForgetModel.from_pretrained(forget_model_path(), dtype=asked)
    with pytest.raises(ValueError, match=r"`dtype` must be a floating type such as torch.bfloat16, got "):
        Compressor.from_pretrained("embedded", dtype=asked)


def test_word_counts_are_whole_numbers_too():
    table = WordTable()
    table.fit(["one two"] * 70_000)  # more than half precision holds
    assert int(table.half().total) == 70_000 and np.isfinite(table.rarity()("two"))


def test_broken_weights_are_an_error_and_no_cut(tmp_path):
    shutil.copytree(forget_model_path(), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["policy.to_logit.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="scores are not finite: its weights hold nan or infinity"):
        Compressor.from_pretrained(tmp_path).compress(TEXT)


def test_a_folder_of_before_loads_alike():
    """Its total is stored as float32, as that of the packaged model is."""
    folder = Path(forget_model_path())
    assert load_file(folder / "model.safetensors")["policy.ngrams.total"].dtype == torch.float32
    model = ForgetModel.from_pretrained(folder, with_reconstructor=False)
    assert model.policy.ngrams.total.dtype == torch.int64 and int(model.policy.ngrams.total) == 857_212
