"""Load the model that a training starts from, by a recipe's arguments or by a name."""

from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from tokforget.files import CONFIG
from tokforget.models.arguments import ModelArguments, ReconstructorArguments
from tokforget.models.folders import MODEL_TYPE, check_model_folder, local_folder
from tokforget.models.forget_model import ForgetModel, ForgetModelConfig
from tokforget.models.loading import load_tokenizer
from tokforget.models.reconstructor import Reconstructor
from tokforget.models.reconstructor_folder import check_checkpoint, load_trainable, recorded_layout
from tokforget.packaged import EMBEDDED


# Fields of a policy's shape: those that a run may choose, and further ones that it copies from a trained policy.
_CHOSEN = ("hidden_size", "window", "ngram_buckets")
_TAKEN_OVER = ("dilations", "kernel_size", "head_size", "logit_bound")


def load_by_arguments(
    model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> ForgetModel:
    """
    The named policy, or a new one, with the named reconstructor.

    Args:
        model_args ([`ModelArguments`]): Names and shapes.
        tokenizer (`PreTrainedTokenizerBase`): The reconstructor's tokenizer.
        max_length (`int`, *optional*): Tokens of the longest text, which must fit the reconstructor's context.

    Raises:
        `ValueError`: If a name cannot be loaded, policy and reconstructor do not share their vocabulary, or texts are too long.
    """
    shape = {
        "hidden_size": model_args.policy_hidden_size,
        "window": model_args.window,
        "ngram_buckets": model_args.ngram_buckets,
    }
    folder = None
    if model_args.policy_name_or_path is not None:
        folder = local_folder(model_args.policy_name_or_path)
        check_model_folder(folder, with_adapter=False)
        if load_tokenizer(str(folder)).get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"The policy {model_args.policy_name_or_path} reads another vocabulary than the reconstructor "
                f"{model_args.reconstructor_name_or_path}. Take one that was trained over it."
            )
        trained = ForgetModelConfig.from_pretrained(folder)
        shape = {name: getattr(trained, name) for name in (*_CHOSEN, *_TAKEN_OVER)}
    model = ForgetModel.from_base(
        model_args.reconstructor_name_or_path,
        tokenizer,
        revision=model_args.reconstructor_revision,
        lora_rank=model_args.lora_rank,
        lora_alpha=model_args.lora_alpha,
        lora_target_modules=model_args.lora_target_modules,
        layout=model_args.layout,
        **shape,
    )
    if folder is not None:
        model.load_policy(folder)
    if max_length is not None:
        model.reconstructor.check_max_length(max_length)
    return model


def load_by_name(name: str, tokenizer: PreTrainedTokenizerBase) -> ForgetModel:
    """
    A model to train, by its name. A trained [`ForgetModel`] is trained further; a reconstructor or a causal language
    model (an id on the Hub, a folder, `"embedded"`) gets a new policy with the defaults of [`ModelArguments`].

    Raises:
        `ValueError`: If the name cannot be loaded.
    """
    if _is_forget_model(name):
        return ForgetModel.from_pretrained(name, is_trainable=True)
    layout = recorded_layout(name) or ModelArguments.layout
    return load_by_arguments(ModelArguments(reconstructor_name_or_path=name, layout=layout), tokenizer)


def _is_forget_model(name: str) -> bool:
    if name == EMBEDDED or (Path(name).is_dir() and not Path(name, CONFIG).is_file()):
        return False
    try:
        return PreTrainedConfig.get_config_dict(name)[0].get("model_type") == MODEL_TYPE
    except (OSError, ValueError):
        return False  # loading it will raise the error


def load_reconstructor_by_arguments(
    model_args: ReconstructorArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    checkpoint: str | None = None,
) -> Reconstructor:
    """
    The named reconstructor, to train an adapter or all weights.

    Raises:
        `ValueError`: If it cannot be loaded, `max_length` tokens do not fit its context, or `checkpoint` belongs to
            another model.
    """
    reconstructor = load_trainable(
        model_args.reconstructor_name_or_path,
        tokenizer,
        model_args.layout,
        revision=model_args.reconstructor_revision,
        lora_rank=model_args.lora_rank,
        lora_alpha=model_args.lora_alpha,
        lora_target_modules=model_args.lora_target_modules,
        use_peft=model_args.use_peft,
    )
    reconstructor.check_max_length(max_length)
    if checkpoint is not None:
        check_checkpoint(reconstructor, checkpoint)
    return reconstructor
