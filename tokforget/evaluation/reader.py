"""
The language model that reads a compressed text: untouched, and never told that or where tokens were dropped.
"""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokforget.evaluation.words import encode
from tokforget.launch import emulates_bf16
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
    order = sorted(
        range(len(rows)), key=lambda i: -len(rows[i])
    )  # the largest batch first: it tells if memory suffices
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    bits = _score_batches(model, rows, [len(c) for c in continuations], batches, progress)
    nll = torch.tensor([float(of_text.sum()) for of_text in bits], dtype=torch.float64)
    return ContinuationScores(nll=nll, num_tokens=torch.tensor([len(c) for c in continuations], dtype=torch.long))


class Reader:
    """
    A language model that reads prompts as strings, and what targets cost it after them.

    Args:
        model (`PreTrainedModel`): Any causal language model, untouched; read without dropout and without gradients.
        tokenizer (`PreTrainedTokenizerBase`): Of `model`. Its begin token is put in front of every prompt.
        batch_tokens (`int`): Most tokens of a forward, padding included; a single longer row makes a batch alone.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int = 4096):
        if batch_tokens < 1:
            raise ValueError(f"`batch_tokens` must be at least 1, got {batch_tokens}.")
        self.model, self.tokenizer, self.batch_tokens = model.eval(), tokenizer, batch_tokens
        self.start = start_token_id(tokenizer)

    @classmethod
    def from_pretrained(cls, name_or_path: str, device: str | torch.device = "cpu", **options) -> "Reader":
        """
        By folder, id or `"embedded"`; in bfloat16 where the device computes in it, in float32 elsewhere.

        Raises:
            `ValueError`: If the model or its tokenizer cannot be loaded.
        """
        dtype = torch.bfloat16 if computes_in_bf16(torch.device(device)) else torch.float32
        model = load_reader(name_or_path, dtype).to(device)
        return cls(model, load_tokenizer(loading.resolve_base(str(name_or_path))), **options)

    @property
    def max_tokens(self) -> int | None:
        """Positions of the model; `None` if it names none."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as it stands."""
        return [len(ids) for ids in encode(texts, self.tokenizer)]

    def token_bits(
        self, prompts: Sequence[str], targets: Sequence[str], progress: str | None = None
    ) -> list[np.ndarray]:
        """
        Bits `-log2 p` of every token of each target after its prompt, `(num_target_tokens,)` float64 each. Prompt and target
        are tokenised apart, so that a target is the same tokens after any prompt.

        Raises:
            `ValueError`: If a target is empty, or prompt and target do not fit the model: they are not cut.
        """
        if len(prompts) != len(targets):
            raise ValueError(f"There are {len(prompts)} prompts and {len(targets)} targets, not as many.")
        prompt_ids, target_ids = encode(prompts, self.tokenizer), encode(targets, self.tokenizer)
        rows = [[self.start, *prompt, *target] for prompt, target in zip(prompt_ids, target_ids)]
        _check_rows(self.model, rows, target_ids)
        batches: list[list[int]] = []
        for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
            # Rows come from the longest to the shortest: the first of a batch says how wide it is.
            if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= self.batch_tokens:
                batches[-1].append(i)
            else:
                batches.append([i])
        return _score_batches(self.model, rows, [len(ids) for ids in target_ids], batches, progress)

    def bits(self, prompts: Sequence[str], targets: Sequence[str], progress: str | None = None) -> np.ndarray:
        """Bits of each whole target after its prompt `(num_texts,)`, float64; see [`Reader.token_bits`]."""
        return np.array([of_target.sum() for of_target in self.token_bits(prompts, targets, progress)])


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: GPUs that support it, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and platform.machine() == "x86_64" and not emulates_bf16()


def _score_batches(
    model: PreTrainedModel,
    rows: list[list[int]],
    lengths: list[int],
    batches: list[list[int]],
    progress: str | None,
) -> list[np.ndarray]:
    bits: list[np.ndarray] = [np.zeros(0)] * len(rows)
    was_training = model.training
    model.eval()
    try:
        for batch in tqdm(batches, desc=progress, disable=progress is None):
            found = _score_rows(model, [rows[i] for i in batch], [lengths[i] for i in batch])
            for i, of_row in zip(batch, found.split([lengths[i] for i in batch])):
                bits[i] = of_row.numpy()
    finally:
        model.train(was_training)
    return bits


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
    """Bits of the last `lengths` tokens of each row, one row after another; the last token of a row is predicted, not read."""
    width = max(len(row) for row in rows) - 1
    # Padding stands to the right of all that is read, where no causal model looks; its id is any.
    input_ids = torch.tensor([row[:-1] + [row[0]] * (width + 1 - len(row)) for row in rows])
    attention_mask = torch.tensor([[1] * (len(row) - 1) + [0] * (width + 1 - len(row)) for row in rows])
    row_of = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths))
    column = torch.tensor([c for row, n in zip(rows, lengths) for c in range(len(row) - 1 - n, len(row) - 1)])
    target = torch.tensor([token_id for row, n in zip(rows, lengths) for token_id in row[-n:]])

    # The output head runs on the continuation alone: over a long context it would be most of the memory.
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, hidden: (hidden[0][row_of, column][None],)
    )
    try:
        shown = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
        logits = model(**shown, use_cache=False).logits[0].float()  # (N, V)
    finally:
        handle.remove()
    return F.cross_entropy(logits, target.to(logits.device), reduction="none").double().cpu() / math.log(2)
