"""
From the rows of a reader benchmark to a Markdown report and plots. This module reads and draws; it measures nothing.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokforget.files import READER_RESULTS as RESULTS
from tokforget.local_paths import without_local_paths


COST, ORACLE, REPORT = "cost.json", "oracle.json", "report.md"
_EXAMPLE_RATE = 0.5


def write_report(folder: str | Path) -> list[Path]:
    """Write report and plots from the JSON files of a run; returns the files written."""
    folder = Path(folder)
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    rows, tasks = results["rows"], list(dict.fromkeys(row["task"] for row in results["rows"]))
    lines = [f"# What {without_local_paths(results['reader'])} can still do", "",
             "retention = (bits without - bits with the short passage) / (bits without - bits with the full one), from totals; "
             "in brackets 95 % of 2,000 draws of passages. Rates are of the reader's tokens of the output. `ahead of "
             "random words` is the paired difference at the same rate; `random words there` is theirs at the rate achieved. Kept "
             "are shares of the passage's numbers, names, quoted strings and negations.", ""]  # fmt: skip
    written = []
    for task in tasks:
        of_task = [row for row in rows if row["task"] == task and row["kind"] == "all"]
        lines += [
            f"## {task}",
            "",
            f"{of_task[0]['items']} items of {of_task[0]['passages']} passages.",
            "",
            *_table(of_task),
            "",
        ]
        kinds = sorted({row["kind"] for row in rows if row["task"] == task} - {"all"})
        if kinds:
            lines += ["By kind, retention:", "", *_by_kind([row for row in rows if row["task"] == task], kinds), ""]
        for path, key, label in ((folder / f"retention_{task}.png", None, None),
                                 (folder / f"cost_{task}.png", "microseconds_per_token", "microseconds per token")):  # fmt: skip
            if _draw(path, of_task, task, key, label):
                written.append(path)
                lines += [f"![{task}]({path.name})", ""]
    if results["agreement"]:
        lines += ["## Agreement of tasks", "", "Spearman's correlation of the retentions of the compressors that two tasks share.", "",
                  *_plain(results["agreement"]), ""]  # fmt: skip
    if (folder / ORACLE).is_file():
        lines += ["## Oracle", "", "Best words found by search with the reader itself, which sees the answer.", "",
                  *_plain(json.loads((folder / ORACLE).read_text(encoding="utf-8"))), ""]  # fmt: skip
    if (folder / COST).is_file():
        cost = json.loads((folder / COST).read_text(encoding="utf-8"))
        lines += ["## Cost of a whole request", "", f"Compressor {cost['compressor']}, {cost['new_tokens']} new tokens, "
                  f"{cost['device']}.", "", *_plain(cost["rows"]), "",
                  "Compressing pays from so many prompt tokens on: "
                  + ", ".join(f"{rate}: {'not seen' if n is None else f'{n:.0f}'}" for rate, n in cost["break_even"].items()), ""]  # fmt: skip
    lines += ["## Examples", "", *_examples(folder, results)]
    path = folder / REPORT
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [path, *written]


def _table(rows: Sequence[dict]) -> list[str]:
    heads = ["compressor", "rate", "retention", "achieved", "ahead of random words", "random words there", "accuracy",
             "numbers", "names", "strings", "negations", "invented", "us/token"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in sorted(rows, key=lambda row: (row["rate"], -_number(row["retention"]))):
        cells = [
            row["compressor"],
            f"{row['rate']:g}",
            f"{_cell(row['retention'])}{_interval(row['interval'])}",
            f"{row['achieved_rate']:.3f}",
            "–" if row.get("ahead") is None else f"{row['ahead']:+.2f}{_interval(row['ahead_interval'], '+')}",
            _cell(row["reference_there"]),
        ]
        cells += [
            _cell(row[name])
            for name in ("accuracy", "numbers_kept", "names_kept", "strings_kept", "negations_kept", "invented_words")
        ]
        cells.append("–" if row["microseconds_per_token"] is None else f"{row['microseconds_per_token']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _interval(ends: Sequence[float] | None, sign: str = "") -> str:
    """An interval with two decimals, to follow a value; empty if there is none."""
    return "" if ends is None else " [" + ", ".join(f"{end:{sign}.2f}" for end in ends) + "]"


def _by_kind(rows: Sequence[dict], kinds: Sequence[str]) -> list[str]:
    lines = [f"| compressor | rate | {' | '.join(kinds)} |", "|---|---|" + "---|" * len(kinds)]
    cells = {(row["compressor"], row["rate"], row["kind"]): row["retention"] for row in rows}
    for name, rate in sorted({(row["compressor"], row["rate"]) for row in rows}, key=lambda key: (key[1], key[0])):
        lines.append(
            f"| {name} | {rate:g} | " + " | ".join(_cell(cells.get((name, rate, kind))) for kind in kinds) + " |"
        )
    return lines


def _plain(rows: Sequence[dict]) -> list[str]:
    names = list(rows[0])
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]


def _examples(folder: Path, results: dict) -> list[str]:
    """A few whole items and their compressed versions at one rate; the best for the reader comes first."""
    lines = []
    for task, examples in results["examples"].items():
        rates = sorted({row["rate"] for row in results["rows"] if row["task"] == task and row["rate"] < 1})
        if not rates:
            continue
        rate = min(rates, key=lambda rate: abs(rate - _EXAMPLE_RATE))
        names = {row["compressor"] for row in results["rows"] if (row["task"], row["rate"]) == (task, rate)}
        records = [
            json.loads((folder / "items" / task / f"{name}-{rate:g}.json").read_text(encoding="utf-8"))
            for name in names
        ]
        for number, example in enumerate(examples, 1):
            place = example["place"]
            lines += [f"### {task} {number}, at {rate:g}", "", *_quote(example["passage"]), "", *_quote(example["asked"]), "",
                      f"Answer: {example['answer']} ({example['full_bits']:.1f} bits with the passage, {example['none_bits']:.1f} "
                      "without)", ""]  # fmt: skip
            for record in sorted(records, key=lambda record: (record["bits"][place], record["compressor"])):
                lines += [f"**{record['compressor']}**, {record['bits'][place]:.1f} bits:", "",
                          *_quote(record["outputs"][place]), ""]  # fmt: skip
    return lines


def _quote(text: str) -> list[str]:
    """A text as a code block, in a fence that does not occur in it."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=2) + 1)
    fence = fence if len(fence) > 2 else "```"
    return [f"{fence}text", text, fence]


def _cell(value) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value


def _draw(path: Path, rows: Sequence[dict], task: str, key: str | None, label: str | None) -> bool:
    """Draw retention against rate or against the column `key`; False if there is no data or no matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["compressor"] for row in rows if row["rate"] < 1))
    names.sort(key=lambda name: -max(_number(row["retention"]) for row in rows if row["compressor"] == name))
    if not names:
        return False
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors
    for place, name in enumerate(names):
        points = sorted(
            (row for row in rows if row["compressor"] == name and row["retention"] is not None),
            key=lambda row: row["rate"],
        )
        x = [row["achieved_rate"] if key is None else row[key] for row in points]
        y = [row["retention"] for row in points]
        spans = [row["interval"] or (row["retention"],) * 2 for row in points]
        # Never negative: of one text both ends of the interval are the value, but for rounding.
        errors = [
            [max(value - low, 0.0) for value, (low, _) in zip(y, spans)],
            [max(high - value, 0.0) for value, (_, high) in zip(y, spans)],
        ]
        axes.errorbar(x, y, yerr=errors, label=name, color=colours[place % 20], marker="os^D"[place % 4], markersize=4,
                      linewidth=1, elinewidth=0.6, capsize=2, linestyle="-" if place < 20 else "--")  # fmt: skip
    axes.set_xlabel("achieved rate, reader's tokens" if key is None else label)
    axes.set_ylabel("retention")
    axes.set_title(f"{task}: what the reader can still do")
    axes.grid(alpha=0.25)
    if key is not None:
        axes.set_xscale("log")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
