"""Share of a context's information about its continuation that a compressed context keeps for a language model."""

from tokforget import scoring
from tokforget.metrics import columns
from tokforget.readers import language_model


_NLL = ["nll_full", "nll_compressed", "nll_none", "num_continuation_tokens"]
_TEXTS = ["context", "compressed_context", "continuation"]


class ContextRetention(columns.ColumnMetric):
    inputs = (*_NLL, *_TEXTS)
    options = ("model", "tokenizer", "batch_size")
    summary = "Share of a context's information about its continuation that is left after compression."

    def _compute(
        self,
        nll_full=None,
        nll_compressed=None,
        nll_none=None,
        num_continuation_tokens=None,
        context=None,
        compressed_context=None,
        continuation=None,
        model=None,
        tokenizer=None,
        batch_size=8,
    ) -> dict:
        if None not in (context, compressed_context, continuation):
            if None not in (nll_full, nll_compressed, nll_none):
                raise ValueError(f"Give either {_NLL} or {_TEXTS}, not both.")
            cases = context, compressed_context, [""] * len(context)
            nlls, num_continuation_tokens = _read(cases, continuation, model, tokenizer, batch_size)
        elif None not in (nll_full, nll_compressed, nll_none, num_continuation_tokens):
            nlls = nll_full, nll_compressed, nll_none
        else:
            raise columns.missing(self, _NLL, _TEXTS)
        for nll in nlls:
            columns.check_bits(nll)
        total = sum(num_continuation_tokens)
        return {**scoring.context_retention(*nlls, total), "tokens": total, "texts": len(num_continuation_tokens)}


def _read(cases, continuation, model, tokenizer, batch_size) -> tuple[list[list[float]], list[int]]:
    if model is None:
        raise ValueError("To read texts, pass `model` (a name, folder or object); or give the bits themselves.")
    if tokenizer is None and not isinstance(model, str):
        raise ValueError("Pass the `tokenizer` of the model object too.")
    tokenizer = language_model.load_tokenizer(model if tokenizer is None else tokenizer)
    model = language_model.load_reader(model)
    scores = [language_model.continuation_nll(model, tokenizer, texts, continuation, batch_size) for texts in cases]
    return [score.nll.tolist() for score in scores], scores[0].num_tokens.tolist()
