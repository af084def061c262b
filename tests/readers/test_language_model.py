"""Many lookups in one context: read once, they cost what they cost one by one."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import make_gpt2
from tokforget.readers import language_model
from tokforget.readers.language_model import Reader


LOOKUPS = [
    ("The harbour was rebuilt in 1931 by Anna Lund.", [("\n\n... was rebuilt in", " 1931"), ("", " Anna Lund"), (" by", " Anna")]),
    ("", [("... leaves at", " 12:45")]),
    ("Nobody asks here.", []),
    ("It does not freeze in winter, and ships call there.", [(" It does", " not freeze"), (" and", " ships")]),
]  # fmt: skip


def llama(size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(params=["gpt2", "llama"])
def reader(request, tokenizer) -> Reader:
    make = {"gpt2": lambda size: make_gpt2(size, n_positions=256), "llama": llama}[request.param]
    return Reader(make(len(tokenizer)), tokenizer)


def close(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(a.shape == b.shape and np.allclose(a, b, atol=1e-3) for a, b in zip(first, second, strict=True))


def test_a_context_read_once_gives_the_bits_of_rows(reader):
    assert reader.shares_contexts
    shared = reader.span_bits(LOOKUPS)
    assert [len(bits) for bits in shared] == [3, 1, 0, 2]
    assert close(shared, reader.span_bits(LOOKUPS, share_context=False))


def test_bits_of_spans_by_hand(reader):
    ids = [
        reader.tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("The harbour", " was", " rebuilt")
    ]
    row = torch.tensor([[reader.start, *ids[0], *ids[1], *ids[2]]])
    with torch.no_grad():
        log_probs = reader.model(row).logits[0].log_softmax(-1)
    first = row.shape[1] - len(ids[2])
    expected = -sum(float(log_probs[t - 1, row[0, t]]) for t in range(first, row.shape[1])) / np.log(2)
    assert reader.span_bits([("The harbour", [(" was", " rebuilt")])])[0][0] == pytest.approx(expected, abs=1e-4)


def test_batch_and_order_change_nothing(reader):
    alone = Reader(reader.model, reader.tokenizer, batch_tokens=1)
    assert close(reader.span_bits(LOOKUPS), alone.span_bits(LOOKUPS))
    assert close(reader.span_bits(LOOKUPS[::-1])[::-1], alone.span_bits(LOOKUPS))


def test_many_lookups_of_a_context_are_read_in_several_rows(reader, monkeypatch):
    whole, widths = reader.span_bits(LOOKUPS), []
    score = language_model._score_trees
    monkeypatch.setattr(language_model, "_LEAF_TOKENS", 8)
    monkeypatch.setattr(language_model, "_score_trees", lambda *args: widths.extend(map(len, args[2])) or score(*args))
    assert close(reader.span_bits(LOOKUPS), whole)
    assert sum(widths) == 6 and len(widths) > 3


def test_bits_of_tokens_add_up(reader):
    tokens, sums = reader.span_token_bits(LOOKUPS), reader.span_bits(LOOKUPS)
    for of_context, bits, (_, asked) in zip(tokens, sums, LOOKUPS):
        assert [len(of_pair) for of_pair in of_context] == reader.counts([target for _, target in asked])
        assert np.allclose([of_pair.sum() for of_pair in of_context], bits)


def test_one_lookup_does_not_see_another(reader):
    context = LOOKUPS[0][0]
    alone = reader.span_bits([(context, [(" by", " Anna")])])[0][0]
    beside = reader.span_bits([(context, [(" by Anna Lund by", " Anna"), (" by", " Anna")])])[0][1]
    assert alone == pytest.approx(beside, abs=1e-3)


def test_nothing_asked_is_nothing_found(reader):
    assert reader.span_bits([]) == []
    assert reader.span_bits([("A text.", [])])[0].shape == (0,)


def test_what_does_not_fit_or_is_empty_is_an_error(reader):
    with pytest.raises(ValueError, match="nothing to predict"):
        reader.span_bits([("A text.", [(" was", "")])])
    with pytest.raises(ValueError, match="does not fit"):
        reader.span_bits([("word " * 400, [(" was", " here")])])


def test_a_model_with_windows_reads_row_by_row(tokenizer):
    model = llama(len(tokenizer))
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not Reader(model, tokenizer).shares_contexts
