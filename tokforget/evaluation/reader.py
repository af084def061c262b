"""
The language model that reads a compressed text: untouched, and never told that or where tokens were dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokforget.evaluation.words import encode
from tokforget.models import loading


@dataclass
class ContinuationScores:
    """
    Args:
        nll (`torch.DoubleTensor` of shape `(num_texts,)`): `-log2 p(continuation | context)` in bits, over all its tokens.
        num_tokens (`torch.LongTensor` of shape `(num_texts,)`): Tokens of each continuation.
    """

    nll: torch.Tensor
    num_tokens: torch.Tensor


def load_reader(model: str | Path | PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model as [`load_base_model`] reads it; a loaded one is returned as it is."""
    if not isinstance(model, str | Path):
        return model
    return loading.load_base_model(str(model), dtype=dtype).eval()


def load_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer by id, folder or `"embedded"`, `ValueError` if it cannot be had; a loaded one is returned as it is."""
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    return loading.load_tokenizer(str(tokenizer))


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands in front of every context, the empty one too: the begin token, else the end token."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    raise ValueError(
        f"The tokenizer {tokenizer.name_or_path!r} has neither a begin nor an end token, so that the first token of a "
        "continuation without context cannot be predicted. Add one, for instance `tokenizer.bos_token = ...`."
    )


def continuation_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str] | Sequence[Sequence[int]],
    continuations: Sequence[str] | Sequence[Sequence[int]],
    batch_size: int = 8,
    progress: str | None = None,
) -> ContinuationScores:
    """
    What continuations cost a reader after given contexts. A continuation is tokenised alone, so that it is the same tokens
    after any context; it should begin as it does in running text (for most tokenizers with a space), the context not end
    with one.

    Args:
        model (`PreTrainedModel`): Any causal language model. Read without dropout and without gradients.
        tokenizer (`PreTrainedTokenizerBase`): Of `model`. Its begin token is put in front of every context.
        contexts (`Sequence`): Strings or token ids; empty for no context.
        continuations (`Sequence`): Strings or token ids, of one token at least.
        batch_size (`int`): Rows per forward, padded on the right, of similar lengths.
        progress (`str`, *optional*): Text of a progress bar; none is shown without.

    Raises:
        `ValueError`: If a continuation is empty or a row longer than the model's positions: it is not cut here, for a cut
        context is another context. Cut the texts, all cases of a comparison alike, or take a reader with more positions.
    """
    if len(contexts) != len(continuations):
        raise ValueError(f"There are {len(contexts)} contexts and {len(continuations)} continuations, not as many.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    start = start_token_id(tokenizer)
    contexts, continuations = _token_ids(contexts, tokenizer), _token_ids(continuations, tokenizer)
    rows = [[start, *context, *continuation] for context, continuation in zip(contexts, continuations)]
    _check_rows(model, rows, continuations)
    nll = torch.zeros(len(rows), dtype=torch.float64)
    order = sorted(
        range(len(rows)), key=lambda i: -len(rows[i])
    )  # the largest batch first: it tells if memory suffices
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    was_training = model.training
    model.eval()
    try:
        for batch in tqdm(batches, desc=progress, disable=progress is None):
            nll[batch] = _score_rows(model, [rows[i] for i in batch], [len(continuations[i]) for i in batch])
    finally:
        model.train(was_training)
    return ContinuationScores(nll=nll, num_tokens=torch.tensor([len(c) for c in continuations], dtype=torch.long))


def _token_ids(texts: Sequence, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    is_text = [isinstance(text, str) for text in texts]
    if all(is_text):
        return encode(texts, tokenizer)
    if any(is_text):
        raise TypeError("Contexts and continuations must be all strings or all token ids, got some of either.")
    return [[int(token_id) for token_id in text] for text in texts]


def _check_rows(model: PreTrainedModel, rows: list[list[int]], continuations: list[list[int]]) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for place, (row, continuation) in enumerate(zip(rows, continuations)):
        if not continuation:
            raise ValueError(f"Continuation {place} is empty: there is nothing to predict.")
        if limit is not None and len(row) - 1 > limit:
            raise ValueError(
                f"Text {place} does not fit: begin token, context and continuation are {len(row)} tokens, the reader takes "
                f"{limit + 1}. Cut the texts, all cases of a comparison alike, or take a reader with more positions."
            )


@torch.no_grad()
def _score_rows(model: PreTrainedModel, rows: list[list[int]], lengths: list[int]) -> torch.Tensor:
    """Bits of the last `lengths` tokens of each row, `(B,)`; the last token of a row is predicted, not read."""
    width = max(len(row) for row in rows) - 1
    # Padding stands to the right of all that is read, where no causal model looks; its id is any.
    input_ids = torch.tensor([row[:-1] + [row[0]] * (width + 1 - len(row)) for row in rows])
    attention_mask = torch.tensor([[1] * (len(row) - 1) + [0] * (width + 1 - len(row)) for row in rows])
    text = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths))
    column = torch.tensor([c for row, n in zip(rows, lengths) for c in range(len(row) - 1 - n, len(row) - 1)])
    target = torch.tensor([token_id for row, n in zip(rows, lengths) for token_id in row[-n:]])

    # The output head runs on the continuation alone: over a long context it would be most of the memory.
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, hidden: (hidden[0][text, column][None],)
    )
    try:
        shown = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
        logits = model(**shown, use_cache=False).logits[0].float()  # (N, V)
    finally:
        handle.remove()
    nll = F.cross_entropy(logits, target.to(logits.device), reduction="none").double().cpu() / math.log(2)
    return torch.zeros(len(rows), dtype=torch.float64).index_add(0, text, nll)
