"""A result of `compress` that was written as JSON, read back and checked: it may come from anywhere."""

import numpy as np

from tokforget.compression.results import CompressedText
from tokforget.compression.search import runs


def read_result(fields: dict, compressor) -> CompressedText:
    """
    The result in the fields that [`CompressedText.to_dict`] wrote, for this compressor to restore.

    Raises:
        `ValueError`, `TypeError`, `OverflowError`: If its parts do not fit each other, or it is of another model.
    """
    if not isinstance(fields, dict):
        raise TypeError(f"a saved result is an object, got a {type(fields).__name__}")
    result = CompressedText.from_dict(fields)
    if not isinstance(result.text, str):
        raise TypeError(f"damaged: `text` is a {type(result.text).__name__}")
    if result.tokenizer and result.tokenizer != compressor.fingerprint:
        given = fields.get("model")
        hint = f"--model {given}" if given else "the packaged model (no --model)"
        raise ValueError(f"compressed with another model's tokenizer; it was written with {hint}")
    _check(result, compressor.tokenizer.get_vocab_size())
    return result


def _check(result: CompressedText, vocab_size: int) -> None:
    """Raise `ValueError` where the parts of a result do not fit each other."""
    indices, ids = result.kept_indices, result.kept_ids
    count = result.original_tokens
    starts, ends = result.kept_spans.T
    for fits, what in (
        (
            isinstance(count, int) and (count == len(result.scores) or result.counted_tokens is not None),
            "`original_tokens` is not the number of `scores`",
        ),
        (len(indices) == len(ids), "`kept_indices` and `kept_ids` differ in length"),
        (bool((np.diff(indices, prepend=-1, append=len(result.scores)) > 0).all()), "`kept_indices` are not in order"),
        (bool(((ids >= 0) & (ids < vocab_size)).all()), f"`kept_ids` are not all below {vocab_size}"),
        (len(starts) == len(result.separated), "`kept_spans` and `separated` differ in length"),
        (
            int((ends - starts).sum() + result.separated.sum()) + sum(len(note) for _, note in result.notes)
            == len(result.text),
            "`kept_spans` do not add up to `text`",
        ),
    ):
        if not fits:
            raise ValueError(f"damaged: {what}")
    if (ends < starts).any() or len(starts) != len(
        runs(result.keep_mask)[0]
    ):  # asked once the indices are known to be places
        raise ValueError("damaged: `kept_spans` are not those of `kept_indices`")
