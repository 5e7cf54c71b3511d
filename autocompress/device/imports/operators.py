"""Which of our kernels do the operators of a vendor's dump carry out?

By the names of the exported nodes, which most tools keep within the names of their own layers. Where a
tool lost them, by order: operators named after the network's operations in their sequence, else operators
of one kind are the kernels of that kind, if there are as many.
What is neither goes with a neighbour: with the operator before it if it works on results, as activations
do, else with the one after it, whose input it prepares. It is listed, and no time is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from autocompress.cost.kernels import CONVERSIONS, Kernel
from autocompress.device.imports.parsing import OperatorTime
from autocompress.device.measure.log import Timing
from autocompress.errors import ProfileError
from autocompress.graph.network import Network

if TYPE_CHECKING:
    from onnx import NodeProto

LEAST_MATCHED = 0.5
"""Share of the kernels with multiply-adds that must be found: less is the dump of another network."""

_TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_./]*")
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|/duplicated.*|_\d+_cast|_new_reshape|_d?q)$")
_ON_RESULTS = re.compile(
    r"relu|clamp|clip|sigmoid|swish|silu|gelu|tanh|softmax|batch_?norm|activation|\APWN", re.IGNORECASE
)
_PLACE = re.compile(r"#\d+\Z")
_KINDS = (
    ("conv", re.compile(r"conv", re.IGNORECASE)),
    ("linear", re.compile(r"fully.?connected|gemm|linear|addmm|inner.?product", re.IGNORECASE)),
    ("product", re.compile(r"matmul|bmm|attention|dot", re.IGNORECASE)),
    ("pool", re.compile(r"mean|pool", re.IGNORECASE)),
    ("relu", re.compile(r"\A(tfl\.)?(aten::)?relu6?_?\Z", re.IGNORECASE)),
    ("add", re.compile(r"\A(tfl\.)?(aten::)?add_?(\.tensor)?\Z|\badd \(", re.IGNORECASE)),
)
_TURNS = {
    "ReorderInput": {"to_blocked"},
    "ReorderOutput": {"from_blocked"},
    "Transpose": {"to_channels_last", "to_channels_first"},
}
"""Operators that a runtime adds to change layouts, and our kernels for them."""

_OURS = {"mean": "pool", "adaptive_avg_pool2d": "pool", "avg_pool2d": "pool", "max_pool2d": "pool"}


@dataclass(frozen=True)
class Attributed:
    """Hold kernels that were found, with their times; `unknown` operators, and kernels that none names."""

    timings: tuple[Timing, ...]
    unknown: tuple[OperatorTime, ...]
    missing: tuple[Kernel, ...]


def attribute_operators(
    operators: Sequence[OperatorTime], model: bytes | None, network: Network, kernels: Sequence[Kernel]
) -> Attributed:
    """Give all time of the operators to the kernels; `model` is the exported network, where there is one.

    An operator that carries out several kernels is shared out by their multiply-adds; kernels without
    any get nothing of it. Kernels that no operator is known to carry out are left out, so that they are
    not priced 0. Raises ProfileError when the dump is of another network.
    """
    names = _Names(model, kernels)
    ways = (
        lambda: [names.kernels_of(operator.name) for operator in operators],
        lambda: _by_sequence(operators, network, kernels),
        lambda: _by_kind(operators, kernels),
    )
    best: list[list[int]] = []
    for way in ways:
        owners = _with_turns(operators, way(), kernels)
        if not best or _share(owners, kernels) > _share(best, kernels):
            best = owners
        if _share(best, kernels) >= LEAST_MATCHED:
            return _shared_out(operators, best, kernels)
    raise ProfileError(
        "the dump does not fit the model",
        why=f"only {_share(best, kernels):.0%} of the layers that compute are found in it",
        fix="give the model that was profiled with --model, or the --teacher that it was exported from",
    )


def _with_turns(
    operators: Sequence[OperatorTime], owners: Sequence[list[int]], kernels: Sequence[Kernel]
) -> list[list[int]]:
    """Pair changes of layout, whose names say nothing, in order where as many are left on both sides."""
    filled = [list(found) for found in owners]
    named = {index for found in owners for index in found}
    for op, conversions in _TURNS.items():
        theirs = [place for place, one in enumerate(operators) if one.op == op and not filled[place]]
        ours = [i for i, kernel in enumerate(kernels) if kernel.op in conversions and i not in named]
        if len(theirs) == len(ours):
            for place, index in zip(theirs, ours, strict=True):
                filled[place] = [index]
    return filled


def _shared_out(
    operators: Sequence[OperatorTime], owners: Sequence[Sequence[int]], kernels: Sequence[Kernel]
) -> Attributed:
    totals, counts = [0.0] * len(kernels), [0] * len(kernels)
    filled = _filled(operators, owners)
    for operator, found in zip(operators, filled, strict=True):
        weights = [kernels[index].macs for index in found]
        weights = weights if any(weights) else [1] * len(found)
        for index, weight in zip(found, weights, strict=True):
            totals[index] += operator.time_us * weight / sum(weights)
        counts[max(zip(weights, found, strict=True))[1]] += 1
    named = {index for found in owners for index in found}
    return Attributed(
        tuple(Timing(kernels[index], totals[index], counts[index]) for index in sorted(named)),
        tuple(operator for operator, found in zip(operators, owners, strict=True) if not found),
        tuple(kernel for index, kernel in enumerate(kernels) if index not in named),
    )


def _filled(operators: Sequence[OperatorTime], owners: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Put what is unknown with the operator before it if it works on results, else with the one after."""
    filled = list(owners)
    for place in range(1, len(filled)):
        if not filled[place] and _ON_RESULTS.search(operators[place].op or operators[place].name):
            filled[place] = filled[place - 1]
    for place in reversed(range(len(filled) - 1)):
        filled[place] = filled[place] or filled[place + 1]
    for place in range(1, len(filled)):
        filled[place] = filled[place] or filled[place - 1]
    return filled


def _share(owners: Sequence[Sequence[int]], kernels: Sequence[Kernel]) -> float:
    wanted = {index for index, kernel in enumerate(kernels) if kernel.macs}
    found = {index for indices in owners for index in indices}
    return len(wanted & found) / len(wanted) if wanted else float(bool(found))


class _Names:
    """Find kernels by the names of nodes and tensors of the exported model."""

    def __init__(self, model: bytes | None, kernels: Sequence[Kernel]) -> None:
        self.owner: dict[str, int] = {}
        self.conversions: dict[tuple[str, str], int] = {}
        for index, kernel in enumerate(kernels):
            for name in kernel.nodes:
                if kernel.op in CONVERSIONS:
                    self.conversions.setdefault((kernel.op, name), index)
                else:
                    self.owner[name] = index
        self.nodes: dict[str, NodeProto] = {}
        self.writer: dict[str, NodeProto] = {}
        for node in _exported_nodes(model):
            self.nodes[node.name] = node
            self.writer.update(dict.fromkeys(node.output, node))

    def kernels_of(self, name: str) -> list[int]:
        """Return the kernels named anywhere in an operator's name, in order."""
        found = [self._kernel(token) for token in _TOKEN.findall(name)]
        return list(dict.fromkeys(index for index in found if index is not None))

    def _kernel(self, name: str) -> int | None:
        stem = _SUFFIX.sub("", name)
        node = self.nodes.get(name) or self.nodes.get(stem) or self.writer.get(stem)
        if node is not None:
            return self._of_node(node)
        return self.owner.get(stem.partition("/")[0])

    def _of_node(self, node: NodeProto) -> int | None:
        value = _value(node.name)
        if node.op_type == "QuantizeLinear":
            return self.conversions.get(("quantize", value), self.owner.get(value))
        if node.op_type == "DequantizeLinear" and node.input[0] in self.writer:
            source = _value(self.writer[node.input[0]].name)
            return self.conversions.get(("dequantize", source), self.owner.get(value))
        return self.owner.get(value)


def _value(name: str) -> str:
    """Return the network's node that an exported node was made for: helpers are named `node/helper`."""
    return name.partition("/")[0]


def _exported_nodes(model: bytes | None) -> Iterator[NodeProto]:
    if model is None:
        return
    import onnx

    yield from onnx.load_from_string(model).graph.node


def _by_sequence(
    operators: Sequence[OperatorTime], network: Network, kernels: Sequence[Kernel]
) -> list[list[int]]:
    """Return operators named after the network's own operations, found again in their order."""
    owner = {
        name: index
        for index, kernel in enumerate(kernels)
        if kernel.op not in CONVERSIONS
        for name in kernel.nodes
    }
    ours = [
        (node.op.partition(".")[0].rstrip("_"), owner[node.name])
        for node in network.nodes
        if node.name in owner
    ]
    theirs = [
        _PLACE.sub("", operator.op or operator.name).partition(".")[0].rstrip("_") for operator in operators
    ]
    owners: list[list[int]] = [[] for _ in operators]
    matcher = SequenceMatcher(None, theirs, [op for op, _ in ours], autojunk=False)
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            owners[block.a + offset] = [ours[block.b + offset][1]]
    return owners


def _by_kind(operators: Sequence[OperatorTime], kernels: Sequence[Kernel]) -> list[list[int]]:
    """Return operators of a kind paired with the kernels of that kind, where there are as many of both."""
    kinds = [_kind(operator) for operator in operators]
    owners: list[list[int]] = [[] for _ in operators]
    for kind, _ in _KINDS:
        theirs = [place for place, found in enumerate(kinds) if found == kind]
        ours = [index for index, kernel in enumerate(kernels) if _OURS.get(kernel.op, kernel.op) == kind]
        if len(theirs) == len(ours):
            for place, index in zip(theirs, ours, strict=True):
                owners[place] = [index]
    return owners


def _kind(operator: OperatorTime) -> str | None:
    text = operator.op or _PLACE.sub("", operator.name)
    return next((kind for kind, pattern in _KINDS if pattern.search(text)), None)
