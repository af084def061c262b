"""
Tasks on whole documents, taken from the documents themselves: title, lead, and answers to questions at their end.

A title or a lead depends on much of a document, while a lookup depends on one place. Only target tokens on which the
passage saves more than a bit count, so that the content is measured and not the wording.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tokforget.readers.language_model import Reader
from tokforget.readers.questions import Question
from tokforget.readers.tasks import ReadingItem, only_what_helps
from tokforget.text_units import split_sentences


_LONGEST_TITLE, _LONGEST_LEAD, _SHORTEST_LEAD = 100, 400, 60
_TITLE = re.compile(r"[^\W_](?:[\w \t'’“”\"&,:/()–—-]*[\w)?”\"])?")
_QUESTION = re.compile(r"^(?:Q|Question): *(\S.*?)\n+(?:A|Answer): *(\S.*)$", re.MULTILINE)
_ANSWERS_PER_TEXT = 3


def split_title(text: str) -> tuple[str, str]:
    """
    The title of a document (`""` if it has none) and the rest. A title is a short first line that ends no sentence and
    is followed by an empty line.
    """
    first, gap, rest = text.strip().partition("\n\n")
    title = first.strip("#=* \t")
    is_title = gap and len(title) <= _LONGEST_TITLE and _TITLE.fullmatch(title) and any(c.isalpha() for c in title)
    return (title, rest.strip()) if is_title else ("", text.strip())


def split_lead(text: str) -> tuple[str, str]:
    """
    The first sentences of a document after its title, at most 400 characters, and the text after its first paragraph.
    """
    paragraph, _, rest = split_title(text)[1].partition("\n\n")
    if "\n" in paragraph.strip() or not paragraph.rstrip().endswith((".", "!", "?")):
        return "", text.strip()
    ends = [end for _, end in split_sentences(paragraph) if end <= _LONGEST_LEAD]
    lead = paragraph[: ends[-1]].strip() if ends else ""
    return (lead, rest.strip()) if len(lead) >= _SHORTEST_LEAD else ("", text.strip())


def title_items(
    documents: Iterable[tuple[str, str]], reader: Reader, per_kind: int, num_characters: int
) -> list[ReadingItem]:
    """Predict the title from the text, for the first `per_kind` documents `(kind, text)` of each kind with a title."""
    rows = ((kind, *split_title(text)) for kind, text in documents)
    return only_what_helps(_items(rows, "\n\nTitle of the text above:", per_kind, num_characters), reader)


def lead_items(
    documents: Iterable[tuple[str, str]], reader: Reader, per_kind: int, num_characters: int
) -> list[ReadingItem]:
    """Predict a document's first sentences, which summarise an article, from the text after its first paragraph."""
    rows = ((kind, *split_lead(text)) for kind, text in documents)
    return only_what_helps(_items(rows, "\n\nThe text above in short:", per_kind, num_characters), reader)


def answer_items(
    documents: Iterable[tuple[str, str]], reader: Reader, per_kind: int, num_characters: int
) -> list[ReadingItem]:
    """
    Questions and answers at the end of a document, in the form `Question: ... Answer: ...` or `Q: ... A: ...`.
    Question-aware compressors get the question. Documents longer than `num_characters` are left out, because the
    answer may be anywhere in them.
    """
    items, texts = [], {}
    for kind, question in questions_beneath(documents, _ANSWERS_PER_TEXT):
        passage, of_kind = question.context, texts.setdefault(kind, set())
        if len(passage) > num_characters or (passage not in of_kind and len(of_kind) >= per_kind):
            continue
        of_kind.add(passage)
        after = f"\n\nQuestion: {question.question}\nAnswer:"
        items.append(ReadingItem(passage, passage, kind, "", after, f" {question.answers[0]}", question.question))
    return only_what_helps(items, reader)


def questions_beneath(
    documents: Iterable[tuple[str, str]], per_document: int | None = None
) -> Iterator[tuple[str, Question]]:
    """The first `per_document` questions `(kind, question)` at the end of each document `(kind, text)`."""
    for kind, text in documents:
        found = list(_QUESTION.finditer(text))
        passage = text[: found[0].start()].strip() if found else ""
        for question, answer in (one.groups() for one in found[:per_document] if passage):
            yield kind, Question(passage, question.strip(), (answer.strip(),))


def _items(
    rows: Iterable[tuple[str, str, str]], after: str, per_kind: int, num_characters: int
) -> Sequence[ReadingItem]:
    items, seen = [], Counter()
    for kind, target, rest in rows:
        passage = rest[:num_characters]
        if len(rest) > num_characters:
            passage = passage[: max(passage.rfind(" "), passage.rfind("\n"), num_characters // 2)].strip()
        if target and len(passage) >= num_characters // 2 and seen[kind] < per_kind:
            seen[kind] += 1
            items.append(ReadingItem(passage, passage, kind, "", after, f" {target}"))
    return items
