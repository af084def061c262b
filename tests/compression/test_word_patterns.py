"""Words looked for in a text the short way, against the regular expression with all of them."""

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokforget.compression import meaning, wholes
from tokforget.compression.word_patterns import _ODD, WordPattern, WordsOf


PATTERNS = {
    "negations": meaning._NEGATIONS,
    "limits": meaning._LIMITS,
    "counted": meaning._COUNT,
    **{f"language {n}": words for n, pair in enumerate(meaning._LANGUAGES) for words in pair},
}
WORDS = st.sampled_from(["not", "No", "no. 5", "knot", "More than", "more\nthan", "at most", "AT LEAST", "until", "jusqu'à", "jusqu’au", "plus de",
                         "don't", "can’t", "won't_", "7n't", "two cats", "ten", "often", "3 dogs", "1956 cars", "1,000 cars", "x.2 men", "não", "uma",
                         "nicht", "keiner", "aucune", "les", "que", "hayır", "HAYIR", "değil", "χωρίσ", "ΧΩΡΊΣ", "не", "НЕ", "ſin", "K", "İf", "“",
                         "'not", "’no", "_no", "no_", "-no-", "A.", "Dr.", "etc.", "...", "?!", ".", "Yes", "。", "…", "\n", "\r\n", "\n \n", "\u2028",
                         "\t", "  ", "cafe::babe", "€5", "12:30", "<3", "10 %"])  # fmt: skip
ANY = st.lists(st.one_of(WORDS, st.text(max_size=4)), max_size=24).flatmap(
    lambda parts: st.sampled_from(["", " "]).map(lambda between: between.join(parts))
)
# As it was written before it was looked for from its line break on.
BREAK = re.compile(r"(?<![^\S\n\r\u2028\u2029])[^\S\n\r\u2028\u2029]*(?:\r\n|[\n\r\u2028\u2029])\s*")


def spans(matches) -> list[tuple[int, int]]:
    return [match.span() for match in matches]


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_the_short_way_finds_what_the_expression_does(text):
    for name, pattern in PATTERNS.items():
        words = WordsOf(text)
        assert spans(pattern.finditer(words)) == spans(pattern.regex.finditer(text)), name
        if name.startswith("language"):
            assert pattern.is_in(words) == bool(pattern.regex.search(text)), name


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_marks_and_numbers_are_found_as_by_their_expressions(text):
    assert list(meaning.find_sentence_ends(text)) == spans(meaning._SENTENCE_END.finditer(text))
    assert list(wholes.find("numbers", text)) == spans(wholes.COMPILED["numbers"].finditer(text))
    assert spans(meaning.match_at(meaning._DIGITS, meaning._DIGIT, text)) == spans(meaning._DIGITS.finditer(text))
    for name in wholes.COMPILED:
        find = wholes.trimmed if name in ("urls", "paths") else wholes.matches
        assert list(wholes.find(name, text)) == list(find(wholes.COMPILED[name], text)), name


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_breaks_take_the_white_space_around_them(text):
    ends = {end for _, end in spans(BREAK.finditer(text))}
    whole = spans(BREAK.finditer(text))
    assert set(meaning._breaks(text)) <= set(whole) and len(ends) == len(whole)
    unwrapped = "".join(f"{line}\n\n" for line in text.split("\n"))
    assert list(meaning._breaks(unwrapped)) == spans(BREAK.finditer(unwrapped))


def test_no_other_letter_is_taken_for_one_of_these():
    """Where it is, a text has to be looked through by the expression itself."""
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    letters = set("".join("".join(pattern.firsts) for pattern in PATTERNS.values()))
    for letter in letters:
        for found in re.findall(re.escape(letter), everything, re.IGNORECASE):
            assert found.lower() in (letter, {"ı": "i", "i": "ı"}.get(letter)) or _ODD.match(found), (letter, found)


@pytest.mark.parametrize("text, lower", [("Ab", "ab"), ("İ", None), ("ſ", None), ("ÄÉ", "äé"), ("ẞ", "ß")])
def test_small_letters_of_a_text(text, lower):
    assert WordsOf(text).lower == lower


def test_a_word_may_be_a_pattern():
    pattern = WordPattern(r"no(?!\.\s?\d)|more than|more")
    assert spans(pattern.finditer(WordsOf("No. 5, no more  than more"))) == [(7, 9), (10, 20), (21, 25)]
