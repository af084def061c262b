"""
Measurements on strings: words, numbers and names that a compressed text lost and a restoration recovered, and ROUGE.

A *word* is a run of letters and digits with its inner apostrophes and hyphens, or digits with their inner points, commas
and colons (`3.5`, `1,000`, `12:30`); other punctuation and white space are not words. A *number* is a word with a
digit, a *name* a word of two letters or more without digits that begins with a capital in the middle of a sentence.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import Score
from rouge_score.tokenizers import DefaultTokenizer
from transformers import PreTrainedTokenizerBase


_WORD = re.compile(r"\d+(?:[.,:/]\d+)+|\w+(?:['’-]\w+)*")
# Between two words, these begin a new sentence or quotation, where a capital does not show a name. "Mr. Smith" is
# missed.
_SENTENCE_BREAK = re.compile(r"[.!?…:\n\"“”«»]")
_STRING = re.compile(r""""([^"\n]{1,200})"|“([^”\n]{1,200})”|`([^`\n]{1,200})`|(?<!\w)'([^'\n]{1,200})'(?!\w)""")
_PRONOUN = re.compile(r"I(?:['’]\w+)?")


def find_words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text, each with its start and end in characters."""
    return [(match[0], match.start(), match.end()) for match in _WORD.finditer(text)]


def is_number(word: str) -> bool:
    return any(character.isdigit() for character in word)


def find_names(text: str, words: Sequence[tuple[str, int, int]]) -> list[bool]:
    """Whether each word of a text is a name."""
    after, found = None, []
    for word, start, end in words:
        within = after is not None and not _SENTENCE_BREAK.search(text, after, start)
        capital = word[0].isupper() and len(word) > 1 and not _PRONOUN.fullmatch(word)
        found.append(within and capital and not is_number(word))
        after = end
    return found


def find_strings(text: str) -> list[str]:
    """Strings of at most 200 characters in quotation marks or backticks within a line: values, titles, literals."""
    return [next(filter(None, match.groups())) for match in _STRING.finditer(text)]


def aligned(original: Sequence[str], other: Sequence[str]) -> list[bool]:
    """
    Whether each item of `original` is in a longest common subsequence with `other`.

    Source: the bit-parallel recurrence of Hyyrö 2004, "Bit-parallel LCS-length computation revisited". Differs: every
    row is kept, to trace the path back. Time and memory are `len(other)` rows of `len(original)` bits.
    """
    places: dict[str, int] = {}
    for position, item in enumerate(original):
        places[item] = places.get(item, 0) | 1 << position
    row = everything = (1 << len(original)) - 1
    rows = [row]  # a zero bit at i: the i-th item extends the subsequence
    for item in other:
        match = row & places.get(item, 0)
        row = ((row + match) | (row - match)) & everything
        rows.append(row)
    found, position, column = [False] * len(original), len(original) - 1, len(other)
    while position >= 0 and column > 0:
        if rows[column] >> position & 1:
            position -= 1
        elif not rows[column - 1] >> position & 1:
            column -= 1
        else:
            found[position] = True
            position, column = position - 1, column - 1
    return found


# -- lost and restored words -------------------------------------------------------------------------------------------
@dataclass
class RestoredWords:
    """
    Counts of one text, or the sum over many. Numbers and names count wherever they are in the restored text, words
    only at their place.
    """

    lost_words: int = 0
    restored_words: int = 0
    lost_numbers: int = 0
    restored_numbers: int = 0
    lost_names: int = 0
    restored_names: int = 0

    def __add__(self, other: "RestoredWords") -> "RestoredWords":
        return RestoredWords(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def shares(self) -> dict[str, float]:
        """Restored / lost for words, numbers and names; 1.0 if none was lost."""
        return {
            "words_restored": self.restored_words / self.lost_words if self.lost_words else 1.0,
            "numbers_restored": self.restored_numbers / self.lost_numbers if self.lost_numbers else 1.0,
            "names_restored": self.restored_names / self.lost_names if self.lost_names else 1.0,
        }


def lost_by_mask(text: str, keep_mask: Sequence[bool], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """
    For each word of a text whether it contains a part of a dropped token; `spans` are the characters of each token.
    """
    gone = [False] * len(text)
    for kept, (start, end) in zip(keep_mask, spans, strict=True):
        if not kept:
            gone[start:end] = [True] * (end - start)
    return [any(gone[start:end]) for _, start, end in find_words(text)]


def lost_by_text(text: str, compressed: str) -> list[bool]:
    """For each word of a text whether the compressed text lacks it, by aligning both."""
    kept = [word for word, _, _ in find_words(compressed)]
    return [not found for found in aligned([word for word, _, _ in find_words(text)], kept)]


def count_restored_words(original: str, restored: str, lost: Sequence[bool]) -> RestoredWords:
    """
    Count the lost and restored words of a text.

    Args:
        original (`str`): The text before compression.
        restored (`str`): The text after free-running restoration.
        lost (`Sequence[bool]`): Whether each word of `original` was lost; see [`lost_by_mask`] and [`lost_by_text`].

    Returns:
        `RestoredWords`: A lost word is restored if it is in the longest common subsequence of the words of both texts.
        Numbers and names are multisets: of each, the occurrences in the restored text beyond those never lost are
            restored, up to the
        number lost.
    """
    words, came_back = find_words(original), [word for word, _, _ in find_words(restored)]
    names, back = find_names(original, words), aligned([word for word, _, _ in words], came_back)
    kept = Counter(word for (word, _, _), is_lost in zip(words, lost, strict=True) if not is_lost)
    offered = Counter(came_back) - kept
    lost_numbers = Counter(word for (word, _, _), is_lost in zip(words, lost) if is_lost and is_number(word))
    lost_names = Counter(word for (word, _, _), is_lost, is_name in zip(words, lost, names) if is_lost and is_name)
    return RestoredWords(
        lost_words=sum(lost),
        restored_words=sum(is_lost and found for is_lost, found in zip(lost, back)),
        lost_numbers=lost_numbers.total(),
        restored_numbers=(lost_numbers & offered).total(),
        lost_names=lost_names.total(),
        restored_names=(lost_names & offered).total(),
    )


# -- tokens of strings -------------------------------------------------------------------------------------------------
def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, without special tokens and without truncation."""
    if not texts:
        return []
    # A text that spells a special token is ordinary text.
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    return encoded["input_ids"]


def decode(input_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of token ids, without clean-up of spaces."""
    return tokenizer.decode(input_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def decode_with_spans(
    input_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[tuple[int, int]]]:
    """
    The text of token ids and the span `(start, end)` of each token; tokens that are parts of one character share its
    span.
    """
    text = decode(input_ids, tokenizer)
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if encoded["input_ids"] == list(input_ids):
            return text, encoded["offset_mapping"]
    # Encoding this text gives other tokens (it was cut within a word, or restored), so decode each prefix to find the
    # ends.
    ends = [min(len(decode(input_ids[: i + 1], tokenizer)), len(text)) for i in range(len(input_ids))]
    return text, [(max(0, min(start, end - 1)), end) for start, end in zip([0, *ends], ends)]


# -- ROUGE -------------------------------------------------------------------------------------------------------------
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# Letters from Greek on; Latin letters are left to rouge-score.
_NOT_LATIN = re.compile(r"(?=[^\W\d_])[\u0370-\u1dff\u1f00-\u1fff\u2c00-\U0003ffff]")
_NO_SPACES = (
    r"\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# A run of ASCII; or a character of a script without spaces, with its marks; or a run of other letters with their
# marks.
_ROUGE_WORD = re.compile(
    rf"[a-z0-9]+|[{_NO_SPACES}][\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*|(?:(?![a-z0-9_{_NO_SPACES}])[\w\u0300-\u036f\u0900-\u0dff])+"
)


def rouge_scores(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    rouge_types: Sequence[str] = ROUGE_TYPES,
    use_stemmer: bool = False,
    tokenize: Callable[[str], list[str]] | None = None,
) -> list[dict[str, Score]]:
    """
    Precision, recall and F of each prediction, as rouge-score computes them. Of several references the one with the
    best F counts, separately for each type.

    rouge-score knows only the letters a to z and digits, so that two equal texts in Chinese or Greek would have
    nothing in common. Here letters of other alphabets form words, too; in scripts without spaces every character is a
    word.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    kinds = list(rouge_types)
    own = _RougeTokenizer(tokenize or _AnyScript(use_stemmer))
    plain = RougeScorer(kinds, use_stemmer=use_stemmer, tokenizer=None if tokenize is None else own)
    any_script = RougeScorer(kinds, use_stemmer=use_stemmer, tokenizer=own)
    scores = []
    for prediction, reference in zip(predictions, references, strict=True):
        texts = [prediction, *([reference] if isinstance(reference, str) else reference)]
        scorer = any_script if any(map(_NOT_LATIN.search, texts)) else plain
        several = not isinstance(reference, str)
        scores.append(scorer.score_multi(reference, prediction) if several else scorer.score(reference, prediction))
    return scores


class _AnyScript:
    """Words in Latin letters as rouge-score finds them, and words in other alphabets."""

    def __init__(self, use_stemmer: bool):
        self._latin = DefaultTokenizer(use_stemmer)

    def __call__(self, text: str) -> list[str]:
        found = []
        for word in _ROUGE_WORD.findall(text.lower()):
            found += self._latin.tokenize(word) if word.isascii() else [word]
        return found


class _RougeTokenizer:
    """Wraps a function, because rouge-score requires an object with a method."""

    def __init__(self, tokenize: Callable[[str], list[str]]):
        self.tokenize = tokenize


def mean(values: Sequence[float]) -> float:
    """The mean, summed exactly, so that it does not depend on the order of the values."""
    return math.fsum(values) / len(values)
