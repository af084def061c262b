"""Bits that texts lose by compression, measured by a reconstructor."""

from itertools import chain

from tokforget import scoring
from tokforget.metrics import columns


class BitsLost(columns.ColumnMetric):
    inputs = ("token_nll", "keep_mask", "attention_mask", "bits", "num_dropped", "num_tokens")
    summary = "Bits of the dropped tokens given what was kept: per original token, per dropped token and in all."

    def _compute(
        self, token_nll=None, keep_mask=None, attention_mask=None, bits=None, num_dropped=None, num_tokens=None
    ) -> dict:
        if token_nll is not None and keep_mask is not None:
            token_nll, keep_mask = columns.without_padding(attention_mask, token_nll=token_nll, keep_mask=keep_mask)
            kept, tokens = columns.count_kept(keep_mask)
            bits = [b for b, is_kept in zip(chain(*token_nll), chain(*keep_mask)) if not is_kept]
            texts = len(keep_mask)
        elif bits is not None and num_dropped is not None and num_tokens is not None:
            columns.check_counts(num_dropped, num_tokens)
            kept, tokens, texts = sum(num_tokens) - sum(num_dropped), sum(num_tokens), len(bits)
        else:
            raise columns.missing(self, ["token_nll", "keep_mask"], ["bits", "num_dropped", "num_tokens"])
        columns.check_bits(bits)
        return {
            **scoring.bits_lost_per_token(bits, tokens - kept, tokens),
            "mask_bits": scoring.mask_bits(kept, tokens),
            "dropped_tokens": tokens - kept,
            "tokens": tokens,
            "texts": texts,
        }
