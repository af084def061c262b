"""How much of the dropped text a reconstructor restored: tokens, words, numbers and names."""

from dataclasses import asdict
from itertools import chain

import torch

from tokforget import scoring
from tokforget.metrics import columns
from tokforget.readers import language_model
from tokforget.readers import words as text_scoring


class Restoration(columns.ColumnMetric):
    inputs = (
        "restored_ids", "input_ids", "keep_mask", "attention_mask", "predictions", "references", "compressed",
    )  # fmt: skip
    options = ("tokenizer",)
    summary = "Shares of the dropped tokens, and of the lost words, numbers and names, that were restored exactly."

    def _compute(
        self,
        restored_ids=None,
        input_ids=None,
        keep_mask=None,
        attention_mask=None,
        predictions=None,
        references=None,
        compressed=None,
        tokenizer=None,
    ) -> dict:
        by_ids = None not in (restored_ids, input_ids, keep_mask)
        by_strings = None not in (predictions, references, compressed)
        if not by_ids and not by_strings:
            ids, strings = ["restored_ids", "input_ids", "keep_mask"], ["predictions", "references", "compressed"]
            raise columns.missing(self, ids, strings)
        result, words = {"texts": len(input_ids if by_ids else references)}, None
        if by_ids:
            restored_ids, input_ids, keep_mask = columns.without_padding(
                attention_mask, restored_ids=restored_ids, input_ids=input_ids, keep_mask=keep_mask
            )
            result |= _exact_tokens(restored_ids, input_ids, keep_mask)
        if by_ids and tokenizer is not None:
            words = _words_of_ids(restored_ids, input_ids, keep_mask, language_model.load_tokenizer(tokenizer))
        elif by_strings:
            words = _words_of_strings(predictions, references, compressed)
        return result if words is None else result | words.shares() | asdict(words)


def _exact_tokens(restored_ids, input_ids, keep_mask) -> dict:
    kept, tokens = columns.count_kept(keep_mask)
    # The metric uses totals, so all texts are joined to one row.
    restored, original, keep = (torch.tensor([list(chain(*rows))]) for rows in (restored_ids, input_ids, keep_mask))
    keep = keep.bool()
    exact = int(scoring.exact_restored(restored, original, keep, torch.ones_like(keep)))
    dropped = tokens - kept
    return {
        "exact_restored": exact / dropped if dropped else 1.0,
        "dropped_tokens": dropped,
        "tokens": tokens,
        "mask_bits": scoring.mask_bits(kept, tokens),
    }


def _words_of_strings(predictions, references, compressed) -> text_scoring.RestoredWords:
    total = text_scoring.RestoredWords()
    for restored, original, kept in zip(predictions, references, compressed):
        lost = text_scoring.lost_by_text(original, kept)
        total += text_scoring.count_restored_words(original, restored, lost)
    return total


def _words_of_ids(restored_ids, input_ids, keep_mask, tokenizer) -> text_scoring.RestoredWords:
    total = text_scoring.RestoredWords()
    for restored, original, keep in zip(restored_ids, input_ids, keep_mask):
        text, spans = text_scoring.decode_with_spans(original, tokenizer)
        lost = text_scoring.lost_by_mask(text, keep, spans)
        total += text_scoring.count_restored_words(text, text_scoring.decode(restored, tokenizer), lost)
    return total
