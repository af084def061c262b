"""
Real questions to learn from: files of questions over contexts, and those that stand beneath documents of a corpus.

A question made of the words around its answer shares them; a person's need not. Only questions are taken whose answer stands in
the context, once, because the policy is taught, and credited, where it stands.
"""

import random
import re
from collections.abc import Iterable, Sequence

from tokforget.readers.questions import Question, load_questions
from tokforget.readers.whole_texts import questions_beneath
from tokforget.training.reader_texts import Asked, ReaderText, ReaderTexts


KIND = "questions"


def read_questions(
    files: Sequence[str], documents: Iterable[tuple[str, str]], from_documents: int, seed: int
) -> list[Question]:
    """
    Those of `files`, and `from_documents` at most of those that stand beneath `documents` `(kind, text)`, in a random order.

    Raises:
        `FileNotFoundError`, `ValueError`: As [`load_questions`]; if no answer of a file stands once in its context.
    """
    found = []
    for file in files:
        usable = [question for question in load_questions(file) if _place(question) is not None]
        if not usable:
            raise ValueError(
                f"No answer of {file} stands in its context once; the policy can only be taught where an answer stands. Pass a file "
                "whose answers are passages of their contexts, as SQuAD's."
            )
        found += usable
    if from_documents:
        beneath = [question for _, question in questions_beneath(documents) if _place(question) is not None]
        random.Random(f"questions {seed}").shuffle(beneath)
        found += beneath[:from_documents]
    random.Random(seed).shuffle(found)
    return found


def question_text(texts: ReaderTexts, question: Question, num_characters: int, seed: int | str) -> ReaderText:
    """A question's context, at most `num_characters` of it around the answer, as [`ReaderTexts`] encodes it."""
    start, answer = _place(question)
    context = question.context
    first, last = _stretch(context, start, start + len(answer), num_characters, random.Random(f"{seed} {question}"))
    asked = question.question.strip()
    asking = Asked(f"\nQuestion: {asked}\nAnswer:", f" {answer}", start - first, start - first + len(answer))
    return texts.encoded(KIND, context[first:last], asked, [asking])


def _place(question: Question) -> tuple[int, str] | None:
    """
    Where the first accepted answer that stands in the context as whole words starts, and the answer. Once alone: of an answer
    that stands in several places nobody knows which of them was meant.
    """
    for answer in (answer.strip() for answer in question.answers if not question.options):
        places = [one.start() for one in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", question.context) if answer]
        if len(places) == 1:
            return places[0], answer
    return None


def _stretch(text: str, start: int, end: int, num_characters: int, generator: random.Random) -> tuple[int, int]:
    """About `num_characters` of a text that hold the characters from `start` to `end`, cut between words."""
    if len(text) <= num_characters:
        return 0, len(text)
    spare = max(num_characters - (end - start), 0)
    first = min(max(start - generator.randint(0, spare), 0), max(len(text) - num_characters, 0))
    last = min(max(first + num_characters, end), len(text))
    spaces = [at for at, one in enumerate(text[first:start], first) if one.isspace()]
    first = spaces[0] + 1 if first and spaces else first
    spaces = [at for at, one in enumerate(text[end:last], end) if one.isspace()]
    return first, spaces[-1] if last < len(text) and spaces else last
