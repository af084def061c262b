"""Words and sentences of a text as pieces of it, and the words that say little by themselves."""

import re


_WORD = re.compile(r"\s*\S+")
# Scripts without spaces, a character each; and what divides keys, values and calls where nobody put a space.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_DIVIDES = r",;:|/&=(){}\[\]"
_PART = re.compile(rf"\s*(?:[{_UNSPACED}]|[^{_UNSPACED}{_DIVIDES}]+[{_DIVIDES}]*|[{_DIVIDES}]+)")
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_LONG_WORD = 24
_DIVIDED = re.compile(rf"[{_UNSPACED}]|\S{{{_LONG_WORD + 1}}}")
# Before a name; without it they say nothing.
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
# Behind a dot: not after an abbreviation, an initial, a day of the month in German, the number of an item. By length, since a
# pattern looks back over a known number of characters.
ENDS_SENTENCE = (
    "".join(
        rf"(?<!\b(?:{'|'.join(word for word in _ABBREVIATIONS if len(word) == length)})\.)"
        for length in sorted({len(word) for word in _ABBREVIATIONS})
    )
    + r"(?<!\b[A-ZÄÖÜ]\.)(?<!\b[iaIA]m \d\.)(?<!\b[iaIA]m \d\d\.)(?<!\b(?:vom|zum|der|dem|den|des|die|das) \d\.)"
    r"(?<!\b(?:vom|zum|der|dem|den|des|die|das) \d\d\.)(?<!^\d\.)(?<!^\d\d\.)(?!(?<=\bN[or]\.)\s?\d)"
)
# A sentence ends at its mark or with its line, and takes the white space behind it. Where it goes on in lower case it has not
# ended: "e.g. at 5 p.m. on Main St.", "Who?" he asked.
_CLOSERS, _LOWER = "\"')\\]”’", r"(?![^\S\n]+[a-zà-öø-ÿа-я])"
_MARK = rf"(?:\.{ENDS_SENTENCE}[{_CLOSERS}]*+(?=\s|\Z){_LOWER}|[!?…](?:(?=\s|\Z)|[{_CLOSERS}]++(?=\s|\Z){_LOWER}))"
_SENTENCE = re.compile(rf"(?:[^\n.!?…]++|(?!{_MARK})[.!?…])*+(?:{_MARK}|\n|\Z)\s*", re.MULTILINE)
_AROUND = ".,;:!?()[]{}<>\"'“”‘’*_`|=…"
# What goes first, in English. Narrower than the function words of `evaluation.vocabulary`, which is a class for statistics:
# negations and quantities stay out of it, because without its "not" or "half" a statement is another one.
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
    Places of the words of a text, each with the white space before it; together they cover all but the text's end. What has
    no spaces is divided too: Chinese and Japanese into characters, runs of more than 24 characters (minified JSON, paths,
    calls) after brackets, colons, commas and the like.
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
    """Places of the sentences of a text, lines at most, each with the white space behind it."""
    return [match.span() for match in _SENTENCE.finditer(text) if match.end() > match.start()]


def bare_word(word: str) -> str:
    """A word in lower case, without the punctuation around it."""
    return word.strip().strip(_AROUND).lower()
