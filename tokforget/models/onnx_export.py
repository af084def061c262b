"""
The graph that ONNX Runtime computes a policy with, written node by node from the weights.

By hand and not by torch's exporter: the forward has some sixty nodes, and so it needs no torch, takes a fraction of a second, takes
any number of rows and places, and has the operators that ONNX Runtime has fast kernels for: one depthwise convolution where the
module of torch adds shifted products. Before anything is decided the state is a constant, and goes into a bias.
"""

import tempfile
from pathlib import Path

import numpy as np

from tokforget.models.array_policy import ArrayPolicy
from tokforget.models.onnx_policy import EXTRA, OUTPUT, PRECISION_KEY, WEIGHTS_KEY, import_module, weights_digest
from tokforget.optional import needed


# 20: the first with GELU. Whoever reads that reads this version of the format, too.
_OPSET, _FORMAT = 20, 9
_NORM_EPS = 1e-5
# The products that stay float32 in int8: a fortieth of the arithmetic, over features of very different scales, and the last layer.
_NOT_QUANTIZED = ("inputs", "direct.0", "direct.2", "to_logit")


def export_graph(policy: ArrayPolicy, precision: str = "onnx") -> bytes:
    """
    The graph of a policy for [`tokforget.models.onnx_policy.OnnxPolicy`].

    Inputs are `rows` `(batch, tokens, hidden_size)` in float16, rows of the table; `extra` `(batch, tokens, num_inputs)` in float32,
    features of words, features of counts and the logit of the rate; and `valid` `(batch, tokens)`, False for padding. The output is
    `logits` `(batch, tokens)` in float32, before anything is decided and not bounded.

    Args:
        policy (`ArrayPolicy`): Whose weights.
        precision (`str`): `"onnx"` for float32, or `"onnx-int8"`: products in int8, the scale of what is multiplied taken as it comes.

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
    # There is nothing to prepare: shapes are static or named. Without the mark the library says so, through a handler that it gives
    # to everybody's log.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:  # the library goes from file to file
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantization.quantize_dynamic(source, target, per_channel=True, op_types_to_quantize=["MatMul"],
                                      nodes_to_exclude=list(_NOT_QUANTIZED))  # fmt: skip
        return onnx.load(target)


class _Graph:
    """Nodes and weights of a graph while it grows; an operation returns the name of its result."""

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
        ahead = (
            self.weights["to_head.bias"] + self.weights["from_state.weight"][:, -1]
        )  # the whole text is still to come
        head = self.add("Gelu", self.linear(self.norm(hidden, "norm"), "to_head", ahead), approximate="tanh")
        logits = self.linear(head, "to_logit")
        if self.policy.num_features:
            # It looks at the features of the words and at the rate: nothing comes of what lies between.
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
