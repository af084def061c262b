"""How much smaller compressed texts are, by their keep masks or by re-encoding their strings."""

from tokforget import scoring
from tokforget.metrics import columns
from tokforget.readers import language_model
from tokforget.readers import words as text_scoring


class Compression(columns.ColumnMetric):
    inputs = ("keep_mask", "attention_mask", "compressed", "references")
    options = ("tokenizer",)
    summary = "Compression rate (kept / original) and ratio (original / kept) of keep masks and of re-encoded strings."

    def _compute(self, keep_mask=None, attention_mask=None, compressed=None, references=None, tokenizer=None) -> dict:
        if keep_mask is None and (compressed is None or references is None):
            raise columns.missing(self, ["keep_mask"], ["compressed", "references"])
        result = {}
        if keep_mask is not None:
            (keep_mask,) = columns.without_padding(attention_mask, keep_mask=keep_mask)
            kept, tokens = columns.count_kept(keep_mask)
            result |= scoring.rate_and_ratio(kept, tokens) | {"kept_tokens": kept, "tokens": tokens}
        if compressed is not None and references is not None:
            if tokenizer is None:
                raise ValueError("Strings are counted in tokens: pass `tokenizer` (a name, folder or object).")
            tokenizer = language_model.load_tokenizer(tokenizer)
            kept, tokens = (sum(map(len, text_scoring.encode(t, tokenizer))) for t in (compressed, references))
            counts = scoring.rate_and_ratio(kept, tokens) | {"kept_tokens": kept, "tokens": tokens}
            result |= {f"reencoded_{name}": value for name, value in counts.items()}
        return result | {"texts": len(keep_mask if keep_mask is not None else references)}
