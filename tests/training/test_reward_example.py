"""The example of a reward for a downstream answer: its bits by hand, what it cannot score, and that a policy learns from it."""

import json
import math
import random

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from recipes.reward_answer import AnswerReward
from tests.conftest import ALL_BY_GRADIENT, END, make_gpt2
from tests.training.test_episodes import episodes
from tokforget.models.forget_model import ForgetModel
from tokforget.training.config import ForgetConfig
from tokforget.training.forget_trainer import ForgetTrainer
from tokforget.training.rewards import WeightedRewards, load_reward


FILLERS, CODES, LENGTH = [f"word{i}" for i in range(20)], [f"code{i}" for i in range(8)], 16
WORDS = [END, "answer", *FILLERS, *CODES]
FIRST_CODE = WORDS.index("code0")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token=END))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END)


def draw_text(draw: random.Random) -> list[str]:
    """Fillers, and at one place the code that will be asked for."""
    text = [draw.choice(FILLERS) for _ in range(LENGTH)]
    text[draw.randrange(LENGTH)] = draw.choice(CODES)
    return text


@pytest.fixture(scope="module")
def reader() -> GPT2LMHeadModel:
    """A model that has learnt to name the code that it read, and to guess where it read none."""
    model, draw = make_gpt2(len(WORDS), seed=1, n_positions=32), random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        rows = []
        for _ in range(32):
            text = [word for word in draw_text(draw) if draw.random() < 0.6]
            code = next((word for word in text if word in CODES), draw.choice(CODES))
            rows.append([0] * (LENGTH - len(text)) + [WORDS.index(word) for word in [END, *text, "answer", code]])
        ids = torch.tensor(rows)
        attention = (ids != 0).long()
        attention[:, 0] = 1
        logits = model(ids, attention_mask=attention, position_ids=(attention.cumsum(1) - 1).clamp(min=0)).logits
        loss = torch.nn.functional.cross_entropy(logits[:, -2], ids[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> tuple[str, list[list[int]]]:
    """A file of texts, question and answer each, and the texts' ids."""
    draw, path = random.Random(2), tmp_path_factory.mktemp("answers") / "answers.jsonl"
    texts = [draw_text(draw) for _ in range(400)]
    rows = [{"text": " ".join(text), "question": "which code", "answer": next(w for w in text if w in CODES)}
            for text in texts]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path), [[WORDS.index(word) for word in text] for text in texts]


def make_reward(answers, reader, tokenizer) -> AnswerReward:
    return AnswerReward(answers[0], reader=reader, reader_tokenizer=tokenizer, template=" answer")


def plain_bits(reader, read: list[int], code: int) -> float:
    row = torch.tensor([[0, *read, WORDS.index("answer")]])
    return -torch.log_softmax(reader(row).logits[0, -1], -1)[code].item() / math.log(2)


def test_bits_are_the_readers_own(answers, reader, tokenizer):
    ids = answers[1][0]
    place = next(n for n, token in enumerate(ids) if token >= FIRST_CODE)
    masks = [[n == place for n in range(LENGTH)], [n != place for n in range(LENGTH)], [True] * LENGTH]
    batch = episodes([[0.0] * LENGTH] * 3, masks, num_masks=3, window=6)
    batch.input_ids = torch.tensor([ids] * 3)
    reward = make_reward(answers, reader, tokenizer)(batch)
    assert reward.shape == (3, 3) and torch.allclose(reward, reward[:, :1].expand(3, 3)), "equal shares"
    whole = plain_bits(reader, ids, ids[place])
    for row, mask in zip(reward, masks):
        read = [token for token, kept in zip(ids, mask) if kept]
        assert row.sum().item() == pytest.approx(whole - plain_bits(reader, read, ids[place]), abs=1e-3)
    assert reward[0].sum() > -0.5 and reward[1].sum() < -1 and reward[2].sum() == pytest.approx(0.0, abs=1e-4)


def test_a_text_without_an_answer_is_not_scored_and_short_texts_have_fewer_decisions(
    answers, reader, tokenizer, tmp_path
):
    path = tmp_path / "answers.jsonl"
    rows = [{"text": "word1 code2", "answer": "code2"}, {"text": "word1 code2", "answer": "code3"}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    keep = [[True, False, False, False]] * 2 + [[False, True, False, False]] * 2
    valid = [[True] * 4] * 2 + [[True, True, False, False]] * 2
    batch = episodes([[0.0] * 4] * 4, keep, valid=valid, num_masks=2, window=2)
    short = [WORDS.index("word1"), WORDS.index("code2"), 0, 0]
    batch.input_ids = torch.tensor([[3, 4, 5, 6]] * 2 + [short] * 2)
    reward = AnswerReward(str(path), reader=reader, reader_tokenizer=tokenizer)
    found = WeightedRewards([reward])(batch)
    assert torch.isnan(found.by_name["AnswerReward"]).tolist() == [True, True, False, False]
    values = found.per_decision[2:]
    assert (values[:, 0] != 0).all() and not values[:, 1].any()
    # Two lines of one text: their mean. No question: the answer follows the text.
    bits = [[-torch.log_softmax(reader(torch.tensor([[0, *read]])).logits[0, -1], -1)[WORDS.index(code)].item() / math.log(2)
             for code in ("code2", "code3")] for read in (short[1:2], short[:2])]  # fmt: skip
    assert values[0, 0].item() == pytest.approx((sum(bits[1]) - sum(bits[0])) / 2, abs=1e-3)


def test_it_loads_by_its_import_path_and_names_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'answers.jsonl': no such file"):
        load_reward("recipes.reward_answer:AnswerReward")
    (tmp_path / "answers.jsonl").write_text("\n")
    name, reward = load_reward("recipes.reward_answer:AnswerReward")
    assert name == "AnswerReward" and isinstance(reward, AnswerReward)
    for _ in range(2):  # an error does not turn into a reward when asked again
        with pytest.raises(ValueError, match="holds no line with an answer"):
            reward(episodes([[0.0, 1.0]], [[True, False]], num_masks=1))


def test_the_policy_comes_to_keep_what_the_answer_needs(answers, reader, tokenizer, tmp_path):
    make_gpt2(len(WORDS), n_positions=64).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = ForgetModel.from_base(
        str(tmp_path / "base"), tokenizer, lora_rank=2, lora_alpha=4, hidden_size=16, dilations=[1], head_size=16,
        window=8, ngram_buckets=0,
    )  # fmt: skip
    plain = {
        key: value for key, value in ALL_BY_GRADIENT.items() if key not in ("policy_learning_rate", "reward_funcs")
    }
    args = ForgetConfig(
        output_dir=str(tmp_path / "out"), max_steps=30, per_device_train_batch_size=16, policy_learning_rate=2e-2, **plain,
        warmup_steps=2, min_rate=0.2, max_rate=0.5, use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=10,
        save_strategy="no", seed=0,
    )  # fmt: skip
    args.reward_funcs = [make_reward(answers, reader, tokenizer)]
    rows = [{"input_ids": ids} for ids in answers[1]]

    def codes_kept() -> float:
        draw = random.Random(3)
        ids = torch.tensor([[WORDS.index(word) for word in draw_text(draw)] for _ in range(64)])
        mask = model.eval().keep_mask(ids, torch.ones_like(ids), torch.full((64,), 0.25))
        return float((mask & (ids >= FIRST_CODE)).sum() / 64)

    trainer = ForgetTrainer(model, args, rows, processing_class=tokenizer)
    trainer.train()
    assert codes_kept() >= 0.95  # a quarter by chance
    log = [log["rewards/AnswerReward"] for log in trainer.state.log_history if "rewards/AnswerReward" in log]
    assert log[-1] > log[0]
