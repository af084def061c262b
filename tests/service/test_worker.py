"""Answers: the same alone and together, and one request's error is its own."""

import json

import pytest


pytest.importorskip("pydantic")

from tokforget.compression.compressor import Compressor
from tokforget.service.app import _check, batch_key
from tokforget.service.schemas import CompressBody, ExplainBody, MessagesBody, RestoreBody, parse_body
from tokforget.service.settings import Settings
from tokforget.service.worker import Engine


# What a budget does not reach is said in the answer, and warned of where a process does not switch that off.
pytestmark = pytest.mark.filterwarnings("ignore::tokforget.compression.compressor.OverBudgetWarning")
TEXTS = [
    "The bridge over the Arve was built in 1874 by the engineer Louis Favre. It carried a tram line until 1956.",
    "Since the flood of 1902 the pillars stand on concrete. Today some 14,000 cars cross it every day.",
    '{"name": "bridge", "built": 1874, "notes": ["of stone", "not open to lorries above 7.5 t"]}',
    "",
    "One lone \ud800 surrogate, and a word behind it that may go.",
    "No. " * 400,
]
LETTER = "Tickets are sold in the hall by the quay, and dogs travel for nothing. The last tram left at 21:10. " * 12
CHAT = [
    {"role": "system", "content": "You answer from what your tools return."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "read", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": LETTER},
    {"role": "user", "content": "When did the last tram leave?"},
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(None, None, None, None)


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained()


def job(kind=CompressBody, **fields) -> dict:
    payload = parse_body(kind, json.dumps(fields).encode(), "/v1/x")
    _check(payload, Settings())
    return payload


def read(outcome) -> dict:
    return json.loads(outcome.body)


@pytest.mark.parametrize("options", [{"rate": 0.4}, {"unit": "auto", "rate": 0.5}, {"quality": 0.7}, {"threshold": 0.5},
                                     {"target_tokens": 9, "protect": ["numbers"], "on_impossible": "warn"}])  # fmt: skip
def test_requests_of_one_batch_have_the_answers_of_single_calls(engine, compressor, options):
    questions = [None, "How many cars cross it?", None, "what?", None, "no?"]
    jobs = [job(texts=text, question=question, **options) for text, question in zip(TEXTS, questions)]
    jobs.append(job(texts=TEXTS[:2], question=[None, "When?"], details=True, **options))
    assert len({batch_key("compress", one) for one in jobs}) == 1 and batch_key("compress", jobs[0]) is not None
    answers = engine.answer("compress", jobs)
    assert [outcome.status for outcome in answers] == [200] * len(jobs)
    for one, outcome in zip(jobs, answers):
        alone = engine.answer("compress", [one])[0]
        assert without_time(read(outcome)) == without_time(read(alone))
    for text, question, outcome in zip(TEXTS, questions, answers):
        assert read(outcome)["text"] == compressor.compress(text, question=question, **options).text
    assert sum(outcome.tokens_in for outcome in answers[:2]) == answers[-1].tokens_in


def without_time(fields: dict) -> dict:
    rows = fields.get("results", [fields])
    return {"rows": [{name: value for name, value in row.items() if name != "seconds"} for row in rows]}


def test_an_error_of_one_request_is_not_its_neighbours(engine):
    options = {"target_tokens": 4, "protect": ["numbers"]}
    jobs = [job(texts=text, **options) for text in ("a b c d e f", "1874 and 1902 and 1956 and 21:10", "g h i j k l")]
    first, second, third = engine.answer("compress", jobs)
    assert (first.status, second.status, third.status) == (200, 422, 200)
    assert b"is protected takes" in second.body and b"\n" not in second.body
    assert read(first)["compressed_tokens"] <= 4 and read(third)["compressed_tokens"] <= 4


def test_what_may_go_together():
    assert batch_key("compress", job(texts="a", rate=0.5)) == batch_key(
        "compress", job(texts=["b"], rate=0.5, details=True)
    )
    assert batch_key("compress", job(texts="a", rate=0.5)) != batch_key("compress", job(texts="a", rate=0.6))
    alone = [
        job(texts="a", budget="corpus"),
        job(texts="abc", protect=[[0, 1]]),
        job(texts=["a"], question=["b", "c"]),
    ]
    assert [batch_key("compress", one) for one in alone] == [None] * 3
    assert batch_key("explain", job(ExplainBody, text="a")) is None


def test_spans_are_those_of_python(engine, compressor):
    text = TEXTS[0]
    answer = read(engine.answer("compress", [job(texts=text, rate=0.6, protect=[[4, 24], "numbers"])])[0])
    assert answer["text"] == compressor.compress(text, rate=0.6, protect=[(4, 24), "numbers"]).text
    assert "bridge over the Arve" in answer["text"]


def test_an_explanation_is_the_whole_text_in_pieces(engine, compressor):
    answer = read(engine.answer("explain", [job(ExplainBody, text=TEXTS[0], rate=0.5)])[0])
    assert "".join(piece for piece, _, _ in answer["pieces"]) == TEXTS[0]
    shown = list(compressor.explain(TEXTS[0], rate=0.5))
    assert [kept for _, _, kept in answer["pieces"]] == [kept for _, _, kept in shown]
    assert answer["text"] == compressor.compress(TEXTS[0], rate=0.5).text


def test_messages_are_those_of_python_and_memory_is_the_clients(engine, compressor):
    answer = read(engine.answer("compress_messages", [job(MessagesBody, messages=CHAT, rate=0.5, min_tokens=0)])[0])
    expected = compressor.compress_messages(CHAT, rate=0.5, min_tokens=0, memory={})
    assert answer["messages"] == expected.messages and answer["memory"] is None
    assert answer["compressed_tokens"] == expected.compressed_tokens < expected.original_tokens
    first = read(
        engine.answer("compress_messages", [job(MessagesBody, messages=CHAT, rate=0.5, min_tokens=0, memory={})])[0]
    )
    again = job(MessagesBody, messages=first["messages"], rate=0.5, min_tokens=0, memory=first["memory"])
    assert read(engine.answer("compress_messages", [again])[0])["messages"] == first["messages"]
    forgotten = job(MessagesBody, messages=first["messages"], rate=0.5, min_tokens=0)
    assert (
        read(engine.answer("compress_messages", [forgotten])[0])["compressed_tokens"] < first["compressed_tokens"]
    ), "nothing is remembered"


def test_messages_above_their_budget_say_so(engine):
    asked = job(MessagesBody, messages=CHAT, target_tokens=20, on_impossible="warn")
    answer = read(engine.answer("compress_messages", [asked])[0])
    assert answer["shortfall"] < 0 and "The smallest feasible budget is" in answer["unreached"]
    refused = engine.answer("compress_messages", [job(MessagesBody, messages=CHAT, target_tokens=20)])[0]
    assert refused.status == 422 and b"The smallest feasible budget is" in refused.body


def test_a_fault_is_told_without_its_text(engine, monkeypatch):
    def fails(*args, **options):
        raise KeyError("a secret of the text")

    monkeypatch.setattr(engine.compressor, "compress", fails)
    outcome = engine.answer("compress", [job(texts="a")])[0]
    assert outcome.status == 500 and b"KeyError in test_worker.py" in outcome.body
    assert b"secret" not in outcome.body and "secret" not in outcome.fault and outcome.fault.startswith("KeyError in")


def test_an_error_of_a_library_is_a_fault_and_not_the_users(engine, monkeypatch):
    monkeypatch.setattr(engine.compressor, "compress", lambda *args, **options: int("a secret"))
    outcome = engine.answer("compress", [job(texts="a")])[0]
    assert outcome.status == 500 and b"secret" not in outcome.body


@pytest.fixture(scope="module")
def restoring() -> Engine:
    return Engine("embedded", None, None, "embedded")


def test_what_was_compressed_is_restored(restoring):
    full = read(
        restoring.answer(
            "compress", [job(texts="The cat sat on the mat and looked at the dog.", rate=0.5, details=True)]
        )[0]
    )
    single = read(restoring.answer("restore", [job(RestoreBody, compressed=full)])[0])
    assert (
        single["is_restoration"]
        and len(single["input_ids"]) == full["original_tokens"]
        and "not the original" in single["label"]
    )
    several = read(restoring.answer("restore", [job(RestoreBody, compressed=[full, full], abstain_below=1.0)])[0])
    assert [row["abstained"] > 0 for row in several["results"]] == [True, True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept_indices": [0]}, "`kept_indices` and `kept_ids` differ in length"),
        ({"kept_spans": [[0, 99999]]}, "`kept_spans`"),
        ({"tokenizer": "0"}, "compressed with another model's tokenizer"),
        ({"scores": None}, "`compressed`"),
        ({"text": 5}, "damaged: `text` is a int"),
        ({"notes": [1]}, "`compressed`"),
        ({"kept_ids": [-1] * 6}, "`compressed`"),
    ],
)
def test_a_damaged_result_is_refused_and_named(restoring, change, said):
    full = read(
        restoring.answer(
            "compress", [job(texts="The cat sat on the mat and looked at the dog.", rate=0.5, details=True)]
        )[0]
    )
    outcome = restoring.answer("restore", [job(RestoreBody, compressed=full | change)])[0]
    assert outcome.status == 422 and said in outcome.body.decode(), outcome.body
