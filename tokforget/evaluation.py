"""
One scorer or many, over rates, on the same texts with the same count and one reconstructor, to one table.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from tokforget import scoring
from tokforget.baselines import Scorer, select
from tokforget.reconstructor import Reconstructor


@torch.no_grad()
def measure(
    reconstructor: Reconstructor, input_ids: torch.Tensor, valid: torch.Tensor, keep_mask: torch.Tensor
) -> torch.Tensor:
    """
    Bits lost, tokens restored exactly (free-running), tokens dropped and tokens in all, per text.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 4)`.
    """
    bits = scoring.bits_lost(reconstructor.token_nll(input_ids, keep_mask, valid).nll)
    restored = reconstructor.restore(input_ids.masked_fill(~keep_mask, 0), keep_mask, valid).input_ids
    exact = scoring.exact_restored(restored, input_ids, keep_mask, valid)
    return torch.stack([bits, exact, (~keep_mask & valid).sum(1), valid.sum(1)], -1).float()


def summarise(measured: np.ndarray) -> dict[str, float]:
    """Totals of `(texts, 4)` from [`measure`]: bits lost per original token, share of dropped tokens restored."""
    bits, exact, dropped, tokens = measured.sum(0)
    return {
        "bits_lost": float(bits / tokens),
        "exact_restored": float(exact / dropped) if dropped else 1.0,
        "compression_rate": float(1 - dropped / tokens),
    }


def bootstrap_interval(values: np.ndarray, weights: np.ndarray, seed: int, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of `sum(values) / sum(weights)` over texts drawn with replacement."""
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    ratios = values[picks].sum(1) / weights[picks].sum(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def compare(
    scorers: list[Scorer],
    reconstructor: Reconstructor,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    rates: list[float],
    seed: int = 0,
) -> list[dict]:
    """
    One row per scorer and rate. Differences are paired over texts, against the first scorer.

    Args:
        scorers (`list[Scorer]`): The first is the one that is judged.
        batches (`list`): Pairs of `input_ids` `(B, T)` and `valid` `(B, T)`.
        rates (`list[float]`): Rates in (0, 1].
        seed (`int`): Of the bootstrap.

    Returns:
        `list[dict]`: `scorer`, `rate`, `bits_lost` (per original token), `exact_restored`, `texts`, the 95 % interval
        `bits_lost_interval`, and, for all but the first scorer, `excess_bits` over the first with its interval.
    """
    was_training = reconstructor.training
    reconstructor.eval()
    rows = []
    for rate in tqdm(rates, desc="Comparing at rates"):
        reference = None
        budget = None
        for scorer in scorers:
            masks = [select(scorer, ids, valid, rate) for ids, valid in batches]
            kept = torch.cat([mask.sum(1) for mask in masks])
            budget = kept if budget is None else budget
            if not torch.equal(kept, budget):
                raise AssertionError(f"{scorer.name} kept other counts than {scorers[0].name} at rate {rate}")
            measured = torch.cat([
                measure(reconstructor, ids, valid, mask) for (ids, valid), mask in zip(batches, masks)
            ]).double().cpu().numpy()  # fmt: skip
            bits, tokens = measured[:, 0], measured[:, 3]
            row = {"scorer": scorer.name, "rate": rate, **summarise(measured), "texts": len(measured)}
            row["bits_lost_interval"] = bootstrap_interval(bits, tokens, seed)
            if reference is None:
                reference = bits
            else:
                row["excess_bits"] = float((bits - reference).sum() / tokens.sum())
                row["excess_bits_interval"] = bootstrap_interval(bits - reference, tokens, seed)
            rows.append(row)
    reconstructor.train(was_training)
    return rows


def print_table(rows: list[dict], console: Console | None = None) -> None:
    """Bits lost per original token and share of dropped tokens restored exactly, a scorer a line."""
    rates = sorted({row["rate"] for row in rows})
    table = Table(
        title=f"{rows[0]['texts']} held-out texts, equal counts, one reconstructor",
        caption="bits: lost per original token, lower is better; exact: dropped tokens restored, free-running",
    )
    table.add_column("scorer", no_wrap=True)
    for rate in rates:
        table.add_column(f"bits {rate:g}", justify="right")
        table.add_column("exact", justify="right")
    for name in dict.fromkeys(row["scorer"] for row in rows):
        cells = []
        for rate in rates:
            row = next(r for r in rows if r["scorer"] == name and r["rate"] == rate)
            cells += [f"{row['bits_lost']:.3f}", f"{100 * row['exact_restored']:.1f} %"]
        table.add_row(name, *cells)
    (console or Console()).print(table)


def write_json(path: str | Path, content: dict) -> None:
    """Written beside and renamed; refuses numbers that JSON has no name for."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)
