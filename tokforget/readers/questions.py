"""
Files of questions with contexts, in the common formats.
"""

import json
import re
import string
from dataclasses import dataclass
from pathlib import Path

from tokforget.data.sources import line_rows


_YES_NO = ("no", "yes")
_QUESTION = re.compile(r"(?P<context>.*)\n\s*(?:Question|Query):(?P<question>.+?)(?:\n\s*Answer:\s*)?", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """
    A question about a context.

    Args:
        context (`str`), question (`str`): The text, and the question about it.
        answers (`tuple[str]`): Accepted answers.
        options (`tuple[str]`): Options of a multiple choice; empty for free answers.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()


def load_questions(path: str, split: str = "validation") -> list[Question]:
    """
    Load questions with contexts from a local `.json` or `.jsonl` file or a Hub data set.

    Formats: SQuAD, nested (`data / paragraphs / qas`) or flat (`context`, `question`, `answers`); yes-no questions
    (`passage` or `context`, `question`, a boolean `answer`); multiple choice (`options` or `choices` with `answer` as
    index, letter or text);
    LongBench (`context`, `input`, `answers`); whole prompts (`query`, `prompt` or `origin_prompt`, with `gold`), where
    the last `Question:` or `Query:` separates context and question; and chats (`messages` of `role` and `content`),
    whose question and answer are the fields `question` and `answer` or the last two messages.

    Args:
        path (`str`): File or Hub id.
        split (`str`): Split of a Hub data set.

    Returns:
        `list[Question]`: The questions that have an answer.

    Raises:
        `FileNotFoundError`, `ValueError`: If nothing can be loaded, or a record fits none of these formats.
    """
    file = Path(path)
    if file.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        if not file.is_file():
            raise FileNotFoundError(f"Questions {path!r}: no such file.")
        text = file.read_text(encoding="utf-8")
        try:
            records = json.loads(text)
        except json.JSONDecodeError:
            records = list(line_rows(file))
    else:
        from datasets import load_dataset

        try:
            records = list(load_dataset(path, split=split))
        except Exception as error:  # the library raises many kinds of errors
            raise ValueError(
                f"Questions {path!r} are no .json or .jsonl file and could not be loaded from the Hub (split {split!r}): "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
    if isinstance(records, dict) and isinstance(records.get("data"), list):
        records = [
            {"context": paragraph["context"], **qa}
            for article in records["data"]
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    if isinstance(records, dict):
        records = list(records.values()) if all(isinstance(r, dict) for r in records.values()) else [records]
    questions = [_question_of(record, path, at) for at, record in enumerate(records)]
    questions = [question for question in questions if question.answers]  # SQuAD 2 has questions without an answer
    if not questions:
        raise ValueError(f"{path} holds no question with an answer.")
    return questions


def _question_of(record: dict, path: str, at: int) -> Question:
    record = _divided(_transcript(record, path, at))
    context = next((record[key] for key in ("context", "passage", "article", "document") if key in record), None)
    question = next((record[key] for key in ("question", "input", "query") if record.get(key)), None)
    answer = record.get("answers", record.get("answer"))
    if isinstance(context, dict | list):
        context = json.dumps(context)
    if context is None or question is None or answer is None:
        raise ValueError(
            f"Record {at} of {path} has the keys {sorted(record)}; needed are a context (`context`, `passage`), a question "
            "(`question`, `input`) and `answer` or `answers`."
        )
    options = record.get("options", record.get("choices"))
    options = options.get("text") if isinstance(options, dict) else options
    if isinstance(answer, bool):
        return Question(context, question, (_YES_NO[answer],), _YES_NO)
    if options:
        return Question(context, question, (_chosen(options, answer, record, path, at),), tuple(options))
    if isinstance(answer, dict):
        answer = answer["text"]
    answers = [answer] if isinstance(answer, str) else answer
    texts = [item["text"] if isinstance(item, dict) else str(item) for item in answers]
    return Question(context, question, tuple(dict.fromkeys(text for text in texts if text.strip())))


def _transcript(record: dict, path: str, at: int) -> dict:
    """
    Convert a record with `messages` to context, question and answer; other records are returned unchanged. Without the
    fields `question` and `answer`, the last user message is the question, the assistant message after it the answer,
    and the messages before them the context.
    """
    messages = record.get("messages")
    if messages is None:
        return record
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in messages):
        raise ValueError(f"Record {at} of {path}: every message needs a `role` and a `content` that is a string.")
    if not record.get("question"):
        if len(messages) < 3 or [m["role"] for m in messages[-2:]] != ["user", "assistant"]:
            raise ValueError(
                f"Record {at} of {path}: without `question` and `answer` a transcript must end with the user's question and "
                f"the assistant's answer, after one message at least; the roles are {[m['role'] for m in messages]}."
            )
        *messages, asked, answered = messages
        record = {"question": asked["content"], "answer": answered["content"]}
    context = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return record | {"context": context}


def _divided(record: dict) -> dict:
    """Split the prompt of a record into context and question; other records are returned unchanged."""
    prompt = next(
        (record[key] for key in ("origin_prompt", "prompt", "query") if isinstance(record.get(key), str)), ""
    )
    found = _QUESTION.fullmatch(prompt)
    if found is None or "gold" not in record:
        return record
    context, question = found["context"].strip().removeprefix("Passage:").strip(), found["question"].strip()
    return {"context": context, "question": question, "answer": record["gold"], "options": record.get("choices")}


def _chosen(options: list[str], answer, record: dict, path: str, at: int) -> str:
    """The correct option, which `answer` gives by index, letter or text."""
    labels = record["choices"].get("label") if isinstance(record.get("choices"), dict) else None
    if isinstance(answer, int) and 0 <= answer < len(options):
        return options[answer]
    if answer in options:
        return answer
    letters = labels or list(string.ascii_uppercase)
    if answer in letters and letters.index(answer) < len(options):
        return options[letters.index(answer)]
    raise ValueError(f"Record {at} of {path}: the answer {answer!r} names none of the options {options}.")
