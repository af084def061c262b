"""What the adapters share: a compressor from what users pass, and facts beside a result."""

from pathlib import Path

from tokforget.compression.compressor import Compressor


# Before the names of facts that are put among a user's own metadata.
PREFIX = "tokforget_"


def ready(compressor: Compressor | str | Path | None, options: dict) -> Compressor:
    """
    A compressor from what users pass: one that is loaded, or a folder or Hub id, or None for the packaged model.

    Raises:
        `ValueError`, `TypeError`: If it or the options of `compress` are wrong: now, rather than at the first text.
    """
    if not isinstance(compressor, Compressor):
        compressor = Compressor.from_pretrained(compressor)
    compressor.compress([], **options)
    return compressor
