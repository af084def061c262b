"""
The reader: a frozen language model whose prompt does not show that or where tokens were dropped.
"""

import inspect
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

from tokforget.launch import emulates_bf16
from tokforget.models import loading
from tokforget.readers.words import encode


# Most tokens of the leaves in a row: the attention mask is quadratic in the tokens of a row, so rows must stay short.
_LEAF_TOKENS = 1024


@dataclass
class ContinuationScores:
    """
    Scores of continuations.

    Args:
        nll (`torch.DoubleTensor` of shape `(num_texts,)`): `-log2 p(continuation | context)` in bits, over all its tokens.
        num_tokens (`torch.LongTensor` of shape `(num_texts,)`): Tokens of each continuation.
    """

    nll: torch.Tensor
    num_tokens: torch.Tensor


def load_reader(model: str | Path | PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model with [`load_base_model`]; a loaded model is returned unchanged."""
    if not isinstance(model, str | Path):
        return model
    return loading.load_base_model(str(model), dtype=dtype).eval()


def load_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """
    Load a tokenizer by id, folder or `"embedded"`; a loaded one is returned unchanged. Raises `ValueError` if that
    fails.
    """
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    return loading.load_tokenizer(str(tokenizer))


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """
    The token before every context, including an empty one: the begin token, else the end token. Raises `ValueError` if
    there is neither.
    """
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
    Bits of continuations under a reader, given their contexts. A continuation is tokenised alone, so that it has the
    same tokens after any context. It should begin as in running text (for most tokenizers with a space), and the
    context should not end with a space.

    Args:
        model (`PreTrainedModel`): Any causal language model; used without dropout and without gradients.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer. Its begin token is put before every context.
        contexts (`Sequence`): Strings or token ids; empty for no context.
        continuations (`Sequence`): Strings or token ids, of at least one token.
        batch_size (`int`): Rows per forward pass; rows of similar length are batched and padded on the right.
        progress (`str`, *optional*): Text of a progress bar; without it there is no bar.

    Returns:
        [`ContinuationScores`]: Bits and number of tokens of each continuation.

    Raises:
        `ValueError`: If a continuation is empty, or a row is longer than the model's positions. Rows are not cut,
            because a shorter context would be another context. Cut the texts for all compared cases alike, or use a
            reader with more positions.
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
    )  # the largest batch first, so that a lack of memory shows at once
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    bits = _score_batches(model, rows, [len(c) for c in continuations], batches, progress)
    nll = torch.tensor([float(of_text.sum()) for of_text in bits], dtype=torch.float64)
    return ContinuationScores(nll=nll, num_tokens=torch.tensor([len(c) for c in continuations], dtype=torch.long))


class Reader:
    """
    A language model that reads prompts as strings and scores targets after them, in bits.

    Args:
        model (`PreTrainedModel`): Any causal language model; used without dropout and without gradients.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer. Its begin token is put before every prompt.
        batch_tokens (`int`): Most tokens of a forward pass, including padding; a longer row is a batch of its own.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int = 4096):
        if batch_tokens < 1:
            raise ValueError(f"`batch_tokens` must be at least 1, got {batch_tokens}.")
        self.model, self.tokenizer, self.batch_tokens = model.eval(), tokenizer, batch_tokens
        self.start = start_token_id(tokenizer)

    @classmethod
    def from_pretrained(cls, name_or_path: str, device: str | torch.device = "cpu", **options) -> "Reader":
        """
        Load a reader by folder, id or `"embedded"`, in bfloat16 if the device supports it, else in float32.

        Raises:
            `ValueError`: If the model or its tokenizer cannot be loaded.
        """
        dtype = torch.bfloat16 if computes_in_bf16(torch.device(device)) else torch.float32
        model = load_reader(name_or_path, dtype).to(device)
        return cls(model, load_tokenizer(loading.resolve_base(str(name_or_path))), **options)

    @property
    def max_tokens(self) -> int | None:
        """Number of positions of the model; `None` if it states none."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without special tokens."""
        return [len(ids) for ids in self.token_ids(texts)]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without a begin token and without truncation."""
        return encode(texts, self.tokenizer)

    def token_places(self, text: str) -> list[tuple[int, int]]:
        """Character span of each token in the text; tokens that are parts of one character share its span."""
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
        return self.tokenizer(text, **options, verbose=False)["offset_mapping"]

    def token_bits(
        self, prompts: Sequence[str], targets: Sequence[str], progress: str | None = None
    ) -> list[np.ndarray]:
        """
        Bits `-log2 p` of every token of each target after its prompt, `(num_target_tokens,)` float64 each. Prompt and
        target are tokenised separately, so that a target has the same tokens after any prompt.

        Raises:
            `ValueError`: If a target is empty, or prompt and target do not fit the model; they are not truncated.
        """
        if len(prompts) != len(targets):
            raise ValueError(f"There are {len(prompts)} prompts and {len(targets)} targets, not as many.")
        prompt_ids, target_ids = encode(prompts, self.tokenizer), encode(targets, self.tokenizer)
        rows = [[self.start, *prompt, *target] for prompt, target in zip(prompt_ids, target_ids)]
        _check_rows(self.model, rows, target_ids)
        batches = _batches_by_length([len(row) for row in rows], self.batch_tokens)
        return _score_batches(self.model, rows, [len(ids) for ids in target_ids], batches, progress)

    def bits(self, prompts: Sequence[str], targets: Sequence[str], progress: str | None = None) -> np.ndarray:
        """Bits of each whole target after its prompt `(num_texts,)`, float64; see [`Reader.token_bits`]."""
        return np.array([of_target.sum() for of_target in self.token_bits(prompts, targets, progress)])

    def span_token_bits(
        self,
        lookups: Sequence[tuple[str, Sequence[tuple[str, str]]]],
        share_context: bool = True,
        progress: str | None = None,
    ) -> list[list[np.ndarray]]:
        """
        Bits of every token of several targets per context. A context is read once for all its targets (or once per
        1,024 tokens of suffixes and targets).

        Context, suffix and target are tokenised separately, so that suffixes and targets have the same tokens after
        the original and the compressed text. The suffixes of a context do not attend to each other.

        Args:
            lookups (`Sequence` of `(context, [(suffix, target), ...])`):
                The context, which may be empty, and pairs: the suffix that follows the context in the prompt, which
                may be empty, too, and the target whose bits are counted.
            share_context (`bool`):
                Whether a context is read once, if the model allows it ([`Reader.shares_contexts`]); otherwise each
                pair is a row.
            progress (`str`, *optional*): Text of a progress bar; without it there is no bar.

        Returns:
            `list[list[np.ndarray]]`: For each context and pair `(num_target_tokens,)` float64, bits `-log2 p`.

        Raises:
            `ValueError`: If a target is empty, or context, suffix and target do not fit the model; they are not
                truncated.
        """
        context_ids = encode([context for context, _ in lookups], self.tokenizer)
        pairs = [pair for _, asked in lookups for pair in asked]
        suffix_ids = encode([suffix for suffix, _ in pairs], self.tokenizer) if pairs else []
        target_ids = encode([target for _, target in pairs], self.tokenizer) if pairs else []
        owner = [i for i, (_, asked) in enumerate(lookups) for _ in asked]
        prompts = [[self.start, *context_ids[i], *suffix] for i, suffix in zip(owner, suffix_ids)]
        rows = [[*prompt, *target] for prompt, target in zip(prompts, target_ids)]
        _check_rows(self.model, rows, target_ids)
        lengths = [len(ids) for ids in target_ids]
        if not (share_context and self.shares_contexts):
            by_length = _batches_by_length([len(row) for row in rows], self.batch_tokens)
            by_pair = _score_batches(self.model, rows, lengths, by_length, progress)
        else:
            trees: list[tuple[int, list[int]]] = []  # a context, and the pairs read with it
            room = 0
            for pair, i in enumerate(owner):
                width = len(suffix_ids[pair]) + lengths[pair]
                if not trees or trees[-1][0] != i or width > room:
                    trees.append((i, []))
                    room = max(_LEAF_TOKENS, width)
                trees[-1][1].append(pair)
                room -= width
            widths = [1 + len(context_ids[i]) + sum(len(suffix_ids[p]) + lengths[p] for p in of) for i, of in trees]
            by_pair = [np.zeros(0)] * len(pairs)
            for batch in tqdm(_batches_by_length(widths, self.batch_tokens), desc=progress, disable=progress is None):
                asked = [p for at in batch for p in trees[at][1]]
                stems = [[self.start, *context_ids[trees[at][0]]] for at in batch]
                leaves = [[(suffix_ids[p], target_ids[p]) for p in trees[at][1]] for at in batch]
                found = _score_trees(self.model, stems, leaves)
                for p, of_pair in zip(asked, found.split([lengths[p] for p in asked])):
                    by_pair[p] = of_pair.numpy()
        every = iter(by_pair)
        return [[next(every) for _ in asked] for _, asked in lookups]

    def span_bits(
        self,
        lookups: Sequence[tuple[str, Sequence[tuple[str, str]]]],
        share_context: bool = True,
        progress: str | None = None,
    ) -> list[np.ndarray]:
        """Bits `-log2 p` of each whole target, `(num_pairs,)` float64 for each context; see [`Reader.span_token_bits`]."""
        found = self.span_token_bits(lookups, share_context, progress)
        return [np.array([float(of_pair.sum()) for of_pair in of], dtype=np.float64) for of in found]

    @property
    def shares_contexts(self) -> bool:
        """
        Whether the model accepts explicit positions and an attention mask: only models with full attention computed by
        PyTorch do.
        Models with attention windows, recurrent layers or other kernels read one row per lookup instead.
        """
        config = self.model.config.get_text_config()
        full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        takes_places = "position_ids" in inspect.signature(self.model.forward).parameters
        by_torch = config._attn_implementation in ("sdpa", "eager")
        return full and takes_places and by_torch and getattr(config, "sliding_window", None) is None


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on this device: GPUs that support it, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and platform.machine() == "x86_64" and not emulates_bf16()


def _batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """
    Indices of rows in batches of at most `batch_tokens` including padding, longest rows first; a longer row is a batch
    of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Rows are sorted from longest to shortest, so the first row of a batch determines its width.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


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
    """
    Bits of the last `lengths` tokens of each row, concatenated. The last token of a row is predicted but not read.
    """
    width = max(len(row) for row in rows) - 1
    # Padding is on the right, where a causal model does not attend; any id will do.
    input_ids = torch.tensor([row[:-1] + [row[0]] * (width + 1 - len(row)) for row in rows])
    attention_mask = torch.tensor([[1] * (len(row) - 1) + [0] * (width + 1 - len(row)) for row in rows])
    row_of = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths))
    column = torch.tensor([c for row, n in zip(rows, lengths) for c in range(len(row) - 1 - n, len(row) - 1)])
    target = torch.tensor([token_id for row, n in zip(rows, lengths) for token_id in row[-n:]])

    # The output head runs only on the continuation, because over a long context its logits would take most of the
    # memory.
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, hidden: (hidden[0][row_of, column][None],)
    )
    try:
        shown = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
        logits = model(**shown, use_cache=False).logits[0].float()  # (N, V)
    finally:
        handle.remove()
    return F.cross_entropy(logits, target.to(logits.device), reduction="none").double().cpu() / math.log(2)


@torch.no_grad()
def _score_trees(
    model: PreTrainedModel, stems: list[list[int]], leaves: list[list[tuple[list[int], list[int]]]]
) -> torch.Tensor:
    """
    Bits of the target of every leaf `(suffix, target)` of every stem (context), concatenated. A stem and its leaves
    form one row: the positions of each leaf continue those of the stem, and a leaf attends to the stem and to itself.
    """
    rows, places, owners, row_of, column, targets = [], [], [], [], [], []
    for at, (stem, of_stem) in enumerate(zip(stems, leaves)):
        row, place, owner = list(stem), list(range(len(stem))), [0] * len(stem)
        for number, (suffix, target) in enumerate(of_stem, 1):
            first = len(row)
            read = [*suffix, *target[:-1]]
            row += read
            place += range(len(stem), len(stem) + len(read))
            owner += [number] * len(read)
            # The token before the target predicts its first token; without a suffix this is the stem's last token.
            before = [first + len(suffix) - 1] if suffix else [len(stem) - 1]
            column += before + list(range(first + len(suffix), first + len(read)))
            row_of += [at] * len(target)
            targets += target
        rows.append(row)
        places.append(place)
        owners.append(owner)
    width = max(len(row) for row in rows)
    input_ids = torch.tensor([row + [row[0]] * (width - len(row)) for row in rows])  # (B, W)
    position_ids = torch.tensor([place + [0] * (width - len(place)) for place in places])
    # Padding is a separate leaf: it attends to something, and nothing attends to it.
    owner_of = torch.tensor([owner + [-1] * (width - len(owner)) for owner in owners])
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = causal & ((owner_of[:, None, :] == 0) | (owner_of[:, None, :] == owner_of[:, :, None]))  # (B, W, W)
    mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)[:, None]
    where = (torch.tensor(row_of), torch.tensor(column))
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, hidden: (hidden[0][where][None],))
    try:
        shown = {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": mask}
        logits = (
            model(**{k: v.to(model.device) for k, v in shown.items()}, use_cache=False).logits[0].float()
        )  # (N, V)
    finally:
        handle.remove()
    target_ids = torch.tensor(targets, device=logits.device)
    return F.cross_entropy(logits, target_ids, reduction="none").double().cpu() / math.log(2)
