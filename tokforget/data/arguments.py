"""Arguments that say where texts come from and how they are cut.

No `from __future__ import annotations` here: Transformers' parser reads the annotations as types."""

from dataclasses import dataclass, field

from tokforget.data.duplicates import THRESHOLD
from tokforget.parsing import check_at_least


# Every number of the README was measured at these lengths. Training, preparation and evaluation share the defaults, so
# that a default run is evaluated on the blocks it was trained for. The embedded model holds 96 tokens twice, as
# `prefix` needs.
MAX_LENGTH, MIN_LENGTH = 96, 32


@dataclass
class DataArguments:
    """Source of the texts, and how they are cut into blocks."""

    dataset_name: str = field(
        metadata={
            "help": "Hub id such as `Salesforce/wikitext`, a .txt/.json/.jsonl/.csv/.parquet file, a folder of them, "
            "`embedded` for Python's own documentation, or a folder that recipes/prepare_data.py wrote."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    max_length: int = field(
        default=MAX_LENGTH,
        metadata={"help": "Tokens per block; documents are cut into blocks, the last may be shorter."},
    )
    min_length: int = field(
        default=MIN_LENGTH,
        metadata={"help": "Blocks of fewer tokens are left out of training and evaluation, and counted."},
    )
    max_train_texts: int | None = field(
        default=None, metadata={"help": "Blocks to train on, drawn at random; all by default."}
    )
    max_eval_texts: int = field(default=64, metadata={"help": "Validation blocks during training, drawn at random."})
    max_test_texts: int = field(
        default=128, metadata={"help": "Test blocks of the comparison with the baselines after training; 0 skips it."}
    )

    def __post_init__(self):
        for name, least in (("max_length", 2), ("min_length", 1), ("max_eval_texts", 1), ("max_test_texts", 0)):
            check_at_least(self, name, least)
        if self.max_train_texts is not None:
            check_at_least(self, "max_train_texts", 1)
        _check_lengths(self)


@dataclass
class PreparationArguments:
    """Source, splits, tokenizer and output of `recipes/prepare_data.py`."""

    # Source
    dataset_name: str = field(
        metadata={
            "help": "Hub id such as `Salesforce/wikitext`, a .txt/.json/.jsonl/.csv/.parquet file, a folder of them, or "
            "`embedded` for Python's own documentation."
        }
    )
    tokenizer: str = field(
        metadata={"help": "Hub id or folder of a tokenizer or of its model, or `embedded` for the packaged one."}
    )
    output_dir: str = field(metadata={"help": "Folder to write; an error if it is not empty."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the source as a stream, twice, in constant memory. Otherwise it is first downloaded (Hub) or read "
            "into memory (files). A .json file of one list is always read whole. The result is the same."
        },
    )
    max_sequences: int | None = field(
        default=None,
        metadata={
            "help": "Documents drawn from each split of the source, at random by `seed`; all by default. Needs one more "
            "pass."
        },
    )

    # Splits
    train_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of a split of the source, or the fraction of its training documents to train on, in (0, 1). By "
            "default the source's training or only split, without the documents cut from it for the other splits."
        },
    )
    val_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of a split of the source, or the fraction in (0, 1) to cut from its training documents. By default "
            "the source's own if it has one (validation, valid, val, dev), else 0.08."
        },
    )
    test_split: str | None = field(
        default=None,
        metadata={"help": "As `val_split`; by default the source's own `test` if it has one, else 0.08."},
    )
    duplicate_threshold: float = field(
        default=THRESHOLD,
        metadata={
            "help": "Leave out training documents whose word 5-grams have at least this Jaccard similarity, in (0, 1], to "
            "those of a held-out document; 1 leaves out exact copies only."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the random splits and of the draw of `max_sequences`."})

    # Blocks
    max_length: int = field(
        default=MAX_LENGTH,
        metadata={"help": "Tokens per block; documents are cut into blocks, the last may be shorter."},
    )
    min_length: int = field(default=MIN_LENGTH, metadata={"help": "Blocks of fewer tokens are left out, and counted."})

    # Work
    num_proc: int = field(default=1, metadata={"help": "Processes; the result is the same for any number."})

    def __post_init__(self):
        for name, least in (("max_length", 2), ("min_length", 1), ("num_proc", 1), ("seed", 0)):
            check_at_least(self, name, least)
        if self.max_sequences is not None:
            check_at_least(self, "max_sequences", 1)
        _check_lengths(self)
        if not 0 < self.duplicate_threshold <= 1:
            raise ValueError(f"`duplicate_threshold` must lie in (0, 1], got {self.duplicate_threshold}.")


def _check_lengths(arguments) -> None:
    if arguments.min_length > arguments.max_length:
        raise ValueError(
            f"`min_length` ({arguments.min_length}) exceeds `max_length` ({arguments.max_length}): no block is left."
        )
