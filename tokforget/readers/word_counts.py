"""Rarities of words, counted in texts that are not measured."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokforget.files import write_json
from tokforget.text_units import STOP_WORDS, bare_word


# Characters per piece of text.
_CHUNK = 1000


class WordCounts:
    """
    Number of pieces of text (1,000 characters each) that contain a word.

    Args:
        pieces (`dict[str, int]`): Number of pieces with the word, for words in at least two pieces.
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
        """Inverse document frequency in nats; highest for a word seen once or never. Source: Spärck Jones 1972."""
        count = self.pieces.get(bare_word(word), 1)
        return math.log(self.total / count)

    def is_stop_word(self, word: str) -> bool:
        return bare_word(word) in STOP_WORDS
