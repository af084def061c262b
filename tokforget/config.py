"""
Arguments of a run: fields, help, checks; and the one parser of all recipes.

No `from __future__ import annotations` here: the host's parser reads the annotations as types.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NoReturn

import yaml
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import HubStrategy

from tokforget._trl import _BaseConfig
from tokforget.checkpoints import check_checkpoint, is_finished, last_checkpoint
from tokforget.duplicates import THRESHOLD
from tokforget.masking import check_rate
from tokforget.rewards import WeightedRewards


# Names that people know from scripts of this kind, and the fields that do the same.
ALIASES = {
    "data_path": "dataset_name",
    "reconstructor_path": "reconstructor_name_or_path",
    "model_name_or_path": "reconstructor_name_or_path",
    "max_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "learning_rate_policy": "policy_learning_rate",
    "learning_rate_reconstructor": "reconstructor_learning_rate",
    "reward_type": "reward_funcs",
}
DEVICES = {"cpu": "true", "cuda": "false", "gpu": "false"}


@dataclass
class DataArguments:
    """Where the texts come from, and how they are cut."""

    dataset_name: str = field(
        metadata={
            "help": "Hub id such as `Salesforce/wikitext`, a .txt/.json/.jsonl/.csv/.parquet file, a folder of them, "
            "`embedded` for the documentation that Python carries, or a folder that recipes/prepare_data.py wrote."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    max_length: int = field(
        default=128, metadata={"help": "Tokens per block; documents are cut into blocks, the last may be shorter."}
    )
    min_length: int = field(
        default=16, metadata={"help": "Blocks of fewer tokens are left out of training and evaluation, and counted."}
    )
    max_train_texts: int | None = field(
        default=None, metadata={"help": "Blocks to train on, drawn at random; all by default."}
    )
    max_eval_texts: int = field(default=64, metadata={"help": "Validation blocks during training, drawn at random."})
    max_test_texts: int = field(
        default=128, metadata={"help": "Test blocks of the closing comparison with the baselines; 0 leaves it out."}
    )

    def __post_init__(self):
        for name, least in (("max_length", 2), ("min_length", 1), ("max_eval_texts", 1), ("max_test_texts", 0)):
            _at_least(self, name, least)
        if self.max_train_texts is not None:
            _at_least(self, "max_train_texts", 1)
        _check_lengths(self)


@dataclass
class PreparationArguments:
    """Source, division, tokenizer and output of `recipes/prepare_data.py`."""

    # Source
    dataset_name: str = field(
        metadata={
            "help": "Hub id such as `Salesforce/wikitext`, a .txt/.json/.jsonl/.csv/.parquet file, a folder of them, or "
            "`embedded` for the documentation that Python carries."
        }
    )
    tokenizer: str = field(
        metadata={"help": "Hub id or folder of the tokenizer or its model, or `embedded` for the packaged one."}
    )
    output_dir: str = field(metadata={"help": "Folder to write; refused if there is anything in it."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the source as a stream, twice, in constant memory; else it is downloaded (Hub) or held in memory "
            "(files) first. A .json file of one list is always read whole. The result is the same."
        },
    )
    max_sequences: int | None = field(
        default=None,
        metadata={
            "help": "Documents taken from each split of the source, drawn from all of it by `seed`; all by default. Takes one "
            "more pass."
        },
    )

    # Splits
    train_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of a split of the source, or the share of its training documents to train on, in (0, 1). By "
            "default the source's training or only split, less what is cut from it for the others."
        },
    )
    val_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of a split of the source, or a share in (0, 1) to cut from its training documents. By default the "
            "source's own if it has one (validation, valid, val, dev), else 0.08."
        },
    )
    test_split: str | None = field(
        default=None,
        metadata={"help": "As `val_split`; by default the source's own `test` if it has one, else 0.08."},
    )
    duplicate_threshold: float = field(
        default=THRESHOLD,
        metadata={
            "help": "Jaccard similarity of word 5-grams, in (0, 1], from which on a document counts as a copy of a held-out "
            "one and is left out; at 1 only exact copies."
        },
    )
    seed: int = field(default=0, metadata={"help": "Of the division by shares and of the draw of `max_sequences`."})

    # Blocks
    max_length: int = field(
        default=512, metadata={"help": "Tokens per block; documents are cut into blocks, the last may be shorter."}
    )
    min_length: int = field(default=16, metadata={"help": "Blocks of fewer tokens are left out, and counted."})

    # Work
    num_proc: int = field(default=1, metadata={"help": "Processes; the result is the same for any number."})

    def __post_init__(self):
        for name, least in (("max_length", 2), ("min_length", 1), ("num_proc", 1), ("seed", 0)):
            _at_least(self, name, least)
        if self.max_sequences is not None:
            _at_least(self, "max_sequences", 1)
        _check_lengths(self)
        if not 0 < self.duplicate_threshold <= 1:
            raise ValueError(f"`duplicate_threshold` must lie in (0, 1], got {self.duplicate_threshold}.")


@dataclass
class BaseModelArguments:
    """The reconstructor to start from."""

    reconstructor_name_or_path: str = field(
        metadata={
            "help": "Causal language model (Hub id or folder), a folder with a LoRA adapter to go on from, or `embedded` for "
            "the small GPT-2 that the package carries."
        }
    )
    reconstructor_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    layout: str = field(
        default="prefix",
        metadata={
            "help": "`prefix` ([kept] <sep> [original], causal) or `infill` (gaps filled in one pass). LOG.md compares."
        },
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter; alpha / rank multiplies its output."})

    def __post_init__(self):
        if self.layout not in ("prefix", "infill"):
            raise ValueError(f"`layout` must be 'prefix' or 'infill', got {self.layout!r}.")
        for name in ("lora_rank", "lora_alpha"):
            _at_least(self, name, 1)


@dataclass
class ModelArguments(BaseModelArguments):
    """The reconstructor to start from, and the shape of the policy."""

    policy_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Trained model (folder or Hub id) whose policy to go on from, over the same vocabulary. Its shape is taken, "
            "its count tables are fitted anew on this run's texts; a fresh policy by default."
        },
    )
    policy_hidden_size: int = field(default=128, metadata={"help": "Width of the policy's trunk."})
    policy_dilations: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 1], metadata={"help": "Dilation of each convolution block of the policy."}
    )
    window: int = field(
        default=32, metadata={"help": "Tokens per decision; a text of T tokens takes ceil(T / window)."}
    )
    logit_bound: float = field(
        default=8.0, metadata={"help": "Keep logits lie within +-this around the margin of the budget."}
    )
    ngram_buckets: int = field(
        default=2**18,
        metadata={"help": "Size of the policy's hashed count tables, a power of two; 0 leaves them out."},
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("policy_hidden_size", "window"):
            _at_least(self, name, 1)
        if self.logit_bound <= 0:
            raise ValueError(f"`logit_bound` must be positive, got {self.logit_bound}.")
        if self.ngram_buckets < 0 or self.ngram_buckets & (self.ngram_buckets - 1):
            raise ValueError(f"`ngram_buckets` must be 0 or a power of two, got {self.ngram_buckets}.")


@dataclass
class BudgetConfig(_BaseConfig):
    """What the training arguments of every [`BudgetTrainer`] share: the host's `TrainingArguments`, and the fields below."""

    # Host defaults that differ here
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "bfloat16 autocast; by default on where a GPU supports it, off on CPU and under DeepSpeed or FSDP."
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Not supported: models of the sizes trained here fit without it."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator takes the columns it needs."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rates."})
    warmup_steps: float = field(default=20, metadata={"help": "Steps over which the learning rates rise."})
    hub_strategy: str = field(
        default="end", metadata={"help": "With `push_to_hub`, when: at the `end`, or at `every_save` too."}
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})
    metric_for_best_model: str | None = field(default="bits_lost", metadata={"help": "Lower is better for bits."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "No use here: a loss that is not finite ends the run."}
    )
    auto_resume: bool = field(
        default=False,
        metadata={
            "help": "Go on from the last whole checkpoint of `output_dir` if there is one, else start: the same command "
            "serves for both. A run that has finished is not trained again."
        },
    )

    # Rates and evaluation
    min_rate: float = field(default=0.2, metadata={"help": "Lowest requested rate in training, in (0, 1)."})
    max_rate: float = field(default=0.8, metadata={"help": "Highest requested rate in training, in (0, 1)."})
    eval_rates: list[float] = field(
        default_factory=lambda: [0.3, 0.5, 0.7], metadata={"help": "Rates at which evaluation compresses."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better `metric_for_best_model` before training stops."}
    )

    def __post_init__(self):
        if self.bf16 is None:
            # DeepSpeed and FSDP would store weights in bfloat16, which is another thing than autocast: only when asked for.
            sharded = any(parse_flag_from_env(name) for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"))
            self.bf16 = not self.fp16 and not self.use_cpu and not sharded and _gpu_has_bf16()
        if self.data_seed is None:
            self.data_seed = self.seed  # else the order of the texts would hang on the state of torch's generator
        if self.use_cpu or not _has_gpu():
            self.dataloader_pin_memory = False  # there is nothing to pin it for, and torch would say so
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = (
                "bits" not in self.metric_for_best_model and "loss" not in self.metric_for_best_model
            )
        super().__post_init__()
        for name in ("min_rate", "max_rate"):
            check_rate(getattr(self, name))
        if not self.min_rate <= self.max_rate < 1:
            raise ValueError(f"Needed is `min_rate` <= `max_rate` < 1, got {self.min_rate} and {self.max_rate}.")
        if not self.eval_rates:
            raise ValueError("`eval_rates` is empty; pass at least one rate.")
        for rate in self.eval_rates:
            check_rate(rate)
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                "`early_stopping_patience` needs `load_best_model_at_end: true` and evaluations to compare."
            )
        if self.gradient_checkpointing:
            raise ValueError(
                "`gradient_checkpointing` is not supported: models of the sizes trained here fit without it."
            )
        if self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"`hub_strategy` must be 'end' or 'every_save', got {str(self.hub_strategy.value)!r}, which sends optimizer "
                "states. The model folder alone is sent."
            )
        if self.label_smoothing_factor:
            raise ValueError("`label_smoothing_factor` would smooth the bits that are counted; leave it at 0.")


@dataclass
class ForgetConfig(BudgetConfig):
    """Training arguments of [`ForgetTrainer`]: those of [`BudgetConfig`], and the fields below."""

    # In `output_dir`: the policy as the joint loop found it, and what it had learnt from.
    warm_start_dir: ClassVar[str] = "warm_start"
    lesson_dir: ClassVar[str] = "lesson"

    # Learning rates
    policy_learning_rate: float = field(
        default=3e-3, metadata={"help": "Of the policy, per step of its own schedule (LOG.md, learning rates)."}
    )
    reconstructor_learning_rate: float = field(
        default=2e-3, metadata={"help": "Of the adapter; small models take 2e-3, GPT-2 takes 2e-4 to 1e-3."}
    )

    # Texts drawn from the base model
    sampled_texts: int = field(
        default=0,
        metadata={
            "help": "Texts that the base model writes before training, to learn from beside the training texts; a small corpus "
            "is learnt by heart otherwise (LOG.md). They stay in `output_dir`, for a run that is resumed."
        },
    )
    sampled_prompt_tokens: int = field(
        default=8, metadata={"help": "Tokens of a training text that each of them begins with."}
    )

    # Warm start
    warm_start_steps: int = field(
        default=0,
        metadata={"help": "Steps of fitting the policy's ranking to the teacher's bits before the joint loop."},
    )
    warm_start_teacher: str = field(
        default="self_information",
        metadata={"help": "`self_information` (one LM pass per text) or `leave_one_out` (two, both sides)."},
    )
    warm_start_texts: int | None = field(
        default=None, metadata={"help": "Training texts the teacher reads, the first of them; all by default."}
    )
    lesson_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder `lesson/` of another run on the same texts: its sampled texts and its teacher's bits are taken, "
            "instead of drawing and asking again. Runs that differ in their seed can share one."
        },
    )
    warm_start_learning_rate: float = field(default=3e-3, metadata={"help": "Of the policy in the warm start."})
    warm_start_batch_size: int = field(default=32, metadata={"help": "Texts per step of the warm start."})
    warm_start_sharpness: float = field(
        default=24.0,
        metadata={
            "help": "Keep logits per unit of the logarithm of a token's bits when the fit is through: the higher, the closer to the best "
            "are the first masks of the joint loop. At 3 its gradient sharpens the masks and loses their order (LOG.md)."
        },
    )

    # Episodes
    num_masks: int = field(default=4, metadata={"help": "Keep masks drawn per text and step, at least 2."})

    # Rewards and credit
    reward_funcs: list[str] = field(
        default_factory=lambda: ["information_theoretic"],
        metadata={
            "help": "`information_theoretic`, `simple`, `exact_runs`, or import paths such as `my_package.rewards:name`."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward; 1 each by default."}
    )
    keep_price: float | None = field(
        default=None, metadata={"help": "Bits charged per kept token; by default each text's marginal price."}
    )
    credit_decay: float = field(
        default=0.3,
        metadata={
            "help": "Share of a neighbour's reward credited to a token, per token of distance; 1 is the whole text."
        },
    )
    neighbour_baseline: bool = field(
        default=True,
        metadata={
            "help": "Credit a neighbour's reward less its mean over the masks in which the neighbour was decided alike."
        },
    )
    gamma: float = field(
        default=0.0, metadata={"help": "Discount per decision of the rewards of later windows, in [0, 1]."}
    )

    # Loss
    scale_advantages: bool = field(
        default=False,
        metadata={
            "help": "Divide the advantages of each text by their root mean square, so that every rate counts alike; "
            "`entropy_coef` then has no unit."
        },
    )
    entropy_coef: float = field(default=0.05, metadata={"help": "Weight of the policy's entropy, bits per nat."})
    reconstructor_coef: float = field(
        default=1.0, metadata={"help": "Weight of the reconstruction loss; 0 freezes the adapter."}
    )
    reconstruction_share: float = field(
        default=1.0,
        metadata={
            "help": "Share of the texts whose masks train the reconstructor, in (0, 1]. The others are scored only, without "
            "a backward pass through the language model: more texts for the policy in the same time."
        },
    )
    random_mask_share: float = field(
        default=0.2,
        metadata={
            "help": "Share of random keep masks in the reconstructor's batch, in [0, 1): keeps it from colluding."
        },
    )

    def __post_init__(self):
        if self.learning_rate not in (TrainingArguments.learning_rate, self.reconstructor_learning_rate):
            raise ValueError(
                f"`learning_rate` ({self.learning_rate}) is ambiguous here: set `policy_learning_rate` and "
                "`reconstructor_learning_rate`."
            )
        WeightedRewards(self.reward_funcs, self.reward_weights)  # a reward that does not exist is an error now
        self.learning_rate = self.reconstructor_learning_rate
        super().__post_init__()
        _at_least(self, "num_masks", 2)
        if self.lesson_path is not None and self.sampled_texts:
            raise ValueError("`lesson_path` brings its own sampled texts: leave out `sampled_texts`.")
        for name, least in (("sampled_texts", 0), ("sampled_prompt_tokens", 1), ("warm_start_steps", 0)):
            _at_least(self, name, least)
        _at_least(self, "warm_start_batch_size", 1)
        if not 0 < self.warm_start_sharpness < math.inf:
            raise ValueError(f"`warm_start_sharpness` must be positive and finite, got {self.warm_start_sharpness}.")
        if self.warm_start_texts is not None:
            _at_least(self, "warm_start_texts", 1)
        if self.warm_start_teacher not in ("self_information", "leave_one_out"):
            raise ValueError(
                f"`warm_start_teacher` must be 'self_information' or 'leave_one_out', got {self.warm_start_teacher!r}."
            )
        for name, high in (("credit_decay", 1.0), ("gamma", 1.0)):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"`{name}` must lie in [0, {high:g}], got {getattr(self, name)}.")
        if not 0 < self.reconstruction_share <= 1:
            raise ValueError(f"`reconstruction_share` must lie in (0, 1], got {self.reconstruction_share}.")
        if self.reconstruction_share * self.per_device_train_batch_size < 1:
            raise ValueError(
                f"`reconstruction_share` {self.reconstruction_share} of a batch of {self.per_device_train_batch_size} is no "
                "text at all: raise one of them."
            )
        if not 0 <= self.random_mask_share < 1:
            raise ValueError(f"`random_mask_share` must lie in [0, 1), got {self.random_mask_share}.")
        for name in ("policy_learning_rate", "reconstructor_learning_rate", "entropy_coef", "reconstructor_coef",
                     "warm_start_learning_rate"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")


def _at_least(arguments, name: str, least: int) -> None:
    if getattr(arguments, name) < least:
        raise ValueError(f"`{name}` must be at least {least}, got {getattr(arguments, name)}.")


def _check_lengths(arguments) -> None:
    if arguments.min_length > arguments.max_length:
        raise ValueError(
            f"`min_length` ({arguments.min_length}) exceeds `max_length` ({arguments.max_length}): no block is left."
        )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _gpu_has_bf16() -> bool:
    import torch

    return _has_gpu() and torch.cuda.is_bf16_supported()


# -- parsing -----------------------------------------------------------------------------------------------------------
class _OneLineParser(HfArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parse_arguments(
    dataclass_types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple:
    """
    Arguments of a recipe: defaults, then `--config file.yaml`, then the command line, the later winning.

    A YAML value goes through the same conversion as a word on the command line, so that a wrong type is an error in both.
    An unknown key, a wrong type or an impossible combination prints one line and exits with 2.

    Returns:
        `tuple`: One instance of each dataclass.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _OneLineParser(dataclass_types, description=description, allow_abbrev=False,
                            formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
    parser.add_argument("--config", metavar="FILE.yaml", help="Run file: any of the keys below.")
    if "--use_cpu" in parser._option_string_actions:
        parser.add_argument("--device", metavar="cpu|cuda", help="The same as `use_cpu`.")
    for alias, name in ALIASES.items():
        if f"--{name}" in parser._option_string_actions:
            parser.add_argument(f"--{alias}", metavar="...", help=f"The same as `{name}`.")
    words = _without_aliases(_with_config(argv, parser), parser)
    known = set(parser._option_string_actions)
    for word in words:
        if word.startswith("--") and word.split("=")[0] not in known:
            parser.error(f"unknown key `{word.split('=')[0].lstrip('-')}`; `--help` lists the keys that exist.")
    try:
        # Behind the dataclasses comes what is left: --config and --device, both dealt with.
        return parser.parse_args_into_dataclasses(words, look_for_args_file=False)[: len(dataclass_types)]
    except (ValueError, TypeError) as error:
        parser.error(str(error))


def _with_config(argv: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Put the keys of `--config FILE` in front of the command line, as words."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in argv:
        return argv
    at = argv.index("--config")
    if at + 1 >= len(argv):
        parser.error("`--config` needs the path of a YAML file.")
    path = Path(argv[at + 1])
    try:
        keys = yaml.safe_load(path.read_text())
    except OSError as error:
        parser.error(f"the run file {path} cannot be read: {error.strerror}.")
    except yaml.YAMLError as error:
        parser.error(f"the run file {path} is not YAML: {error}")
    if not isinstance(keys, dict):
        parser.error(f"the run file {path} must be a mapping of keys to values.")
    words: list[str] = []
    for key, value in keys.items():
        if f"--{key}" not in parser._option_string_actions:
            parser.error(f"unknown key `{key}` in {path}; `--help` lists the keys that exist.")
        words += _as_words(key, value, path, parser)
    return words + argv[:at] + argv[at + 2 :]


def _as_words(key: str, value: object, path: Path, parser: argparse.ArgumentParser) -> list[str]:
    if value is None:
        if parser.get_default(ALIASES.get(key, key)) is not None:
            parser.error(f"the key `{key}` in {path} has no value.")
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{key}", json.dumps(value)]
    return [f"--{key}", str(value)]


def _without_aliases(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    out = []
    for word in words:
        name, equals, value = word.partition("=")
        target = f"--{ALIASES.get(name[2:].replace('-', '_'))}" if name.startswith("--") else None
        if target in parser._option_string_actions:  # a recipe may have a key of the alias's name, and not this one
            name = target
        out += [name, value] if equals and name.startswith("--") else [word if equals else name]
    while "--device" in out and "--device" in parser._option_string_actions:
        at = out.index("--device")
        device = out[at + 1] if at + 1 < len(out) else ""
        if device not in DEVICES:
            parser.error(f"`--device` must be cpu or cuda, got {device!r}.")
        out[at : at + 2] = ["--use_cpu", DEVICES[device]]
    return out


def checkpoint_to_resume(args: BudgetConfig) -> str | None:
    """
    The checkpoint to go on from, `None` to start; said in one line, and refused if it is asked for and not there or not
    whole. Ends the process with 0 if `auto_resume` finds that the run has finished.
    """
    wanted, run_dir = args.resume_from_checkpoint, args.output_dir
    if args.auto_resume and not wanted:
        if is_finished(run_dir, {"max_steps": args.max_steps, "num_train_epochs": args.num_train_epochs}):
            _say(
                f"{run_dir}: this run has finished, nothing is trained. Ask for more steps to go on, or take another folder."
            )
            sys.exit(0)
        found = last_checkpoint(run_dir)
        _say(f"Going on from {found}." if found else f"{run_dir} holds no whole checkpoint: starting at step 0.")
        return str(found) if found else None
    if wanted == "last":
        found = last_checkpoint(run_dir) or refuse(f"`resume_from_checkpoint last`: {run_dir!r} holds no checkpoint.")
        _say(f"Going on from {found}.")
        return str(found)
    if wanted:
        if not Path(wanted).is_dir():
            refuse(f"`resume_from_checkpoint` {wanted!r}: no such folder.")
        try:
            check_checkpoint(wanted)
        except ValueError as error:
            refuse(f"`resume_from_checkpoint`: {error}")
    return wanted


def check_output_dir(args: TrainingArguments) -> None:
    """Refuse a run whose folder cannot be written, before anything is loaded."""
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.output_dir):
            pass
    except OSError as error:
        refuse(f"`output_dir` {args.output_dir!r} cannot be written: {error.strerror}.")


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def refuse(message: str) -> NoReturn:
    """End a recipe for what its user asked of it: one line, exit code 2."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}\n")
    sys.exit(2)


def as_record(*arguments) -> dict:
    """Every resolved argument, ready for JSON; secrets are left out."""
    record = {}
    for group in arguments:
        values = group.to_dict() if isinstance(group, TrainingArguments) else dataclasses.asdict(group)
        record.update({k: v for k, v in values.items() if not k.endswith("_token")})
    return json.loads(json.dumps(record, default=str))
