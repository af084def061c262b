"""Chats as contexts; the other forms are tested where questions are evaluated."""

import json

import pytest

from tokforget.readers.questions import Question, load_questions


SAID = [{"role": "user", "content": "We meet at nine."}, {"role": "assistant", "content": "Noted."}]


def load(tmp_path, *records):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return load_questions(str(path))


def test_a_chat_with_a_question_of_its_own_or_at_its_end(tmp_path):
    end = [{"role": "user", "content": "When do we meet?"}, {"role": "assistant", "content": "At nine."}]
    asked = {"messages": SAID, "question": "When do we meet?", "answer": "At nine."}
    expected = Question("user: We meet at nine.\nassistant: Noted.", "When do we meet?", ("At nine.",))
    assert load(tmp_path, asked, {"messages": SAID + end}) == [expected, expected]


def test_a_chat_without_a_question(tmp_path):
    with pytest.raises(ValueError, match="must end with the user's question"):
        load(tmp_path, {"messages": SAID})
    with pytest.raises(ValueError, match="every message needs"):
        load(tmp_path, {"messages": [{"role": "user", "content": None}]})
