"""The policy in NumPy and in ONNX Runtime against the one in torch, what is imported for it, and what a light installation lacks."""

import ast
import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.support.fuzz_compressor import ENGLISH
from tokforget.cli import arguments
from tokforget.cli.main import main
from tokforget.compression.compressor import BACKENDS, Compressor
from tokforget.data.embedded_corpus import embedded_documents
from tokforget.models import array_policy
from tokforget.models.array_policy import ArrayPolicy, policy_shapes
from tokforget.models.folders import export_onnx, read_array_policy, read_onnx_policy, read_policy
from tokforget.models.onnx_policy import OnnxPolicy
from tokforget.models.policy import KeepMaskPolicy
from tokforget.packaged import forget_model_path, reader_model_path


ROOT = Path(__file__).parents[2]
needs_onnx = pytest.mark.skipif(
    not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")),
    reason="onnx or onnxruntime is not installed: pip install 'tokforget[onnx]'",
)
FOLDERS = {"packaged": reader_model_path, "embedded": forget_model_path}
TEXTS = [
    (ROOT / "README.md").read_text(encoding="utf-8"),
    "The bridge was not opened before 1874. It carried a tram line until 1956, and some 14,000 cars cross it every day.",
    "user: How many?\nassistant: Four, at most.\n\n- one\n- two\n",
    "Die Brücke wurde nicht vor 1874 gebaut. 橋は1874年に造られた。 Мост не построен.",
    " ".join(ENGLISH * 12),
    "one",
    "",
]
QUESTION = "How many cars cross the bridge?"
# Ends any import of these, as where they are not installed.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "tqdm", "onnx",
                                      "onnxruntime"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run(code: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


# -- alike -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("folder", FOLDERS)
def test_plans_are_those_of_torch_but_for_roundings(folder, monkeypatch):
    path, generator = FOLDERS[folder](), np.random.default_rng(0)
    in_torch, in_numpy = read_policy(path), read_array_policy(path)
    ids = generator.integers(0, in_numpy.vocab_size, (9, 64))
    ids[:, ::3] = ids[:, :1]  # tokens and pairs that come again
    valid = np.arange(64) < np.array([64, 64, 60, 33, 17, 5, 1, 64, 0])[:, None]
    rates = generator.uniform(0.0, 1.0, 9)
    features = (
        generator.normal(size=(9, 64, in_numpy.num_features)).astype(np.float32) if in_numpy.num_features else None
    )
    expected = in_torch.plan_arrays(ids, valid, rates, features)
    found = in_numpy.plan_arrays(ids, valid, rates, features)
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-4)
    assert found.dtype == np.float32 and np.abs(expected[valid]).max() > 3
    monkeypatch.setattr(array_policy, "_PLACES", 64)  # how many windows go together changes nothing
    assert np.array_equal(in_numpy.plan_arrays(ids, valid, rates, features)[valid], found[valid])


@pytest.mark.parametrize("folder", FOLDERS)
def test_texts_come_out_alike(folder):
    in_torch, in_numpy = (Compressor.from_pretrained(FOLDERS[folder](), backend=name) for name in ("torch", "numpy"))
    ways = [{"rate": rate} for rate in (0.3, 0.5, 0.7)] + [{"rate": 0.5, "unit": "token"}, {"threshold": 0.5}]
    ways += [{"rate": 0.5, "question": QUESTION}, {"quality": 0.7}] if in_torch.takes_question else []
    for options in ways:
        for a, b in zip(in_torch.compress(TEXTS, **options), in_numpy.compress(TEXTS, **options)):
            assert a.text == b.text and np.array_equal(a.kept_indices, b.kept_indices), options
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)


@pytest.mark.parametrize(
    "changed", [{}, {"ngram_buckets": 0}, {"word_features": True}, {"kernel_size": 3, "dilations": [1, 4]}]
)
def test_a_policy_of_any_shape_is_known(changed):
    config = {"vocab_size": 300, "base_hidden_size": 16, "hidden_size": 24, "dilations": [1, 2], "kernel_size": 5, "head_size": 16,
              "ngram_buckets": 256} | changed  # fmt: skip
    torch.manual_seed(0)
    policy = KeepMaskPolicy(**config).eval()
    assert policy_shapes(config) == {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    with torch.no_grad():
        for tensor in policy.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.full(tensor.shape, 40))
    arrays = ArrayPolicy(config, {name: tensor.numpy() for name, tensor in policy.state_dict().items()})
    ids, valid, rates = np.arange(48).reshape(2, 24) % 30, np.ones((2, 24), dtype=bool), np.array([0.3, 0.6])
    features = np.ones((2, 24, arrays.num_features), dtype=np.float32) if changed.get("word_features") else None
    expected = policy.plan_arrays(ids, valid, rates, features)
    np.testing.assert_allclose(arrays.plan_arrays(ids, valid, rates, features), expected, rtol=1e-4, atol=1e-3)
    again = pickle.loads(pickle.dumps(arrays))
    assert np.array_equal(
        again.plan_arrays(ids, valid, rates, features), arrays.plan_arrays(ids, valid, rates, features)
    )


@needs_onnx
@pytest.mark.parametrize(
    "changed", [{}, {"ngram_buckets": 0}, {"word_features": True}, {"kernel_size": 4, "dilations": [1, 4]}]
)
def test_a_fresh_policy_of_any_shape_is_exported(changed):
    from tokforget.models.onnx_export import export_graph

    config = {"vocab_size": 300, "base_hidden_size": 16, "hidden_size": 24, "dilations": [1, 2], "kernel_size": 5, "head_size": 16,
              "ngram_buckets": 256} | changed  # fmt: skip
    torch.manual_seed(0)
    policy = KeepMaskPolicy(**config).eval()
    torch.nn.init.normal_(policy.to_logit.weight)  # what a fresh policy has there is zero
    policy.tokens.table.normal_()
    arrays = ArrayPolicy(config, {name: tensor.numpy() for name, tensor in policy.state_dict().items()})
    exported = OnnxPolicy(config, arrays.state_dict(), export_graph(arrays))
    valid = np.arange(24) < np.array([24, 24, 7])[:, None]
    ids, rates = np.arange(72).reshape(3, 24) % 30, np.array([0.3, 0.6, 1.0])
    features = np.ones((3, 24, arrays.num_features), dtype=np.float32) if changed.get("word_features") else None
    expected = policy.plan_arrays(ids, valid, rates, features)
    for again in (exported, pickle.loads(pickle.dumps(exported))):
        found = again.plan_arrays(ids, valid, rates, features)
        np.testing.assert_allclose(found[valid], expected[valid], rtol=1e-4, atol=1e-4)
    assert np.abs(expected[valid]).max() > 0.1 and exported.backend == "onnx"


@needs_onnx
@pytest.mark.parametrize("folder", ["embedded", pytest.param("packaged", marks=pytest.mark.slow)])
def test_onnx_runtime_decides_as_torch_does(folder, tmp_path):
    """
    On 200 texts. Logits differ by some 1e-5, so one token in 25 is rounded to the next step of 1 in 4,096; a mask changes only
    where that happens to one of two words whose scores lie within a step of each other on both sides of the budget, which is
    one text in thousands. One in a hundred would be a mistake.
    """
    target = tmp_path / "model"
    assert export_onnx(FOLDERS[folder](), target) == [target / "policy.onnx"]
    corpus = "\n\n".join(embedded_documents().values())
    step = len(corpus) // 200
    texts = [corpus[start : start + 40 + start % 400] for start in range(0, 200 * step, step)]
    in_torch, in_onnx = (Compressor.from_pretrained(target, backend=name) for name in ("torch", "onnx"))
    ways = [{"rate": 0.5, "question": QUESTION}] if in_torch.takes_question else [{"rate": 0.5}]
    for options in [{"rate": 0.3}, *ways]:
        pairs = list(zip(in_torch.compress(texts, **options), in_onnx.compress(texts, **options)))
        assert sum(a.text != b.text or a.kept_indices.tolist() != b.kept_indices.tolist() for a, b in pairs) <= 2
        assert max(np.abs(a.scores - b.scores).max() for a, b in pairs) < 1e-3
        assert len({a.text for a, _ in pairs}) > 190


@needs_onnx
@pytest.mark.parametrize("precision", ["onnx", "onnx-int8"])
def test_a_text_comes_out_of_a_batch_as_it_does_alone_and_by_a_copy(onnx_folder, precision):
    compressor = Compressor.from_pretrained(onnx_folder, backend=precision)
    again = pickle.loads(pickle.dumps(compressor))
    assert compressor.backend == again.backend == precision
    for text, together in zip(TEXTS, compressor.compress(TEXTS, rate=0.4)):
        alone = again.compress(text, rate=0.4)
        assert alone.text == together.text and np.array_equal(alone.scores, together.scores)


def test_int8_decides_nearly_as_float32_does(onnx_folder):
    texts = [text for text in TEXTS if len(text) > 100]
    whole, small = (Compressor.from_pretrained(onnx_folder, backend=name) for name in ("onnx", "onnx-int8"))
    pairs = list(zip(whole.compress(texts, rate=0.5), small.compress(texts, rate=0.5)))
    alike = np.concatenate([a.keep_mask == b.keep_mask for a, b in pairs])
    assert alike.mean() > 0.98
    assert any(not np.array_equal(a.scores, b.scores) for a, b in pairs)  # it is another graph


# -- graphs that do not belong -------------------------------------------------------------------------------------------
def test_a_graph_of_other_weights_is_refused(onnx_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(onnx_folder, folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("policy.tokens.table", "policy.words.pieces", "policy.to_logit.bias"):
        changed = weights[name].copy()
        changed.flat[0] += 1
        save_file(weights | {name: changed}, folder / "model.safetensors")
        with pytest.raises(
            ValueError, match=r"policy\.onnx was made of other weights than those of model\.safetensors"
        ):
            Compressor.from_pretrained(folder, backend="onnx")
    save_file(dict(reversed(weights.items())), folder / "model.safetensors", {"saved": "again"})
    assert Compressor.from_pretrained(folder, backend="onnx").backend == "onnx"  # the file differs, the weights do not
    export_onnx(folder, precisions=["onnx-int8"], overwrite=True)


@pytest.mark.parametrize("content", [b"", b"no graph", None, b"\0" * 4_000_000])
def test_what_is_no_graph_is_refused_in_one_line(onnx_folder, tmp_path, content):
    folder = tmp_path / "model"
    shutil.copytree(onnx_folder, folder)
    whole = (folder / "policy.onnx").read_bytes()
    (folder / "policy.onnx").write_bytes(whole[:-1000] if content is None else content)
    with pytest.raises(ValueError, match=r"policy\.onnx .*Write it again: `tokforget export") as error:
        read_onnx_policy(folder)
    assert "\n" not in str(error.value)


def test_a_graph_is_found_by_its_precision(onnx_folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no policy\.onnx and no policy\.int8\.onnx: `tokforget export --format onnx"
    ):
        Compressor.from_pretrained(backend="onnx")
    folder = tmp_path / "model"
    shutil.copytree(onnx_folder, folder)
    assert Compressor.from_pretrained(folder, backend="onnx").backend == "onnx"
    (folder / "policy.onnx").unlink()
    assert Compressor.from_pretrained(folder, backend="onnx").backend == "onnx-int8"
    (folder / "policy.int8.onnx").unlink()
    with pytest.raises(ValueError, match=r"holds no policy\.int8\.onnx"):
        Compressor.from_pretrained(folder, backend="onnx-int8")


def test_erf_is_erf():
    x = np.linspace(-6, 6, 20_001, dtype=np.float32)
    np.testing.assert_allclose(array_policy._erf(x), torch.erf(torch.from_numpy(x)).numpy(), atol=1e-6)


# -- chosen ------------------------------------------------------------------------------------------------------------
def test_numpy_is_chosen_unless_torch_is_asked_for():
    load = Compressor.from_pretrained
    assert load().backend == load(device="cpu").backend == load(backend="numpy").backend == "numpy"
    assert load(backend="torch").backend == load(dtype=torch.float32).backend == load(device="meta").backend == "torch"
    moved = load()
    assert moved.to("cpu") is moved and moved.backend == "torch"
    with pytest.raises(
        ValueError, match=r"`backend` must be one of \('numpy', 'torch', 'onnx', 'onnx-int8'\), got 'jax'"
    ):
        load(backend="jax")
    for name in ("numpy", "onnx", "onnx-int8"):
        with pytest.raises(ValueError, match=f"{name}.* computes on the CPU in float32, got device 'cuda'"):
            load(backend=name, device="cuda")
    assert arguments.BACKENDS == BACKENDS
    with pytest.raises(ValueError, match="without a folder"):
        Compressor(moved.policy, moved.tokenizer).to("cpu") and Compressor(load().policy, moved.tokenizer).to("cpu")


def test_the_shell_takes_a_backend(tmp_path, capfd):
    (tmp_path / "text.txt").write_text(TEXTS[1])
    outputs = []
    for words in ([], ["--backend", "torch"], ["--device", "cpu"]):
        assert main(["compress", str(tmp_path / "text.txt"), "--quiet", *words]) == 0
        outputs.append(capfd.readouterr().out)
    assert outputs[0] and outputs == [outputs[0]] * 3
    assert main(["compress", str(tmp_path / "text.txt"), "--backend", "numpy", "--device", "cuda"]) == 2
    assert "`--backend` numpy runs on the CPU" in capfd.readouterr().err


# -- light -------------------------------------------------------------------------------------------------------------
def test_compressing_imports_neither_torch_nor_transformers(tmp_path):
    (tmp_path / "text.txt").write_text(TEXTS[1])
    code = (
        "import sys, tokforget; from tokforget.cli.main import main; c = tokforget.Compressor.from_pretrained(); "
        f"assert c.compress({TEXTS[:4]!r}, rate=0.5, question={QUESTION!r})[1].text; assert main(sys.argv[1:]) == 0; "
        "from tokforget.integrations import huggingface, llmlingua; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'huggingface_hub') if m in sys.modules])"
    )
    done = run(
        code,
        "compress",
        str(tmp_path / "text.txt"),
        "-o",
        str(tmp_path / "out"),
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
    assert (tmp_path / "out").read_text()


def test_compressing_by_onnx_runtime_imports_neither_torch_nor_onnx(onnx_folder):
    code = (
        f"import sys, tokforget; c = tokforget.Compressor.from_pretrained({str(onnx_folder)!r}, backend='onnx'); "
        f"assert c.compress({TEXTS[:4]!r}, rate=0.5, question={QUESTION!r})[1].text; "
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = run(code)
    assert (done.stdout.strip(), done.returncode) == ("['onnxruntime']", 0), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_child_of_onnx_runtime_ends_and_nothing_is_reported(onnx_folder):
    """A reporting runtime never lets a forked process end; that it does end shows that none of it was started."""
    code = (
        "import os, sys, tokforget\n"
        "os.environ.pop('ORT_DISABLE_TELEMETRY', None), os.environ.pop('CI', None)\n"
        f"c = tokforget.Compressor.from_pretrained({str(onnx_folder)!r}, backend='onnx')\n"
        f"kept = c.compress({TEXTS[1]!r}).text\n"
        "child = os.fork()\n"
        f"if not child: sys.exit(c.compress({TEXTS[1]!r}).text != kept)\n"
        "print(os.waitpid(child, 0)[1], os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    done = run(code)
    assert (done.stdout.strip(), done.returncode) == ("0 1", 0), done.stderr


def test_the_extra_of_onnx_runtime_is_named(tmp_path):
    (tmp_path / "policy.onnx").write_bytes(b"a graph")
    for path in reader_model_path().iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    shell = BLOCKED + "from tokforget.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    for words, what, package in (
        (
            ["compress", str(ROOT / "README.md"), "--model", str(tmp_path), "--backend", "onnx"],
            "The backend 'onnx'",
            "onnxruntime",
        ),
        (["export", "--format", "onnx", "-o", str(tmp_path / "new")], "Exporting to ONNX", "onnx"),
    ):
        done = run(shell, *words)
        assert (
            done.stderr == f"tokforget: error: {what} needs the package '{package}': pip install \"tokforget[onnx]\"\n"
        )
        assert done.returncode == 2 and not done.stdout
    assert not (tmp_path / "new").exists()


def test_what_a_light_installation_lacks_is_named(tmp_path):
    (tmp_path / "text.txt").write_text(TEXTS[1])
    shell = BLOCKED + "from tokforget.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    text = str(tmp_path / "text.txt")
    done = run(shell, "compress", text, "--json", "-o", str(tmp_path / "short.json"))
    assert done.returncode == 0 and (tmp_path / "short.json").exists(), done.stderr
    for words in (["restore", str(tmp_path / "short.json"), "--model", "embedded"], ["train", "--config", "quick_test"],
                  ["compress", text, "--backend", "torch"], ["env", "--torch"], ["readers", "--help"]):  # fmt: skip
        done = run(shell, *words)
        assert done.returncode == 2, (words, done.stderr)
        assert re.fullmatch(
            r"tokforget: error: .+ needs the package '\w+', which a light installation leaves out: install tokforget with "
            r"its dependencies, without `--no-deps`\.\n", done.stderr), (words, done.stderr)  # fmt: skip
    assert run(shell, "inspect", text, "--html", str(tmp_path / "page.html")).returncode == 0
    code = (
        BLOCKED + "import tokforget\ntry: tokforget.ForgetTrainer\nexcept ModuleNotFoundError as error: print(error)"
    )
    assert "`tokforget.ForgetTrainer` needs the package 'torch'" in run(code).stdout


def test_the_light_requirements_are_a_part_of_all():
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    install = ast.literal_eval(values["INSTALL"])
    lines = (ROOT / "requirements-compress.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted and set(wanted) <= set(install)
