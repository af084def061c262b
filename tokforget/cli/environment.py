"""Versions, devices and threads for a bug report, found without importing the packages."""

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata, util
from pathlib import Path

import tokforget
from tokforget.packaged import READER_MODEL, reader_model_path


LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "tokenizers", "safetensors",
             "huggingface_hub", "numpy", "onnxruntime", "langchain-core", "llama-index-core")  # fmt: skip
# Environment variables that change the behaviour of the libraries; none of them holds a secret.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")


def describe(ask_torch: bool = False) -> dict[str, str]:
    """
    Facts about this installation, by name.

    Args:
        ask_torch (`bool`): Whether to import torch, and add the devices and threads that it finds.
    """
    facts = {
        "tokforget": tokforget.__version__,
        "packaged model": _packaged_model(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": f"{platform.platform()}, {platform.machine()}",
        **{name: _version(name) for name in LIBRARIES},
        "torch built for": _torch_build(),
        "devices": _nvidia_devices(),
        "CPUs": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} usable of {os.cpu_count()}",
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    return facts | (_torch_facts() if ask_torch else {})


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _packaged_model() -> str:
    try:
        return "present" if reader_model_path() else ""
    except FileNotFoundError:
        return f"missing ({READER_MODEL} is not in the package)"


def _torch_build() -> str:
    """The accelerator for which torch was built, from its version file."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "not installed"
    version_file = Path(spec.origin).with_name("version.py")
    text = version_file.read_text(encoding="utf-8") if version_file.is_file() else ""
    found = re.findall(r"^(cuda|hip|xpu)\b.*=\s*'([^']+)'", text, re.MULTILINE)
    return ", ".join(f"{name} {version}" for name, version in found) or "cpu"


def _nvidia_devices() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "no nvidia-smi"
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {type(error).__name__}"
    return "; ".join(done.stdout.split("\n")).strip("; ") or f"nvidia-smi: {done.stderr.strip() or 'none'}"


def _torch_facts() -> dict[str, str]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return {
        "torch sees": ", ".join(names) or "cpu only",
        "torch threads": f"{torch.get_num_threads()} within operations, {torch.get_num_interop_threads()} between them",
    }
