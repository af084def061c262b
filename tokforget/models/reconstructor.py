"""
The reconstructor: a causal language model with a LoRA adapter that restores dropped tokens and scores their loss in
bits.

It has two layouts with the same interface (`token_nll`, `restore`):

* prefix: `[kept tokens] <sep> [original]`, causal. A dropped token is scored given all kept tokens and the original to
  its left. Restoration decodes token by token and forces the kept tokens.
* infill: dropped positions hold the marker token, and attention is full. The output at `t - 1` predicts `t`, so that a
  pretrained next-token head stays useful (BehnamGhader et al. 2024, arXiv 2404.05961; Gong et al. 2024, arXiv
  2410.17891). One pass restores everything.

No token is added to the vocabulary: separator and marker are the mask token if the tokenizer has one, else its end
token, which never occurs inside a text. Therefore the adapter fits the unchanged base model.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tokforget.models.cross_entropy import dense_cross_entropy, frozen_head_cross_entropy, is_plain_head
from tokforget.packing import kept_tokens, like_lengths, prefix_rows


LAYOUTS = ("prefix", "infill")
_LN2 = math.log(2.0)


@dataclass(frozen=True)
class Passes:
    """
    How the rows of a call are divided into forward passes on a kind of device.

    Args:
        least_rows (`int`): Fewest rows of a pass.
        most_passes (`int`): Most passes, unless `most_tokens` asks for more.
        most_tokens (`int`): Tokens of a pass, with padding, that its memory allows.
        width_step (`int`): The widths of rows are multiples of it.
    """

    least_rows: int
    most_passes: int
    most_tokens: int
    width_step: int

    def divide(self, lengths: torch.Tensor, widest: int) -> list[torch.Tensor]:
        """Indices of the rows of each pass, for rows of `lengths` `(B,)`, at most `widest` tokens."""
        fitting = max(1, self.most_tokens // self.width(widest))  # rows
        needed = -(-len(lengths) // fitting)
        if needed > self.most_passes:
            return like_lengths(lengths, 1, needed)
        return like_lengths(lengths, self.least_rows, self.most_passes) if self.most_passes > 1 else []

    def width(self, longest: int) -> int:
        return -(-longest // self.width_step) * self.width_step


# Several passes of rows of like lengths mean less padding, but more launches: padding is expensive on a CPU, and launches
# on a GPU, whose kernels end before the CPU has launched the next (LOG.md). So a GPU gets all rows at once, and with
# rounded widths: shapes that repeat from step to step find their memory and their compiled kernels again. 64 is the tile
# of attention kernels. 65,536 tokens of GPT-2's width take 0.4 GB for a layer's widest output in bfloat16.
PASSES = {
    "cpu": Passes(least_rows=8, most_passes=8, most_tokens=2**30, width_step=1),
    "cuda": Passes(least_rows=1, most_passes=1, most_tokens=2**16, width_step=64),
}


@dataclass
class TokenScores:
    """
    The cost of a keep mask, token by token.

    Args:
        nll (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): `-log2 p` of each dropped token in bits; 0 for
            kept tokens and padding. Carries the gradient of the adapter.
        correct (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): True where a dropped token is the most likely
            one. In the prefix layout the true tokens are to its left, so this is *not* free-running restoration.
    """

    nll: torch.Tensor
    correct: torch.Tensor


@dataclass
class Restoration:
    """
    A restored text. It is a prediction; `confidence` is the probability that the model gave to each token.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Kept tokens as given, dropped ones restored.
        confidence (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): 1 for kept tokens, 0 on padding.
    """

    input_ids: torch.Tensor
    confidence: torch.Tensor


class Reconstructor(nn.Module):
    """
    Restores dropped tokens, and scores in bits how well it can predict them.

    Args:
        model (`PeftModel` or `PreTrainedModel`): The causal language model. Its dropout is set to 0, because the same
            forward pass gives the reward and the loss.
        layout (`str`): `"prefix"` or `"infill"`.
        marker_token_id (`int`): Separator of the prefix layout, placeholder of the infill layout.
    """

    def __init__(self, model: PeftModel | PreTrainedModel, layout: str, marker_token_id: int):
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"`layout` must be one of {LAYOUTS}, got {layout!r}.")
        self.model, self.layout, self.marker_token_id = model, layout, marker_token_id
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self._switch_off_functional_dropout()
        self._compiled: Callable | None = None  # the forward pass of the base model's layers

    def _switch_off_functional_dropout(self) -> None:
        # For functional dropout the rate is an attribute of a module or, for some attention kernels, of the config.
        for holder in (*self.base_model.modules(), self.base_model.config):
            for name, value in vars(holder).items():
                if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop")):
                    setattr(holder, name, 0.0)

    @property
    def base_model(self) -> PreTrainedModel:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def max_tokens(self) -> int | None:
        """Longest text in tokens that fits the context under any keep mask; `None` if the model states no limit."""
        if self._positions is None:
            return None
        return (self._positions - 1) // 2 if self.layout == "prefix" else self._positions - 1

    @property
    def _positions(self) -> int | None:
        return getattr(self.base_model.config.get_text_config(), "max_position_embeddings", None)

    def check_max_length(self, max_length: int) -> None:
        """Raise `ValueError` if texts of `max_length` tokens do not fit the model's context."""
        if self.max_tokens is not None and max_length > self.max_tokens:
            raise ValueError(
                f"`max_length` ({max_length}) exceeds the {self.max_tokens} tokens that fit this model's context."
            )

    @torch.no_grad()
    def check_full_attention(self) -> None:
        """Raise `ValueError` if the layout is infill and the model cannot attend to tokens on the right."""
        if self.layout != "infill":
            return
        device = self.base_model.device
        ids, valid = torch.arange(3, device=device)[None], torch.ones(1, 3, dtype=torch.bool, device=device)
        keep_mask = torch.tensor([[False, True, True]], device=device)
        reason = None
        try:
            first, second = (self.token_nll(row, keep_mask, valid).nll[0, 0] for row in (ids, ids * 2))
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = error  # models raise different errors for a mask of this shape
        if reason is not None or first == second:
            raise ValueError(
                f"`layout` 'infill' needs attention to both sides, which a model of type "
                f"{self.base_model.config.model_type!r} does not allow{f' ({reason})' if reason else ''}. Pass "
                "`--layout prefix`, or take another model."
            ) from reason

    def compile_scoring(self, backend: str = "inductor", mode: str | None = None) -> None:
        """
        Compile the base model's layers for scoring in training mode, where shapes repeat: rows then have the widths of
        a GPU's on any device. Each width is compiled once with and once without gradients, up to torch's
        `recompile_limit`, beyond which a pass runs as it does without. Restoring and evaluating do not change, because
        their shapes rarely repeat.

        Args:
            backend (`str`), mode (`str`, *optional*): As `torch.compile` takes them.
        """
        self._compiled = torch.compile(self.base_model.base_model.forward, dynamic=False, backend=backend, mode=mode)

    # -- scoring ---------------------------------------------------------------------------------------------------
    def forward(self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Bits `(B, T)` of [`Reconstructor.token_nll`]. Trainers call it, so that hooks on the module run."""
        return self.token_nll(input_ids, keep_mask, valid).nll

    def token_nll(
        self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor, in_groups: bool = True
    ) -> TokenScores:
        """
        Score every dropped token. Rows of similar length are batched together to reduce padding.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Original texts, padded on the right.
            keep_mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): True is kept.
            valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.
            in_groups (`bool`): False for one forward pass of all rows.

        Returns:
            [`TokenScores`]: Bits and ranks of the dropped tokens.
        """
        self._check_length(input_ids)
        keep_mask = keep_mask & valid
        row_lengths = valid.sum(1) + (keep_mask.sum(1) if self.layout == "prefix" else 0)
        # Known without asking the device, which would have to finish its work first.
        widest = 1 + input_ids.shape[1] * (2 if self.layout == "prefix" else 1)
        groups = self._passes(input_ids).divide(row_lengths, widest) if in_groups else []
        if len(groups) <= 1:
            return self._score_rows(input_ids, keep_mask, valid)
        parts = [self._score_rows(*self._cut(input_ids[rows], keep_mask[rows], valid[rows])) for rows in groups]
        back, width = torch.cat(groups).argsort(), input_ids.shape[1]
        nll, correct = (
            torch.cat([F.pad(of_group, (0, width - of_group.shape[1])) for of_group in column])[back]
            for column in ([part.nll for part in parts], [part.correct for part in parts])
        )
        return TokenScores(nll=nll, correct=correct)

    @staticmethod
    def _cut(input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Remove the columns that are padding in all of these rows."""
        longest = int(valid.sum(1).max())
        return input_ids[:, :longest], keep_mask[:, :longest], valid[:, :longest]

    def _passes(self, input_ids: torch.Tensor) -> Passes:
        return PASSES["cuda"] if self._compiles else PASSES.get(input_ids.device.type, PASSES["cpu"])

    @property
    def _compiles(self) -> bool:
        return self._compiled is not None and self.training

    def _score_rows(self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor) -> TokenScores:
        # Indices instead of the mask in each use: a GPU counts a mask anew, and the host waits for it.
        dropped = (~keep_mask & valid).nonzero(as_tuple=True)
        target = input_ids[dropped]
        nll, best = self._score_places(*self._dropped_places(input_ids, keep_mask, valid, *dropped), target)
        # It keeps the gradient and leaves exact zeros elsewhere.
        nll = nll.new_zeros(input_ids.shape).index_put(dropped, nll / _LN2)
        correct = torch.zeros_like(keep_mask).index_put(dropped, best == target)
        return TokenScores(nll=nll, correct=correct)

    def _dropped_places(
        self,
        input_ids: torch.Tensor,
        keep_mask: torch.Tensor,
        valid: torch.Tensor,
        text: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """
        Inputs of the model, and the row and column whose output predicts each dropped token, which is at `position`
        `(N,)` of `text` `(N,)`.
        """
        passes = self._passes(input_ids)
        if self.layout == "prefix":
            rows = prefix_rows(input_ids, keep_mask, valid, self.marker_token_id, self.marker_token_id)
            shown = {"input_ids": self._widened(passes, rows.input_ids)}
            # All padding is on the right, where no token looks, so that it needs no mask; a GPU's fastest attention takes
            # none. On a CPU other sums would be rounded otherwise than in earlier runs.
            if passes.width_step == 1:
                shown["attention_mask"] = rows.attention_mask
            return shown, text, rows.original_start[text] + position - 1
        ids, present = (self._widened(passes, part) for part in self._infill_rows(input_ids, keep_mask, valid))
        # Explicit positions: some models would derive others from a two-dimensional mask.
        columns = torch.arange(ids.shape[1], device=ids.device)[None]
        shown = {"input_ids": ids, "attention_mask": self._full_attention(present), "position_ids": columns}
        return shown, text, position

    def _widened(self, passes: Passes, rows: torch.Tensor) -> torch.Tensor:
        """Rows `(B, W)` with columns of zeros on the right up to the next of the widths, or up to the model's context."""
        width, longest = passes.width(rows.shape[1]), rows.shape[1]
        if self._positions is not None:
            width = max(longest, min(width, self._positions))
        return F.pad(rows, (0, width - longest)) if width > longest else rows

    def _infill_rows(
        self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Ids and presence `(B, T + 1)` with a marker in front, so that there is an output before the first token, too.
        """
        shown = F.pad(input_ids.masked_fill(~keep_mask, self.marker_token_id), (1, 0), value=self.marker_token_id)
        return shown, F.pad(valid, (1, 0), value=True)

    def _full_attention(self, present: torch.Tensor) -> torch.Tensor:
        # An additive float mask, because eager attention silently misreads a boolean 4-D mask.
        dtype = self.base_model.dtype
        hidden = torch.zeros(present.shape, dtype=dtype, device=present.device).masked_fill(
            ~present, torch.finfo(dtype).min
        )
        return hidden[:, None, None, :].expand(-1, 1, present.shape[1], -1)

    # The output head is most of a small model's cost, so it runs only on the requested places. A hook selects them, so
    # that soft-capping or scaling of logits in the model's own forward still applies.
    def _score_places(
        self, shown: dict[str, torch.Tensor], rows: torch.Tensor, columns: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`-log p` of the targets `(N,)` in nats and the most likely tokens `(N,)` at the given places."""
        if not self._head_is_plain:
            with self._compiled_layers():
                logits = self._logits_at(shown, rows, columns)
            return dense_cross_entropy(logits, target)
        found: list[torch.Tensor] = []

        def take(_, inputs):
            found.append(inputs[0][rows, columns])
            return (inputs[0][:1, :1],)

        with self._compiled_layers():
            self._run_with_head_hook(take, **shown, use_cache=False)
        return frozen_head_cross_entropy(found[0], self.base_model.get_output_embeddings(), target)

    def _logits_at(self, shown: dict[str, torch.Tensor], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Logits `(N, V)` at the given places."""
        output = self._run_with_head_hook(lambda _, i: (i[0][rows, columns][None],), **shown, use_cache=False)
        return output.logits.squeeze(0)

    @contextmanager
    def _compiled_layers(self) -> Iterator[None]:
        # Only the layers below the head: its hook selects another number of places in every step.
        if not self._compiles:
            yield
            return
        layers = self.base_model.base_model
        layers.forward = self._compiled
        try:
            yield
        finally:
            del layers.forward

    def _run_with_head_hook(self, hook, **inputs):
        handle = self.base_model.get_output_embeddings().register_forward_pre_hook(hook)
        try:
            return self.model(**inputs)
        finally:
            handle.remove()

    @cached_property
    def _head_is_plain(self) -> bool:
        """Whether the model's logits are exactly its head's output, tested on a few tokens."""
        head = self.base_model.get_output_embeddings()
        if not is_plain_head(head):
            return False
        seen: list[torch.Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.no_grad():
                # Several tokens, because one of them may be a padding token, whose embedding is zero.
                tokens = torch.arange(min(8, len(head.weight)), device=head.weight.device)[None]
                logits = self.base_model(input_ids=tokens, use_cache=False).logits
                return torch.equal(logits.float(), head(seen[0]).float())
        finally:
            handle.remove()

    @torch.no_grad()
    def self_information(self, input_ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """`-log2 p(x_t | x_<t)` in bits under the base model with the adapter off; `(B, T)`, 0 on padding."""
        rows = F.pad(input_ids, (1, 0), value=self.marker_token_id)
        text, position = valid.nonzero(as_tuple=True)
        with self.adapter_off():
            shown = {"input_ids": rows, "attention_mask": F.pad(valid, (1, 0), value=True).long()}
            nll, _ = self._score_places(shown, text, position, input_ids[valid])
        return nll.new_zeros(input_ids.shape).masked_scatter(valid, nll / _LN2)

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Context in which the adapter is off, so that the model is the pretrained base model."""
        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield
        else:
            yield

    # -- restoring -------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def restore(self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor) -> Restoration:
        """
        Fill the gaps greedily. Dropped positions of `input_ids` are never read; they are overwritten first.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Kept tokens in their places.
            keep_mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): True where `input_ids` is given.
            valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.

        Returns:
            [`Restoration`]: The restored ids and their confidence.

        Raises:
            `ValueError`: If the texts do not fit the model's context.
        """
        self._check_length(input_ids)
        keep_mask = keep_mask & valid
        shown = input_ids.masked_fill(~keep_mask & valid, self.marker_token_id)
        was_training = self.training
        self.eval()
        try:
            restored, confidence = (
                self._restore_in_order(shown, keep_mask, valid)
                if self.layout == "prefix"
                else self._restore_at_once(shown, keep_mask, valid)
            )
        finally:
            self.train(was_training)
        return Restoration(
            input_ids=torch.where(keep_mask | ~valid, input_ids, restored),
            confidence=torch.where(keep_mask, 1.0, confidence) * valid,
        )

    def _restore_at_once(
        self, shown: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dropped = ~keep_mask & valid
        places = self._dropped_places(shown, keep_mask, valid, *dropped.nonzero(as_tuple=True))
        best, token = self._most_likely(self._logits_at(*places))
        restored = shown.masked_scatter(dropped, token)
        return restored, best.new_zeros(shown.shape).masked_scatter(dropped, best)

    def _restore_in_order(
        self, shown: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Kept tokens are right-aligned, so that the separator is in the same column of every row.
        kept, counts = kept_tokens(shown, keep_mask, self.marker_token_id), keep_mask.sum(1)
        shift = torch.arange(kept.shape[1], device=kept.device) - (kept.shape[1] - counts)[:, None]
        prefix = F.pad(kept.gather(1, shift.clamp(min=0)), (0, 1), value=self.marker_token_id)
        present = F.pad(shift >= 0, (0, 1), value=True)
        position = (present.long().cumsum(1) - 1).clamp(min=0)
        restored, confidence = shown.clone(), torch.zeros(shown.shape, device=shown.device)
        cache, column, present, dropped = None, prefix, present.long(), ~keep_mask & valid
        for t in range(shown.shape[1]):
            wanted = dropped[:, t].nonzero().squeeze(1)
            output = self._next_step(column, present, position, cache, wanted)
            if len(wanted):
                confidence[wanted, t], restored[wanted, t] = self._most_likely(output.logits[:, -1])
            cache, column = output.cache, restored[:, t : t + 1]
            present, position = F.pad(present, (0, 1), value=1), (counts + 1 + t)[:, None]
        return restored, confidence

    def _next_step(self, column, present, position, cache, wanted):
        """
        One cached step. Logits are computed only for rows whose next token is missing (for one row if there is none).
        """
        rows = wanted if len(wanted) else wanted.new_zeros(1)
        return self._run_with_head_hook(
            lambda _, inputs: (inputs[0][rows, -1:],),
            input_ids=column, attention_mask=present, position_ids=position, cache=cache, use_cache=True,
        )  # fmt: skip

    def _most_likely(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits.float()
        logits[:, self.marker_token_id] = -torch.inf  # the marker is not text
        token = logits.argmax(-1)
        # exp(max - logsumexp) is the probability of one token, without a softmax over the vocabulary.
        return torch.exp(logits.gather(1, token[:, None]).squeeze(1) - logits.logsumexp(-1)), token

    def _check_length(self, input_ids: torch.Tensor) -> None:
        if self.max_tokens is not None and input_ids.shape[1] > self.max_tokens:
            raise ValueError(
                f"A text of {input_ids.shape[1]} tokens does not fit: in the {self.layout} layout this model takes at "
                f"most {self.max_tokens}. Cut the texts (`max_length`) or take a model with a longer context."
            )


# -- loading -----------------------------------------------------------------------------------------------------------
