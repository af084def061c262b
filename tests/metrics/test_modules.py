"""The metric modules against hand-computed values, in any batches, in two processes and combined; their cards run."""

import doctest
import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import evaluate
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tests.conftest import make_gpt2
from tokforget import scoring
from tokforget.metrics import metric_path
from tokforget.models.measuring import summarise
from tokforget.readers.language_model import continuation_nll
from tokforget.readers.words import (
    aligned,
    count_restored_words,
    decode_with_spans,
    find_names,
    find_words,
    lost_by_mask,
    lost_by_text,
    rouge_scores,
)


ROOT = Path(__file__).parents[2]
NAMES = [
    "bits_lost",
    "cache_cost",
    "compression",
    "context_retention",
    "prefix_churn",
    "reader_retention",
    "restoration",
    "rouge",
]
PRICES = {"input_price": 3.0, "cached_read_price": 0.3, "cache_write_price": 3.75, "min_cached_tokens": 2}

ORIGINAL = ["In 1985 the old dog met Alice in London.", "We paid 3.5 for 12 eggs, said Bob. Paris slept."]
COMPRESSED = ["dog met in", "We paid for 12 eggs. slept"]
RESTORED = ["In 1985 the small dog met Alice in Paris.", "We paid 12 for 12 eggs, said Rob. London slept."]
# One row per text, and every column there is.
ROWS = {
    "predictions": RESTORED * 3,
    "references": ORIGINAL * 3,
    "compressed": COMPRESSED * 3,
    "input_ids": [[5, 6, 7, 8], [9, 9, 4, 0]] * 3,
    "restored_ids": [[5, 6, 1, 8], [9, 9, 9, 0]] * 3,
    "keep_mask": [[1, 0, 0, 1], [0, 1, 0, 0]] * 3,
    "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]] * 3,
    "token_nll": [[0.0, 0.1, 1.7, 0.0], [2.3, 0.0, 0.4, 99.0]] * 3,
    "nll_full": [10.1, 20.2, 30.3, 1.4, 2.5, 3.6],
    "nll_compressed": [12.7, 26.9, 31.1, 1.2, 4.4, 3.8],
    "nll_none": [20.2, 30.1, 38.9, 3.3, 4.2, 5.1],
    "num_continuation_tokens": [4, 4, 5, 1, 2, 2],
    "bits_full": [8.1, 9.2, 4.4, 12.0, 7.3, 3.3],
    "bits_compressed": [11.1, 14.0, 6.2, 15.5, 9.1, 3.9],
    "bits_none": [26.0, 28.1, 17.7, 30.2, 21.0, 19.6],
    "passage": ["a", "a", "b", "c", "c", "d"],
    "prompt_ids": [[[1, 2], [1, 2, 3]], [[5], [6, 5], [6, 5, 4]], [[7]]] * 2,
}
COLUMNS = {
    "cache_cost": ["prompt_ids"],
    "prefix_churn": ["prompt_ids"],
    "bits_lost": ["token_nll", "keep_mask", "attention_mask"],
    "compression": ["keep_mask", "attention_mask", "compressed", "references"],
    "context_retention": ["nll_full", "nll_compressed", "nll_none", "num_continuation_tokens"],
    "reader_retention": ["bits_full", "bits_compressed", "bits_none", "passage"],
    "restoration": [
        "predictions", "references", "compressed", "input_ids", "restored_ids", "keep_mask", "attention_mask",
    ],
    "rouge": ["predictions", "references"],
}  # fmt: skip


@pytest.fixture(scope="module")
def load():
    loaded = {name: evaluate.load(metric_path(name)) for name in NAMES}
    return loaded.__getitem__


def rows(name: str, where=slice(None)) -> dict:
    return {column: ROWS[column][where] for column in COLUMNS[name]}


def options(name: str, base_folder: str) -> dict:
    return {"compression": {"tokenizer": base_folder}, "cache_cost": PRICES}.get(name, {})


# -- by hand -----------------------------------------------------------------------------------------------------------
def test_compression_of_masks_comes_from_totals(load):
    result = load("compression").compute(keep_mask=[[1, 0, 0, 0], [1, 1]])
    # The mean of the rates would be 0.625, that of the ratios 2.5.
    assert result == {"compression_rate": 0.5, "compression_ratio": 2.0, "kept_tokens": 3, "tokens": 6, "texts": 2}


def test_compression_of_strings_counts_the_tokens_of_the_output(load, tokenizer, base_folder):
    kept, original = (len(tokenizer(text)["input_ids"]) for text in ("cat mat", "the cat sat on the mat"))
    for given_tokenizer in (tokenizer, base_folder, Path(base_folder)):
        result = load("compression").compute(
            compressed=["cat mat", ""], references=["the cat sat on the mat", "a"], tokenizer=given_tokenizer
        )
        assert result["reencoded_compression_rate"] == kept / (original + 1)
        assert result["reencoded_compression_ratio"] == (original + 1) / kept


def test_the_mask_and_the_string_may_disagree(load, tokenizer):
    first, second = (tokenizer(text)["input_ids"] for text in ("the", " the"))
    ids = tokenizer("the birds")["input_ids"]
    keep = [1] + [0] * (len(ids) - 2) + [1]
    string = tokenizer.decode([i for i, k in zip(ids, keep) if k])
    result = load("compression").compute(
        keep_mask=[keep], compressed=[string], references=["the birds"], tokenizer=tokenizer
    )
    assert result["kept_tokens"] == 2 and result["reencoded_tokens"] == len(ids) == result["tokens"]
    assert result["reencoded_kept_tokens"] == len(tokenizer(string)["input_ids"])
    assert len(first) + len(second) >= 2


def test_bits_lost_by_hand(load):
    expected = {"bits_lost": 1.0, "bits_per_dropped_token": 2.0, "bits_lost_total": 6.0, "mask_bits": 1.0}
    counts = {"dropped_tokens": 3, "tokens": 6, "texts": 2}
    # 7.5 belongs to a kept token, 99 to padding.
    per_token = load("bits_lost").compute(
        token_nll=[[7.5, 3.0, 0.0, 1.0], [2.0, 0.0, 99.0, 99.0]],
        keep_mask=[[1, 0, 1, 0], [0, 1, 0, 0]],
        attention_mask=[[1, 1, 1, 1], [1, 1, 0, 0]],
    )
    per_text = load("bits_lost").compute(bits=[4.0, 2.0], num_dropped=[2, 1], num_tokens=[4, 2])
    assert per_token == per_text == expected | counts
    quarter = load("bits_lost").compute(bits=[1.0], num_dropped=[3], num_tokens=[4])
    assert quarter["mask_bits"] == pytest.approx(2 - 0.75 * math.log2(3))


def test_nothing_dropped_is_nothing_lost_and_all_restored(load):
    lost = load("bits_lost").compute(token_nll=[[1.0, 2.0]], keep_mask=[[1, 1]])
    assert (lost["bits_lost"], lost["bits_per_dropped_token"], lost["mask_bits"]) == (0.0, 0.0, 0.0)
    restored = load("restoration").compute(
        restored_ids=[[1, 2]], input_ids=[[1, 2]], keep_mask=[[1, 1]],
        predictions=["A b 1"], references=["A b 1"], compressed=["A b 1"],
    )  # fmt: skip
    shares = ["exact_restored", "words_restored", "numbers_restored", "names_restored"]
    assert [restored[share] for share in shares] == [1.0] * 4
    assert restored["lost_words"] == restored["dropped_tokens"] == 0


def test_exact_restored_counts_dropped_tokens_only_as_the_evaluation_does(load):
    result = load("restoration").compute(
        restored_ids=[[5, 6, 1, 8], [9, 9, 9, 0]],
        input_ids=[[5, 6, 7, 8], [9, 9, 4, 0]],
        keep_mask=[[1, 0, 0, 1], [0, 1, 0, 0]],
        attention_mask=[[1, 1, 1, 1], [1, 1, 1, 0]],
    )
    assert result["exact_restored"] == 0.5 and result["dropped_tokens"] == 4 and result["tokens"] == 7
    measured = torch.tensor([[0.0, 1, 2, 4], [0.0, 1, 2, 3]]).double().numpy()
    assert result["exact_restored"] == summarise(measured)["exact_restored"]


def test_words_numbers_and_names_by_hand(load):
    result = load("restoration").compute(predictions=RESTORED, references=ORIGINAL, compressed=COMPRESSED)
    # Lost in the first: In 1985 the old Alice London; old and London are wrong. Lost in the second: 3.5 said Bob Paris;
    # said is right. The second 12 is no 3.5, and Paris begins a sentence, as do In and We.
    assert (result["lost_words"], result["restored_words"]) == (10, 5)
    assert (result["lost_numbers"], result["restored_numbers"]) == (2, 1)
    assert (result["lost_names"], result["restored_names"]) == (3, 1)
    assert result["words_restored"] == 0.5 and result["numbers_restored"] == 0.5
    assert result["names_restored"] == pytest.approx(1 / 3)


def test_what_was_kept_is_not_recovered():
    # One of two 12s was lost; the restored text has no more than the one that was kept.
    counts = count_restored_words("12 and 12", "12 and more", [False, False, True])
    assert (counts.lost_numbers, counts.restored_numbers) == (1, 0)
    counts = count_restored_words("12 and 12", "12 or 12, 12", [False, False, True])
    assert (counts.lost_numbers, counts.restored_numbers) == (1, 1)


def test_numbers_count_anywhere_but_words_in_their_place():
    counts = count_restored_words("from 1985 to now", "from here to now 1985", [False, True, False, False])
    assert (counts.restored_numbers, counts.restored_words) == (1, 0)


def test_words_of_ids_are_lost_with_any_of_their_tokens(load, tokenizer):
    text = "the birds fly to the unhappy Zebra in Kiel 12"
    ids = tokenizer(text)["input_ids"]
    decoded, spans = decode_with_spans(ids, tokenizer)
    assert decoded == text
    first_of_zebra = next(i for i, (start, end) in enumerate(spans) if text[start:end].strip().startswith("Z"))
    keep = [1] * len(ids)
    keep[first_of_zebra] = 0
    lost = lost_by_mask(text, keep, spans)
    assert [word for (word, _, _), gone in zip(find_words(text), lost) if gone] == ["Zebra"]
    arguments = {"input_ids": [ids], "keep_mask": [keep], "tokenizer": tokenizer}
    result = load("restoration").compute(restored_ids=[ids], **arguments)
    assert (result["lost_names"], result["restored_names"], result["words_restored"]) == (1, 1, 1.0)
    wrong = [*ids[:first_of_zebra], 5, *ids[first_of_zebra + 1 :]]
    result = load("restoration").compute(restored_ids=[wrong], **arguments)
    assert (result["lost_words"], result["restored_words"], result["restored_names"]) == (1, 0, 0)


@pytest.mark.parametrize("text", ["the café 🙂 ran", "naïve 東京 1,000"])
def test_spans_hold_their_characters_for_any_division(text, tokenizer):
    whole = tokenizer(text)["input_ids"]
    bytewise = tokenizer.convert_tokens_to_ids(
        [piece for token in whole for piece in tokenizer.convert_ids_to_tokens(token)]
    )
    for ids in (whole, bytewise):
        decoded, spans = decode_with_spans(ids, tokenizer)
        assert decoded == text and len(spans) == len(ids)
        assert all(0 <= start < end <= len(text) for start, end in spans)
        covered = {place for start, end in spans for place in range(start, end)}
        assert covered >= {place for place, character in enumerate(text) if not character.isspace()}


def test_what_is_a_word_a_number_and_a_name():
    text = "Dr. Ann-Marie O'Neill paid 1,000.50 at 12:30; I'm told \"Bonn\" is in NRW: Ok 3rd"
    words = find_words(text)
    assert [word for word, _, _ in words] == [
        "Dr", "Ann-Marie", "O'Neill", "paid", "1,000.50", "at", "12:30", "I'm", "told", "Bonn", "is", "in", "NRW",
        "Ok", "3rd",
    ]  # fmt: skip
    names = [word for (word, _, _), is_name in zip(words, find_names(text, words)) if is_name]
    assert names == ["O'Neill", "NRW"]


def longest_common(a: list, b: list) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.lists(st.sampled_from("abc"), max_size=20))
def test_alignment_is_a_longest_common_subsequence(a, b):
    common = [item for item, found in zip(a, aligned(a, b)) if found]
    rest = iter(b)
    assert all(item in rest for item in common), "not a subsequence of the other"
    assert len(common) == longest_common(a, b)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20))
def test_a_text_of_kept_words_lost_just_the_others(kept):
    original, compressed = (" ".join(w for w, k in kept if k or everything) for everything in (True, False))
    assert sum(lost_by_text(original, compressed)) == sum(not k for _, k in kept)


def test_rouge_is_rouge_score_to_the_last_digit(load, texts):
    predictions = [" ".join(text.split()[::2]) for text in texts[:8]] + ["line one\nrunning lines", ""]
    references = [*texts[:8], "line two\nruns line one", "nothing"]
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    for stem in (False, True):
        scorer = RougeScorer(kinds, use_stemmer=stem)
        expected = [scorer.score(reference, prediction) for reference, prediction in zip(references, predictions)]
        result = load("rouge").compute(
            predictions=predictions, references=references, use_stemmer=stem, use_aggregator=False, statistic="all"
        )
        for kind in kinds:
            for statistic in ("precision", "recall", "fmeasure"):
                assert result[f"{kind}_{statistic}"] == [getattr(e[kind], statistic) for e in expected]
        mean = load("rouge").compute(predictions=predictions, references=references, use_stemmer=stem)
        assert mean["rougeL"] == math.fsum(e["rougeL"].fmeasure for e in expected) / 10
    assert result["rougeLsum_fmeasure"] != result["rougeL_fmeasure"]


def test_rouge_by_hand_with_several_references_and_other_words(load):
    best = load("rouge").compute(predictions=["a b"], references=[["c d", "a b c"]], statistic="all")
    assert best["rouge1_recall"] == 2 / 3 and best["rouge1_precision"] == 1.0
    arguments = {"predictions": ["東京 です"], "references": ["東京 でした"], "rouge_types": ["rouge1"]}
    # Three characters in common, of four and of five.
    assert load("rouge").compute(**arguments) == {"rouge1": pytest.approx(2 / 3)}
    assert load("rouge").compute(**arguments, tokenize=str.split) == {"rouge1": 0.5}
    assert rouge_scores(["a"], ["a"])[0]["rougeL"].fmeasure == 1.0


def test_context_retention_by_hand(load):
    metric = load("context_retention")
    nll = {
        "nll_full": [10.0, 20.0],
        "nll_compressed": [12.0, 26.0],
        "nll_none": [20.0, 30.0],
        "num_continuation_tokens": [4, 4],
    }
    assert metric.compute(**nll) == {
        "context_retention": 0.6, "context_gain": 2.5, "perplexity_ratio": 2.0, "bits_per_token_full": 3.75,
        "bits_per_token_compressed": 4.75, "bits_per_token_none": 6.25, "tokens": 8, "texts": 2,
    }  # fmt: skip
    full, none = (
        metric.compute(**nll | {"nll_compressed": [10.0, 20.0]}),
        metric.compute(**nll | {"nll_compressed": [20.0, 30.0]}),
    )
    assert (full["context_retention"], full["perplexity_ratio"], none["context_retention"]) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("none", [30.0, 29.0])
def test_a_context_that_is_worth_nothing_has_no_retention(load, none):
    result = load("context_retention").compute(
        nll_full=[30.0], nll_compressed=[31.0], nll_none=[none], num_continuation_tokens=[5]
    )
    assert result["context_retention"] is None and result["context_gain"] == pytest.approx((none - 30) / 5)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


# -- the reader --------------------------------------------------------------------------------------------------------
def test_continuations_cost_what_a_plain_forward_says(tokenizer):
    model = make_gpt2(len(tokenizer)).train()
    contexts, continuations = ["the cat sat on", "", "a dog"], [" the mat", " the mat", " ran to the red house"]
    scores = continuation_nll(model, tokenizer, contexts, continuations, batch_size=3)
    assert model.training, "the mode it came in"
    model.eval()
    for place, (context, continuation) in enumerate(zip(contexts, continuations)):
        prefix, ids = (
            [tokenizer.bos_token_id, *tokenizer(context)["input_ids"]],
            tokenizer(continuation)["input_ids"],
        )
        log_probs = model(torch.tensor([prefix + ids])).logits[0].log_softmax(-1)
        slow = sum(-log_probs[len(prefix) - 1 + i, token].item() / math.log(2) for i, token in enumerate(ids))
        assert scores.nll[place].item() == pytest.approx(slow, rel=1e-5)
        assert scores.num_tokens[place] == len(ids)
    ids = [tokenizer(texts)["input_ids"] for texts in (contexts, continuations)]
    for batch_size in (1, 2):
        again = continuation_nll(model, tokenizer, *ids, batch_size=batch_size)
        assert torch.allclose(again.nll, scores.nll, rtol=1e-5), "neither batches nor ids for strings alter anything"


def test_a_text_that_does_not_fit_is_refused_not_cut(tokenizer):
    model = make_gpt2(len(tokenizer), n_positions=8)
    # Begin token and eight others: the last one is predicted, not read.
    assert continuation_nll(model, tokenizer, [[5] * 6], [[6, 7]]).num_tokens.tolist() == [2]
    with pytest.raises(ValueError, match="Text 1 does not fit: .* are 10 tokens, the reader takes 9"):
        continuation_nll(model, tokenizer, [[5], [5] * 7], [[6, 7]] * 2)
    with pytest.raises(ValueError, match="Continuation 0 is empty"):
        continuation_nll(model, tokenizer, ["a"], [""])
    with pytest.raises(ValueError, match="1 contexts and 2 continuations"):
        continuation_nll(model, tokenizer, ["a"], ["a", "b"])
    with pytest.raises(TypeError, match="all strings or all token ids"):
        continuation_nll(model, tokenizer, ["a", [1]], ["a", "b"])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        continuation_nll(model, tokenizer, ["a"], ["a"], batch_size=0)


def test_reader_retention_by_hand(load):
    metric = load("reader_retention")
    bits = {"bits_full": [8.0, 10.0], "bits_none": [26.0, 28.0]}
    result = metric.compute(bits_compressed=[17.0, 10.0], **bits)
    assert result["reader_retention"] == pytest.approx(27 / 36) and result["passages"] == 2
    assert metric.compute(bits_compressed=bits["bits_full"], **bits)["reader_retention"] == 1.0
    assert metric.compute(bits_compressed=bits["bits_none"], **bits)["reader_retention"] == 0.0
    worthless = metric.compute(bits_full=[5.0], bits_compressed=[4.0], bits_none=[5.0])
    assert worthless["reader_retention"] is None and worthless["interval_low"] is None


def test_reader_retention_reads_prompts_itself(load, tokenizer, base_folder):
    from tokforget.readers.language_model import Reader

    full, none, target = "the cat sat on the mat\nthe cat sat on", "\nthe cat sat on", " the mat"
    result = load("reader_retention").compute(
        prompt_full=[full], prompt_compressed=[full], prompt_none=[none], target=[target], model=base_folder
    )
    reader = Reader.from_pretrained(base_folder)
    assert result["bits_full"] == result["bits_compressed"] == pytest.approx(reader.bits([full], [target])[0])
    assert result["bits_none"] == pytest.approx(reader.bits([none], [target])[0])
    with pytest.raises(ValueError, match="pass `model`"):
        load("reader_retention").compute(
            prompt_full=[full], prompt_compressed=[full], prompt_none=[none], target=[target]
        )


def test_context_retention_reads_texts_itself(load, tokenizer, base_folder):
    texts = {
        "context": ["the cat sat", "a dog"],
        "compressed_context": ["cat", "dog"],
        "continuation": [" on", " ran"],
    }
    model = make_gpt2(len(tokenizer))
    cases = texts["context"], texts["compressed_context"], ["", ""]
    nll = [continuation_nll(model, tokenizer, case, texts["continuation"]) for case in cases]
    expected = scoring.context_retention(*(n.nll.tolist() for n in nll), int(nll[0].num_tokens.sum()))
    metric = load("context_retention")
    for arguments in ({"model": base_folder}, {"model": model, "tokenizer": tokenizer, "batch_size": 1}):
        result = metric.compute(**texts, **arguments)
        assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="pass `model`"):
        metric.compute(**texts)
    with pytest.raises(ValueError, match="Pass the `tokenizer` of the model object"):
        metric.compute(**texts, model=model)


# -- growing transcripts -----------------------------------------------------------------------------------------------
def test_prefix_churn_by_hand(load, tokenizer):
    metric = load("prefix_churn")
    # Of 3 nothing is changed, of 5 the last two, of 4 all; the last prompt of a transcript has none behind it.
    ids = [[[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 9]], [[4, 4, 4, 4], [5]], [[8, 8]]]
    assert metric.compute(prompt_ids=ids) == {
        "prefix_churn": 0.5, "changed": 6, "sent": 12, "changed_turns": 2 / 3, "turns": 3, "transcripts": 3,
    }  # fmt: skip
    assert metric.compute(prompts=[["né", "nè"]])["changed"] == 1  # bytes
    texts = ["the cat", "the cat sat", "the dog sat"]
    expected = metric.compute(prompt_ids=[tokenizer(texts)["input_ids"]])
    assert metric.compute(prompts=[texts], tokenizer=tokenizer) == expected and expected["changed"] > 0


def test_cache_cost_by_hand(load, tokenizer):
    metric = load("cache_cost")
    prices = {"input_price": 1.0, "cached_read_price": 0.1, "cache_write_price": 1.25}
    ids = [[list(range(8)), list(range(10)), [0, 1, 2, 99], [0, 1, 2, 99, 5], [7]]]
    result = metric.compute(prompt_ids=ids, **prices, min_cached_tokens=3, block_tokens=4)
    # 8 written; 8 read, 2 written; 3 are no block: 4 written; 4 read, 1 written; 1 too short.
    assert (result["written_tokens"], result["cached_tokens"], result["tokens"], result["turns"]) == (15, 12, 28, 5)
    assert result["cost"] == pytest.approx((15 * 1.25 + 12 * 0.1 + 1) / 1e6)
    assert result["cost_without_cache"] == pytest.approx(28 / 1e6)
    # An earlier prompt than the last one is still there.
    again = metric.compute(prompt_ids=[[[1, 2, 3], [4, 5, 6], [1, 2, 3, 4]]], **prices, min_cached_tokens=3)
    assert (again["cached_tokens"], again["written_tokens"]) == (3, 7)
    texts = ["the cat", "the cat sat"]
    by_ids = metric.compute(prompt_ids=[tokenizer(texts)["input_ids"]], **PRICES)
    assert metric.compute(prompts=[texts], tokenizer=tokenizer, **PRICES) == by_ids
    short = metric.compute(prompt_ids=[[[1, 2]]], **prices)
    assert short["cost"] == short["cost_without_cache"] and short["written_tokens"] == 0


# -- batches, processes, combinations ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_batches_of_any_size_give_the_same(name, load, base_folder):
    metric, chosen = load(name), options(name, base_folder)
    at_once = metric.compute(**rows(name), **chosen)
    for first, size in ((0, 1), (1, 4)):
        metric.add_batch(**rows(name, slice(first, first + size)))
    metric.add(
        **{{"predictions": "prediction", "references": "reference"}.get(c, c): v[0] for c, v in rows(name).items()}
    )
    metric.add_batch(**rows(name, slice(0, 0)))
    in_parts = metric.compute(**rows(name, slice(5, 6)), **chosen)
    again = [*range(5), 0, 5]
    assert in_parts == metric.compute(**{c: [v[i] for i in again] for c, v in rows(name).items()}, **chosen)
    assert at_once == metric.compute(**{c: v[::-1] for c, v in rows(name).items()}, **chosen), (
        "nor does their order matter"
    )
    assert json.loads(json.dumps(at_once)) == at_once
    assert all(type(value) in (int, float) for value in at_once.values())


MASKS = st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(MASKS.filter(lambda masks: any(map(any, masks))), st.data())
def test_rate_times_ratio_is_one_in_any_batches(load, masks, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(masks)))) | {0, len(masks)})
    metric = load("compression")
    for start, end in pairwise(cuts):
        metric.add_batch(keep_mask=masks[start:end])
    result = metric.compute()
    assert result["compression_rate"] * result["compression_ratio"] == pytest.approx(1.0)
    assert result["kept_tokens"] == sum(sum(mask) for mask in masks)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(mask) for mask in masks], batch_first=True)
    valid = torch.arange(padded.shape[1]) < torch.tensor([[len(mask)] for mask in masks])
    assert metric.compute(keep_mask=padded, attention_mask=valid) == result, "tensors, and padding"


SECOND_PROCESS = """
import json, sys
import evaluate
from tokforget.metrics import metric_path
rows = json.loads(sys.argv[1])
for name in sorted(rows):
    metric = evaluate.load(metric_path(name), process_id=1, num_process=2, experiment_id="two")
    # The columns come in another order than in the first process.
    metric.add_batch(**{column: rows[name][column] for column in sorted(rows[name], reverse=True)})
    print(json.dumps(metric.compute()))
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(load, base_folder):
    theirs = json.dumps({name: rows(name, slice(2, None)) for name in NAMES})
    second = subprocess.Popen(
        [sys.executable, "-c", SECOND_PROCESS, theirs],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for name in NAMES:
        metric = evaluate.load(metric_path(name), process_id=0, num_process=2, experiment_id="two")
        metric.add_batch(**rows(name, slice(0, 2)))
        together = metric.compute(**options(name, base_folder))
        assert together == load(name).compute(**rows(name), **options(name, base_folder))
    output, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert output.split() == ["null"] * len(NAMES), "the first process alone has the result"


def test_combined_metrics_share_their_arguments(load, base_folder):
    expected = {name: load(name).compute(**rows(name), **options(name, base_folder)) for name in NAMES}
    combined = evaluate.combine([metric_path(name) for name in NAMES], force_prefix=True)
    result = combined.compute(**ROWS, tokenizer=base_folder, **PRICES)
    expected["restoration"] = load("restoration").compute(**rows("restoration"), tokenizer=base_folder)
    for name, values in expected.items():
        assert {key: result[f"{name}_{key}"] for key in values} == values
    combined = evaluate.combine([metric_path("rouge"), metric_path("compression")])
    for i in range(6):
        combined.add(prediction=ROWS["predictions"][i], reference=ROWS["references"][i], keep_mask=ROWS["keep_mask"][i],
                     attention_mask=ROWS["attention_mask"][i], compressed=None)  # fmt: skip
    assert combined.compute() == expected["rouge"] | load("compression").compute(
        keep_mask=ROWS["keep_mask"], attention_mask=ROWS["attention_mask"]
    )


# -- errors ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, arguments, message",
    [
        *[(name, {}, "was given no text") for name in NAMES],
        ("compression", {"keep_mask": []}, "was given no text"),
        ("compression", {"keep_mask": [[]]}, "no token at all"),
        ("compression", {"keep_mask": [[0, 0]]}, "no token was kept of 2"),
        ("compression", {"keep_mask": [[0, 2]]}, r"`keep_mask` must hold 1 and 0, got \[2\]"),
        ("compression", {"keep_mask": [[0, 1]], "attention_mask": [[1]]}, "Text 0 must have as many values"),
        ("compression", {"compressed": ["a"]}, "Give `keep_mask`; or `compressed` and `references`"),
        ("compression", {"compressed": ["a"], "references": ["a b"]}, "pass `tokenizer`"),
        ("compression", {"compressed": ["a"], "references": ["a", "b"]}, "as many rows each"),
        ("compression", {"keep_masks": [[1]]}, "knows no 'keep_masks'. Its columns are `keep_mask`"),
        ("bits_lost", {"token_nll": [[1.0]]}, "Give `token_nll` and `keep_mask`; or `bits`"),
        ("bits_lost", {"token_nll": [[math.nan]], "keep_mask": [[0]]}, "got nan at place 0"),
        ("bits_lost", {"token_nll": [[-1.0]], "keep_mask": [[0]]}, "got -1.0"),
        ("bits_lost", {"bits": [1.0], "num_dropped": [3], "num_tokens": [2]}, "got 3 of 2"),
        ("restoration", {"restored_ids": [[1]], "input_ids": [[1]]}, "`restored_ids` and `input_ids` and `keep_mask`"),
        ("restoration", {"restored_ids": [[1]], "input_ids": [[1, 2]], "keep_mask": [[1, 0]]}, "Text 0 must have"),
        ("restoration", {"predictions": ["a"], "references": ["a"]}, "`compressed`"),
        ("rouge", {"predictions": ["a"]}, "Give `predictions` and `references`"),
        ("rouge", {"predictions": ["a"], "references": ["a"], "statistic": "f1"}, "`statistic` must be one of"),
        ("rouge", {"predictions": ["a"], "references": ["a"], "rouge_types": ["rouge"]}, "Invalid rouge type"),
        ("rouge", {"predictions": ["a", "b"], "references": [["a"], []]}, "Text 1 has no reference"),
        ("rouge", {"predictions": [1], "references": ["a"]}, "don't match the expected format"),
        ("context_retention", {"nll_full": [1.0]}, "Give `nll_full`"),
        ("prefix_churn", {"prompt_ids": [[[1]]]}, "no transcript has a prompt"),
        ("prefix_churn", {"prompts": [["a", "b"]], "prompt_ids": [[[1]]]}, "either `prompts` or `prompt_ids`"),
        ("cache_cost", {"prompt_ids": [[[1]]]}, "Pass `input_price`, the provider's price for a million"),
        ("cache_cost", {"prompt_ids": [[[1]]], **PRICES, "cached_read_price": -1}, "`cached_read_price` must be a price"),
        ("cache_cost", {"prompt_ids": [[[1]]], **PRICES, "block_tokens": 0}, "`block_tokens` must be a whole number"),
        ("cache_cost", {"prompt_ids": [[[]]], **PRICES}, "no token at all"),
        ("cache_cost", {"prompts": [["a"]], **PRICES}, "pass `tokenizer`"),
        (
            "context_retention",
            {"nll_full": [math.inf], "nll_compressed": [1.0], "nll_none": [1.0], "num_continuation_tokens": [1]},
            "got inf",
        ),
        (
            "context_retention",
            {"nll_full": [1.0], "nll_compressed": [1.0], "nll_none": [1.0], "num_continuation_tokens": [0]},
            "no continuation",
        ),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate.load(metric_path(name)).compute(**arguments)


def test_a_string_for_a_list_of_strings_is_refused(load):
    with pytest.raises(TypeError, match="For one text use `add`"):
        evaluate.load(metric_path("rouge")).compute(predictions="abc", references="abc")


def test_every_batch_brings_the_same_columns():
    metric = evaluate.load(metric_path("compression"))
    metric.add_batch(keep_mask=[[1]])
    with pytest.raises(ValueError, match="must bring the same columns"):
        metric.add_batch(keep_mask=[[1]], attention_mask=[[1]])


def test_an_error_in_one_computation_does_not_spoil_the_next():
    metric = evaluate.load(metric_path("compression"))
    with pytest.raises(ValueError, match="no token was kept"):
        metric.compute(keep_mask=[[0]])
    assert metric.compute(keep_mask=[[1, 0]], attention_mask=[[1, 1]])["compression_rate"] == 0.5


# -- cards and places --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_whole_and_its_examples_run(name, load):
    card = Path(metric_path(name), "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", card, re.MULTILINE)
    wanted = ["Description", "How to use", "Inputs", "Output values", "Limitations"]
    assert headings == wanted + ["Citation"] * (name == "rouge")
    inputs, outputs = (re.search(rf"^## {h}\n(.*?)(?=^## )", card, re.DOTALL | re.MULTILINE)[1] for h in wanted[2:4])
    for argument in (*load(name).inputs, *load(name).options):
        assert f"`{argument}`" in inputs, argument
    if name != "rouge":
        for key in (
            load(name).compute(**rows(name), **(PRICES if name == "cache_cost" else {}))
            if name != "compression"
            else ["compression_rate", "tokens"]
        ):
            assert f"`{key}`" in outputs, key
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(example, {}, name, name, 0)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner().run(test, out=report.append)
    assert tried > 3 and not failed, "".join(report)


def test_the_folders_are_the_modules(load):
    folders = {path.parent.name for path in Path(metric_path("rouge")).parent.glob("*/README.md")}
    assert folders == set(NAMES) == {load(name).name for name in NAMES}
    with pytest.raises(ValueError, match="no metric 'bleu'. There are bits_lost, cache_cost, compression"):
        metric_path("bleu")
