"""Plots of result rows."""

import logging
from importlib.util import find_spec
from pathlib import Path


logger = logging.getLogger(__name__)

# Each scorer has the same colour and marker in every plot. Policies come first; the two anchors are grey.
_GREY = {"random": "#9a9a9a", "greedy_oracle": "#4d4d4d"}


def draw_rate_quality(path: Path, rows: list[dict], dataset: str) -> None:
    """Draw the plot of a model card: bits lost against rate, one line per scorer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    look = _looks(list(dict.fromkeys(row["scorer"] for row in rows)), pyplot)
    figure = _by_rate(pyplot, rows, look, "bits_lost", "bits lost per original token", dataset, log_scale=True)
    # No date or version in the file, so that the same numbers give the same bytes.
    figure.savefig(path, dpi=140, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def _draw(folder: Path, rows: list[dict], log: list[dict] | None) -> list[dict]:
    if find_spec("matplotlib") is None:  # keep the measured numbers even if they cannot be drawn
        logger.warning("The report is without plots: matplotlib is missing. `pip install matplotlib`, then draw them by "
                       "`tokforget.evaluation.report.write_report(%r)`.", str(folder))  # fmt: skip
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []

    def save(figure, file: str, caption: str) -> None:
        figure.savefig(folder / file, dpi=140, bbox_inches="tight")
        pyplot.close(figure)
        drawn.append({"file": file, "caption": caption})

    names = list(dict.fromkeys(row["scorer"] for row in rows if row["scorer"] != "keep_all"))
    look = _looks(names, pyplot)
    for at, dataset in enumerate(dict.fromkeys(row["dataset"] for row in rows)):
        own = [row for row in rows if row["dataset"] == dataset and row["scorer"] != "keep_all"]
        tag = "" if at == 0 else f"_{at + 1}"
        save(_by_rate(pyplot, own, look, "bits_lost", "bits lost per original token", dataset, log_scale=True),
             f"rate_distortion{tag}.png", f"Bits lost against rate with 95 % intervals, {dataset}")  # fmt: skip
        save(_by_rate(pyplot, own, look, "exact_restored", "dropped tokens restored exactly", dataset),
             f"exact_restored{tag}.png", f"Share of dropped tokens restored exactly, {dataset}")  # fmt: skip
        save(_pareto(pyplot, own, look, dataset), f"quality_time{tag}.png",
             f"Bits lost against time of scoring, {dataset}")  # fmt: skip
        save(_word_classes(pyplot, own, dataset), f"word_classes{tag}.png", f"Tokens kept by word class, {dataset}")
    if log and (curves := _training_curves(pyplot, log)) is not None:
        save(curves, "training_curves.png", "Training curves")
    return drawn


def _looks(names: list[str], pyplot) -> dict[str, dict]:
    colours, markers = pyplot.get_cmap("tab20").colors, "osD^vP*X<>hpd"
    looks = {}
    for at, name in enumerate(names):
        looks[name] = {"color": _GREY.get(name, colours[(2 * at) % 20 + (2 * at) // 20]), "marker": markers[at % 13]}
        if name in _GREY:
            looks[name]["linestyle"] = "--"
    return looks


def _by_rate(pyplot, rows, look, key: str, label: str, dataset: str, log_scale: bool = False):
    figure, axes = pyplot.subplots(figsize=(8, 5.2))
    for name in dict.fromkeys(row["scorer"] for row in rows):
        own = sorted((row for row in rows if row["scorer"] == name), key=lambda row: row["rate"])
        values = [row[key] for row in own]
        intervals = [row.get(f"{key}_interval") or (row[key], row[key]) for row in own]
        errors = [[v - i[0] for v, i in zip(values, intervals)], [i[1] - v for v, i in zip(values, intervals)]]
        errors = [[max(e, 0.0) for e in side] for side in errors]
        axes.errorbar([row["rate"] for row in own], values, yerr=errors, label=name, capsize=2, markersize=5,
                      linewidth=1.2, **look[name])  # fmt: skip
    if log_scale:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xticks(sorted({row["rate"] for row in rows}))
    axes.set(xlabel="compression rate (kept / original)", ylabel=label, title=dataset)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _pareto(pyplot, rows, look, dataset: str):
    rates = sorted({row["rate"] for row in rows})
    rate = rates[len(rates) // 2]
    figure, axes = pyplot.subplots(figsize=(8, 5.2))
    for row in rows:
        if row["rate"] == rate:
            style = {key: value for key, value in look[row["scorer"]].items() if key != "linestyle"}
            axes.scatter(
                max(row["seconds_per_token"], 1e-9) * 1e6, row["bits_lost"], label=row["scorer"], s=45, **style
            )
    axes.set_xscale("log")
    axes.set(
        xlabel="time of scoring, microseconds per token", ylabel="bits lost per original token",
        title=f"{dataset}, rate {rate:g}",
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _word_classes(pyplot, rows, dataset: str):
    rates = sorted({row["rate"] for row in rows})
    rate = rates[len(rates) // 2]
    own = [row for row in rows if row["rate"] == rate]
    classes = list(own[0]["kept_by_class"])
    figure, axes = pyplot.subplots(figsize=(8, 0.32 * len(own) + 1.6))
    shares = [[row["kept_by_class"].get(name, float("nan")) for name in classes] for row in own]
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(own)), [row["scorer"] for row in own])
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            axes.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if share < 0.6 else "black")  # fmt: skip
    axes.set_title(f"Share of tokens kept, {dataset}, rate {rate:g}")
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    return figure


_CURVES = ("bits_lost", "rewards/information_theoretic", "reconstruction_loss", "exact_restored", "rate", "entropy",
           "eval_bits_lost")  # fmt: skip


def _training_curves(pyplot, log: list[dict]):
    present = [name for name in _CURVES if any(name in entry for entry in log)]
    if not present:
        return None
    columns = 3
    lines = -(-len(present) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines), squeeze=False)
    for axis, name in zip(axes.flat, present):
        points = [(entry["step"], float(entry[name])) for entry in log if name in entry]
        axis.plot(*zip(*points), marker=".", linewidth=1.2)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(present) :]:
        axis.set_visible(False)
    figure.tight_layout()
    return figure
