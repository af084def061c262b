"""`tokforget export`: what it writes and where, what it refuses, and that nothing is replaced unasked."""

import importlib.util
import shutil

import numpy as np
import pytest

from tests.conftest import make_model
from tokforget import Compressor
from tokforget.cli.main import main


pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")),
    reason="onnx or onnxruntime is not installed: pip install 'tokforget[onnx]'",
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, base_folder, tokenizer):
    """A tiny policy as training would save it."""
    folder = tmp_path_factory.mktemp("fresh")
    make_model(base_folder, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def shell(capfd):
    def run(*words) -> tuple[int, str]:
        code = main(["export", "--format", "onnx", *map(str, words)])
        out, err = capfd.readouterr()
        assert out == ""
        return code, err

    return run


def test_a_copy_with_its_graphs_compresses_as_the_model_does(shell, fresh, texts, tmp_path):
    target = tmp_path / "new" / "folder"
    code, err = shell(fresh, "-o", target, "--precision", "both")
    assert code == 0
    assert [line.rpartition(": ")[0] for line in err.splitlines()] == [
        f"tokforget: {target / name}" for name in ("policy.onnx", "policy.int8.onnx")
    ]
    before = {path.relative_to(fresh) for path in fresh.rglob("*") if path.suffix in (".json", ".safetensors")}
    after = {path.relative_to(target) for path in target.rglob("*") if path.is_file()}
    assert {str(path) for path in after - before} == {"policy.onnx", "policy.int8.onnx"} and before <= after
    assert all((target / path).read_bytes() == (fresh / path).read_bytes() for path in before)
    expected = Compressor.from_pretrained(fresh, backend="torch").compress(texts, rate=0.4)
    found = Compressor.from_pretrained(target, backend="onnx").compress(texts, rate=0.4)
    for a, b in zip(expected, found):
        assert a.text == b.text
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)


def test_nothing_is_replaced_unasked(shell, fresh, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(fresh, folder)
    assert shell(folder, "--in-place", "-q") == (0, "")
    written = (folder / "policy.onnx").read_bytes()
    (folder / "policy.onnx").write_bytes(b"mine")
    code, err = shell(folder, "--in-place", "--precision", "both")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"tokforget: error: {folder / 'policy.onnx'} is there already: pass `--overwrite`")
    assert (folder / "policy.onnx").read_bytes() == b"mine" and not (folder / "policy.int8.onnx").exists()
    code, err = shell(fresh, "-o", folder)
    assert code == 2 and "is there already, as are" in err and (folder / "policy.onnx").read_bytes() == b"mine"
    assert shell(folder, "--in-place", "--overwrite", "-q") == (0, "")
    assert (folder / "policy.onnx").read_bytes() == written  # the same weights give the same file


def test_what_cannot_be_done_is_said_in_one_line(shell, fresh, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for words, message in (
        (
            [fresh],
            "needs a place to write to: pass `-o FOLDER` for a copy of the model with its graph, or `--in-place`",
        ),
        ([fresh, "-o", tmp_path / "file"], "is a file: pass a folder, which may be a new one."),
        ([fresh, "-o", fresh], "is the model's own folder: pass another one, or `--in-place` to add to this one."),
        ([tmp_path / "empty", "--in-place"], "is not a tokforget model: it lacks config.json"),
    ):
        code, err = shell(*words)
        assert (code, err.count("\n")) == (2, 1) and message in err, err
    for words in (
        ["--precision", "int4", "--in-place"],
        ["-o", "a", "--in-place"],
        ["--format", "tflite", "--in-place"],
    ):
        with pytest.raises(SystemExit, match="2"):
            shell(fresh, *words)
    assert not (fresh / "policy.onnx").exists()
