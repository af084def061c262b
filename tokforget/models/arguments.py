"""Arguments that say which reconstructor and policy to start from.

No `from __future__ import annotations` here: Transformers' parser reads the annotations as types."""

from dataclasses import dataclass, field

from tokforget.parsing import check_at_least


@dataclass
class BaseModelArguments:
    """The reconstructor to start from."""

    reconstructor_name_or_path: str = field(
        metadata={
            "help": "Causal language model (Hub id or folder), a folder with a LoRA adapter to train further, or `embedded` "
            "for the packaged small GPT-2."
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
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers that the adapter changes, by the last part of their names, such as `q_proj v_proj`; by default every "
            "linear layer except the output head."
        },
    )

    def __post_init__(self):
        if self.layout not in ("prefix", "infill"):
            raise ValueError(f"`layout` must be 'prefix' or 'infill', got {self.layout!r}.")
        for name in ("lora_rank", "lora_alpha"):
            check_at_least(self, name, 1)


@dataclass
class ModelArguments(BaseModelArguments):
    """The reconstructor to start from, and the shape of the policy."""

    policy_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Trained model (folder or Hub id) with the same vocabulary, whose policy is trained further. It keeps its "
            "shape; its count tables are fitted again on this run's texts. By default a new policy."
        },
    )
    policy_hidden_size: int = field(default=128, metadata={"help": "Width of the policy's trunk."})
    window: int = field(
        default=24, metadata={"help": "Tokens per decision; a text of T tokens takes ceil(T / window)."}
    )
    ngram_buckets: int = field(
        default=2**18,
        metadata={"help": "Size of the policy's hashed count tables, a power of two; 0 for none."},
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("policy_hidden_size", "window"):
            check_at_least(self, name, 1)
        if self.ngram_buckets < 0 or self.ngram_buckets & (self.ngram_buckets - 1):
            raise ValueError(f"`ngram_buckets` must be 0 or a power of two, got {self.ngram_buckets}.")


@dataclass
class ReconstructorArguments(BaseModelArguments):
    """The model to start from, and which of its weights are trained."""

    use_peft: bool = field(
        default=True, metadata={"help": "Train a LoRA adapter; false trains every weight of the model."}
    )
