"""
tokforget inside other people's tools. Each module needs only the library it is named after, and nothing imports it for you.

    llmlingua      `PromptCompressor` with LLMLingua's calls and result keys (needs nothing: LLMLingua is not used)
    langchain      document compressor and transformer
    llama_index    node postprocessor
    huggingface    a function for `datasets.map`, and a callable in the manner of a `transformers` pipeline
"""

from pathlib import Path

from tokforget.compressor import Compressor
from tokforget.results import CompressedText


# Before the names of facts that are put among a user's own metadata.
PREFIX = "tokforget_"
COLUMNS = ("compressed", "original_tokens", "compressed_tokens", "compression_rate")


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


def columns(result: CompressedText) -> dict:
    """What is said of a text where rows or dictionaries are wanted."""
    return {"compressed": result.text} | counts(result)


def counts(result: CompressedText, prefix: str = "") -> dict:
    """Tokens before and after, and their quotient."""
    return {
        f"{prefix}original_tokens": result.original_tokens,
        f"{prefix}compressed_tokens": result.compressed_tokens,
        f"{prefix}compression_rate": round(result.compression_rate, 4),
    }
