"""What the adapters share: a compressor from what users pass, and facts beside a result."""

from pathlib import Path

from tokforget.compression.compressor import Compressor
from tokforget.compression.results import CompressedText


# Before the names of facts that are put among a user's own metadata.
PREFIX = "tokforget_"


def _is_told_apart(options: dict) -> bool:
    """Whether each text has a budget of its own; a threshold or a common budget may leave nothing of one."""
    return options.get("threshold") is None and options.get("budget", "per_text") == "per_text"


def compress_documents(compressor: Compressor, texts: list[str], options: dict, **told) -> list[CompressedText]:
    """
    As `compress`, for documents that somebody retrieved. Of one that is so short that its budget would leave nothing it is the
    whole text: it is not to be lost for a word. Where a threshold or a common budget leaves nothing, that was asked for.
    """
    options = options | told
    results = compressor.compress(texts, **options)
    lost = [n for n, (text, result) in enumerate(zip(texts, results)) if text.strip() and not result.text.strip()]
    if lost and _is_told_apart(options):
        question = options.get("question")
        of_lost = question if question is None or isinstance(question, str) else [question[n] for n in lost]
        budget = {"rate": 1.0, "target_tokens": None, "quality": None, "question": of_lost}
        for n, whole in zip(lost, compressor.compress([texts[n] for n in lost], **options | budget)):
            results[n] = whole
    return results


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
