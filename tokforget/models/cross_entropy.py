"""
Cross-entropy through a frozen output head, without the whole `(tokens, vocabulary)` logits in memory.

The gradient with respect to the hidden states is computed together with the logits, chunk by chunk, so that the
backward pass is one product by a scalar per token. On CPUs the logits of a GPT-2 vocabulary are mostly memory traffic,
and this halves the time of the head (LOG.md). Source: fused linear cross-entropy kernels (Hsu et al. 2024, arXiv
2410.10989). Differs: the head is frozen, so its own gradient is not computed; the most likely token is returned, too.
"""

import torch
from torch import nn
from torch.nn import functional as F


# Tokens per chunk. A CPU needs chunks that fit its caches; a GPU needs large products (4,096 by GPT-2's vocabulary:
# 0.8 GB).
CHUNK_TOKENS = {"cpu": 128, "cuda": 4096}


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor):
        device = hidden.device.type
        if torch.is_autocast_enabled(device):  # cast once instead of in every product
            hidden = hidden.to(torch.get_autocast_dtype(device))
        weight, size = weight.to(hidden.dtype), CHUNK_TOKENS.get(device, CHUNK_TOKENS["cpu"])
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        best = torch.empty_like(target)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            logits = (hidden[chunk] @ weight.T).float()  # (chunk, V)
            highest, best[chunk] = logits.max(1)
            wanted = logits.gather(1, target[chunk, None]).squeeze(1)
            mass = logits.sub_(highest[:, None]).exp_().sum(1)
            nll[chunk] = mass.log() + highest - wanted
            if gradient is not None:
                expected = logits.to(weight.dtype) @ weight / mass[:, None].to(weight.dtype)
                gradient[chunk] = expected - weight[target[chunk]]
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(best)
        return nll, best

    @staticmethod
    def backward(ctx, grad_nll: torch.Tensor, _):
        (gradient,) = ctx.saved_tensors
        return gradient * grad_nll[:, None].to(gradient.dtype), None, None


def frozen_head_cross_entropy(
    hidden: torch.Tensor, head: nn.Linear, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cross-entropy of the head's logits.

    Args:
        hidden (`torch.FloatTensor` of shape `(tokens, hidden_size)`): Inputs of the head.
        head (`nn.Linear`): A frozen head without bias; see [`is_plain_head`].
        target (`torch.LongTensor` of shape `(tokens,)`): The true tokens.

    Returns:
        `tuple`: `-log p` of the targets in nats `(tokens,)`, and the most likely tokens `(tokens,)`.
    """
    return _FrozenHeadCrossEntropy.apply(hidden, head.weight, target)


def dense_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`frozen_head_cross_entropy`], from complete logits `(tokens, V)`, for heads that are not plain."""
    logits = logits.float()
    return F.cross_entropy(logits, target, reduction="none"), logits.detach().argmax(-1)


def is_plain_head(head: nn.Module) -> bool:
    """Whether a head is one frozen matrix, so that [`frozen_head_cross_entropy`] applies."""
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad
