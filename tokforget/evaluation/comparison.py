"""
Compare scorers at several rates, on the same texts, with the same token counts and one reconstructor; paired
statistics.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from tokforget.evaluation.scorers import Scorer
from tokforget.intervals import bootstrap_interval
from tokforget.masking import keep_count, top_k_mask
from tokforget.models.measuring import restore_and_measure, summarise
from tokforget.models.reconstructor import Reconstructor


Batch = tuple[torch.Tensor, torch.Tensor]
FLOOR, CEILING, KEEP_ALL = "random", "greedy_oracle", "keep_all"


# -- one mask, judged ----------------------------------------------------------------------------------------------------


# -- many masks, compared ------------------------------------------------------------------------------------------------
@dataclass
class Comparison:
    """
    The measurements of one scorer at one rate, text by text.

    Args:
        scorer (`str`), rate (`float`): Name of the scorer, and its rate.
        runs (`list[np.ndarray]`): One `(texts, 4)` array of [`measure`] per repetition (seed) of the scorer.
        keep_masks (`list[torch.BoolTensor]`): The masks of the first repetition, one per batch.
        restored (`list[torch.LongTensor]`): The texts restored from these masks.
        seconds (`float`): Time for scoring all texts in batches; the mean of the repetitions.
    """

    scorer: str
    rate: float
    runs: list[np.ndarray] = field(default_factory=list)
    keep_masks: list[torch.Tensor] = field(default_factory=list)
    restored: list[torch.Tensor] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def measured(self) -> np.ndarray:
        """Mean over the repetitions, `(texts, 4)`."""
        return np.mean(self.runs, 0)


def judge(
    scorers: Sequence[Scorer],
    reconstructor: Reconstructor,
    batches: Sequence[Batch],
    rates: Sequence[float],
) -> list[Comparison]:
    """
    Score, mask and restore every text with every scorer at every rate. Several processes divide the batches among them
    and all get the complete result, so every process must call this function.

    Args:
        scorers (`list[Scorer]`): Scorers of the same name are repetitions of one method.
        reconstructor ([`Reconstructor`]): The judge.
        batches (`list`): Pairs of `input_ids` `(B, T)` and `valid` `(B, T)`; every process gets all of them.
        rates (`list[float]`): Compression rates in (0, 1].

    Returns:
        `list[Comparison]`: Ordered by rate, then by scorer.
    """
    was_training = reconstructor.training
    reconstructor.eval()
    found: dict[tuple[float, str], Comparison] = {}
    for scorer in tqdm(scorers, desc="Comparing", leave=False):
        results = _shared_out(batches, lambda batch, of=scorer: _judge_batch(of, reconstructor, *batch, rates))
        for rate, of_rate in zip(rates, zip(*results)):
            entry = found.setdefault((rate, scorer.name), Comparison(scorer.name, rate))
            tables, masks, restored, seconds = zip(*of_rate)
            entry.runs.append(np.concatenate(tables))
            entry.seconds += sum(seconds)
            if len(entry.runs) == 1:
                entry.keep_masks, entry.restored = list(masks), list(restored)
    for entry in found.values():
        entry.seconds /= len(entry.runs)
    reconstructor.train(was_training)
    _check_equal_budgets(list(found.values()))
    names = list(dict.fromkeys(scorer.name for scorer in scorers))
    return [found[rate, name] for rate in rates for name in names]


def _shared_out(batches: Sequence[Batch], work: Callable[[Batch], list]) -> list[list]:
    """
    Apply `work` to every batch, with the batches distributed over the processes; results in the order of the batches.
    """
    state = PartialState()
    own = [work(batch) for batch in batches[state.process_index :: state.num_processes]]
    if state.num_processes == 1:
        return own
    by_process = gather_object([own])
    return [part[at] for at in range(len(by_process[0])) for part in by_process if at < len(part)]


def _judge_batch(
    scorer: Scorer, reconstructor: Reconstructor, input_ids: torch.Tensor, valid: torch.Tensor, rates: Sequence[float]
) -> list[tuple[np.ndarray, torch.Tensor, torch.Tensor, float]]:
    """For each rate: the table of [`measure`], the masks, the restored ids, and the seconds for scoring."""
    scored = []
    for rate in rates:
        again = scorer.needs_rate or not scored
        scored.append(_timed_scores(scorer, input_ids, valid, rate) if again else scored[0])
    masks = [top_k_mask(scores, keep_count(valid.sum(1), rate), valid) for (scores, _), rate in zip(scored, rates)]
    # All rates in one batch: restoring decodes token by token, and a step costs little more for three times the rows.
    times = len(rates)
    table, restored = restore_and_measure(
        reconstructor, input_ids.repeat(times, 1), valid.repeat(times, 1), torch.cat(masks)
    )
    tables = table.double().cpu().chunk(times)
    return [
        (of_rate.numpy(), mask.cpu(), guess, seconds)
        for of_rate, mask, guess, (_, seconds) in zip(tables, masks, restored.cpu().chunk(times), scored)
    ]


def _timed_scores(
    scorer: Scorer, input_ids: torch.Tensor, valid: torch.Tensor, rate: float
) -> tuple[torch.Tensor, float]:
    rates = torch.full((len(input_ids),), rate, device=input_ids.device)
    start = time.perf_counter()
    scores = scorer.score(input_ids, valid, rates)
    if scores.is_cuda:
        torch.cuda.synchronize()
    return scores, time.perf_counter() - start


def _check_equal_budgets(comparisons: list[Comparison]) -> None:
    budgets: dict[float, tuple[str, np.ndarray]] = {}
    for entry in comparisons:
        first, dropped = budgets.setdefault(entry.rate, (entry.scorer, entry.runs[0][:, 2]))
        for run in entry.runs:
            if not np.array_equal(run[:, 2], dropped):
                raise AssertionError(f"{entry.scorer} kept other counts than {first} at rate {entry.rate}")


# -- statistics ----------------------------------------------------------------------------------------------------------


def rows_of(comparisons: list[Comparison], seed: int = 0) -> list[dict]:
    """
    One row per scorer and rate. Differences to the first scorer are paired over texts.

    Returns:
        `list[dict]`: `scorer`, `rate`, `bits_lost` (per original token), `exact_restored`, `compression_rate` (of the
        mask), `texts`, `runs`, the 95 % intervals `bits_lost_interval` and `exact_restored_interval`; for several runs
        `bits_lost_std` and `bits_lost_runs`; for all but the first scorer the differences `excess_bits` and
        `excess_exact` to the first, with their intervals; if random and the greedy oracle were run,
        `oracle_gap_closed`, the fraction of the gap between them in bits lost that the scorer closes, with its
        interval; `seconds_per_token` of batched scoring.
    """
    rows = []
    for entry in comparisons:
        measured = entry.measured
        bits, exact, dropped, tokens = measured.T
        row = {"scorer": entry.scorer, "rate": entry.rate, **summarise(measured), "texts": len(measured)}
        row["runs"] = len(entry.runs)
        row["bits_lost_interval"] = bootstrap_interval(bits, tokens, seed)
        if dropped.sum():
            row["exact_restored_interval"] = bootstrap_interval(exact, dropped, seed)
        if len(entry.runs) > 1:
            by_run = [float(run[:, 0].sum() / run[:, 3].sum()) for run in entry.runs]
            row |= {"bits_lost_runs": by_run, "bits_lost_std": float(np.std(by_run, ddof=1))}
        first = next(c for c in comparisons if c.rate == entry.rate)
        if entry is not first:
            excess = bits - first.measured[:, 0]
            row["excess_bits"] = float(excess.sum() / tokens.sum())
            row["excess_bits_interval"] = bootstrap_interval(excess, tokens, seed)
            if dropped.sum():
                excess = exact - first.measured[:, 1]
                row["excess_exact"] = float(excess.sum() / dropped.sum())
                row["excess_exact_interval"] = bootstrap_interval(excess, dropped, seed)
        anchors = {c.scorer: c.measured[:, 0] for c in comparisons if c.rate == entry.rate}
        if anchors.keys() >= {FLOOR, CEILING} and (gap := (anchors[FLOOR] - anchors[CEILING])).sum() > 0:
            row["oracle_gap_closed"] = float((anchors[FLOOR] - bits).sum() / gap.sum())
            row["oracle_gap_closed_interval"] = bootstrap_interval(anchors[FLOOR] - bits, gap, seed)
        row["seconds_per_token"] = entry.seconds / float(tokens.sum())
        rows.append(row)
    return rows


def compare(
    scorers: list[Scorer], reconstructor: Reconstructor, batches: list[Batch], rates: list[float], seed: int = 0
) -> list[dict]:
    """[`judge`], then [`rows_of`]: one row per scorer and rate; differences are taken to the first scorer."""
    return rows_of(judge(scorers, reconstructor, batches, rates), seed)


# -- output ------------------------------------------------------------------------------------------------------------
def print_table(rows: list[dict], console: Console | None = None) -> None:
    """Print bits lost per original token and the fraction of dropped tokens restored exactly, one line per scorer."""
    rates = sorted({row["rate"] for row in rows})
    table = Table(
        title=f"{rows[0]['texts']} held-out texts, equal counts, one reconstructor",
        caption="bits lost per original token, lower is better; % of dropped tokens restored, free-running",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("scorer", no_wrap=True)
    for rate in rates:
        table.add_column(f"  {rate:g}", justify="right", no_wrap=True)
        table.add_column("%", justify="right", no_wrap=True)
    for name in dict.fromkeys(row["scorer"] for row in rows):
        cells = []
        for rate in rates:
            row = next((r for r in rows if r["scorer"] == name and r["rate"] == rate), None)
            cells += ["", ""] if row is None else [f"{row['bits_lost']:.3f}", f"{100 * row['exact_restored']:.1f}"]
        table.add_row(name, *cells)
    (console or Console()).print(table)
