"""Real questions to learn from: which are taken, which stretch of a context is shown, and that a run learns from them."""

import json
import random

import numpy as np
import pytest

from tests.conftest import make_gpt2
from tokforget.models.word_features import QUESTION
from tokforget.readers.language_model import Reader
from tokforget.readers.questions import Question
from tokforget.readers.whole_texts import questions_beneath
from tokforget.readers.word_counts import WordCounts
from tokforget.training.reader_arguments import ReaderPolicyArguments, ReaderPolicyConfig
from tokforget.training.reader_questions import KIND, question_text, read_questions
from tokforget.training.reader_run import fresh_policy, train_reader_policy
from tokforget.training.reader_targets import target_scores
from tokforget.training.reader_texts import ReaderTexts


CONTEXT = "The harbour of Nordby was rebuilt in 1923 by Anna Lund. It rained all day. Ships of the line call there on Monday."
TABLE = "Name,Year\nVester,1874\nNordby,1902\n\nQ: When was Nordby built?\nA: 1902\n\nQ: How many are there?\nA: 2\n"


@pytest.fixture(scope="module")
def made(tokenizer, texts) -> ReaderTexts:
    reader = Reader(make_gpt2(len(tokenizer), n_positions=256), tokenizer)
    model = fresh_policy(reader, hidden_size=16, ngram_buckets=256)
    model.policy.words.fit([CONTEXT, *texts])
    return ReaderTexts(tokenizer, model.policy.words.rarity(), WordCounts.of_texts([*texts, CONTEXT]), 4)


def squad(path, *pairs, context=CONTEXT) -> str:
    rows = [{"context": context, "question": question, "answers": [answer]} for question, answer in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_taken_are_questions_whose_answer_stands_in_the_context_once(tmp_path):
    file = squad(tmp_path / "a.jsonl", ("Who?", "Anna Lund"), ("Where?", "Paris"), ("What?", "of"), ("Cut?", "ordby"))
    assert [question.question for question in read_questions([file], [], 0, 0)] == ["Who?"]
    with pytest.raises(ValueError, match="stands in its context once; .* Pass a file"):
        read_questions([squad(tmp_path / "b.jsonl", ("Where?", "Paris"))], [], 0, 0)
    documents = [("qa", TABLE), ("news", CONTEXT)]
    assert [one.question for _, one in questions_beneath(documents)] == [
        "When was Nordby built?",
        "How many are there?",
    ]
    assert [one.answers[0] for one in read_questions([], documents, 5, 0)] == ["1902"]
    assert not read_questions([], documents, 0, 0)
    many = [("qa", TABLE.replace("1902", str(year))) for year in range(1800, 1850)]
    assert len(read_questions([], many, 7, 0)) == 7
    assert read_questions([], many, 7, 0) == read_questions([], many, 7, 0) != read_questions([], many, 7, 1)


def test_the_stretch_of_a_long_context_holds_the_answer_whole(made):
    words = [f"word{number}" for number in range(300)]
    starts = set()
    for place in (0, 1, 150, 298, 299):
        context = " ".join([*words[:place], "the answer", *words[place:]])
        for seed in range(6):
            one = question_text(made, Question(context, "What?", ("the answer",)), 200, seed)
            asked = one.asked[0]
            assert one.text[asked.start : asked.end] == "the answer" and asked.target == " the answer"
            assert 100 <= len(one.text) <= 200 and one.text in context
            assert all(word in ["the", "answer", *words] for word in one.text.split())
            starts.add(context.index(one.text) - context.index("the answer"))
    assert len(starts) > 5
    short = question_text(made, Question(CONTEXT, "Who?", ("Anna Lund",)), 200, 0)
    assert short.text == CONTEXT and short.question == "Who?" and short.kind == KIND
    assert short.asked[0].suffix == "\nQuestion: Who?\nAnswer:"


def test_an_answer_longer_than_a_stretch_is_kept_whole(made):
    answer = " ".join(["long"] * 60)
    one = question_text(made, Question(f"Before it. {answer} After it.", "What?", (answer,)), 100, 0)
    assert answer in one.text


def test_the_policy_is_told_the_question_and_taught_where_its_answer_stands(made):
    one = question_text(made, Question(CONTEXT, "Who rebuilt the harbour?", ("Anna Lund",)), 200, 0)
    assert one.features[:, -len(QUESTION) :].any()
    target = target_scores(one, np.ones(len(one.input_ids)))[0]
    home = one.sentences == one.sentences[np.searchsorted(one.pieces.chars, one.asked[0].start, side="right") - 1]
    assert target[home].mean() > target[~home].mean() + 3


def test_a_run_learns_from_questions(tokenizer, tmp_path):
    base_folder = str(tmp_path / "base")
    make_gpt2(len(tokenizer), n_positions=256).save_pretrained(base_folder)
    tokenizer.save_pretrained(base_folder)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [
        {"text": f"{CONTEXT} Again {random.Random(n).random()}. {CONTEXT}", "source": f"{n}.txt"} for n in range(40)
    ]
    (corpus / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ReaderPolicyArguments(
        reader_name_or_path=base_folder, corpus=str(corpus), texts_per_kind=6, text_characters=[120], count_texts=10, warm_start_texts=4,
        warm_start_steps=3, target_texts=2, natural_texts=0, policy_hidden_size=16, ngram_buckets=256,
        questions=[squad(tmp_path / "q.jsonl", ("Who?", "Anna Lund"), ("When?", "1923"))],
    )  # fmt: skip
    args = ReaderPolicyConfig(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, num_masks=2, lookups_per_text=2, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = train_reader_policy(settings, args)
    drawn = [trainer.train_dataset[place] for place in range(len(trainer.train_dataset))]
    assert [text.question for text in drawn if text.kind == KIND] in (["Who?", "When?"], ["When?", "Who?"])
    assert len(drawn) > 2
