"""ROUGE in the scripts of the world."""

import pytest
from rouge_score.rouge_scorer import RougeScorer

from tokforget.readers.words import ROUGE_TYPES, rouge_scores


SAME = [
    "今日は良い天気です",
    "Это хороший день",
    "สวัสดีครับ",
    "नमस्ते दुनिया",
    "the 猫 sat",
    "مرحبا بالعالم",
    "안녕하세요 세계",
    "Καλημέρα",
]


@pytest.mark.parametrize("text", SAME)
def test_equal_texts_have_everything_in_common(text):
    (scores,) = rouge_scores([text], [text], ["rouge1", "rougeL", "rougeLsum"])
    assert {kind: score.fmeasure for kind, score in scores.items()} == {"rouge1": 1, "rougeL": 1, "rougeLsum": 1}
    (apart,) = rouge_scores([text], ["xyz"])
    assert apart["rouge1"].fmeasure == 0


def test_numbers_by_hand():
    (chinese,) = rouge_scores(
        ["我喜欢猫"], ["我喜欢狗"], ["rouge1", "rouge2"]
    )  # three of four characters, two of three pairs
    assert (chinese["rouge1"].fmeasure, chinese["rouge2"].fmeasure) == (0.75, pytest.approx(2 / 3))
    (russian,) = rouge_scores(["Это текст"], ["это другой текст"], ["rouge1"])
    assert (russian["rouge1"].precision, russian["rouge1"].recall) == (1, pytest.approx(2 / 3))
    (several,) = rouge_scores(["猫"], [["狗", "猫"]], ["rouge1"])
    assert several["rouge1"].fmeasure == 1


@pytest.mark.parametrize("stem", [False, True])
def test_latin_texts_are_scored_as_the_package_scores_them(stem):
    pairs = [
        ("The cats were running.", "a cat runs, runs"),
        ("größe und café", "große und cafe"),
        ("", "x"),
        ("don't 3.5", "do not 3,5"),
    ]
    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=stem)
    assert rouge_scores(*zip(*pairs), use_stemmer=stem) == [scorer.score(reference, text) for text, reference in pairs]
    (mixed,) = rouge_scores(["the cats 猫"], ["a cat 猫"], ["rouge1"], use_stemmer=stem)
    assert mixed["rouge1"].fmeasure == pytest.approx(2 / 3 if stem else 1 / 3)
