"""Rarities of words, counted over the training texts and saved with the policy."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from tokforget.models.word_features import BUCKETS, LOG_STEPS, Rarity, bucket, stem


# Characters per piece of text.
_CHUNK = 1000


class WordTable(nn.Module):
    """
    Number of pieces of text (1,000 characters each) that contain the stem of a word, as 8-bit logarithms in 65,536
    hashed buckets (64 kB). Collisions can only make a word less rare.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("pieces", torch.zeros(BUCKETS, dtype=torch.uint8))
        # An integer: `half()` would turn a float of this size into infinity, and every score into nan.
        self.register_buffer("total", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fit(self, texts: Iterable[str]) -> None:
        """Count the words of the training texts. Raises `ValueError` if there are none."""
        counts, total = np.zeros(BUCKETS), 0
        for text in texts:
            for start in range(0, len(text), _CHUNK):
                stems = {stem(word) for word in text[start : start + _CHUNK].split()} - {""}
                np.add.at(counts, [bucket(s) for s in stems], 1)
                total += 1
        if not total:
            raise ValueError("The word table needs at least one training text, got none.")
        self.pieces.copy_(torch.from_numpy(np.round(LOG_STEPS * np.log2(1 + counts)).clip(max=255)))
        self.total.fill_(total)

    def rarity(self) -> "Rarity":
        """The rarities for [`word_features`]; a copy on the CPU, because the buffers may be on a GPU."""
        return Rarity(self.pieces.cpu().numpy(), float(self.total))
