"""
Near duplicates of held-out documents: MinHash signatures of word 5-grams in a locality-sensitive index.

Source: Broder 1997 (resemblance of documents), Lee et al. 2021, arXiv 2107.06499 (5-grams, training data deduplicated).
"""

import zlib

import numpy as np
from datasketch import LeanMinHash, MinHash, MinHashLSH


THRESHOLD = 0.7
SHINGLE_WORDS = 5
NUM_PERM = 128
_CHUNK = 4096  # shingles at a time: 2 MB of hash values, however long the document
# Odd multipliers of the words' hashes in a shingle, so that their order counts.
_WORD_FACTORS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1], np.uint32)
_BLANK = MinHash(num_perm=NUM_PERM, hashfunc=int)


def shingles(text: str) -> np.ndarray:
    """
    Distinct hashes of a text's word 5-grams, case and white space apart; a shorter text is one shingle.

    Returns:
        `np.ndarray` of shape `(num_shingles,)`, uint32; empty for a text without words.
    """
    words = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in text.lower().split()], np.uint32)
    size = min(SHINGLE_WORDS, len(words))
    if size == 0:
        return words
    windows = np.lib.stride_tricks.sliding_window_view(words, size)  # (shingles, words)
    return np.unique((windows * _WORD_FACTORS[:size]).sum(1, dtype=np.uint32))


def signature(text: str) -> np.ndarray:
    """MinHash signature `(128,)` uint32 of a text's shingles."""
    minhash = _BLANK.copy()
    values = shingles(text)
    for start in range(0, len(values), _CHUNK):
        minhash.update_batch(values[start : start + _CHUNK].tolist())
    return minhash.hashvalues


class NearDuplicates:
    """
    Index of held-out documents, asked whether a text is nearly one of them.

    Args:
        threshold (`float`): Jaccard similarity of the shingle sets from which on two texts count as the same, in (0, 1].
            At 1 the index stays empty: exact duplicates are found without it.

    The bands of the index are chosen to miss little (20 of 6 values at 0.7: 92 % found at a similarity of 0.7, 99.8 % at
    0.8); what they bring up is then judged by the similarity that the two signatures estimate (standard error 0.04 at
    0.7). An indexed document takes about 8 KB. A document that merely contains a held-out one is not similar to it.
    """

    def __init__(self, threshold: float = THRESHOLD):
        self.threshold = threshold
        self.is_on = threshold < 1
        self._signatures: list[np.ndarray] = []
        self._index = MinHashLSH(threshold, NUM_PERM, weights=(0.1, 0.9)) if self.is_on else None

    def __len__(self) -> int:
        return len(self._signatures)

    def add(self, values: np.ndarray) -> None:
        """Index a document by its [`signature`]."""
        self._index.insert(len(self._signatures), _as_minhash(values))
        self._signatures.append(values)

    def match(self, values: np.ndarray) -> bool:
        """Whether an indexed document is at least `threshold` similar to the one with this signature."""
        if not self._signatures:
            return False
        candidates = self._index.query(_as_minhash(values))
        return any(np.mean(self._signatures[at] == values) >= self.threshold for at in candidates)


def _as_minhash(values: np.ndarray) -> LeanMinHash:
    return LeanMinHash(seed=_BLANK.seed, hashvalues=values, scheme=_BLANK.scheme)
