"""
The language model that reads a compressed text: untouched, and never told that or where tokens were dropped.
"""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokforget.evaluation.words import encode
from tokforget.launch import emulates_bf16
from tokforget.models import loading


# Branches of a tree, in tokens: what is seen by whom is a square of a row's tokens, so rows must not grow without end.
_BRANCH_TOKENS = 1024


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
        return [len(ids) for ids in self.token_ids(texts)]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as it stands: no begin token, nothing cut."""
        return encode(texts, self.tokenizer)

    def token_places(self, text: str) -> list[tuple[int, int]]:
        """Where in the text each of its tokens begins and ends; the parts of one character share its place."""
        options = {
            "add_special_tokens": False,
            "split_special_tokens": True,
            "return_offsets_mapping": True,
            "verbose": False,
        }
        return self.tokenizer(text, **options)["offset_mapping"]

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
        batches = _batches_by_length([len(row) for row in rows], self.batch_tokens)
        return _score_batches(self.model, rows, [len(ids) for ids in target_ids], batches, progress)

    def bits(self, prompts: Sequence[str], targets: Sequence[str], progress: str | None = None) -> np.ndarray:
        """Bits of each whole target after its prompt `(num_texts,)`, float64; see [`Reader.token_bits`]."""
        return np.array([of_target.sum() for of_target in self.token_bits(prompts, targets, progress)])

    def shared_token_bits(
        self, contexts: Sequence[str], asked: Sequence[Sequence[tuple[str, str]]], progress: str | None = None
    ) -> list[list[np.ndarray]]:
        """
        Bits of every token of many targets after few contexts, each context read once however much is asked of it: what
        rewards and lookups need. A context, what follows it and a target are tokenised apart.

        Args:
            contexts (`Sequence[str]`): What targets share; may be empty strings.
            asked (`Sequence` of `Sequence[tuple[str, str]]`): For each context pairs of suffix and target. A target is
                predicted after its context and its own suffix, and sees no other pair.
            progress (`str`, *optional*): Text of a progress bar.

        Returns:
            `list[list[np.ndarray]]`: For each context and pair `(num_target_tokens,)` float64, bits.

        Raises:
            `ValueError`: If there are not as many lists as contexts, a target is empty, or a context with a suffix and its
            target does not fit the model's positions.
        """
        if len(contexts) != len(asked):
            raise ValueError(
                f"There are {len(contexts)} contexts and {len(asked)} lists of what is asked, not as many."
            )
        pairs = [pair for of_context in asked for pair in of_context]
        suffix_ids = iter(encode([suffix for suffix, _ in pairs], self.tokenizer))
        target_ids = iter(encode([target for _, target in pairs], self.tokenizer))
        trunks = [[self.start, *ids] for ids in encode(list(contexts), self.tokenizer)]
        branches = [[(next(suffix_ids), next(target_ids)) for _ in of_context] for of_context in asked]
        flat = [(trunk + suffix, target) for trunk, of in zip(trunks, branches) for suffix, target in of]
        rows, targets = [prompt + target for prompt, target in flat], [target for _, target in flat]
        _check_rows(self.model, rows, targets)
        if self._reads_trees:
            bits = self._tree_bits(trunks, branches, progress)
        else:
            batches = _batches_by_length([len(row) for row in rows], self.batch_tokens)
            bits = _score_batches(self.model, rows, [len(target) for target in targets], batches, progress)
        every = iter(bits)
        return [[next(every) for _ in of_context] for of_context in asked]

    def shared_bits(
        self, contexts: Sequence[str], asked: Sequence[Sequence[tuple[str, str]]], progress: str | None = None
    ) -> list[np.ndarray]:
        """Bits of each whole target, `(num_pairs,)` float64 for each context; see [`Reader.shared_token_bits`]."""
        found = self.shared_token_bits(contexts, asked, progress)
        return [np.array([of_target.sum() for of_target in of_context]) for of_context in found]

    def _tree_bits(
        self, trunks: list[list[int]], branches: list[list[tuple[list[int], list[int]]]], progress: str | None
    ) -> list[np.ndarray]:
        """Bits of the targets of all branches, in order; a trunk with very many branches is read more than once."""
        trees: list[tuple[list[int], list[tuple[list[int], list[int]]]]] = []
        for trunk, of_trunk in zip(trunks, branches):
            room = 0
            for branch in of_trunk:
                length = len(branch[0]) + len(branch[1])
                if length > room:
                    trees.append((trunk, []))
                    room = max(_BRANCH_TOKENS, length)
                trees[-1][1].append(branch)
                room -= length
        lengths = [len(trunk) + sum(len(a) + len(b) for a, b in of_trunk) for trunk, of_trunk in trees]
        found: list[list[np.ndarray]] = [[]] * len(trees)
        for batch in tqdm(_batches_by_length(lengths, self.batch_tokens), desc=progress, disable=progress is None):
            bits = _score_trees(self.model, [trees[i][0] for i in batch], [trees[i][1] for i in batch])
            every = iter(bits.split([len(target) for i in batch for _, target in trees[i][1]]))
            for i in batch:
                found[i] = [next(every).numpy() for _ in trees[i][1]]
        return [of_target for of_tree in found for of_target in of_tree]

    @cached_property
    def _reads_trees(self) -> bool:
        """
        Whether the model heeds an attention mask per pair of places, and places given from outside; tried once on a few
        tokens. One that carries a state, or reads places off the mask, does not; its targets are then read one by one.
        """
        ids = list(range(min(12, self.model.config.get_text_config().vocab_size)))
        trunk, branches = [self.start, *ids[:5]], [(ids[5:8], ids[:2]), (ids[8:9], ids[2:5])]
        try:
            found = _score_trees(self.model, [trunk], [branches])
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False
        rows = [trunk + suffix + target for suffix, target in branches]
        alone = _score_rows(self.model, rows, [len(target) for _, target in branches])
        # Half of a bit is far above bfloat16's rounding of logits, and far below a wrong context for most weights.
        return bool((found - alone).abs().max() < (1e-2 if self.model.dtype == torch.float32 else 0.5))


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: GPUs that support it, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and platform.machine() == "x86_64" and not emulates_bf16()


def _batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Places of rows of like lengths, the longest first, at most `batch_tokens` of a batch with its padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Rows come from the longest to the shortest: the first of a batch says how wide it is.
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
    """Bits of the last `lengths` tokens of each row, one row after another; the last token of a row is predicted, not read."""
    width = max(len(row) for row in rows) - 1
    # Padding stands to the right of all that is read, where no causal model looks; its id is any.
    input_ids = torch.tensor([row[:-1] + [row[0]] * (width + 1 - len(row)) for row in rows])
    attention_mask = torch.tensor([[1] * (len(row) - 1) + [0] * (width + 1 - len(row)) for row in rows])
    row_of = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths))
    column = torch.tensor([c for row, n in zip(rows, lengths) for c in range(len(row) - 1 - n, len(row) - 1)])
    target = torch.tensor([token_id for row, n in zip(rows, lengths) for token_id in row[-n:]])

    shown = {"input_ids": input_ids, "attention_mask": attention_mask}
    return _bits_at(model, shown, row_of, column, target)


@torch.no_grad()
def _score_trees(
    model: PreTrainedModel, trunks: list[list[int]], branches: list[list[tuple[list[int], list[int]]]]
) -> torch.Tensor:
    """
    Bits of the targets of each tree, one after another. A tree is a trunk and, behind it in one row, branches of suffix and
    target that see the trunk and themselves; each branch counts its places from the trunk's end.
    """
    rows, places, owners, row_of, column, wanted = [], [], [], [], [], []
    for number, (trunk, of_trunk) in enumerate(zip(trunks, branches)):
        row, place, owner = list(trunk), list(range(len(trunk))), [0] * len(trunk)
        for branch, (suffix, target) in enumerate(of_trunk, 1):
            read = [*suffix, *target[:-1]]  # the last token is predicted, not read
            begin = len(row) + len(suffix) - 1
            # The first token of a target without a suffix is predicted where the trunk ends.
            seen_from = [begin + i if suffix or i else len(trunk) - 1 for i in range(len(target))]
            row += read
            place += range(len(trunk), len(trunk) + len(read))
            owner += [branch] * len(read)
            row_of += [number] * len(target)
            column += seen_from
            wanted += target
        rows.append(row)
        places.append(place)
        owners.append(owner)
    width = max(map(len, rows))
    input_ids, position_ids, owner = (
        torch.tensor([line + [fill] * (width - len(line)) for line in lines])
        for lines, fill in ((rows, trunks[0][0]), (places, 0), (owners, -1))
    )
    # Seen is what stands before, of the trunk or of the same branch. Padding sees padding, and nobody sees it.
    seen = ((owner[:, None, :] == 0) & (owner[:, :, None] >= 0)) | (owner[:, None, :] == owner[:, :, None])
    seen &= torch.ones(width, width, dtype=torch.bool).tril()
    hidden = torch.finfo(model.dtype).min
    mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, hidden)[:, None]  # (B, 1, T, T)
    shown = {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids}
    return _bits_at(model, shown, torch.tensor(row_of), torch.tensor(column), torch.tensor(wanted))


def _bits_at(
    model: PreTrainedModel,
    shown: dict[str, torch.Tensor],
    row_of: torch.Tensor,
    column: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    """Bits of `target` `(N,)` as predicted at places `(row_of, column)`, `(N,)` float64 on the CPU."""
    # The output head runs on the continuation alone: over a long context it would be most of the memory.
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, hidden: (hidden[0][row_of, column][None],)
    )
    try:
        on_device = {name: tensor.to(model.device) for name, tensor in shown.items()}
        logits = model(**on_device, use_cache=False).logits[0].float()  # (N, V)
    finally:
        handle.remove()
    return F.cross_entropy(logits, target.to(logits.device), reduction="none").double().cpu() / math.log(2)
