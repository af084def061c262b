"""How rare words are: counted over the training texts, and kept with the policy."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from tokforget.models.word_features import BUCKETS, LOG_STEPS, Rarity, bucket, stem


# Characters of a piece of text.
_CHUNK = 1000


class WordTable(nn.Module):
    """
    In how many pieces of text, of 1,000 characters, the stem of a word stands, as 8-bit logarithms in 65,536 hashed buckets:
    64 kB say how rare any word is. Collisions only ever make a word less rare.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("pieces", torch.zeros(BUCKETS, dtype=torch.uint8))
        # A whole number: `half()` would make infinity of it, and every score nan.
        self.register_buffer("total", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fit(self, texts: Iterable[str]) -> None:
        """Count the words of the training texts."""
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
        """What the features ask; a copy, for the buffers may lie on a GPU."""
        return Rarity(self.pieces.cpu().numpy(), float(self.total))
