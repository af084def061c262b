"""
A trained model's folder, read without Transformers: what compressing needs loads in a fraction of a second.

    config.json, model.safetensors (the policy alone), tokenizer.json; adapter/ is for restoring
    policy.onnx, policy.int8.onnx, where `tokforget export` wrote them, for ONNX Runtime
"""

import difflib
import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from tokforget.files import write_whole
from tokforget.models.array_policy import ArrayPolicy, policy_shapes, read_arrays
from tokforget.models.folder_checks import (
    check_adapter,
    check_config,
    check_files,
    check_safetensors,
    check_shapes,
    check_tokenizer_files,
    read_json,
)
from tokforget.models.onnx_policy import GRAPHS, OnnxPolicy
from tokforget.optional import needed
from tokforget.packaged import EMBEDDED


if TYPE_CHECKING:
    from tokforget.models.policy import KeepMaskPolicy


MODEL_TYPE = "tokforget"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER = "tokenizer.json"


# What is passed on to the Hub's client.
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
# What a trained model consists of: what is downloaded of a repository, and copied beside an export.
_PARTS = ["*.json", "*.safetensors", f"{ADAPTER}/*"]


def local_folder(name_or_path: str | Path, graphs: bool = False, **hub_options) -> Path:
    """A local folder as it is; a Hub id downloaded, with its graphs for ONNX Runtime if they are asked for."""
    check_name(name_or_path)
    check_hub_options(hub_options)
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    if Path(name_or_path).is_file():
        raise ValueError(
            f"{name_or_path} is a file: pass the model's folder, which holds its config.json and weights."
        )
    # Only here: a local path must cost no network library.
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    from tokforget.hub.client import explain

    wanted = [*_PARTS, *(GRAPHS.values() if graphs else ())]
    try:
        # The config first: what is no tokforget model may hold gigabytes of weights.
        _check_model_type(Path(hf_hub_download(str(name_or_path), "config.json", **hub_options)), name_or_path)
        return Path(snapshot_download(str(name_or_path), allow_patterns=wanted, **hub_options))
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        near = difflib.get_close_matches(str(name_or_path).lower(), [EMBEDDED], 1, 0.8)
        hint = f" Did you mean {near[0]!r}, the model that the package carries?" if near else ""
        raise ValueError(
            f"{str(name_or_path)!r} is no local folder and could not be had from the Hub: {explain(error)}{hint}"
        ) from error


def check_hub_options(options: dict) -> None:
    """`TypeError` for an option that does not exist: a local folder would not miss it."""
    unknown = sorted(options.keys() - set(_HUB_OPTIONS))
    if unknown:
        near = difflib.get_close_matches(unknown[0], _HUB_OPTIONS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(map(repr, _HUB_OPTIONS))}."
        raise TypeError(f"Loading a model takes no option {unknown[0]!r}. {hint}")


def check_name(name: str | Path) -> None:
    """`TypeError` or `ValueError` for what can be neither a folder nor an id of the Hub."""
    if not isinstance(name, str | Path):
        raise TypeError(
            f"A model is named by its folder or its id on the Hub, got a {type(name).__name__}, {name!r:.60}."
        )
    if not str(name) or name == Path():
        raise ValueError("A model is named by its folder or its id on the Hub, got an empty name.")


def _check_model_type(config: Path, name: str | Path) -> None:
    model_type = read_json(config).get("model_type")
    if model_type != MODEL_TYPE:
        raise ValueError(f"{name} holds a model of type {model_type!r}, not {MODEL_TYPE!r}.")


def check_model_folder(folder: Path, with_adapter: bool = True) -> dict:
    """
    Raise `ValueError` unless the folder holds a tokforget model: the config's own word, weights of the shapes it says, an
    adapter, and nothing that runs. Memory is taken for none of it yet.

    Returns:
        `dict`: The config.
    """
    adapter = [f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/{ADAPTER_WEIGHTS}"] if with_adapter else []
    missing = [name for name in ("config.json", WEIGHTS, *adapter) if not (folder / name).is_file()]
    if missing == adapter and adapter and read_json(folder / "config.json").get("has_adapter") is False:
        raise ValueError(
            f"{folder} was trained by a reader alone: it compresses, and has no reconstructor to restore with. Compress what is to be "
            "restored with the model 'embedded', or with one that was trained with its reconstructor."
        )
    if missing:
        raise ValueError(
            f"{folder} is not a tokforget model: it lacks {', '.join(missing)}. Pass the folder a run saved."
        )
    check_files(folder)
    config = check_config(folder / "config.json", MODEL_TYPE)
    check_tokenizer_files(folder)
    check_shapes(
        folder / WEIGHTS,
        check_safetensors(folder / WEIGHTS),
        {f"policy.{name}": shape for name, shape in policy_shapes(config).items()},
    )
    if with_adapter:
        check_adapter(folder / ADAPTER)
    return config


def read_policy(folder: Path) -> "KeepMaskPolicy":
    """The policy of a model folder as a module of torch, for inference: it reads its stored table and needs no base model."""
    with needed("The backend 'torch'"):
        from safetensors.torch import load_file

        from tokforget.models.policy import KeepMaskPolicy

    config = check_model_folder(folder, with_adapter=False)
    fields = inspect.signature(KeepMaskPolicy).parameters.keys() & config.keys()
    policy = KeepMaskPolicy(**{name: config[name] for name in fields})
    policy.load_state_dict(
        {name.removeprefix("policy."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    )
    return policy.eval().requires_grad_(False)


def read_array_policy(folder: Path) -> ArrayPolicy:
    """The policy of a model folder in NumPy: it compresses, on a CPU, and needs no torch."""
    config = check_model_folder(folder, with_adapter=False)
    arrays = {name.removeprefix("policy."): array for name, array in read_arrays(folder / WEIGHTS).items()}
    return ArrayPolicy(config, arrays)


def read_onnx_policy(folder: Path, precision: str | None = None) -> OnnxPolicy:
    """
    The policy of a model folder for ONNX Runtime: it compresses, on a CPU, and needs no torch.

    Args:
        precision (`str`, *optional*): `"onnx"` for float32, or `"onnx-int8"`; the first of the two that is there without it.

    Raises:
        `ValueError`: If there is no such graph in the folder, or it was made of other weights than those beside it.
        [`tokforget.optional.MissingPackage`]: If ONNX Runtime is not installed.
    """
    config = check_model_folder(folder, with_adapter=False)
    wanted = [GRAPHS[name] for name in ([precision] if precision else GRAPHS)]
    path = next((folder / name for name in wanted if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(
            f"{folder} holds no {' and no '.join(wanted)}: `tokforget export --format onnx {folder} -o NEW_FOLDER` writes one beside a "
            "copy of the model."
        )
    arrays = {name.removeprefix("policy."): array for name, array in read_arrays(folder / WEIGHTS).items()}
    return OnnxPolicy(config, arrays, path.read_bytes(), str(path))


def export_onnx(
    folder: Path, target: Path | None = None, precisions: Sequence[str] = ("onnx",), overwrite: bool = False
) -> list[Path]:
    """
    Write the graphs of a model folder for ONNX Runtime.

    Args:
        folder (`Path`): A trained model's.
        target (`Path`, *optional*): Where a copy of the model goes, and the graphs beside it; into `folder` itself without it.
        precisions (`Sequence[str]`): `"onnx"` for float32, `"onnx-int8"`.
        overwrite (`bool`): Whether files that are there may be replaced.

    Returns:
        `list[Path]`: The graphs that were written.

    Raises:
        `ValueError`: If the folder is no tokforget model, or a file is there already; nothing is written then.
        [`tokforget.optional.MissingPackage`]: If ONNX or ONNX Runtime is not installed.
    """
    from tokforget.models.onnx_export import export_graph

    if target is not None and target.resolve() == folder.resolve():
        raise ValueError(f"{target} is the model's own folder: pass another one, or `--in-place` to add to this one.")
    policy = read_array_policy(folder)
    target = target or folder
    parts = sorted({path for pattern in _PARTS for path in folder.glob(pattern) if path.is_file()})
    copies = [] if target == folder else [(path, target / path.relative_to(folder)) for path in parts]
    graphs = [target / GRAPHS[name] for name in precisions]
    there = [path for path in (*graphs, *(copy for _, copy in copies)) if path.exists()]
    if there and not overwrite:
        more = f", as are {len(there) - 1} others" if len(there) > 1 else ""
        raise ValueError(f"{there[0]} is there already{more}: pass `--overwrite` to replace it, or another folder.")
    contents = [export_graph(policy, name) for name in precisions]
    for source, copy in copies:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    for path, content in zip(graphs, contents):
        write_whole(path, content)
    return graphs


def read_tokenizer(folder: Path, vocab_size: int | None = None) -> Tokenizer:
    """
    The fast tokenizer of a model folder; special tokens in a text are read as text.

    Args:
        vocab_size (`int`, *optional*): Of the model that will be given its ids; `ValueError` if one of them is not below.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise ValueError(
            f"{folder} lacks {TOKENIZER}: compressing needs a fast tokenizer. Save it there with "
            "`AutoTokenizer.from_pretrained(<base model>).save_pretrained(<folder>)`."
        )
    check_tokenizer_files(folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer: {error}. Save or download it again.") from error
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if vocab_size is not None and not 0 <= highest < vocab_size:
        raise ValueError(f"{path} has token ids up to {highest}, but the model knows {vocab_size} tokens.")
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
