"""How far tasks agree on the order of compressors."""

import math
from collections.abc import Sequence

import numpy as np


def task_agreement(rows: Sequence[dict]) -> list[dict]:
    """
    For each rate and pair of tasks, how far their orders of compressors agree: Spearman's correlation of retentions over the
    compressors that both have, at least three.
    """
    found: list[dict] = []
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for rate in sorted({row["rate"] for row in rows if row["rate"] < 1}):
        of_task = {
            task: {row["compressor"]: row["retention"] for row in rows
                   if (row["task"], row["kind"], row["rate"]) == (task, "all", rate) and row["retention"] is not None}
            for task in tasks
        }  # fmt: skip
        for place, task in enumerate(tasks):
            for other in tasks[place + 1 :]:
                both = sorted(of_task[task].keys() & of_task[other].keys())
                if len(both) > 2:
                    values = (np.array([of_task[name][compressor] for compressor in both]) for name in (task, other))
                    found.append({"rate": rate, "task": task, "other": other, "compressors": len(both),
                                  "rank_correlation": None if math.isnan(value := rank_correlation(*values)) else value})  # fmt: skip
    return found


def rank_correlation(values: np.ndarray, others: np.ndarray) -> float:
    """Spearman's correlation of two orders `(num_items,)`; equal values share their mean rank; nan if all of a side are equal."""
    ranks, other_ranks = (_ranks(np.asarray(side, dtype=np.float64)) for side in (values, others))
    if np.ptp(ranks) == 0 or np.ptp(other_ranks) == 0:
        return float("nan")
    return float(np.corrcoef(ranks, other_ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(times) - (times - 1) / 2)[place]
