"""
Count tables over the training split, and the inputs per token that the policy reads from them.

An n-gram model and a language model predict similar tokens well, and a look-up costs almost nothing: the tables
improve the policy more than longer training does (LOG.md).
"""

from collections.abc import Iterable

import torch
from torch import nn


# Absolute discounting, Ney, Essen, Kneser 1994; 0.75 is the usual value if it is not estimated.
_DISCOUNT = 0.75
# Counts are stored as round(16 * log2(1 + count)): 8 bits represent counts up to 62,000 in steps of 4 %.
_LOG_STEPS = 16.0
_FEATURE_SCALE = 8.0


class NgramTables(nn.Module):
    """
    Hashed counts of single tokens, pairs, triples and pairs with a gap, as 8-bit logarithms.

    Args:
        vocab_size (`int`): Number of token ids.
        num_buckets (`int`): Buckets of each hashed table, a power of two. Collisions can only raise a count.

    Raises:
        `ValueError`: If `num_buckets` is not a power of two.
    """

    num_features = 11

    def __init__(self, vocab_size: int, num_buckets: int):
        super().__init__()
        if num_buckets < 1 or num_buckets & (num_buckets - 1):
            raise ValueError(f"`ngram_buckets` must be a power of two, got {num_buckets}.")
        self.vocab_size, self.num_buckets = vocab_size, num_buckets
        self.register_buffer("unigram", torch.zeros(vocab_size, dtype=torch.uint8))
        for name in ("pair", "triple", "gap"):
            self.register_buffer(name, torch.zeros(num_buckets, dtype=torch.uint8))
        # An integer: `half()` would turn a float of this size into infinity, and every score into nan.
        self.register_buffer("total", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fit(self, texts: Iterable[list[int]]) -> None:
        """
        Count the tokens, pairs and triples of training texts (lists of token ids). Raises `ValueError` if they are
        empty.
        """
        unigram = torch.zeros(self.vocab_size)
        pair, triple, gap = (torch.zeros(self.num_buckets) for _ in range(3))
        for text in texts:
            ids = torch.as_tensor(text, dtype=torch.long)
            unigram += torch.bincount(ids, minlength=self.vocab_size)
            for table, keys in ((pair, self._hash(ids[:-1], ids[1:])),
                                (triple, self._hash(ids[:-2], ids[1:-1], ids[2:])),
                                (gap, self._hash(ids[:-2], ids[2:]))):  # fmt: skip
                table.index_add_(0, keys, torch.ones(len(keys)))
        if not unigram.any():
            raise ValueError("The count tables need at least one training token, got none.")
        self.total.fill_(unigram.sum())
        for buffer, counts in ((self.unigram, unigram), (self.pair, pair), (self.triple, triple), (self.gap, gap)):
            buffer.copy_((_LOG_STEPS * torch.log2(1 + counts)).round().clamp(max=255))

    def _hash(self, *ids: torch.Tensor) -> torch.Tensor:
        key = torch.zeros_like(ids[0])
        for part in ids:
            key = (key * 1_000_003 + part + 1) & 0x3FFFFFFFFFFF  # below 2**46, so that the next product fits int64
        return ((key ^ (key >> 21)) * 2_654_435_761 & 0x7FFFFFFFFFFFFFFF) >> 13 & (self.num_buckets - 1)

    def surprisal(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Unigram surprisal in bits with add-one smoothing; same shape as `input_ids`."""
        counts = _count(self.unigram[input_ids])
        return torch.log2((self.total + self.vocab_size) / (counts + 1))

    def forward(self, input_ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """
        Inputs for the policy.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Token ids, padded on the right.
            valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_tokens, num_features)`: Surprisal in units of 8 bits (given
            nothing, the left neighbour, the right neighbour, two tokens to the left, one on each side); then
            logarithms of: how often token and pair occur earlier in this text, how often the token occurs later, the
                distance to its last occurrence,
            and the distances from both ends.
        """
        ids = input_ids.masked_fill(~valid, 0)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        left, left2 = _shifted(ids, 1), _shifted(ids, 2)
        # Counts of n-grams that end at each token. Those that start at it or surround it are the same counts, shifted.
        pair_key = torch.where(valid, left * self.vocab_size + ids, -1 - positions)
        in_text, pair_in_text = (
            _occurrences(keys, positions) for keys in (torch.where(valid, ids, -1 - positions), pair_key)
        )
        single = self._elsewhere(self.unigram, ids, valid, in_text)
        pair = self._elsewhere(self.pair, self._hash(left, ids), valid & (positions > 0), pair_in_text)
        whole = valid & (positions > 1)
        triple = self._elsewhere(self.triple, self._hash(left2, left, ids), whole)
        gap = self._elsewhere(self.gap, self._hash(left2, ids), whole)

        unigram = (single + 1) / (self.total + self.vocab_size)
        from_left = self._conditional(pair, _shifted(single, 1), unigram)
        from_right = self._conditional(_shifted(pair, -1), _shifted(single, -1), unigram)
        from_two = self._conditional(triple, _shifted(pair, 1), from_left)
        both = self._conditional(
            _shifted(triple, -1), _shifted(gap, -1), (from_left * from_right / unigram).clamp(max=1.0)
        )
        probability = torch.stack([unigram, from_left, from_right, from_two, both], -1)
        surprisal = -torch.log2(probability.clamp(min=1e-9)) / _FEATURE_SCALE

        earlier, later, distance = in_text
        from_end = (valid.sum(1, keepdim=True) - 1 - positions).clamp(min=0)
        places = torch.stack([earlier, pair_in_text[0], later, distance, positions, from_end], -1)
        features = torch.cat([surprisal, torch.log2(1.0 + places) / _FEATURE_SCALE], -1)
        return features * valid[..., None]  # (B, T, F)

    def _elsewhere(
        self,
        table: torch.Tensor,
        keys: torch.Tensor,
        known: torch.Tensor,
        in_text: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """
        Counts `(B, T)` of `keys`, 0 where not `known`.

        In training the text's own counts are subtracted, because the tables were fitted on it. Otherwise every token
        would have been counted at least once, and the policy would rely on counts that new texts do not have.
        """
        counts = _count(table[keys]) * known
        if not self.training:
            return counts
        positions = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
        earlier, later, _ = in_text or _occurrences(torch.where(known, keys, -1 - positions), positions)
        return (counts - (earlier + later + 1)).clamp(min=0)

    @staticmethod
    def _conditional(joint: torch.Tensor, context: torch.Tensor, backoff: torch.Tensor) -> torch.Tensor:
        """Conditional probability by absolute discounting; the discounted mass goes to `backoff`."""
        context = torch.maximum(context, joint)
        seen = (joint - _DISCOUNT).clamp(min=0) / context.clamp(min=1)
        return seen + (_DISCOUNT / (context + _DISCOUNT)) * backoff


def _count(stored: torch.Tensor) -> torch.Tensor:
    return (torch.exp2(stored.float() / _LOG_STEPS) - 1).round()  # exact for counts of up to 22


def _shifted(values: torch.Tensor, places: int) -> torch.Tensor:
    """Shift each row of `values` `(B, T)` by `places` to the right (to the left if negative), and fill with zeros."""
    padding = (places, 0) if places > 0 else (0, -places)
    padded = nn.functional.pad(values, padding)
    return padded[:, : values.shape[1]] if places > 0 else padded[:, -places:]


def _occurrences(keys: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    For each position of `keys` `(B, T)`: how often its key occurs earlier, how often later, and the distance to the
    last earlier occurrence (0 if there is none), each `(B, T)`. By sorting, in O(T log T).
    """
    ordered, order = keys.sort(dim=1, stable=True)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run_start = torch.where(starts, positions, 0).cummax(1).values
    ends = torch.ones_like(starts)
    ends[:, :-1] = starts[:, 1:]
    last = positions.shape[1]
    run_end = torch.where(ends, positions, last).flip(1).cummin(1).values.flip(1)
    previous = torch.cat([order[:, :1], order[:, :-1]], 1)
    distance = torch.where(starts, 0, order - previous)
    sorted_values = torch.stack([positions - run_start, run_end - positions, distance])
    out = torch.empty_like(sorted_values).scatter_(2, order.expand(3, -1, -1), sorted_values)
    return out[0], out[1], out[2]
