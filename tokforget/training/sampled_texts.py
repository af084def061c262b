"""
More training texts, sampled from the base model.

A policy of a million parameters memorises a small corpus of a few hundred thousand tokens: its rewards on texts that
it has seen often say little about new texts. The base model can write any number of texts. Each begins with the first
tokens of a training block, which the model continues, and therefore resembles the corpus.
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
# Tokens of a training block at the beginning of a sampled text: enough for its style, too few for its content.
_PROMPT_TOKENS = 8


def with_sampled_texts(
    reconstructor: Reconstructor, blocks: "Dataset", number: int, run_dir: str | Path, seed: int, resumed: bool
) -> "Dataset":
    """
    The training blocks, column `input_ids`, followed by `number` blocks sampled from the base model; see
    [`sample_blocks`] and [`draw_once`]. Every process must call it.
    """
    from datasets import Features, concatenate_datasets

    own = blocks.select_columns(["input_ids"])
    sampled = draw_once(run_dir, lambda: sample_blocks(reconstructor, own["input_ids"], number, seed), resumed)
    return concatenate_datasets([own, sampled.cast(Features({"input_ids": own.features["input_ids"]}))])


def draw_once(run_dir: str | Path, draw: Callable[[], list[list[int]]], resumed: bool) -> "Dataset":
    """
    The sampled blocks of a run, column `input_ids`. The first process draws them and saves them in the run's folder,
    from which all processes and a resumed run read them. Every process must call it.

    Raises:
        `FileNotFoundError`: If a run resumes and its folder has no sampled blocks.
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
            f"{folder} is missing: the run to resume had sampled texts there. Put them back, or start anew."
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
    Sample blocks that begin like training blocks. The base model continues them, with the adapter off, at temperature
    1.

    Args:
        reconstructor ([`Reconstructor`]): Its base model is sampled from.
        blocks (`list[list[int]]`): Training blocks; those longer than `prompt_tokens` are continued, in random order,
            repeatedly if there are too few.
        num_blocks (`int`): Blocks to draw.
        seed (`int`): Seed of the order and of the samples.
        prompt_tokens (`int`): Tokens copied from the training block.
        batch_size (`int`): Blocks per batch.

    Returns:
        `list[list[int]]`: Each is as long as the block that it begins with. The marker token, which is no text, is
            never drawn.

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
    """Continue prompts `(B, P)` to total lengths `(B,)`, which must be sorted in descending order."""
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
    """Draw one token for each row `(B, V)`, by inverting the cumulative probabilities; `(B, 1)`."""
    logits[:, never] = -torch.inf
    mass = logits.sub_(logits.amax(1, keepdim=True)).exp_().cumsum_(1)
    total = mass[:, -1:].contiguous()
    place = torch.rand(len(mass), 1, generator=generator).to(mass) * total
    # Stay below the total even if the product was rounded up to it, because the tokens there have no probability.
    place = torch.minimum(place, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, place, right=True)
