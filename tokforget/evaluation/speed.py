"""
Time and memory of compression, of the first token and of the whole request; and from which length on compression saves
time.

Every figure is the median of several repetitions after a warm-up. Single prompts and batches are measured separately.
The compressed input is really shorter: it holds the kept tokens and no mask tokens.
"""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from tokforget.evaluation.scorers import Scorer, select
from tokforget.models.loading import load_base_model
from tokforget.packing import kept_tokens


GPT2_SHAPE = "gpt2-shape"
# Speed-up of a worthwhile request: the longest output that still reaches it is reported.
_WORTHWHILE = 1.1


def load_target(name_or_path: str) -> PreTrainedModel:
    """
    The model that prompts are compressed for. `"gpt2-shape"` is GPT-2 124M with random weights, because time depends
    only on the shapes.
    """
    if name_or_path == GPT2_SHAPE:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(GPT2Config()).eval()
    return load_base_model(name_or_path).eval()


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median time of `work` in seconds over `repeats` runs, after a warm-up run."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """
    Peak memory during `work` in bytes, less the memory in use before. On a CPU this is the process's resident memory,
    from Linux's high-water mark; `None` on other systems.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="utf-8"
        )  # resets the high-water mark to the current use
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    work()
    return max(_status_bytes("VmHWM") - before, 0)


def _status_bytes(name: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith(f"{name}:")
    )
    return int(line.split()[1]) * 1024


@torch.no_grad()
def answer(target: PreTrainedModel, input_ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """
    Greedy continuation `(B, new_tokens)` with a cache, ignoring the end token; 1 new token measures the first token.
    """
    output = target(input_ids=input_ids, use_cache=True, logits_to_keep=1)
    tokens = [output.logits[:, -1].argmax(-1)]
    for _ in range(new_tokens - 1):
        output = target(input_ids=tokens[-1][:, None], cache=output.cache, use_cache=True)
        tokens.append(output.logits[:, -1].argmax(-1))
    return torch.stack(tokens, 1)


def measure_speed(
    scorers: Sequence[Scorer],
    target: PreTrainedModel,
    text_ids: Sequence[int],
    lengths: Sequence[int],
    rate: float,
    new_tokens: int,
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int = 3,
) -> list[dict]:
    """
    Time compression, the first token and whole requests.

    Args:
        scorers (`list[Scorer]`): Compressors. Scoring and selection are timed, tokenising is not.
        target (`PreTrainedModel`): The model that reads the prompt.
        text_ids (`list[int]`): Running text to cut prompts from: at least the longest prompt times the largest batch.
        lengths (`list[int]`): Prompt lengths in tokens.
        rate (`float`): Compression rate.
        new_tokens (`int`): Tokens generated in the whole request.
        batch_sizes (`list[int]`): Prompts per batch.
        repeats (`int`): Repetitions whose median is taken.

    Returns:
        `list[dict]`: For each scorer, length and batch size: `compress_seconds`, `first_token_seconds` and
        `total_seconds` of the compressed request (including compression), the same for the full request, and peak
        memory of both in bytes. `scorer` `"none"` is the full request.

    Raises:
        `ValueError`: If `text_ids` is too short, or the target cannot hold the longest prompt and its new tokens.
    """
    device = target.device
    needed = max(lengths) * max(batch_sizes)
    if len(text_ids) < needed:
        raise ValueError(f"The speed measurement needs {needed} tokens of text, got {len(text_ids)}.")
    limit = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max(lengths) + new_tokens > limit:
        raise ValueError(
            f"The target takes {limit} tokens; a prompt of {max(lengths)} and {new_tokens} new ones do not fit. Lower "
            "`speed_lengths` or `speed_new_tokens`."
        )
    rows = []
    for batch_size in batch_sizes:
        for length in lengths:
            ids = torch.tensor(text_ids[: length * batch_size], device=device).view(batch_size, length)
            valid = torch.ones_like(ids, dtype=torch.bool)
            full = _request(target, ids % target.get_input_embeddings().weight.shape[0], new_tokens, repeats)
            rows.append({"scorer": "none", "tokens": length, "batch_size": batch_size, "rate": 1.0, **full})
            for scorer in scorers:
                mask = select(scorer, ids, valid, rate)
                short = kept_tokens(ids, mask, 0)
                assert short.shape[1] < length, "the compressed prompt is not shorter"
                compress = median_seconds(lambda: select(scorer, ids, valid, rate), repeats, device)  # noqa: B023
                request = _request(target, short % target.get_input_embeddings().weight.shape[0], new_tokens, repeats)
                memory = peak_bytes(lambda: select(scorer, ids, valid, rate), device)  # noqa: B023
                rows.append({
                    "scorer": scorer.name, "tokens": length, "batch_size": batch_size, "rate": rate,
                    "kept_tokens": short.shape[1],
                    "compress_seconds": compress,
                    "compress_seconds_per_token": compress / (length * batch_size),
                    "first_token_seconds": compress + request["first_token_seconds"],
                    "total_seconds": compress + request["total_seconds"],
                    "first_token_speedup": full["first_token_seconds"] / (compress + request["first_token_seconds"]),
                    "total_speedup": full["total_seconds"] / (compress + request["total_seconds"]),
                    "free_total_speedup": full["total_seconds"] / request["total_seconds"],
                    "compress_peak_bytes": memory,
                    "request_peak_bytes": request["request_peak_bytes"],
                })  # fmt: skip
    return rows


def _request(target: PreTrainedModel, ids: torch.Tensor, new_tokens: int, repeats: int) -> dict:
    return {
        "new_tokens": new_tokens,
        "first_token_seconds": median_seconds(lambda: answer(target, ids, 1), repeats, target.device),
        "total_seconds": median_seconds(lambda: answer(target, ids, new_tokens), repeats, target.device),
        "request_peak_bytes": peak_bytes(lambda: answer(target, ids, 1), target.device),
    }


def break_even(rows: Sequence[dict], scorer: str, batch_size: int = 1) -> dict:
    """
    Lengths from which a compressor saves time, by straight lines through the measured times.

    Returns:
        `dict`: `break_even_tokens`, the prompt length from which the first token comes sooner with compression (0: at
        any length; `None`: never); `worthwhile_new_tokens`, the longest output for which the whole request with the
        longest measured prompt is at least 1.1 times faster (0: for no length; `None`: for every length).
    """
    full = sorted(
        (r for r in rows if r["scorer"] == "none" and r["batch_size"] == batch_size), key=lambda r: r["tokens"]
    )
    own = sorted(
        (r for r in rows if r["scorer"] == scorer and r["batch_size"] == batch_size), key=lambda r: r["tokens"]
    )
    tokens = np.array([r["tokens"] for r in own], dtype=float)
    saved = np.array([f["first_token_seconds"] - o["first_token_seconds"] for f, o in zip(full, own)])
    slope, offset = np.polyfit(tokens, saved, 1) if len(own) > 1 else (saved[0] / tokens[0], 0.0)
    never = slope <= 0 and (offset <= 0 or saved.min() <= 0)
    tokens_from = None if never else float(max(0.0, -offset / slope)) if slope > 0 else 0.0
    f, o = full[-1], own[-1]
    # Seconds per further token of both requests, from the times of the first token and of the whole request.
    step_full, step_own = (
        (r["total_seconds"] - r["first_token_seconds"]) / max(f["new_tokens"] - 1, 1) for r in (f, o)
    )
    # Solve full(n) / own(n) = 1.1; both times are linear in the number n of tokens after the first.
    head_start = f["first_token_seconds"] - _WORTHWHILE * o["first_token_seconds"]
    per_token = _WORTHWHILE * step_own - step_full
    always = per_token <= 0
    new_tokens = 0.0 if head_start < 0 else None if always else float(1 + head_start / per_token)
    return {
        "scorer": scorer,
        "batch_size": batch_size,
        "break_even_tokens": tokens_from,
        "worthwhile_new_tokens": new_tokens,
    }
