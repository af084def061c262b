"""Rows against a slow construction by hand."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokforget.packing import cut_blocks, kept_tokens, like_lengths, prefix_rows


@given(st.lists(st.integers(0, 9), max_size=50), st.integers(1, 20))
def test_blocks_lose_nothing(ids, length):
    blocks = list(cut_blocks(ids, length))
    assert [i for block in blocks for i in block] == ids
    assert all(len(block) == length for block in blocks[:-1])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 100_000), st.integers(1, 4), st.integers(1, 12))
def test_rows_are_kept_separator_original(seed, batch_size, num_tokens):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (batch_size, num_tokens), generator=generator)
    lengths = torch.randint(1, num_tokens + 1, (batch_size,), generator=generator)
    valid = torch.arange(num_tokens) < lengths[:, None]
    keep = (torch.rand(batch_size, num_tokens, generator=generator) < 0.5) & valid
    rows = prefix_rows(ids, keep, valid, sep_token_id=77, pad_token_id=0)
    for b in range(batch_size):
        kept = ids[b][keep[b]].tolist()
        expected = [*kept, 77, *ids[b][valid[b]].tolist()]
        assert rows.input_ids[b, : len(expected)].tolist() == expected
        assert rows.attention_mask[b].tolist() == [1] * len(expected) + [0] * (rows.input_ids.shape[1] - len(expected))
        assert int(rows.original_start[b]) == len(kept) + 1
        compressed = kept_tokens(ids, keep, pad_token_id=0)[b].tolist()
        assert compressed[: len(kept)] == kept and set(compressed[len(kept) :]) <= {0}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 9), st.integers(1, 4))
def test_groups_hold_every_row_once_by_length(lengths, least, most_groups):
    groups = like_lengths(torch.tensor(lengths, dtype=torch.long), least, most_groups)
    order = torch.cat(groups).tolist()
    assert sorted(order) == list(range(len(lengths))) and [lengths[place] for place in order] == sorted(lengths)
    assert len(groups) <= most_groups and (len(groups) == 1 or min(map(len, groups)) >= least)


def test_groups_leave_little_padding():
    lengths = torch.randint(40, 170, (80,), generator=torch.Generator().manual_seed(0))
    computed = sum(len(rows) * int(lengths[rows].max()) for rows in like_lengths(lengths))
    assert 1 - int(lengths.sum()) / computed < 0.1 < 0.3 < 1 - int(lengths.sum()) / (80 * int(lengths.max()))
