"""
Questions that any text asks of its own: a span that carries information, and the words that stand before it.

Shown the whole text, a reader looks the span up; shown none, it guesses. What it still finds in a compressed text is what
the compression kept for it, in prose, code, logs, JSON and dialogues alike, with no label and no question written by hand.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokforget.readers.word_counts import WordCounts
from tokforget.text_units import bare_word, split_words


# Words shown before a span; fewer where the text begins.
_WORDS_BEFORE = 6
# Spans of one text lie further apart than this many words, so that no two ask for the same thing.
_APART = 2
_MOST_WORDS = 3
_BEHIND = ".,;:!?()[]{}<>\"'“”‘’*`|="
_SENTENCE_END = re.compile(r"[.!?:;]['\")\]]*$")


@dataclass(frozen=True)
class Lookup:
    """
    Args:
        start (`int`), end (`int`): The span's place in the text, in characters.
        answer (`str`): The span without the punctuation behind it.
        cue (`str`): The words before it, white space collapsed.
        spaced (`bool`): Whether white space stands between the two.
    """

    start: int
    end: int
    answer: str
    cue: str
    spaced: bool = True

    @property
    def suffix(self) -> str:
        """What follows the text in the prompt."""
        return f"\n\n... {self.cue}"

    @property
    def target(self) -> str:
        """What a reader then has to say; with [`suffix`] a pair for [`Reader.span_bits`]."""
        return " " * self.spaced + self.answer


def find_lookups(text: str, counts: WordCounts, num_lookups: int, generator: random.Random) -> list[Lookup]:
    """
    Spans of a text that carry information, drawn without replacement: numbers, names, identifiers and rare words, the rarer
    the likelier, from the fourth word on; in the order of the text.

    Args:
        text (`str`): Any text.
        counts (`WordCounts`): Says how rare a word is; of other texts than those measured.
        num_lookups (`int`): At most so many; a short text, or one of stop words, has fewer, perhaps none.
        generator (`random.Random`): The draw.
    """
    words = split_words(text)
    weights = {}
    for place, (start, end) in enumerate(words):
        word = text[start:end].strip()
        if place < 3 or not bare_word(word) or counts.is_stop_word(word):
            continue
        begins = _SENTENCE_END.search(text[: words[place - 1][1]].rstrip()[-4:]) is not None
        bonus = any(c.isdigit() for c in word) or (word[0].isupper() and not begins)
        weight = (counts.idf(word) / counts.highest_idf + bonus) ** 2
        if weight:  # of a word that stands in every counted text it is 0
            weights[place] = weight
    found: list[Lookup] = []
    while weights and len(found) < num_lookups:
        place = generator.choices(list(weights), list(weights.values()))[0]
        weights = {other: weight for other, weight in weights.items() if abs(other - place) > _APART}
        found.append(_lookup(text, words, place))
    return sorted(found, key=lambda lookup: lookup.start)


def _lookup(text: str, words: Sequence[tuple[int, int]], place: int) -> Lookup:
    last = place
    while last + 1 < len(words) and last + 1 - place < _MOST_WORDS and _goes_on(text, words, last):
        last += 1
    start, end = words[place][0], words[last][1]
    span = text[start:end]
    answer = span.strip().rstrip(_BEHIND) or span.strip()
    first = start + len(span) - len(span.lstrip())
    cue = " ".join(text[words[max(0, place - _WORDS_BEFORE)][0] : start].split())
    return Lookup(first, first + len(answer), answer, cue, spaced=first > start)


def _goes_on(text: str, words: Sequence[tuple[int, int]], at: int) -> bool:
    """Whether a name goes on with the next word: two capitals with nothing but a space between them."""
    word, following = (text[a:b] for a, b in words[at : at + 2])
    return word.strip()[:1].isupper() and word[-1:].isalnum() and following[:1] == " " and following[1:2].isupper()
