"""The kernels of a network: what a runtime executes, described by what decides how long it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import Any

from autocompress.cost.fused_graph import Operation
from autocompress.cost.layouts import Layouts, operations
from autocompress.cost.opaque_work import weight_uses
from autocompress.graph.network import Network, Node, Param, Ref
from autocompress.graph.operations import CONVOLUTIONS, TRANSPOSED, VIEWS, is_opaque

CONVERSIONS = frozenset(
    {"quantize", "dequantize", "to_blocked", "from_blocked", "to_channels_last", "to_channels_first"}
)
_PRODUCTS = frozenset({"matmul", "bmm", "scaled_dot_product_attention"})
_WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})
OPAQUE = "opaque:"
"""What the names of kernels begin with whose operation has no row in `graph.operations`."""
_OWN_GROUPS = _WEIGHTED | CONVERSIONS | {"product", "add"}


@dataclass(frozen=True)
class Kernel:
    """One unit of execution; equal kernels take equal time.

    `precision` is `fp32` or `int8`. `height` and `width` are those of the output, a signal being an image one
    pixel wide and a volume one of its slices one above the other; for a linear
    layer or product `height` counts the rows that share the weight. `layout` says of a float
    convolution whether it works on blocks of channels (`blocked`), turns plain images into such
    (`to_blocked`) or does neither, and of a pooling by maxima how its images lie: one of integers takes
    dozens of times longer where their channels are not last. `adds` is 1 when a convolution adds another
    value to its result, or a normalisation to its input. Of an opaque operation `in_channels` are the weights
    that it multiplies by, and `height` counts how often; both are unknown of most. `in_elements` and
    `out_elements` count numbers read and written, weights aside. `nodes` are the network's nodes that it
    carries out; they do not count for equality.
    """

    op: str
    precision: str
    in_channels: int = 0
    out_channels: int = 0
    height: int = 1
    width: int = 1
    kernel_height: int = 1
    kernel_width: int = 1
    stride: int = 1
    groups: int = 1
    activation: str = ""
    adds: int = 0
    layout: str = ""
    in_elements: int = 0
    out_elements: int = 0
    nodes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def macs(self) -> int:
        """Count multiply-adds; a multiply-add counts one."""
        taps = self.kernel_height * self.kernel_width
        if self.op == "conv_transpose":
            return self.in_elements * self.out_channels * taps // self.groups
        if self.op in _WEIGHTED or self.op in ("product", "einsum"):
            return self.out_elements * self.in_channels * taps // self.groups
        return self.height * self.in_channels if self.op.startswith(OPAQUE) else 0

    @property
    def weights(self) -> int:
        if self.op not in _WEIGHTED:
            return 0
        return self.in_channels // self.groups * self.out_channels * self.kernel_height * self.kernel_width

    @property
    def family(self) -> tuple[Any, ...]:
        """Return what the kernels have in common between which times may be interpolated: operation,
        precision and form."""
        depthwise = self.groups > 1 and self.groups == self.in_channels
        form = (self.kernel_height, self.kernel_width, self.stride, depthwise, self.groups > 1)
        return (self.op, self.precision, self.layout, *form)

    @property
    def form(self) -> tuple[str, ...]:
        """Return the operation, precision and shape of a convolution's kernel: kernels of another form say
        nothing of its time."""
        if self.op != "conv":
            return self.op, self.precision
        depthwise = self.groups > 1 and self.groups == self.in_channels
        kind = "depthwise" if depthwise else "grouped" if self.groups > 1 else "dense"
        return self.op, self.precision, kind, f"{self.kernel_height}×{self.kernel_width}"

    @property
    def group(self) -> str:
        """Name the kernels that share one correction factor in a device's fit."""
        kind = self.op if self.op in _OWN_GROUPS else "other"
        if kind == "conv":
            kind = "depthwise" if self.groups > 1 else ("pointwise" if self.kernel_height == 1 else "conv")
        return f"{kind}.{self.precision}"


COLUMNS = tuple(name for name in Kernel.__dataclass_fields__ if name != "nodes")


def kernels(network: Network, layouts: Layouts | None = None) -> tuple[Kernel, ...]:
    """Return the kernels of a network in shipped form (batch norms folded, quantizers in place), in execution
    order.

    Where a value changes between 32 and 8 bits, or between layouts, the conversion is a kernel of
    its own. `layouts` are those of the device's runtime.
    """
    return tuple(kernel_of(network, operation) for operation in operations(network, layouts or Layouts()))


def macs(network: Network) -> int:
    """Count the multiply-adds of convolutions, linear layers and matrix products for one example."""
    return sum(kernel.macs for kernel in kernels(network))


def kernel_of(network: Network, operation: Operation) -> Kernel:
    """Return the kernel of one operation of a network."""
    node = operation.node
    if node is None or operation.kind in CONVERSIONS:
        count = elements(operation.shape)
        height, width = _map_size(operation.shape)
        return Kernel(
            operation.kind,
            operation.precision,
            height=height,
            width=width,
            in_elements=count,
            out_elements=count,
            nodes=operation.nodes,
        )
    if node.op in CONVOLUTIONS | TRANSPOSED:
        return _convolution(network, operation, node)
    if node.op == "linear":
        return _linear(network, operation, node)
    if node.op in _PRODUCTS:
        return _product(network, operation, node)
    if is_opaque(node.op):
        return _opaque(network, operation, node)
    if node.op == "einsum":
        return _einsum(network, operation, node)
    height, width = _map_size(node.shape)
    return Kernel(
        "reshape" if node.op in VIEWS else node.op.partition(".")[0],
        operation.precision,
        height=height,
        width=width,
        activation=operation.activation,
        adds=int(operation.adds),
        layout=operation.layout if node.op == "max_pool2d" else "",
        in_elements=sum(elements(network.shape_of(value)) for value in node.inputs),
        out_elements=elements(node.shape),
        nodes=operation.nodes,
    )


def _map_size(shape: Any) -> tuple[int, int]:
    if len(shape) == 4 and not isinstance(shape[0], tuple):
        return shape[2], shape[3]
    return 1, 1


def _convolution(network: Network, operation: Operation, node: Node) -> Kernel:
    source = _read_shape(network, operation, node)
    height, width = _as_image(node.shape[2:])
    kernel_height, kernel_width = _as_image(_weight_shape(network, node)[2:])
    groups = node.args[6] if len(node.args) > 6 else 1
    stride = node.args[3] if len(node.args) > 3 else 1
    return Kernel(
        "conv_transpose" if node.op in TRANSPOSED else "conv",
        operation.precision,
        in_channels=source[1],
        out_channels=node.shape[1],
        height=height,
        width=width,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        stride=stride[0] if isinstance(stride, tuple) else int(stride),  # type: ignore[arg-type]
        groups=int(groups),  # type: ignore[arg-type]
        activation=operation.activation,
        adds=int(operation.adds),
        layout=operation.layout if operation.precision == "fp32" else "",
        in_elements=elements(source),
        out_elements=elements(node.shape),
        nodes=operation.nodes,
    )


def _as_image(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of what may have fewer spatial axes than two, or more."""
    return (sizes[0], 1) if len(sizes) == 1 else (prod(sizes[:-1]), sizes[-1])


def _linear(network: Network, operation: Operation, node: Node) -> Kernel:
    source = network.shape_of(node.inputs[0])
    return Kernel(
        "linear",
        operation.precision,
        in_channels=source[-1],
        out_channels=node.shape[-1],
        height=elements(node.shape[:-1]),
        activation=operation.activation,
        in_elements=elements(source),
        out_elements=elements(node.shape),
        nodes=operation.nodes,
    )


def _product(network: Network, operation: Operation, node: Node) -> Kernel:
    shapes = [network.shape_of(value) for value in node.inputs]
    inner = shapes[0][-1]
    if node.op == "scaled_dot_product_attention":
        keys, values = shapes[1], shapes[2]
        inner = keys[-2] * (keys[-1] + values[-1]) // values[-1]
    return Kernel(
        "product",
        operation.precision,
        in_channels=inner,
        out_channels=node.shape[-1],
        height=elements(node.shape[:-1]),
        in_elements=sum(elements(shape) for shape in shapes),
        out_elements=elements(node.shape),
        nodes=operation.nodes,
    )


def _opaque(network: Network, operation: Operation, node: Node) -> Kernel:
    """Return the kernel of an operation that runs as it is: of its name, and told apart by its shapes.

    Where others wait for it, the kernel has the first one's name.
    """
    names = frozenset(operation.nodes)
    within = [one for one in network.nodes if one.name in names]
    reads = dict.fromkeys(value for one in within for value in one.inputs if value not in names)
    op = next(one.op for one in within if is_opaque(one.op))
    times, weights = weight_uses(network, node)
    height, width = (times, 1) if times else _map_size(node.shape)
    return Kernel(
        f"{OPAQUE}{op.removeprefix('aten::')}",
        operation.precision,
        in_channels=weights,
        height=height,
        width=width,
        in_elements=sum(elements(network.shape_of(value)) for value in reads),
        out_elements=elements(node.shape),
        nodes=operation.nodes,
    )


def _einsum(network: Network, operation: Operation, node: Node) -> Kernel:
    left, _, right = str(node.args[0]).replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, arg in zip(left.split(","), node.args[1], strict=True):  # type: ignore[call-overload]
        shape = network.params[arg.name].shape if isinstance(arg, Param) else network.shape_of(arg.node)
        sizes.update(zip(reversed(term.replace("...", "")), reversed(shape), strict=False))
    return Kernel(
        "einsum",
        operation.precision,
        in_channels=prod(size for letter, size in sizes.items() if letter not in right),
        in_elements=sum(elements(network.shape_of(value)) for value in node.inputs),
        out_elements=elements(node.shape),
        nodes=operation.nodes,
    )


def _read_shape(network: Network, operation: Operation, node: Node) -> Any:
    """Return the shape of the image that a convolution reads, without the zeros that it adds itself."""
    source = node.inputs[0]
    return network.shape_of(network.by_name[source].inputs[0] if source in operation.nodes else source)


def _weight_shape(network: Network, node: Node) -> tuple[int, ...]:
    weight = node.args[1]
    if isinstance(weight, Param):
        return network.params[weight.name].shape
    assert isinstance(weight, Ref)
    shape: tuple[int, ...] = network.shape_of(weight.node)
    return shape


@lru_cache(maxsize=65536)
def elements(shape: Any) -> int:
    """Count how many numbers tensors of this shape, or of these shapes, hold."""
    total = 1
    if shape and isinstance(shape[0], tuple):
        return sum(elements(part) for part in shape)
    for size in shape:
        total *= size
    return total
