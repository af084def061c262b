"""Facts of words by hand, and what must not change them."""

from itertools import pairwise

import numpy as np
import pytest

from tokforget.models.word_features import (
    FORM,
    NUM_FEATURES,
    PLACE,
    QUESTION,
    TEXT,
    near_question,
    token_features,
    word_features,
)
from tokforget.models.word_table import WordTable


TEXTS = ["The cat saw the old house.", "The dog saw the red house.", "The bird left the town of Nordby in 1874."] * 5
NAMES = (*FORM, *PLACE, *TEXT, *QUESTION)


@pytest.fixture(scope="module")
def rarity():
    table = WordTable()
    table.fit(TEXTS)
    return table.rarity()


def column(features, name):
    return features[:, NAMES.index(name)]


def test_a_word_of_every_piece_has_no_worth_and_an_unseen_one_has_the_most(rarity):
    assert rarity("The") == 0.0 and rarity("zygote") == 1.0
    assert 0.0 < rarity("house") < rarity("Nordby")
    assert rarity("houses,") == rarity("house")  # by stem


def test_form_and_place_of_words(rarity):
    text = "It is not here. Anna left in 1874."
    edges, features = word_features(text, rarity)
    assert [text[a:b] for a, b in pairwise(edges)] == [
        "It",
        " is",
        " not",
        " here.",
        " Anna",
        " left",
        " in",
        " 1874.",
    ]
    assert features.shape == (8, NUM_FEATURES) and features.dtype == np.float32
    assert column(features, "stop_word").tolist() == [1, 1, 0, 1, 0, 0, 1, 0]
    assert column(features, "negation").tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert column(features, "digit").tolist() == [0] * 7 + [1]
    assert column(features, "ends_sentence").tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert column(features, "name").tolist() == [0] * 7 + [1]  # a capital at a sentence's begin says nothing
    assert column(features, "in_sentence").tolist() == [0, 0.25, 0.5, 0.75] * 2
    assert not features[:, -len(QUESTION) :].any()


def test_a_short_word_after_an_empty_line_belongs_to_the_sentence_after_it(rarity):
    _, features = word_features("It rains.\n\n\nA cat\n\n- b c", rarity)
    assert column(features, "sentence_first").tolist() == [1, 0, 1, 0, 1, 0, 0]


def test_the_sentence_of_the_answer_is_nearest_to_the_question(rarity):
    text = "The harbour was rebuilt. The bridge was built by Louis Favre in 1874. Trams cross it."
    _, features = word_features(text, rarity, "When were the bridges built?")
    best = column(features, "nearly_best")
    assert [word for word, value in zip(text.split(), best) if value == 1] == [
        "The",
        "bridge",
        "was",
        "built",
        "by",
        "Louis",
        "Favre",
        "in",
        "1874.",
    ]
    matched = [word for word, m in zip(text.split(), column(features, "stem_match")) if m > 0]
    assert {"bridge", "built"} <= set(matched)  # "bridges" by its root
    assert column(features, "match")[7] > 0 == column(features, "match")[5]
    assert column(features, "number_in_asked").nonzero()[0].tolist() == [text.split().index("1874.")]
    after = column(features, "after_match")
    assert after[6:8].min() > after[0]


def test_a_question_that_stands_in_the_text_is_no_answer_to_itself(rarity):
    text = "The bridge was built by Favre.\n\nWho built the bridge?"
    _, features = word_features(text, rarity, "Who built the bridge?")
    assert column(features, "nearly_best").tolist() == [1] * 6 + [0] * 4


def test_a_sentence_that_shares_nearly_as_much_with_the_question_is_nearly_the_best(rarity):
    text = "Anna Weber painted the old bridge. Anna Weber sold a bridge. Anna slept. Trams cross it."
    _, features = word_features(text, rarity, "Which old bridge did Anna Weber paint?")
    overlap, best = (column(features, name)[[0, 6, 11, 13]] for name in ("overlap", "nearly_best"))
    assert overlap[0] > overlap[1] > overlap[2] > overlap[3] == 0
    assert best[0] == 1 > best[1] > best[2] > best[3] and best[2] < 0.1


def test_a_sentence_that_begins_with_the_words_asked_for_goes_on_with_the_answer(rarity):
    near = shown_by("The bridge over the Arve was built by Favre. Trams cross the Arve.", rarity, "The bridge over the Arve was built by", "nearly_best")  # fmt: skip
    assert near == "The bridge over the Arve was built by Favre."


def shown_by(text, rarity, question, name, least=1.0):
    _, features = word_features(text, rarity, question)
    return " ".join(word for word, value in zip(text.split(), column(features, name)) if value >= least)


def test_what_stands_beneath_a_heading_of_the_question_is_near_to_it(rarity):
    text = "# Handbook\n\n## Lost devices\n\nTell the office. It locks them.\n\n## Visitors\n\nTell the desk."
    near = shown_by(text, rarity, "What happens to lost devices?", "nearly_best")
    assert near == "## Lost devices Tell the office. It locks them."
    # A sentence beneath that has more of the question's words is nearer than the others.
    _, features = word_features(text, rarity, "Who locks lost devices?")
    near = dict(zip(text.split(), column(features, "nearly_best")))
    assert near["locks"] == 1 > near["office."] > near["desk."] == 0


def test_a_sentence_among_those_that_share_much_is_nearer_than_one_alone(rarity):
    text = "The tram came late.\n\nAnna Weber painted for years. The bridge was hers. It sold."
    _, features = word_features(text, rarity, "Which bridge or tram did Anna Weber paint?")
    near = dict(zip(text.split(), column(features, "nearly_best")))
    assert near["painted"] == 1 > near["hers."] > near["sold."] > near["came"] > 0


def test_an_answer_after_its_question_is_near_to_it(rarity):
    text = "Who built the bridge? Favre did.\n\nThe tram came in 1902."
    assert shown_by(text, rarity, "Who built the bridge?", "nearly_best") == "Favre did."
    text = "Q: Who built the bridge over the Arve?\nA: Favre.\n\nQ: Who built the tram?\nA: Weber."
    near = shown_by(text, rarity, "Who built the Arve bridge?", "nearly_best")
    assert "Favre." in near and "Weber." not in near


@pytest.mark.parametrize(
    "question, word, matches",
    [
        ("What caused it?", "cause", True),
        ("Who decided?", "deciding", True),
        ("Which orders failed?", "/v1/orders", True),
        ("What is the maximum of tokens?", "maxTokens", True),
        ("Where is train_policy.py?", "policy", True),
        ("Who is there?", "station", False),
        ("What is the state?", "station", False),
        ("How many buses?", "business", False),
    ],
)
def test_words_match_by_roots_and_by_parts_of_names(rarity, question, word, matches):
    _, features = word_features(f"Say {word} now", rarity, question)
    assert bool(column(features, "stem_match")[1] > 0) == matches


def test_escapes_of_json_are_read_as_their_characters(rarity):
    plain, escaped = '"city": "Vardø 🐻",\n"mayor": "M7"', '"city": "Vard\\u00f8 \\ud83d\\udc3b",\n"mayor": "M7"'
    (_, expected), (edges, found) = (word_features(text, rarity, "Vardø?") for text in (plain, escaped))
    assert np.array_equal(found, expected) and column(found, "match").any()
    assert escaped[edges[1] : edges[2]] == ' "Vard\\u00f8'
    for text in ("\\u٠١٢٣", "\\u12", "\\ud83d", "\\ude00\\ud83d", "C:\\users"):
        assert np.isfinite(word_features(text, rarity, text)[1]).all()


def test_a_text_is_near_a_question_if_it_has_a_word_of_it_that_is_no_stop_word(rarity):
    text = "The harbour is old. The trams are new."
    near = near_question(word_features(text, rarity, "Who built the harbour?")[1])
    assert near[:4].tolist() == [1] * 4 and (near[4:] < 1).all()
    assert near_question(word_features(text, rarity, "Who is the king?")[1]) is None
    assert near_question(word_features(text, rarity)[1]) is None


def test_tokens_take_the_features_of_their_word(rarity):
    text = "Nordby  is old."
    features = token_features(text, np.array([[0, 3], [3, 6], [6, 7], [7, 10], [10, 14], [14, 15]]), rarity)
    _, words = word_features(text, rarity)
    assert np.array_equal(features, words[[0, 0, 1, 1, 2, 2]])


@pytest.mark.parametrize("text", ["", "   ", "\n", "。", "a", "\ud800", "{}" * 30])
def test_any_text_has_features_that_are_finite(rarity, text):
    for question in (None, "", "Who?", "\ud800 ?"):
        edges, features = word_features(text, rarity, question)
        assert len(edges) == len(features) + 1 and np.isfinite(features).all()


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="at least one training text"):
        WordTable().fit([])
