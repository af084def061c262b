"""Reads what `tokforget compress --json` wrote, and checks it: a file may come from anywhere."""

import json
from collections.abc import Callable, Iterator

import numpy as np

from tokforget.cli.files import Record, UserError, open_input
from tokforget.compression.results import CompressedText


# Lines at the beginning of a file of which one at least has to be what is wanted; else the file is another one.
_TRIED = 20


def read_saved(
    sources: list[str], compressor, reject: Callable[[str, str], None]
) -> Iterator[tuple[Record, CompressedText]]:
    """
    Results from files of JSON Lines, or of one JSON object. What is none goes to `reject(place, reason)`.

    A row that `compress --column --json` wrote carries its result in `compression`.
    """
    for source in sources:
        with open_input(source) as file:
            data = file.read()
        lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
        if lines and not _is_object(data) and not any(_is_object(line) for _, line in lines[:_TRIED]):
            raise UserError(
                f"{source} is no output of `tokforget compress --json`, which is a JSON object on each line. Compress with --json what is "
                "to be restored."
            )
        if len(lines) > 1 and _is_object(data):  # one object, printed over several lines
            lines = [(1, data)]
        for number, line in lines:
            record = Record(source, "", len(line), number if len(lines) > 1 else None)
            try:
                fields = _fields(line)
                # Only a row of `--column` has its result inside.
                record.line = line.decode() if "compression" in fields else None
                yield record, _result(fields.get("compression", fields), compressor)
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                reject(record.place, str(error))


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _fields(line: bytes) -> dict:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object; pass what `tokforget compress --json` wrote")
    return fields


def _result(fields: dict, compressor) -> CompressedText:
    result = CompressedText.from_dict(fields)
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
