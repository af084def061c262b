"""
Search for long lists of words in a text, with the results of one regular expression but much faster.

A regular expression tries all alternatives at every place of a text. Here they are tried only where a word begins that
may begin a match. Most texts have few such places, and the places of all words are found once for all lists.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain


# The beginning of a word, for all of these lists.
_BEFORE = r"(?<![\w'’])"
_RUN = re.compile(rf"{_BEFORE}\w+")
# Characters that `re.IGNORECASE` matches with a letter although `lower` does not, such as a long s. They are rare.
_ODD = re.compile("[\u00b5\u0130\u0131\u017f\u0345\u03a3\u03c3\u03d0\u03d1\u03d5\u03d6\u03f0\u03f1\u03f5\u1c80-\u1c88\u1e61\u1e9b\u1fbe"
                  "\u0390\u03b0\u1fd3\u1fe3\ua64b\ufb05\ufb06\u0463]")  # fmt: skip


def any_of(words: str) -> str:
    """
    An alternation of words, separated by "|", with the longest first, so that "more than" is not matched as "more". A
    word may be a pattern without an alternation.
    """
    found = sorted((word.strip() for word in words.split("|")), key=len, reverse=True)
    return rf"{_BEFORE}(?:{'|'.join(word.replace(' ', chr(92) + 's+') for word in found)})(?!\w)"


@dataclass
class WordsOf:
    """A text that is searched for several lists of words."""

    text: str

    @cached_property
    def lower(self) -> str | None:
        """The text in lower case, with the same length; `None` if a search in it would differ from `re.IGNORECASE`."""
        if not self.text.isascii() and _ODD.search(self.text):
            return None
        lower = self.text.lower()
        return lower if len(lower) == len(self.text) else None

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """The places of each word, in lower case; of "jusqu'à" only the part before the apostrophe."""
        found: dict[str, list[int]] = {}
        for match in _RUN.finditer(self.lower):
            found.setdefault(match[0], []).append(match.start())
        return found

    @cached_property
    def runs(self) -> frozenset[str]:
        """The words of the text."""
        return frozenset(self.places)


class WordPattern:
    """
    A pattern that matches any of many words, ignoring case.

    Args:
        words (`str`): Words for [`any_of`]. Each must begin with a complete word before any special character:
            "aucun|aucune", not "aucune?".
        before (`str`), behind (`str`): Patterns that must match before and after the word.
    """

    def __init__(self, words: str, before: str = "", behind: str = ""):
        self.regex = re.compile(f"{before}{any_of(words)}{behind}", re.IGNORECASE)
        firsts = {re.match(r"\w+", word.strip())[0].lower() for word in words.split("|")}
        # `re.IGNORECASE` treats "ı" and "i" as one letter.
        self.firsts = frozenset(firsts | {word.replace("ı", "i") for word in firsts})

    def finditer(self, words: WordsOf) -> Iterator[re.Match]:
        """As `finditer` of the regular expression."""
        if words.lower is None:
            yield from self.regex.finditer(words.text)
            return
        end = 0
        for place in sorted(chain.from_iterable(words.places[word] for word in self.firsts & words.runs)):
            if place >= end and (match := self.regex.match(words.text, place)):
                end = match.end()
                yield match

    def is_in(self, words: WordsOf) -> bool:
        """Whether the text contains one of the words; only for lists of single words."""
        return bool(self.regex.search(words.text)) if words.lower is None else not self.firsts.isdisjoint(words.runs)


def match_at(pattern: re.Pattern, places: re.Pattern, text: str) -> Iterator[re.Match]:
    """As `pattern.finditer`, if every match begins where the faster pattern `places` matches."""
    end = 0
    for place in places.finditer(text):
        if place.start() >= end and (match := pattern.match(text, place.start())):
            end = match.end()
            yield match
