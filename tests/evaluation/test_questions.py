"""What a reader does with compressed texts: questions read from files, answers scored by hand, ends of the scales."""

import json

import pytest
import torch

from tests.conftest import make_gpt2
from tokforget.evaluation.baselines import Head, Position
from tokforget.evaluation.continuations import Continuations
from tokforget.evaluation.questions import (
    FULL,
    NONE,
    Question,
    Reading,
    answer_f1,
    compress_contexts,
    exact_match,
    load_questions,
    normalise_answer,
    read_all,
)
from tokforget.evaluation.words import encode
from tokforget.masking import keep_count


@pytest.fixture(scope="module")
def reader(tokenizer):
    return make_gpt2(len(tokenizer), n_positions=128).eval()


# -- files -------------------------------------------------------------------------------------------------------------
SQUAD = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "The cat sat.",
                    "qas": [
                        {"id": "1", "question": "Who sat?", "answers": [{"text": "The cat", "answer_start": 0}] * 2},
                        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ]
}
FLAT = {"context": "A dog ran.", "question": "Who ran?", "answers": {"text": ["A dog", "dog"], "answer_start": [0, 2]}}
BOOLQ = {"passage": "It rained.", "question": "did it rain", "answer": True}
CHOICE = {"context": "It rained.", "question": "What?", "options": ["sun", "rain"]}
ARC = {"context": "c", "question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"}
LONGBENCH = {"context": "long", "input": "Which?", "answers": ["one", "1"]}
PROMPT = {
    "query": "Passage: It rained.\nAll day.\nQuestion: Did it rain?\nAnswer:", "choices": ["no", "yes"], "gold": 1,
}  # fmt: skip
SAVED = {"origin_prompt": "Long text.\n\nQuestion: Who won?\nAnswer:", "prediction": "Bob", "gold": ["Anna", "she"]}

CHAT = [
    {"role": "user", "content": "I am Ada."},
    {"role": "assistant", "content": [{"type": "text", "text": "Hello Ada."}, {"type": "image"}]},
    {"role": "user", "content": "Who am I?"},
    {"role": "assistant", "content": "Ada"},
]
SAID = "user: I am Ada.\nassistant: Hello Ada."


@pytest.mark.parametrize(
    "content, expected",
    [
        (SQUAD, [Question("The cat sat.", "Who sat?", ("The cat",))]),
        ([FLAT], [Question("A dog ran.", "Who ran?", ("A dog", "dog"))]),
        ([BOOLQ], [Question("It rained.", "did it rain", ("yes",), ("no", "yes"))]),
        ([CHOICE | {"answer": 1}], [Question("It rained.", "What?", ("rain",), ("sun", "rain"))]),
        ([CHOICE | {"answer": "B"}], [Question("It rained.", "What?", ("rain",), ("sun", "rain"))]),
        ([CHOICE | {"answer": "sun"}], [Question("It rained.", "What?", ("sun",), ("sun", "rain"))]),
        ([ARC], [Question("c", "q", ("y",), ("x", "y"))]),
        ([PROMPT], [Question("It rained.\nAll day.", "Did it rain?", ("yes",), ("no", "yes"))]),
        ({"0": SAVED}, [Question("Long text.", "Who won?", ("Anna", "she"))]),
        ([LONGBENCH], [Question("long", "Which?", ("one", "1"))]),
        ([{"messages": CHAT}], [Question(SAID, "Who am I?", ("Ada",))]),
        ([{"messages": CHAT[:3], "answer": "Ada"}], [Question(SAID, "Who am I?", ("Ada",))]),
        (
            [{"messages": CHAT[:2], "question": "Who?", "answers": ["Ada", "A."]}],
            [Question(SAID, "Who?", ("Ada", "A."))],
        ),
    ],
)
def test_questions_of_every_form(content, expected, tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps(content))
    assert load_questions(str(path)) == expected


def test_questions_line_by_line(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(BOOLQ) + "\n\n" + json.dumps(LONGBENCH) + "\n")
    assert [q.question for q in load_questions(str(path))] == ["did it rain", "Which?"]


@pytest.mark.parametrize(
    "content, message",
    [
        (
            [{"question": "q", "answer": "a"}],
            r"Record 0 of .* has the keys \['answer', 'question'\]; needed are a context",
        ),
        (
            [{"messages": CHAT[:1]}],
            r"Record 0 of .*: `messages` must be a list of `role` and `content`, with a question",
        ),
        ([{"messages": "hello"}], "`messages` must be a list"),
        ([CHOICE | {"answer": 5}], r"the answer 5 names none of the options \['sun', 'rain'\]"),
        ([LONGBENCH | {"answers": []}], "holds no question with an answer"),
    ],
)
def test_questions_that_cannot_be_read_are_named(content, message, tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_questions(str(path))


def test_a_missing_file_of_questions_is_named():
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_questions("nowhere/questions.json")
    with pytest.raises(ValueError, match=r"could not be loaded from the Hub \(split 'validation'\)"):
        load_questions("nobody/no-such-questions")


# -- answers by hand -----------------------------------------------------------------------------------------------------
def test_exact_match_and_f1_by_hand():
    assert normalise_answer("The  Cat, an owl!") == "cat owl"
    assert exact_match("the cat.", ["A dog", "Cat"]) == 1.0
    assert exact_match("cats", ["cat"]) == 0.0
    # "red cat" against "cat sat": one word in common, precision and recall 1/2; against "the red cat": all
    assert answer_f1("red cat", ["cat sat"]) == pytest.approx(0.5)
    assert answer_f1("red cat", ["cat sat", "the red cat"]) == 1.0
    assert answer_f1("", ["cat"]) == 0.0


def test_answers_are_those_of_the_model(reader, tokenizer):
    """Generation, likelihood and choice against plain calls of the model, one question at a time."""
    questions = [
        Question("the cat sat on the mat", "who sat", ("the cat",), ("the cat", "a dog")),
        Question("it rained", "what", ("rain",), ("rain", "the red house")),
    ]
    reading = Reading(questions, reader, tokenizer, max_questions=10, max_new_tokens=4, batch_size=2)
    contexts = [q.context for q in questions]
    prompts = [f"{c}\n\nQuestion: {q.question}\nAnswer:" for c, q in zip(contexts, questions)]
    row = reading.row(contexts)
    start = tokenizer.bos_token_id
    matches, bits, chosen = [], [], []
    for prompt, question in zip(prompts, questions):
        ids = torch.tensor([[start, *encode([prompt], tokenizer)[0]]])
        generated = []
        for _ in range(4):
            token = int(
                reader(torch.cat([ids, torch.tensor([generated], dtype=torch.long)], 1)).logits[0, -1].argmax()
            )
            if token == tokenizer.eos_token_id:
                break
            generated.append(token)
        text = tokenizer.decode(generated).strip().split("\n")[0].strip()
        matches.append(exact_match(text, question.answers))
        cost = {}
        for option in question.options:
            answer = torch.tensor([encode([" " + option], tokenizer)[0]])
            log_probs = reader(torch.cat([ids, answer], 1)).logits.log_softmax(-1)[0, ids.shape[1] - 1 : -1]
            cost[option] = -float(log_probs.gather(1, answer.T).sum()) / torch.log(torch.tensor(2.0)).item()
        bits.append(cost[question.answers[0]])
        chosen.append(min(cost, key=cost.get) in question.answers)
    assert row["exact_match"] == pytest.approx(sum(matches) / 2)
    assert row["answer_bits"] == pytest.approx(sum(bits) / 2, rel=1e-4)
    assert row["accuracy"] == pytest.approx(sum(chosen) / 2)
    assert row["questions"] == 2 and row["left_out_too_long"] == 0


def test_questions_too_long_for_the_reader_are_left_out_for_all_and_counted(reader, tokenizer):
    questions = [Question("the cat " * 80, "who", ("cat",)), Question("the cat", "who", ("cat",))]
    reading = Reading(questions, reader, tokenizer, max_questions=10)
    assert reading.questions == questions[1:] and reading.too_long == 1


def test_rows_of_a_task_hold_both_ends_and_every_scorer(reader, tokenizer):
    questions = [Question("the cat sat on the mat. a dog ran to the red house", "who", ("cat",))]
    reading = Reading(questions, reader, tokenizer, max_questions=1, max_new_tokens=2)

    def compress(scorer, contexts, rate):
        return compress_contexts(scorer, contexts, tokenizer, rate, max_length=16, pad=0)

    rows = read_all(reading, "task", [Head(), Position()], [0.5], compress)
    assert [(row["scorer"], row["rate"]) for row in rows] == [
        (FULL, 1.0),
        (NONE, 0.0),
        ("head", 0.5),
        ("position", 0.5),
    ]
    assert rows[1]["context_tokens"] == 0
    assert rows[2]["context_tokens"] < rows[0]["context_tokens"]


# -- compressed contexts -------------------------------------------------------------------------------------------------
def test_contexts_of_any_length_keep_the_budget_of_every_block(tokenizer):
    contexts = ["the cat sat on the mat. " * 9, "a", "", "it rained all day long"]
    compressed = compress_contexts(Head(), contexts, tokenizer, 0.5, max_length=16, pad=0)
    assert compressed[2] == ""
    for context, text in zip(contexts[:2], compressed):
        ids = encode([context], tokenizer)[0]
        blocks = [ids[at : at + 16] for at in range(0, len(ids), 16)]
        kept = [block[: int(keep_count(torch.tensor([len(block)]), 0.5))] for block in blocks]
        assert text == tokenizer.decode([i for block in kept for i in block])


def test_retention_is_one_for_the_full_and_zero_for_no_context(reader, tokenizer, texts):
    """A reader fitted for a moment on these texts, so that context is worth something to it."""
    model = make_gpt2(len(tokenizer), seed=3, n_positions=128)
    ids = [torch.tensor([[tokenizer.bos_token_id, *encode([text], tokenizer)[0]]])[:, :60] for text in texts[:8]]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        row = ids[step % 8]
        model(row, labels=row).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    contexts = [tokenizer.decode(row[0, 1:31].tolist()) for row in ids]
    following = [tokenizer.decode(row[0, 31:41].tolist()) for row in ids]
    continuations = Continuations(model.eval(), tokenizer, contexts, following)
    full, none = continuations.row(contexts), continuations.row([""] * 8)
    assert full["retention"] == pytest.approx(1.0) and none["retention"] == pytest.approx(0.0)
    half = continuations.row([context[: len(context) // 2] for context in contexts])
    assert half["continuation_bits_full"] < half["continuation_bits"]
