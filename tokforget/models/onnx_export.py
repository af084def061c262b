"""
Write the ONNX graph of a policy, node by node from its weights.

The graph has about sixty nodes, so it is written without torch's exporter. This needs no torch and takes a fraction of
a second. The graph accepts any number of rows and tokens, and uses operators with fast kernels in ONNX Runtime: a
depthwise convolution where the torch module adds shifted products. Before the first decision the state is a constant,
which is merged into a bias.
"""

import tempfile
from pathlib import Path

import numpy as np

from tokforget.models.array_policy import ArrayPolicy
from tokforget.models.onnx_policy import EXTRA, OUTPUT, PRECISION_KEY, WEIGHTS_KEY, import_module, weights_digest
from tokforget.optional import needed


# 20 is the first version with GELU. Every runtime with this version also reads this version of the file format.
_OPSET, _FORMAT = 20, 9
_NORM_EPS = 1e-5
# Products that stay in float32 in an int8 graph: those of features with very different scales, a fortieth of the
# arithmetic, and the last layer.
_NOT_QUANTIZED = ("inputs", "direct.0", "direct.2", "to_logit")


def export_graph(policy: ArrayPolicy, precision: str = "onnx") -> bytes:
    """
    The graph of a policy for [`tokforget.models.onnx_policy.OnnxPolicy`].

    The inputs are `rows` `(batch, tokens, hidden_size)` in float16, the rows of the table; `extra`
    `(batch, tokens, num_inputs)` in float32, the word features, the count features and the logit of the rate; and
    `valid` `(batch, tokens)`, False for padding. The output is `logits` `(batch, tokens)` in float32, unbounded,
    before the first decision.

    Args:
        policy (`ArrayPolicy`): The policy.
        precision (`str`): `"onnx"` for float32, or `"onnx-int8"` for dynamic quantisation: products in int8, scaled at
            run time.

    Returns:
        `bytes`: The serialised graph.

    Raises:
        [`tokforget.optional.MissingPackage`]: If ONNX or ONNX Runtime is not installed.
    """
    with needed("Exporting to ONNX", EXTRA):
        import onnx

        quantization = import_module("onnxruntime.quantization")
    model = _Graph(policy).model()
    if precision == "onnx-int8":
        model = _quantized(onnx, quantization, model)
    told = {WEIGHTS_KEY: weights_digest(policy.state_dict()), PRECISION_KEY: precision}
    onnx.helper.set_model_props(model, told)
    return model.SerializeToString(deterministic=True)


def _quantized(onnx, quantization, model):
    # The graph needs no preparation, because its shapes are static or named. Without this mark the library logs a
    # warning, through a handler that it adds to the root logger.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:  # the library reads and writes files
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantization.quantize_dynamic(source, target, per_channel=True, op_types_to_quantize=["MatMul"],
                                      nodes_to_exclude=list(_NOT_QUANTIZED))  # fmt: skip
        return onnx.load(target)


class _Graph:
    """A graph under construction. Each operation adds nodes and weights and returns the name of its result."""

    def __init__(self, policy: ArrayPolicy):
        import onnx

        self.onnx, self.policy, self.weights = onnx, policy, policy.state_dict()
        self.nodes, self.constants = [], {}

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add(self, kind: str, *inputs: str, name: str | None = None, **attributes) -> str:
        name = name or f"{kind.lower()}.{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def linear(self, x: str, name: str, bias: np.ndarray | None = None) -> str:
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"] if bias is None else bias)
        return self.add("Add", self.add("MatMul", x, weight, name=name), bias)

    def norm(self, x: str, name: str) -> str:
        scale, shift = (self.constant(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=_NORM_EPS)

    def block(self, hidden: str, present: str, number: int, dilation: int) -> str:
        """As [`tokforget.models.policy.ConvBlock`]."""
        name = f"blocks.{number}"
        size, width = self.policy.config["hidden_size"], self.policy.config["kernel_size"]
        taps = self.constant(f"{name}.taps", self.weights[f"{name}.taps"].T.reshape(size, 1, width))
        reach = dilation * (width // 2)
        x = self.add("Mul", self.norm(hidden, f"{name}.norm"), present)
        x = self.add("Transpose", x, perm=[0, 2, 1])
        x = self.add("Conv", x, taps, group=size, dilations=[dilation], pads=[reach, (width - 1) * dilation - reach])
        x = self.add("Transpose", x, perm=[0, 2, 1])
        x = self.add("Gelu", self.linear(x, f"{name}.expand"), approximate="tanh")
        return self.add("Add", hidden, self.linear(x, f"{name}.contract"))

    def model(self):
        """The whole graph as a `ModelProto`."""
        kinds, helper, config = self.onnx.TensorProto, self.onnx.helper, self.policy.config
        last = self.constant("last", np.array([-1]))
        hidden = self.add("Add", self.add("Cast", "rows", to=kinds.FLOAT), self.linear("extra", "inputs"))
        present = self.add("Unsqueeze", self.add("Cast", "valid", to=kinds.FLOAT), last)
        for number, dilation in enumerate(config["dilations"]):
            hidden = self.block(hidden, present, number, dilation)
        ahead = self.weights["to_head.bias"] + self.weights["from_state.weight"][:, -1]  # the whole text is undecided
        head = self.add("Gelu", self.linear(self.norm(hidden, "norm"), "to_head", ahead), approximate="tanh")
        logits = self.linear(head, "to_logit")
        if self.policy.num_features:
            # It reads the word features and the rate; the weights of the columns between them are zero.
            told = np.zeros((self.weights["inputs.weight"].shape[1], config["head_size"]), dtype=np.float32)
            told[: self.policy.num_features] = self.weights["direct.0.weight"].T[:-1]
            told[-1] = self.weights["direct.0.weight"].T[-1]
            inner = self.add("MatMul", "extra", self.constant("direct.0.weight", told), name="direct.0")
            inner = self.add("Add", inner, self.constant("direct.0.bias", self.weights["direct.0.bias"]))
            logits = self.add("Add", logits, self.linear(self.add("Gelu", inner), "direct.2"))
        self.add("Squeeze", logits, last, name=OUTPUT)

        def value(name: str, kind: int, *more: int | str):
            return helper.make_tensor_value_info(name, kind, ["batch", "tokens", *more])

        inputs = [value("rows", kinds.FLOAT16, config["hidden_size"]),
                  value("extra", kinds.FLOAT, self.weights["inputs.weight"].shape[1]), value("valid", kinds.BOOL)]  # fmt: skip
        graph = helper.make_graph(
            self.nodes, "tokforget policy", inputs, [value(OUTPUT, kinds.FLOAT)], [*self.constants.values()]
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_FORMAT, producer_name="tokforget"
        )
        self.onnx.checker.check_model(model, full_check=True)
        return model
