"""
The policy's plan with ONNX Runtime: the graph contains the trunk, nearly all of the arithmetic; NumPy does look-ups
and counts.

The graph maps the table's rows, the features and the padding mask to the logits. The embedding table and the count
tables stay in
`model.safetensors`: they need indexing, hashing and sorting of integers, for which both backends share the NumPy code,
and a copy in the graph would store nearly all of the model twice.

[`tokforget.models.onnx_export`] writes the graph.
"""

import ctypes
import hashlib
import importlib
import os

import numpy as np

from tokforget.models.array_policy import ArrayPolicy
from tokforget.optional import needed


# Files of a model folder, by the name of their `backend`.
GRAPHS = {"onnx": "policy.onnx", "onnx-int8": "policy.int8.onnx"}
EXTRA = "onnx"  # the extra in setup.py
# Keys of the graph's metadata: the digest of its weights, and the version of the scores.
WEIGHTS_KEY, PRECISION_KEY = "tokforget.weights_sha256", "tokforget.precision"
INPUTS = {"rows": "tensor(float16)", "extra": "tensor(float)", "valid": "tensor(bool)"}
OUTPUT = "logits"
# Most bytes of a graph in addition to its weights; the packaged model's graph takes 20 kB.
_GRAPH_BYTES = 2**20


def import_module(name: str):
    """
    Import ONNX Runtime or a part of it, with its telemetry off.

    Builds for Linux since 1.29 send telemetry unless it is switched off before the first import. A process forked from
    one with telemetry never ends, because the thread that would end the telemetry is not in it.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(name)


def weights_digest(weights: dict[str, np.ndarray]) -> str:
    """
    SHA-256 of a policy's weights in hexadecimal, over names, types, shapes and values; it does not depend on the file
    format.

    Args:
        weights (`dict[str, np.ndarray]`): The weights of [`ArrayPolicy.state_dict`].
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype.str} {weights[name].shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


class OnnxPolicy(ArrayPolicy):
    """
    A trained policy that computes its first plan with ONNX Runtime on the CPU.

    Args:
        config (`dict`), weights (`dict[str, np.ndarray]`): As for [`ArrayPolicy`].
        graph (`bytes`): The graph that [`tokforget.models.onnx_export.export_graph`] made from these weights.
        source (`str`): Name of the graph in error messages.

    Raises:
        `ValueError`: If `graph` is not a valid graph, or was made from other weights.
        [`tokforget.optional.MissingPackage`]: If ONNX Runtime is not installed.
    """

    def __init__(self, config: dict, weights: dict[str, np.ndarray], graph: bytes, source: str = "the graph"):
        self.graph, self.source = graph, source
        super().__init__(config, weights)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"graph": self.graph, "source": self.source}

    def _prepare_trunk(self) -> None:
        most = _GRAPH_BYTES + 4 * sum(array.size for name, array in self.weights.items() if array.dtype == np.float32)
        if len(self.graph) > most:
            raise ValueError(
                f"{self.source} has {len(self.graph):,} bytes; a graph of these weights has at most {most:,}. {_AGAIN}"
            )
        self._session, self._process = self._load(_num_threads()), os.getpid()
        told = self._session.get_modelmeta().custom_metadata_map
        if told.get(WEIGHTS_KEY) != weights_digest(self.weights):
            raise ValueError(
                f"{self.source} was made of other weights than those of model.safetensors beside it. {_AGAIN}"
            )
        self.backend = told.get(PRECISION_KEY, "")
        if (
            self.backend not in GRAPHS
            or {one.name: one.type for one in self._session.get_inputs()} != INPUTS
            or [one.name for one in self._session.get_outputs()] != [OUTPUT]
        ):
            raise ValueError(f"{self.source} is no graph of a policy that this version knows. {_AGAIN}")

    def _load(self, num_threads: int):
        with needed("The backend 'onnx'", EXTRA):
            onnxruntime = import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        # No spinning: threads that wait in a loop would take cores from the tokenizer and NumPy between two passes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # only errors; its warnings do not concern users
        try:
            return onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors have no common base class
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.source} could not be read by ONNX Runtime: {reason}. {_AGAIN}") from error

    def _run(self, rows: np.ndarray, extra: np.ndarray, valid: np.ndarray) -> np.ndarray:
        # A fork copies no thread of the session's pool, and a pass would wait for them for ever. Deleting the session
        # would wait as well, so it gets a reference that is never released. Two threads that come here at once make
        # two sessions, of which one is kept; a lock is no solution, because a thread that the fork did not copy might
        # hold it.
        if self._process != os.getpid():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session, self._process = self._load(1), os.getpid()
        return self._session.run([OUTPUT], {"rows": rows, "extra": extra, "valid": valid})[0]

    def plan_arrays(
        self, input_ids: np.ndarray, valid: np.ndarray, rates: np.ndarray, features: np.ndarray | None = None
    ) -> np.ndarray:
        """As [`ArrayPolicy.plan_arrays`]; 0 on padding where the precision is int8."""
        rows, width = input_ids.shape
        extra = self._inputs(input_ids, valid, rates, features).reshape(rows, width, -1)[..., :-1]
        embedded = self.weights["tokens.table"][input_ids]
        if self.backend == "onnx":
            return self._run(embedded, np.ascontiguousarray(extra), valid)
        # int8 takes its scale over the whole batch, but a text's scores must not depend on other texts or on their
        # lengths. Therefore each row is computed alone and without padding.
        logits = np.zeros((rows, width), dtype=np.float32)
        for row, length in enumerate(valid.sum(1)):
            part = slice(row, row + 1), slice(0, int(length))
            if length:
                logits[part] = self._run(
                    np.ascontiguousarray(embedded[part]), np.ascontiguousarray(extra[part]), valid[part].copy()
                )
        return logits


_AGAIN = "Write it again: `tokforget export --format onnx --in-place --overwrite FOLDER`."


def _num_threads() -> int:
    """The number of threads set for NumPy's products (OMP_NUM_THREADS); 0, meaning all cores, if it is not set."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(told) if told.isdigit() else 0
