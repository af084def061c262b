"""
Long lists of words, looked for in a text: what a regular expression with all of them finds, in a fraction of the time.

An alternation is tried word by word at every place of a text. Here it is tried only where a word begins that could be the first of
a match; most texts hold few of these, and where each word stands is found once for all lists.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain


# Where a word begins, for all of these lists.
_BEFORE = r"(?<![\w'’])"
_RUN = re.compile(rf"{_BEFORE}\w+")
# What `re.IGNORECASE` takes for a letter of which it is not the capital, such as a long s. Texts with one of these are rare.
_ODD = re.compile("[\u00b5\u0130\u0131\u017f\u0345\u03a3\u03c3\u03d0\u03d1\u03d5\u03d6\u03f0\u03f1\u03f5\u1c80-\u1c88\u1e61\u1e9b\u1fbe"
                  "\u0390\u03b0\u1fd3\u1fe3\ua64b\ufb05\ufb06\u0463]")  # fmt: skip


def any_of(words: str) -> str:
    """
    An alternation of words, parted by "|", the longest first, so that "more than" is not taken for "more". A word may be a pattern
    without an alternation of its own.
    """
    found = sorted((word.strip() for word in words.split("|")), key=len, reverse=True)
    return rf"{_BEFORE}(?:{'|'.join(word.replace(' ', chr(92) + 's+') for word in found)})(?!\w)"


@dataclass
class WordsOf:
    """A text whose words are looked for more than once."""

    text: str

    @cached_property
    def lower(self) -> str | None:
        """The text in small letters, as long as itself; `None` where that would not find what `re.IGNORECASE` does."""
        if not self.text.isascii() and _ODD.search(self.text):
            return None
        lower = self.text.lower()
        return lower if len(lower) == len(self.text) else None

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Where each word stands, the words in small letters; of "jusqu'à" the part before the apostrophe."""
        found: dict[str, list[int]] = {}
        for match in _RUN.finditer(self.lower):
            found.setdefault(match[0], []).append(match.start())
        return found

    @cached_property
    def runs(self) -> frozenset[str]:
        """The words that stand in the text."""
        return frozenset(self.places)


class WordPattern:
    """
    One of many words, large or small.

    Args:
        words (`str`): For [`any_of`]. What stands before the first sign in each of them must be all of the word that it begins with:
            "aucun|aucune", not "aucune?".
        before (`str`), behind (`str`): Patterns of what must stand around it.
    """

    def __init__(self, words: str, before: str = "", behind: str = ""):
        self.regex = re.compile(f"{before}{any_of(words)}{behind}", re.IGNORECASE)
        firsts = {re.match(r"\w+", word.strip())[0].lower() for word in words.split("|")}
        self.firsts = frozenset(firsts | {word.replace("ı", "i") for word in firsts})  # one letter to `re.IGNORECASE`

    def finditer(self, words: WordsOf) -> Iterator[re.Match]:
        """As that of the regular expression."""
        if words.lower is None:
            yield from self.regex.finditer(words.text)
            return
        end = 0
        for place in sorted(chain.from_iterable(words.places[word] for word in self.firsts & words.runs)):
            if place >= end and (match := self.regex.match(words.text, place)):
                end = match.end()
                yield match

    def is_in(self, words: WordsOf) -> bool:
        """Whether one of them stands in the text; for lists of single words."""
        return bool(self.regex.search(words.text)) if words.lower is None else not self.firsts.isdisjoint(words.runs)


def match_at(pattern: re.Pattern, places: re.Pattern, text: str) -> Iterator[re.Match]:
    """What `pattern.finditer` gives, if every match begins where `places`, which is faster to look for, matches."""
    end = 0
    for place in places.finditer(text):
        if place.start() >= end and (match := pattern.match(text, place.start())):
            end = match.end()
            yield match
