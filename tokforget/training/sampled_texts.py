"""
More text to learn from, drawn from the language model itself.

A policy of a million parameters learns the few hundred thousand tokens of a small corpus by heart: what its rewards say of
texts it has seen often says little about new ones. The base model can be asked for as many texts as wanted. Each one takes
the first tokens of a training block and goes on from there, hence stays in the corpus's own manner.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from tokforget.masking import seeded_generator
from tokforget.models.reconstructor import Reconstructor


if TYPE_CHECKING:
    from datasets import Dataset


SAMPLED = "sampled_texts"
# Tokens of a training block that a sampled text begins with: enough for its manner, too few for its content.
_PROMPT_TOKENS = 8


def with_sampled_texts(
    reconstructor: Reconstructor, blocks: "Dataset", number: int, run_dir: str | Path, seed: int, resumed: bool
) -> "Dataset":
    """
    The training blocks, column `input_ids`, and behind them `number` that the base model wrote; see [`sample_blocks`] and
    [`draw_once`]. Every process has to call.
    """
    from datasets import Features, concatenate_datasets

    own = blocks.select_columns(["input_ids"])
    sampled = draw_once(run_dir, lambda: sample_blocks(reconstructor, own["input_ids"], number, seed), resumed)
    return concatenate_datasets([own, sampled.cast(Features({"input_ids": own.features["input_ids"]}))])


def draw_once(run_dir: str | Path, draw: Callable[[], list[list[int]]], resumed: bool) -> "Dataset":
    """
    The sampled blocks of a run, column `input_ids`: drawn by its first process and kept in its folder, so that all processes
    have the same and a resumed run has them again. Every process has to call.

    Raises:
        `FileNotFoundError`: If a resumed run's folder has none.
    """
    from datasets import Dataset, load_from_disk

    folder, state = Path(run_dir, SAMPLED), PartialState()
    with state.main_process_first():
        if state.is_main_process and not resumed:
            partial = folder.with_name(f".{SAMPLED}.partial")
            for old in (folder, partial):
                shutil.rmtree(old, ignore_errors=True)
            Dataset.from_dict({"input_ids": draw()}).save_to_disk(partial)
            os.replace(partial, folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: the run that is to go on had sampled texts there. Put them back, or start anew."
        )
    return load_from_disk(str(folder), keep_in_memory=True)


@torch.no_grad()
def sample_blocks(
    reconstructor: Reconstructor,
    blocks: Sequence[Sequence[int]],
    num_blocks: int,
    seed: int,
    prompt_tokens: int = _PROMPT_TOKENS,
    batch_size: int = 128,
) -> list[list[int]]:
    """
    Blocks that begin as training blocks do, and go on as the base model would, adapter off, at temperature 1.

    Args:
        reconstructor ([`Reconstructor`]): Whose base model is asked.
        blocks (`list[list[int]]`): Training blocks; those longer than `prompt_tokens` are continued, in a random order, again
            from the first if there are too few.
        num_blocks (`int`): Blocks to draw.
        prompt_tokens (`int`): Tokens taken over from the training block.

    Returns:
        `list[list[int]]`: As long as the blocks they begin like. The marker token, which stands for no text, is never drawn.

    Raises:
        `ValueError`: If no block is longer than `prompt_tokens`.
    """
    long_enough = [block for block in blocks if len(block) > prompt_tokens]
    if not long_enough:
        raise ValueError(
            f"A sampled text begins with {prompt_tokens} tokens of a training block, and no block is longer. Train on longer "
            "blocks (`max_length`), or pass `sampled_texts: 0`."
        )
    order = torch.randperm(len(long_enough), generator=seeded_generator(seed, 0)).tolist()
    chosen = [long_enough[order[n % len(order)]] for n in range(num_blocks)]
    by_length = sorted(range(num_blocks), key=lambda n: -len(chosen[n]))
    drawn: list[list[int]] = [[] for _ in chosen]
    was_training = reconstructor.training
    reconstructor.eval()
    try:
        with reconstructor.adapter_off(), tqdm(total=num_blocks, desc="Sampling texts", leave=False) as progress:
            for start in range(0, num_blocks, batch_size):
                places = by_length[start : start + batch_size]
                prompts = torch.tensor([list(chosen[n][:prompt_tokens]) for n in places])
                lengths = torch.tensor([len(chosen[n]) for n in places])
                for place, row in zip(
                    places, _continue(reconstructor, prompts, lengths, seeded_generator(seed, start + 1))
                ):
                    drawn[place] = row
                progress.update(len(places))
    finally:
        reconstructor.train(was_training)
    return drawn


def _continue(
    reconstructor: Reconstructor, prompts: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator
) -> list[list[int]]:
    """Prompts `(B, P)` continued to `lengths` `(B,)`, which fall, tokens in all."""
    model = reconstructor.base_model
    ids = prompts.to(model.device)
    column, cache = ids, None
    for have in range(prompts.shape[1], int(lengths[0])):
        output = model(input_ids=column, cache=cache, use_cache=True, logits_to_keep=1)
        cache = output.cache
        column = _draw(output.logits[:, -1].float(), reconstructor.marker_token_id, generator)
        ids = torch.cat([ids, torch.nn.functional.pad(column, (0, 0, 0, len(ids) - len(column)))], 1)
        going_on = int((lengths > have + 1).sum())
        if 0 < going_on < len(column):
            cache.batch_select_indices(torch.arange(going_on, device=ids.device))
            column = column[:going_on]
    return [row[:length].tolist() for row, length in zip(ids, lengths.tolist())]


def _draw(logits: torch.Tensor, never: int, generator: torch.Generator) -> torch.Tensor:
    """One token of each row `(B, V)`, by its place in the cumulated probabilities: `(B, 1)`."""
    logits[:, never] = -torch.inf
    mass = logits.sub_(logits.amax(1, keepdim=True)).exp_().cumsum_(1)
    total = mass[:, -1:].contiguous()
    place = torch.rand(len(mass), 1, generator=generator).to(mass) * total
    # Below the total even when the product was rounded up to it: what lies there has no mass.
    place = torch.minimum(place, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, place, right=True)
