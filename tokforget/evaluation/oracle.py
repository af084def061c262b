"""
The oracle: the best keep mask that a search with the judging reconstructor finds. It is no compressor.
"""

import torch
from torch.nn import functional as F

from tokforget.masking import keep_count, top_k_mask
from tokforget.models.measuring import probe
from tokforget.models.reconstructor import Reconstructor


# Larger than any surprisal in bits.
_PEAK = 1e4


class GreedyOracle:
    """
    Greedy selection in blocks, with new scores of the reconstructor after each, then exchanges that lower the bits
    lost.

    *Selection* starts from an empty text. Each pass keeps the `block` tokens that the reconstructor predicts worst; it
    avoids neighbours while other tokens are left, because a kept token helps to predict the next. *Exchange* drops the
    kept tokens that would cost least and keeps the dropped tokens that cost most. It undoes an exchange after which
    the text loses more bits, and then tries half as many. It starts once from the selection and once from the mask of
    self-information; each text keeps the better result. The result is a lower bound on what is possible, because a
    search proves no optimum.

    Relates to: LLMLingua's iteration (`IterativePruning`), with the judge's own bits and both sides of the text.

    Args:
        reconstructor ([`Reconstructor`]): The judge.
        block (`int`): Tokens kept per pass of selection.
        exchanges (`int`): Rounds of exchange, of `apart` + 2 passes each.
        apart (`int`): Every `apart`-th kept token is left out at once, as in [`LeaveOneOut`].
        first_exchange (`float`): Fraction of a text's tokens exchanged in the first round.
    """

    name, needs_rate = "greedy_oracle", True

    def __init__(
        self,
        reconstructor: Reconstructor,
        block: int = 8,
        exchanges: int = 6,
        apart: int = 4,
        first_exchange: float = 0.06,
    ):
        self.reconstructor, self.block, self.exchanges = reconstructor, block, exchanges
        self.apart, self.first_exchange = apart, first_exchange

    @torch.no_grad()
    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        counts = keep_count(valid.sum(1), rate)
        selected = self._select(input_ids, valid, counts)
        surprising = top_k_mask(self.reconstructor.self_information(input_ids, valid), counts, valid)
        better = self._bits(input_ids, valid, surprising) < self._bits(input_ids, valid, selected)
        return self._exchange(input_ids, valid, torch.where(better[:, None], surprising, selected)).float()

    def _nll(self, input_ids: torch.Tensor, valid: torch.Tensor, keep_mask: torch.Tensor) -> torch.Tensor:
        return self.reconstructor.token_nll(input_ids, keep_mask, valid).nll

    def _bits(self, input_ids: torch.Tensor, valid: torch.Tensor, keep_mask: torch.Tensor) -> torch.Tensor:
        return self._nll(input_ids, valid, keep_mask).sum(1)

    def _select(self, input_ids: torch.Tensor, valid: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        keep = torch.zeros_like(valid)
        while (missing := counts - keep.sum(1)).any():
            nll = self._nll(input_ids, valid, keep)
            before, after = F.pad(nll, (1, 0))[:, :-1], F.pad(nll, (0, 1))[:, 1:]
            peak = (nll >= before) & (nll > after)
            keep = keep | top_k_mask(nll + _PEAK * peak, missing.clamp(max=self.block), valid & ~keep)
        return keep

    def _exchange(self, input_ids: torch.Tensor, valid: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        best = self._bits(input_ids, valid, keep)
        size = (self.first_exchange * valid.sum(1)).long().clamp(min=1)
        for _ in range(self.exchanges):
            cost = probe(self.reconstructor, input_ids, valid, keep, self.apart)
            nll = self._nll(input_ids, valid, keep)
            moved = torch.minimum(size, torch.minimum(keep.sum(1), (valid & ~keep).sum(1)))
            out, into = top_k_mask(-cost, moved, keep), top_k_mask(nll, moved, valid & ~keep)
            tried = (keep & ~out) | into
            bits = self._bits(input_ids, valid, tried)
            better = bits < best
            keep, best = torch.where(better[:, None], tried, keep), torch.minimum(bits, best)
            size = torch.where(better, size, (size // 2).clamp(min=1))
        return keep
