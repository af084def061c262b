"""The fused head against the library's cross-entropy."""

import torch
from torch import nn
from torch.nn import functional as F

from tokforget.models.cross_entropy import frozen_head_cross_entropy, is_plain_head


def test_value_gradient_and_choice_equal_the_dense_form():
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(300, 16, requires_grad=True)  # three chunks, the last one short
    target = torch.randint(0, 50, (300,))
    weights = torch.randn(300)
    nll, best = frozen_head_cross_entropy(hidden, head, target)
    (gradient,) = torch.autograd.grad((nll * weights).sum(), hidden)
    dense = F.cross_entropy(head(hidden), target, reduction="none")
    (expected,) = torch.autograd.grad((dense * weights).sum(), hidden)
    assert torch.allclose(nll, dense, atol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.equal(best, head(hidden).argmax(-1))


def test_only_a_frozen_matrix_is_plain():
    assert is_plain_head(nn.Linear(4, 4, bias=False).requires_grad_(False))
    assert not is_plain_head(nn.Linear(4, 4, bias=False))
    assert not is_plain_head(nn.Linear(4, 4).requires_grad_(False))
