"""Words of a text as pieces of it, and how rare they are in texts that are not measured."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokforget.files import write_json


_WORD = re.compile(r"\s*\S+")
# Scripts without spaces, a character each; and what divides keys, values and calls where nobody put a space.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_DIVIDES = r",;:|/&=(){}\[\]"
_PART = re.compile(rf"\s*(?:[{_UNSPACED}]|[^{_UNSPACED}{_DIVIDES}]+[{_DIVIDES}]*|[{_DIVIDES}]+)")
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_LONG_WORD = 24
_CHUNK = 1000
_AROUND = ".,;:!?()[]{}<>\"'“”‘’*_`|=…"
# What goes first, in English. Narrower than the function words of `evaluation.vocabulary`, which is a class for statistics:
# negations and quantities stay out of it, because without its "not" or "half" a statement is another one.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a about above after again all am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here
    hers herself him himself his how i if in into is it its itself just me more most my myself of off on
    once only or other our ours ourselves out over own same she should so some such than that the their
    theirs them themselves then there these they this those through to too under until up very was we were
    what when where which while who whom why will with would you your yours yourself
    """,
    )
)


def split_words(text: str) -> list[tuple[int, int]]:
    """
    Places of the words of a text, each with the white space before it; together they cover all but the text's end. What has
    no spaces is divided too: Chinese and Japanese into characters, runs of more than 24 characters (minified JSON, paths,
    calls) after brackets, colons, commas and the like.
    """
    spans = []
    for match in _WORD.finditer(text):
        word = match[0].lstrip()
        if len(word) > _LONG_WORD or _HAS_UNSPACED.search(word):
            spans += [part.span() for part in _PART.finditer(text, *match.span())]
        else:
            spans.append(match.span())
    return spans


def bare_word(word: str) -> str:
    """A word in lower case, without the punctuation around it."""
    return word.strip().strip(_AROUND).lower()


class WordCounts:
    """
    In how many pieces of text, of 1,000 characters, each word stands.

    Args:
        pieces (`dict[str, int]`): Pieces with the word, for words that two pieces have at least.
        total (`int`): Number of pieces.
    """

    def __init__(self, pieces: dict[str, int], total: int):
        if total < 1:
            raise ValueError("No text was counted; pass at least one.")
        self.pieces, self.total = pieces, total
        self.highest_idf = math.log(total) or 1.0

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> "WordCounts":
        pieces, total = Counter(), 0
        for text in texts:
            for start in range(0, len(text), _CHUNK):
                pieces.update({bare_word(word) for word in text[start : start + _CHUNK].split()} - {""})
                total += 1
        return cls({word: count for word, count in sorted(pieces.items()) if count > 1}, total)

    @classmethod
    def load(cls, path: str | Path) -> "WordCounts":
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(content["pieces"], content["total"])

    def save(self, path: str | Path) -> None:
        write_json(path, {"total": self.total, "pieces": self.pieces})

    def idf(self, word: str) -> float:
        """Nats; the highest for a word that was seen once or never. Source: Spärck Jones 1972."""
        count = self.pieces.get(bare_word(word), 1)
        return math.log(self.total / count)

    def is_stop_word(self, word: str) -> bool:
        return bare_word(word) in STOP_WORDS
