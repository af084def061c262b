"""Time of whole requests: the time that compression takes against the time that the reader saves."""

import time

import numpy as np
import torch

from tokforget.readers.language_model import Reader
from tokforget.readers.text_compressors import TextCompressor


def request_seconds(reader: Reader, prompt: str, new_tokens: int, repeats: int = 3) -> tuple[float, float, int]:
    """
    Median seconds to the first token and of the whole request with greedy decoding, and the characters of the output.
    """
    ids = torch.tensor([[reader.start, *reader.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    shown = {"input_ids": ids.to(reader.model.device), "attention_mask": torch.ones_like(ids).to(reader.model.device)}
    options = {"do_sample": False, "pad_token_id": reader.start}
    first, whole, output = [], [], None
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        reader.model.generate(**shown, **options, max_new_tokens=1)
        first.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        output = reader.model.generate(**shown, **options, max_new_tokens=new_tokens)
        whole.append(time.perf_counter() - begun)
    text = reader.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return float(np.median(first[1:])), float(np.median(whole[1:])), len(text)


def cost_rows(
    reader: Reader,
    compressor: TextCompressor,
    text: str,
    prompt_tokens: list[int],
    rates: list[float],
    new_tokens: int = 32,
) -> list[dict]:
    """
    Time requests with prompts of the given lengths, cut from one text.

    Args:
        reader ([`Reader`]): Answers the requests.
        compressor ([`TextCompressor`]): Compresses the prompts.
        text (`str`): Text of the prompts.
        prompt_tokens (`list[int]`): Lengths of the prompts.
        rates (`list[float]`): Compression rates.
        new_tokens (`int`): Tokens of an answer.

    Returns:
        `list[dict]`: For each length and rate: tokens saved; seconds of compression, to the first token and of the
        whole request, with and without compression; and `gain`, the seconds that a request is shorter, including
        compression.

    Raises:
        `ValueError`: If the text is shorter than a prompt.
    """
    offsets = reader.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    rows = []
    for length in prompt_tokens:
        if length > len(offsets):
            raise ValueError(f"A prompt of {length} tokens is asked for; the text has {len(offsets)}.")
        prompt = text[: offsets[length - 1][1]]
        first, whole, characters = request_seconds(reader, prompt, new_tokens)
        rows.append({"prompt_tokens": length, "rate": 1.0, "tokens_saved": 0, "compress_seconds": 0.0,
                     "first_token_seconds": first, "request_seconds": whole, "output_characters": characters, "gain": 0.0})  # fmt: skip
        for rate in rates:
            seconds = []
            for _ in range(3):
                begun = time.perf_counter()
                short = compressor(prompt, int(rate * length))
                seconds.append(time.perf_counter() - begun)
            compress = float(np.median(seconds))
            short_first, short_whole, characters = request_seconds(reader, short, new_tokens)
            rows.append({"prompt_tokens": length, "rate": rate, "tokens_saved": length - reader.counts([short])[0],
                         "compress_seconds": compress, "first_token_seconds": short_first, "request_seconds": short_whole,
                         "output_characters": characters, "gain": whole - short_whole - compress})  # fmt: skip
    return rows


def break_even_tokens(rows: list[dict], rate: float) -> float | None:
    """
    Prompt length from which compression at `rate` saves time, on the line through the measured gains; 0 if it always
    does, `None` if it does not up to ten times the longest prompt.
    """
    lengths, gains = zip(*((row["prompt_tokens"], row["gain"]) for row in rows if row["rate"] == rate))
    if len(lengths) < 2:
        return None
    slope, base = np.polyfit(lengths, gains, 1)
    if base >= 0 and min(gains) >= 0:
        return 0.0
    crossing = -base / slope if slope > 0 else float("inf")
    return float(crossing) if 0 <= crossing <= 10 * max(lengths) else None
