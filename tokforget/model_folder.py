"""
A trained model's folder, read without Transformers: what compressing needs loads in a fraction of a second.

    config.json, model.safetensors (the policy alone), tokenizer.json; adapter/ is for restoring
"""

import inspect
import json
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tokforget.policy import KeepMaskPolicy


MODEL_TYPE = "tokforget"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER = "tokenizer.json"
PACKAGED = "packaged_model"


def packaged_model_path() -> Path:
    """
    Folder of the trained model that the package carries.

    Raises:
        `FileNotFoundError`: If this installation carries none.
    """
    folder = Path(str(resources.files("tokforget") / PACKAGED))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"This installation of tokforget carries no trained model ({folder} is missing). Install tokforget again, "
            "or pass the folder or Hub id of a model: `Compressor.from_pretrained('outputs/quick_test')`."
        )
    return folder


def local_folder(name_or_path: str | Path, **hub_options) -> Path:
    """A local folder as it is; a Hub id downloaded."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    # Only here: a local path must cost no network library.
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    from tokforget.hub import explain

    wanted = ["*.json", "*.safetensors", f"{ADAPTER}/*"]
    try:
        # The config first: what is no tokforget model may hold gigabytes of weights.
        _check_model_type(Path(hf_hub_download(str(name_or_path), "config.json", **hub_options)), name_or_path)
        return Path(snapshot_download(str(name_or_path), allow_patterns=wanted, **hub_options))
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ValueError(
            f"{name_or_path!r} is no local folder and could not be had from the Hub: {explain(error)}"
        ) from error


def _check_model_type(config: Path, name: str | Path) -> None:
    model_type = json.loads(config.read_text()).get("model_type")
    if model_type != MODEL_TYPE:
        raise ValueError(f"{name} holds a model of type {model_type!r}, not {MODEL_TYPE!r}.")


def check_model_folder(folder: Path, with_adapter: bool = True) -> None:
    """Raise `ValueError` unless the folder holds a tokforget model: the config's own word, weights, adapter."""
    adapter = [f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/{ADAPTER_WEIGHTS}"] if with_adapter else []
    missing = [name for name in ("config.json", WEIGHTS, *adapter) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a tokforget model: it lacks {', '.join(missing)}. Pass the folder a run saved."
        )
    _check_model_type(folder / "config.json", folder)
    for name in (WEIGHTS, *adapter[1:]):
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{folder / name} is not a whole safetensors file: {error}. Save or download it again."
            ) from error


def read_policy(folder: Path) -> KeepMaskPolicy:
    """The policy of a model folder, for inference: it reads its stored table and needs no base model."""
    check_model_folder(folder, with_adapter=False)
    config = json.loads((folder / "config.json").read_text())
    fields = inspect.signature(KeepMaskPolicy).parameters.keys() & config.keys()
    policy = KeepMaskPolicy(**{name: config[name] for name in fields})
    state = {name.removeprefix("policy."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    own = policy.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(n for n in own if own[n].shape != state[n].shape)
    if wrong:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit its config.json; the first of {len(wrong)} misfits is {wrong[0]!r}."
        )
    policy.load_state_dict(state)
    return policy.eval().requires_grad_(False)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a model folder; special tokens in a text are read as text."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise ValueError(
            f"{folder} lacks {TOKENIZER}: compressing needs a fast tokenizer. Save it there with "
            "`AutoTokenizer.from_pretrained(<base model>).save_pretrained(<folder>)`."
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
