"""Metric modules for `evaluate`, one folder each: a short script over tokforget's scoring functions, and its card."""

from pathlib import Path


def metric_path(name: str) -> str:
    """
    The folder of a metric, for `evaluate.load`. Raises `ValueError` for an unknown name.

    >>> metric_path("rouge").endswith("rouge")
    True
    """
    here = Path(__file__).parent
    known = sorted(script.stem for script in here.glob("*/*.py") if script.stem == script.parent.name)
    if name not in known:
        raise ValueError(f"There is no metric {name!r}. There are {', '.join(known)}.")
    return str(here / name)
