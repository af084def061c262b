"""
From the result files of an evaluation to a report, plots and a heat map. This module reads and draws; it measures
nothing.
"""

import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from tokforget.local_paths import shown_names, without_local_paths
from tokforget.plots import _draw


EVALUATION_CONFIG, MODEL_RESULTS, BASELINE_RESULTS = (
    "evaluation_config.json",
    "model_results.json",
    "baseline_results.json",
)
DOWNSTREAM, SPEED, SAMPLES, TRAINING_LOG = (
    "downstream_results.json",
    "speed_results.json",
    "samples.json",
    "training_log.json",
)
REPORT, HEATMAP = "report.md", "heatmap.html"
_MISSING = "–"


def write_report(folder: str | Path) -> list[Path]:
    """
    Write `report.md`, the plots and `heatmap.html` from the JSON files in `folder`. The JSON files may contain paths
    of this machine. The report names models and data without their folders, because others read it.

    Returns:
        `list[Path]`: The files written. Plots without data are left out.

    Raises:
        `FileNotFoundError`: If `folder` is not the output folder of an evaluation.
    """
    folder = Path(folder)
    files = {name: _read(folder / name) for name in (EVALUATION_CONFIG, MODEL_RESULTS, BASELINE_RESULTS, DOWNSTREAM,
                                                     SPEED, SAMPLES, TRAINING_LOG)}  # fmt: skip
    if files[EVALUATION_CONFIG] is None:
        raise FileNotFoundError(f"{folder} holds no {EVALUATION_CONFIG}: it is no evaluation's output folder.")
    config = files[EVALUATION_CONFIG]
    rows = [row for name in (MODEL_RESULTS, BASELINE_RESULTS) for row in (files[name] or {"scorers": []})["scorers"]]
    samples = files[SAMPLES] or []
    described = config.get("datasets", [])
    shown = shown_names(row["dataset"] for row in [*described, *rows, *samples])
    rows, samples, described = (
        [row | {"dataset": shown[row["dataset"]]} for row in some] for some in (rows, samples, described)
    )
    config = without_local_paths(config) | {"datasets": described}
    speed = files[SPEED] or {"rows": [], "break_even": []}
    drawn = config.get("arguments", {}).get("plot_scorers")
    plots = _draw(folder, [row for row in rows if drawn is None or row["scorer"] in drawn], files[TRAINING_LOG])
    environment = Environment(
        loader=PackageLoader("tokforget.evaluation"),
        autoescape=lambda name: name.endswith(".html"),
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    downstream = (files[DOWNSTREAM] or {"rows": []})["rows"]
    text = environment.get_template(REPORT).render(
        config=config,
        rows=rows,
        datasets=list(dict.fromkeys(row["dataset"] for row in rows)),
        rates=sorted({row["rate"] for row in rows if row["scorer"] != "keep_all"}),
        downstream=downstream,
        tasks=list(dict.fromkeys(row["task"] for row in downstream)),
        speed=speed["rows"],
        break_even=speed["break_even"],
        plots=plots,
        samples=samples,
    )
    (folder / REPORT).write_text(text, encoding="utf-8")
    written = [folder / REPORT, *(folder / plot["file"] for plot in plots)]
    if samples:
        environment.undefined = StrictUndefined
        html = environment.get_template(HEATMAP).render(samples=samples)
        (folder / HEATMAP).write_text(html, encoding="utf-8")
        written.append(folder / HEATMAP)
    return written


def _read(path: Path):
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _formatter(pattern: str, scale: float = 1.0):
    return lambda value: pattern.format(value * scale) if isinstance(value, int | float) else _MISSING


_FILTERS = {
    "one": _formatter("{:.1f}"),
    "two": _formatter("{:.2f}"),
    "three": _formatter("{:.3f}"),
    "four": _formatter("{:.4f}"),
    "percent": _formatter("{:.1f} %", 100),
    "megabytes": _formatter("{:.1f}", 1e-6),
    "zero_or": lambda value, otherwise: otherwise if value is None else f"{value:.0f}",
    "interval": lambda pair: f"{pair[0]:.3f} to {pair[1]:.3f}" if isinstance(pair, list | tuple) else _MISSING,
}


# -- plots ---------------------------------------------------------------------------------------------------------------
