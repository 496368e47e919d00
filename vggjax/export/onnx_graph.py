"""Collect the operators of an ONNX graph: a thin layer over the `onnx` package's helper.

Operators are added one by one and named by their single output. Constants are arrays that are held
once each.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
"""What every runtime of 2023 and later reads: onnxruntime from 1.12 on."""


class Graph:
    """The operators of a graph, or of a branch inside one, in order."""

    def __init__(self, outer: "Graph | None" = None):
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = outer.tensors if outer else {}
        """The constants by name; a branch shares those of the graph around it."""
        self._names: set[str] = outer._names if outer else set()

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add an operator and return the name of its output: `name`, or one made here."""
        output = self._new(name or op.lower())
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, value: Any, dtype: Any = None, *, name: str = "") -> str:
        """Add an array, or strings, and return its name; equal small numbers are held once."""
        array = np.asarray(value, dtype)
        if not name:
            name = f"{array.dtype}{array.shape}:{'_'.join(map(str, array.ravel()[:8]))}"
            same = self.tensors.get(name)
            if same is not None and np.array_equal(numpy_helper.to_array(same), array):
                return name
        name = self._new(name)
        if array.dtype.kind == "U":
            texts = [text.encode("utf-8", "surrogateescape") for text in array.ravel().tolist()]
            tensor = helper.make_tensor(name, TensorProto.STRING, array.shape, texts)
        else:
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.tensors[name] = tensor
        return name

    def choose(
        self,
        condition: str,
        then: tuple["Graph", str],
        otherwise: tuple["Graph", str],
        *,
        kind: int,
    ) -> str:
        """Add an `If` on a bool () and return the name of its output.

        Each branch is its operators and the name of its result, an array of ONNX's type `kind`.
        """
        branches = [graph._as_branch(result, kind) for graph, result in (then, otherwise)]
        return self.add("If", condition, then_branch=branches[0], else_branch=branches[1])

    def proto(
        self, name: str, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]
    ) -> GraphProto:
        """Return the whole graph, with the constants that it uses."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs)
        used = set(_inputs_of(graph))
        graph.initializer.extend(self.tensors[name] for name in self.tensors if name in used)
        return graph

    def _as_branch(self, output: str, kind: int) -> GraphProto:
        return helper.make_graph(
            self.nodes, "branch", [], [helper.make_tensor_value_info(output, kind, None)]
        )

    def _new(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique


def _inputs_of(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _inputs_of(attribute.g)
    yield from (output.name for output in graph.output)
