"""Agreement of tasks on the order of compressors."""

from collections.abc import Sequence
from itertools import combinations

import pandas


# At least three compressors: the orders of two are always equal or opposite.
_FEWEST = 3


def task_agreement(rows: Sequence[dict]) -> list[dict]:
    """
    For each rate and pair of tasks, Spearman's correlation of the retentions, over the compressors that both tasks
    have (at least three); `None` if all retentions of a task are equal.
    """
    found: list[dict] = []
    for rate in sorted({row["rate"] for row in rows if row["rate"] < 1}):
        here = [row for row in rows if (row["kind"], row["rate"]) == ("all", rate) and row["retention"] is not None]
        for task, other in combinations(dict.fromkeys(row["task"] for row in here), 2):
            of = [
                {row["compressor"]: row["retention"] for row in here if row["task"] == name} for name in (task, other)
            ]
            both = sorted(of[0].keys() & of[1].keys())
            if len(both) >= _FEWEST:
                value = rank_correlation(*([side[name] for name in both] for side in of))
                found.append({"rate": rate, "task": task, "other": other, "compressors": len(both),
                              "rank_correlation": None if pandas.isna(value) else value})  # fmt: skip
    return found


def rank_correlation(values: Sequence[float], others: Sequence[float]) -> float:
    """
    Spearman's correlation of two rows of values `(num_items,)`. Equal values share their mean rank; nan if all values
    of a row are equal.
    """
    return float(pandas.DataFrame({"values": values, "others": others}).corr("spearman").loc["values", "others"])
