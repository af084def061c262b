"""Features that relate the words of a text to a question: which words they share, and how near their sentence is to it."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from tokforget.headings import find_heads, paragraph_numbers
from tokforget.text_units import STOP_WORDS, bare_word


QUESTION = ("asked", "match", "stem_match", "overlap", "best_overlap", "nearly_best", "neighbour_overlap", "after_match", "before_match",
            "asks_number", "asks_name", "number_in_asked", "name_in_asked")  # fmt: skip

# Decay per word of the closeness to a word of the question.
_NEAR_DECAY = 0.8
# How fast a sentence loses to the one that shares most with the question, as its share falls. The sentence that answers
# a person's question often has other words for some of it: one that shares nearly as much may answer it, too (LOG.md).
_BEST_DECAY = 8.0
# Weight of a stop word of the question.
_STOP_WORTH = 0.1
# What the other sentences of its paragraph, and the sentences beside it, add to what a sentence shares: an answer stands
# among sentences that have the other words of its question.
_PARAGRAPH_SHARE, _BESIDE_SHARE = 0.5, 0.2
# Letters of a root: with endings removed, enough to match number, tense and many derived words.
_ROOT = 6
_ENDINGS = re.compile(r"(?:ings?|ed|es|e|al|ers?|ions?|ations?|ments?|ly)$")
# Words within paths, names of variables and the like.
_JOINED = re.compile(r"\w[/_.:=-]+\w|[a-z][A-Z]")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")
_TIME = re.compile(r"\b(when|year|date|day|month|century|how (?:many|much|long|old|far|often|large|big|high|tall)|what (?:number|percent\w*|time|age|price|cost))\b", re.I)  # fmt: skip
_WHO = re.compile(r"\b(who|whom|whose|where|which (?:country|city|state|person|company|team|river|king)|what (?:country|city|state|person|company|team|river|name))\b", re.I)  # fmt: skip


def root(word: str) -> str:
    """A bare word without its English endings, cut to six letters: "caused", "causes" and "cause" have one root."""
    bare = bare_word(word).removesuffix("'s").removesuffix("’s")
    if bare in STOP_WORDS:
        return bare
    if len(bare) > 3 and bare[-1] == "s" and bare[-2] not in "su":
        bare = bare[:-1]
    if len(bare) > 4 and len(shorter := _ENDINGS.sub("", bare)) > 2:
        bare = shorter
    if len(bare) > 3 and bare[-1] == bare[-2] and bare[-1] not in "aeiouls":
        bare = bare[:-1]
    return bare[:_ROOT]


@lru_cache(maxsize=200_000)
def roots(word: str) -> tuple[str, ...]:
    """The root of a word, and those of its parts if it is a path, a variable's name or the like."""
    own = root(word)
    if not _JOINED.search(word):
        return (own,)
    return tuple(dict.fromkeys([own, *(root(part) for part in _PART.findall(word) if len(part) > 2)]))


def question_features(
    question: str,
    rarity: Callable[[str], float],
    words: Sequence[str],
    sentence: np.ndarray,
    stop: np.ndarray,
    digit: np.ndarray,
    name: np.ndarray,
    headings: bool = True,
) -> np.ndarray:
    """
    Features of words `(num_words, len(QUESTION))`.

    Args:
        question (`str`): The question.
        rarity (`Callable[[str], float]`): Rarity of a word, from 0 to 1.
        words (`Sequence[str]`): The words of the text, each with the white space before it.
        sentence (`np.ndarray` of shape `(num_words,)`): Number of each word's sentence, from 0 without gaps.
        stop, digit, name (`np.ndarray` of shape `(num_words,)`): 1 for stop words, words with digits, and names.
        headings (`bool`): Whether the headings above a sentence count to it.
    """
    n = len(words)
    asked = [word for word in question.split() if bare_word(word)]
    exact = {bare_word(word) for word in asked}
    rarities = {root(word): rarity(word) for word in asked}
    factors = {root(word): _STOP_WORTH if bare_word(word) in STOP_WORDS else 1.0 for word in asked}
    worth = {r: rarities[r] * factors[r] for r in rarities}
    asked_root: dict[str, str] = {}
    for word in asked:
        for one in roots(word):
            asked_root.setdefault(one, root(word))
    found = [next((asked_root[r] for r in roots(word) if r in asked_root), None) for word in words]
    match = np.array([worth.get(r, 0.0) for r in found])
    same = np.array([float(bare_word(word) in exact) for word in words]) * match

    starts = np.flatnonzero(np.diff(sentence, prepend=-1))
    sentences = ["".join(words[a:b]) for a, b in zip(starts, [*starts[1:], n])]
    held: list[set[str]] = [set() for _ in sentences]
    for place in np.flatnonzero(match):
        held[sentence[place]].add(found[place])
    heads = find_heads(sentences) if headings and any(held) else [()] * len(sentences)
    # A sentence that repeats the question does not answer it, nor does a heading; what stands beneath may.
    repeats = np.array([_repeats(one.strip(), question.strip()) for one in sentences])
    answers = ~repeats
    answers[list({head for own in heads for head in own})] = False
    # What stands beneath a heading has its words, too.
    held = [words_of.union(*(held[head] for head in own)) for own, words_of in zip(heads, held)]
    held = [set() if repeated else words_of for words_of, repeated in zip(held, repeats)]

    def shares(weights: dict[str, float], of: Sequence[set[str]]) -> np.ndarray:
        """For each set the total weight of its words as a share of the question's."""
        return np.array([sum(weights[r] for r in words_of) for words_of in of]) / (sum(weights.values()) or 1.0)

    overlap = shares(worth, held)
    around = _beside(overlap)
    # Words that most sentences of this text share do not tell which of them answers.
    sentences_with = Counter(r for words_of in held for r in words_of)
    telling = {r: rarities[r] ** 0.5 * factors[r] * _rarity_within(sentences_with[r], len(held)) for r in worth}
    paragraph = paragraph_numbers(sentences)
    in_paragraph: list[set[str]] = [set() for _ in range(paragraph[-1] + 1)]
    for number, words_of in zip(paragraph, held):
        in_paragraph[number] |= words_of
    own = shares(telling, held)
    shared = own + _PARAGRAPH_SHARE * shares(telling, in_paragraph)[paragraph] + _BESIDE_SHARE * _beside(own)
    shared[repeats] = 0.0
    nearly_best = np.minimum(np.exp(-_BEST_DECAY * (_highest(shared, answers) - shared)), 1.0) * (shared > 0)
    best_overlap = np.minimum(overlap / (_highest(overlap, answers) or 1.0), 1.0)
    content = match * (stop == 0) + 0.3 * match
    number, who = bool(_TIME.search(question)), bool(_WHO.search(question))
    return np.stack(
        [np.ones(n), same, match, overlap[sentence], best_overlap[sentence], nearly_best[sentence], around[sentence],
         _decayed(content), _decayed(content[::-1])[::-1], np.full(n, number), np.full(n, who), number * digit, who * name], 1)  # fmt: skip


def _beside(values: np.ndarray) -> np.ndarray:
    """For each sentence the higher value of the sentences before and after it."""
    return np.maximum(np.concatenate([[0.0], values[:-1]]), np.concatenate([values[1:], [0.0]]))


def _repeats(sentence: str, question: str) -> bool:
    # A "question" without a question mark can be the beginning of the sentence that a reader should continue.
    return bool(sentence) and (sentence in question or (question.endswith("?") and question in sentence))


def _highest(values: np.ndarray, answers: np.ndarray) -> float:
    """The highest value among sentences that may answer; among all if none of these has one."""
    return float(values[answers].max(initial=0.0) or values.max(initial=0.0))


def _rarity_within(count: int, total: int) -> float:
    """Rarity of a word in `count` of `total` sentences: about 1 for a word in none of them, near 0 for one in all."""
    return math.log((total + 1) / (count + 0.5)) / math.log((total + 1) / 0.5)


def _decayed(values: np.ndarray) -> np.ndarray:
    """At each place the sum of the earlier values, decayed by their distance (a first-order filter)."""
    found, held = np.zeros(len(values)), 0.0
    for place in range(1, len(values)):
        held = _NEAR_DECAY * held + values[place - 1]
        found[place] = held
    return found
