"""
Features of words, inputs of the policy besides the tokens: rarity and form of a word, its place in document, paragraph
and sentence, and, if there is a question, how close it is to the words of the question.

Features are computed over the whole text, so that a text scored in windows has its places in the document.
"""

import json
import math
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tokforget.models.question_features import QUESTION, question_features
from tokforget.text_units import NEGATIONS, STOP_WORDS, UNICODE_ESCAPE, bare_word, split_sentences, split_words


# Letters of a stem, after endings of plural and possession are removed: enough to match number and tense.
_STEM = 6
BUCKETS = 2**16
LOG_STEPS = 16.0

_ESCAPES = re.compile(UNICODE_ESCAPE)

FORM = (
    "idf",
    "stop_word",
    "digit",
    "inner_capital",
    "capital",
    "punctuation",
    "ends_sentence",
    "mixed",
    "negation",
    "length",
)
PLACE = ("from_start", "place", "from_end", "sentence", "in_sentence", "sentence_length", "sentence_first", "paragraph",
         "in_paragraph", "title_like")  # fmt: skip
TEXT = ("earlier", "later", "name", "sentence_idf", "sentence_marked", "sentence_stop", "previous_marked", "next_marked", "previous_stop",
        "next_stop")  # fmt: skip
NUM_FEATURES = len(FORM) + len(PLACE) + len(TEXT) + len(QUESTION)
_MATCH, _NEARLY_BEST = (
    len(FORM) + len(PLACE) + len(TEXT) + QUESTION.index(name) for name in ("stem_match", "nearly_best")
)
# Share of the slower of the two decays in how near a sentence is to the question.
_AROUND = 0.3
_MARKED, _BREAK, _STOP, _IDF = 10, 11, FORM.index("stop_word"), FORM.index("idf")


def stem(word: str) -> str:
    """A bare word without its plural ending, cut to six letters."""
    bare = bare_word(word).removesuffix("'s").removesuffix("’s")
    if len(bare) > 3 and bare[-1] == "s" and bare[-2] not in "su":
        bare = bare[:-1]
    return bare[:_STEM]


class Rarity:
    """
    Inverse document frequency of words as a fraction of its maximum: 0 for a word in every piece, 1 for an unseen
    word.
    """

    def __init__(self, pieces: np.ndarray, total: float):
        self.total = max(total, 2.0)
        self.counts = np.maximum(np.exp2(pieces.astype(np.float64) / LOG_STEPS) - 1, 1.0)
        self._facts: dict[str, tuple[bytes, str]] = {}

    def __call__(self, word: str) -> float:
        count = self.counts[bucket(stem(word))]
        return min(1.0, max(0.0, math.log(self.total / count) / math.log(self.total)))

    def facts(self, words: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """
        Features of words given with the white space before them: `FORM`, whether digits or inner capitals mark the
        word, and whether a line break precedes it, `(num_words, len(FORM) + 2)`; also their stems. Results are cached.
        """
        facts = self._facts
        if len(facts) > 200_000:
            facts.clear()
        # Cache rows as bytes: threads can share the dictionary, and joining bytes to an array is faster than numbers.
        found = [facts.get(word) or self._learn(word) for word in words]
        rows = np.frombuffer(b"".join([row for row, _ in found])).reshape(len(words), -1)
        return rows, [its_stem for _, its_stem in found]

    def _learn(self, word: str) -> tuple[bytes, str]:
        begins_line = "\n" in word[: len(word) - len(word.lstrip())]
        learnt = self._facts[word] = np.array([*self._look(word), float(begins_line)]).tobytes(), stem(word)
        return learnt

    def _look(self, word: str) -> tuple[float, ...]:
        shown, bare = word.strip(), bare_word(word)
        digit = any(c.isdigit() for c in shown)
        inner = any(c.isupper() for c in shown[1:])
        first = shown.lstrip("\"'“‘([{")[:1]
        return (
            self(word), float(bare in STOP_WORDS), float(digit), float(inner), float(first.isupper()),
            float(not any(c.isalnum() for c in shown)), float(shown.rstrip("\"'”’)]}")[-1:] in (".", "!", "?")),
            float(any(c in "_/\\=<>{}[]@#$%:" for c in shown[:-1])), float(bare in NEGATIONS or bare.endswith(("n't", "n’t"))),
            math.log2(1 + len(shown)) / 4, float(digit or inner),
        )  # fmt: skip


def _character(escape: re.Match) -> str:
    """The character of an escape, so that a question's word is found in JSON that is written in ASCII."""
    return json.loads(f'"{escape[0]}"')


@lru_cache(maxsize=200_000)
def bucket(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass")) & (BUCKETS - 1)


def word_features(
    text: str, rarity: Rarity, question: str | None = None, headings: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """
    Features of the words of a text.

    Args:
        text (`str`): The whole text.
        rarity ([`Rarity`]): The policy's rarities; see [`tokforget.models.word_table.WordTable.rarity`].
        question (`str`, *optional*): The question that the reader will be asked.
        headings (`bool`): Whether the headings above a sentence count to it. Not in training, because a generated question
            asks for one sentence, and what the others beneath its heading share with it teaches a policy to trust no match.

    Returns:
        `tuple`: First character of each word, including the white space before it, and at the end the text's length
        `(num_words + 1,)`; and the features `(num_words, NUM_FEATURES)`, float32, with values of about 1. Without a
        question its features are 0.
    """
    spans = split_words(text)
    if not spans:
        return np.array([0, len(text)]), np.zeros((1, NUM_FEATURES), dtype=np.float32)
    words = [text[a:b] for a, b in spans]
    if "\\u" in text:
        words = [_ESCAPES.sub(_character, word) for word in words]
    n = len(words)
    ends_at = np.array(spans)[:, 1]
    edges = np.concatenate([[0], ends_at[:-1], [len(text)]])
    facts, stems = rarity.facts(words)
    form, marked = facts[:, : len(FORM)], facts[:, _MARKED]
    place = np.arange(n, dtype=np.float64)

    sentence_ends = np.array([b for _, b in split_sentences(text)])
    # Decided by a word's last character, because the white space before it belongs to the sentence before it.
    sentence = np.minimum(np.searchsorted(sentence_ends, ends_at - 1, side="right"), len(sentence_ends) - 1)
    _, sentence = np.unique(sentence, return_inverse=True)
    first_word, size = _first_and_size(sentence)
    in_sentence, length = place - first_word[sentence], size[sentence]
    paragraph = np.cumsum(facts[:, _BREAK] > 0)
    paragraph -= paragraph[0]
    paragraph_first, _ = _first_and_size(paragraph)
    in_paragraph = place - paragraph_first[paragraph]
    ends = form[:, FORM.index("ends_sentence")]
    title_like = (_mean_over(sentence, ends)[sentence] == 0) & (length <= 12)
    places = np.stack(
        [np.log2(1 + place) / 8, place / n, np.log2(n - place) / 8, np.log2(1 + sentence) / 4, in_sentence / length,
         np.log2(length) / 5, in_sentence == 0, np.log2(1 + paragraph) / 4, np.log2(1 + in_paragraph) / 6, title_like], 1)  # fmt: skip

    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(s, len(numbers)) for s in stems])
    earlier, later = _earlier_and_later(ids)
    name = (marked > 0) | ((form[:, FORM.index("capital")] > 0) & (in_sentence > 0))
    stop = form[:, _STOP]
    of_text = np.stack(
        [np.log2(1 + earlier) / 3, np.log2(1 + later) / 3, name, *(_mean_over(sentence, x)[sentence] for x in (form[:, _IDF], name, stop)),
         _moved(name, 1), _moved(name, -1), _moved(stop, 1), _moved(stop, -1)], 1)  # fmt: skip
    features = np.zeros((n, NUM_FEATURES), dtype=np.float32)
    parts = [form, places, of_text]
    if question:
        digit = form[:, FORM.index("digit")]
        parts.append(question_features(question, rarity, words, sentence, stop, digit, name, headings))
    first = 0
    for part in parts:
        features[:, first : first + part.shape[1]] = part
        first += part.shape[1]
    return edges, features


def near_question(features: np.ndarray) -> np.ndarray | None:
    """
    How near the sentence of each word or token is to the one that shares most with the question, with its headings,
    paragraph and neighbours, from 0 to 1 `(num_rows,)`; `None` if the text has no word of the question but stop words.

    Args:
        features (`np.ndarray` of shape `(num_rows, NUM_FEATURES)`): From [`word_features`] or [`token_features`].
    """
    found = (features[:, _MATCH] > 0) & (features[:, _STOP] == 0)
    nearest = features[:, _NEARLY_BEST]
    # The root falls more slowly, so that what the nearest sentences leave of a budget goes to those around them.
    return (1 - _AROUND) * nearest + _AROUND * nearest**0.25 if found.any() else None


def token_features(
    text: str, offsets: np.ndarray, rarity: Rarity, question: str | None = None, headings: bool = True
) -> np.ndarray:
    """
    Features of each token `(num_tokens, NUM_FEATURES)`: those of its word.

    Args:
        text (`str`), rarity ([`Rarity`]), question (`str`, *optional*), headings (`bool`): As for [`word_features`].
        offsets (`np.ndarray` of shape `(num_tokens, 2)`): First character of each token, and the one after its last.
    """
    edges, features = word_features(text, rarity, question, headings)
    return features[word_of_tokens(edges, offsets)]


def word_of_tokens(edges: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Index of each token's word `(num_tokens,)`; `edges` are the first characters from [`word_features`]."""
    # Decided by a token's last character, because white space before a word is often a token and belongs to that word.
    return np.clip(
        np.searchsorted(edges, np.maximum(offsets[:, 1] - 1, offsets[:, 0]), side="right") - 1, 0, len(edges) - 2
    )


def _first_and_size(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index and size of consecutive groups, which are numbered from 0."""
    size = np.bincount(groups)
    return np.cumsum(size) - size, np.maximum(size, 1)


def _mean_over(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.bincount(groups, values) / np.maximum(np.bincount(groups), 1)


def _earlier_and_later(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each place, how often the same id occurs before it and after it."""
    order = np.argsort(ids, kind="stable")
    sizes = np.bincount(ids)
    first = np.cumsum(sizes) - sizes
    earlier = np.empty(len(ids), dtype=np.int64)
    earlier[order] = np.arange(len(ids)) - np.repeat(first, sizes)
    return earlier, sizes[ids] - 1 - earlier


def _moved(values: np.ndarray, places: int) -> np.ndarray:
    moved = np.zeros(len(values))
    if places > 0:
        moved[places:] = values[:-places]
    else:
        moved[:places] = values[-places:]
    return moved
