"""A policy that learns from a reader alone: what is drawn, what is credited, what is learnt, and that a run can be stopped."""

import json
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import make_gpt2
from tokforget.compression.compressor import Compressor
from tokforget.models.loading import add_adapter
from tokforget.models.reconstructor import Reconstructor
from tokforget.readers.language_model import Reader
from tokforget.readers.word_counts import WordCounts
from tokforget.training.reader_arguments import ReaderPolicyArguments, ReaderPolicyConfig
from tokforget.training.reader_run import _among_others, fresh_policy, train_reader_policy
from tokforget.training.reader_targets import (
    CANDIDATES,
    RATES,
    TargetWeights,
    at_rate,
    choose_weights,
    read_weights,
    target_scores,
)
from tokforget.training.reader_texts import Asked, ReaderText, ReaderTexts, collate, draw_stretches
from tokforget.training.reader_trainer import PassageTexts, ReaderPolicyTrainer, rendered
from tokforget.training.reader_warm_start import _by_length, fit_ranking


ROOT = Path(__file__).parents[2]
TEXT = "The harbour of Nordby was rebuilt by Anna Lund. It rained all day. Ships of the Petersen line call there on Monday."


@pytest.fixture(scope="module")
def reader(tokenizer) -> Reader:
    return Reader(make_gpt2(len(tokenizer), n_positions=1024), tokenizer)


@pytest.fixture
def model(reader, texts):
    torch.manual_seed(0)
    model = fresh_policy(reader, hidden_size=16, ngram_buckets=256)
    model.policy.words.fit([TEXT, *texts])
    model.policy.ngrams.fit(reader.token_ids([TEXT, *texts]))
    return model


@pytest.fixture
def made(model, reader, texts) -> ReaderTexts:
    return ReaderTexts(reader.tokenizer, model.policy.words.rarity(), WordCounts.of_texts([*texts, TEXT, TEXT]), 4)


def add_reconstructor(reader: Reader) -> Reconstructor:
    base = make_gpt2(len(reader.tokenizer), n_positions=1024)
    return Reconstructor(add_adapter(base, 4, 8), "prefix", reader.tokenizer.eos_token_id or 0)


def arguments(folder, **more) -> ReaderPolicyConfig:
    settings = {"max_steps": 4, "per_device_train_batch_size": 2, "num_masks": 3, "save_strategy": "no", "report_to": "none",
                "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "seed": 3}  # fmt: skip
    return ReaderPolicyConfig(output_dir=str(folder), **settings | more)


def test_what_is_drawn_depends_on_seed_and_text_alone(made):
    one, again, other = made("news", TEXT, 1), made("news", TEXT, 1), [made("news", TEXT, seed) for seed in range(20)]
    assert (one.question, one.asked) == (again.question, again.asked)
    assert 4 <= sum(text.question is not None for text in other) <= 16  # half of them
    for text in other:
        assert all(TEXT[asked.start : asked.end] == asked.target.strip() for asked in text.asked)
        assert len(text.asked) == 1 or text.question is None
        assert text.features[:, -13].any() == (text.question is not None)
    assert made("news", "of the and", 0) is None  # nothing can be asked
    passages = PassageTexts([("news", "of the and"), ("news", TEXT)], made, 0)
    assert len(passages) == 1 and passages[0].text == TEXT  # and is left out of a batch


def test_units_cover_the_text_and_a_batch_pads_them(made):
    long, short = made("news", TEXT, 1), made("news", "The harbour of Nordby is old and small.", 2)
    assert rendered(long, np.ones(len(long.pieces), bool)) == TEXT
    assert len(long.sentences) == len(long.pieces) and sorted(set(long.sentences)) == [0, 1, 2]
    batch = collate([short, long])
    assert batch["input_ids"].shape == batch["unit_ids"].shape == batch["features"].shape[:2]
    assert batch["unit_ids"][0, len(short.input_ids) :].eq(-1).all() and batch["unit_ids"][1].min() == 0


def asked_text(made) -> ReaderText:
    return next(text for seed in range(50) if (text := made("news", TEXT, seed)).question is not None)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_question_stands_among_other_passages(made, texts, place):
    alone, others = asked_text(made), ["The tram was late.", "Boats are blue. Nets are dry."]
    among = made.among(alone, others, place)
    assert among.text == "\n\n".join([*others[:place], TEXT, *others[place:]]) and among.question == alone.question
    (asked,) = among.asked
    assert among.text[asked.start : asked.end] == alone.asked[0].target.strip() == asked.target.strip()
    assert (asked.suffix, asked.target) == (alone.asked[0].suffix, alone.asked[0].target)
    assert rendered(among, np.ones(len(among.pieces), bool)) == among.text
    assert len(among.input_ids) == len(among.features) == among.pieces.starts[-1] > len(alone.input_ids)
    assert among.features[:, -13].all()  # the question


def test_bits_of_passages_are_joined_like_their_tokens(made, reader, texts):
    passages = [TEXT, *texts[:12]]
    bits = {text: np.asarray(reader.token_bits([""], [text])[0]) for text in passages}
    drawn = [one for seed in range(12) if (one := made("news", passages[seed % 4], seed)) is not None]
    found = list(_among_others(made, drawn, bits, passages, 3, 0))
    alone = _among_others(made, drawn, bits, passages, 0, 0)
    assert all(after is before for before, (after, _) in zip(drawn, alone, strict=True))
    assert len(found) == len(drawn) and any(after.text != before.text for before, (after, _) in zip(drawn, found))
    for before, (after, of_text) in zip(drawn, found):
        assert len(of_text) == len(after.input_ids) and before.text in after.text
        start = len(made.tokenizer(after.text[: after.text.index(before.text)], add_special_tokens=False)["input_ids"])
        assert np.array_equal(of_text[start : start + len(before.input_ids)], bits[before.text])
        assert (after is before) or before.question is not None
        assert after.text.split(before.text)[0].count("\n\n") <= 3


def test_batches_hold_texts_of_similar_length(made, texts):
    some = [
        one for text in [TEXT, *texts[:30]] for size in (1, 2, 5) if (one := made("news", " ".join([text] * size), 0))
    ]
    order = _by_length([*range(len(some))], some, torch.Generator().manual_seed(0))
    assert sorted(order) == [*range(len(some))]
    lengths = [[len(some[n].input_ids) for n in order[start : start + 24]] for start in range(0, len(order), 24)]
    assert np.mean([np.ptp(one) for one in lengths]) < 0.7 * np.ptp([len(one.input_ids) for one in some])


def test_stretches_come_from_all_kinds_and_never_twice():
    documents = [("a", " ".join(f"w{i}x{j}" for j in range(900))) for i in range(3)] + [("b", "one two three " * 80)]
    found = draw_stretches(documents, 6, [200, 400], seed=0)
    assert len(set(found)) == len(found) and sum(kind == "a" for kind, _ in found) == 6
    assert all(any(text in whole for _, whole in documents) for _, text in found)
    assert found == draw_stretches(documents, 6, [200, 400], seed=0)


def test_the_warm_start_ranks_by_its_target(model, made, reader, texts):
    examples = [made("t", text, seed) for seed in range(2) for text in [TEXT, *texts[:20]]]
    bits = [reader.token_bits([""], [example.text])[0] for example in examples]
    weights = [TargetWeights()] * len(RATES)
    targets = [target_scores(example, of_text, weights) for example, of_text in zip(examples, bits)]
    assert all(np.abs(target.mean(1)).max() < 1e-6 for target in targets)
    first = fit_ranking(model, examples, targets, 60, 0.3, 0.7, seed=0)
    assert np.mean(first[-10:]) < 0.5 * np.mean(first[:5])
    asked = next(example for example in examples if example.text == TEXT and example.question is not None)
    target = target_scores(asked, reader.token_bits([""], [TEXT])[0])[0]
    home = asked.sentences[np.searchsorted(asked.pieces.chars, asked.asked[0].start, side="right") - 1]
    assert target[asked.sentences == home].mean() > target[asked.sentences != home].mean() + 3


def test_targets_between_two_rates_are_mixed():
    targets = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 9.0]])
    for rate, expected in (
        (0.1, targets[0]),
        (0.3, targets[0]),
        (0.4, [1.0, 2.0]),
        (0.7, targets[2]),
        (0.9, targets[2]),
    ):
        assert np.allclose(at_rate(targets, rate), expected)


def test_weights_spread_alike_and_a_question_is_worth_the_same(made, reader):
    example = made.without_question("news", TEXT, 0)
    bits = reader.token_bits([""], [TEXT])[0]
    plain = target_scores(example, bits, CANDIDATES)
    assert np.allclose(plain.std(1), plain[0].std(), rtol=1e-4) and not np.allclose(plain[1], plain[2])
    asked = ReaderText(**{**vars(example), "question": "Who?", "asked": example.asked[:1]})
    margins = target_scores(asked, bits, CANDIDATES) - plain
    assert np.allclose(margins, margins[0], atol=1e-6) and np.ptp(margins[0]) > 5


class LikesRareTokens(Reader):
    """Is the less surprised by what it is asked the more bits the words of a text of one kind carry; of the other, the fewer."""

    def __init__(self, model, tokenizer, bits: dict[str, float]):
        super().__init__(model, tokenizer)
        self.of_word, self.calls = bits, 0

    def span_bits(self, lookups, share_context=True, progress=None):
        self.calls += 1
        return [np.full(len(pairs), 1000.0 - sum(self.of_word.get(word.strip(".,"), 0.0) for word in context.split()))
                for context, pairs in lookups]  # fmt: skip


def test_the_reader_chooses_weights_by_kind_and_goes_on_with_the_next_kind(made, reader, tmp_path):
    texts = [made.without_question(kind, TEXT + f" They were {kind}.", 0) for kind in ("first", "second")]
    bits = [np.random.default_rng(0).exponential(5, len(text.input_ids)) for text in texts]
    of_word = {}
    for text, of_text in zip(texts, bits):
        for number, word in enumerate(text.pieces.chars[:-1]):
            shown = text.text[word : text.pieces.chars[number + 1]].strip(" .,")
            of_word[shown] = float(of_text[text.pieces.starts[number] : text.pieces.starts[number + 1]].max()) ** 2
    path = tmp_path / "target_weights.json"
    liking = LikesRareTokens(reader.model, reader.tokenizer, of_word)
    chosen = choose_weights(liking, texts, bits, path)
    assert set(chosen) == {"first", "second"} and all(len(of_kind) == len(RATES) for of_kind in chosen.values())
    assert all(one.bits > TargetWeights().bits for of_kind in chosen.values() for one in of_kind)
    calls, whole = liking.calls, json.loads(path.read_text())
    assert choose_weights(liking, texts, bits, path) == chosen and liking.calls == calls
    assert read_weights(path) == chosen
    with pytest.raises(
        ValueError, match=r"nowhere.json' cannot be read \(FileNotFoundError\): pass the target_weights.json"
    ):
        read_weights(tmp_path / "nowhere.json")
    halved = whole | {"retention": {"first": whole["retention"]["first"]}}
    path.write_text(json.dumps(halved))
    assert choose_weights(liking, texts, bits, path) == chosen and liking.calls == calls + calls // 2
    path.write_text(json.dumps(whole | {"rates": [0.5]}))  # another run's
    with pytest.raises(ValueError, match=r"is of the rates \[0.5\]; those of this version are \[0.3, 0.5, 0.7\]"):
        read_weights(path)
    assert choose_weights(liking, texts, bits, path) == chosen and liking.calls == 2 * calls + calls // 2


class WantsAWord(Reader):
    """Reads as its model does, but is surprised by ten bits wherever the text lacks a word."""

    word = "Lund"

    def span_bits(self, lookups, share_context=True, progress=None):
        return [np.full(len(pairs), 0.0 if self.word in context else 10.0) for context, pairs in lookups]


def test_the_policy_learns_what_its_reader_wants(model, made, reader, tmp_path):
    wanting = WantsAWord(reader.model, reader.tokenizer)
    passages = [("t", TEXT.replace("Monday", day)) for day in ("Monday", "Friday", "Sunday", "Tuesday")]
    args = arguments(tmp_path, max_steps=60, learning_rate=1e-2, num_masks=8, min_rate=0.3, max_rate=0.5, far_credit=1.0,
                     sentence_noise=0.5, question_share=0.0, warmup_steps=1)  # fmt: skip
    made.question_share = 0.0
    before = [place_of(model, made, reader, text) for _, text in passages]
    trainer = ReaderPolicyTrainer(
        model, args, PassageTexts(passages, made, 0), wanting, processing_class=reader.tokenizer
    )
    trainer.train()
    after = [place_of(model, made, reader, text) for _, text in passages]
    assert np.mean(before) > 4 and np.mean(after) < 2, (before, after)
    logs = [entry for entry in trainer.state.log_history if "bits" in entry]
    assert np.mean([entry["bits"] for entry in logs[-10:]]) < 0.7 * np.mean([entry["bits"] for entry in logs[:10]])
    assert abs(np.mean([entry["rate"] - entry["rate_target"] for entry in logs])) < 0.05


def place_of(model, made, reader, text: str) -> int:
    """Where the wanted word stands in the order in which words are kept, 0 first."""
    one = made.encoded("t", text, None, [])
    batch = collate([one])
    model.policy.eval()
    with torch.no_grad():
        plan = model.policy.first_plan(
            batch["input_ids"], batch["attention_mask"].bool(), torch.tensor([0.4]), batch["features"]
        )[0].numpy()
    scores = one.pieces.means(plan)
    unit = np.searchsorted(one.pieces.chars, text.index("Lund"), side="right") - 1
    return int((scores > scores[unit]).sum() + (scores[:unit] == scores[unit]).sum())


def test_credit_is_whole_in_the_answers_sentence_and_partial_elsewhere(model, made, reader, tmp_path):
    wanting = WantsAWord(reader.model, reader.tokenizer)
    args = arguments(tmp_path, num_masks=2, far_credit=0.25)
    trainer = ReaderPolicyTrainer(
        model, args, PassageTexts([("t", TEXT)], made, 0), wanting, processing_class=reader.tokenizer
    )
    start = TEXT.index("Lund")
    text = made.encoded("t", TEXT, None, [Asked("?", " Lund", start, start + 4)])
    keep = np.ones((2, len(text.pieces)), bool)
    keep[1, text.unit_ids[0] + np.searchsorted(text.pieces.chars, start, side="right") - 1] = False
    credit, figures = trainer._credit([text], keep, len(text.pieces))
    # Ten bits, cut at eight.
    assert credit[0].tolist() == [8.0 if sentence == 0 else 2.0 for sentence in text.sentences]
    assert torch.equal(credit[1], -credit[0]) and figures["answer_kept"] == 0.5 and figures["bits"] == 5.0


def test_a_policy_of_another_kind_is_refused(reader, made, tmp_path):
    other = fresh_policy(reader, hidden_size=16, ngram_buckets=256)
    other.config.unit = "token"
    with pytest.raises(ValueError, match="decides by words"):
        ReaderPolicyTrainer(
            other, arguments(tmp_path), PassageTexts([], made, 0), reader, processing_class=reader.tokenizer
        )
    model = fresh_policy(reader, hidden_size=16, ngram_buckets=256)
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="all of a text at once"):
        model.policy.decide(ids, ids == 0, torch.tensor([0.5]), torch.tensor([2]))
    with pytest.raises(ValueError, match="needs the features of the words"):
        model.policy.first_plan(ids, ids == 0, torch.tensor([0.5]))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for kind in ("news", "notes"):
        rows = [
            {"text": f"{kind} {i}: " + " ".join(texts[(i + j) % 60] for j in range(3)), "source": f"{kind}{i}"}
            for i in range(40)
        ]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(base_folder, corpus, out, **more):
    settings = ReaderPolicyArguments(
        reader_name_or_path=base_folder, corpus=str(corpus), texts_per_kind=8, text_characters=[120], count_texts=10, warm_start_texts=6,
        warm_start_steps=4, natural_texts=6, policy_hidden_size=16, ngram_buckets=256,
    )  # fmt: skip
    args, checkpoint = arguments(out, lookups_per_text=2, **more), more.pop("checkpoint", None)
    return train_reader_policy(settings, args, checkpoint)


def test_a_run_goes_on_from_a_checkpoint_to_the_bit_and_compresses(base_folder, corpus, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(base_folder, corpus, whole)
    run(base_folder, corpus, broken, save_strategy="steps", save_steps=2)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (broken / name).unlink()
    settings = ReaderPolicyArguments(
        reader_name_or_path=base_folder, corpus=str(corpus), texts_per_kind=8, text_characters=[120], count_texts=10, warm_start_texts=6,
        warm_start_steps=4, natural_texts=6, policy_hidden_size=16, ngram_buckets=256,
    )  # fmt: skip
    train_reader_policy(settings, arguments(broken, lookups_per_text=2), str(broken / "checkpoint-2"))
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)
    started = load_file(whole / "warm_start" / "model.safetensors")
    assert any(not torch.equal(first[name], started[name]) for name in first)

    card = (whole / "README.md").read_text()
    assert "trained parameters" in card and "compressor.compress(text, rate=0.5, question=" in card
    assert json.loads((whole / "training_config.json").read_text())["texts_per_kind"] == 8

    compressor = Compressor.from_pretrained(whole)
    assert compressor.takes_question and compressor.policy.unit == "word"
    text = " ".join(line for line in (TEXT, "we saw 12 birds fly over the sea. a dog ran to the red house."))
    plain, asked = (
        compressor.compress(text, rate=0.5),
        compressor.compress(text, rate=0.5, question="Who rebuilt the harbour?"),
    )
    for result in (plain, asked):
        assert result.compressed_tokens <= result.target_tokens
    assert not np.array_equal(plain.scores, asked.scores)
    several = compressor.compress([text, text], rate=0.5, question=[None, "Who rebuilt the harbour?"])
    assert [one.text for one in several] == [plain.text, asked.text]
    with pytest.raises(
        ValueError, match="no reconstructor to restore with. Compress what is to be restored with the model 'embedded'"
    ):
        compressor.restore(plain)
    with pytest.raises(ValueError, match="1 questions and 2 texts"):
        compressor.compress([text, text], question=["Who?"])
    with pytest.raises(ValueError, match="without questions"):
        Compressor.from_pretrained("embedded").compress(text, question="Who?")
    stable = compressor.compress(text, rate=0.5, prefix_stable=True)
    assert stable.compressed_tokens <= stable.target_tokens


@pytest.fixture(scope="module")
def wide_base(tokenizer, tmp_path_factory) -> str:
    """Room for a text after what was kept of it."""
    folder = tmp_path_factory.mktemp("wide")
    make_gpt2(len(tokenizer), n_positions=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_texts_that_do_not_fit_the_reconstructor_are_left_out_or_told_at_once(base_folder, corpus, tmp_path, capsys):
    def settings(**more):
        return ReaderPolicyArguments(
            reader_name_or_path=base_folder, corpus=str(corpus), texts_per_kind=4, reconstructor_path=base_folder,
            warm_start_texts=4, warm_start_steps=0, natural_texts=0, policy_hidden_size=16, ngram_buckets=256, **more,
        )  # fmt: skip

    with pytest.raises(ValueError, match="`max_length` 512: .* room for texts of 47 tokens; pass no more"):
        train_reader_policy(settings(text_characters=[300], max_length=512), arguments(tmp_path / "run"))
    with pytest.raises(
        ValueError, match="Every text has more than `max_length` 47 tokens, .* shorter `text_characters`"
    ):
        train_reader_policy(settings(text_characters=[300]), arguments(tmp_path / "run"))
    args = arguments(tmp_path / "run", reader_weight=0.0, learning_rate=0.0, max_steps=1)
    trainer = train_reader_policy(settings(text_characters=[100, 300]), args)
    assert "texts have more than 47 tokens and are left out" in capsys.readouterr().out
    assert len(trainer.train_dataset) > 0 and all(len(one.input_ids) <= 47 for one in trainer.train_dataset)
    assert json.loads((tmp_path / "run" / "training_config.json").read_text())["max_length"] == 47


def test_a_reconstructor_learns_beside_the_policy_and_restores(wide_base, corpus, tmp_path):
    settings = ReaderPolicyArguments(
        reader_name_or_path=wide_base, corpus=str(corpus), texts_per_kind=8, text_characters=[120], count_texts=10, warm_start_texts=6,
        warm_start_steps=4, natural_texts=6, policy_hidden_size=16, ngram_buckets=256, reconstructor_path=wide_base,
    )  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    joint = {"lookups_per_text": 2, "reconstructor_weight": 0.5, "reconstructor_learning_rate": 3e-2, "warmup_steps": 1,
             "reconstructor_text_fraction": 1.0}  # fmt: skip
    trainer = train_reader_policy(settings, arguments(whole, **joint, max_steps=60))
    logs = [entry for entry in trainer.state.log_history if "reconstruction_loss" in entry]
    # Of random words little can be learnt, and that in the first steps.
    learnt = [np.mean([entry["reconstruction_loss"] for entry in part]) for part in (logs[:2], logs[-16:])]
    assert learnt[1] < learnt[0] - 0.05 and all(0 < entry["bits_lost"] < 20 for entry in logs)

    train_reader_policy(settings, arguments(broken, **joint, save_strategy="steps", save_steps=2))
    last = {name: load_file(broken / name) for name in ("model.safetensors", "adapter/adapter_model.safetensors")}
    for name in (*last, "config.json", "tokenizer.json"):
        (broken / name).unlink()
    train_reader_policy(settings, arguments(broken, **joint), str(broken / "checkpoint-2"))
    for name, weights in last.items():
        again = load_file(broken / name)
        assert all(torch.equal(again[key], weights[key]) for key in weights), name

    compressor = Compressor.from_pretrained(whole)
    result = compressor.compress(TEXT, rate=0.5)
    restored = compressor.restore(result)
    assert restored.is_restoration and len(restored.input_ids) == result.original_tokens
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"base_model_name_or_path": "nobody/no-such-model"}))
    with pytest.raises(
        ValueError, match="Restoring needs the base model: from the Hub by its id, or in a folder, `base_model=`"
    ):
        Compressor.from_pretrained(whole).restore(result)
    elsewhere = pickle.loads(pickle.dumps(Compressor.from_pretrained(whole, base_model=wide_base)))
    assert elsewhere.restore(result).text == restored.text
    assert "reconstructor in `adapter/`" in (whole / "README.md").read_text()


def test_the_reconstructors_reward_reaches_every_word(model, made, reader, tmp_path):
    """With it the dearer masks, in bits to restore, get lower advantages; without a reader's weight nothing else counts."""
    policy = fresh_policy(reader, 16, 256, reconstructor=add_reconstructor(reader))
    policy.policy.tokens.refresh()
    policy.policy.load_state_dict(model.policy.state_dict())
    args = arguments(tmp_path, reader_weight=0.0, reconstructor_weight=1.0, num_masks=4)
    trainer = ReaderPolicyTrainer(
        policy, args, PassageTexts([("t", TEXT)], made, 0), reader, processing_class=reader.tokenizer
    )
    batch = collate([made("t", TEXT, 1)])
    loss, decisions = trainer.compute_loss(policy, batch, return_outputs=True)
    scored = policy.reconstructor.token_nll(
        batch["input_ids"].repeat(4, 1), decisions.actions.bool().gather(1, batch["unit_ids"].repeat(4, 1)),
        batch["attention_mask"].bool().repeat(4, 1),
    ).nll.detach().sum(1)  # fmt: skip
    order = scored - scored.mean()
    assert order.abs().max() > 1e-3
    expected = -(-order[:, None] * decisions.log_probs).sum()
    wanted = torch.autograd.grad(expected, policy.policy.to_logit.weight, retain_graph=True)[0]
    got = torch.autograd.grad(loss, policy.policy.to_logit.weight)[0]
    assert torch.nn.functional.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.999


def test_a_reconstructor_over_another_base_is_refused(base_folder, corpus, tokenizer, tmp_path):
    other = tmp_path / "other"
    make_gpt2(len(tokenizer), n_embd=48).save_pretrained(other)
    tokenizer.save_pretrained(other)
    settings = ReaderPolicyArguments(
        reader_name_or_path=base_folder, corpus=str(corpus), texts_per_kind=8, reconstructor_path=str(other)
    )
    with pytest.raises(ValueError, match="different embeddings: both must be one base model"):
        train_reader_policy(settings, arguments(tmp_path / "run"))


def test_the_recipe_is_that_run(base_folder, corpus, tmp_path):
    run(base_folder, corpus, tmp_path / "python")
    words = {"reader_name_or_path": base_folder, "corpus": corpus, "texts_per_kind": 8, "text_characters": 120, "count_texts": 10,
             "warm_start_texts": 6, "warm_start_steps": 4, "natural_texts": 6, "policy_hidden_size": 16, "ngram_buckets": 256, "lookups_per_text": 2,
             "output_dir": tmp_path / "recipe", "max_steps": 4, "per_device_train_batch_size": 2, "num_masks": 3, "save_strategy": "no",
             "report_to": "none", "use_cpu": "true", "disable_tqdm": "true", "logging_steps": 1, "seed": 3}  # fmt: skip
    line = [str(word) for key, value in words.items() for word in (f"--{key}", value)]
    runpy.run_path(str(ROOT / "recipes/train_reader_policy.py"))["main"](line)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("python", "recipe"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "change, message",
    [({"policy_dilations": []}, "whole numbers"), ({"policy_dilations": [2, 0]}, "whole numbers"), ({"other_passages": -1}, "other_passages"),
     ({"policy_hidden_size": 0}, "policy_hidden_size")],
)  # fmt: skip
def test_a_policy_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ReaderPolicyArguments(reader_name_or_path="", corpus="", **change)


@pytest.mark.parametrize("change, message", [
    ({"num_masks": 1}, "num_masks"), ({"far_credit": 1.5}, "far_credit"), ({"sentence_noise": -1.0}, "sentence_noise"),
])  # fmt: skip
def test_arguments_out_of_range_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **change)
