"""
Baselines that use a language model, the reconstructor's base model. Each text costs them at least one forward pass.
"""

import torch
from torch.nn import functional as F

from tokforget.evaluation.vocabulary import Vocabulary
from tokforget.masking import keep_count, top_k_mask
from tokforget.models.measuring import probe
from tokforget.models.reconstructor import Reconstructor
from tokforget.packing import kept_tokens


# Larger than any surprisal in bits.
_KEPT = 1e4


class SelfInformation:
    """
    Surprisal under the base model: Selective Context (Li et al. 2023, arXiv 2310.06201).

    Differs: the highest scores fill the budget exactly, where the source cuts at a percentile; words instead of noun
    phrases.

    Args:
        reconstructor ([`Reconstructor`]): Its base model gives the surprisal; the adapter is off.
        vocabulary ([`Vocabulary`]): Finds words and sentences.
        context (`str`): `"document"`, or `"sentence"`: the context begins anew with each sentence, as in the source's
            code.
        unit (`str`): `"token"`, or `"word"`: all tokens of a word get its mean; the last word that fits may be cut.
    """

    needs_rate = False

    def __init__(self, reconstructor: Reconstructor, vocabulary: Vocabulary, context: str, unit: str):
        self.reconstructor, self.vocabulary, self.context, self.unit = reconstructor, vocabulary, context, unit
        self.name = {
            ("document", "token"): "self_information",
            ("document", "word"): "self_information_words",
            ("sentence", "token"): "self_information_sentences",
            ("sentence", "word"): "self_information_sentence_words",
        }[context, unit]

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        if self.context == "document":
            bits = self.reconstructor.self_information(input_ids, valid)
        else:
            bits = self._by_sentence(input_ids, valid)
        return _mean_by(self.vocabulary.word_of(input_ids), bits, valid) if self.unit == "word" else bits

    def _by_sentence(self, input_ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        sentence = self.vocabulary.sentence_of(input_ids)
        row_of = (sentence + torch.arange(len(sentence), device=sentence.device)[:, None] * sentence.shape[1])[valid]
        _, row_of, lengths = row_of.unique_consecutive(return_inverse=True, return_counts=True)
        starts = F.pad(lengths.cumsum(0), (1, 0))[:-1]
        column_of = torch.arange(len(row_of), device=row_of.device) - starts[row_of]
        rows = input_ids.new_zeros(len(lengths), int(lengths.max()))
        present = torch.zeros_like(rows, dtype=torch.bool)
        rows[row_of, column_of], present[row_of, column_of] = input_ids[valid], True
        bits = self.reconstructor.self_information(rows, present)
        return bits.new_zeros(input_ids.shape).masked_scatter(valid, bits[row_of, column_of])


def _mean_by(group: torch.Tensor, values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of `values` `(B, T)` over each group of tokens of a text, written to every token of the group; `(B, T)`."""
    total = torch.zeros_like(values).scatter_add(1, group, values * valid)
    size = torch.zeros_like(values).scatter_add(1, group, valid.to(values.dtype))
    return (total / size.clamp(min=1)).gather(1, group)


class IterativePruning:
    """
    LLMLingua's token stage (Jiang et al. 2023, arXiv 2310.05736): it takes the surprisal segment by segment, given the
    tokens *kept* of the earlier segments.

    Differs: each segment fills its own budget exactly, so that the budget of the text is met and no tail stays whole;
    the first token is not privileged; segments have 32 tokens, because the source's 200 would hold a whole block here.
    """

    name, needs_rate = "iterative_pruning", True

    def __init__(self, reconstructor: Reconstructor, segment: int = 32):
        self.reconstructor, self.segment = reconstructor, segment

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        budget, lengths = keep_count(valid.sum(1), rate), valid.sum(1)
        keep, scores = torch.zeros_like(valid), torch.zeros(input_ids.shape, device=input_ids.device)
        for start in range(0, input_ids.shape[1], self.segment):
            inside = (place >= start) & (place < start + self.segment) & valid
            shown = keep | inside
            rows = kept_tokens(input_ids, shown, 0)
            present = torch.arange(rows.shape[1], device=rows.device) < shown.sum(1, keepdim=True)
            bits = self.reconstructor.self_information(rows, present)
            bits = bits.new_zeros(input_ids.shape).masked_scatter(shown, bits[present])
            scores = torch.where(inside, bits, scores)
            seen = (lengths.clamp(max=start + self.segment)).double()
            due = torch.floor(budget * seen / lengths.clamp(min=1) + 1e-9).long() - keep.sum(1)
            keep = keep | top_k_mask(scores, torch.minimum(due, inside.sum(1)), inside)
        return scores + _KEPT * keep


class LeaveOneOut:
    """
    The reconstructor's bits for a token that alone is missing: keeps tokens that both sides of the text cannot
    predict.

    Differs from true leave-one-out: every `apart`-th token is missing at once, so that a text takes `apart` rows
    instead of one row per token.
    """

    name, needs_rate = "leave_one_out", False

    def __init__(self, reconstructor: Reconstructor, apart: int = 16):
        self.reconstructor, self.apart = reconstructor, apart

    @torch.no_grad()
    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return probe(self.reconstructor, input_ids, valid, valid, self.apart)
