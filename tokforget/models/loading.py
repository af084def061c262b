"""
Load causal language models, adapters and tokenizers from a folder or the Hub. Weights must be safetensors and are
checked before they are read.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tokforget.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TOKENIZER
from tokforget.forks import let_children_compute
from tokforget.hub.client import OFFLINE
from tokforget.models.folder_checks import (
    Shapes,
    check_adapter,
    check_base_folder,
    check_shapes,
    check_tokenizer_files,
    read_json,
)
from tokforget.packaged import EMBEDDED, base_model_path


# Numbers that a model may compute instead of storing them: the 12 causal masks of GPT-2 have 12.6 million.
_COMPUTED = 2**26


def resolve_base(name_or_path: str) -> str:
    """The packaged model's folder for `"embedded"`; any other name unchanged."""
    return base_model_path() if name_or_path == EMBEDDED else name_or_path


def lasting_name(name_or_path: str) -> str:
    """
    The name of a base model as configs record it: a local folder becomes an absolute path, valid in any directory.
    """
    if name_or_path != EMBEDDED and Path(name_or_path).is_dir():
        return str(Path(name_or_path).absolute())
    return name_or_path


def is_local_path(name: str) -> bool:
    """Whether a name can only be a local path, and not an id of the Hub."""
    return name.startswith(("/", "./", "../", "~", "\\")) or name[1:3] in (":\\", ":/")


def marker_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """
    The marker token, which serves as separator and placeholder: the mask token, else the end token, else the begin
    token. Raises `ValueError` if the tokenizer has none of them.
    """
    for token_id in (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token_id is not None:
            return token_id
    raise ValueError(
        f"The tokenizer {tokenizer.name_or_path!r} has neither a mask nor an end nor a begin token, and the "
        "reconstructor needs one as separator. Add one, for instance `tokenizer.eos_token = ...`."
    )


def load_base_model(
    name_or_path: str, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """
    Load a causal language model by id, folder, or `"embedded"`, with frozen weights. All reconstructors, readers and
    targets are loaded here.

    Args:
        name_or_path (`str`): Id, folder, or `"embedded"`.
        revision (`str`, *optional*): Branch, tag or commit of an id.
        dtype (`torch.dtype`): Type of the weights, whatever the file holds.

    Raises:
        `ValueError`: If the model cannot be loaded, is not in safetensors, needs code of its own, is broken, or has a
            config that asks for more than its weights hold.
    """
    let_children_compute()
    path = resolve_base(name_or_path)
    if (
        is_local_path(path) and not Path(path).is_dir()
    ):  # otherwise the error would be that of the Hub, about an unknown id
        raise ValueError(
            f"The base model {name_or_path!r} is a local folder that is not there. Put it there, or train over an id of the Hub, "
            "which is found from anywhere."
        )
    try:
        if Path(path).is_dir():
            _check_size(path, check_base_folder(Path(path)))
        model = AutoModelForCausalLM.from_pretrained(
            path, revision=revision, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # an untrusted config may raise any error in its class
        raise ValueError(f"{name_or_path!r} could not be loaded: {_said(error, path)}") from error
    model.requires_grad_(False)
    return model


def _check_size(path: str, shapes: Shapes) -> None:
    """Raise `ValueError` if a config describes more weights than are stored, because the rest would be random."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    described, computed = (sum(t.numel() for t in part()) for part in (model.parameters, model.buffers))
    stored = sum(math.prod(shape) for shape in shapes.values())
    if described > 1.1 * stored or computed > stored + _COMPUTED:
        raise ValueError(f"{path}/config.json describes {described:,} weights, and {stored:,} lie beside it.")


def add_adapter(
    base_model: PreTrainedModel, rank: int, alpha: int, target_modules: Sequence[str] | None = None
) -> PeftModel:
    """
    A new LoRA adapter (Hu et al. 2021, arXiv 2106.09685) on the linear layers whose names end in one of
    `target_modules`, by default on all except the output head. Raises `ValueError` if no layer has such a name.
    """
    _check_targets(base_model, target_modules)
    targets = list(target_modules) if target_modules else "all-linear"
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    # GPT-2's Conv1D stores its weights transposed.
    config.fan_in_fan_out = any(type(module).__name__ == "Conv1D" for module in base_model.modules())
    with _renamed_for_peft():
        return get_peft_model(base_model, config)


def _check_targets(base_model: PreTrainedModel, target_modules: Sequence[str] | None) -> None:
    # GPT-2's linear layers are Conv1D.
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in base_model.named_modules()
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    }
    unknown = sorted(set(target_modules or ()) - linear)
    if unknown:
        raise ValueError(f"`lora_target_modules` names {', '.join(unknown)}, which this model does not have; its linear layers are "
                         f"{', '.join(sorted(linear))}.")  # fmt: skip


@contextmanager
def _renamed_for_peft() -> Iterator[None]:
    """
    Silence a warning of Transformers 5.24 about an attribute that PEFT reads by its former name; users cannot fix it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def is_adapter(path: str) -> bool:
    return Path(path, ADAPTER_CONFIG).is_file()


def load_adapter(path: str, base_model: PreTrainedModel | None = None, is_trainable: bool = False) -> PeftModel:
    """
    Load the LoRA adapter in a folder onto its base model, which is loaded if it is not given. Raises `ValueError` if
    the adapter is broken, does not fit, or is not LoRA.
    """
    shapes = check_adapter(Path(path))
    try:
        config = PeftConfig.from_pretrained(path)
        if base_model is None:
            base_model = load_base_model(config.base_model_name_or_path, config.revision)
        with _renamed_for_peft():
            model = PeftModel.from_pretrained(base_model, path, is_trainable=is_trainable, use_safetensors=True)
    except Exception as error:  # as for a base model
        raise ValueError(f"The adapter {path} could not be loaded: {' '.join(str(error).split())[:500]}") from error
    # PEFT loads the weights that fit and initialises the rest, so compare the shapes.
    check_shapes(Path(path, ADAPTER_WEIGHTS), shapes, adapter_shapes(model))
    return model


def adapter_shapes(model: PeftModel) -> Shapes:
    """Names and shapes of the weights that an adapter's file holds."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def tokenizer_source(reconstructor_name_or_path: str) -> str:
    """
    Name of the folder or repository with a reconstructor's tokenizer: its own, or that of an adapter's base model.
    """
    folder = Path(reconstructor_name_or_path)
    if (folder / TOKENIZER).is_file() or (folder / "vocab.json").is_file():
        return reconstructor_name_or_path
    for adapter in (folder, folder / "adapter"):
        if is_adapter(str(adapter)):
            check_adapter(adapter)
            return resolve_base(read_json(adapter / ADAPTER_CONFIG)["base_model_name_or_path"])
    return resolve_base(reconstructor_name_or_path)


def load_tokenizer(name_or_path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a reconstructor. Raises `ValueError` in one line if that fails."""
    source = name_or_path
    try:
        source = tokenizer_source(name_or_path)
        if Path(source).is_dir():
            check_tokenizer_files(Path(source))
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # the library raises nothing narrower for a broken tokenizer.json
        raise ValueError(
            f"The tokenizer of {name_or_path!r} could not be loaded; it is no folder that a run has saved, and no id that "
            f"can be reached: {_said(error, source)}"
        ) from error


def _said(error: Exception, source: str) -> str:
    """An error of a library in one line; offline it would speak of a connection, and nobody wants one there."""
    if constants.HF_HUB_OFFLINE and not Path(source).is_dir() and "couldn't connect" in str(error):
        return OFFLINE
    return " ".join(str(error).split())[:500]
