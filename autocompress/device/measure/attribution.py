"""Which of our kernels did the runtime spend its time on?

Runtimes rename, fuse and insert operations. An operation belongs to the node whose name it bears,
else to the one that computed the tensor that it is named after or writes. An inserted conversion
belongs to the conversion of the same value, and anything else inserted to the nearest reader of
what it writes.

A runtime without a rewritten graph names the exported nodes that an operation carries out. The
operation belongs to the kernel of those that computes most, the first of them where none computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from autocompress.cost.kernels import CONVERSIONS, Kernel
from autocompress.device.measure.log import Timing
from autocompress.device.runtimes.base import NodeTime
from autocompress.graph.network import INPUT

_SUFFIXES = re.compile(r"(_token_\d+|_nchwc|/duplicated.*|_\d+_cast|_new_reshape|_pre_q|_q_to_dq|_d?q)+$")
_KINDS = {
    "QuantizeLinear": ("quantize",),
    "DequantizeLinear": ("dequantize",),
    "ReorderInput": ("to_blocked",),
    "ReorderOutput": ("from_blocked",),
    "Transpose": ("to_channels_last", "to_channels_first"),
}


def attribute(
    times: Sequence[NodeTime], original: bytes, optimized: bytes, kernels: Sequence[Kernel]
) -> tuple[Timing, ...]:
    """Return the kernels in the same order, each with its time; together they have all the time there was.

    Kernels on which the runtime spent nothing (it fused or removed them) get 0. `original` and
    `optimized` are the exported model and what the runtime made of it, empty where it does not tell.
    """
    if not optimized:
        return _by_origins(times, original, kernels)
    graph = _Graph(original, optimized, kernels)
    totals, operations = [0.0] * len(kernels), [0] * len(kernels)
    for time, node in graph.matched(times):
        index = graph.kernel_of(time.name, node)
        totals[index] += time.time_us
        operations[index] += 1
    return tuple(map(Timing, kernels, totals, operations))


def _by_origins(times: Sequence[NodeTime], original: bytes, kernels: Sequence[Kernel]) -> tuple[Timing, ...]:
    """Put what names no kernel with the operation before it."""
    graph = _Graph(original, original, kernels)
    totals, operations = [0.0] * len(kernels), [0] * len(kernels)
    last = 0
    for time in times:
        named = list(dict.fromkeys(graph.named(time.origins)))
        last = max(named, key=lambda index: kernels[index].macs, default=last)
        totals[last] += time.time_us
        operations[last] += 1
    return tuple(map(Timing, kernels, totals, operations))


class _Graph:
    """Know the optimised graph, and what its operations have to do with nodes of the exported one."""

    def __init__(self, original: bytes, optimized: bytes, kernels: Sequence[Kernel]) -> None:
        import onnx

        exported = onnx.load_from_string(original).graph
        self.kernels = kernels
        self.nodes = list(onnx.load_from_string(optimized).graph.node)
        self.exported_names = {node.name for node in exported.node}
        self.exported_writer = {tensor: node.name for node in exported.node for tensor in node.output}
        self.writer = {tensor: node for node in self.nodes for tensor in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for tensor in node.input:
                self.readers.setdefault(tensor, []).append(node)
        self.conversions: dict[tuple[str, str], int] = {}
        self.owner: dict[str, int] = {}
        for index, kernel in enumerate(kernels):
            if kernel.op in CONVERSIONS:
                for name in kernel.nodes:
                    self.conversions.setdefault((kernel.op, name), index)
            else:
                self.owner.update(dict.fromkeys(kernel.nodes, index))
        for index, kernel in enumerate(kernels):
            if kernel.op in CONVERSIONS and kernel.nodes[0] in self.exported_names:
                self.owner.setdefault(kernel.nodes[0], index)

    def named(self, origins: Sequence[str]) -> Iterator[int]:
        """Return the indices of the kernels that these exported nodes are part of, in the same order.

        A node may be called by the tensor that it writes.
        """
        by_name = {node.name: node for node in self.nodes}
        for origin in origins:
            name = self.exported_writer.get(origin, origin)
            node = by_name.get(name)
            index = None if node is None else self._of_exported(node)
            index = self.owner.get(_owner(name)) if index is None else index
            if index is not None:
                yield index

    def _of_exported(self, node: Any) -> int | None:
        """Return the conversion kernel that an exported node is, if it is one."""
        if node.op_type == "QuantizeLinear":
            return self.conversions.get(("quantize", _owner(node.name)))
        if node.op_type == "DequantizeLinear":
            return self.conversions.get(("dequantize", _owner(self.exported_writer.get(node.input[0], ""))))
        return None

    def matched(self, times: Sequence[NodeTime]) -> Iterator[tuple[NodeTime, Any]]:
        """Return the times with their nodes; the runtime invents names for nodes without one, in graph
        order."""
        named = {node.name: node for node in self.nodes if node.name}
        unnamed: dict[str, list[Any]] = {}
        for node in reversed(self.nodes):
            if not node.name:
                unnamed.setdefault(node.op_type, []).append(node)
        for time in times:
            rest = unnamed.get(time.op)
            yield time, named.get(time.name) or (rest.pop() if rest else None)

    def kernel_of(self, name: str, node: Any) -> int:
        """Return the index of the kernel that an operation belongs to; the last one when nothing tells."""
        if node is not None and self._is_conversion(node):
            return self._of_conversion(node)
        index = self._by_name(name, node)
        if index is None and node is not None:
            index = self._nearest(node, forward=True)
        return len(self.kernels) - 1 if index is None else index

    def _is_conversion(self, node: Any) -> bool:
        inserted = node.op_type in ("ReorderInput", "ReorderOutput") or node.name not in self.exported_names
        return node.op_type in _KINDS and (inserted or node.op_type != "Transpose")

    def _of_conversion(self, node: Any) -> int:
        """Return a conversion's kernel; those within an integer operation that has no integer kernel belong
        to it.

        A transposition of dequantized values is rounded once more by the runtime, for its own reasons.
        """
        own = self._own(node)
        if own is not None:
            return own
        values = self._values(node.input[0])
        kinds = _KINDS[node.op_type]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if _stem(node.name) not in self.exported_names:
                kinds = (*_KINDS["Transpose"], *kinds)
            near = self._nearest(node, forward=node.op_type == "DequantizeLinear")
            inner = near is not None and self.kernels[near].precision == "int8"
            if inner and not any((kinds[0], value) in self.conversions for value in values):
                assert near is not None
                return near
        keys = ((kind, value) for kind in kinds for value in values)
        found = next((self.conversions[key] for key in keys if key in self.conversions), None)
        forward = node.op_type != "ReorderOutput" and node.op_type != "QuantizeLinear"
        for direction in (forward, not forward):
            found = self._nearest(node, forward=direction) if found is None else found
        return len(self.kernels) - 1 if found is None else found

    def _own(self, node: Any) -> int | None:
        """Return the kernel that an operation's name leads to, where it does without looking around."""
        if not self._is_conversion(node):
            return self._by_name(node.name, node)
        if node.op_type != "QuantizeLinear" or node.name not in self.exported_names:
            return None
        value = _owner(node.name)
        index = self.owner.get(value)
        within = index is not None and self.kernels[index].precision == "int8"
        return index if within else self.conversions.get(("quantize", value))

    def _values(self, tensor: str) -> tuple[str, ...]:
        """Return the names of the network's value that a tensor of the optimised graph holds, in whatever
        form."""
        node = self.writer.get(tensor)
        while node is not None and self._is_conversion(node):
            tensor = node.input[0]
            node = self.writer.get(tensor)
        if node is None:
            return (INPUT,)
        index = self._by_name(node.name, node)
        return () if index is None else self.kernels[index].nodes[::-1]

    def _by_name(self, name: str, node: Any) -> int | None:
        tensors = [_stem(name), *(node.output if node is not None else ())]
        names = [
            name,
            *(self.exported_writer[tensor] for tensor in tensors if tensor in self.exported_writer),
        ]
        return next((self.owner[_owner(one)] for one in names if _owner(one) in self.owner), None)

    def _nearest(self, node: Any, *, forward: bool) -> int | None:
        """Return the kernel of the nearest operation that reads what the node writes, or wrote what it
        reads."""
        queue, seen = [node], set()
        while queue:
            current = queue.pop(0)
            if forward:
                near = [reader for tensor in current.output for reader in self.readers.get(tensor, ())]
            else:
                near = [self.writer[tensor] for tensor in current.input if tensor in self.writer]
            for other in near:
                index = self._own(other)
                if index is not None:
                    return index
                if id(other) not in seen:
                    seen.add(id(other))
                    queue.append(other)
        return None


def _stem(name: str) -> str:
    return _SUFFIXES.sub("", name)


def _owner(name: str) -> str:
    """Return the network's node that an exported node was made for: helpers are named `node/helper`."""
    return _stem(name).partition("/")[0]
