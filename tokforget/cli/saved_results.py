"""Read and check the output of `tokforget compress --json`; a file may come from an untrusted source."""

import json
from collections.abc import Callable, Iterator

from tokforget.cli.files import Record, UserError, open_input
from tokforget.compression.results import CompressedText
from tokforget.compression.saved import read_result


# At least one of so many first lines must be a result; otherwise the file is not such an output.
_TRIED = 20


def read_saved(
    sources: list[str], compressor, reject: Callable[[str, str], None]
) -> Iterator[tuple[Record, CompressedText]]:
    """
    Read results from files of JSON Lines, or of one JSON object. Lines that are not results are passed to
    `reject(place, reason)`.

    A row from `compress --column --json` has its result in `compression`.
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
        if len(lines) > 1 and _is_object(data):  # one object on several lines
            lines = [(1, data)]
        for number, line in lines:
            record = Record(source, "", len(line), number if len(lines) > 1 else None)
            try:
                fields = _fields(line)
                # Only a row of `--column` contains its result in a field.
                record.line = line.decode() if "compression" in fields else None
                yield record, read_result(fields.get("compression", fields), compressor)
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
