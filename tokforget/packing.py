"""
Cut texts into fixed blocks, and pack kept tokens into short rows. A row holds only tokens of its own text.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


def cut_blocks(token_ids: list[int], length: int) -> Iterator[list[int]]:
    """Consecutive blocks of `length` ids; the last one may be shorter, and nothing is thrown away."""
    for start in range(0, len(token_ids), length):
        yield token_ids[start : start + length]


def like_lengths(lengths: torch.Tensor, least: int = 8, most_groups: int = 8) -> list[torch.Tensor]:
    """
    Group rows of similar length, so that each group is padded only to its own longest row.

    Args:
        lengths (`torch.LongTensor` of shape `(batch_size,)`): Tokens of each row.
        least (`int`): Fewest rows of a group; smaller batches do not use the hardware well.
        most_groups (`int`): Most groups; each needs a forward pass of its own.

    Returns:
        `list[torch.LongTensor]`: For each group the indices of its rows; groups are sorted by length.
    """
    num_groups = max(1, min(most_groups, len(lengths) // least))
    return list(lengths.argsort(stable=True).tensor_split(num_groups))


def kept_tokens(input_ids: torch.Tensor, keep_mask: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """
    The compressed text: the kept tokens in their order, moved to the left.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Texts.
        keep_mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): True is kept; False on padding.
        pad_token_id (`int`): Fills short rows.

    Returns:
        `torch.LongTensor` of shape `(batch_size, most_kept)`: As wide as the row that keeps most.
    """
    counts = keep_mask.sum(1)  # (B,)
    compressed = input_ids.new_full((len(input_ids), int(counts.max())), pad_token_id)
    compressed[torch.arange(compressed.shape[1], device=counts.device) < counts[:, None]] = input_ids[keep_mask]
    return compressed  # (B, K)


@dataclass
class PrefixRows:
    """
    Rows `[kept tokens] <sep> [original]`, padded on the right.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, row_length)`): The rows.
        attention_mask (`torch.LongTensor` of shape `(batch_size, row_length)`): 1 where a row has a token.
        original_start (`torch.LongTensor` of shape `(batch_size,)`): Column of the first original token; the logits
            one column before predict it.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    original_start: torch.Tensor


def prefix_rows(
    input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor, sep_token_id: int, pad_token_id: int
) -> PrefixRows:
    """
    Build the rows of the prefix layout.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Texts, padded on the right.
        keep_mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): True is kept; False on padding.
        valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.
        sep_token_id (`int`): The token between the kept tokens and the original.
        pad_token_id (`int`): Fills the columns that the attention mask hides.
    """
    kept, lengths = keep_mask.sum(1), valid.sum(1)  # (B,)
    row_length = int((kept + 1 + lengths).max())  # the only number that the host waits for
    # Every token is sent to its column, and padding to one more column, which is cut off.
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    copied = torch.where(keep_mask, keep_mask.cumsum(1) - 1, row_length)
    original = torch.where(valid, kept[:, None] + 1 + position, row_length)
    rows = input_ids.new_full((len(input_ids), row_length + 1), pad_token_id)
    rows.scatter_(1, copied, input_ids).scatter_(1, original, input_ids).scatter_(1, kept[:, None], sep_token_id)
    columns = torch.arange(row_length, device=rows.device)
    attention_mask = (columns < (kept + 1 + lengths)[:, None]).long()
    return PrefixRows(
        input_ids=rows[:, :row_length].contiguous(), attention_mask=attention_mask, original_start=kept + 1
    )
