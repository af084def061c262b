"""
The policy's plan in NumPy: the part of [`tokforget.models.policy`] that compressing needs, without torch.

The arithmetic is that of `KeepMaskPolicy.first_plan` in float32. Some operations are regrouped to save passes over
memory. The logits differ from torch's by rounding errors of about 1e-6.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import deserialize

from tokforget.models.word_features import BUCKETS, NUM_FEATURES, Rarity


# Absolute discounting and the scales of the features, as in `tokforget.models.ngrams`, which names their sources.
_DISCOUNT, _LOG_STEPS, _FEATURE_SCALE, _NGRAM_FEATURES = 0.75, 16.0, 8.0, 11
_NORM_EPS = 1e-5
_GELU_SLOPE, _GELU_CUBE = (2 / math.pi) ** 0.5, 0.044715
# Places of the windows that pass through the trunk together: few enough that all buffers fit in a core's cache.
_PLACES = 512
# Windows are padded to a multiple of this. An operation handles this many places at once, because NumPy's loop over
# the channels of a single place is so short that it takes five times as long.
TOGETHER = 4
# Fields of a model's config that describe the policy.
_FIELDS = ("vocab_size", "base_hidden_size", "hidden_size", "dilations", "kernel_size", "head_size",
           "ngram_buckets", "unit", "word_features")  # fmt: skip
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
# erf on [-4, 4] as a ratio of polynomials in x^2, lowest power first; from Eigen (MPL-2.0), with an error below 3e-7.
_ERF_OVER = (-1.60960333262415e-02, -2.95459980854025e-03, -7.34990630326855e-04, -5.69250639462346e-05, -2.10102402082508e-06,
             2.77068142495902e-08, -2.72614225801306e-10)  # fmt: skip
_ERF_UNDER = (-1.42647390514189e-02, -7.37332916720468e-03, -1.68282697438203e-03, -2.13374055278905e-04, -1.45660718464996e-05)  # fmt: skip


def reach_of(dilations: Sequence[int], kernel_size: int, ngram_buckets: int) -> int | None:
    """
    How many tokens before and after a token its score depends on; `None` if it depends on all of the window, because
    the count features do.
    """
    return None if ngram_buckets else sum(dilations) * (kernel_size // 2)


def policy_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """
    Names and shapes of a policy's weights, from its checked config; the same as in `KeepMaskPolicy(...).state_dict()`.
    """
    vocab, base, hidden, head = (
        config[name] for name in ("vocab_size", "base_hidden_size", "hidden_size", "head_size")
    )
    buckets, memory = config["ngram_buckets"], config["head_size"] // 4
    told = NUM_FEATURES if config.get("word_features") else 0
    shapes = {"tokens.projection.weight": (hidden, base), "tokens.table": (vocab, hidden)}
    if buckets:
        shapes |= {f"ngrams.{name}": (buckets,) for name in ("pair", "triple", "gap")}
        shapes |= {"ngrams.unigram": (vocab,), "ngrams.total": ()}
    if told:
        shapes |= {"words.pieces": (BUCKETS,), "words.total": (), "direct.0.weight": (head, told + 1), "direct.0.bias": (head,),
                   "direct.2.weight": (1, head), "direct.2.bias": (1,)}  # fmt: skip
    shapes |= _linear("inputs", (_NGRAM_FEATURES if buckets else 0) + 1 + told, hidden)
    for number in range(len(config["dilations"])):
        block = f"blocks.{number}"
        shapes |= {f"{block}.taps": (config["kernel_size"], hidden), **_norm(f"{block}.norm", hidden)}
        shapes |= _linear(f"{block}.expand", hidden, 2 * hidden) | _linear(f"{block}.contract", 2 * hidden, hidden)
    shapes |= _norm("norm", hidden) | _linear("to_head", hidden, head) | _linear("to_memory", hidden, memory)
    return shapes | {"from_state.weight": (head, 2 * memory + 2)} | _linear("to_logit", head, 1)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """
    The tensors of a safetensors file. NumPy has no bfloat16; such tensors become float32.

    Raises:
        `ValueError`: If a tensor has a type that no policy's weights have.
    """
    arrays = {}
    for name, view in deserialize(path.read_bytes()):
        if view["dtype"] == "BF16":
            array = (np.frombuffer(view["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
        elif view["dtype"] in _DTYPES:
            array = np.frombuffer(view["data"], _DTYPES[view["dtype"]])
        else:
            raise ValueError(f"{path} holds {name!r} as {view['dtype']}; a policy's weights are float64, 32, 16 or bfloat16. "
                             "Save it again in one of them.")  # fmt: skip
        arrays[name] = array.reshape(view["shape"])
    return arrays


class ArrayPolicy:
    """
    A trained policy for inference. It computes the first plan; it can neither sample masks nor be trained.

    Args:
        config (`dict`): The model's checked config.
        weights (`dict[str, np.ndarray]`): Arrays of [`policy_shapes`] in any floating type; computation is in float32.
    """

    backend = "numpy"

    def __init__(self, config: dict, weights: dict[str, np.ndarray]):
        self.config = {name: config[name] for name in _FIELDS if name in config}
        self.weights = {name: np.asarray(array, dtype=_stored_as(name)) for name, array in weights.items()}
        self.unit = config.get("unit", "token")
        self.vocab_size = config["vocab_size"]
        self.num_features = NUM_FEATURES if config.get("word_features") else 0
        self.reach = reach_of(config["dilations"], config["kernel_size"], config["ngram_buckets"])
        self._prepare()

    def __getstate__(self) -> dict:
        return {"config": self.config, "weights": self.weights}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The weights by name, as a torch module returns them."""
        return dict(self.weights)

    def rarity(self) -> Rarity:
        """See [`tokforget.models.word_table.WordTable.rarity`]."""
        return Rarity(self.weights["words.pieces"], float(self.weights["words.total"]))

    def _prepare(self) -> None:
        """Prepare the weights in the memory layout in which they are read."""
        if self.config["ngram_buckets"]:
            self.counts = np.rint(np.exp2(np.arange(256, dtype=np.float32) / np.float32(_LOG_STEPS)) - 1)
            self.smoothed = np.float32(int(self.weights["ngrams.total"]) + self.config["vocab_size"])
        self._prepare_trunk()

    def _prepare_trunk(self) -> None:
        weights, config = self.weights, self.config

        def real(name: str) -> np.ndarray:
            return np.ascontiguousarray(weights[name], dtype=np.float32)

        def tiled(vector: np.ndarray) -> np.ndarray:
            return np.tile(vector, TOGETHER)

        def transposed(name: str) -> np.ndarray:
            return np.ascontiguousarray(weights[f"{name}.weight"].T, dtype=np.float32)

        self.hidden_size, self.half_kernel = config["hidden_size"], config["kernel_size"] // 2
        self.inputs = np.concatenate([transposed("inputs"), real("inputs.bias")[None]])
        self.blocks = []
        for number, dilation in enumerate(config["dilations"]):
            name = f"blocks.{number}"
            # gelu(x) = x (1 + tanh u) / 2: the factor 1/2 is merged into the weights of the next layer.
            self.blocks.append((dilation, tiled(real(f"{name}.norm.weight")), tiled(real(f"{name}.norm.bias")), tiled(real(f"{name}.taps")),
                                transposed(f"{name}.expand"), real(f"{name}.expand.bias"),
                                transposed(f"{name}.contract") * np.float32(0.5), tiled(real(f"{name}.contract.bias"))))  # fmt: skip
        self.norm = tiled(real("norm.weight")), tiled(real("norm.bias"))
        # Before the first decision the state is a constant: the whole text is undecided.
        self.head = transposed("to_head"), tiled(real("to_head.bias") + real("from_state.weight")[:, -1])
        self.to_logit = transposed("to_logit") * np.float32(0.5), real("to_logit.bias")
        if self.num_features:
            first = np.concatenate([transposed("direct.0"), real("direct.0.bias")[None]])
            self.direct = first, transposed("direct.2") * np.float32(0.5), real("direct.2.bias")

    # -- the plan ------------------------------------------------------------------------------------------------------
    def plan_arrays(
        self, input_ids: np.ndarray, valid: np.ndarray, rates: np.ndarray, features: np.ndarray | None = None
    ) -> np.ndarray:
        """
        Unbounded logits of all tokens before the first decision.

        Args:
            input_ids (`np.ndarray` of shape `(batch_size, num_tokens)`): Token ids, padded on the right.
            valid (`np.ndarray` of shape `(batch_size, num_tokens)`): bool, False for padding.
            rates (`np.ndarray` of shape `(batch_size,)`): Requested rates.
            features (`np.ndarray` of shape `(batch_size, num_tokens, NUM_FEATURES)`, *optional*): As for
                `KeepMaskPolicy.first_plan`.

        Returns:
            `np.ndarray` of shape `(batch_size, num_tokens)`: float32.
        """
        rows, width = input_ids.shape
        extra = self._inputs(input_ids, valid, rates, features)
        hidden = extra @ self.inputs
        hidden += self.weights["tokens.table"][input_ids.ravel()]
        logits = np.empty((rows, width), dtype=np.float32)
        at_once = max(1, _PLACES // width)
        work = _Workspace(
            min(at_once, rows), width, self.hidden_size, max(block[0] for block in self.blocks) * self.half_kernel
        )
        for start in range(0, rows, at_once):
            part = slice(start, start + at_once)
            own = hidden[start * width : (start + at_once) * width].reshape(-1, width, self.hidden_size)
            padding = None if valid[part].all() else ~valid[part]
            for block in self.blocks:
                self._convolve(own, padding, work, *block)
            logits[part] = self._head(own.reshape(-1, self.hidden_size)).reshape(-1, width)
        if self.num_features:
            logits += self._direct(extra).reshape(rows, width)
        return logits

    def _inputs(
        self, input_ids: np.ndarray, valid: np.ndarray, rates: np.ndarray, features: np.ndarray | None
    ) -> np.ndarray:
        """
        Inputs of the trunk besides the table's rows, `(num_places, num_features + 11 + 2)` in float32: the word
        features and the count features (if the policy has them), the logit of the rate, and a constant 1 for the bias.
        """
        rows, width = input_ids.shape
        num_places, first = rows * width, self.num_features
        last = first + (_NGRAM_FEATURES if self.config["ngram_buckets"] else 0)
        told = np.clip(rates.astype(np.float32), np.float32(1e-3), np.float32(1 - 1e-3))
        told = np.repeat(np.log(told / (1 - told)), width)
        extra = np.empty((num_places, last + 2), dtype=np.float32)
        if first:
            extra[:, :first] = features.reshape(num_places, first)
        if last > first:
            self._ngram_features(input_ids, valid, extra[:, first:last])
        extra[:, -2], extra[:, -1] = told, 1.0
        return extra

    def _head(self, hidden: np.ndarray) -> np.ndarray:
        """Logits from the trunk's output, `(num_places,)`."""
        normed = np.empty_like(hidden)
        _normalise(hidden, normed)
        together = _together(normed)
        together *= self.norm[0]
        together += self.norm[1]
        head = normed @ self.head[0]
        together = _together(head)
        together += self.head[1]
        return (_twice_gelu(head, np.empty_like(head)) @ self.to_logit[0])[:, 0] + self.to_logit[1]

    def _direct(self, extra: np.ndarray) -> np.ndarray:
        """Logits that come directly from the features, `(num_places,)`; with the exact GELU."""
        first, second, bias = self.direct
        told = np.concatenate([extra[:, : self.num_features], extra[:, -2:]], 1)
        inner = told @ first
        gate = _erf(inner * np.float32(0.5**0.5))
        gate += 1
        gate *= inner
        return (gate @ second)[:, 0] + bias

    def _convolve(
        self, hidden: np.ndarray, padding: np.ndarray | None, work: "_Workspace", dilation: int, scale: np.ndarray,
        shift: np.ndarray, taps: np.ndarray, expand: np.ndarray, expand_bias: np.ndarray, contract: np.ndarray, contract_bias: np.ndarray,
    ) -> None:  # fmt: skip
        """Apply one block and add its output to the residual stream `hidden` `(rows, width, hidden_size)`."""
        rows, width, size = hidden.shape
        reach = dilation * self.half_kernel
        padded = work.padded[:rows, : width + 2 * reach]
        padded[:, :reach] = 0.0
        padded[:, reach + width :] = 0.0
        normed = padded[:, reach : reach + width]
        _normalise(hidden, normed)
        together = normed.reshape(rows, width // TOGETHER, TOGETHER * size)
        together *= scale
        together += shift
        if padding is not None:
            normed[padding] = 0.0
        shape = (rows, width // TOGETHER, TOGETHER * size)
        mixed, product = work.mixed[:rows].reshape(shape), work.product[:rows].reshape(shape)
        np.multiply(padded[:, :width].reshape(shape), taps[0], out=mixed)
        for tap in range(1, len(taps)):
            start = tap * dilation
            np.multiply(padded[:, start : start + width].reshape(shape), taps[tap], out=product)
            mixed += product
        inner, spare = (buffer[: rows * width] for buffer in (work.wide, work.spare))
        np.matmul(mixed.reshape(-1, size), expand, out=inner)
        inner += expand_bias
        added = np.matmul(_twice_gelu(inner, spare), contract, out=product.reshape(-1, size))
        together = _together(added)
        together += contract_bias
        hidden += added.reshape(hidden.shape)

    # -- counts --------------------------------------------------------------------------------------------------------
    def _ngram_features(self, input_ids: np.ndarray, valid: np.ndarray, out: np.ndarray) -> None:
        """As `NgramTables.forward` in evaluation mode; writes to `out` `(batch_size * num_tokens, 11)`."""
        rows, width = input_ids.shape
        vocab = self.config["vocab_size"]
        ids = np.where(valid, input_ids, 0)
        positions = np.arange(width)
        left, left2 = _moved(ids, 1), _moved(ids, 2)
        in_text = _occurrences(ids, valid)
        pair_earlier = _occurrences(left * vocab + ids, valid)[0]
        second, third = valid & (positions > 0), valid & (positions > 1)
        single = self._count("unigram", ids, valid)
        pair = self._count("pair", self._hash(left, ids), second)
        triple = self._count("triple", self._hash(left2, left, ids), third)
        gap = self._count("gap", self._hash(left2, ids), third)
        unigram = (single + 1) / self.smoothed
        from_left = _conditional(pair, _moved(single, 1), unigram)
        from_right = _conditional(_moved(pair, -1), _moved(single, -1), unigram)
        from_two = _conditional(triple, _moved(pair, 1), from_left)
        both = _conditional(
            _moved(triple, -1), _moved(gap, -1), np.minimum(from_left * from_right / unigram, np.float32(1.0))
        )
        found = np.empty((_NGRAM_FEATURES, rows, width), dtype=np.float32)
        for place, probability in enumerate((unigram, from_left, from_right, from_two, both)):
            np.negative(np.log2(np.maximum(probability, np.float32(1e-9))), out=found[place])
        earlier, later, distance = in_text
        from_end = np.maximum(valid.sum(1, keepdims=True) - 1 - positions, 0)
        for place, number in enumerate((earlier, pair_earlier, later, distance, positions, from_end), 5):
            found[place] = number
        found[5:] += 1.0
        np.log2(found[5:], out=found[5:])
        found *= np.float32(1 / _FEATURE_SCALE)
        found *= valid
        out[:] = found.reshape(_NGRAM_FEATURES, -1).T

    def _count(self, table: str, keys: np.ndarray, known: np.ndarray) -> np.ndarray:
        return self.counts[self.weights[f"ngrams.{table}"][keys]] * known

    def _hash(self, *ids: np.ndarray) -> np.ndarray:
        key = np.zeros_like(ids[0])
        for part in ids:
            key = (key * 1_000_003 + part + 1) & 0x3FFFFFFFFFFF
        return ((key ^ (key >> 21)) * 2_654_435_761 & 0x7FFFFFFFFFFFFFFF) >> 13 & (self.config["ngram_buckets"] - 1)


def _stored_as(name: str) -> type:
    """Type of a weight, as in `KeepMaskPolicy`."""
    if name == "tokens.table":
        return np.float16
    if name.endswith(".total"):
        return np.int64
    return np.uint8 if name.startswith(("ngrams.", "words.")) else np.float32


class _Workspace:
    """Buffers that all blocks of a pass share, because the system maps newly allocated memory again each time."""

    def __init__(self, rows: int, width: int, size: int, reach: int):
        def empty(*shape: int) -> np.ndarray:
            return np.empty(shape, dtype=np.float32)

        self.padded, self.mixed, self.product = (
            empty(rows, width + 2 * reach, size),
            empty(rows, width, size),
            empty(rows, width, size),
        )
        self.wide, self.spare = empty(rows * width, 2 * size), empty(rows * width, 2 * size)


def _normalise(hidden: np.ndarray, out: np.ndarray) -> None:
    """
    Write to `out` the values of `hidden` `(..., size)` normalised to mean 0 and variance 1 over the last dimension.
    """
    size = hidden.shape[-1]
    mean = hidden @ np.full(size, 1 / size, dtype=np.float32)
    np.subtract(hidden, mean[..., None], out=out)
    variance = np.einsum("...i,...i->...", out, out)
    variance *= np.float32(1 / size)
    variance += np.float32(_NORM_EPS)
    np.sqrt(variance, out=variance)
    np.reciprocal(variance, out=variance)
    out *= variance[..., None]


def _together(values: np.ndarray) -> np.ndarray:
    """A view of `values` `(num_places, size)` with [`TOGETHER`] places per row."""
    return values.reshape(-1, TOGETHER * values.shape[-1])


def _twice_gelu(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write twice the tanh form of GELU, `x (1 + tanh u)`, to `out`."""
    np.multiply(x, x, out=out)
    out *= np.float32(_GELU_SLOPE * _GELU_CUBE)
    out += np.float32(_GELU_SLOPE)
    out *= x
    np.tanh(out, out=out)
    out += np.float32(1.0)
    out *= x
    return out


def _erf(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, np.float32(-4.0), np.float32(4.0))
    square = x * x
    over, under = (_polynomial(square, factors) for factors in (_ERF_OVER, _ERF_UNDER))
    over *= x
    over /= under
    return over


def _polynomial(x: np.ndarray, factors: tuple[float, ...]) -> np.ndarray:
    total = np.full_like(x, factors[-1])
    for factor in reversed(factors[:-1]):
        total *= x
        total += np.float32(factor)
    return total


def _moved(values: np.ndarray, places: int) -> np.ndarray:
    """Shift each row by `places` to the right (to the left if negative), and fill with zeros."""
    moved = np.zeros_like(values)
    if places > 0:
        moved[:, places:] = values[:, :-places]
    else:
        moved[:, :places] = values[:, -places:]
    return moved


def _conditional(joint: np.ndarray, context: np.ndarray, backoff: np.ndarray) -> np.ndarray:
    context = np.maximum(context, joint)
    seen = np.maximum(joint - np.float32(_DISCOUNT), np.float32(0)) / np.maximum(context, np.float32(1))
    return seen + (np.float32(_DISCOUNT) / (context + np.float32(_DISCOUNT))) * backoff


def _occurrences(keys: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    For the key of each valid place: how often it occurs earlier in its row, how often later, and the distance to its
    last earlier occurrence (0 if there is none), each `(batch_size, num_tokens)`.
    """
    rows, width = keys.shape
    positions, bits = np.arange(width), width.bit_length()
    # Keys are below 2**48, and each place of padding gets a key of its own. With the place appended, all numbers
    # differ.
    ordered = np.sort((np.where(valid, keys, (1 << 48) + positions) << bits) | positions, axis=1)
    order = ordered & ((1 << bits) - 1)
    ordered >>= bits
    starts = np.ones((rows, width), dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.flatnonzero(starts)  # first place of each run of equal keys; every row begins a new run
    run = np.cumsum(starts.ravel()) - 1
    place = np.arange(rows * width)
    sizes = np.diff(first, append=rows * width)
    earlier = place - first[run]
    later = sizes[run] - 1 - earlier
    distance = np.zeros(rows * width, dtype=np.int64)
    flat = order.ravel()
    distance[1:] = np.where(starts.ravel()[1:], 0, flat[1:] - flat[:-1])
    out = np.empty((3, rows * width), dtype=np.int64)
    out[:, flat + np.repeat(np.arange(rows) * width, width)] = earlier, later, distance
    return tuple(out.reshape(3, rows, width))
