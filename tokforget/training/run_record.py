"""
Hardware and time of a training, for its record.
"""

import platform
import time
from importlib import metadata
from pathlib import Path

import torch
from transformers import TrainerCallback

import tokforget


_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


class RunFacts(TrainerCallback):
    """
    Measures the time and the tokens of a training. At the start it deletes measurements of earlier weights.

    Args:
        processes (`int`): Number of processes of the run.
        results (`str`): Name of the file in `output_dir` with measurements of the weights saved there.
    """

    def __init__(self, processes: int, results: str):
        self.processes, self.results = processes, results
        self.tokens, self._began, self._seconds, self._first_step = 0, None, None, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.tokens, self._began, self._seconds = 0, time.perf_counter(), None
        self._first_step = state.global_step

    def on_train_end(self, args, state, control, **kwargs):
        self._seconds = time.perf_counter() - self._began
        if args.should_save:
            Path(args.output_dir, self.results).unlink(missing_ok=True)

    def __call__(self, args, state) -> dict | None:
        """The record so far; `None` before training. Time and tokens do not include the run before a resume."""
        if self._began is None:
            return None
        seconds = time.perf_counter() - self._began if self._seconds is None else self._seconds
        facts = {
            "device": _device(args.device),
            "processes": self.processes,
            "threads": torch.get_num_threads(),
            "steps": state.global_step,
            "resumed_from_step": self._first_step,
            "seconds": seconds,
            "tokens": self.tokens,
            "versions": {"python": platform.python_version(), "tokforget": tokforget.__version__}
            | {name: metadata.version(name) for name in _LIBRARIES},
        }
        if args.device.type == "cuda":
            facts["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        return facts


def _device(device: torch.device) -> str:
    """Name of the device: `NVIDIA ...`, or `CPU (AMD ...)` if the system names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    name = platform.processor()
    if (info := Path("/proc/cpuinfo")).is_file():
        lines = (line.partition(":") for line in info.read_text(encoding="utf-8").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    return f"CPU ({name})" if name and name != "unknown" else "CPU"
