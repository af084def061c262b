"""Read and check a result of `compress` that was saved as JSON; it may come from an untrusted source."""

import numpy as np

from tokforget.compression.results import CompressedText
from tokforget.compression.search import runs


def read_result(fields: dict, compressor) -> CompressedText:
    """
    The result in the fields of [`CompressedText.to_dict`], to be restored by this compressor.

    Raises:
        `ValueError`, `TypeError`, `OverflowError`: If its fields contradict each other, or another model made it.
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
    """Raise `ValueError` if the fields of a result contradict each other."""
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
    ):  # checked after the indices are known to be valid
        raise ValueError("damaged: `kept_spans` are not those of `kept_indices`")
