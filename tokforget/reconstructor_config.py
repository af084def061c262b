"""
Arguments of the reconstructor's own training.

No `from __future__ import annotations` here: the host's parser reads the annotations as types.
"""

from dataclasses import dataclass, field

from tokforget.config import BaseModelArguments, BudgetConfig
from tokforget.masking import MASK_KINDS


@dataclass
class ReconstructorArguments(BaseModelArguments):
    """The model to start from, and which of its weights are trained."""

    use_peft: bool = field(
        default=True, metadata={"help": "Train a LoRA adapter; false trains every weight of the model."}
    )


@dataclass
class ReconstructorConfig(BudgetConfig):
    """Training arguments of [`ReconstructorTrainer`]: those of [`BudgetConfig`], and the fields below."""

    learning_rate: float = field(
        default=1e-3,
        metadata={
            "help": "Peak. An adapter takes 2e-3 on small models and 2e-4 to 1e-3 on GPT-2; all weights a tenth."
        },
    )
    mask_kinds: list[str] = field(
        default_factory=lambda: list(MASK_KINDS),
        metadata={
            "help": "Kinds of keep masks, mixed in every batch: `random` tokens, contiguous random `span`s, `frequency` "
            "(rare tokens kept, by noisy unigram surprisal)."
        },
    )
    mask_weights: list[float] | None = field(
        default=None, metadata={"help": "Share of each of `mask_kinds`, in any unit; equal shares by default."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.learning_rate < 0:
            raise ValueError(f"`learning_rate` must not be negative, got {self.learning_rate}.")
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
