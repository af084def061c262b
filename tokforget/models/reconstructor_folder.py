"""
A reconstructor on disk: start from a model or an adapter, save, load, and check the layout.

    adapter_config.json, adapter_model.safetensors   (LoRA)     or an ordinary causal language model folder (full)
    tokenizer files, training_config.json (the layout among it), eval_results.json, README.md
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokforget.files import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, TRAINER_STATE, WEIGHTS
from tokforget.files import TRAINING as RECORD
from tokforget.models.folder_checks import check_safetensors, check_shapes, read_json
from tokforget.models.loading import (
    adapter_shapes,
    add_adapter,
    is_adapter,
    lasting_name,
    load_adapter,
    load_base_model,
    marker_token_id,
)
from tokforget.models.reconstructor import Reconstructor
from tokforget.models.sharded_weights import read_into
from tokforget.packaged import EMBEDDED


ADAPTER_FILES = (ADAPTER_WEIGHTS, ADAPTER_CONFIG)
MODEL_FILES = (WEIGHTS, "generation_config.json", CONFIG)


# -- starting from a folder or an id -----------------------------------------------------------------------------------


def load_trainable(
    name_or_path: str,
    tokenizer: PreTrainedTokenizerBase,
    layout: str,
    revision: str | None = None,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    use_peft: bool = True,
    lora_target_modules: Sequence[str] | None = None,
) -> Reconstructor:
    """
    A reconstructor to train.

    Args:
        name_or_path (`str`): Id or folder of a causal language model, `"embedded"`, or a folder with an adapter (or with
            an `adapter/` inside), local or on the Hub.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        layout (`str`): `"prefix"` or `"infill"`.
        revision (`str`, *optional*): Branch, tag or commit of an id.
        lora_rank, lora_alpha (`int`): Rank and scale of a new adapter; an existing adapter keeps its own.
        lora_target_modules (`Sequence[str]`, *optional*): Last parts of the names of the layers that a new adapter
            changes; by default every linear layer except the output head.
        use_peft (`bool`): True trains an adapter, a new one or the folder's. False trains all weights of the model; an
            adapter in the folder is merged into them.

    Raises:
        `ValueError`: If the folder was trained for another layout, or model and tokenizer do not belong together.
    """
    folder = _on_disk(name_or_path, revision)
    check_layout(folder, layout)
    adapter = adapter_folder(folder)
    if adapter is not None:
        model = load_adapter(str(adapter), is_trainable=use_peft)
        if not use_peft:
            model = model.merge_and_unload()
    else:
        model = load_base_model(name_or_path, revision)
        if use_peft:
            model = add_adapter(model, lora_rank, lora_alpha, lora_target_modules)
            model.peft_config["default"].base_model_name_or_path = lasting_name(name_or_path)
            model.peft_config["default"].revision = revision
    if not use_peft:
        model.requires_grad_(True)
    _check_vocabulary(model, tokenizer)
    reconstructor = Reconstructor(model, layout, marker_token_id(tokenizer))
    reconstructor.check_full_attention()
    return reconstructor


def load_reconstructor(
    name_or_path: str, tokenizer: PreTrainedTokenizerBase, layout: str | None = None, revision: str | None = None
) -> Reconstructor:
    """
    A frozen reconstructor for scoring and restoring. `layout` is by default the recorded one.

    Raises:
        `ValueError`: If the reconstructor cannot be loaded, or no layout is recorded or given.
    """
    folder = _on_disk(name_or_path, revision)
    layout = layout or recorded_layout(folder)
    if layout is None:
        raise ValueError(f"{name_or_path!r} does not record a layout; pass `layout`, 'prefix' or 'infill'.")
    check_layout(folder, layout)
    adapter = adapter_folder(folder)
    model = load_base_model(name_or_path, revision) if adapter is None else load_adapter(str(adapter))
    _check_vocabulary(model, tokenizer)
    reconstructor = Reconstructor(model, layout, marker_token_id(tokenizer)).eval()
    reconstructor.check_full_attention()
    return reconstructor


def _on_disk(name_or_path: str, revision: str | None = None) -> str:
    """A local copy of the record and adapter if the name is a repository of a run; otherwise the name unchanged."""
    if name_or_path == EMBEDDED or Path(name_or_path).exists():
        return name_or_path
    try:
        record = hf_hub_download(name_or_path, RECORD, revision=revision)
        patterns = [RECORD, *ADAPTER_FILES, *(f"{ADAPTER}/{name}" for name in ADAPTER_FILES)]
        return snapshot_download(name_or_path, revision=Path(record).parent.name, allow_patterns=patterns)
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return name_or_path  # not a run of tokforget, or not available: loading it as a model says which


def adapter_folder(name_or_path: str) -> Path | None:
    """The folder of an adapter: the given one or its `adapter/`; `None` for a whole model or an id."""
    return next((p for p in (Path(name_or_path, ADAPTER), Path(name_or_path)) if is_adapter(str(p))), None)


def recorded_layout(name_or_path: str) -> str | None:
    """The layout that a folder was trained for, from its `training_config.json`; `None` if none is recorded."""
    folder = Path(name_or_path)
    for record in (folder / RECORD, folder.parent / RECORD if folder.name == ADAPTER else folder / RECORD):
        if record.is_file():
            return read_json(record).get("layout")
    return None


def check_layout(name_or_path: str, layout: str) -> None:
    """Raise `ValueError` if a folder was trained for another layout, whose rows the model could not read."""
    recorded = recorded_layout(name_or_path)
    if recorded not in (None, layout):
        raise ValueError(
            f"`layout` is {layout!r}, but {name_or_path!r} was trained for {recorded!r}. Pass `--layout {recorded}`, or "
            "start from another reconstructor."
        )


def _check_vocabulary(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has {len(tokenizer)} tokens, but the model embeds only {rows}. "
            "Take the tokenizer that the model was trained with."
        )


# -- weights -----------------------------------------------------------------------------------------------------------
def weight_files(reconstructor: Reconstructor) -> tuple[str, ...]:
    """The files of a reconstructor's weights. The last one identifies the folder as a model."""
    return ADAPTER_FILES if isinstance(reconstructor.model, PeftModel) else MODEL_FILES


def save_weights(reconstructor: Reconstructor, folder: Path, state_dict: dict | None = None) -> None:
    """
    Write the adapter, or the whole model if all weights were trained. Each file is written atomically; weights are
    safetensors.

    A trainer with sharded weights passes the gathered ones as `state_dict`, with the names of `reconstructor`.
    """
    if state_dict is not None:
        state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
    options = {"save_embedding_layers": False} if isinstance(reconstructor.model, PeftModel) else {}
    staging = folder / ".weights"
    reconstructor.model.save_pretrained(staging, state_dict=state_dict, **options)
    files = weight_files(reconstructor)
    for name in files:
        if (staging / name).is_file():
            os.replace(staging / name, folder / name)
    shutil.rmtree(staging)
    for other in {*ADAPTER_FILES, *MODEL_FILES} - {*files}:
        # A run of the other kind (all weights or LoRA) may have left it in this folder.
        (folder / other).unlink(missing_ok=True)


def check_checkpoint(reconstructor: Reconstructor, folder: str | Path) -> None:
    """Raise `ValueError` unless a folder is a checkpoint of this kind of training: state, weights, layout."""
    wanted = (
        TRAINER_STATE,
        *(name for name in weight_files(reconstructor) if name != "generation_config.json"),
    )
    missing = [name for name in wanted if not Path(folder, name).is_file()]
    if missing:
        raise ValueError(f"`resume_from_checkpoint` {str(folder)!r} is no checkpoint of such a run: it lacks "
                         f"{', '.join(missing)}.")  # fmt: skip
    check_layout(str(folder), reconstructor.layout)


def load_weights(reconstructor: Reconstructor, folder: str | Path) -> None:
    """
    Read a checkpoint's weights into this reconstructor, in place. Raises `ValueError` if another model has saved them.
    """
    path = Path(folder, weight_files(reconstructor)[0])
    shapes = check_safetensors(path)
    model = reconstructor.model
    if isinstance(model, PeftModel):
        check_shapes(path, shapes, adapter_shapes(model), "this model")
        # Files do not contain the name of the adapter in the model.
        read_into(
            model, {name.replace(".weight", ".default.weight"): weight for name, weight in load_file(path).items()}
        )
    else:
        tied = model.all_tied_weights_keys
        own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        check_shapes(path, shapes, {name: shape for name, shape in own.items() if name not in tied or name in shapes},
                     "this model")  # fmt: skip
        read_into(model, load_file(path))
