"""A graph for onnxruntime, node by node: nothing between the operators, and fused ones where the runtime has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

OPSET, MS = 17, "com.microsoft"
SHIFTED = 0.6  # how much of the spread of its inputs' channels a matrix takes over: the best of 0.3 to 0.9


class Net:
    """Collects nodes. Methods take and give names of values; weights are as torch has them, [out, in].

    `small` holds the weights of `dense` in eight bits, a scale for each output, and rounds what is multiplied with them
    to eight bits in each call.
    """

    def __init__(self, small: bool) -> None:
        self.small = small
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def input(self, name: str, *sizes: int | str, kind: str = "float") -> str:
        """`sizes` are numbers, or names of those that differ from call to call."""
        type_ = {"float": TensorProto.FLOAT, "int64": TensorProto.INT64}[kind]
        self.inputs.append(helper.make_tensor_value_info(name, type_, list(sizes)))
        return name

    def output(self, name: str, value: str, *sizes: int | str) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(sizes)))

    def constant(self, value: NDArray[np.generic] | Tensor | Sequence[int]) -> str:
        array = value.detach().float().numpy() if isinstance(value, Tensor) else np.asarray(value)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), self._fresh("w")))
        return str(self.constants[-1].name)

    def op(self, kind: str, *given: str, domain: str = "", **attributes: object) -> str:
        return self.ops(kind, 1, *given, domain=domain, **attributes)[0]

    def ops(self, kind: str, count: int, *given: str, domain: str = "", **attributes: object) -> list[str]:
        out = [self._fresh("v") for _ in range(count)]
        self.nodes.append(helper.make_node(kind, list(given), out, domain=domain, **attributes))  # type: ignore[arg-type]
        return out

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    # Parts of networks

    def dense(
        self,
        x: str,
        weight: Tensor,
        bias: Tensor | None = None,
        ranges: Tensor | None = None,
        by_row: bool = False,
    ) -> str:
        """[..., in] to [..., out]. `ranges` [in] are how large each channel of x gets: before x is rounded, those that
        get large are made smaller, and their weights larger (Xiao et al. 2023, SmoothQuant, arXiv:2211.10438). With
        `by_row` each position of x, whose largest is positive, is rounded by a scale of its own."""
        matrix = weight.detach().float().numpy().T
        if self.small and ranges is not None:
            large, heavy = np.maximum(ranges.numpy(), 1e-3), np.maximum(np.abs(matrix).max(axis=1), 1e-3)
            share = large**SHIFTED / heavy ** (1 - SHIFTED)
            x, matrix = self.op("Mul", x, self.constant((1 / share).astype(np.float32))), matrix * share[:, None]
        if not self.small:
            product = self.op("MatMul", x, self.constant(matrix))
            return product if bias is None else self.op("Add", product, self.constant(bias))
        scales = np.maximum(np.abs(matrix).max(axis=0) / 127, 1e-12).astype(np.float32)
        rounded = np.rint(matrix / scales).astype(np.int8)
        given = [self.constant(rounded), self.constant(scales)]
        if not by_row:
            rest = [] if bias is None else ["", self.constant(bias)]
            return self.op("DynamicQuantizeMatMul", x, *given, *rest, domain=MS)
        largest = self.op("Max", self.op("ReduceMax", x, axes=[-1]), self.constant(np.asarray(1e-6, np.float32)))
        product = self.op("DynamicQuantizeMatMul", self.op("Div", x, largest), *given, domain=MS)
        product = self.op("Mul", product, largest)
        return product if bias is None else self.op("Add", product, self.constant(bias))

    def split(self, x: str, *sizes: int) -> list[str]:
        """Along the last axis."""
        return self.ops("Split", len(sizes), x, self.constant(np.asarray(sizes, np.int64)), axis=-1)

    def join(self, *parts: str, axis: int) -> str:
        return self.op("Concat", *parts, axis=axis)

    def norm(self, x: str, weight: Tensor, bias: Tensor | None, epsilon: float) -> str:
        given = [x, self.constant(weight), *([] if bias is None else [self.constant(bias)])]
        return self.op("LayerNormalization", *given, axis=-1, epsilon=epsilon)

    def rms(self, x: str, weight: Tensor, epsilon: float) -> str:
        """RMSNorm, which the runtime puts together from its parts."""
        two, small = (self.constant(np.asarray(value, np.float32)) for value in (2, epsilon))
        mean = self.op("ReduceMean", self.op("Pow", x, two), axes=[-1])
        normed = self.op("Div", x, self.op("Sqrt", self.op("Add", mean, small)))
        return self.op("Mul", normed, self.constant(weight))

    def add_norm(
        self, x: str, more: str, weight: Tensor, bias: Tensor | None, epsilon: float, added: Tensor | None = None
    ) -> tuple[str, str]:
        """The norm of a sum, and the sum. `added` is added to it as well."""
        zeros = weight * 0
        given = [x, more, self.constant(weight), self.constant(zeros if bias is None else bias)]
        given += [] if added is None else [self.constant(added)]
        out = self.ops("SkipLayerNormalization", 4, *given, domain=MS, epsilon=epsilon)
        return out[0], out[3]

    def heads(self, x: str, count: int) -> str:
        """[1, s, H*d] to [1, H, s, d]."""
        apart = self.op("Reshape", x, self.constant(np.asarray([0, 0, count, -1], np.int64)))
        return self.op("Transpose", apart, perm=[0, 2, 1, 3])

    def attend(
        self, heads: int, q: str, k: str, v: str, *rest: str, outputs: int = 1, **attributes: object
    ) -> list[str]:
        """[1, s, D] over keys and values [1, S, D] or [1, H, S, d]."""
        return self.ops("MultiHeadAttention", outputs, q, k, v, *rest, domain=MS, num_heads=heads, **attributes)

    def save(self, path: Path) -> None:
        graph = helper.make_graph(self.nodes, path.stem, self.inputs, self.outputs, self.constants)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
        model = helper.make_model(graph, opset_imports=imports, producer_name="needle", ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
