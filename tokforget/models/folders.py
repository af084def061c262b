"""
Read a trained model's folder without Transformers, so that a compressor loads in a fraction of a second.

    config.json, model.safetensors (only the policy), tokenizer.json; adapter/ is for restoring
    policy.onnx, policy.int8.onnx, for ONNX Runtime, if `tokforget export` wrote them
"""

import difflib
import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from tokforget.files import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, TOKENIZER, WEIGHTS, write_whole
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


# Options of the Hub's client.
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
# The files of a trained model: those downloaded from a repository, and copied with an export.
_PARTS = ["*.json", "*.safetensors", f"{ADAPTER}/*"]


def local_folder(name_or_path: str | Path, graphs: bool = False, **hub_options) -> Path:
    """
    The local folder of a model. A Hub id is downloaded, with its ONNX graphs if `graphs` is set.

    Raises:
        `ValueError`: If the name is neither a local folder nor a tokforget model on the Hub.
    """
    check_name(name_or_path)
    check_hub_options(hub_options)
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    if Path(name_or_path).is_file():
        raise ValueError(
            f"{name_or_path} is a file: pass the model's folder, which holds its config.json and weights."
        )
    # Imported here, because a local path should not load a network library.
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    from tokforget.hub.client import explain

    wanted = [*_PARTS, *(GRAPHS.values() if graphs else ())]
    try:
        # The config first, because a repository that is no tokforget model may hold gigabytes of weights.
        _check_model_type(Path(hf_hub_download(str(name_or_path), CONFIG, **hub_options)), name_or_path)
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
    Raise `ValueError` unless the folder holds a tokforget model: a valid config, weights of the shapes that it states,
    an adapter, and no code. No weights are loaded yet.

    Args:
        folder (`Path`): The folder.
        with_adapter (`bool`): Whether an adapter is required.

    Returns:
        `dict`: The config.
    """
    adapter = [f"{ADAPTER}/{ADAPTER_CONFIG}", f"{ADAPTER}/{ADAPTER_WEIGHTS}"] if with_adapter else []
    missing = [name for name in (CONFIG, WEIGHTS, *adapter) if not (folder / name).is_file()]
    if missing == adapter and adapter and read_json(folder / CONFIG).get("has_adapter") is False:
        raise ValueError(
            f"{folder} was trained by a reader alone: it compresses, and has no reconstructor to restore with. Compress what is to be "
            "restored with the model 'embedded', or with one that was trained with its reconstructor."
        )
    if missing:
        raise ValueError(
            f"{folder} is not a tokforget model: it lacks {', '.join(missing)}. Pass the folder a run saved."
        )
    check_files(folder)
    config = check_config(folder / CONFIG, MODEL_TYPE)
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
    """
    The policy of a model folder as a torch module, for inference. It uses the stored table and needs no base model.
    """
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
    """The policy of a model folder in NumPy, for compressing on a CPU without torch."""
    config = check_model_folder(folder, with_adapter=False)
    arrays = {name.removeprefix("policy."): array for name, array in read_arrays(folder / WEIGHTS).items()}
    return ArrayPolicy(config, arrays)


def read_onnx_policy(folder: Path, precision: str | None = None) -> OnnxPolicy:
    """
    The policy of a model folder for ONNX Runtime, for compressing on a CPU without torch.

    Args:
        folder (`Path`): The model's folder.
        precision (`str`, *optional*): `"onnx"` for float32, or `"onnx-int8"`; by default the first of the two that
            exists.

    Raises:
        `ValueError`: If the folder has no such graph, or the graph was made from other weights.
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
    Write the ONNX Runtime graphs of a model folder.

    Args:
        folder (`Path`): A trained model's folder.
        target (`Path`, *optional*): Folder for a copy of the model with the graphs; by default the graphs are written
            to `folder` itself.
        precisions (`Sequence[str]`): `"onnx"` for float32, `"onnx-int8"`.
        overwrite (`bool`): Whether existing files may be replaced.

    Returns:
        `list[Path]`: The graphs.

    Raises:
        `ValueError`: If the folder is no tokforget model, or a file exists already; then nothing is written.
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
    The fast tokenizer of a model folder. It reads special tokens in a text as ordinary text.

    Args:
        folder (`Path`): The model's folder.
        vocab_size (`int`, *optional*): Vocabulary of the model that will get the ids.

    Raises:
        `ValueError`: If there is no valid `tokenizer.json`, or one of its ids is not below `vocab_size`.
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
