"""A scorer as an ONNX model, for servers that score candidates where the passages lie (examples/vespa).

Inputs are what `query_cache` and `passage_cache` give, one row a pair, so that a server stores of a passage what an
index does. Built node by node: the module is a few products, and PyTorch's own exporter would bring two more packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.run.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from d2llm.config.recipes import Mode
    from d2llm.models.scorers.base import Scorer
    from d2llm.models.scorers.iem import IEM

# Versions of the operators and of the format that servers of the last years read.
OPSET, FORMAT = 17, 8


def export(scorer: Scorer, width: int, mode: Mode, file: str | Path) -> None:
    """Write `query` (n, c), `passage` (n, c) → `logit` (n, 1) for a scorer whose cached rows have `width` numbers.

    Raises ConfigError for a scorer that has no such form (MaxSim), and without the package onnx.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError:
        raise ConfigError("export to ONNX: the package onnx is not installed; `python -m pip install onnx`") from None
    if not (scorer.smooth or scorer.inner):
        raise ConfigError(f"scorer {scorer.name}: no ONNX model of it; only inner products and the IEM have one")
    graph = Graph()
    if scorer.inner:
        graph.inner_product("query", "passage", "logit")
    else:
        iem_graph(graph, scorer, mode)  # type: ignore[arg-type]  # the one smooth scorer
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["pairs", width]) for name in ("query", "passage")]
    logit = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["pairs", 1])
    whole = helper.make_graph(graph.nodes, f"d2llm {scorer.name} {mode}", sides, [logit], graph.weights)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=FORMAT)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(file))


def iem_graph(graph: Graph, iem: IEM, mode: Mode) -> None:
    """The nodes of `IEM.pairs_cached`."""
    left, right, both = "query", "passage", iem.skip_weight is not None
    if both:
        for name in (left, right):
            ends = {"zero": [0], "hidden": [iem.hidden], "all": [2**31 - 1], "axis": [1]}
            for end, value in ends.items():
                graph.numbers(end, value)
            graph.node("Slice", [name, "zero", "hidden", "axis"], f"{name} hidden")
            graph.node("Slice", [name, "hidden", "all", "axis"], f"{name} vector")
        left, right = "query hidden", "passage hidden"
    graph.node("Add", [left, right], "first")
    graph.node("Relu", ["first"], "positive")
    if iem.squared:
        graph.node("Mul", ["positive", "positive"], "squared")
    branch: Any = iem.branches[mode if mode in iem.branches else "shared"]
    graph.linear("squared" if iem.squared else "positive", branch, "branch")
    graph.node("Relu", ["branch"], "features")
    graph.linear("features", iem.head, "head" if both else "logit")
    if both:
        graph.inner_product("query vector", "passage vector", "cosine")
        graph.weight("skip", iem.skip_weight.detach().view(1))  # type: ignore[union-attr]  # both says it is there
        graph.node("Mul", ["cosine", "skip"], "weighed")
        graph.node("Add", ["head", "weighed"], "logit")


class Graph:
    """Nodes and weights as they are named."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def node(self, kind: str, inputs: list[str], output: str, **options: Any) -> None:
        """An operator."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **options))

    def weight(self, name: str, value: Tensor) -> None:
        """A tensor of the module, in float32."""
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(value.detach().float().cpu().numpy(), name))

    def numbers(self, name: str, value: list[int]) -> None:
        """Whole numbers, once each."""
        import numpy as np
        from onnx import numpy_helper

        if name not in {known.name for known in self.weights}:
            self.weights.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))

    def linear(self, source: str, layer: Any, output: str) -> None:
        """x Wᵀ + b."""
        self.weight(f"{output} weight", layer.weight)
        self.weight(f"{output} bias", layer.bias)
        self.node("Gemm", [source, f"{output} weight", f"{output} bias"], output, transB=1)

    def inner_product(self, left: str, right: str, output: str) -> None:
        """(n, c), (n, c) → (n, 1)."""
        self.numbers("axis", [1])
        self.node("Mul", [left, right], f"{output} products")
        self.node("ReduceSum", [f"{output} products", "axis"], output, keepdims=1)
