"""
Arguments of the training of a reader's policy: texts, shape of the policy, and steps.

No `from __future__ import annotations` here: Transformers' parser reads the annotations as types.
"""

import math
from dataclasses import dataclass, field

from tokforget.parsing import check_at_least
from tokforget.training.config import BaseForgetConfig


@dataclass
class ReaderPolicyArguments:
    """Reader, texts and policy of `recipes/train_reader_policy.py`."""

    reader_name_or_path: str = field(
        metadata={
            "help": "The reader, a causal language model: a folder, an id on the Hub, or `embedded`. The policy uses its tokenizer."
        }
    )
    corpus: str = field(
        metadata={
            "help": "Folder of .jsonl(.gz) files with `text` and `source`; the kind is the field `kind`, else the file's name. Validation "
            "and test get a tenth of the sources each."
        }
    )
    questions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files of further training questions with contexts, in the formats of `reader_benchmark.py`. Only questions whose "
            "answer is in the context are used."
        },
    )
    corpus_questions: int = field(
        default=0,
        metadata={
            "help": "Most questions taken from the end of the corpus's own documents, from lines `Q: ...` and `A: ...`."
        },
    )
    kinds: list[str] = field(default_factory=list, metadata={"help": "Kinds of the corpus; all by default."})
    texts_per_kind: int = field(default=600, metadata={"help": "Passages per kind."})
    text_characters: list[int] = field(
        default_factory=lambda: [600, 900, 1300], metadata={"help": "Lengths of the passages, used in turn."}
    )
    count_texts: int = field(default=400, metadata={"help": "Training texts per kind for the word counts."})
    warm_start_texts: int = field(default=4000, metadata={"help": "Texts on which the warm start fits the ranking."})
    warm_start_steps: int = field(default=1500, metadata={"help": "Steps of the warm start."})
    other_passages: int = field(
        default=4,
        metadata={"help": "Most other passages among which a text with a question stands in the warm start."},
    )
    target_texts: int = field(
        default=0,
        metadata={
            "help": "Texts of each kind on which the weights of the warm-start targets are chosen with the reader, by kind and rate; 0 uses "
            "the same weights for all. On the texts of the packaged model this choice did not help (LOG.md)."
        },
    )
    target_weights: str | None = field(
        default=None,
        metadata={
            "help": "target_weights.json of an earlier run, to reuse its choice, which takes a quarter of an hour."
        },
    )
    natural_texts: int = field(
        default=0,
        metadata={
            "help": "Texts for a natural-gradient step on the policy's last layer, after the warm start; 0 skips this step."
        },
    )
    natural_masks: int = field(default=5, metadata={"help": "Masks of each of these texts."})
    natural_step: float = field(
        default=0.1, metadata={"help": "Size of that step, as a fraction of the spread of a text's scores."}
    )
    policy_name_or_path: str | None = field(
        default=None, metadata={"help": "Trained policy to start from, instead of a warm start."}
    )
    policy_hidden_size: int = field(default=48, metadata={"help": "Width of the policy."})
    policy_dilations: list[int] = field(
        default_factory=lambda: [1, 2], metadata={"help": "Dilation of each convolution block of the policy."}
    )
    ngram_buckets: int = field(
        default=0, metadata={"help": "Size of count tables of token pairs that the policy may look up; 0 for none."}
    )
    batch_tokens: int = field(default=4096, metadata={"help": "Most tokens of a forward pass of the reader."})
    reconstructor_path: str | None = field(
        default=None,
        metadata={
            "help": "Reconstructor that is trained with the policy. A causal language model with the reader's tokenizer gets a new "
            "adapter; a folder of recipes/train_reconstructor.py is trained further. Without one the model only compresses."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "With a reconstructor, longer texts (in tokens) are left out; by default those over 512 or its context. In some scripts a "
            "character takes several tokens, and one such text would determine the memory of a whole batch. `restore` has the same limit."
        },
    )
    layout: str = field(default="prefix", metadata={"help": "Layout of a new reconstructor: `prefix` or `infill`."})
    lora_rank: int = field(default=4, metadata={"help": "Rank of a new adapter."})
    lora_alpha: int = field(
        default=16, metadata={"help": "Scale of a new adapter; alpha / rank multiplies its output."}
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers that a new adapter changes, by the last part of their names, such as `q_proj v_proj`; by default every "
            "linear layer except the output head."
        },
    )

    def __post_init__(self):
        for name in ("texts_per_kind", "count_texts", "warm_start_texts", "policy_hidden_size"):
            check_at_least(self, name, 1)
        for name in (
            "corpus_questions",
            "warm_start_steps",
            "other_passages",
            "target_texts",
            "natural_texts",
            "natural_step",
        ):
            check_at_least(self, name, 0)
        check_at_least(self, "natural_masks", 2)
        if self.max_length is not None:
            check_at_least(self, "max_length", 16)
        for name in ("lora_rank", "lora_alpha"):
            check_at_least(self, name, 1)
        if not self.policy_dilations or min(self.policy_dilations) < 1:
            raise ValueError(f"`policy_dilations` must be whole numbers of at least 1, got {self.policy_dilations}.")
        if not self.text_characters or min(self.text_characters) < 100:
            raise ValueError(f"`text_characters` must be lengths of at least 100, got {self.text_characters}.")


@dataclass
class ReaderPolicyConfig(BaseForgetConfig):
    """Training arguments of [`ReaderPolicyTrainer`]: those of [`BaseForgetConfig`], and the fields below."""

    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of the policy."})
    num_masks: int = field(default=4, metadata={"help": "Keep masks drawn per text and step, at least 2."})
    question_share: float = field(default=0.5, metadata={"help": "Share of the texts with a question."})
    lookups_per_text: int = field(default=6, metadata={"help": "Lookups (target spans) of a text without a question."})
    sentence_noise: float = field(
        default=4.0,
        metadata={
            "help": "Spread of a random shift that all words of a sentence share while masks are drawn, in logits."
        },
    )
    far_credit: float = field(
        default=0.3,
        metadata={"help": "Share of a target's reward that goes to words outside the answer's sentence, in [0, 1]."},
    )
    most_bits: float = field(default=8.0, metadata={"help": "Limit of a target's advantage in bits."})
    sharpness: float = field(
        default=3.0,
        metadata={
            "help": "Factor of the logits while masks are drawn. With soft masks the policy gradient gains mostly by sharpening them, at "
            "the cost of the order of the words (LOG.md)."
        },
    )
    trained_part: str = field(
        default="head",
        metadata={
            "help": "Weights that the policy gradient changes: those of the `head`, which ranks words by their features and the trunk's "
            "outputs, or `all`. A thousand texts are too few to train all (LOG.md)."
        },
    )
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the policy's entropy."})
    reader_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the reader's reward, the negative bits of its targets. At 0 the reader is not used and no natural-gradient step is "
            "taken; if `learning_rate` is 0 too, only the reconstructor learns, from the masks of a fixed policy."
        },
    )
    reconstructor_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the reconstructor's reward: the negative bits of the dropped tokens, per hundred tokens of the text. At 0 the "
            "reconstructor reads only the texts that train it."
        },
    )
    reconstructor_learning_rate: float = field(
        default=3e-4, metadata={"help": "Peak learning rate of the reconstructor's adapter."}
    )
    reconstructor_text_fraction: float = field(
        default=0.5,
        metadata={
            "help": "Fraction of the texts that train the reconstructor, with one mask each, in (0, 1]; at least one text."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.torch_compile:
            raise ValueError(
                "`torch_compile` is not supported here: answers and retellings differ in length in every step."
            )
        check_at_least(self, "num_masks", 2)
        check_at_least(self, "lookups_per_text", 1)
        if self.trained_part not in ("head", "all"):
            raise ValueError(f"`trained_part` must be 'head' or 'all', got {self.trained_part!r}.")
        if not 0 < self.reconstructor_text_fraction <= 1:
            raise ValueError(
                f"`reconstructor_text_fraction` must lie in (0, 1], got {self.reconstructor_text_fraction}."
            )
        for name in ("question_share", "far_credit"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")
        for name in (
            "sentence_noise",
            "sharpness",
            "most_bits",
            "entropy_coef",
            "reader_weight",
            "reconstructor_weight",
            "reconstructor_learning_rate",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be finite and not negative, got {getattr(self, name)}.")
