"""Texts drawn from the base model: how they begin and end, from which distribution, and once per run."""

import pytest
import torch

from tests.conftest import make_model
from tokforget.training import sampled_texts as sampling
from tokforget.training.sampled_texts import draw_once, sample_blocks


BLOCKS = [list(range(10 + n, 10 + n + length)) for n, length in enumerate((12, 7, 9, 3, 12, 5))]


def test_blocks_begin_as_training_blocks_do_and_are_as_long(model):
    reconstructor = model.reconstructor.train()
    drawn = sample_blocks(reconstructor, BLOCKS, 7, prompt_tokens=4, seed=0, batch_size=3)
    long_enough = [block for block in BLOCKS if len(block) > 4]
    begun = [next(b for b in long_enough if b[:4] == block[:4]) for block in drawn]
    assert [len(block) for block in drawn] == [len(block) for block in begun]
    assert {tuple(block[:4]) for block in drawn} == {tuple(block[:4]) for block in long_enough}, (
        "each before any again"
    )
    assert any(block != own for block, own in zip(drawn, begun))
    assert all(model.config.marker_token_id not in block for block in drawn)
    assert reconstructor.training
    assert drawn == sample_blocks(reconstructor, BLOCKS, 7, prompt_tokens=4, seed=0, batch_size=3)
    assert drawn != sample_blocks(reconstructor, BLOCKS, 7, prompt_tokens=4, seed=1, batch_size=3)


def test_blocks_are_continued_from_the_cache_as_from_the_whole_text(base_folder, tokenizer, monkeypatch):
    """With the most likely token in place of a drawn one, against a loop that reads each text anew; the adapter is off."""
    monkeypatch.setattr(sampling, "_draw", lambda logits, never, generator: logits.argmax(-1, keepdim=True))
    model = make_model(base_folder, tokenizer)
    for name, weight in model.reconstructor.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    drawn = sample_blocks(model.reconstructor, BLOCKS, 5, prompt_tokens=4, seed=0, batch_size=5)
    for block in drawn:
        text = block[:4]
        with torch.no_grad(), model.reconstructor.model.disable_adapter():
            while len(text) < len(block):
                text = [*text, int(model.reconstructor.model(input_ids=torch.tensor([text])).logits[0, -1].argmax())]
        assert block == text


def test_tokens_are_drawn_by_their_probability():
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(0))
    probability = logits.clone()
    probability[0, 3] = -torch.inf
    probability = probability.softmax(-1)[0]
    drawn = sampling._draw(logits.repeat(20_000, 1), 3, torch.Generator().manual_seed(1)).squeeze(1)
    share = torch.bincount(drawn, minlength=9) / len(drawn)
    assert share[3] == 0
    # Five standard errors of a share.
    assert ((share - probability).abs() <= 5 * (probability * (1 - probability) / len(drawn)).sqrt()).all()


def test_a_draw_next_to_one_is_still_a_token_that_may_be_drawn(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, 1 - 2**-24))
    drawn = sampling._draw(torch.zeros(2, 5001), 5000, None)
    assert drawn.tolist() == [[4999], [4999]]


def test_no_block_is_long_enough(model):
    with pytest.raises(ValueError, match="begins with 12 tokens of a training block, and no block is longer"):
        sample_blocks(model.reconstructor, BLOCKS, 2, prompt_tokens=12, seed=0)


def test_a_resumed_run_has_the_texts_of_its_first_start(tmp_path):
    first = draw_once(tmp_path, lambda: [[1, 2, 3], [4]], resumed=False)
    assert first["input_ids"] == [[1, 2, 3], [4]]
    assert draw_once(tmp_path, lambda: pytest.fail("drawn again"), resumed=True)["input_ids"] == first["input_ids"]
    assert draw_once(tmp_path, lambda: [[5]], resumed=False)["input_ids"] == [[5]]
    with pytest.raises(FileNotFoundError, match="had sampled texts there"):
        draw_once(tmp_path / "other", lambda: [[1]], resumed=True)
