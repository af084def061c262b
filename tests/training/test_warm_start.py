"""The warm start: its targets against the reconstructor's own scores, and a ranking that is really learnt."""

import pytest
import torch

from tests.conftest import make_model
from tokforget.training.warm_start import load_warm_start_data, save_warm_start_data, target_bits, warm_start


TEXTS = [torch.arange(5, 5 + length) for length in (12, 7, 9)]


@pytest.mark.parametrize("layout", ["prefix", "infill"])
def test_self_information_is_the_base_models_surprisal(base_folder, tokenizer, layout):
    model = make_model(base_folder, tokenizer, layout=layout)
    with model.reconstructor.model.disable_adapter(), torch.no_grad():
        for text, bits in zip(TEXTS, target_bits(model, TEXTS, "self_information")):
            row = torch.cat([torch.tensor([model.config.marker_token_id]), text])[None]
            log_p = model.reconstructor.model(input_ids=row).logits[0, :-1].log_softmax(-1)
            expected = -log_p.gather(1, text[:, None]).squeeze(1) / torch.log(torch.tensor(2.0))
            assert torch.allclose(bits, expected, atol=1e-4)


def test_leave_one_out_is_what_the_reconstructor_loses(model):
    found = target_bits(model, TEXTS, "leave_one_out")
    for text, bits in zip(TEXTS, found):
        valid = torch.ones(1, len(text), dtype=torch.bool)
        for turn in range(2):
            keep = (torch.arange(len(text)) % 2 != turn)[None]
            with torch.no_grad():
                nll = model.reconstructor.token_nll(text[None], keep, valid).nll[0]
            assert torch.allclose(bits[~keep[0]], nll[~keep[0]], atol=1e-4)


def test_a_ranking_is_learnt_and_holds_in_every_window(base_folder, tokenizer):
    """Bits that hang on the token alone: after the fit the policy keeps the dearest, wherever they stand."""
    model = make_model(base_folder, tokenizer)
    torch.nn.init.zeros_(model.policy.to_logit.weight)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(5, 25, (16,), generator=generator) for _ in range(64)]
    price = torch.randperm(25, generator=generator).float() / 3
    losses = warm_start(
        model, texts, [price[text] for text in texts], 120, 0.2, 0.8, seed=0, learning_rate=1e-2, batch_size=16
    )
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    model.eval()
    ids = torch.stack(texts[:16])
    keep = model.keep_mask(ids, torch.ones_like(ids), torch.full((16,), 0.5))
    assert keep.sum(1).tolist() == [8] * 16
    best = torch.stack([price[text].topk(8).values.sum() for text in texts[:16]])
    assert ((price[ids] * keep).sum(1) > 0.97 * best).all()


def test_the_same_seed_gives_the_share_warm_start(base_folder, tokenizer):
    states = []
    for seed in (1, 1, 2):
        model = make_model(base_folder, tokenizer)
        warm_start(model, TEXTS, target_bits(model, TEXTS, "self_information"), 3, 0.2, 0.8, seed, batch_size=2)
        states.append(model.policy.to_head.weight.detach())
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_any_number_of_steps(base_folder, tokenizer, steps):
    """The rise of the learning rate is a twentieth of the steps: of 20 just one, which a schedule cannot divide by."""
    model = make_model(base_folder, tokenizer)
    bits = target_bits(model, TEXTS, "self_information")
    losses = warm_start(model, TEXTS, bits, steps, 0.2, 0.8, 0, batch_size=2)
    assert len(losses) == steps and all(0 < loss < 100 for loss in losses)


def test_the_logit_scale_multiplies_the_logits_and_leaves_their_order(base_folder, tokenizer):
    plans = []
    ids, valid = torch.stack([text[:4] for text in TEXTS]), torch.ones(len(TEXTS), 4, dtype=torch.bool)
    for logit_scale in (1.0, 12.0):
        model = make_model(base_folder, tokenizer)
        bits = target_bits(model, TEXTS, "self_information")
        warm_start(model, TEXTS, bits, 3, 0.2, 0.8, 0, logit_scale, batch_size=2)
        plans.append(model.eval().policy.first_plan(ids, valid, torch.full((len(TEXTS),), 0.5)).detach())
    assert torch.allclose(12 * plans[0], plans[1], atol=1e-4) and plans[0].std() > 0


def test_warm_start_data_are_read_as_they_were_written_and_refused_on_other_texts(tmp_path):
    bits = [torch.arange(len(text)) / 3 for text in TEXTS]
    save_warm_start_data(tmp_path / "warm_start_data", TEXTS, bits)
    training, sampled = [text.tolist() for text in TEXTS[:2]], TEXTS[2].tolist()
    stored = load_warm_start_data(str(tmp_path / "warm_start_data"), training)
    assert stored["input_ids"] == [*training, sampled]
    assert all(torch.equal(torch.tensor(row), own) for row, own in zip(stored["bits"], bits))
    with pytest.raises(ValueError, match="are of other texts than this run's"):
        load_warm_start_data(str(tmp_path / "warm_start_data"), training[::-1])
    with pytest.raises(ValueError, match="holds no warm-start data"):
        load_warm_start_data(str(tmp_path / "gone"), training)
