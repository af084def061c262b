"""Scores and restorations of both layouts, on GPT-2 and Llama-type models, against slow constructions."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.conftest import make_gpt2
from tokforget.models.loading import add_adapter, marker_token_id
from tokforget.models.reconstructor import LAYOUTS, PASSES, Reconstructor


LN2 = 0.6931471805599453
SMALL = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 96}  # fmt: skip


def base(kind: str):
    torch.manual_seed(1)
    if kind == "gpt2":
        return make_gpt2(200)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SMALL))
    # Logits are soft-capped after the head: the head alone would be wrong.
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=0.5))


def build(kind: str, layout: str) -> Reconstructor:
    model = base(kind).requires_grad_(False)
    model = add_adapter(model, rank=4, alpha=8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)  # an adapter that does something
    return Reconstructor(model, layout, marker_token_id=0)


@pytest.fixture
def keep_mask(batch) -> torch.Tensor:
    return (torch.rand(batch[1].shape, generator=torch.Generator().manual_seed(5)) < 0.5) & batch[1]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_prefix_scores_equal_one_row_at_a_time(kind, batch, keep_mask):
    reconstructor = build(kind, "prefix")
    scores = reconstructor.token_nll(batch[0], keep_mask, batch[1])
    for row, length in enumerate(batch[1].sum(1).tolist()):
        ids, keep = batch[0][row, :length], keep_mask[row, :length]
        text = torch.cat([ids[keep], torch.tensor([0]), ids])[None]
        log_p = torch.log_softmax(reconstructor.model(input_ids=text).logits[0, int(keep.sum()) :], -1)
        for t in range(length):
            expected = 0.0 if keep[t] else -log_p[t, ids[t]].item() / LN2
            assert scores.nll[row, t].item() == pytest.approx(expected, abs=2e-4)
            assert bool(scores.correct[row, t]) == (not keep[t] and int(log_p[t].argmax()) == int(ids[t]))
        assert not scores.nll[row, length:].any()


@pytest.fixture
def many() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """40 texts of 2 to 20 tokens: ids, keep mask and validity, each `(40, 20)`."""
    generator, lengths = torch.Generator().manual_seed(0), torch.arange(40) % 19 + 2
    valid = torch.arange(20) < lengths[:, None]
    ids = torch.randint(1, 200, valid.shape, generator=generator).masked_fill(~valid, 0)
    return ids, (torch.rand(valid.shape, generator=generator) < 0.5) & valid, valid


def scores_and_gradients(reconstructor: Reconstructor, rows: tuple[torch.Tensor, ...]) -> tuple:
    scores = reconstructor.token_nll(*rows)
    weights = torch.rand(rows[2].shape, generator=torch.Generator().manual_seed(1))
    reconstructor.zero_grad()
    (scores.nll * weights).sum().backward()
    return scores, [p.grad.clone() for p in reconstructor.parameters() if p.requires_grad]


def assert_alike(one: tuple, two: tuple) -> None:
    torch.testing.assert_close(one[0].nll, two[0].nll, rtol=0, atol=1e-4)
    assert torch.equal(one[0].correct, two[0].correct)
    torch.testing.assert_close(one[1], two[1], rtol=1e-3, atol=1e-4)


def shapes_of_forwards(reconstructor: Reconstructor, monkeypatch) -> list[torch.Size]:
    shapes, run = [], reconstructor.model.forward
    monkeypatch.setattr(
        reconstructor.model, "forward", lambda **shown: shapes.append(shown["input_ids"].shape) or run(**shown)
    )
    return shapes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_batch_goes_in_groups_of_like_lengths_and_scores_the_same(layout, many, monkeypatch):
    reconstructor, found = build("gpt2", layout), []
    shapes = shapes_of_forwards(reconstructor, monkeypatch)
    for least in (40, 16):
        monkeypatch.setitem(PASSES, "cpu", replace(PASSES["cpu"], least_rows=least))
        found.append(scores_and_gradients(reconstructor, many))
    assert [rows for rows, _ in shapes] == [40, 20, 20]
    assert shapes[1][1] < shapes[2][1] == shapes[0][1]
    assert_alike(*found)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("gpt2", "prefix"), ("gpt2", "infill"), ("llama", "prefix"), ("llama", "infill"), ("gemma2", "prefix")],
)
def test_the_passes_of_a_gpu_have_rounded_widths_and_score_the_same(kind, layout, many, monkeypatch):
    reconstructor = build(kind, layout)
    expected = scores_and_gradients(reconstructor, many)
    shapes = shapes_of_forwards(reconstructor, monkeypatch)
    # Widths at most 41 (prefix) or 21 tokens, rounded to 48 or 32: 20 rows of them fit.
    most_tokens = 20 * (48 if layout == "prefix" else 32)
    for passes in (PASSES["cuda"], replace(PASSES["cuda"], width_step=16, most_tokens=most_tokens)):
        monkeypatch.setitem(PASSES, "cpu", passes)
        assert_alike(expected, scores_and_gradients(reconstructor, many))
    assert shapes[0] == (40, 64)
    assert [rows for rows, _ in shapes[1:]] == [20, 20] and all(width % 16 == 0 for _, width in shapes[1:])
    # The context ends at 96 tokens: no width beyond it.
    ids = torch.ones(1, reconstructor.max_tokens, dtype=torch.long)
    keep_mask = torch.arange(ids.shape[1])[None] > 0
    monkeypatch.setitem(PASSES, "cpu", PASSES["cuda"])
    assert reconstructor.token_nll(ids, keep_mask, torch.ones_like(keep_mask)).nll[0, 0] > 0
    assert 64 < shapes[-1][1] <= 96


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_layers_score_the_same_and_are_compiled_once_for_each_width(layout, many):
    plain, compiled = build("gpt2", layout), build("gpt2", layout)
    counter = CompileCounterWithBackend("aot_eager")  # needs no C++ compiler
    compiled.compile_scoring(counter)
    ids, keep_mask, valid = many
    for width in (20, 19, 12, 20):  # rounded, all have one
        rows = tuple(part[:, :width] for part in (ids, keep_mask, valid))
        assert_alike(scores_and_gradients(plain, rows), scores_and_gradients(compiled, rows))
    assert counter.frame_count == 1
    with torch.no_grad():
        compiled.token_nll(*many)
    assert counter.frame_count == 2, "once more without gradients"
    compiled.eval().token_nll(*(part[:7] for part in many))
    assert torch.equal(plain.restore(*many).input_ids, compiled.restore(*many).input_ids)
    assert counter.frame_count == 2, "neither evaluating nor restoring is compiled"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_infill_sees_both_sides_and_nothing_dropped(kind, batch, keep_mask):
    reconstructor = build(kind, "infill")
    ids, valid = batch
    scores = reconstructor.token_nll(ids, keep_mask, valid).nll
    dropped = (~keep_mask & valid)[0].nonzero().squeeze(1).tolist()
    # Another text behind the dropped positions moves each position's own score at most, never another's.
    changed = ids.clone()
    changed[0, dropped[0]] = (ids[0, dropped[0]] + 7) % 200
    other = reconstructor.token_nll(changed, keep_mask, valid).nll
    assert torch.allclose(scores[0, dropped[1:]], other[0, dropped[1:]], atol=1e-5)
    # The last kept token is seen by the first dropped one: attention is full.
    last_kept = int(keep_mask[0].nonzero()[-1])
    assert last_kept > dropped[0]
    changed = ids.clone()
    changed[0, last_kept] = (ids[0, last_kept] + 7) % 200
    assert not torch.allclose(
        scores[0, dropped[0]], reconstructor.token_nll(changed, keep_mask, valid).nll[0, dropped[0]]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dropped_token_is_charged_and_a_kept_one_is_not(layout, batch, keep_mask):
    reconstructor = build("gpt2", layout)
    scores = reconstructor.token_nll(batch[0], keep_mask, batch[1]).nll
    assert (scores[~keep_mask & batch[1]] > 0).all()
    assert not scores[keep_mask | ~batch[1]].any()
    keep_all = reconstructor.token_nll(batch[0], batch[1], batch[1]).nll
    assert not keep_all.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_and_neighbours_change_nothing(layout, batch, keep_mask):
    reconstructor = build("gpt2", layout)
    together = reconstructor.token_nll(batch[0], keep_mask, batch[1]).nll
    restored = reconstructor.restore(batch[0], keep_mask, batch[1])
    for row, length in enumerate(batch[1].sum(1).tolist()):
        one = (batch[0][row : row + 1, :length], keep_mask[row : row + 1, :length], batch[1][row : row + 1, :length])
        assert torch.allclose(together[row, :length], reconstructor.token_nll(*one).nll[0], atol=1e-4)
        alone = reconstructor.restore(*one)
        assert torch.equal(restored.input_ids[row, :length], alone.input_ids[0])
        assert torch.allclose(restored.confidence[row, :length], alone.confidence[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_prefix_restoration_equals_a_loop_without_cache(kind, batch, keep_mask):
    reconstructor = build(kind, "prefix")
    restoration = reconstructor.restore(batch[0], keep_mask, batch[1])
    for row, length in enumerate(batch[1].sum(1).tolist()):
        kept = batch[0][row][keep_mask[row]]
        text = torch.cat([kept, torch.tensor([0])])
        for t in range(length):
            logits = reconstructor.model(input_ids=text[None]).logits[0, -1].detach()
            logits[0] = -torch.inf
            token = batch[0][row, t] if keep_mask[row, t] else logits.argmax()
            assert int(restoration.input_ids[row, t]) == int(token)
            text = torch.cat([text, token[None]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_restoring_reads_nothing_that_was_dropped(layout, batch, keep_mask):
    reconstructor = build("gpt2", layout)
    restored = reconstructor.restore(batch[0], keep_mask, batch[1])
    hidden = batch[0].masked_fill(~keep_mask & batch[1], 199)
    again = reconstructor.restore(hidden, keep_mask, batch[1])
    dropped = ~keep_mask & batch[1]
    assert torch.equal(restored.input_ids[dropped], again.input_ids[dropped])
    assert torch.equal(restored.input_ids[keep_mask], batch[0][keep_mask])
    assert (restored.confidence[keep_mask] == 1).all() and (
        (restored.confidence[dropped] > 0) & (restored.confidence[dropped] < 1)
    ).all()


def test_dropout_is_off_and_the_mode_is_restored(batch, keep_mask):
    model = make_gpt2(200, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5).requires_grad_(False)
    reconstructor = Reconstructor(add_adapter(model, 4, 8), "prefix", 0).train()
    first, second = (reconstructor.token_nll(batch[0], keep_mask, batch[1]).nll for _ in range(2))
    assert torch.equal(first, second)
    reconstructor.restore(batch[0], keep_mask, batch[1])
    assert reconstructor.training


def test_self_information_is_the_plain_model_without_its_adapter(batch):
    reconstructor = build("gpt2", "prefix")
    plain = base("gpt2").eval()
    bits = reconstructor.self_information(*batch)
    text = torch.cat([torch.tensor([0]), batch[0][0]])[None]
    log_p = torch.log_softmax(plain(input_ids=text).logits[0], -1)
    expected = -log_p[:-1].gather(1, batch[0][0][:, None]).squeeze(1) / LN2
    assert torch.allclose(bits[0], expected, atol=1e-4)
    assert not bits[~batch[1]].any()


def test_a_text_too_long_for_the_model_says_so():
    reconstructor = build("gpt2", "prefix")
    assert reconstructor.max_tokens == 47  # kept + separator + original within 96 positions
    ids = torch.ones(1, 48, dtype=torch.long)
    with pytest.raises(ValueError, match="at most 47"):
        reconstructor.token_nll(ids, ids.bool(), ids.bool())


def test_a_tokenizer_without_any_special_token_says_so(tokenizer):
    assert marker_token_id(tokenizer) == tokenizer.eos_token_id

    class Bare:
        mask_token_id = eos_token_id = bos_token_id = None
        name_or_path = "bare"

    with pytest.raises(ValueError, match="neither a mask nor an end nor a begin token"):
        marker_token_id(Bare())
