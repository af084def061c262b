"""Scores of tokens as a heat map: on a terminal with rich, or as a self-contained HTML file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderableType
from rich.rule import Rule
from rich.style import Style
from rich.text import Text

from tokforget.compression.pieces import Pieces
from tokforget.compression.results import CompressedText


# The scale from blue over grey to orange: colour-blind readers can distinguish them, and black text is readable on both.
STOPS = (138, 180, 214), (242, 242, 242), (244, 165, 96)
# Control characters are shown as pictures, so that a text cannot control the terminal or the browser.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

# The head of a page, up to its style; shared with [`tokforget.compression.diff`].
PAGE_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
"""
_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE_HEAD + """\
<style>
body { font: 16px/1.7 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.2rem; } table { border-collapse: collapse; margin: 0 0 1rem; } td { padding: 0 1.5rem 0 0; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ccc; border-radius: .4rem; padding: 1rem; color: #1a1a1a; background: #fff; }
.text span { border-radius: .15rem; } .kept { font-weight: 600; } .dropped { text-decoration: line-through; opacity: .6; }
.scale { display: inline-block; width: 12rem; height: .8rem; border-radius: .2rem; background: linear-gradient(90deg, {{ stops }}); }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1c1c1c; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<table>
{% for name, value in facts %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
<p>keep score 0 <span class="scale"></span> 1 &nbsp; <span class="kept">kept</span> &nbsp; <span class="dropped">dropped</span></p>
<div class="text">{% for piece in pieces %}<span class="{{ piece.state }}" style="background:{{ piece.color }}" title="score {{ piece.score }}, {{ piece.state }}">{{ piece.text }}</span>{% endfor %}</div>
<h1>Compressed</h1>
<div class="text">{{ compressed }}</div>
</body>
</html>
""")  # fmt: skip


@dataclass
class Explanation:
    """
    The scores of a text's pieces, and the kept ones. `rich.print` shows it, `to_html` writes it.

    Args:
        text (`str`): The original.
        pieces (`Pieces`): Its tokens.
        result (`CompressedText`): The result of `compress`.
    """

    text: str
    pieces: Pieces
    result: CompressedText

    def __iter__(self) -> Iterator[tuple[str, float, bool]]:
        """Each piece of the text with its score and whether it was kept."""
        scores = self.pieces.means(self.result.scores) if len(self.pieces) else np.zeros(0)
        kept = self.result.keep_mask[self.pieces.starts[:-1]]
        chars = self.pieces.chars.tolist()
        return zip((self.text[a:b] for a, b in pairwise(chars)), scores.tolist(), kept.tolist())

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Names and formatted values of the counts and rates."""
        result = self.result
        return [
            ("original", f"{result.original_tokens:,} tokens of {result.vocabulary}"),
            ("compressed", f"{result.compressed_tokens:,} tokens after re-encoding"),
            ("rate", f"{result.compression_rate:.3f} ({result.compression_ratio:.1f}x)"),
            ("characters", f"{result.character_rate:.0%}"),
            *([("budget", f"{result.target_tokens:,} tokens")] if result.target_tokens is not None else []),
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        colours = console.is_terminal and console.color_system is not None
        how = "kept bold, dropped struck through" if colours else "dropped [so]"
        yield Rule(
            Text(
                f"Scores of {self.facts[0][1]}: blue low, orange high; {how}"
                if colours
                else f"{self.facts[0][1]}, {how}"
            )
        )
        shown = Text()
        for piece, score, kept in self:
            piece = printable(piece)
            if colours:
                style = Style(color="black", bgcolor=Color.from_rgb(*colour(score)), bold=kept, strike=not kept)
                shown.append(piece, style=style)
            else:
                shown.append(piece if kept else f"[{piece}]")
        yield shown
        yield Rule(Text(f"Compressed to {', '.join(value for _, value in self.facts[1:3])}"))
        yield Text(printable(self.result.text))

    def to_html(self, path: str | Path | None = None) -> str:
        """A self-contained HTML page; also written to `path` if one is given."""
        pieces = [
            {"text": printable(piece), "score": f"{score:.2f}", "state": "kept" if kept else "dropped",
             "color": "rgb({},{},{})".format(*colour(score))}
            for piece, score, kept in self
        ]  # fmt: skip
        stops = ", ".join("rgb({},{},{})".format(*stop) for stop in STOPS)
        page = _PAGE.render(title="tokforget: what was kept", facts=self.facts, pieces=pieces, stops=stops,
                            compressed=printable(self.result.text))  # fmt: skip
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page


def colour(score: float) -> tuple[int, int, int]:
    """Red, green and blue of a score in [0, 1]."""
    low, high, share = (*STOPS[:2], 2 * score) if score < 0.5 else (*STOPS[1:], 2 * score - 1)
    return tuple(round(a + (b - a) * share) for a, b in zip(low, high))


def printable(text: str) -> str:
    """The text with pictures in place of control characters, and replacement characters for what cannot be encoded."""

    def picture(match: re.Match) -> str:
        code = ord(match[0])
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"

    return _UNPRINTABLE.sub(picture, text)
