"""
Real training questions, from files of questions with contexts, and from the ends of documents of a corpus.

A generated question consists of words around its answer, but a person's question may use other words. Only questions
whose answer occurs exactly once in the context are used, because the warm start and the reward need the answer's
place.
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
    The questions of `files`, and at most `from_documents` of those at the end of `documents` `(kind, text)`, in random
    order.

    Raises:
        `FileNotFoundError`, `ValueError`: As [`load_questions`]; also if no answer of a file occurs exactly once in
            its context.
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
    """A question with at most `num_characters` of its context around the answer, encoded by [`ReaderTexts`]."""
    start, answer = _place(question)
    context = question.context
    first, last = _stretch(context, start, start + len(answer), num_characters, random.Random(f"{seed} {question}"))
    asked = question.question.strip()
    asking = Asked(f"\nQuestion: {asked}\nAnswer:", f" {answer}", start - first, start - first + len(answer))
    return texts.encoded(KIND, context[first:last], asked, [asking])


def _place(question: Question) -> tuple[int, str] | None:
    """
    Start and text of the first accepted answer that occurs in the context exactly once, as whole words. With several
    occurrences it is unknown which one was meant.
    """
    for answer in (answer.strip() for answer in question.answers if not question.options):
        places = [one.start() for one in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", question.context) if answer]
        if len(places) == 1:
            return places[0], answer
    return None


def _stretch(text: str, start: int, end: int, num_characters: int, generator: random.Random) -> tuple[int, int]:
    """
    Span of about `num_characters` of a text that includes the characters from `start` to `end`, cut between words.
    """
    if len(text) <= num_characters:
        return 0, len(text)
    spare = max(num_characters - (end - start), 0)
    first = min(max(start - generator.randint(0, spare), 0), max(len(text) - num_characters, 0))
    last = min(max(first + num_characters, end), len(text))
    spaces = [at for at, one in enumerate(text[first:start], first) if one.isspace()]
    first = spaces[0] + 1 if first and spaces else first
    spaces = [at for at, one in enumerate(text[end:last], end) if one.isspace()]
    return first, spaces[-1] if last < len(text) and spaces else last
