"""
The blocks of a run, drawn from a source alike in every recipe and under every seed.
"""

import sys
from typing import TYPE_CHECKING

from tokforget.config import DataArguments
from tokforget.data import data_fingerprint, open_blocks


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def draw_blocks(
    data_args: DataArguments, tokenizer: "PreTrainedTokenizerBase"
) -> tuple["Dataset", "Dataset", "Dataset", dict]:
    """
    Train, validation and test blocks, drawn alike in every run: training seeds are compared on the same texts. And the
    record of them: `fingerprint` of all blocks they were drawn from, `source` of the text, `blocks` of each split drawn.
    """
    blocks, source = open_blocks(
        data_args.dataset_name,
        tokenizer,
        data_args.max_length,
        data_args.min_length,
        data_args.dataset_config,
        data_args.text_column,
    )
    fingerprint, blocks = data_fingerprint(blocks), blocks.shuffle(seed=0, keep_in_memory=True)
    limits = {
        "train": data_args.max_train_texts or sys.maxsize,
        "validation": data_args.max_eval_texts,
        "test": data_args.max_test_texts,
    }
    train, validation, test = (
        blocks[name].select(range(min(len(blocks[name]), limit))) for name, limit in limits.items()
    )
    counts = {"train": len(train), "validation": len(validation), "test": len(test)}
    return train, validation, test, {"fingerprint": fingerprint, "source": source, "blocks": counts}
