"""Split a text into words and sentences; and lists of English stop words and negations."""

import re


_WORD = re.compile(r"\s*\S+")
# Chinese and Japanese characters, each of which counts as a word; and the punctuation after which keys, values and
# calls are divided if there are no spaces.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_DIVIDES = r",;:|/&=(){}\[\]"
_PART = re.compile(rf"\s*(?:[{_UNSPACED}]|[^{_UNSPACED}{_DIVIDES}]+[{_DIVIDES}]*|[{_DIVIDES}]+)")
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_LONG_WORD = 24
_DIVIDED = re.compile(rf"[{_UNSPACED}]|\S{{{_LONG_WORD + 1}}}")
# A character that JSON writes as an escape; one beyond the first 65,536 is a pair of them.
UNICODE_ESCAPE = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}"
# Titles, which say nothing without the name after them.
TITLES = ["Mr", "Ms", "Dr", "Mrs", "Mme", "Sra", "Sgt", "Prof", "Capt", "Messrs"]
_ABBREVIATIONS = [
    *TITLES,
    *[
        "St",
        "Sr",
        "Jr",
        "Gen",
        "Sen",
        "Rep",
        "Rev",
        "Hon",
        "Gov",
        "Col",
        "vs",
        "ca",
        "Nr",
        "pp",
        "Art",
        "Abs",
        "Fig",
        "fig",
        "Sec",
        "Vol",
        "ref",
        "ext",
        "Inc",
        "Ltd",
        "bzw",
        "Abb",
        "etc",
        "al",
        "cf",
        "approx",
    ],
]
# Assertions after a full stop. They fail if it belongs to an abbreviation, an initial, a day of the month in German,
# the number of a list item or "No. 5". Abbreviations are grouped by length, because a lookbehind needs a fixed length.
ENDS_SENTENCE = (
    "".join(
        rf"(?<!\b(?:{'|'.join(word for word in _ABBREVIATIONS if len(word) == length)})\.)"
        for length in sorted({len(word) for word in _ABBREVIATIONS})
    )
    + r"(?<!\b[A-ZÄÖÜ]\.)(?<!\b[iaIA]m \d\.)(?<!\b[iaIA]m \d\d\.)(?<!\b(?:vom|zum|der|dem|den|des|die|das) \d\.)"
    r"(?<!\b(?:vom|zum|der|dem|den|des|die|das) \d\d\.)(?<!^\d\.)(?<!^\d\d\.)(?!(?<=\bN[or]\.)\s?\d)"
)
# A sentence ends at its mark or with its line, and includes the white space after it. If the text continues in lower
# case, the sentence has not ended: "e.g. at 5 p.m. on Main St.", "Who?" he asked.
_CLOSERS, _LOWER = "\"')\\]”’", r"(?![^\S\n]+[a-zà-öø-ÿа-я])"
_MARK = rf"(?:\.{ENDS_SENTENCE}[{_CLOSERS}]*+(?=\s|\Z){_LOWER}|[!?…](?:(?=\s|\Z)|[{_CLOSERS}]++(?=\s|\Z){_LOWER}))"
_SENTENCE = re.compile(rf"(?:[^\n.!?…]++|(?!{_MARK})[.!?…])*+(?:{_MARK}|\n|\Z)\s*", re.MULTILINE)
_AROUND = ".,;:!?()[]{}<>\"'“”‘’*_`|=…"
# English words that are dropped first. The list is narrower than the function words of `evaluation.vocabulary`, which
# serve statistics: it has no negations and quantities, because "not" and "half" change the meaning of a statement.
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

NEGATIONS = frozenset(
    {"not", "no", "never", "nor", "none", "without", "neither", "cannot", "unless", "except", "hardly"}
)


def split_words(text: str) -> list[tuple[int, int]]:
    """
    Spans of the words of a text, each with the white space before it. Together they cover the text except white space
    at its end. Text without spaces is divided, too: Chinese and Japanese into characters, and runs of more than 24
    characters (minified JSON, paths, calls) after brackets, colons, commas and the like.
    """
    if not _DIVIDED.search(text):
        return [match.span() for match in _WORD.finditer(text)]
    spans = []
    for match in _WORD.finditer(text):
        word = match[0].lstrip()
        if len(word) > _LONG_WORD or _HAS_UNSPACED.search(word):
            spans += [part.span() for part in _PART.finditer(text, *match.span())]
        else:
            spans.append(match.span())
    return spans


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences of a text, each with the white space after it. A line break ends a sentence."""
    return [match.span() for match in _SENTENCE.finditer(text) if match.end() > match.start()]


def bare_word(word: str) -> str:
    """A word in lower case, without the punctuation around it."""
    return word.strip().strip(_AROUND).lower()
