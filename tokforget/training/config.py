"""
Arguments of a run: fields, help, checks. The defaults are the recipe that was measured best (LOG.md, the leaderboard).

No `from __future__ import annotations` here: Transformers' parser reads the annotations as types.
"""

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from tokforget._trl import _BaseConfig
from tokforget.parsing import check_at_least
from tokforget.rates import check_rate
from tokforget.training.random_masks import MASK_KINDS
from tokforget.training.rewards import WeightedRewards


# What `ForgetConfig.warm_start_target` may be; see `tokforget.training.warm_start.target_bits`.
TARGETS = ("self_information", "leave_one_out")
_SAMPLED_TEXTS = 4000


@dataclass
class BaseForgetConfig(_BaseConfig):
    """
    Arguments of every [`BaseForgetTrainer`]: Transformers' `TrainingArguments` with other defaults, and the fields
    below.
    """

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
    torch_compile: bool = field(
        default=False,
        metadata={
            "help": "Compile the reconstructor's base model for the scoring of training steps, the only part whose shapes repeat. Not "
            "under DeepSpeed and FSDP."
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator takes the columns it needs."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rates."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Texts per process and micro-batch."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Texts per process in evaluations."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs."})
    warmup_steps: float = field(default=10, metadata={"help": "Steps over which the learning rates rise."})
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
            "help": "Resume from the last complete checkpoint of `output_dir` if there is one, else start, so that the same "
            "command starts and resumes a run. A finished run is not trained again."
        },
    )

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in a folder that holds a run; the files of that run are deleted first."},
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
            # Not by default under DeepSpeed and FSDP: they store the weights in bfloat16, which is not the same as
            # autocast.
            self.bf16 = not self.fp16 and not self.use_cpu and not _is_sharded() and _gpu_has_bf16()
        if self.data_seed is None:
            self.data_seed = self.seed  # else the order of the texts would depend on the state of torch's generator
        if self.use_cpu or not _has_gpu():
            self.dataloader_pin_memory = False  # useless without a GPU, and torch would warn
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = (
                "bits" not in self.metric_for_best_model and "loss" not in self.metric_for_best_model
            )
        _check_deepspeed(self.deepspeed)
        super().__post_init__()
        self._check_host_numbers()
        for name in ("min_rate", "max_rate"):
            check_rate(getattr(self, name), name)
        if not self.min_rate <= self.max_rate < 1:
            raise ValueError(f"Needed is `min_rate` <= `max_rate` < 1, got {self.min_rate} and {self.max_rate}.")
        if not self.eval_rates:
            raise ValueError("`eval_rates` is empty; pass at least one rate.")
        for rate in self.eval_rates:
            check_rate(rate, "eval_rates")
        if self.overwrite_output_dir and (self.auto_resume or self.resume_from_checkpoint):
            raise ValueError(
                "`overwrite_output_dir` starts anew, `auto_resume` and `resume_from_checkpoint` resume: leave one of them out."
            )
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                "`early_stopping_patience` needs `load_best_model_at_end: true` and evaluations to compare."
            )
        if self.gradient_checkpointing:
            raise ValueError(
                "`activation_checkpointing` is not supported: models of the sizes trained here fit without it."
            )
        if self.torch_compile and _is_sharded():
            raise ValueError(
                "`torch_compile` is not supported under DeepSpeed and FSDP, which gather the weights of the compiled layers."
            )
        self._check_best_model()
        if self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"`hub_strategy` must be 'end' or 'every_save', got {str(self.hub_strategy.value)!r}, which sends optimizer "
                "states. The model folder alone is sent."
            )
        if self.label_smoothing_factor:
            raise ValueError("`label_smoothing_factor` would smooth the bits that are counted; leave it at 0.")

    def _check_host_numbers(self) -> None:
        """What the host takes as it comes, to fail on it when all is loaded, or to train to nan."""
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            check_at_least(self, name, 1)
        for name in ("seed", "data_seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise ValueError(f"`{name}` must lie in [0, 4294967296), got {getattr(self, name)}.")
        for name in ("dataloader_num_workers", "num_train_epochs", "weight_decay", "max_grad_norm", "learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be finite and not negative, got {getattr(self, name)}.")

    def _check_best_model(self) -> None:
        """Check the metric's name now: Transformers looks it up only at the first evaluation."""
        rates = [
            f"{name}_{rate:g}"
            for name in ("bits_lost", "exact_restored", "compression_rate")
            for rate in self.eval_rates
        ]
        known = ["bits_lost", "loss", *rates]
        name = self.metric_for_best_model
        if self.load_best_model_at_end and name is not None and name.removeprefix("eval_") not in known:
            raise ValueError(
                f"`metric_for_best_model` {name!r} is none that an evaluation measures; there are {', '.join(known)}."
            )


def _check_deepspeed(config: dict | str | None) -> None:
    """
    Check that DeepSpeed and its configuration exist. Transformers would store a wrong configuration before noticing,
    and then fail at every model that this process loads.
    """
    if not config:
        return
    if find_spec("deepspeed") is None:
        raise ValueError('`deepspeed`: DeepSpeed is not installed. Install it: `pip install -e ".[deepspeed]"`.')
    if isinstance(config, str) and not Path(config).is_file():
        raise ValueError(f"`deepspeed` {config!r}: no such file; pass the path of a DeepSpeed configuration in JSON.")


@dataclass
class ForgetConfig(BaseForgetConfig):
    """Training arguments of [`ForgetTrainer`]: those of [`BaseForgetConfig`], and the fields below."""

    # Folders in `output_dir`: the policy after the warm start, and the data of the warm start.
    warm_start_dir: ClassVar[str] = "warm_start"
    warm_start_data_dir: ClassVar[str] = "warm_start_data"
    # Length of a run if none is given.
    default_max_steps: ClassVar[int] = 240
    default_warm_start_steps: ClassVar[int] = 1000

    # Host defaults that differ here
    num_train_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Length of the run in epochs. By default `max_steps` counts, and is 240 if neither is given."
        },
    )

    # Learning rates
    policy_learning_rate: float = field(
        default=5e-5,
        metadata={
            "help": "Peak learning rate of the policy. Use 3e-3 without a warm start; that rate destroys a warm start (LOG.md)."
        },
    )
    reconstructor_learning_rate: float = field(
        default=5e-5,
        metadata={
            "help": "Peak learning rate of the adapter. A reconstructor that learns fast changes the rewards. An untrained "
            "adapter takes 2e-3 on small models, 2e-4 to 1e-3 on GPT-2."
        },
    )

    # Texts drawn from the base model
    sampled_texts: int | None = field(
        default=None,
        metadata={
            "help": "Texts sampled from the base model before training, in addition to the training texts; without them the "
            "policy memorises a small corpus (LOG.md). They are kept in `output_dir` for resuming. 4000 by default, 0 with "
            "`warm_start_data_path`, which contains sampled texts."
        },
    )

    # Warm start
    warm_start_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps that fit the policy's ranking to the target's bits before the joint loop; 0 for none. By default "
            "1000, and 0 for a trained policy, because the warm start would replace its ranking."
        },
    )
    warm_start_target: str = field(
        default="leave_one_out",
        metadata={
            "help": "Bits to which the ranking is fitted: `leave_one_out` (two passes of the reconstructor per text, which sees "
            "both sides) or `self_information` (one pass of the base model, which sees the left side)."
        },
    )
    warm_start_texts: int | None = field(
        default=None, metadata={"help": "Number of training texts to fit on, from the first; all by default."}
    )
    warm_start_data_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder `warm_start_data/` of another run on the same texts. Its sampled texts and target bits are used "
            "instead of new ones. Runs with different seeds can share one."
        },
    )
    warm_start_logit_scale: float = field(
        default=24.0,
        metadata={
            "help": "Factor of the fitted log bits in the keep logits: the higher, the harder the first masks of the joint loop. At 3 "
            "the policy gradient sharpens the masks and loses the order of the tokens (LOG.md)."
        },
    )

    # Episodes
    num_masks: int = field(default=4, metadata={"help": "Keep masks drawn per text and step, at least 2."})

    # Rewards and credit
    reward_funcs: list[str] = field(
        default_factory=lambda: ["information_theoretic", "exact_runs"],
        metadata={
            "help": "`information_theoretic`, `simple`, `exact_runs`, or import paths such as `my_package.rewards:name`."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward; 1 each by default."}
    )
    credit_decay: float = field(
        default=0.3,
        metadata={
            "help": "Fraction of a neighbour's reward credited to a token, per token of distance; 1 credits the whole text."
        },
    )

    # Loss
    entropy_coef: float = field(default=0.02, metadata={"help": "Weight of the policy's entropy, bits per nat."})
    reconstructor_text_fraction: float = field(
        default=1 / 16,
        metadata={
            "help": "Fraction of the texts whose masks train the reconstructor, in (0, 1]; at least one text of each batch. The "
            "others are only scored, without a backward pass through the language model, which saves time."
        },
    )
    random_mask_fraction: float = field(
        default=0.2,
        metadata={
            "help": "Fraction of random keep masks in the reconstructor's batch, in [0, 1). They prevent policy and reconstructor "
            "from agreeing on a code."
        },
    )

    def __post_init__(self):
        if self.learning_rate not in (TrainingArguments.learning_rate, self.reconstructor_learning_rate):
            raise ValueError(
                f"`learning_rate` ({self.learning_rate}) is ambiguous here: set `policy_learning_rate` and "
                "`reconstructor_learning_rate`."
            )
        WeightedRewards(self.reward_funcs, self.reward_weights)  # raise the error for an unknown reward now
        if self.num_train_epochs is None:
            self.num_train_epochs = BaseForgetConfig.num_train_epochs
            self.max_steps = self.max_steps if self.max_steps > 0 else self.default_max_steps
        self._check_rates_of_learning()
        self.learning_rate = self.reconstructor_learning_rate
        super().__post_init__()
        check_at_least(self, "num_masks", 2)
        if self.warm_start_data_path is not None and self.sampled_texts:
            raise ValueError(
                f"`warm_start_data_path` brings its own sampled texts, and `sampled_texts` is {self.sampled_texts}: leave one out."
            )
        if self.sampled_texts is None:
            self.sampled_texts = 0 if self.warm_start_data_path is not None else _SAMPLED_TEXTS
        check_at_least(self, "sampled_texts", 0)
        if self.warm_start_steps is not None:
            check_at_least(self, "warm_start_steps", 0)
        if not 0 < self.warm_start_logit_scale < math.inf:
            raise ValueError(
                f"`warm_start_logit_scale` must be positive and finite, got {self.warm_start_logit_scale}."
            )
        if self.warm_start_texts is not None:
            check_at_least(self, "warm_start_texts", 1)
        if self.warm_start_target not in TARGETS:
            raise ValueError(
                f"`warm_start_target` must be 'self_information' or 'leave_one_out', got {self.warm_start_target!r}."
            )
        if not 0 <= self.credit_decay <= 1:
            raise ValueError(f"`credit_decay` must lie in [0, 1], got {self.credit_decay}.")
        if not 0 < self.reconstructor_text_fraction <= 1:
            raise ValueError(
                f"`reconstructor_text_fraction` must lie in (0, 1], got {self.reconstructor_text_fraction}."
            )
        if self.reconstructor_text_fraction * self.per_device_train_batch_size < 1 - 1e-9:
            raise ValueError(
                f"`reconstructor_text_fraction` {self.reconstructor_text_fraction:g} of `per_device_train_batch_size` "
                f"{self.per_device_train_batch_size} is no text at all. For one text of each batch pass "
                f"`reconstructor_text_fraction: {1 / self.per_device_train_batch_size:.4g}`, or take a larger batch."
            )
        if not 0 <= self.random_mask_fraction < 1:
            raise ValueError(f"`random_mask_fraction` must lie in [0, 1), got {self.random_mask_fraction}.")

    def _check_rates_of_learning(self) -> None:
        for name in ("policy_learning_rate", "reconstructor_learning_rate", "entropy_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be finite and not negative, got {getattr(self, name)}.")


def _is_sharded() -> bool:
    return any(parse_flag_from_env(name) for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _gpu_has_bf16() -> bool:
    import torch

    return _has_gpu() and torch.cuda.is_bf16_supported()


@dataclass
class ReconstructorConfig(BaseForgetConfig):
    """Training arguments of [`ReconstructorTrainer`]: those of [`BaseForgetConfig`], and the fields below."""

    learning_rate: float = field(
        default=1e-3,
        metadata={
            "help": "Peak learning rate. An adapter takes 2e-3 on small models and 2e-4 to 1e-3 on GPT-2; training all weights "
            "takes a tenth of that."
        },
    )
    mask_kinds: list[str] = field(
        default_factory=lambda: list(MASK_KINDS),
        metadata={
            "help": "Kinds of keep masks, mixed in every batch: `random` tokens, contiguous random `span`s, `frequency` "
            "(the tokens of highest noisy unigram surprisal are kept)."
        },
    )
    mask_weights: list[float] | None = field(
        default=None, metadata={"help": "Share of each of `mask_kinds`, in any unit; equal shares by default."}
    )

    def __post_init__(self):
        super().__post_init__()
        unknown = [kind for kind in self.mask_kinds if kind not in MASK_KINDS]
        if unknown or not self.mask_kinds or len(set(self.mask_kinds)) < len(self.mask_kinds):
            raise ValueError(
                f"`mask_kinds` must be different ones of {', '.join(MASK_KINDS)}, at least one; got {self.mask_kinds}."
            )
        if self.mask_weights is None:
            self.mask_weights = [1.0] * len(self.mask_kinds)
        if len(self.mask_weights) != len(self.mask_kinds):
            raise ValueError(f"One weight per kind is needed, got {len(self.mask_kinds)} `mask_kinds` and "
                             f"{len(self.mask_weights)} `mask_weights`.")  # fmt: skip
        if min(self.mask_weights) <= 0:
            raise ValueError(
                f"`mask_weights` must be positive, got {self.mask_weights}; leave a kind without weight out of `mask_kinds`."
            )
