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
_CHUNK = 4096  # shingles hashed at once: 2 MB of hash values for a document of any length
# Odd factors for the hashes of the words in a shingle, so that the order of the words matters.
_WORD_FACTORS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1], np.uint32)
_BLANK = MinHash(num_perm=NUM_PERM, hashfunc=int)


def shingles(text: str) -> np.ndarray:
    """
    Distinct hashes of a text's word 5-grams, ignoring case and white space; a text of fewer words is one shingle.

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
    Index of held-out documents that finds near duplicates of them.

    Args:
        threshold (`float`): Two texts count as the same if their shingle sets have at least this Jaccard similarity,
            in (0, 1]. At 1 the index stays empty, because exact duplicates are found without it.

    The bands of the index are chosen to miss few duplicates (at 0.7, 20 bands of 6 values find 92 % of the pairs with
    a similarity of 0.7 and 99.8 % of those with 0.8). Each candidate pair is then decided by the similarity that the
    two signatures estimate (standard error 0.04 at 0.7). An indexed document takes about 8 KB. A document that
    contains a held-out document and much more is not a near duplicate of it.
    """

    def __init__(self, threshold: float = THRESHOLD):
        self.threshold = threshold
        self.is_on = threshold < 1
        self._signatures: list[np.ndarray] = []
        self._index = MinHashLSH(threshold, NUM_PERM, weights=(0.1, 0.9)) if self.is_on else None

    def __len__(self) -> int:
        return len(self._signatures)

    def add(self, values: np.ndarray) -> None:
        """Add the [`signature`] `(128,)` of a document to the index."""
        self._index.insert(len(self._signatures), _as_minhash(values))
        self._signatures.append(values)

    def match(self, values: np.ndarray) -> bool:
        """
        Whether an indexed document has at least the similarity `threshold` to the document with this signature
        `(128,)`.
        """
        if not self._signatures:
            return False
        candidates = self._index.query(_as_minhash(values))
        return any(np.mean(self._signatures[at] == values) >= self.threshold for at in candidates)


def _as_minhash(values: np.ndarray) -> LeanMinHash:
    return LeanMinHash(seed=_BLANK.seed, hashvalues=values, scheme=_BLANK.scheme)
