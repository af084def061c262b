"""How well a frozen reader predicts the continuation of a compressed text."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokforget.intervals import ratio_interval
from tokforget.readers.language_model import continuation_nll
from tokforget.readers.words import encode
from tokforget.scoring import context_retention


class Continuations:
    """
    Context retention: the share of a text's information about its own continuation that is left after compression.

    Args:
        reader (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): Any causal language model and its tokenizer.
        contexts (`list[str]`), continuations (`list[str]`): The original texts, and the continuation of each.
    """

    def __init__(
        self,
        reader: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        contexts: Sequence[str],
        continuations: Sequence[str],
    ):
        self.reader, self.tokenizer = reader, tokenizer
        self.continuations = encode(continuations, tokenizer)
        self.full, self.none = self._bits(contexts), self._bits([""] * len(contexts))

    def _bits(self, contexts: Sequence[str]) -> np.ndarray:
        contexts = encode(contexts, self.tokenizer)
        return continuation_nll(self.reader, self.tokenizer, contexts, self.continuations).nll.numpy()

    def row(self, compressed: Sequence[str], seed: int = 0) -> dict:
        """
        `retention` with its 95 % interval over texts, and the bits per continuation token that it is computed from.
        """
        bits = self._bits(compressed)
        tokens = sum(map(len, self.continuations))
        scores = context_retention(self.full, bits, self.none, tokens)
        row = {
            "retention": scores["context_retention"],
            "retention_texts": len(compressed),
            "continuation_bits": scores["bits_per_token_compressed"],
            "continuation_bits_full": scores["bits_per_token_full"],
            "continuation_bits_none": scores["bits_per_token_none"],
        }
        if row["retention"] is not None:
            row["retention_interval"] = ratio_interval(self.none - bits, self.none - self.full, seed)
        return row
