"""Several nodes in the place of one layer: built one after the other, then put into the network."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Network, Node, Param, ParamSpec, Ref, Shape, Weights
from autocompress.graph.replace_layer import POINTWISE, ConvArgs, bias_of, output_shape

Array = NDArray[Any]


@dataclass
class Chain:
    """The nodes that take a layer's place, one after the other, and their parameters.

    `shape` is that of the last value; layers compute on images `(1, channels, height, width)`.
    """

    old: Node
    shape: Shape
    channels: int
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, tuple[ParamSpec, Array | None]] = field(default_factory=dict)

    @property
    def last(self) -> Any:
        return Ref(self.nodes[-1].name) if self.nodes else self.old.args[0]

    def add(self, suffix: str, op: str, args: tuple[Any, ...], shape: Shape) -> None:
        name = f"{self.old.name}.{suffix}"
        self.nodes.append(self.old.but(name=name, op=op, args=args, shape=shape, kwargs=()))
        self.shape = shape

    def reshape(self, suffix: str, *shape: int) -> None:
        self.add(suffix, "reshape", (self.last, (-1, *shape)), (1, *shape))

    def swap(self, suffix: str) -> None:
        """Swap axes 1 and 2."""
        one, first, second, *rest = self.shape
        self.add(suffix, "transpose.int", (self.last, 1, 2), (one, second, first, *rest))

    def conv(
        self,
        suffix: str,
        weight_shape: Shape,
        value: Array | None,
        form: ConvArgs = POINTWISE,
        reads: Ref | None = None,
    ) -> None:
        """Add a convolution that reads the last value, or another of the same shape."""
        name = f"{self.old.name}.{suffix}.weight"
        self.weights[name] = ParamSpec(weight_shape), value
        args = (reads or self.last, Param(name), None, form.stride, form.padding, form.dilation, form.groups)
        op = "conv2d.padding" if isinstance(form.padding, str) else "conv2d"
        self.add(suffix, op, args, output_shape(self.shape, weight_shape, form))

    def select(self, suffix: str, order: Array | None) -> None:
        """Take the channels in this order: channel i is channel order[i] of the last value."""
        name = f"{self.old.name}.{suffix}.index"
        self.weights[name] = ParamSpec((self.channels,), "int64", trainable=False), order
        self.add(suffix, "index_select", (self.last, 1, Param(name)), self.shape)

    def to_image(self) -> None:
        """Make a linear layer's rows the pixels of an image."""
        if self.old.op != "linear":
            return
        if len(self.shape) == 4:
            one, height, width, channels = self.shape
            self.add("rows", "permute", (self.last, (0, 3, 1, 2)), (one, channels, height, width))
        elif len(self.shape) == 3:
            self.swap("rows")
            self.reshape("image", *self.shape[1:], 1)
        else:
            self.reshape("image", self.shape[1], 1, 1)

    def from_image(self) -> None:
        if self.old.op != "linear":
            return
        rank = len(self.old.shape)
        if rank == 4:
            self.add("columns", "permute", (self.last, (0, 2, 3, 1)), self.old.shape)
        else:
            self.reshape("columns", *self.shape[1:rank])
            if rank == 3:
                self.swap("tokens")

    def replaced(self, network: Network, weights: Weights | None) -> tuple[Network, Weights | None]:
        """Return the network with the chain, whose last node has the layer's name, and with the layer's
        bias."""
        params, values = dict(network.params), None if weights is None else dict(weights)
        gone = self.old.params[0]
        del params[gone]
        for name, (spec, value) in self.weights.items():
            params[name] = spec
            if values is not None:
                assert value is not None
                values[name] = np.ascontiguousarray(value.reshape(spec.shape), dtype=spec.dtype)
        bias = bias_of(self.old)
        if isinstance(bias, Param):
            self._add_bias(bias, params, values)
        elif isinstance(bias, Ref):
            self._add_computed_bias(bias)
        self.nodes[-1] = self.nodes[-1].but(name=self.old.name)
        nodes = tuple(new for node in network.nodes for new in (self.nodes if node is self.old else [node]))
        if values is not None:
            del values[gone]
        return replace(network, nodes=nodes, params=params), values

    def _add_bias(self, bias: Param, params: dict[str, ParamSpec], values: Weights | None) -> None:
        """Add the bias to the convolution that computes the layer's channels, or else as a sum behind the
        chain."""
        convs = [index for index, node in enumerate(self.nodes) if node.op.startswith("conv2d")]
        last = self.nodes[convs[-1]]
        if last.shape[1] == self.channels:
            self.nodes[convs[-1]] = last.but(args=(*last.args[:2], bias, *last.args[3:]))
            return
        if self.old.op != "linear":
            column = (self.channels, 1, 1)
            params[bias.name] = ParamSpec(column)
            if values is not None:
                values[bias.name] = values[bias.name].reshape(column)
        self.add("sum", "add.Tensor", (self.last, bias), self.shape)

    def _add_computed_bias(self, bias: Ref) -> None:
        """Add a bias that is no parameter, such as parts joined in `forward()`."""
        shape, last = self.shape, self.last
        if self.old.op != "linear":
            self.add("bias", "reshape", (bias, (self.channels, 1, 1)), (self.channels, 1, 1))
            bias = Ref(self.nodes[-1].name)
        self.add("sum", "add.Tensor", (last, bias), shape)
