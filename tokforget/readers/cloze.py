"""
Generated questions: a question about a span consists of some words around it and some words from elsewhere, in random
order.

A person's question shares some words with the sentence that answers it, and has other words, too. The generated
questions have the same property, so that a policy learns to find a sentence and not a string.
"""

import random

from tokforget.readers.spans import Lookup
from tokforget.readers.word_counts import WordCounts
from tokforget.text_units import bare_word, split_sentences, split_words


_MOST_WORDS = 9
_SHARES = (0.25, 0.75)
_NUMBER = ("When", "How many", "What year", "What number", "How much")
_NAME = ("Who", "Which", "Where", "What", "What name")
_OTHER = ("What", "How", "Which", "What kind")


def cloze_question(text: str, lookup: Lookup, counts: WordCounts, generator: random.Random) -> str | None:
    """
    A question whose answer is the lookup's span; `None` if there are too few words around it.

    It consists of a quarter to three quarters of the words of the span's sentence, one or two words of another
    sentence, and a question word that fits the form of the answer.
    """
    sentences = split_sentences(text)
    home = next((place for place, (a, b) in enumerate(sentences) if a <= lookup.start < b), None)
    if home is None:
        return None
    words = [(a, b, text[a:b]) for a, b in split_words(text)]

    def content(place: int, share: float) -> list[str]:
        first, last = sentences[place]
        return [
            bare_word(word)
            for a, b, word in words
            if first <= a < last and not (a < lookup.end and lookup.start < b) and bare_word(word)
            and not counts.is_stop_word(word) and generator.random() < share
        ]  # fmt: skip

    asked = content(home, generator.uniform(*_SHARES))[:_MOST_WORDS]
    if len(asked) < 2:
        return None
    others = [place for place in range(len(sentences)) if place != home]
    if others:
        asked += content(generator.choice(others), 0.15)[:2]
    generator.shuffle(asked)
    return f"{generator.choice(_question_words(lookup.answer))} {' '.join(asked)}?"


def _question_words(answer: str) -> tuple[str, ...]:
    if any(c.isdigit() for c in answer):
        return _NUMBER
    return _NAME if answer[:1].isupper() else _OTHER
