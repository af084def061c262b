"""Titles, leads and answers that stand in a document, as tasks about the rest of it."""

import json

import pytest

from tests.conftest import make_gpt2
from tokforget.readers import tasks
from tokforget.readers.arguments import ReaderArguments
from tokforget.readers.benchmark import ReaderBenchmark
from tokforget.readers.language_model import Reader
from tokforget.readers.whole_texts import answer_items, lead_items, split_lead, split_title, title_items


BODY = "The harbour was rebuilt in 1931. " * 12
LEAD = "Nordby is a town with a harbour that never freezes. Ships call there on Monday."


@pytest.fixture(scope="module")
def reader(tokenizer) -> Reader:
    return Reader(make_gpt2(len(tokenizer), n_positions=1024), tokenizer)


@pytest.fixture
def easily_helped(monkeypatch):
    monkeypatch.setattr(tasks, "_LATER_GAIN", -100.0)  # a tiny random reader gains nothing: all tokens count


@pytest.mark.parametrize("text, title", [
    (f"# The harbour of Nordby\n\n{BODY}", "The harbour of Nordby"), (f"Nordby (town)\n\n{BODY}", "Nordby (town)"),
    (f"It ends a sentence.\n\n{BODY}", ""), (f"#![allow(dead_code)]\n\n{BODY}", ""), (f"two\nlines\n\n{BODY}", ""),
    (f"1931\n\n{BODY}", ""), (BODY, ""), ("", ""),
])  # fmt: skip
def test_a_title_is_a_short_first_line_that_ends_no_sentence(text, title):
    found, rest = split_title(text)
    assert found == title and (rest == BODY.strip() if title else rest == text.strip())


def test_a_lead_is_the_first_sentences_and_what_follows_its_paragraph_is_the_passage():
    assert split_lead(f"Nordby\n\n{LEAD}\n\n{BODY}") == (LEAD, BODY.strip())
    assert split_lead(f"{LEAD} {'More of it. ' * 60}\n\n{BODY}")[0].startswith(LEAD)
    assert len(split_lead(f"{LEAD} {'More of it. ' * 60}\n\n{BODY}")[0]) <= 400
    assert split_lead(f"- a list\n- of things\n\n{BODY}")[0] == "" and split_lead(f"Short.\n\n{BODY}")[0] == ""


def test_items_of_whole_documents(reader, easily_helped):
    documents = [("prose", f"Nordby\n\n{LEAD}\n\n{BODY}"), ("prose", BODY), ("prose", f"Skagen\n\n{LEAD}\n\n{BODY}")]
    title, other = title_items(documents, reader, 5, 300)
    assert title.target == " Nordby" and other.target == " Skagen" and title.passage.startswith(LEAD)
    assert len(title.passage) <= 300 and "Nordby\n" not in title.prompt(title.passage)
    assert [item.target for item in title_items(documents, reader, 1, 300)] == [" Nordby"]
    (lead, _) = lead_items(documents, reader, 5, 300)
    assert lead.target == f" {LEAD}" and LEAD not in lead.prompt(lead.passage)
    assert title_items([("prose", "Nordby\n\nToo short.")], reader, 5, 300) == []


def test_answers_beneath_a_text_are_asked_and_not_shown(reader, easily_helped):
    table = f"{BODY}\n\nQ: when was it rebuilt?\nA: 1931\nQ: who calls?\nA: ships\n"
    long = f"{BODY}\n\nQuestion: Summarize it.\n\nAnswer: It was rebuilt and ships call."
    first, second, third = answer_items([("qa", table), ("qa", long), ("qa", BODY)], reader, 5, 1000)
    assert (first.target, first.question) == (" 1931", "when was it rebuilt?") and second.target == " ships"
    assert third.target == " It was rebuilt and ships call." and third.passage == BODY.strip()
    assert all(item.passage == BODY.strip() and "A: " not in item.prompt(item.passage) for item in (first, second))
    assert answer_items([("qa", table)], reader, 5, 100) == []  # what it says may stand anywhere in it


def test_only_tokens_that_the_passage_makes_cheaper_count(reader, monkeypatch):
    monkeypatch.setattr(tasks, "_LATER_GAIN", 1e9)
    assert title_items([("prose", f"Nordby\n\n{BODY}")], reader, 5, 300) == []


def test_the_benchmark_asks_the_tasks_that_are_named(reader, easily_helped, tmp_path):
    base_folder = str(tmp_path / "base")
    reader.model.save_pretrained(base_folder)
    reader.tokenizer.save_pretrained(base_folder)
    with pytest.raises(ValueError, match="must be some of lookup, later_use, title, lead, answers, got .'poems'"):
        ReaderArguments(
            reader_name_or_path=base_folder, corpus=str(tmp_path), corpus_tasks=["poems"], output_dir=str(tmp_path)
        )
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [
        {"text": f"Nordby {n}\n\nIt has a harbour. {BODY if n % 7 else BODY[:60]}", "source": f"s{n}", "kind": "prose"}
        for n in range(60)
    ]
    (folder / "prose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ReaderArguments(
        reader_name_or_path=base_folder, corpus=str(folder), corpus_tasks=["title"], texts_per_kind=2, document_characters=100,
        compressors=["random_words"], output_dir=str(tmp_path / "out"), use_cpu=True, count_texts=5,
    )  # fmt: skip
    benchmark = ReaderBenchmark(args)
    benchmark.load()
    assert list(benchmark.tasks) == ["title"] and len(benchmark.tasks["title"]) == 2
