"""Count tables and in-text counts against slow loops."""

import math

import pytest
import torch

from tokforget.models.ngrams import NgramTables, _occurrences


def test_conditional_surprisal_by_hand():
    tables = NgramTables(vocab_size=10, num_buckets=2**16)
    tables.fit([[1, 2] * 50 + [3, 4]])
    ids = torch.tensor([[1, 2, 3]])
    features = tables(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    unigram = -math.log2((50 + 1) / (102 + 10))
    # Counts are stored in steps of 4 %, a twenty-fifth of a bit on each side.
    assert features[0, 0] * 8 == pytest.approx(unigram, abs=0.1)
    assert features[1, 1] * 8 < 0.2, "2 always follows 1"
    assert features[2, 1] * 8 > 3, "3 followed 2 once in fifty"
    assert features[0, 2] * 8 < 0.2, "1 always precedes 2"


def test_in_text_counts_match_a_loop():
    keys = torch.randint(0, 5, (3, 20), generator=torch.Generator().manual_seed(0))
    earlier, later, distance = _occurrences(keys, torch.arange(20).expand_as(keys))
    for row, text in enumerate(keys.tolist()):
        for t, key in enumerate(text):
            before = [u for u in range(t) if text[u] == key]
            assert int(earlier[row, t]) == len(before)
            assert int(later[row, t]) == text[t + 1 :].count(key)
            assert int(distance[row, t]) == (t - before[-1] if before else 0)


def test_padding_changes_nothing(batch):
    ids, valid = batch
    tables = NgramTables(vocab_size=200, num_buckets=2**10)
    tables.fit([ids[0].tolist(), list(range(200))])
    together = tables(ids, valid)
    for row, length in enumerate(valid.sum(1).tolist()):
        alone = tables(ids[row : row + 1, :length], valid[row : row + 1, :length])
        assert torch.equal(together[row, :length], alone[0])
        assert not together[row, length:].any()


def test_tables_need_text_and_a_power_of_two():
    with pytest.raises(ValueError, match="at least one training token"):
        NgramTables(10, 16).fit([])
    with pytest.raises(ValueError, match="power of two, got 100"):
        NgramTables(10, 100)


def test_in_training_a_text_does_not_count_itself():
    """Tables fitted on two texts tell, of the first, what tables fitted on the second alone would tell."""
    first, second = [5, 6, 7, 5, 6, 8, 9], [5, 6, 7, 9, 9, 6, 7, 5, 6]
    both, other = NgramTables(vocab_size=10, num_buckets=2**16), NgramTables(vocab_size=10, num_buckets=2**16)
    both.fit([first, second])
    other.fit([second])
    other.total.copy_(both.total)  # the sum of all tokens stays that of the run: one text is nothing beside it
    ids = torch.tensor([first])
    valid = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(both.train()(ids, valid), other.eval()(ids, valid))
    assert not torch.allclose(both.eval()(ids, valid), other(ids, valid), atol=0.03)
