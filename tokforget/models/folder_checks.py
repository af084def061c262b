"""
Checks of folders from untrusted sources. Every claim of a file is checked against the file's size before memory is
allocated. Every fault is a `ValueError` of one line. These checks read only JSON and the headers of safetensors files.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tokforget.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, TOKENIZER, WEIGHTS


# Limits in bytes. The largest files in use: a tokenizer of 33 MB (256,000 tokens), a header of 1 MB, a log of some
# megabytes.
_JSON_BYTES, _TOKENIZER_BYTES, _HEADER_BYTES = 2**26, 2**27, 2**25
# Files in Python's pickle format, which can run code when they are read.
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
# Pickles of a trainer; only a resumed run reads them, see tokforget/training/checkpoints.py.
_TRAINER_FILES = {
    "optimizer.pt",
    "optimizer.bin",
    "pytorch_model_fsdp.bin",
    "scheduler.pt",
    "scaler.pt",
    "training_args.bin",
}
# Limits far above any causal language model (`Llama-2` has 80 layers, GPT-2 XL 48).
_MOST_LAYERS = 4096

# Fields of a tokforget model's config, and the range of each. The shapes of the weights limit most of them further.
_RANGES = {
    "vocab_size": (1, 2**24), "base_hidden_size": (1, 2**20), "hidden_size": (1, 2**16), "kernel_size": (1, 2**10),
    "head_size": (4, 2**16), "window": (1, 2**24), "ngram_buckets": (0, 2**40), "marker_token_id": (0, 2**24),
}  # fmt: skip
_DILATIONS, _DILATION = 256, 2**12
# Fields that make PEFT import a module named in the file, read other files, or copy the base model.
_ADAPTER_MUST_LACK = (
    "auto_mapping",
    "megatron_config",
    "layer_replication",
    "eva_config",
    "corda_config",
    "loftq_config",
)

Shapes = dict[str, tuple[int, ...]]


def read_json(path: Path, most_bytes: int = _JSON_BYTES) -> dict:
    """The mapping in a JSON file. Raises `ValueError` if the file is larger than `most_bytes` or holds no mapping."""
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    if path.stat().st_size > most_bytes:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; such a file has at most {most_bytes:,}.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. Save or download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a mapping, got a {type(content).__name__}.")
    return content


def check_files(folder: Path, pickles: bool = False) -> None:
    """
    Raise `ValueError` if a file of a folder is a link to outside or a pickle.

    A folder of the Hub's cache consists of links from `snapshots` into `blobs`; these are allowed.

    Args:
        folder (`Path`): The folder.
        pickles (`bool`): Whether pickles are allowed; they are not read.
    """
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots" or home.parent.parent.name == "snapshots":  # the folder, or its adapter/
        snapshots = home.parent if home.parent.name == "snapshots" else home.parent.parent
        allowed.append(snapshots.parent / "blobs")
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in allowed):
            raise ValueError(f"{path} is a link to outside of the folder. Put the file itself there.")
        unread = pickles or path.name in _TRAINER_FILES or path.name.startswith("rng_state")
        if path.suffix in _PICKLES and not unread and path.is_file():
            raise ValueError(f"{path} is a pickle, which can run code when it is read. Weights come as safetensors; "
                             "delete it or save the model again.")  # fmt: skip


def check_safetensors(path: Path) -> Shapes:
    """
    Names and shapes of the tensors in a safetensors file; no tensor is read.

    Raises:
        `ValueError`: If the header does not fit the size of the file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if size < 8 or header_bytes > min(size - 8, _HEADER_BYTES):
        raise ValueError(f"{path} is not a whole safetensors file: a header of {header_bytes:,} bytes in {size:,}. Save "
                         "or download it again.")  # fmt: skip
    try:
        # The library checks that the tensors fill the file exactly, without overlaps or gaps.
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}. Save or download it again.") from error


def refuse_remote_code(path: Path, content: dict) -> None:
    if content.get("auto_map"):
        raise ValueError(f"{path} asks for code of its own to be run (`auto_map`); tokforget runs none.")


def check_tokenizer_files(folder: Path) -> None:
    """Raise `ValueError` if a tokenizer is too large or asks for remote code. Its library checks the content."""
    path = folder / TOKENIZER
    if path.is_file() and path.stat().st_size > _TOKENIZER_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a tokenizer has at most {_TOKENIZER_BYTES:,}.")
    path = folder / "tokenizer_config.json"
    if path.is_file():
        refuse_remote_code(path, read_json(path))


def check_config(path: Path, model_type: str) -> dict:
    """The config of a tokforget model. Raises `ValueError` if a field is out of its range."""
    config = read_json(path)
    if config.get("model_type") != model_type:
        raise ValueError(f"{path.parent} holds a model of type {config.get('model_type')!r}, not {model_type!r}.")
    refuse_remote_code(path, config)

    def demand(name: str, fine: bool, wanted: str) -> None:
        if not fine:
            raise ValueError(f"{path} is broken: `{name}` must be {wanted}, got {repr(config.get(name))[:80]}.")

    for name, (low, high) in _RANGES.items():
        demand(name, _is_int(config.get(name), low, high), f"a whole number from {low} to {high:,}")
    buckets, dilations, bound = config["ngram_buckets"], config.get("dilations"), config.get("logit_bound")
    demand("ngram_buckets", buckets & (buckets - 1) == 0, "0 or a power of two")
    demand("marker_token_id", config["marker_token_id"] < config["vocab_size"], "below `vocab_size`")
    demand("dilations",
           isinstance(dilations, list) and 0 < len(dilations) <= _DILATIONS
           and all(_is_int(d, 1, _DILATION) for d in dilations),
           f"a list of up to {_DILATIONS} whole numbers from 1 to {_DILATION}")  # fmt: skip
    demand("logit_bound", _is_number(bound) and 0 < bound <= 1000, "a number in (0, 1000]")
    demand("layout", config.get("layout") in ("prefix", "infill"), "'prefix' or 'infill'")
    demand("base_model_name_or_path", _is_name(config.get("base_model_name_or_path")), "the id or folder of a model")
    revision = config.get("base_model_revision")
    demand("base_model_revision", revision is None or _is_name(revision), "a branch, tag or commit")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        demand(name, config.get(name) is None or _is_int(config[name], 0, 2**24), "a token id")
    return config


def check_shapes(path: Path, shapes: Shapes, expected: Shapes, owner: str = "its config.json") -> None:
    """Raise `ValueError` unless a file holds exactly the tensors that its `owner` expects."""
    wrong = sorted(expected.keys() ^ shapes.keys()) or sorted(n for n in expected if expected[n] != shapes[n])
    if wrong:
        raise ValueError(f"{path} does not fit {owner}; the first of {len(wrong)} misfits is {wrong[0]!r}.")


def check_adapter(folder: Path) -> Shapes:
    """
    Names and shapes of the weights of a LoRA adapter (`adapter_config.json`, `adapter_model.safetensors`).

    Raises:
        `ValueError`: If the config asks for more than the weights hold, or for anything but LoRA.
    """
    check_files(folder)
    path, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    config, shapes = read_json(path), check_safetensors(weights)
    refuse_remote_code(path, config)

    def demand(name: str, fine: bool, wanted: str) -> None:
        if not fine:
            raise ValueError(f"{path} is refused: `{name}` must be {wanted}, got {repr(config.get(name))[:80]}.")

    demand("peft_type", config.get("peft_type") == "LORA", "'LORA'")
    for name in _ADAPTER_MUST_LACK:
        demand(name, not config.get(name), "empty")
    ranks = [shape[0] for name, shape in shapes.items() if "lora_A" in name and shape]
    most = max(ranks, default=0)
    if not most:
        raise ValueError(f"{weights} holds no LoRA weights.")
    demand("r", _is_int(config.get("r"), 1, most), f"a rank of its weights, at most {most}")
    for name in ("rank_pattern", "alpha_pattern"):
        demand(name, isinstance(config.get(name, {}), dict), "a mapping")
    demand("rank_pattern", all(_is_int(r, 1, most) for r in config.get("rank_pattern", {}).values()),
           f"ranks of its weights, at most {most}")  # fmt: skip
    alphas = [config.get("lora_alpha"), *config.get("alpha_pattern", {}).values()]
    demand("lora_alpha", all(_is_number(alpha) for alpha in alphas), "a number")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    demand("base_model_name_or_path", _is_name(base), "the id or folder of a model")
    demand("revision", revision is None or _is_name(revision), "a branch, tag or commit")
    return shapes


def check_base_folder(folder: Path) -> Shapes:
    """Names and shapes of all weights in a causal language model's folder: safetensors, in one file or in shards."""
    check_files(folder, pickles=True)
    path = folder / CONFIG
    config = read_json(path)
    refuse_remote_code(path, config)
    check_tokenizer_files(folder)
    if not (folder / WEIGHTS).is_file() and not (folder / "model.safetensors.index.json").is_file():
        raise ValueError(f"{folder} holds no model.safetensors; other formats of weights are not read.")
    shapes: Shapes = {}
    for shard in _shards(folder):
        shapes |= check_safetensors(shard)
    _refuse_absurd_numbers(path, config)
    return shapes


def _refuse_absurd_numbers(path: Path, config: dict) -> None:
    for name, value in config.items():
        if isinstance(value, dict):
            _refuse_absurd_numbers(path, value)
        if isinstance(value, int) and abs(value) > (_MOST_LAYERS if "layer" in name or "head" in name else 2**31):
            raise ValueError(f"{path} is refused: `{name}` is {value:.3g}.")


def _shards(folder: Path) -> Iterable[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    path = folder / "model.safetensors.index.json"
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise ValueError(f"{path} names weights outside of its folder, or none.")
    return [folder / name for name in sorted(set(names.values()))]


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) < 1024 and value.isprintable() and "://" not in value
