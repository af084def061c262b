"""Every scorer: the exact budget, masks of its own, and nothing that depends on batch or padding."""

import itertools
import math

import pytest
import torch

from tests.conftest import make_model
from tokforget.evaluation.baselines import BASELINES, CHEAP_BASELINES, Frequency, Head, ScorerContext, TfIdf, baselines
from tokforget.evaluation.lm_baselines import IterativePruning, LeaveOneOut, SelfInformation
from tokforget.evaluation.oracle import GreedyOracle
from tokforget.evaluation.scorers import Policy, select
from tokforget.evaluation.vocabulary import WORD_CLASSES, Vocabulary
from tokforget.masking import keep_count
from tokforget.models.measuring import probe


# A new baseline adds its row: its name, and whether a text's scores may change with the rate.
SCORERS = {
    "random": False,
    "random_spans": False,
    "frequency": False,
    "tf_idf": False,
    "stop_words": False,
    "length": False,
    "position": True,
    "head": False,
    "tail": False,
    "head_tail": False,
    "self_information": False,
    "self_information_words": False,
    "self_information_sentences": False,
    "self_information_sentence_words": False,
    "iterative_pruning": True,
    "leave_one_out": False,
    "greedy_oracle": True,
}
NATURAL = (
    "The small train left the station at 7 in the morning. Nobody saw Anna, who carried a heavy red bag and 12 letters. "
    "It rained. She thought of the sea, of the old house on the hill and of the letters that she had never answered."
)


@pytest.fixture(scope="module")
def scorer_context(base_folder, tokenizer, texts) -> ScorerContext:
    model = make_model(base_folder, tokenizer, layout="prefix")
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return ScorerContext(model.reconstructor.eval(), tokenizer, ids, seeds=[0, 1])


@pytest.fixture(scope="module")
def natural(tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of natural language: 42 tokens, and 30 with padding."""
    ids = tokenizer(NATURAL)["input_ids"]
    rows = [torch.tensor(ids[:42]), torch.tensor(ids[42:72])]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return input_ids, torch.arange(42) < torch.tensor([[42], [30]])


def test_the_table_names_every_baseline():
    assert list(SCORERS) == list(BASELINES)
    assert set(CHEAP_BASELINES) < set(BASELINES) and "self_information" not in CHEAP_BASELINES


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.77, 1.0])
def test_keeps_exactly_the_budget(name, rate, scorer_context, natural):
    input_ids, valid = natural
    for scorer in baselines([name], scorer_context):
        assert scorer.name == name and scorer.needs_rate == SCORERS[name]
        mask = select(scorer, input_ids, valid, rate)
        assert mask.sum(1).tolist() == keep_count(valid.sum(1), rate).tolist()
        assert not (mask & ~valid).any()


@pytest.mark.parametrize("name", SCORERS)
def test_a_text_alone_is_treated_as_in_a_batch(name, scorer_context, natural):
    input_ids, valid = natural
    scorer = baselines([name], scorer_context)[0]
    together = select(scorer, input_ids, valid, 0.5)
    alone = select(scorer, input_ids[1:, :30], valid[1:, :30], 0.5)
    assert torch.equal(together[1, :30], alone[0])


@pytest.mark.parametrize("name", [name for name, needs_rate in SCORERS.items() if not needs_rate])
def test_scores_that_do_not_need_the_rate_do_not_change_with_it(name, scorer_context, natural):
    scorer = baselines([name], scorer_context)[0]
    low, high = (scorer.score(*natural, torch.full((2,), rate)) for rate in (0.2, 0.9))
    assert torch.equal(low, high)


def test_no_two_give_the_same_mask_on_natural_text_and_only_head_is_truncation(scorer_context, tokenizer):
    ids = tokenizer(NATURAL + " " + NATURAL.replace("train", "boat").replace(".", ", and"))["input_ids"]
    input_ids = torch.tensor(ids[: len(ids) // 42 * 42]).view(-1, 42)
    valid = torch.ones_like(input_ids, dtype=torch.bool)
    assert len(input_ids) >= 5
    masks = {name: select(baselines([name], scorer_context)[0], input_ids, valid, 0.5) for name in SCORERS}
    same = [(a, b) for a, b in itertools.combinations(masks, 2) if torch.equal(masks[a], masks[b])]
    assert same == []
    head = select(Head(), input_ids, valid, 0.5)
    assert torch.equal(masks["head"], head)
    assert head[0].tolist() == [True] * 21 + [False] * 21


def test_repetitions_of_chance_differ_and_repeat_themselves(scorer_context, natural):
    for name in ("random", "random_spans"):
        first, second = (select(scorer, *natural, 0.5) for scorer in baselines([name], scorer_context))
        again = select(baselines([name], scorer_context)[0], *natural, 0.5)
        assert not torch.equal(first, second) and torch.equal(first, again)


def test_random_spans_are_longer_than_chance(scorer_context, natural):
    """Changes from kept to dropped: 20.5 are expected of 42 tokens by chance at 0.5, far fewer of spans of six."""
    input_ids = torch.arange(2000)[None] % 250
    valid = torch.ones_like(input_ids, dtype=torch.bool)
    changes = {
        name: int((mask := select(baselines([name], scorer_context)[0], input_ids, valid, 0.5))[0].diff().sum())
        / mask.sum()
        for name in ("random", "random_spans")
    }
    assert changes["random"] > 0.9 and changes["random_spans"] < 0.3


def test_idf_and_tf_idf_by_hand():
    frequency = Frequency([[1, 2, 2], [1, 3]], vocab_size=5)
    # log((D + 1) / (df + 1)) with D = 2
    assert frequency.idf.tolist() == pytest.approx([math.log(3), 0.0, math.log(1.5), math.log(1.5), math.log(3)])
    ids = torch.tensor([[2, 2, 3, 4]])
    scores = TfIdf(frequency).score(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones(1))
    expected = [0.5 * math.log(1.5)] * 2 + [0.25 * math.log(1.5), 0.25 * math.log(3)]
    assert scores[0].tolist() == pytest.approx(expected)


def test_stop_words_and_punctuation_go_first(scorer_context, tokenizer, natural):
    input_ids, valid = natural
    mask = select(baselines(["stop_words"], scorer_context)[0], input_ids, valid, 0.3)
    kept = {WORD_CLASSES[c] for c in scorer_context.vocabulary.classes[input_ids[mask]].tolist()}
    assert kept.isdisjoint({"function", "punctuation", "space"})


def test_classes_words_and_sentences(tokenizer):
    vocabulary = Vocabulary(tokenizer, len(tokenizer) + 3)
    assert vocabulary.texts[-3:] == ["", "", ""]
    ids = torch.tensor([tokenizer(" the cat. It rained 12 times")["input_ids"]])
    text = [vocabulary.texts[i] for i in ids[0]]
    word, sentence = vocabulary.word_of(ids)[0].tolist(), vocabulary.sentence_of(ids)[0].tolist()
    by_word = ["".join(t for t, w in zip(text, word) if w == n) for n in range(max(word) + 1)]
    assert by_word == [" the", " cat.", " It", " rained", " 12", " times"]
    by_sentence = ["".join(t for t, s in zip(text, sentence) if s == n) for n in range(max(sentence) + 1)]
    assert by_sentence == [" the cat.", " It rained 12 times"]
    of = dict(zip(text, (WORD_CLASSES[c] for c in vocabulary.classes[ids[0]].tolist())))
    assert of[" the"] == "function" and of["."] == "punctuation" and of[" cat"] == "content"


# -- those that ask a model ----------------------------------------------------------------------------------------------
def test_self_information_by_sentence_equals_each_sentence_alone(scorer_context, natural):
    input_ids, valid = natural
    scorer = SelfInformation(scorer_context.reconstructor, scorer_context.vocabulary, "sentence", "token")
    bits = scorer.score(input_ids, valid, torch.ones(2))
    sentence = scorer_context.vocabulary.sentence_of(input_ids)
    assert int(sentence[0].max()) >= 1
    for number in range(int(sentence[0].max()) + 1):
        inside = (sentence[0] == number) & valid[0]
        alone = input_ids[0, inside][None]
        expected = scorer_context.reconstructor.self_information(alone, torch.ones_like(alone, dtype=torch.bool))
        torch.testing.assert_close(bits[0, inside], expected[0], atol=1e-4, rtol=1e-4)


def test_self_information_of_words_is_the_mean_of_their_tokens(scorer_context, natural):
    input_ids, valid = natural
    by_token = SelfInformation(scorer_context.reconstructor, scorer_context.vocabulary, "document", "token")
    by_word = SelfInformation(scorer_context.reconstructor, scorer_context.vocabulary, "document", "word")
    bits, means = (scorer.score(input_ids, valid, torch.ones(2)) for scorer in (by_token, by_word))
    word = scorer_context.vocabulary.word_of(input_ids)
    for number in range(int(word[0].max()) + 1):
        inside = word[0] == number
        expected = bits[0, inside].mean().expand(int(inside.sum()))
        torch.testing.assert_close(means[0, inside], expected, atol=1e-4, rtol=1e-4)


def test_iterative_pruning_equals_a_loop_over_segments(scorer_context, natural):
    """Against a plain loop: each segment's surprisal given the kept tokens of the earlier ones."""
    input_ids, valid = natural
    rate, segment = 0.5, 8
    mask = select(IterativePruning(scorer_context.reconstructor, segment), input_ids, valid, rate)
    for row, length in enumerate((42, 30)):
        ids, kept = input_ids[row, :length].tolist(), []
        budget = int(keep_count(torch.tensor([length]), rate))
        for start in range(0, length, segment):
            shown = torch.tensor([[ids[i] for i in kept] + ids[start : start + segment]])
            bits = scorer_context.reconstructor.self_information(shown, torch.ones_like(shown, dtype=torch.bool))[
                0, len(kept) :
            ]
            due = math.floor(budget * min(start + segment, length) / length) - len(kept)
            kept += sorted(start + int(i) for i in bits.argsort(descending=True, stable=True)[:due])
        assert mask[row].nonzero().squeeze(1).tolist() == kept


def test_leave_one_out_with_one_token_apart_is_exact(scorer_context, natural):
    input_ids, valid = natural
    bits = LeaveOneOut(scorer_context.reconstructor, apart=42).score(input_ids, valid, torch.ones(2))
    for t in (0, 7, 41):
        keep = valid.clone()
        keep[0, t] = False
        expected = scorer_context.reconstructor.token_nll(input_ids, keep, valid).nll[0, t]
        torch.testing.assert_close(bits[0, t], expected.detach(), atol=1e-4, rtol=1e-4)


def test_a_probe_tells_what_dropping_would_cost(scorer_context, natural):
    input_ids, valid = natural
    keep = valid & (torch.arange(42) % 2 == 0)
    cost = probe(scorer_context.reconstructor, input_ids, valid, keep, apart=42)
    assert (cost[~keep] == 0).all()
    without = keep.clone()
    without[0, 10] = False
    expected = scorer_context.reconstructor.token_nll(input_ids, without, valid).nll[0, 10]
    torch.testing.assert_close(cost[0, 10], expected.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["prefix", "infill"])
def test_the_oracle_is_at_least_as_good_as_every_other_scorer(layout, base_folder, tokenizer, texts, natural):
    model = make_model(base_folder, tokenizer, layout=layout)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    scorer_context = ScorerContext(model.reconstructor.eval(), tokenizer, ids, seeds=[0])
    input_ids, valid = natural

    def bits(scorer, rate: float) -> float:
        keep = select(scorer, input_ids, valid, rate)
        with torch.no_grad():
            return float(scorer_context.reconstructor.token_nll(input_ids, keep, valid).nll.sum())

    others = [Policy(model), *baselines([name for name in SCORERS if name != "greedy_oracle"], scorer_context)]
    for rate in (0.3, 0.5, 0.7):
        assert (
            bits(GreedyOracle(scorer_context.reconstructor), rate) <= min(bits(other, rate) for other in others) + 1e-3
        )


def test_the_oracle_comes_near_the_best_of_all_masks(base_folder, tokenizer):
    """Seven tokens, three kept: all 35 masks tried."""
    model = make_model(base_folder, tokenizer)
    reconstructor = model.reconstructor.eval()
    input_ids = torch.tensor([[40, 61, 40, 75, 90, 61, 33]])
    valid = torch.ones_like(input_ids, dtype=torch.bool)

    def bits(keep: torch.Tensor) -> float:
        with torch.no_grad():
            return float(reconstructor.token_nll(input_ids, keep, valid).nll.sum())

    every = [torch.tensor([[t in chosen for t in range(7)]]) for chosen in itertools.combinations(range(7), 3)]
    totals = sorted(bits(keep) for keep in every)
    found = bits(select(GreedyOracle(reconstructor, block=1), input_ids, valid, 3 / 7))
    assert found <= totals[2] + 1e-4  # among the best three


def test_an_unknown_baseline_is_named(scorer_context):
    with pytest.raises(ValueError, match="Unknown baseline 'entropy'; there are random, "):
        baselines(["entropy"], scorer_context)
