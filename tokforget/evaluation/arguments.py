"""
Arguments of an evaluation.

No `from __future__ import annotations` here: Transformers' parser reads the annotations as types.
"""

from dataclasses import dataclass, field
from pathlib import Path

from tokforget.data.arguments import MAX_LENGTH, MIN_LENGTH
from tokforget.evaluation.baselines import BASELINES
from tokforget.parsing import check_at_least
from tokforget.rates import check_rate


@dataclass
class EvaluationArguments:
    """What an evaluation compares, on which texts, with which judge, and what else it measures."""

    output_dir: str = field(metadata={"help": "Folder for the JSON files, the report, the plots and the heat map."})

    # Scorers
    model_path: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Trained model folders or Hub ids, each as `PATH` or `LABEL=PATH`. Models with the same label are training "
            "seeds of one method: their mean is reported, with its spread."
        },
    )
    scorers: list[str] = field(
        default_factory=lambda: list(BASELINES),
        metadata={"help": f"Baselines by name; all by default: {', '.join(BASELINES)}."},
    )
    num_random_seeds: int = field(default=5, metadata={"help": "Repetitions of the baselines that draw at random."})

    # Judge
    reconstructor_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "The reconstructor that judges all scorers: a folder with an adapter, or a trained model's folder. By "
            "default that of the first model. It favours that model; say so when you report the numbers."
        },
    )
    layout: str | None = field(
        default=None, metadata={"help": "`prefix` or `infill`; by default the layout that the judge's folder records."}
    )

    # Texts
    dataset_name: list[str] = field(
        default_factory=lambda: ["embedded"],
        metadata={"help": "Sources as for training: prepared folders, files, Hub ids, `embedded`; one or several."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    split: str = field(default="test", metadata={"help": "Split to compress; count tables are fitted on `train`."})
    max_length: int = field(default=MAX_LENGTH, metadata={"help": "Tokens per block."})
    min_length: int = field(default=MIN_LENGTH, metadata={"help": "Blocks of fewer tokens are left out."})
    max_texts: int = field(default=128, metadata={"help": "Blocks per source, drawn at random by a fixed seed."})
    rates: list[float] = field(default_factory=lambda: [0.3, 0.5, 0.7], metadata={"help": "Rates in (0, 1]."})
    batch_size: int = field(default=32, metadata={"help": "Blocks per batch."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap and of the first random baseline."})

    # Downstream
    reader_name_or_path: str | None = field(
        default=None, metadata={"help": "Causal language model that answers; the judge's base model by default."}
    )
    continuation_tokens: int = field(
        default=32,
        metadata={"help": "Tokens of the following block that the reader predicts; 0 skips this measurement."},
    )
    questions: list[str] = field(
        default_factory=list,
        metadata={"help": "Files or Hub ids with questions (SQuAD, yes-no, multiple choice, LongBench)."},
    )
    max_questions: int = field(default=100, metadata={"help": "Questions per file."})
    question_scorers: list[str] = field(
        default_factory=lambda: ["random", "frequency", "self_information"],
        metadata={"help": "Baselines that compress the contexts of questions, in addition to the models."},
    )
    max_new_tokens: int = field(default=16, metadata={"help": "Most tokens of a generated answer."})

    # Speed
    speed_target: str | None = field(
        default=None,
        metadata={
            "help": "Model for which the time to first token is measured: a path, a Hub id, or `gpt2-shape` for GPT-2 124M "
            "with random weights. By default speed is not measured."
        },
    )
    speed_lengths: list[int] = field(default_factory=lambda: [128, 256, 512], metadata={"help": "Prompt lengths."})
    speed_batch_sizes: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "Prompts per batch."})
    speed_rate: float = field(default=0.5, metadata={"help": "Rate of the speed measurement."})
    speed_new_tokens: int = field(default=32, metadata={"help": "Tokens generated in a whole request."})
    speed_repeats: int = field(default=3, metadata={"help": "Repetitions whose median is taken, after a warm-up."})

    # Output
    heatmap_texts: int = field(default=6, metadata={"help": "Sample texts in the heat map, per source and rate."})
    plot_scorers: list[str] | None = field(
        default=None, metadata={"help": "Scorers drawn in the plots, by name or label; all by default."}
    )
    training_log: str | None = field(
        default=None, metadata={"help": "A run's `trainer_state.json`; by default the first model's, if it has one."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even if there is a GPU."})

    def __post_init__(self):
        for name, least in (("num_random_seeds", 1), ("max_length", 2), ("min_length", 1), ("max_texts", 1),
                            ("batch_size", 1), ("continuation_tokens", 0), ("max_questions", 1), ("max_new_tokens", 1),
                            ("speed_new_tokens", 1), ("speed_repeats", 1), ("heatmap_texts", 0)):  # fmt: skip
            check_at_least(self, name, least)
        if self.min_length > self.max_length:
            raise ValueError(
                f"`min_length` ({self.min_length}) exceeds `max_length` ({self.max_length}): no block is left."
            )
        if not self.rates:
            raise ValueError("`rates` is empty; pass at least one rate.")
        for rate in self.rates:
            check_rate(rate, "rates")
        check_rate(self.speed_rate, "speed_rate")
        if self.speed_rate == 1:
            raise ValueError("`speed_rate` must be below 1, got 1: a prompt that keeps all tokens saves nothing.")
        for name in [*self.scorers, *self.question_scorers]:
            if name not in BASELINES:
                raise ValueError(f"Unknown baseline {name!r}; there are {', '.join(BASELINES)}.")
        if self.layout not in (None, "prefix", "infill"):
            raise ValueError(f"`layout` must be 'prefix' or 'infill', got {self.layout!r}.")
        for label, _ in self.models:
            if label in BASELINES:
                raise ValueError(
                    f"`model_path` calls a model {label!r}, which is a baseline's name; give another label."
                )
        known = [*dict.fromkeys(label for label, _ in self.models), *self.scorers]
        for name in self.plot_scorers or []:
            if name not in known:
                raise ValueError(
                    f"`plot_scorers` names {name!r}, which is not compared; there are {', '.join(known)}."
                )
        if not self.models and self.reconstructor_name_or_path is None:
            raise ValueError("Who judges? Pass `model_path`, or `reconstructor_path` to compare baselines alone.")

    @property
    def models(self) -> list[tuple[str, str]]:
        """
        Label and path of each model. A single unlabelled model is `policy`; several are labelled by their folders.
        """
        pairs = [(label, path) for label, at, path in (p.partition("=") for p in self.model_path) if at]
        pairs += [
            ("policy" if len(self.model_path) == 1 else Path(p).name, p) for p in self.model_path if "=" not in p
        ]
        return pairs
