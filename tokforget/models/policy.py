"""
The policy: from token ids, the requested rate and earlier decisions to one keep logit per token.

The trunk reads the whole text once. The text is then decided from left to right in windows. At each decision a small
head computes logits for all undecided tokens, given the tokens kept so far and the remaining budget, and decides one
window.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tokforget.masking import Generators, row_noise, top_k_mask
from tokforget.models.array_policy import reach_of
from tokforget.models.ngrams import NgramTables
from tokforget.models.word_features import NUM_FEATURES, Rarity
from tokforget.models.word_table import WordTable


# A bias this many bounds beyond the highest or lowest logit puts all tokens at the bound, up to rounding.
_BIAS_MARGIN = 4.0
_BISECTIONS = 40
_SECTIONS, _ROUNDS = 64, 5  # 64 ** 5 sections are narrower than float32 tells apart
UNITS = ("token", "word")
# gelu(x) = x (1 + tanh(u)) / 2 with u = slope * (x + cube * x^3): Hendrycks & Gimpel 2016, arXiv 1606.08415.
_GELU_SLOPE, _GELU_CUBE = (2 / math.pi) ** 0.5, 0.044715


@dataclass
class Decisions:
    """
    The policy's decisions for a batch of episodes.

    Args:
        actions (`torch.LongTensor` of shape `(batch_size, num_tokens)`): 1 keep, 0 drop; 0 on padding.
        keep_logits (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): Logits at the time of each token's
            decision, including the bias that meets the budget; 0 on padding.
        log_probs (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): Log-probability of each action in nats; 0
            on padding.
        entropy (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): Entropy of each decision in nats; 0 on
            padding.
    """

    actions: torch.Tensor
    keep_logits: torch.Tensor
    log_probs: torch.Tensor
    entropy: torch.Tensor


class TokenTable(nn.Module):
    """
    Projects the reconstructor's frozen input embeddings.

    While the base model is attached, the projection is applied to its embeddings and can be trained. Without it the
    stored table of projected rows is used, so that compressing needs no base model.
    """

    def __init__(self, vocab_size: int, base_hidden_size: int, hidden_size: int):
        super().__init__()
        self.projection = nn.Linear(base_hidden_size, hidden_size, bias=False)
        self.register_buffer("table", torch.zeros(vocab_size, hidden_size, dtype=torch.float16))
        # In a list, so that it is not a submodule and is neither saved nor counted.
        self.base_embeddings: list[nn.Module] = []

    def attach(self, base_embeddings: nn.Module) -> None:
        self.base_embeddings = [base_embeddings]

    def _rows(self, rows: torch.Tensor) -> torch.Tensor:
        return self.projection(F.layer_norm(rows.to(self.projection.weight.dtype), rows.shape[-1:]))

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the projected embeddings of the attached base model into the table."""
        if self.base_embeddings:
            for chunk in torch.arange(len(self.table), device=self.table.device).split(4096):
                self.table[chunk] = self._rows(self.base_embeddings[0](chunk)).to(self.table.dtype)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if self.training and self.base_embeddings:
            with torch.no_grad():
                rows = self.base_embeddings[0](input_ids)
            return self._rows(rows)  # (B, T, D)
        if self.base_embeddings:  # an evaluation during training rounds as the saved table does
            with torch.no_grad():
                return self._rows(self.base_embeddings[0](input_ids)).half().to(self.projection.weight.dtype)
        return self.table[input_ids].to(self.projection.weight.dtype)


class ConvBlock(nn.Module):
    """A residual block: a depthwise dilated convolution over both sides, then a pointwise two-layer perceptron."""

    def __init__(self, hidden_size: int, kernel_size: int, dilation: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.taps = nn.Parameter(torch.randn(kernel_size, hidden_size) / kernel_size**0.5)
        self.expand = nn.Linear(hidden_size, 2 * hidden_size)
        self.contract = nn.Linear(2 * hidden_size, hidden_size)
        self.kernel_size, self.dilation = kernel_size, dilation

    def forward(self, hidden: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        reach = self.dilation * (self.kernel_size // 2)
        # Shifted sums instead of conv1d: they need no transposes and are faster than a grouped convolution on CPUs.
        padded = F.pad(self.norm(hidden) * valid, (0, 0, reach, reach))
        num_tokens = hidden.shape[1]
        mixed = padded[:, :num_tokens] * self.taps[0]
        for tap in range(1, self.kernel_size):
            start = tap * self.dilation
            mixed.addcmul_(padded[:, start : start + num_tokens], self.taps[tap])
        return hidden + self.contract(_gelu(self.expand(mixed)))  # (B, T, D)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    """
    The tanh form of GELU. Without a gradient it is computed as `x * sigmoid(2u)`, which equals `x * (1 + tanh(u)) / 2`
    up to 1e-6 and takes half the time on a CPU.
    """
    if torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    gate = x * x
    return gate.mul_(2 * _GELU_SLOPE * _GELU_CUBE).add_(2 * _GELU_SLOPE).mul_(x).sigmoid_().mul_(x)


class KeepMaskPolicy(nn.Module):
    """
    Keep logits for every token of a text, decided in windows.

    Args:
        vocab_size (`int`), base_hidden_size (`int`): Shape of the reconstructor's input embeddings.
        hidden_size (`int`): Width of the trunk.
        dilations (`list[int]`): Dilation of each convolution block.
        kernel_size (`int`): Taps of each convolution, odd.
        head_size (`int`): Width of the decision head.
        window (`int`): Tokens decided at once.
        logit_bound (`float`): Sampled logits lie within +-this, including the bias of the budget; see [`meet_budget`].
        ngram_buckets (`int`): Size of the count tables; 0 for none.
        unit (`str`): Unit that is kept or dropped as a whole: `"token"` or `"word"`.
        word_features (`bool`): Whether the features of [`tokforget.models.word_features`], which include those of a
            question, are inputs of the policy.
    """

    backend = "torch"

    def __init__(
        self,
        vocab_size: int,
        base_hidden_size: int,
        hidden_size: int = 128,
        dilations: tuple[int, ...] = (1, 2, 4, 8, 1),
        kernel_size: int = 5,
        head_size: int = 64,
        window: int = 24,
        logit_bound: float = 8.0,
        ngram_buckets: int = 2**18,
        unit: str = "token",
        word_features: bool = False,
    ):
        super().__init__()
        if unit not in UNITS:
            raise ValueError(f"`unit` must be one of {UNITS}, got {unit!r}.")
        self.window, self.logit_bound, self.unit, self.vocab_size = window, logit_bound, unit, vocab_size
        self.tokens = TokenTable(vocab_size, base_hidden_size, hidden_size)
        self.ngrams = NgramTables(vocab_size, ngram_buckets) if ngram_buckets else None
        self.words = WordTable() if word_features else None
        self.num_features = NUM_FEATURES if word_features else 0
        self.reach = reach_of(dilations, kernel_size, ngram_buckets)
        self.inputs = nn.Linear((self.ngrams.num_features if self.ngrams else 0) + 1 + self.num_features, hidden_size)
        self.blocks = nn.ModuleList(ConvBlock(hidden_size, kernel_size, dilation) for dilation in dilations)
        self.norm = nn.LayerNorm(hidden_size)
        self.to_head = nn.Linear(hidden_size, head_size)
        self.to_memory = nn.Linear(hidden_size, head_size // 4)
        self.from_state = nn.Linear(2 * (head_size // 4) + 2, head_size, bias=False)
        self.to_logit = nn.Linear(head_size, 1)
        # A new policy samples uniformly at the requested rate, because its last layer is zero. Earlier decisions have
        # no influence at first, so that a ranking learnt from whole texts holds in every window.
        nn.init.zeros_(self.from_state.weight)
        nn.init.zeros_(self.to_logit.weight)
        nn.init.zeros_(self.to_logit.bias)
        if word_features:
            # A path around the trunk: the form and the place of a word are most informative, and are learnt faster
            # here.
            self.direct = nn.Sequential(nn.Linear(NUM_FEATURES + 1, head_size), nn.GELU(), nn.Linear(head_size, 1))
            nn.init.zeros_(self.direct[2].weight)
            nn.init.zeros_(self.direct[2].bias)

    @property
    def is_trained(self) -> bool:
        """Whether the policy has learnt a ranking; a new one has not, because its last layer is zero."""
        return bool(self.to_logit.weight.detach().any()) or (
            self.words is not None and bool(self.direct[2].weight.detach().any())
        )

    def trunk(
        self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The part that runs once per text.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Texts, padded on the right.
            valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.
            rate (`torch.FloatTensor` of shape `(batch_size,)`): Requested rates.

        Returns:
            `tuple`: Inputs of the decision head `(batch_size, num_tokens, head_size)`, and each token's contribution
            to the memory of decisions `(batch_size, num_tokens, head_size // 4)`.
        """
        hidden = self._read(input_ids, valid, rate)
        return self.to_head(hidden), self.to_memory(hidden)

    def _read(
        self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        dtype = self.inputs.weight.dtype
        extra = torch.logit(rate.to(dtype), eps=1e-3)[:, None, None].expand(*input_ids.shape, 1)
        if self.ngrams is not None:
            extra = torch.cat([self.ngrams(input_ids, valid).to(dtype), extra], -1)
        if self.num_features:
            extra = torch.cat([self._checked(features, input_ids), extra], -1)
        present = valid[..., None].to(dtype)
        hidden = self.tokens(input_ids) + self.inputs(extra)
        for block in self.blocks:
            hidden = block(hidden, present)
        return self.norm(hidden)  # (B, T, D)

    def _checked(self, features: torch.Tensor | None, input_ids: torch.Tensor) -> torch.Tensor:
        if features is None or features.shape != (*input_ids.shape, self.num_features):
            came = "none" if features is None else f"the shape {tuple(features.shape)}"
            raise ValueError(
                f"This policy needs the features of the words, shape {(*input_ids.shape, self.num_features)}, got {came}; "
                "`tokforget.models.word_features.token_features` makes them."
            )
        return features.to(self.inputs.weight.dtype)

    def first_plan(
        self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Logits `(B, T)` of all tokens before the first decision, from one pass and without a budget. They are not
        bounded: far from zero the bound would round different logits to the same value.

        Args:
            input_ids, valid, rate: See `trunk`.
            features (`torch.FloatTensor` of shape `(B, T, NUM_FEATURES)`, *optional*): For a policy with `word_features`; see
                [`tokforget.models.word_features.token_features`].
        """
        return self.last_layer(self.last_inputs(input_ids, valid, rate, features))

    def last_inputs(
        self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Inputs of [`last_layer`] for a [`first_plan`], `(B, T, head_size)`; twice as wide with `word_features`."""
        head_inputs = self.to_head(self._read(input_ids, valid, rate, features))
        state = head_inputs.new_zeros(len(head_inputs), self.from_state.in_features)
        state[:, -1] = 1.0  # the whole text is undecided
        hidden = _gelu(head_inputs + self.from_state(state)[:, None])
        if not self.num_features:
            return hidden
        told = torch.logit(rate.to(head_inputs.dtype), eps=1e-3)[:, None, None].expand(*input_ids.shape, 1)
        direct = torch.cat([self._checked(features, input_ids), told], -1)
        return torch.cat([hidden, self.direct[1](self.direct[0](direct))], -1)

    def last_layer(self, inputs: torch.Tensor) -> torch.Tensor:
        """Unbounded logits `(B, T)` from [`last_inputs`]."""
        width = self.to_logit.in_features
        logits = self.to_logit(inputs[..., :width]).squeeze(-1).float()
        if self.num_features:
            logits = logits + self.direct[2](inputs[..., width:]).squeeze(-1).float()
        return logits

    @torch.inference_mode()
    def plan_arrays(
        self, input_ids: np.ndarray, valid: np.ndarray, rates: np.ndarray, features: np.ndarray | None = None
    ) -> np.ndarray:
        """As [`first_plan`], from NumPy arrays to an array `(B, T)`; computed on the policy's device."""
        device = self.inputs.weight.device
        told = () if features is None else (torch.from_numpy(features).to(device),)
        plan = self.first_plan(
            torch.from_numpy(input_ids).to(device),
            torch.from_numpy(valid).to(device),
            torch.from_numpy(rates).to(device, torch.float32),
            *told,
        )
        return plan.cpu().numpy()

    def rarity(self) -> Rarity:
        """See [`tokforget.models.word_table.WordTable.rarity`]."""
        return self.words.rarity()

    def plan(self, head_inputs: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Unbounded logits `(B, t)` of the undecided tokens, given the decision state `(B, 2 * memory + 2)`."""
        hidden = _gelu(head_inputs + self.from_state(state)[:, None])
        return self.to_logit(hidden).squeeze(-1).float()

    def decide(
        self,
        input_ids: torch.Tensor,
        valid: torch.Tensor,
        rate: torch.Tensor,
        counts: torch.Tensor,
        num_masks: int = 1,
        generator: Generators | None = None,
        actions: torch.Tensor | None = None,
    ) -> Decisions:
        """
        Decide every token of every text, window by window.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Texts, padded on the right.
            valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.
            rate (`torch.FloatTensor` of shape `(batch_size,)`): The requested rate, an input of the trunk.
            counts (`torch.LongTensor` of shape `(batch_size,)`): The budget, in tokens to keep.
            num_masks (`int`): Episodes per text; those of one text are consecutive.
            generator (`torch.Generator`, or a list of one for each episode, *optional*): Samples masks whose expected
                count equals the budget. Without it exactly the best `counts` tokens are kept.
            actions (`torch.LongTensor` of shape `(batch_size * num_masks, num_tokens)`, *optional*):
                Given decisions, to compute their log-probabilities.

        Returns:
            [`Decisions`]: For `batch_size * num_masks` episodes.

        Raises:
            `ValueError`: If the policy decides by words; see [`decide_units`].
        """
        if self.unit != "token":
            raise ValueError(
                f"This policy decides by {self.unit}s, all of a text at once: ask `first_plan` and [`decide_units`], not `decide`."
            )
        # Without autocast: the policy takes a hundredth of a step, and at the margin of the budget the differences
        # between sharp logits are below the precision of bfloat16.
        with torch.autocast(input_ids.device.type, enabled=False):
            return self._decide(input_ids, valid, rate, counts, num_masks, generator, actions)

    def _decide(
        self,
        input_ids: torch.Tensor,
        valid: torch.Tensor,
        rate: torch.Tensor,
        counts: torch.Tensor,
        num_masks: int,
        generator: Generators | None,
        actions: torch.Tensor | None,
    ) -> Decisions:
        head_inputs, memory_inputs = (
            part.repeat_interleave(num_masks, 0) for part in self.trunk(input_ids, valid, rate)
        )
        valid, rate, left = (part.repeat_interleave(num_masks, 0) for part in (valid, rate, counts))
        tokens_left = valid.sum(1)
        total = tokens_left.clamp(min=1)
        noise = None if generator is None else row_noise(valid, generator)  # (N, T)
        memory = memory_inputs.new_zeros(len(left), 2 * memory_inputs.shape[-1])
        taken: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        for start in range(0, valid.shape[1], self.window):
            window = slice(start, start + self.window)
            here, rest = valid[:, window], valid[:, start:]
            # The remaining budget relative to the request, and the fraction of the text that is undecided.
            pace = left / tokens_left.clamp(min=1) - rate
            state = torch.cat([memory, torch.stack([pace, tokens_left / total], -1).to(memory.dtype)], -1)
            planned = self.plan(head_inputs[:, start:], state)
            if actions is not None or noise is not None:
                biased = meet_budget(planned, left, rest, self.logit_bound)[:, : here.shape[1]]
                if actions is not None:
                    chosen = actions[:, window]
                else:
                    chosen = ((noise[:, window] < torch.sigmoid(biased)) & here).long()
            else:
                biased = planned[:, : here.shape[1]]
                chosen = top_k_mask(planned.detach(), left, rest)[:, : here.shape[1]].long()
            taken.append(chosen)
            logits.append(biased * here)
            memory = 0.5 * memory + self._remember(memory_inputs[:, window], chosen, here)
            left = left - chosen.sum(1)
            tokens_left = tokens_left - here.sum(1)
        actions, keep_logits = torch.cat(taken, 1), torch.cat(logits, 1)
        signed = torch.where(actions.bool(), keep_logits, -keep_logits)
        log_probs = F.logsigmoid(signed) * valid
        keep_probability = torch.sigmoid(keep_logits)
        entropy = (F.softplus(keep_logits) - keep_logits * keep_probability) * valid
        return Decisions(actions=actions, keep_logits=keep_logits, log_probs=log_probs, entropy=entropy)

    @staticmethod
    def _remember(inputs: torch.Tensor, chosen: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """Mean contribution of a window's kept tokens, and of its dropped tokens, to the memory: `(B, 2 * memory)`."""
        kept = (chosen.bool() & here)[..., None].to(inputs.dtype)
        dropped = (~chosen.bool() & here)[..., None].to(inputs.dtype)
        size = here.sum(1, keepdim=True).clamp(min=1)
        return torch.cat([(inputs * kept).sum(1), (inputs * dropped).sum(1)], -1) / size


def meet_budget(
    logits: torch.Tensor, counts: torch.Tensor, valid: torch.Tensor, bound: float, sizes: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Add to the logits of each text the bias `b` for which the expected number of kept tokens equals `counts`, and bound
    them: `L = bound * tanh((l + b) / bound)`.

    The bias is added inside the bound. Then the tokens at the margin of the budget are near zero at any rate, where
    the bound has no effect. If the bound came first, it would compress the logits of cheap tokens, which are the
    margin at high rates.

    The bias depends on the logits through `sum_t sigmoid(L_t) = counts`, hence `db/dl_t = -w_t / sum_u w_u` with
    `w_t = p_t (1 - p_t) dL_t/dl_t`. The gradient is that of the distribution that is sampled from; a shift common to
    all logits has no gradient.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): Plan for the undecided tokens.
        counts (`torch.LongTensor` of shape `(batch_size,)`): Remaining budget. If no bias can meet it (below 0 or
            above the number of tokens), probabilities are as near to 0 or 1 as the bound allows.
        valid (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): False for padding.
        bound (`float`): Bound of the returned logits.
        sizes (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*): Tokens of each place, if a place is a
            word; 1 by default.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_tokens)`: Biased logits within +-`bound`.
    """
    weigh = valid if sizes is None else valid * sizes
    with torch.no_grad():
        present = logits.masked_fill(~valid, 0.0)
        low, high = -present.amax(1, keepdim=True), -present.amin(1, keepdim=True)  # (B, 1)
        # An interval wide enough for the most extreme count; the zeros on padding may lie on either side.
        low, high = low - _BIAS_MARGIN * bound, high + _BIAS_MARGIN * bound
        search = SEARCHES.get(logits.device.type, SEARCHES["cpu"])
        bias = search(logits, counts, weigh, bound, low, high)
        bent = torch.tanh((logits + bias) / bound)
        spread = torch.sigmoid(bound * bent)
        weight = spread * (1 - spread) * (1 - bent * bent) * weigh
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
    if logits.requires_grad:
        bias = bias - (weight * (logits - logits.detach())).sum(1, keepdim=True)
    return bound * torch.tanh((logits + bias) / bound)


def _by_halves(
    logits: torch.Tensor,
    counts: torch.Tensor,
    weigh: torch.Tensor,
    bound: float,
    low: torch.Tensor,
    high: torch.Tensor,
) -> torch.Tensor:
    """The bias `(B, 1)` between `low` and `high` that keeps `counts` tokens, by bisection."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        kept = torch.sigmoid(bound * torch.tanh((logits + middle) / bound)) * weigh
        too_many = kept.sum(1, keepdim=True) > counts[:, None]
        low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
    return (low + high) / 2


def _by_grid(
    logits: torch.Tensor,
    counts: torch.Tensor,
    weigh: torch.Tensor,
    bound: float,
    low: torch.Tensor,
    high: torch.Tensor,
) -> torch.Tensor:
    """As [`_by_halves`], with a seventh of the operations: each round tries the ends of all sections at once."""
    ends = torch.arange(1, _SECTIONS, device=logits.device)
    logits, weigh, size = logits[:, None], weigh[:, None], high - low
    for _ in range(_ROUNDS):
        size = size / _SECTIONS
        tried = (low + size * ends)[..., None]  # (B, S, 1)
        kept = (torch.sigmoid(bound * torch.tanh((logits + tried) / bound)) * weigh).sum(2)  # (B, S)
        low = low + size * (kept <= counts[:, None]).sum(1, keepdim=True)
    return low + size / 2


# A GPU's kernels end before the next is launched, so that few large ones are faster; on a CPU the grid is eight times the
# work.
SEARCHES = {"cpu": _by_halves, "cuda": _by_grid}


def floating(dtype: torch.dtype | str | None) -> torch.dtype:
    """A floating type by itself or its name; float32 for `None` and "auto", as which folders are read."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype in (None, "auto"):
        return torch.float32
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype` must be a floating type such as torch.bfloat16, got {dtype!r}.")
    return found
