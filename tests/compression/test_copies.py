"""A compressor decides alike wherever it has got to: pickled, copied, in a thread, in a forked process, in `datasets.map`."""

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import fuzz_compressor as fuzz
from tokforget.compression.compressor import Compressor
from tokforget.compression.quality import CALIBRATION, Calibration
from tokforget.integrations.huggingface import compress_column


ROOT = Path(__file__).parents[2]
PIECES = st.sampled_from([*fuzz.ENGLISH, *fuzz.EMOJI, "<|endoftext|>", "12,750", "中文字", "\n", ". "])
TEXTS = st.lists(st.lists(PIECES, max_size=60).map(" ".join), min_size=1, max_size=4)
OPTIONS = st.sampled_from([{"rate": 0.5}, {"rate": 0.3, "unit": "word"}, {"target_tokens": 7, "nested": True},
                           {"threshold": 0.5}, {"rate": 0.6, "prefix_stable": True}])  # fmt: skip
WAYS = {
    "pickle": lambda compressor: pickle.loads(pickle.dumps(compressor)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "twice": lambda compressor: copy.deepcopy(pickle.loads(pickle.dumps(compressor))),
}


@pytest.fixture(scope="module", params=["numpy", pytest.param("onnx", marks=pytest.mark.slow)])
def compressor(request) -> Compressor:
    if request.param == "numpy":
        return Compressor.from_pretrained()
    return Compressor.from_pretrained(request.getfixturevalue("onnx_folder"), backend="onnx")


def outcome(compressor: Compressor, texts: list[str], options: dict) -> list[tuple]:
    return [(r.text, r.scores.tobytes(), r.compressed_input_ids.tolist(), r.tokenizer)
            for r in compressor.compress(texts, **options)]  # fmt: skip


def in_child(connection, compressor: Compressor, texts: list[str], options: dict) -> None:
    connection.send(outcome(compressor, texts, options))


def forked(compressor: Compressor, texts: list[str], options: dict) -> list[tuple]:
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(there, compressor, texts, options))
    child.start()
    try:
        assert here.poll(60), "the forked process hangs"
        return here.recv()
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("way", WAYS)
def test_special_tokens_stay_text_in_a_copy(compressor, way):
    text = "a <|endoftext|> b"
    again = WAYS[way](compressor)
    ids = compressor.tokenizer.encode(text).ids
    assert len(ids) == 9 and again.tokenizer.encode(text).ids == ids


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(TEXTS, OPTIONS)
def test_every_copy_gives_the_same(compressor, texts, options):
    expected = outcome(compressor, texts, options)
    for way, made in WAYS.items():
        assert outcome(made(compressor), texts, options) == expected, way
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: outcome(compressor, texts, options), range(4))) == [expected] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(TEXTS, OPTIONS)
def test_a_forked_process_gives_the_same(compressor, texts, options):
    assert forked(compressor, texts, options) == outcome(compressor, texts, options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_process_waits_for_no_thread_of_onnx_runtime(onnx_folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    compressor = Compressor.from_pretrained(onnx_folder, backend="onnx")
    text = " ".join(fuzz.ENGLISH * 12)
    expected = outcome(compressor, [text] * 8, {"rate": 0.5})  # the pool is there before the fork
    assert forked(compressor, [text] * 8, {"rate": 0.5}) == expected


def test_a_past_is_not_pickled(compressor):
    used = Compressor(compressor.policy, compressor.tokenizer, compressor.folder)
    before = set(vars(used))
    used.reconstructor = "what takes seconds to load"
    for way, made in WAYS.items():
        assert set(vars(made(used))) == before, way
    assert "reconstructor" in vars(used)


def test_a_map_function_keeps_the_promises_of_its_model(compressor, tmp_path):
    Calibration(99, "reader", {0.1: [(0.9, 0.8)]}, [(0.0, 0.0), (1.0, 1.0)]).save(tmp_path)
    promising = Compressor(compressor.policy, compressor.tokenizer, tmp_path)
    function = compress_column(promising, quality=0.9)
    expected = function({"text": "The meeting has been moved to Tuesday, 3 pm, in room B12."})
    again = pickle.loads(pickle.dumps(function))
    (tmp_path / CALIBRATION).unlink()
    assert again({"text": "The meeting has been moved to Tuesday, 3 pm, in room B12."}) == expected


MAPPED = """
import json, torch
torch.set_num_threads(max(2, torch.get_num_threads()))  # what any machine with two cores does by itself
import datasets
from tokforget.integrations.huggingface import compress_column

dataset = datasets.Dataset.from_dict({"text": ["The meeting has been moved to Tuesday, 3 pm, in room B12. " * 5] * 8})
function = compress_column(rate=0.5)
here = [function(row)["compressed"] for row in dataset]  # the threads are there before the fork
print(json.dumps([dataset.map(function, batched=True, num_proc=n)["compressed"][:] == here for n in (None, 1, 2)]))
"""


def test_map_with_processes_ends_where_torch_has_threads(tmp_path):
    """By its own process: the suite computes with one thread, with which nothing ever hangs."""
    pytest.importorskip("datasets")
    free = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", MAPPED], env=free | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert json.loads(done.stdout or "null") == [True, True, True], done.stderr
