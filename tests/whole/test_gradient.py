"""
The estimator against the exact gradient, by enumerating every keep mask of a short text; and what it learns.

No part is replaced: the policy decides in two windows, a real two-layer GPT-2 with an adapter scores.
"""

import itertools

import pytest
import torch

from tests.conftest import ALL_BY_GRADIENT, PAIRS_VOCABULARY, make_gpt2, make_model, make_tokenizer, pair_texts
from tokforget.data.blocks import BlockCollator
from tokforget.evaluation.baselines import Random
from tokforget.evaluation.comparison import compare
from tokforget.evaluation.scorers import Policy
from tokforget.models.forget_model import ForgetModel
from tokforget.training.config import ForgetConfig
from tokforget.training.episodes import EpisodeBatch, leave_one_out_advantages, token_returns
from tokforget.training.forget_trainer import ForgetTrainer
from tokforget.training.rewards import information_theoretic


TOKENS, RATE, COUNT = 6, 0.5, 3
PRICE = 5.0


@pytest.fixture
def tiny(base_folder, tokenizer) -> ForgetModel:
    return make_model(base_folder, tokenizer, window=3)


@pytest.fixture
def text() -> torch.Tensor:
    return torch.tensor([[5, 17, 5, 40, 8, 17]])


def all_masks() -> torch.Tensor:
    return torch.tensor(list(itertools.product([0, 1], repeat=TOKENS)))  # (64, T)


def decide(model: ForgetModel, text: torch.Tensor, num_masks: int, **kwargs):
    ones = torch.full((len(text),), RATE)
    counts = torch.full((len(text),), COUNT)
    return model.policy.decide(
        text, torch.ones_like(text, dtype=torch.bool), ones, counts, num_masks=num_masks, **kwargs
    )


def collect(model: ForgetModel, text: torch.Tensor, decisions, num_masks: int) -> EpisodeBatch:
    ids = text.repeat_interleave(num_masks, 0)
    valid = torch.ones_like(ids, dtype=torch.bool)
    keep_mask = decisions.actions.bool()
    with torch.no_grad():
        # Only 64 masks exist: score each once.
        masks, inverse = keep_mask.unique(dim=0, return_inverse=True)
        nll = model.reconstructor.token_nll(text[:1].expand(len(masks), -1), masks, valid[: len(masks)]).nll[inverse]
    return EpisodeBatch(
        input_ids=ids, valid=valid, rate=torch.full((len(ids),), RATE), keep_mask=keep_mask, num_masks=num_masks,
        keep_probability=torch.sigmoid(decisions.keep_logits.detach()), token_nll=nll,
        token_correct=torch.zeros_like(keep_mask), window=3, keep_price=PRICE,
    )  # fmt: skip


def expected_reward(model: ForgetModel, text: torch.Tensor) -> torch.Tensor:
    """Exact, with its gradient: the sum over all masks of probability times reward."""
    masks = all_masks()
    decisions = decide(model, text, num_masks=len(masks), actions=masks)
    probability = decisions.log_probs.sum(1).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-4)
    reward = information_theoretic(collect(model, text, decisions, len(masks))).sum(1)
    return (probability * reward).sum()


def gradient_of(value: torch.Tensor, model: ForgetModel) -> torch.Tensor:
    parameters = [p for p in model.policy.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads)])


def policy_loss(model: ForgetModel, text: torch.Tensor, generator, num_masks=4, decay=1.0) -> torch.Tensor:
    """Sum over tokens, mean over episodes: minus its gradient estimates that of the expected reward."""
    decisions = decide(model, text, num_masks, generator=generator)
    rewards = information_theoretic(collect(model, text, decisions, num_masks))
    advantages = leave_one_out_advantages(token_returns(rewards, decay), num_masks)
    return -(advantages * decisions.log_probs).sum(1).mean()


def test_the_estimator_is_unbiased(tiny, text):
    """60 batches of 400 episodes: each coordinate within 6 standard errors, the direction within 10 degrees."""
    exact = gradient_of(expected_reward(tiny, text), tiny)
    generator = torch.Generator().manual_seed(0)
    copies = text.expand(100, -1)
    samples = torch.stack([-gradient_of(policy_loss(tiny, copies, generator), tiny) for _ in range(60)])
    mean, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    assert exact.norm() > 1e-3
    assert torch.cosine_similarity(mean, exact, dim=0) > 0.985
    off = (mean - exact).abs() / (error + 1e-6 * exact.norm())
    # By chance one of 3,637 coordinates with Student's t of 59 degrees lies above 4.5 in one run of 8, above 6 in one of 2,100.
    assert (off < 6).all(), f"worst coordinate is {off.max():.1f} standard errors off"


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_updates_raise_the_expected_reward(tiny, text, decay):
    """With local credit too, which trades a bias for less noise."""
    before = expected_reward(tiny, text).item()
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(tiny.policy.parameters(), lr=0.02)
    for _ in range(10):
        optimizer.zero_grad()
        policy_loss(tiny, text.expand(50, -1), generator, decay=decay).backward()
        optimizer.step()
    assert expected_reward(tiny, text).item() > before + 0.01


def test_credit_is_per_text(model, batch):
    """Another text beside it changes nothing in a text's advantages."""

    def advantages(ids: torch.Tensor) -> torch.Tensor:
        valid = batch[1]
        decisions = model.policy.decide(ids, valid, torch.full((3,), 0.5), valid.sum(1) // 2, num_masks=4,
                                        generator=torch.Generator().manual_seed(2))  # fmt: skip
        repeated, all_valid = ids.repeat_interleave(4, 0), valid.repeat_interleave(4, 0)
        nll = model.reconstructor.token_nll(repeated, decisions.actions.bool(), all_valid).nll.detach()
        episodes = EpisodeBatch(
            input_ids=repeated, valid=all_valid, rate=torch.full((12,), 0.5), keep_mask=decisions.actions.bool(),
            keep_probability=torch.sigmoid(decisions.keep_logits.detach()), token_nll=nll,
            token_correct=torch.zeros_like(all_valid), window=4, num_masks=4,
        )  # fmt: skip
        return leave_one_out_advantages(token_returns(information_theoretic(episodes), 0.3), 4)

    changed = batch[0].clone()
    changed[0] = (changed[0] + 11) % 200
    before, after = advantages(batch[0]), advantages(changed)
    assert not torch.allclose(before[:4], after[:4])
    assert torch.allclose(before[4:], after[4:], atol=1e-3)
    assert before[4:8].std(1).min() > 0, "one advantage per token, not one scalar per text"


# -- learning ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pairs_run(tmp_path_factory) -> ForgetTrainer:
    """The whole loop on text in which every second token repeats the first; the base model reads such text a little."""
    folder = tmp_path_factory.mktemp("pairs")
    tokenizer = make_tokenizer(["a b c d"], vocab_size=260)
    base = make_gpt2(len(tokenizer), n_positions=64)
    optimizer = torch.optim.AdamW(base.parameters(), lr=3e-3)
    for step in range(150):
        ids = pair_texts(32, 24, seed=step)
        optimizer.zero_grad()
        base(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    model = ForgetModel.from_base(
        str(folder / "base"), tokenizer, lora_rank=4, lora_alpha=8, hidden_size=32, dilations=[1, 2], head_size=16,
        window=6, ngram_buckets=0,
    )  # fmt: skip
    rows = [{"input_ids": row} for row in pair_texts(640, 24, seed=999).tolist()]
    rates = {"policy_learning_rate": 1e-2, "reconstructor_learning_rate": 3e-3}
    args = ForgetConfig(
        output_dir=str(folder / "out"), max_steps=120, per_device_train_batch_size=16, **ALL_BY_GRADIENT | rates, warmup_steps=5, min_rate=0.4, max_rate=0.6, logging_steps=20, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", seed=0,
    )  # fmt: skip
    trainer = ForgetTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.frozen_before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer.trained_before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer.train()
    return trainer


def test_the_policy_comes_to_drop_the_repeats(pairs_run):
    ids = pair_texts(64, 24, seed=12345)
    pairs_run.model.eval()
    keep_mask = pairs_run.model.keep_mask(ids, torch.ones_like(ids), torch.full((64,), 0.5))
    dropped = ~keep_mask
    assert dropped.sum() == 64 * 12
    assert dropped[:, 1::2].sum() / dropped.sum() >= 0.95


def test_the_evaluation_ranks_the_trained_above_an_untrained_policy_and_chance(pairs_run):
    ids = pair_texts(64, 24, seed=12345)
    model = pairs_run.model.eval()
    torch.manual_seed(1)
    untrained = ForgetModel(model.config, model.reconstructor)
    torch.nn.init.normal_(untrained.policy.to_logit.weight)
    scorers = [Policy(model), Policy(untrained, "untrained"), Random(0)]
    rows = compare(scorers, model.reconstructor, [(ids, torch.ones_like(ids, dtype=torch.bool))], [0.5])
    trained, fresh, chance = (row["bits_lost_interval"] for row in rows)
    assert trained[1] < fresh[0] and trained[1] < chance[0], "the intervals do not even touch"


def test_keeping_or_dropping_all_is_worse_at_the_same_price(pairs_run):
    ids = pair_texts(64, 24, seed=54321)
    model = pairs_run.model.eval()
    learnt = model.keep_mask(ids, torch.ones_like(ids), torch.full((64,), 0.5))
    valid, price = torch.ones_like(learnt), 1.0  # far above a repeat's bits, far below those of a fresh token (4.5)

    def reward(keep_mask: torch.Tensor) -> float:
        with torch.no_grad():
            return (
                float(-model.reconstructor.token_nll(ids, keep_mask, valid).nll.sum() - price * keep_mask.sum()) / 64
            )

    assert reward(learnt) > reward(valid) + 1
    assert reward(learnt) > reward(~valid) + 1


def test_both_networks_change_and_the_base_does_not(pairs_run):
    parameters = dict(pairs_run.model.named_parameters())
    assert len(pairs_run.frozen_before) > 10
    for name, before in pairs_run.frozen_before.items():
        assert torch.equal(parameters[name], before), f"{name} is frozen and moved"
    for part in ("policy.", "lora_"):
        names = [name for name in pairs_run.trained_before if part in name]
        assert names and all(not torch.equal(parameters[n], pairs_run.trained_before[n]) for n in names), part


def test_every_metric_is_logged(pairs_run):
    log = pairs_run.state.log_history[-2]
    expected = {
        "policy_loss", "reconstruction_loss", "reward", "rewards/information_theoretic", "bits_lost", "exact_restored",
        "rate", "rate_target", "keep_price", "entropy", "advantage_std", "frac_advantage_zero", "frac_unscored", "frac_undecided",
        "decisions_per_episode", "policy_learning_rate", "reconstructor_learning_rate", "tokens_per_second", "grad_norm",
    }  # fmt: skip
    assert expected <= log.keys()
    assert log["decisions_per_episode"] == 4
    assert log["rate"] == pytest.approx(log["rate_target"], abs=0.02)
    first = pairs_run.state.log_history[0]
    assert log["reconstruction_loss"] < first["reconstruction_loss"] and log["bits_lost"] < first["bits_lost"]


def test_a_collapse_is_said_aloud(caplog):
    healthy = {"rate": 0.5, "entropy": 0.3, "frac_advantage_zero": 0.0, "frac_unscored": 0.0}
    ForgetTrainer._warn_of_collapse(healthy)
    assert not caplog.records
    for key, value in [
        ("rate", 0.999),
        ("rate", 0.001),
        ("entropy", 0.0),
        ("frac_advantage_zero", 1.0),
        ("frac_unscored", 0.5),
    ]:
        caplog.clear()
        ForgetTrainer._warn_of_collapse(healthy | {key: value})
        assert len(caplog.records) == 1, key


def test_the_vocabulary_of_pairs_is_what_the_tests_say():
    assert (
        pair_texts(2, 6, 0).max() < PAIRS_VOCABULARY
        and (pair_texts(2, 6, 0)[:, ::2] == pair_texts(2, 6, 0)[:, 1::2]).all()
    )
    assert BlockCollator(0)([{"input_ids": [1, 2]}, {"input_ids": [3]}])["attention_mask"].tolist() == [[1, 1], [1, 0]]
