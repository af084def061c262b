"""What a reader can still do: the figure by hand, budgets, batches, and texts that ask questions of their own."""

import gzip
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import make_gpt2
from tokforget.readers import benchmark as reader_benchmark
from tokforget.readers import tasks
from tokforget.readers import text_compressors as text_compressors_module
from tokforget.readers.agreement import rank_correlation, task_agreement
from tokforget.readers.arguments import ReaderArguments
from tokforget.readers.benchmark import (
    ReaderBenchmark,
    difference_interval,
    kept_words,
    retention,
    retention_interval,
    right_options,
    run_reader_benchmark,
    target_bits,
)
from tokforget.readers.cost import break_even_tokens
from tokforget.readers.language_model import Reader
from tokforget.readers.oracle import gate_ranks, search_best_words
from tokforget.readers.questions import Question
from tokforget.readers.report import _draw
from tokforget.readers.spans import find_lookups
from tokforget.readers.tasks import (
    ReadingItem,
    among_others,
    draw_passages,
    later_use_items,
    lookup_items,
    question_items,
    read_corpus,
    split_of_source,
)
from tokforget.readers.text_compressors import (
    TEXT_COMPRESSORS,
    CompressorContext,
    fill,
    text_compressors,
)
from tokforget.readers.word_counts import WordCounts
from tokforget.readers.words import find_strings
from tokforget.text_units import bare_word, split_sentences, split_words


TEXT = (
    "The harbour of Nordby was rebuilt in 1931 by Anna Lund, who had 84,000 crowns to spend. It does not freeze in winter. "
    "Ships of the Petersen line call there every Monday, and the ferry to Skagen leaves at 12:45."
)


@pytest.fixture(scope="module")
def reader(tokenizer) -> Reader:
    return Reader(make_gpt2(len(tokenizer), n_positions=1024), tokenizer)


@pytest.fixture(scope="module")
def counts(texts) -> WordCounts:
    return WordCounts.of_texts([*texts, "the harbour of the town was rebuilt by the town"])


@pytest.fixture(scope="module")
def context(reader, counts) -> CompressorContext:
    return CompressorContext(reader, counts)


# -- the figure --------------------------------------------------------------------------------------------------------
def test_retention_by_hand():
    full, none = np.array([8.0, 10.0]), np.array([26.0, 28.0])
    assert retention(full, full, none) == 1.0 and retention(none, full, none) == 0.0
    assert retention(np.array([17.0, 19.0]), full, none) == 0.5
    assert retention(np.array([30.0, 30.0]), full, none) < 0  # misled
    assert np.isnan(retention(full, none, full))  # a passage that tells nothing


def test_intervals_are_drawn_over_passages():
    generator = np.random.default_rng(0)
    full, none = np.full(40, 5.0), np.full(40, 25.0)
    bits = np.repeat(generator.uniform(5, 25, 10), 4)  # four questions of one passage fare alike
    groups = [str(i // 4) for i in range(40)]
    low, high = retention_interval(bits, full, none, groups, seed=0)
    apart_low, apart_high = retention_interval(bits, full, none, [str(i) for i in range(40)], seed=0)
    assert low < retention(bits, full, none) < high
    assert high - low > 1.5 * (apart_high - apart_low)  # sqrt(4) in expectation
    low, high = difference_interval(bits - 1, bits, full, none, groups, seed=0)
    assert low == pytest.approx(high) == pytest.approx(1 / 20)


def test_one_passage_is_drawn_though_its_interval_is_rounded(tmp_path):
    rows = [
        {"task": "lookup", "kind": "all", "compressor": "head", "rate": rate, "retention": 0.9, "interval": interval, "achieved_rate": rate}
        for rate, interval in ((0.3, [0.9, 0.9]), (0.5, [0.9000001, 0.9000001]), (0.7, None))
    ]  # fmt: skip
    path = tmp_path / "lookup.png"
    assert _draw(path, rows, "lookup", None, None)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_full_is_one_and_none_is_zero_exactly(reader):
    items = question_items([Question(TEXT, "Who rebuilt it?", ("Anna Lund",), ())] * 2, 2)
    full = target_bits(reader, items, [item.passage for item in items])
    none = target_bits(reader, items, [""] * len(items))
    if full.sum() > none.sum():  # a random reader: whichever side is the dearer plays the one without a passage
        full, none = none, full
    assert retention(full, full, none) == 1.0 and retention(none, full, none) == 0.0
    full = target_bits(reader, items, [item.passage for item in items])
    again = target_bits(reader, items, [item.passage for item in items])
    assert (full == again).all()


def test_an_empty_passage_is_worth_nothing_and_no_error(reader, context):
    items = question_items([Question("", "Who?", ("Anna",)), Question(TEXT, "Who?", ("Anna",))], 2)
    full, none = (target_bits(reader, items, passages) for passages in (["", TEXT], ["", ""]))
    assert full[0] == pytest.approx(none[0], abs=1e-4) and full[1] != none[1]
    assert np.isnan(retention(full[:1], full[:1], full[:1]))


def test_a_passage_stands_whole_among_others_in_random_order():
    questions = [Question(f"Passage {n} says {n * n}.", "What?", (str(n * n),), ()) for n in range(30)]
    items = question_items(questions, 30)
    among = among_others(items, 4, 0)
    places = []
    for own, one in zip(items, among):
        passages = [line.split("] ", 1)[1] for line in one.passage.split("\n\n")]
        assert len(set(passages)) == 5 and own.passage in passages
        assert (one.target, one.question, one.group) == (own.target, own.question, own.group)
        places.append(passages.index(own.passage))
    assert set(places) == set(range(5))
    assert among == among_others(items, 4, 0) != among_others(items, 4, 1)
    with pytest.raises(ValueError, match="30 different passages, but each needs 30 others; lower `other_passages`"):
        among_others(items, 30, 0)


def test_the_likeliest_option_is_chosen_per_token(reader):
    questions = [
        Question(TEXT, "Where?", ("on the mat",), ("on the mat", "x y z !")),
        Question(TEXT, "Who?", ("Anna",)),
    ]
    items = question_items(questions, 2)
    right = right_options(reader, items, [TEXT, TEXT])
    means = [reader.token_bits([items[0].prompt(TEXT)], [f" {option}"])[0].mean() for option in questions[0].options]
    assert right[0] == (means[0] < means[1]) and np.isnan(right[1])


def test_orders_of_tasks_by_hand():
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.5, 9.0])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    # ranks 1.5, 1.5, 3 and 1, 2, 3: covariance 1.5 over the root of 1.5 * 2
    assert rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(1.5 / np.sqrt(3))
    assert np.isnan(rank_correlation(np.array([1.0, 1.0]), np.array([1.0, 2.0])))
    rows = [
        {"task": task, "kind": "all", "rate": 0.5, "compressor": name, "retention": value}
        for task, values in (("a", (0.1, 0.2, 0.3)), ("b", (0.3, 0.2, 0.1)))
        for name, value in zip("xyz", values)
    ]
    (agreement,) = task_agreement(rows)
    assert agreement["rank_correlation"] == pytest.approx(-1) and agreement["compressors"] == 3


# -- the reader --------------------------------------------------------------------------------------------------------
def test_order_padding_and_batch_change_nothing(reader, tokenizer):
    prompts, targets = (
        [TEXT, "a dog", "", "the cat sat on the mat"],
        [" on the mat", " ran", " we saw", " 12 birds fly over"],
    )
    together = Reader(reader.model, tokenizer, batch_tokens=10_000).token_bits(prompts, targets)
    alone = Reader(reader.model, tokenizer, batch_tokens=1).token_bits(prompts, targets)
    turned = reader.token_bits(prompts[::-1], targets[::-1])[::-1]
    for a, b, c in zip(together, alone, turned):
        np.testing.assert_allclose(a, b, atol=1e-4)
        np.testing.assert_allclose(a, c, atol=1e-4)


def test_bits_are_those_of_a_plain_forward(reader, tokenizer):
    prompt, target = "the cat sat", " on the mat"
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    wanted = tokenizer(target, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = reader.model(torch.tensor([[reader.start, *ids, *wanted]])).logits[0].log_softmax(-1)
    expected = [-logits[len(ids) + i, token].item() / np.log(2) for i, token in enumerate(wanted)]
    np.testing.assert_allclose(reader.token_bits([prompt], [target])[0], expected, rtol=1e-5)


def test_what_does_not_fit_is_an_error_and_not_cut(reader):
    with pytest.raises(ValueError, match="does not fit.*Cut the texts"):
        reader.bits(["the cat " * 600], [" sat"])
    with pytest.raises(ValueError, match="does not fit"):
        reader.bits(["the cat"], [" sat on the mat" * 600])  # an answer longer than the context
    with pytest.raises(ValueError, match="is empty: there is nothing to predict"):
        reader.bits(["the cat"], [""])


def test_a_reader_without_a_pad_token_pads_with_what_it_has(reader):
    assert reader.tokenizer.pad_token_id is None
    assert len(reader.bits(["a", "a dog ran to the red house"], [" dog", " all day"])) == 2


# -- budgets -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", sorted(set(TEXT_COMPRESSORS) - {"policy_auto", "policy_tokens", "policy_words", "policy_question"})
)
def test_no_budget_is_exceeded(name, context):
    pytest.importorskip("bm25s") if name == "bm25_sentences" else None
    (compressor,) = text_compressors([name], context)
    total = context.reader.counts([TEXT])[0]
    for rate in (0.05, 0.3, 0.7):
        budget = max(1, int(rate * total))
        output = compressor(TEXT, budget, "Who rebuilt the harbour of Nordby?")
        assert context.reader.counts([output])[0] <= budget, name
        if rate == 0.7 and "sentences" not in name:
            assert context.reader.counts([output])[0] >= 0.5 * total  # and it is used
    assert compressor("", 5, None) == ""


def test_a_pass_is_remembered_but_never_in_a_time(reader, counts, monkeypatch):
    context, passes = CompressorContext(reader, counts), []
    monkeypatch.setattr(reader, "token_bits", lambda *args: passes.append(args) or Reader.token_bits(reader, *args))
    for name in ("self_information_words", "self_information_tokens", "phrases"):
        (compressor,) = text_compressors([name], context)
        outputs = [compressor(TEXT, budget) for budget in (20, 40, 20)]
        assert outputs[0] == outputs[2]
    assert len(passes) == 1
    with context.nothing_remembered():
        compressor(TEXT, 20)
    assert len(passes) == 2 and len(context.passes) == 1


def test_the_policy_is_searched_until_the_readers_count_fits(context):
    for name in ("policy_tokens", "policy_words"):
        (compressor,) = text_compressors([name], context)
        total = context.reader.counts([TEXT])[0]
        output = compressor(TEXT, total // 2, None)
        assert 0 < context.reader.counts([output])[0] <= total // 2


def test_fill_takes_the_best_that_fit():
    text, spans = "one two three four", split_words("one two three four")
    words = lambda output: len(output.split())  # noqa: E731
    assert fill(text, spans, np.array([0.0, 3.0, 1.0, 2.0]), 2, words) == "two four"
    assert fill(text, spans, np.array([0.0, 3.0, 1.0, 2.0]), 0, words) == ""
    assert fill(text, spans, np.array([0.0, 0.0, 0.0, 0.0]), 3, words) == "one two three"
    letters = len  # the best does not fit, smaller ones behind it do
    assert fill(text, spans, np.array([0.0, 1.0, 3.0, 2.0]), 4, letters) == "four"


def test_units():
    assert split_sentences("One is here. Two\nThree (3.5) is not! ") == [(0, 13), (13, 17), (17, 37)]
    text = (
        'Dr. Smith met Mrs. Jones, e.g. at 5 p.m. on Main St. in Washington, D.C. yesterday. "Who?" he asked. See Fig. 3. '
        "J. Bach came am 3. Mai (Hu et al. 2021). Well... no. Is it? y is.\n\n1. First\n2. Second. No. 5 too. End"
    )
    assert [text[a:b].strip() for a, b in split_sentences(text)] == [
        "Dr. Smith met Mrs. Jones, e.g. at 5 p.m. on Main St. in Washington, D.C. yesterday.", '"Who?" he asked.', "See Fig. 3.",
        "J. Bach came am 3. Mai (Hu et al. 2021).", "Well... no.", "Is it?", "y is.", "1. First", "2. Second.", "No. 5 too.", "End",
    ]  # fmt: skip
    assert "".join(text[a:b] for a, b in split_sentences(text)) == text
    assert "".join(TEXT[a:b] for a, b in split_words(TEXT)) == TEXT
    minified = '{"name":"Ada","born":1815,"works":["notes"]}'
    parts = [minified[a:b] for a, b in split_words(minified)]
    assert parts == ["{", '"name":', '"Ada",', '"born":', "1815,", '"works":[', '"notes"]}']
    assert [("他は a 猫")[a:b] for a, b in split_words("他は a 猫")] == ["他", "は", " a", " 猫"]
    assert bare_word(" (Lund,") == "lund"


def test_a_question_finds_its_sentence(context):
    question = "When does the ferry to Skagen leave?"
    for name in ("overlap_sentences", "bm25_sentences"):
        pytest.importorskip("bm25s") if name == "bm25_sentences" else None
        (compressor,) = text_compressors([name], context)
        budget = int(0.6 * context.reader.counts([TEXT])[0])
        assert "12:45" in compressor(TEXT, budget, question), name


def a_user_compressor(text: str, budget: int) -> str:
    return text[:3]


def counts_letters(text: str, budget: int) -> str:
    return text[:budget]


def breaks_the_budget(text: str, budget: int) -> str:
    return text


def test_any_callable_by_its_import_path(context):
    (compressor,) = text_compressors(["tests.readers.test_benchmark:a_user_compressor"], context)
    assert compressor(TEXT, 5) == TEXT[:3] and not compressor.asks
    (other,) = text_compressors(["tests.readers.test_benchmark:counts_letters"], context)
    total = context.reader.counts([TEXT])[0]
    assert 0.9 * total // 2 <= context.reader.counts([other(TEXT, total // 2)])[0] <= total // 2
    assert other.calls > 1  # it counts letters, the budget tokens
    assert other(TEXT, total) == TEXT and other("", 3) == ""
    with pytest.raises(ValueError, match="Unknown compressor 'llmlingua'; there are random_tokens"):
        text_compressors(["llmlingua"], context)
    with pytest.raises(ValueError, match="could not be imported"):
        text_compressors(["tests.nothing:here"], context)
    with pytest.raises(ValueError, match="different names; head came"):
        text_compressors(["head", "head"], context)


# -- tasks -------------------------------------------------------------------------------------------------------------
def test_lookups_ask_for_what_a_text_says(counts):
    found = find_lookups(TEXT, counts, 5, random.Random(0))
    assert found == sorted(found, key=lambda lookup: lookup.start) and len(found) == 5
    for lookup in found:
        assert TEXT[lookup.start : lookup.end] == lookup.answer
        assert TEXT[: lookup.start].split()[-1].endswith(lookup.cue.split()[-1])
        assert not counts.is_stop_word(lookup.answer)
    many = [lookup.answer for seed in range(40) for lookup in find_lookups(TEXT, counts, 4, random.Random(seed))]
    assert many.count("1931") > many.count("call")  # numbers before plain words
    assert find_lookups("it is so", counts, 3, random.Random(0)) == []
    everywhere = "alpha beta gamma delta epsilon zeta"
    assert find_lookups(everywhere, WordCounts.of_texts([everywhere] * 3), 3, random.Random(0)) == []


def test_items_differ_in_the_passage_alone(counts):
    items = lookup_items([("prose", TEXT)], counts, 3, seed=1)
    assert items == lookup_items([("prose", TEXT)], counts, 3, seed=1)
    for item in items:
        assert item.prompt("") == item.before + item.after and TEXT in item.prompt(TEXT)
        assert item.target.strip() in TEXT and item.question in item.after


def test_later_use_counts_the_tokens_that_a_passage_makes_cheaper(reader, monkeypatch):
    monkeypatch.setattr(tasks, "_LATER_GAIN", 0.0)  # a tiny random reader gains little
    (item,) = later_use_items([("prose", TEXT), ("short", "word")], reader)
    assert item.prompt(item.passage) + item.target == TEXT
    assert len(item.passage) > 1.5 * len(item.after) > 0  # what stands between is seen by all
    full = reader.token_bits([item.prompt(item.passage)], [item.target])[0]
    none = reader.token_bits([item.prompt("")], [item.target])[0]
    assert set(item.counted) == set(np.flatnonzero(none - full > 0.0))
    assert target_bits(reader, [item], [""])[0] == pytest.approx(none[list(item.counted)].sum(), abs=1e-3)


def write_corpus(folder, texts) -> None:
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / "prose.jsonl.gz", "wt", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(
                json.dumps({"text": text, "source": f"book {number // 2}#{number % 2}", "kind": "prose"}) + "\n"
            )


def test_sources_stand_on_one_side(tmp_path):
    write_corpus(tmp_path, [f"text {n}" for n in range(80)])
    parts = {split: [text for _, text in read_corpus(tmp_path, split)] for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 80 and all(parts.values())
    for number in range(0, 80, 2):
        sides = {
            name for name, texts in parts.items() for text in (f"text {number}", f"text {number + 1}") if text in texts
        }
        assert len(sides) == 1
    assert split_of_source("a#1") == split_of_source("a#2")
    with pytest.raises(ValueError, match="holds no .jsonl"):
        list(read_corpus(tmp_path / "nowhere", "train"))
    (tmp_path / "bad.jsonl").write_text('{"text": "no source"}\n')
    with pytest.raises(ValueError, match="bad.jsonl, row 1: needed are strings `text` and `source`"):
        list(read_corpus(tmp_path, "train"))
    (tmp_path / "bad.jsonl").write_text('["a text alone"]\n')
    with pytest.raises(ValueError, match="bad.jsonl, row 1: .* there is list"):
        list(read_corpus(tmp_path, "train"))
    (tmp_path / "bad.jsonl").write_text("no JSON\n")
    with pytest.raises(ValueError, match="bad.jsonl, line 1, is not JSON"):
        list(read_corpus(tmp_path, "train"))


def test_lookups_go_on_as_the_text_does(counts):
    text = 'first second third {"id": "a77", "name": "Ada"}\n\nThe next line has Nordby Harbour in it'
    found = {o.answer: o for seed in range(30) for o in find_lookups(text, counts, 6, random.Random(seed))}
    assert found['"a77'].cue == 'first second third {"id":' and found['"a77'].spaced
    assert "Nordby Harbour" in found and not any("\n" in answer for answer in found)
    (item, *_) = lookup_items([("json", '{"key":"Alpha","other":"B12","and_some_more":"C77"}')], counts, 1, seed=0)
    assert item.after.startswith("\n\n... {") and not item.target.startswith(" ")


def test_what_has_no_spaces_is_cut_all_the_same(counts):
    drawn = draw_passages(iter([("json", "ab,c" * 100), ("prose", "a b\n" * 100)]), 1, 120, seed=3)
    assert [len(passage) > 100 for _, passage in drawn] == [True, True]


def test_passages_are_cut_between_words():
    drawn = draw_passages(iter([("prose", TEXT * 5), ("prose", "short")]), 3, 120, seed=0)
    assert len(drawn) == 1
    kind, passage = drawn[0]
    assert kind == "prose" and passage in TEXT * 5 and len(passage) <= 120
    assert set(passage.split()) <= set((TEXT * 5).split())


def test_strings_are_kept_whole():
    text = 'Set "read only" and `chunk_size` in “My Book”, and don\'t quote \'x y\'. She said "read only".'
    assert find_strings(text) == ["read only", "chunk_size", "My Book", "x y", "read only"]
    counted = kept_words(text, 'Set "read only" chunk_size in My')
    assert (counted["strings"], counted["strings_kept"]) == (5, 2)


def test_what_is_kept_and_what_is_invented():
    counted = kept_words(TEXT, "harbour Nordby 1931 Anna 84 not")
    assert (counted["numbers"], counted["numbers_kept"]) == (3, 1)
    assert (counted["negations"], counted["negations_kept"]) == (1, 1)
    assert counted["invented"] == 1  # 84 of 84,000 is another number
    assert counted["names_kept"] == 2


def test_the_oracle_does_not_get_worse(reader, context):
    item = ReadingItem(TEXT, "a", "prose", "", "\n\n... rebuilt in", " 1931")
    budget = reader.counts([TEXT])[0] // 2
    start = [np.zeros(len(split_words(TEXT)))]
    _, before = search_best_words(reader, item, budget, start, 0)
    output, after = search_best_words(reader, item, budget, start, 6)
    assert search_best_words(reader, item, budget, start, 6) == (output, after)  # by steps, not by the clock
    assert after <= before + 1e-4 and reader.counts([output])[0] <= budget
    assert reader.bits([item.prompt(output)], [item.target])[0] == pytest.approx(after, abs=1e-3)


def test_a_gate_is_worth_what_scaling_a_word_costs(reader):
    item = ReadingItem("the cat sat", "a", "prose", "we saw ", " on", " the mat")
    found = gate_ranks(reader, item)
    ids = [reader.token_ids([part])[0] for part in ("we saw ", "the cat sat", " on", " the mat")]
    row = torch.tensor([[reader.start, *(token for part in ids for token in part)]])
    places = reader.token_places(item.passage)
    for word, (start, end) in enumerate(split_words(item.passage)):
        costs = []
        for gate in (0.99, 1.01):
            scale = torch.ones(row.shape[1])
            for at, (a, b) in enumerate(places):
                if start <= (a + b - 1) / 2 < end:
                    scale[1 + len(ids[0]) + at] = gate
            with torch.no_grad():
                embedded = reader.model.get_input_embeddings()(row) * scale[None, :, None]
                logits = reader.model(inputs_embeds=embedded).logits[0].log_softmax(-1)
            costs.append(-sum(logits[row.shape[1] - 1 - len(ids[3]) + i, t].item() for i, t in enumerate(ids[3])))
        assert found[word] == pytest.approx((costs[0] - costs[1]) / 0.02, abs=2e-3)


def test_break_even_lies_on_the_line():
    rows = [{"prompt_tokens": n, "rate": 0.5, "gain": 0.001 * n - 0.2} for n in (100, 300)]
    assert break_even_tokens(rows, 0.5) == pytest.approx(200)
    assert break_even_tokens([row | {"gain": 1.0} for row in rows], 0.5) == 0.0
    assert break_even_tokens([row | {"gain": -row["prompt_tokens"]} for row in rows], 0.5) is None


# -- a whole run -------------------------------------------------------------------------------------------------------
def arguments(tmp_path, base_folder, **changes) -> ReaderArguments:
    questions = tmp_path / "questions.json"
    rows = [{"context": TEXT, "question": "Who rebuilt it?", "answer": "Anna Lund"},
            {"context": "the cat sat on the mat. " * 3, "question": "Where?", "options": ["on the mat", "at sea"], "answer": 0}]  # fmt: skip
    questions.write_text(json.dumps(rows))
    write_corpus(tmp_path / "corpus", [f"{TEXT} Number {n} of the list is here. {TEXT}" for n in range(60)])
    options = {
        "output_dir": str(tmp_path / "out"), "reader_name_or_path": base_folder, "questions": [str(questions)],
        "corpus": str(tmp_path / "corpus"), "texts_per_kind": 2, "passage_characters": 100, "lookups_per_text": 2, "lookup_draws": 2,
        "rates": [0.5], "compressors": ["random_words", "head", "overlap_sentences"], "use_cpu": True,
        "cost_prompt_tokens": [8], "oracle_items": 1, "oracle_steps": 1,
    }  # fmt: skip
    return ReaderArguments(**options | changes)


@pytest.fixture(scope="module")
def long_reader(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("reader")
    make_gpt2(len(tokenizer), n_positions=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_run_measures_reports_and_resumes(tmp_path, long_reader, monkeypatch, capsys):
    rows = run_reader_benchmark(arguments(tmp_path, long_reader))
    by_name = {(row["task"], row["compressor"]): row for row in rows if row["kind"] == "all"}
    assert {task for task, _ in by_name} >= {"questions", "lookup"}
    assert ("lookup", "overlap_sentences") in by_name
    for (_, name), row in by_name.items():
        assert row["achieved_rate"] <= 0.5 or name in ("full", "full_twice")
        if name in ("full", "none"):  # None where a random reader is told nothing by the passage
            assert row["retention"] in (1.0, 0.0, None)
    report = (tmp_path / "out/report.md").read_text()
    results = json.loads((tmp_path / "out/reader_results.json").read_text())
    assert results["reader"] == Path(long_reader).name and f"# What {results['reader']} can still do" in report
    assert str(Path(long_reader).parent) not in report and str(tmp_path) not in report
    assert by_name["questions", "random_words"].get("ahead") is None
    head, reference = by_name["lookup", "head"], by_name["lookup", "random_words"]
    if head["retention"] is not None:
        assert head["ahead"] == pytest.approx(head["retention"] - reference["retention"])
        assert reference["reference_there"] == pytest.approx(reference["retention"])
    assert {task for task, _ in by_name} >= {"lookup_2"} and "## Agreement of tasks" in report
    assert "### questions 1, at 0.5" in report and "Answer: Anna Lund (" in report
    assert "| head | 0.5 |" in report and "## Cost of a whole request" in report and "## Oracle" in report
    assert (tmp_path / "out/retention_questions.png").is_file()
    capsys.readouterr()
    work = []
    monkeypatch.setattr(reader_benchmark, "target_bits", lambda *args: work.append(args) or target_bits(*args))
    run_reader_benchmark(arguments(tmp_path, long_reader))
    assert work == []  # everything was there
    run_reader_benchmark(arguments(tmp_path, long_reader, compressors=["random_words", "tail"]))
    assert len(work) == len({row["task"] for row in rows})  # one new compressor on every task
    work.clear()
    user = "tests.readers.test_benchmark:a_user_compressor"
    for version, measured_anew in (("first", True), ("first", False), ("second", True)):
        monkeypatch.setattr(text_compressors_module.ForeignCompressor, "version", version)
        run_reader_benchmark(arguments(tmp_path, long_reader, compressors=[user]))
        assert bool(work) == measured_anew, version  # what an earlier version of a compressor left is not its result
        work.clear()


def test_the_version_of_a_callable_is_that_of_its_file(tmp_path, context, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "shortener.py"
    versions = []
    for end in (3, 5):
        path.write_text(f"def shorten(text, budget):\n    return text[:{end}]\n")
        sys.modules.pop("shortener", None)
        versions.append(text_compressors(["shortener:shorten"], context)[0].version)
    assert all(versions) and versions[0] != versions[1]
    assert versions[1] == text_compressors(["shortener:shorten"], context)[0].version


def test_compressors_that_ask_have_no_cost_table(tmp_path, long_reader):
    args = arguments(
        tmp_path, long_reader, compressors=["overlap_sentences"], texts_per_kind=0, oracle_items=0, other_passages=1
    )
    rows = run_reader_benchmark(args)
    assert "overlap_sentences" in {row["compressor"] for row in rows}
    assert {row["task"] for row in rows} == {"questions", "questions_among_1"}
    assert not (tmp_path / "out/cost.json").exists()


def test_a_compressor_above_its_budget_ends_the_run(tmp_path, long_reader):
    args = arguments(
        tmp_path,
        long_reader,
        compressors=["tests.readers.test_benchmark:breaks_the_budget"],
        texts_per_kind=0,
    )
    with pytest.raises(ValueError, match="breaks_the_budget returned .* tokens where .* were allowed"):
        run_reader_benchmark(args)


def test_items_that_do_not_fit_are_counted_and_left_out(tmp_path, tokenizer, capsys):
    folder = tmp_path / "small"
    make_gpt2(len(tokenizer), n_positions=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    run = ReaderBenchmark(arguments(tmp_path, str(folder), texts_per_kind=0))
    with pytest.raises(ValueError, match="has no item that fits the reader \\(256 tokens\\)"):
        run.load()
    assert "items do not fit the reader" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [1.0]}, "must be below 1"),
        ({"rates": []}, "is empty"),
        ({"questions": [], "corpus": None}, "nothing to read"),
        ({"corpus": None}, "Words must be counted on texts that are not measured"),
        ({"cost_prompt_tokens": [-1]}, "must be lengths"),
        ({"max_questions": 0}, "`max_questions` must be at least 1"),
        ({"other_passages": -1}, "`other_passages` must be at least 0"),
    ],
)
def test_bad_arguments(tmp_path, base_folder, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, base_folder, **changes)


def test_counts_are_of_pieces(tmp_path):
    counts = WordCounts.of_texts(["a rare word", "a word", "x" * 999 + " Word."])
    assert counts.total == 4 and counts.pieces == {"a": 2, "word": 3}
    assert counts.idf("WORD,") == pytest.approx(np.log(4 / 3)) and counts.idf("unseen") == pytest.approx(np.log(4))
    counts.save(tmp_path / "counts.json")
    assert WordCounts.load(tmp_path / "counts.json").pieces == counts.pieces
    with pytest.raises(ValueError, match="No text was counted"):
        WordCounts.of_texts([])
