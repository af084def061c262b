"""
The tasks of a reader: questions with answers, lookups in any text, and the use of earlier text later in a document.

Every task is a list of [`ReadingItem`]: a passage to compress, the prompt around it, and a target whose bits are
counted. The prompts with full, compressed and missing passage differ only in the passage.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tokforget.data.sources import line_rows
from tokforget.readers.language_model import Reader
from tokforget.readers.questions import Question, load_questions
from tokforget.readers.spans import find_lookups
from tokforget.readers.word_counts import WordCounts


# Two examples before every question, so that a small reader knows the form of an answer.
_EXAMPLES = (
    "Passage: The bridge over the Arve was built in 1874 by the engineer Louis Favre, and rebuilt after the flood of 1902.\n"
    "Question: Who built the bridge?\nAnswer: Louis Favre\n\n"
    "Passage: Tea reached the island in the 17th century. Most of it is grown in the north, where 4,200 families live from it.\n"
    "Question: How many families live from tea?\nAnswer: 4,200\n\n"
)
_LATER_TOKENS = 96
# A target token counts if the passage saves more than this many bits on it.
_LATER_GAIN = 1.0


@dataclass(frozen=True)
class ReadingItem:
    """
    One item of a task.

    Args:
        passage (`str`): The text to compress.
        group (`str`): Items of the same passage share it; intervals are bootstrapped over groups.
        kind (`str`): Kind of text, for tables.
        before (`str`), after (`str`): The prompt around the passage.
        target (`str`): The correct answer; its bits are counted.
        question (`str`, *optional*): The question for question-aware compressors.
        options (`tuple[str]`): Options of a multiple choice, including `target`.
        counted (`tuple[int]`): Indices of the target tokens that count; all by default.
    """

    passage: str
    group: str
    kind: str
    before: str
    after: str
    target: str
    question: str | None = None
    options: tuple[str, ...] = ()
    counted: tuple[int, ...] = field(default=(), repr=False)

    def prompt(self, passage: str) -> str:
        """The prompt with `passage` in place of the original one."""
        return f"{self.before}{passage}{self.after}"


def question_items(questions: Sequence[Question], num_items: int, kind: str = "questions") -> list[ReadingItem]:
    """
    Items of every n-th question, so that `num_items` are spread over the whole file. The first accepted answer is the
    target. Raises `ValueError` if there is no question.
    """
    if not questions:
        raise ValueError("There is no question; nothing can be measured.")
    chosen = [
        questions[i] for i in np.unique(np.linspace(0, len(questions) - 1, min(num_items, len(questions))).astype(int))
    ]
    return [
        ReadingItem(
            passage=question.context,
            group=question.context,
            kind=kind,
            before=f"{_EXAMPLES}Passage: ",
            after=f"\nQuestion: {question.question.strip()}\nAnswer:",
            target=f" {question.answers[0].strip()}",
            question=question.question.strip(),
            options=tuple(f" {option.strip()}" for option in question.options),
        )
        for question in chosen
    ]


def load_question_items(path: str, num_items: int) -> list[ReadingItem]:
    """Items from a file of questions; see [`load_questions`] for the formats and errors."""
    return question_items(load_questions(path), num_items, Path(path).stem)


def among_others(items: Sequence[ReadingItem], num_others: int, seed: int) -> list[ReadingItem]:
    """
    The same items with each passage among `num_others` passages of other items, numbered and in random order: a prompt
    as retrieval makes it. In a passage alone the first sentences are a good guess; here they are not.

    Raises:
        `ValueError`: If the items have too few different passages.
    """
    passages = list(dict.fromkeys(item.passage for item in items))
    if len(passages) <= num_others:
        raise ValueError(
            f"The items have {len(passages)} different passages, but each needs {num_others} others; lower "
            "`other_passages` or use a larger file."
        )
    generator = random.Random(f"among others {seed}")
    joined = []
    for item in items:
        drawn = [one for one in generator.sample(passages, num_others + 1) if one != item.passage][:num_others]
        drawn.insert(generator.randint(0, num_others), item.passage)
        joined.append(replace(item, passage="\n\n".join(f"[{n}] {one}" for n, one in enumerate(drawn, 1))))
    return joined


def lookup_items(
    passages: Sequence[tuple[str, str]], counts: WordCounts, lookups_per_text: int, seed: int
) -> list[ReadingItem]:
    """
    Lookups in passages `(kind, text)`: the reader gets the passage, then the words before a span, and should continue
    with the span. For question-aware compressors the words before the span are the question.
    """
    items = []
    for kind, text in passages:
        generator = random.Random(f"{seed} {text}")
        for lookup in find_lookups(text, counts, lookups_per_text, generator):
            items.append(
                ReadingItem(
                    passage=text, group=text, kind=kind, before="", after=lookup.suffix,
                    target=lookup.target, question=lookup.cue,
                )
            )  # fmt: skip
    return items


def later_use_items(passages: Sequence[tuple[str, str]], reader: Reader) -> list[ReadingItem]:
    """
    The first half of each passage is compressed, the next quarter is always shown, and the last quarter is the target.
    Of the target those tokens count whose bits fall by more than one when the first half is shown. Texts without such
    tokens are left out.

    A continuation depends mostly on the words just before it. The shown quarter prevents that only the end of the
    compressed half matters.
    """
    items = []
    for kind, text in passages:
        ends = [text.rfind(" ", 0, share * len(text) // 4) for share in (2, 3)]
        if ends[0] < 1 or ends[1] <= ends[0]:
            continue
        places = reader.token_places(text[ends[1] :])
        target = text[ends[1] : ends[1] + places[:_LATER_TOKENS][-1][1]]
        items.append(ReadingItem(text[: ends[0]], text, kind, "", text[ends[0] : ends[1]], target))
    return only_what_helps(items, reader)


def only_what_helps(items: Sequence[ReadingItem], reader: Reader) -> list[ReadingItem]:
    """
    The items with `counted` set to the target tokens on which the passage saves more than a bit. Items without such
    tokens, and items that do not fit the reader, are left out.
    """
    if reader.max_tokens is not None:
        lengths = reader.counts([item.prompt(item.passage) + item.target for item in items])
        items = [item for item, length in zip(items, lengths) if length + 2 <= reader.max_tokens]
    asked = [[(item.after, item.target)] for item in items]
    full = reader.span_token_bits([(item.before + item.passage, pairs) for item, pairs in zip(items, asked)])
    none = reader.span_token_bits([(item.before, pairs) for item, pairs in zip(items, asked)])
    counted = [
        tuple(np.flatnonzero(without - shown > _LATER_GAIN).tolist()) for (without,), (shown,) in zip(none, full)
    ]
    return [replace(item, counted=places) for item, places in zip(items, counted) if places]


def read_corpus(folder: str | Path, split: str, kinds: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """
    Documents `(kind, text)` from a folder of `.jsonl` or `.jsonl.gz` files with the fields `text` and `source`. The
    kind is the field `kind`, else the file's name. Validation and test get a tenth of the sources each. Parts of one
    text share the source before `#`, so that they are in the same split.

    Raises:
        `ValueError`: If the folder holds no such file, or a row lacks a field.
    """
    endings = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
    files = sorted(path for path in Path(folder).glob("*") if path.name.lower().endswith(endings))
    files = [path for path in files if not kinds or path.name.split(".")[0] in kinds]
    if not files:
        raise ValueError(f"{folder} holds no .jsonl or .jsonl.gz file{' of these kinds' if kinds else ''}.")
    for path in files:
        for number, row in enumerate(line_rows(path), 1):
            if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("text", "source")):
                there = f"the fields {sorted(row)}" if isinstance(row, dict) else type(row).__name__
                raise ValueError(f"{path}, row {number}: needed are strings `text` and `source`, there is {there}.")
            if split_of_source(row["source"]) == split:
                yield row.get("kind", path.name.split(".")[0]), row["text"]


def split_of_source(source: str) -> str:
    """`train`, `validation` or `test`, by a hash of the source before `#`; the same on every machine."""
    draw = random.Random(source.split("#")[0]).random()
    return "test" if draw < 0.1 else "validation" if draw < 0.2 else "train"


def draw_passages(
    documents: Iterator[tuple[str, str]], per_kind: int, num_characters: int, seed: int
) -> list[tuple[str, str]]:
    """
    Passages `(kind, text)` of about `num_characters`, cut between words, one from each of the first `per_kind`
    documents of a kind.
    """
    found: dict[str, list[str]] = {}
    for kind, text in documents:
        texts = found.setdefault(kind, [])
        if len(texts) < per_kind and len(text) >= num_characters // 2:
            start = random.Random(f"{seed} {text}").randrange(max(1, len(text) - num_characters))
            if start:
                spaces = [
                    at
                    for at in (text.find(" ", start), text.find("\n", start))
                    if start <= at < start + num_characters // 4
                ]
                start = min(spaces) + 1 if spaces else start
            passage = text[start : start + num_characters]
            if start + num_characters < len(text):
                # Remove the last word, which may be cut; a text without spaces is cut anywhere.
                end = max(passage.rfind(" "), passage.rfind("\n"))
                passage = passage[: end if end > num_characters // 2 else None]
            texts.append(passage.strip())
    return [(kind, text) for kind in sorted(found) for text in found[kind] if text]
