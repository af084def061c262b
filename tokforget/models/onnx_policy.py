"""
The policy's plan by ONNX Runtime: the trunk, which is nearly all of the arithmetic, in a graph; look-ups and counts in NumPy.

The graph takes the table's rows, the features and the mask of padding, and gives the logits. Table and count tables stay in
`model.safetensors`: what is done with them is indexing, hashing and sorting of whole numbers, which NumPy does with the same code for
both backends, and ten of the model's eleven megabytes would lie in the folder twice.

[`tokforget.models.onnx_export`] writes the graph.
"""

import ctypes
import hashlib
import importlib
import os

import numpy as np

from tokforget.models.array_policy import ArrayPolicy
from tokforget.optional import needed


# The files of a model folder, by what `backend` calls them.
GRAPHS = {"onnx": "policy.onnx", "onnx-int8": "policy.int8.onnx"}
EXTRA = "onnx"  # of setup.py
# Keys of the graph's metadata: whose weights it was made of, and what gives its scores.
WEIGHTS_KEY, PRECISION_KEY = "tokforget.weights_sha256", "tokforget.precision"
INPUTS = {"rows": "tensor(float16)", "extra": "tensor(float)", "valid": "tensor(bool)"}
OUTPUT = "logits"
# Names, shapes and the rest of a graph beside its weights; that of the packaged model takes 20 kB.
_GRAPH_BYTES = 2**20


def import_module(name: str):
    """
    ONNX Runtime, or a part of it.

    Its own builds for Linux from 1.29 on report what they run to their maker, unless this is said before they are first imported;
    and a process that was forked from one that reports never ends, since the thread that would end the reports is not in it.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(name)


def weights_digest(weights: dict[str, np.ndarray]) -> str:
    """
    SHA-256 of a policy's weights, in hexadecimal: of names, types, shapes and values, not of how a file stores them.

    Args:
        weights (`dict[str, np.ndarray]`): Those of [`ArrayPolicy.state_dict`].
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype.str} {weights[name].shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


class OnnxPolicy(ArrayPolicy):
    """
    A trained policy that gives its first plan through ONNX Runtime on the CPU.

    Args:
        config (`dict`), weights (`dict[str, np.ndarray]`): As for [`ArrayPolicy`].
        graph (`bytes`): What [`tokforget.models.onnx_export.export_graph`] made of these weights.
        source (`str`): What an error calls the graph.

    Raises:
        `ValueError`: If the graph is none, or was made of other weights.
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
        # Threads that wait in a loop take the core from whoever has work between two passes: the tokenizer, NumPy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; it warns of things of its own
        try:
            return onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's own kinds share no narrower base
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.source} could not be read by ONNX Runtime: {reason}. {_AGAIN}") from error

    def _run(self, rows: np.ndarray, extra: np.ndarray, valid: np.ndarray) -> np.ndarray:
        # A fork takes over no thread of the session's pool, and a pass would wait for them for ever; so would the session's own end,
        # which is why it gets a reference that nobody gives back. Two threads that find this out at once make two sessions, of which
        # one is kept: a lock could be held by a thread that the fork left behind.
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
        # The scale of int8 is taken over all that passes at once, and a text's scores may not depend on its neighbours or on
        # their lengths: each row passes alone and without padding, where other texts' tokens stand.
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
    """As many as NumPy's products are told to take; 0, as many as there are cores, if they are told nothing."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(told) if told.isdigit() else 0
