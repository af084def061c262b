"""
Arguments of the calibration of a quality floor.

No `from __future__ import annotations` here: Transformers' parser reads the annotations as types.
"""

from dataclasses import dataclass, field

from tokforget.parsing import check_at_least


@dataclass
class CalibrationArguments:
    """Model, reader, texts and risk of a calibration."""

    model_path: str = field(metadata={"help": "Folder of the model; calibration.json is written there."})
    reader_name_or_path: str = field(
        metadata={"help": "The reader, a causal language model whose retention is guaranteed: a folder or Hub id."}
    )
    corpus: str = field(
        metadata={
            "help": "Folder of .jsonl(.gz) files with `text` and `source`; validation sources calibrate, test sources check."
        }
    )
    kinds: list[str] = field(
        default_factory=list, metadata={"help": "Kinds of the corpus that calibrate; all by default."}
    )
    texts_per_kind: int = field(default=16, metadata={"help": "Calibration texts per kind, and as many to check."})
    passage_characters: int = field(default=1000, metadata={"help": "Length of a text."})
    lookups_per_text: int = field(default=24, metadata={"help": "Lookups per text to measure its retention."})
    levels: list[float] = field(
        default_factory=lambda: [
            0.4,
            0.5,
            0.55,
            0.6,
            0.65,
            0.7,
            0.725,
            0.75,
            0.775,
            0.8,
            0.825,
            0.85,
            0.875,
            0.9,
            0.925,
            0.95,
        ],
        metadata={"help": "Shares of a text's worth that are tried as thresholds, in (0, 1)."},
    )
    check_qualities: list[float] = field(
        default_factory=lambda: [0.7, 0.8, 0.9],
        metadata={"help": "Qualities to check on test sources."},
    )
    check_risks: list[float] = field(
        default_factory=lambda: [0.1, 0.5], metadata={"help": "Risks at which each quality is checked."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of texts and lookups."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even if there is a GPU."})

    def __post_init__(self):
        for name in ("texts_per_kind", "lookups_per_text"):
            check_at_least(self, name, 1)
        check_at_least(self, "passage_characters", 100)
        for name in ("levels", "check_qualities", "check_risks"):
            for value in getattr(self, name):
                if not 0 < value < 1:
                    raise ValueError(f"`{name}` must lie in (0, 1), got {value}.")
