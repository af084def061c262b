"""What is shipped is what is evaluated: the plan that `Compressor` ranks by keeps the tokens that the evaluated policy keeps."""

from pathlib import Path

import pytest
import torch

from tokforget.masking import keep_count, top_k_mask
from tokforget.models.folders import read_policy, read_tokenizer
from tokforget.packaged import forget_model_path


README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
def test_one_plan_keeps_what_decisions_in_windows_keep(rate):
    folder = forget_model_path()
    policy = read_policy(folder).eval()
    ids = read_tokenizer(folder).encode(README.read_text(encoding="utf-8")).ids
    texts = torch.tensor(ids[: len(ids) // 96 * 96]).view(-1, 96)[:32]  # blocks as they are trained on
    valid, rates = torch.ones_like(texts, dtype=torch.bool), torch.full((len(texts),), rate)
    counts = keep_count(valid.sum(1), rate)
    with torch.no_grad():
        evaluated = policy.decide(texts, valid, rates, counts).actions.bool()
        shipped = top_k_mask(policy.first_plan(texts, valid, rates), counts, valid)
    assert (evaluated.sum(1) == counts).all() and (shipped.sum(1) == counts).all()
    # Decisions already taken may move a token at the margin; LOG.md, and 99.9 % of the places on the test blocks.
    assert (evaluated == shipped).float().mean() > 0.99
