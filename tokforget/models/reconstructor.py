"""
The reconstructor: a causal language model with a LoRA adapter that restores what was dropped, and scores the loss.

Two layouts behind one seam (`token_nll`, `restore`):

* prefix: `[kept tokens] <sep> [original]`, causal. A dropped token is scored given all kept tokens and the original to
  its left; restoring goes token by token, kept tokens forced.
* infill: dropped positions hold the marker token and attention is full; the output at `t - 1` predicts `t`, the shift
  that keeps a pretrained next-token head useful (BehnamGhader et al. 2024, arXiv 2404.05961; Gong et al. 2024, arXiv
  2410.17891). One pass restores everything.

No token is added to the vocabulary: separator and marker are the mask token if the tokenizer has one, else its end
token, which never occurs inside a text. The adapter therefore fits the plain base model.
"""

import math
from collections.abc import Iterator
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
# Rows that go through the model together, at least. Fewer per forward mean less padding and more forwards: a CPU pays for the
# former, a GPU for the latter, whose kernels end before the host has sent the next (LOG.md).
_LEAST_ROWS = {"cpu": 8, "cuda": 64}


@dataclass
class TokenScores:
    """
    What a keep mask costs, token by token.

    Args:
        nll (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): `-log2 p` of each dropped token in bits; 0 for
            kept tokens and padding. Carries the gradient of the adapter.
        correct (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): True where a dropped token is the most likely
            one. In the prefix layout the true tokens stand to its left, so this is *not* restoration.
    """

    nll: torch.Tensor
    correct: torch.Tensor


@dataclass
class Restoration:
    """
    A restored text. It is a guess: `confidence` is the probability the model gave to what it wrote.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Kept tokens as given, dropped ones restored.
        confidence (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): 1 for kept tokens, 0 on padding.
    """

    input_ids: torch.Tensor
    confidence: torch.Tensor


class Reconstructor(nn.Module):
    """
    Restores dropped tokens, and says in bits how well it can.

    Args:
        model (`PeftModel` or `PreTrainedModel`): The causal language model; its dropout is set to 0, since one forward
            serves as reward and as loss.
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

    def _switch_off_functional_dropout(self) -> None:
        # Where dropout is a function, its rate is a number on a module or, for some attention kernels, on the config.
        for holder in (*self.base_model.modules(), self.base_model.config):
            for name, value in vars(holder).items():
                if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop")):
                    setattr(holder, name, 0.0)

    @property
    def base_model(self) -> PreTrainedModel:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def max_tokens(self) -> int | None:
        """Longest text in tokens that every keep mask of it leaves room for; `None` if the model states no limit."""
        positions = getattr(self.base_model.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return None
        return (positions - 1) // 2 if self.layout == "prefix" else positions - 1

    def check_max_length(self, max_length: int) -> None:
        """`ValueError` if texts of `max_length` tokens do not fit the model's context."""
        if self.max_tokens is not None and max_length > self.max_tokens:
            raise ValueError(
                f"`max_length` ({max_length}) exceeds the {self.max_tokens} tokens that fit this model's context."
            )

    @torch.no_grad()
    def check_full_attention(self) -> None:
        """`ValueError` if the infill layout asks for tokens to the right that this model would not look at."""
        if self.layout != "infill":
            return
        device = self.base_model.device
        ids, valid = torch.arange(3, device=device)[None], torch.ones(1, 3, dtype=torch.bool, device=device)
        keep_mask = torch.tensor([[False, True, True]], device=device)
        reason = None
        try:
            first, second = (self.token_nll(row, keep_mask, valid).nll[0, 0] for row in (ids, ids * 2))
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = error  # each model has its own way to say that it takes no mask of this shape
        if reason is not None or first == second:
            raise ValueError(
                f"`layout` 'infill' needs attention to both sides, which a model of type "
                f"{self.base_model.config.model_type!r} does not allow{f' ({reason})' if reason else ''}. Pass "
                "`--layout prefix`, or take another model."
            ) from reason

    # -- scoring ---------------------------------------------------------------------------------------------------
    def forward(self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Bits `(B, T)` of [`Reconstructor.token_nll`]; what a trainer calls, so that its hooks on the module fire."""
        return self.token_nll(input_ids, keep_mask, valid).nll

    def token_nll(
        self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor, in_groups: bool = True
    ) -> TokenScores:
        """
        Score every dropped token. Rows of like lengths go through the model together, so that little of it is padding.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Original texts, padded on the right.
            keep_mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): True is kept.
            valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.
            in_groups (`bool`): False for one forward of all rows.
        """
        self._check_length(input_ids)
        keep_mask = keep_mask & valid
        row_lengths = valid.sum(1) + (keep_mask.sum(1) if self.layout == "prefix" else 0)
        least = _LEAST_ROWS.get(input_ids.device.type, _LEAST_ROWS["cpu"])
        groups = like_lengths(row_lengths, least) if in_groups else []
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
        """Without the columns that are padding in all of these rows."""
        longest = int(valid.sum(1).max())
        return input_ids[:, :longest], keep_mask[:, :longest], valid[:, :longest]

    def _score_rows(self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor) -> TokenScores:
        dropped = ~keep_mask & valid
        nll, best = self._score_places(*self._dropped_places(input_ids, keep_mask, valid, dropped), input_ids[dropped])
        # masked_scatter keeps the gradient and leaves exact zeros everywhere else.
        nll = nll.new_zeros(input_ids.shape).masked_scatter(dropped, nll / _LN2)
        correct = torch.zeros_like(dropped).masked_scatter(dropped, best == input_ids[dropped])
        return TokenScores(nll=nll, correct=correct)

    def _dropped_places(
        self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor, dropped: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """What the model is shown, and the row and column whose output predicts each dropped token."""
        text, position = dropped.nonzero(as_tuple=True)
        if self.layout == "prefix":
            rows = prefix_rows(input_ids, keep_mask, valid, self.marker_token_id, self.marker_token_id)
            shown = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
            return shown, text, rows.original_start[text] + position - 1
        ids, present = self._infill_rows(input_ids, keep_mask, valid)
        # Positions in so many words: some models would count them from a two-dimensional mask.
        columns = torch.arange(ids.shape[1], device=ids.device)[None]
        shown = {"input_ids": ids, "attention_mask": self._full_attention(present), "position_ids": columns}
        return shown, text, position

    def _infill_rows(
        self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Marker in front, so that the first token too has an output before it: `(B, T + 1)` ids and presence."""
        shown = F.pad(input_ids.masked_fill(~keep_mask, self.marker_token_id), (1, 0), value=self.marker_token_id)
        return shown, F.pad(valid, (1, 0), value=True)

    def _full_attention(self, present: torch.Tensor) -> torch.Tensor:
        # Additive float: a boolean 4-D mask is silently misread by eager attention.
        dtype = self.base_model.dtype
        hidden = torch.zeros(present.shape, dtype=dtype, device=present.device).masked_fill(
            ~present, torch.finfo(dtype).min
        )
        return hidden[:, None, None, :].expand(-1, 1, present.shape[1], -1)

    # The output head is most of a small model's cost, so it runs on the places that are asked for and on no others. A hook
    # rather than body + head: soft-capping or scaling of logits in a model's own forward still applies.
    def _score_places(
        self, shown: dict[str, torch.Tensor], rows: torch.Tensor, columns: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`-log p` of the targets `(N,)` in nats and the most likely tokens `(N,)` at the given places."""
        if not self._head_is_plain:
            return dense_cross_entropy(self._logits_at(shown, rows, columns), target)
        found: list[torch.Tensor] = []

        def take(_, inputs):
            found.append(inputs[0][rows, columns])
            return (inputs[0][:1, :1],)

        self._run_with_head_hook(take, **shown, use_cache=False)
        return frozen_head_cross_entropy(found[0], self.base_model.get_output_embeddings(), target)

    def _logits_at(self, shown: dict[str, torch.Tensor], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Logits `(N, V)` at the given places."""
        output = self._run_with_head_hook(lambda _, i: (i[0][rows, columns][None],), **shown, use_cache=False)
        return output.logits.squeeze(0)

    def _run_with_head_hook(self, hook, **inputs):
        handle = self.base_model.get_output_embeddings().register_forward_pre_hook(hook)
        try:
            return self.model(**inputs)
        finally:
            handle.remove()

    @cached_property
    def _head_is_plain(self) -> bool:
        """Whether the model's logits are its head's output and nothing more, tried on a few tokens."""
        head = self.base_model.get_output_embeddings()
        if not is_plain_head(head):
            return False
        seen: list[torch.Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.no_grad():
                # Several: one of them may be a padding token, whose embedding is zero.
                tokens = torch.arange(min(8, len(head.weight)), device=head.weight.device)[None]
                logits = self.base_model(input_ids=tokens, use_cache=False).logits
                return torch.equal(logits.float(), head(seen[0]).float())
        finally:
            handle.remove()

    @torch.no_grad()
    def self_information(self, input_ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """`-log2 p(x_t | x_<t)` in bits by the base model alone, adapter off; `(B, T)`, 0 on padding."""
        rows = F.pad(input_ids, (1, 0), value=self.marker_token_id)
        text, position = valid.nonzero(as_tuple=True)
        with self.adapter_off():
            shown = {"input_ids": rows, "attention_mask": F.pad(valid, (1, 0), value=True).long()}
            nll, _ = self._score_places(shown, text, position, input_ids[valid])
        return nll.new_zeros(input_ids.shape).masked_scatter(valid, nll / _LN2)

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The base model as it was pretrained."""
        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield
        else:
            yield

    # -- restoring -------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def restore(self, input_ids: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor) -> Restoration:
        """
        Fill the gaps. Nothing is read from dropped positions of `input_ids`: they are overwritten first.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Kept tokens in their places.
            keep_mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): True where `input_ids` is given.
            valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.
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
        best, token = self._most_likely(self._logits_at(*self._dropped_places(shown, keep_mask, valid, dropped)))
        restored = shown.masked_scatter(dropped, token)
        return restored, best.new_zeros(shown.shape).masked_scatter(dropped, best)

    def _restore_in_order(
        self, shown: torch.Tensor, keep_mask: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Kept tokens are moved to the right of their columns, so that every row's separator is in the same one.
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
        """One cached step, with logits only for the rows whose next token is missing (one row if none is)."""
        rows = wanted if len(wanted) else wanted.new_zeros(1)
        return self._run_with_head_hook(
            lambda _, inputs: (inputs[0][rows, -1:],),
            input_ids=column, attention_mask=present, position_ids=position, cache=cache, use_cache=True,
        )  # fmt: skip

    def _most_likely(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits.float()
        logits[:, self.marker_token_id] = -torch.inf  # the marker stands for no text
        token = logits.argmax(-1)
        # exp(max - logsumexp): the probability of one token without a softmax over the vocabulary.
        return torch.exp(logits.gather(1, token[:, None]).squeeze(1) - logits.logsumexp(-1)), token

    def _check_length(self, input_ids: torch.Tensor) -> None:
        if self.max_tokens is not None and input_ids.shape[1] > self.max_tokens:
            raise ValueError(
                f"A text of {input_ids.shape[1]} tokens does not fit: in the {self.layout} layout this model takes at "
                f"most {self.max_tokens}. Cut the texts (`max_length`) or take a model with a longer context."
            )


# -- loading -----------------------------------------------------------------------------------------------------------
