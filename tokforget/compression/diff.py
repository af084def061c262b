"""A text next to its compressed version, line by line: on a terminal with rich, or as a self-contained HTML file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from tokforget.compression.heatmap import PAGE_HEAD, printable
from tokforget.compression.omissions import LineLeft, line_by_line
from tokforget.compression.results import CompressedText


_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE_HEAD + """\
<style>
:root { color-scheme: light dark; --text: #1a1a1a; --page: #fff; --gone: #6e6e6e; --line: #ddd; --mark: #fbe9e7; --number: #767676; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --page: #1c1c1c; --gone: #999; --line: #3a3a3a; --mark: #3a2623; --number: #999; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: var(--text); background: var(--page); }
h1 { font-size: 1.2rem; } .facts td { padding: 0 1.5rem 0 0; } .facts { margin: 0 0 1rem; border-collapse: collapse; }
.lines { border-collapse: collapse; width: 100%; table-layout: fixed; font: 13px/1.5 ui-monospace, monospace; }
.lines th { position: sticky; top: 0; background: var(--page); text-align: left; font-family: system-ui, sans-serif; border-bottom: 2px solid var(--line); padding: .3rem .6rem; }
.lines td { vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere; border-bottom: 1px solid var(--line); padding: .1rem .6rem; }
.lines .number { width: {{ digits + 2 }}ch; text-align: right; color: var(--number); user-select: none; }
tr.gone td:nth-child(2) { background: var(--mark); } del { color: var(--gone); text-decoration: line-through; }
tr.part del { background: var(--mark); }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<table class="facts">
{% for name, value in facts %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
<table class="lines">
<thead><tr><th class="number"></th><th>original, <del>left out</del></th><th>compressed</th></tr></thead>
<tbody>
{% for line in lines %}
<tr class="{{ line.state }}"><td class="number">{{ line.number }}</td><td>{% for part, kept in line.parts %}{% if kept %}{{ part }}{% else %}<del>{{ part }}</del>{% endif %}{% endfor %}</td><td>{{ line.output }}</td></tr>
{% endfor %}
</tbody>
</table>
</body>
</html>
""")  # fmt: skip


@dataclass
class Diff:
    """
    Every line of a text, and its compressed version. `rich.print` shows it, `to_html` writes it.

    Args:
        text (`str`): The original.
        result (`CompressedText`): The result of `compress`.
    """

    text: str
    result: CompressedText

    @property
    def lines(self) -> list[LineLeft]:
        return line_by_line(self.text, self.result)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Names and formatted values of the counts."""
        result, states = self.result, [line.state for line in self.lines]
        return [
            ("tokens", f"{result.original_tokens:,} -> {result.compressed_tokens:,} of {result.vocabulary}"),
            ("characters", f"{result.character_rate:.0%}"),
            ("lines", f"{len(states):,}: {states.count('kept'):,} whole, {states.count('part'):,} in part, "
                      f"{states.count('gone'):,} gone"),
        ]  # fmt: skip

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        colours = console.is_terminal and console.color_system is not None
        yield Text(" · ".join(f"{name} {value}" for name, value in self.facts), style="dim")
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("", justify="right", style="dim", no_wrap=True)
        how = "struck: left out" if colours else "[left out]"
        table.add_column(Text(f"original, {how}"), ratio=1, overflow="fold")  # a string would be read as markup
        table.add_column("compressed", ratio=1, overflow="fold")
        for line in self.lines:
            before = Text()
            for part, kept in line.parts:
                part = printable(part).expandtabs(4)
                if kept or colours or not part.strip():
                    before.append(part, style="" if kept else "dim strike red")
                else:
                    before.append(f"[{part}]")
            table.add_row(str(line.number), before, Text(printable(line.output.strip("\r\n")).expandtabs(4)))
        yield table

    def to_html(self, path: str | Path | None = None) -> str:
        """A self-contained HTML page; also written to `path` if one is given."""
        lines = [
            {"number": line.number, "state": line.state, "output": printable(line.output.strip("\r\n")),
             "parts": [(printable(part), kept) for part, kept in line.parts]}
            for line in self.lines
        ]  # fmt: skip
        page = _PAGE.render(
            title="tokforget: what was left out", facts=self.facts, lines=lines, digits=len(str(len(lines)))
        )
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page
