"""Network → nn.Module: a module that runs the operations of a network one after the other.

Parameters keep the teacher's names, so a student's state dict reads like the teacher's. Layers of
8 bits and values with a quantizer compute with simulated quantization whose gradient passes
straight through (Bengio et al. 2013, arXiv:1308.3432), so the same module is calibrated, trained
and compared with the exported file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.graph.levels import ACTIVATION_LEVELS, LEAST_SCALE, WEIGHT_LEVELS
from autocompress.graph.network import BINARIZE, INPUT, Network, Node, Param, Quantizer, Ref, Weights
from autocompress.graph.operators import dtype_named, implementation
from autocompress.graph.straight_through import learned_affine, on_grid

USUAL_MOMENTUM = 0.1

Inputs = Tensor | Sequence[Tensor]

Values = dict[str, Any]
"""Value name → tensor, several of them, or a number."""


def build(network: Network, weights: Weights) -> GraphModule:
    """Build a fresh module in eval mode; the arrays are copied.

    Raises KeyError for an operation that `graph.operators` knows no function for, and for a missing
    parameter.
    """
    return GraphModule(network, weights).eval()


class GraphModule(nn.Module):
    """Run `source_network`; called as the teacher is, return what it returns.

    In training mode batch norms use and update batch statistics: with the network's own momentum,
    or with `batch_norm_momentum` where that is set.
    """

    def __init__(self, network: Network, weights: Weights) -> None:
        super().__init__()
        self.source_network = network
        self.batch_norm_momentum: float | None = None
        self._last_use = _last_uses(network)
        self._functions = {node.name: implementation(node.op) for node in network.nodes}
        self._learned: dict[Quantizer, nn.Parameter] = {}
        for name, spec in network.params.items():
            value = torch.from_numpy(np.array(weights[name]))
            if tuple(value.shape) != tuple(spec.shape):
                raise KeyError(f"{name}: weights have shape {tuple(value.shape)}, network says {spec.shape}")
            trainable = spec.trainable and value.is_floating_point()
            _register(self, name, nn.Parameter(value) if trainable else value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        network = self.source_network
        if network.signature is None:
            (x,) = (*args, *kwargs.values())
            return self._run((x,), keep={network.output})[network.output]
        tensors = network.signature.tensors_of(args, kwargs)
        values = self._run(tensors, keep=set(network.outputs))
        return network.signature.result_of([values[name] for name in network.outputs])

    def outputs_of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return all outputs of the network, in order, for all of its inputs, in order."""
        values = self._run(tensors, keep=set(self.source_network.outputs))
        return [values[name] for name in self.source_network.outputs]

    def forward_values(self, x: Inputs, names: Collection[str]) -> dict[str, Tensor]:
        """Return the values computed by the named nodes (`INPUT` is `x` itself); several inputs come in
        order."""
        return self._run(_all_of(x), keep=set(names))

    def forward_visiting(self, x: Inputs, visit: Callable[[Node, Values], None]) -> Tensor:
        """Run like `forward`, of one output; before each node `visit` is called with it and with the values
        at hand.

        What `visit` changes in place, parameters above all, counts from that node on.
        """
        output = self.source_network.output
        return self._run(_all_of(x), keep={output}, visit=visit)[output]

    def learn_quantizers(self) -> None:
        """Make the scales of all quantizers parameters, learned like steps (LSQ, arXiv:1902.08153), until
        `settle_quantizers`. Values with equal quantizers share one."""
        network = self.source_network
        found = [
            network.quantizer_of(value) for value in (INPUT, *network.by_name) if not self._is_binary(value)
        ]
        self._learned = {one: nn.Parameter(torch.tensor([one.scale])) for one in found if one is not None}
        self.quantizer_scales = nn.ParameterList(self._learned.values())

    def settle_quantizers(self) -> None:
        """Write what was learned into `source_network`; zero points stay as they are."""
        settled = {
            one: Quantizer(max(abs(float(scale.detach())), LEAST_SCALE), one.zero_point)
            for one, scale in self._learned.items()
        }

        def new(quantizer: Quantizer | None) -> Quantizer | None:
            return None if quantizer is None else settled.get(quantizer, quantizer)

        network = self.source_network
        nodes = [
            node.but(quantizer=self._settled_step(node) or new(node.quantizer)) for node in network.nodes
        ]
        self.source_network = replace(network.with_nodes(nodes), input_quantizer=new(network.input_quantizer))
        self._learned = {}
        self.quantizer_scales = nn.ParameterList()

    def _is_binary(self, value: str) -> bool:
        return value in self.source_network.by_name and self.source_network.by_name[value].op == BINARIZE

    def _settled_step(self, node: Node) -> Quantizer | None:
        """Return the quantizer of a binary value, whose scale is its learned step."""
        if node.op != BINARIZE or node.quantizer is None:
            return None
        return Quantizer.binary(float(self.tensor_named(node.params[0]).detach()))

    def tensor_named(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(owner), leaf)
        return tensor

    def export_weights(self) -> Weights:
        """Return every parameter and buffer of the network as a fresh numpy array."""
        return {
            name: self.tensor_named(name).detach().cpu().contiguous().numpy().copy()
            for name in self.source_network.params
        }

    def _run(
        self,
        tensors: Sequence[Tensor],
        keep: Collection[str],
        visit: Callable[[Node, Values], None] | None = None,
    ) -> dict[str, Tensor]:
        names = [one.name for one in self.source_network.inputs]
        values: Values = dict(zip(names, tensors, strict=True))
        values[INPUT] = self.rounded_input(tensors[0])
        for _ in self.steps(values, keep=keep, visit=visit):
            pass
        return {name: values[name] for name in keep}

    def steps(
        self,
        values: Values,
        start: int = 0,
        keep: Collection[str] = (),
        visit: Callable[[Node, Values], None] | None = None,
    ) -> Iterator[tuple[int, Node]]:
        """Run the nodes from number `start` on over `values`, which holds what they read (`INPUT` as it is
        after the network's input quantizer); after each its number and itself are given.

        `values` is changed: each result is added and, unless it is to be kept, removed after its last use.
        """
        tensors = {name: self.tensor_named(name) for name in self.source_network.params}
        for index in range(start, len(self.source_network.nodes)):
            node = self.source_network.nodes[index]
            if visit is not None:
                visit(node, values)
            values[node.name] = self._compute(node, values, tensors)
            yield index, node
            for name in self._last_use.get(index, ()):
                if name not in keep:
                    values.pop(name, None)

    def rounded_input(self, x: Tensor) -> Tensor:
        """Return the input as the network reads it: after its input quantizer."""
        rounded: Tensor = self._fake_quantize(x, self.source_network.input_quantizer)
        return rounded

    def _compute(self, node: Node, values: Values, tensors: dict[str, Tensor]) -> Any:
        if node.op == "batch_norm" and self.training:
            node = self._training_batch_norm(node)
        args = [resolve(arg, values, tensors) for arg in node.args]
        if node.grid is not None:
            args[1] = on_grid(args[1], tensors[node.grid.step], node.grid.form)
        elif node.bits == 8 and self.source_network.quantizer_of(node.inputs[0]) is not None:
            args[1] = fake_quantize_weight(args[1])
        kwargs = {key: resolve(value, values, tensors) for key, value in node.kwargs}
        result = self._functions[node.name](*args, **kwargs)
        return result if node.op == BINARIZE else self._fake_quantize(result, node.quantizer)

    def _fake_quantize(self, value: Any, quantizer: Quantizer | None) -> Any:
        if quantizer is None:
            return value
        value, zero = value.float(), quantizer.zero_point
        scale = self._learned.get(quantizer)
        if scale is None and not torch.is_grad_enabled():
            return _rounded(value, quantizer)
        if scale is None:
            return torch.fake_quantize_per_tensor_affine(value, quantizer.scale, zero, 0, ACTIVATION_LEVELS)
        return learned_affine(value, scale, zero, ACTIVATION_LEVELS)

    def _training_batch_norm(self, node: Node) -> Node:
        own = node.args[6] or USUAL_MOMENTUM  # 0 is what a cumulative average is traced as.
        momentum = own if self.batch_norm_momentum is None else self.batch_norm_momentum
        return replace(node, args=(*node.args[:5], True, momentum, *node.args[7:]))


def zero_inputs(network: Network, batch: int) -> list[Tensor]:
    """Return zeros of the shapes and types of all inputs."""
    return [
        torch.zeros((batch, *one.shape[1:]) if one.has_batch else one.shape, dtype=getattr(torch, one.dtype))
        for one in network.inputs
    ]


def _all_of(x: Inputs) -> Sequence[Tensor]:
    return (x,) if isinstance(x, Tensor) else x


def resolve(arg: Any, values: Values, tensors: dict[str, Tensor]) -> Any:
    """Return the argument as torch takes it: references looked up, sequences as lists, dtypes by name."""
    if isinstance(arg, Ref):
        return values[arg.node]
    if isinstance(arg, Param):
        return tensors[arg.name]
    if isinstance(arg, tuple):
        return [resolve(item, values, tensors) for item in arg]
    return dtype_named(arg) if isinstance(arg, str) else arg


def _last_uses(network: Network) -> dict[int, tuple[str, ...]]:
    """Return for each node's index the values that nothing after it reads."""
    last: dict[str, int] = {}
    for index, node in enumerate(network.nodes):
        last[node.name] = index
        last.update(dict.fromkeys(node.inputs, index))
    uses: dict[int, tuple[str, ...]] = {}
    for name, index in last.items():
        uses[index] = (*uses.get(index, ()), name)
    return uses


def _register(root: nn.Module, name: str, value: Tensor) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value)


def _rounded(value: Tensor, quantizer: Quantizer) -> Tensor:
    """Return the numbers of `fake_quantize_per_tensor_affine`, many times faster, but without gradients."""
    inverse = float(1 / np.float32(quantizer.scale))
    low, high = -quantizer.zero_point, ACTIVATION_LEVELS - quantizer.zero_point
    return value.mul(inverse).round_().clamp_(low, high).mul_(quantizer.scale)


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """Quantize to symmetric 8 bits per output channel (axis 0), scale = largest magnitude / 127."""
    weight = weight.float()
    scale = (weight.detach().abs().flatten(1).amax(1) / WEIGHT_LEVELS).clamp_min(LEAST_SCALE)
    zero = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -WEIGHT_LEVELS, WEIGHT_LEVELS)
