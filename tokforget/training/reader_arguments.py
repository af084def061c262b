"""
What a reader's policy is trained on, and its shape.

No `from __future__ import annotations` here: the host's parser reads the annotations as types.
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
            "help": "Causal language model that reads: a folder, an id on the Hub, or `embedded`. The policy takes its tokenizer."
        }
    )
    corpus: str = field(
        metadata={
            "help": "Folder of .jsonl(.gz) files with `text` and `source`; the kind is the field `kind`, else the file's name. A tenth of "
            "the sources each is left for validation and test."
        }
    )
    questions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files of questions over contexts to learn from as well, in the forms that `reader_benchmark.py` reads; those whose "
            "answer stands in the context."
        },
    )
    corpus_questions: int = field(
        default=0,
        metadata={
            "help": "Most questions that are taken from beneath the corpus's own documents: lines `Q: ...`, `A: ...`, as above."
        },
    )
    kinds: list[str] = field(default_factory=list, metadata={"help": "Kinds of the corpus; all by default."})
    texts_per_kind: int = field(default=600, metadata={"help": "Stretches of text per kind."})
    text_characters: list[int] = field(
        default_factory=lambda: [600, 900, 1300], metadata={"help": "Lengths of the stretches, in turn."}
    )
    count_texts: int = field(default=400, metadata={"help": "Training texts per kind whose words are counted."})
    warm_start_texts: int = field(
        default=4000, metadata={"help": "Texts that the ranking to start from is fitted on."}
    )
    warm_start_steps: int = field(default=1500, metadata={"help": "Steps of that fit."})
    target_texts: int = field(
        default=0,
        metadata={
            "help": "Texts of each kind in which the reader chooses what counts in a word's target, by kind and rate; 0 takes the same "
            "weights for all. On the texts of the packaged model the policy gained nothing by it (LOG.md)."
        },
    )
    target_weights: str | None = field(
        default=None,
        metadata={
            "help": "target_weights.json of an earlier run, to take its choice instead: choosing reads for a quarter of an hour."
        },
    )
    natural_texts: int = field(
        default=1500,
        metadata={
            "help": "Texts of a step of the natural gradient over the policy's last layer, after the warm start; 0 leaves it out."
        },
    )
    natural_masks: int = field(default=5, metadata={"help": "Masks read of each of them."})
    natural_step: float = field(
        default=0.1, metadata={"help": "How far that step goes: a share of the spread of a text's own scores."}
    )
    policy_name_or_path: str | None = field(
        default=None, metadata={"help": "Trained policy to go on from, in place of a warm start."}
    )
    policy_hidden_size: int = field(default=96, metadata={"help": "Width of the policy."})
    ngram_buckets: int = field(
        default=0, metadata={"help": "Size of count tables of token pairs that the policy may look up; 0 for none."}
    )
    batch_tokens: int = field(default=4096, metadata={"help": "Most tokens of one forward of the reader."})
    reconstructor_path: str | None = field(
        default=None,
        metadata={
            "help": "Reconstructor that learns beside the policy to restore what it drops: a causal language model over the reader's "
            "tokenizer gets a fresh adapter, a folder of recipes/train_reconstructor.py goes on. Without one the model only compresses."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "With a reconstructor, texts of more tokens are left out, by default of more than 512 or its context: scripts that its tokenizer cuts small have several tokens a "
            "character, and one such text sets the width, and the memory, of a whole batch. `restore` reads no more at once."
        },
    )
    layout: str = field(default="prefix", metadata={"help": "Of a fresh reconstructor: `prefix` or `infill`."})
    lora_rank: int = field(default=4, metadata={"help": "Rank of a fresh adapter."})
    lora_alpha: int = field(default=16, metadata={"help": "Its scale; alpha / rank multiplies its output."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers that a fresh adapter changes, by the last parts of their names, as `q_proj v_proj`; every linear layer but "
            "the output head by default."
        },
    )

    def __post_init__(self):
        for name in ("texts_per_kind", "count_texts", "warm_start_texts"):
            check_at_least(self, name, 1)
        for name in ("corpus_questions", "warm_start_steps", "target_texts", "natural_texts", "natural_step"):
            check_at_least(self, name, 0)
        check_at_least(self, "natural_masks", 2)
        if self.max_length is not None:
            check_at_least(self, "max_length", 16)
        for name in ("lora_rank", "lora_alpha"):
            check_at_least(self, name, 1)
        if not self.text_characters or min(self.text_characters) < 100:
            raise ValueError(f"`text_characters` must be lengths of at least 100, got {self.text_characters}.")


@dataclass
class ReaderPolicyConfig(BaseForgetConfig):
    """Training arguments of [`ReaderPolicyTrainer`]: those of [`BaseForgetConfig`], and the fields below."""

    learning_rate: float = field(default=3e-4, metadata={"help": "Of the policy, per step of its own schedule."})
    num_masks: int = field(default=4, metadata={"help": "Keep masks drawn per text and step, at least 2."})
    question_share: float = field(default=0.5, metadata={"help": "Share of the texts with a question."})
    lookups_per_text: int = field(default=6, metadata={"help": "Spans asked for where there is no question."})
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
    most_bits: float = field(default=8.0, metadata={"help": "A target's advantage is cut at so many bits."})
    sharpness: float = field(
        default=3.0,
        metadata={
            "help": "What logits are multiplied by while masks are drawn: where masks are soft, nearly all that the policy gradient can "
            "gain is sharper ones, and it pays for them with the order of the words (LOG.md)."
        },
    )
    trained_part: str = field(
        default="head",
        metadata={
            "help": "What the policy gradient changes: the `head`, which ranks words by features and by what the trunk found, or `all`. "
            "A thousand texts do not carry a gradient for all (LOG.md)."
        },
    )
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the policy's entropy."})
    reader_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the reader's reward, bits of what it is asked. 0 reads nothing and takes no natural step: with `learning_rate` 0, too, the "
            "reconstructor alone learns, from the masks of a policy that stays as it is."
        },
    )
    reconstructor_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the reconstructor's reward: bits that it lacks of the dropped tokens, per hundred tokens of the text. 0 "
            "leaves its scores out, and it reads only the texts that it learns from."
        },
    )
    reconstructor_learning_rate: float = field(default=3e-4, metadata={"help": "Of the reconstructor's adapter."})
    reconstructor_text_fraction: float = field(
        default=0.5,
        metadata={
            "help": "Share of the texts of which one mask trains the reconstructor, in (0, 1]; one text at least."
        },
    )

    def __post_init__(self):
        super().__post_init__()
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
