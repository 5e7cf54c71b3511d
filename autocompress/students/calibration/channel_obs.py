"""Optimal brain surgeon on channels: who leaves is decided together with what the others then do.

A channel's removal costs what the layers that read it cannot make up for. With the second moments A of such
a layer's input rows, its weight W and H = A⁻¹, taking the columns c away and changing the others optimally
raises the squared output error by tr(W_c (H_cc)⁻¹ W_cᵀ) (Hassibi and Stork 1992, "Second order derivatives
for network pruning: optimal brain surgeon"; Dong et al. 2017, arXiv:1705.07565, for the error of one layer).
Not all errors of an output matter alike: with the curvature G of the network's loss by the layer's outputs,
the loss rises by ½ tr(G W_c (H_cc)⁻¹ W_cᵀ), since A ⊗ G is the layer's part of the Hessian (K-FAC, Martens
and Grosse 2015, arXiv:1503.05671; for pruning Wang et al. 2019, arXiv:1905.05934). Channels leave one by one,
the cheapest first, and after each one W and H become those of the compensated layer, so that of two channels
that say the same only one is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autocompress.graph.coupling import Coupling, Group
from autocompress.graph.module import GraphModule
from autocompress.graph.network import Network, Node, Weights
from autocompress.graph.replace_layer import groups_of
from autocompress.problem.tasks.task import Task
from autocompress.students.calibration.importance import output_curvature
from autocompress.students.calibration.layer_inputs import Moments, collect_moments, solvable_layers
from autocompress.transforms.families.prune import atom_scores

DAMPING = 0.01
"""Added to the diagonal of second moments, as a share of its mean."""

MEMORY_BYTES = 2**29

LARGEST_OUT = 4096
"""Errors of a layer with more outputs count alike: its curvature would be a larger matrix."""

Array = NDArray[np.float64]


@dataclass
class Reader:
    """A layer that reads the channels: `weight` `(out, fan_in)`, `second` `(fan_in, fan_in)`, the columns of
    each channel, `(channels, columns each)`, and the `curvature` by its outputs, `(out, out)`, or `(1, 1)` if
    they are taken for alike."""

    weight: Array
    second: Array
    columns: NDArray[np.int64]
    curvature: Array


def removal_losses(readers: Iterable[Reader], channels: int, damping: float = DAMPING) -> Array:
    """Return for each channel the summed loss once it leaves, `(channels,)`: the order of leaving is
    ascending.

    A reader's loss is half the mean squared error of its output in the metric of its curvature, with the rest
    compensated. The channels of an earlier removal count as gone.
    """
    states = [_State(reader, damping) for reader in readers]
    losses = np.zeros(channels)
    alive = np.ones(channels, dtype=np.bool_)
    total = 0.0
    for _ in range(channels):
        costs = np.sum([state.costs() for state in states], axis=0)
        leaves = int(np.argmin(np.where(alive, costs, np.inf)))
        total += max(0.0, float(costs[leaves]))
        losses[leaves], alive[leaves] = total, False
        for state in states:
            state.remove(leaves)
    return losses


class _State:
    """A reader while channels leave it."""

    def __init__(self, reader: Reader, damping: float) -> None:
        self.columns = reader.columns
        root = np.linalg.cholesky(_damped(reader.curvature, damping)).T
        self.weight = root @ reader.weight if len(root) > 1 else root * reader.weight.astype(np.float64)
        self.inverse = np.linalg.inv(_damped(reader.second, damping))

    def costs(self) -> Array:
        """Return what is lost if one channel leaves, `(channels,)`."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        weights = self.weight[:, self.columns].transpose(1, 2, 0)
        lost = np.einsum("cko,cko->c", weights, np.linalg.solve(blocks, weights))
        return lost / 2

    def remove(self, channel: int) -> None:
        gone = self.columns[channel]
        step = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[gone])
        self.weight -= self.weight[:, gone] @ step
        self.inverse -= self.inverse[:, gone] @ step
        self.inverse[gone], self.inverse[:, gone], self.weight[:, gone] = 0.0, 0.0, 0.0
        self.inverse[gone, gone] = 1.0


def _damped(matrix: Array, damping: float) -> Array:
    size = len(matrix)
    level = damping * max(float(np.trace(matrix)) / size, 1e-30)
    return matrix.astype(np.float64) + level * np.eye(size)


def obs_importance(
    coupling: Coupling,
    module: GraphModule,
    images: Sequence[Tensor],
    groups: Iterable[Group],
    task: Task | None = None,
) -> Weights:
    """Return the losses of the channels of `groups` as importances: parameter → one number per output
    channel.

    `module` computes `coupling.network`, and gives the outputs of the task, by default
    classes. Batches of images `(N, C, H, W)` are
    read twice per group, or less often where the matrices fit into memory together. A group that no
    layer reads by a dense weight of its own is judged by its squared weights. Raises ValueError without
    images.
    """
    weights = module.export_weights()
    found: Weights = {}
    for part in _that_fit(coupling.network, [(group, _readers(coupling, group)) for group in groups]):
        nodes = {node.name: node for _, readers in part for node, _ in readers}
        moments = collect_moments(module, nodes.values(), images)
        curvature = output_curvature(module, nodes.values(), images, LARGEST_OUT, task)
        for group, readers in part:
            losses = _losses(group, readers, weights, moments, curvature)
            place = next(place for place in group.places if place.axis == 0)
            shape = weights[place.param].shape[:1]
            found.setdefault(place.param, np.zeros(shape))[place.indices[:, 0]] = losses
    return found


Readers = list[tuple[Node, NDArray[np.int64]]]


def _readers(coupling: Coupling, group: Group) -> Readers:
    """Return the layers that read the group by dense weights, and the positions of each channel on that
    axis."""
    network = coupling.network
    layers = {node.params[0]: node for node in solvable_layers(network) if groups_of(node) == 1}
    return [
        (layers[place.param], place.indices)
        for place in group.places
        if place.axis == 1 and place.param in layers
    ]


def _losses(
    group: Group,
    readers: Readers,
    weights: Weights,
    moments: Mapping[str, Moments],
    curvature: Mapping[str, Array],
) -> Array:
    if not readers:
        return atom_scores(group, {name: np.square(value) for name, value in weights.items()})
    described = []
    for node, indices in readers:
        weight = weights[node.params[0]]
        taps = int(np.prod(weight.shape[2:]))
        columns = (indices[:, :, None] * taps + np.arange(taps)).reshape(len(indices), -1)
        matrix, second = weight.reshape(len(weight), -1), moments[node.name].second[0]
        described.append(Reader(matrix, second, columns, curvature[node.name]))
    return removal_losses(described, group.size)


def _that_fit(
    network: Network, groups: Iterable[tuple[Group, Readers]]
) -> Iterator[list[tuple[Group, Readers]]]:
    """Yield the groups in lists whose matrices together keep `MEMORY_BYTES`, or of one group."""
    part: list[tuple[Group, Readers]] = []
    used = 0
    for group, readers in groups:
        shapes = [network.params[node.params[0]].shape for node, _ in readers]
        size = sum(
            8 * (int(np.prod(inputs)) ** 2 + (out**2 if out <= LARGEST_OUT else 1)) for out, *inputs in shapes
        )
        if part and used + size > MEMORY_BYTES:
            yield part
            part, used = [], 0
        part.append((group, readers))
        used += size
    if part:
        yield part
