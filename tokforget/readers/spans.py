"""
Lookups: questions about any text without labels. A lookup is an informative span (the target) and the words before it
(the cue).

With the whole text a reader looks the span up; without it the reader guesses. With a compressed text its bits show how
much the compression kept. This works for prose, code, logs, JSON and dialogues, without labels or hand-written
questions.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokforget.readers.word_counts import WordCounts
from tokforget.text_units import bare_word, split_words


# Words of a cue; fewer at the beginning of a text.
_WORDS_BEFORE = 6
# Least distance in words of two spans of a text, so that no two lookups ask for the same thing.
_APART = 2
_MOST_WORDS = 3
_BEHIND = ".,;:!?()[]{}<>\"'“”‘’*`|="
_SENTENCE_END = re.compile(r"[.!?:;]['\")\]]*$")


@dataclass(frozen=True)
class Lookup:
    """
    A span of a text and the words before it.

    Args:
        start (`int`), end (`int`): The span's characters in the text.
        answer (`str`): The span without the punctuation after it.
        cue (`str`): The words before it, with white space collapsed.
        spaced (`bool`): Whether there is white space between cue and span.
    """

    start: int
    end: int
    answer: str
    cue: str
    spaced: bool = True

    @property
    def suffix(self) -> str:
        """The part of the prompt that follows the text."""
        return f"\n\n... {self.cue}"

    @property
    def target(self) -> str:
        """The answer that the reader should give; with [`suffix`] a pair for [`Reader.span_bits`]."""
        return " " * self.spaced + self.answer


def find_lookups(text: str, counts: WordCounts, num_lookups: int, generator: random.Random) -> list[Lookup]:
    """
    Draw informative spans of a text without replacement: numbers, names, identifiers and rare words, from the fourth
    word on. Rarer words are more likely.

    Args:
        text (`str`): Any text.
        counts (`WordCounts`): Word counts of texts that are not measured.
        num_lookups (`int`): Most lookups; a short text, or one of stop words, has fewer or none.
        generator (`random.Random`): Draws the spans.

    Returns:
        `list[Lookup]`: In the order of the text.
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
        if weight:  # 0 for a word that occurs in every counted text
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
    """Whether a name continues with the next word: both begin with a capital, with only a space between them."""
    word, following = (text[a:b] for a, b in words[at : at + 2])
    return word.strip()[:1].isupper() and word[-1:].isalnum() and following[:1] == " " and following[1:2].isupper()
