"""Closed-form compensation: what layers do after others were changed, fitted to what the teacher's did.

Student and teacher run over the same images. Layer by layer, in execution order, each layer of the
student whose input is no longer the teacher's gets the weight that best reproduces the teacher's
output from the input it now has: ridge regression towards the weight it had, from the Gram matrix
of its input rows (He et al. 2017, arXiv:1707.06168, and Luo et al. 2017, arXiv:1707.06342, for
the layer after the pruned one). Batch norms on the way take the statistics they meet, and binary values
the step of least error, so every layer is fitted to the network as it will be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.graph.module import GraphModule
from autocompress.graph.network import BINARIZE, Network, Node
from autocompress.graph.replace_layer import channel_axis, groups_of
from autocompress.graph.straight_through import best_binary_step
from autocompress.problem.splits import Split
from autocompress.students.calibration.layer_inputs import (
    Values,
    batch_that_fits,
    bias_tensor,
    layer_outputs,
    layer_rows,
    matrices,
    product,
    solvable_layers,
    weight_of,
)
from autocompress.transforms.families.low_bit import fit_steps

ROWS = 8192
RIDGE = 0.1
SINGLE_RIDGE = 0.01

KeptChannels = Mapping[str, NDArray[np.bool_]]
"""Layer → which of the teacher's output channels the student has; without an entry all of them."""


def compensate(
    student: GraphModule,
    teacher: GraphModule,
    examples: Split,
    kept: KeptChannels,
    ridge: float = RIDGE,
    rows: int = ROWS,
    fixed: Collection[str] = (),
) -> tuple[str, ...]:
    """Change weights and biases of `student` in place; return the names of the layers it fitted.

    Layers named in `fixed` stay as they are. The examples run as one batch, fewer of them where an activation
    would exceed 256 MiB. The penalty is `ridge` times the mean squared input times the squared change of the
    weight. Running statistics of batch norms become those of the examples. The teacher is not modified.
    """
    network, reference = student.source_network, teacher.source_network
    layers = tuple(node for node in changed_layers(network, reference, kept) if node.name not in fixed)
    if not layers and all(node.op != BINARIZE for node in network.nodes):
        return ()
    images, _ = next(iter(examples.batches(batch_that_fits(network, reference))))
    targets = layer_outputs(teacher, layers, images, rows)

    def fit(node: Node, values: Values) -> None:
        if node.op == BINARIZE:
            student.tensor_named(node.params[0]).fill_(best_binary_step(values[node.inputs[0]]))
        if node.name in targets:
            fit_layer(student, node, values, targets.pop(node.name), kept, ridge, rows)

    momentum = student.batch_norm_momentum
    student.train()
    student.batch_norm_momentum = 1.0
    try:
        with torch.no_grad():
            student.forward_visiting(images, fit)
    finally:
        student.batch_norm_momentum = momentum
        student.eval()
    return tuple(node.name for node in layers)


def changed_layers(network: Network, reference: Network, kept: KeptChannels) -> tuple[Node, ...]:
    """Return the layers of both networks that are to compute the same outputs from inputs that are not the
    same, those with zeros to keep and those that were merged, whose weights have another shape, aside."""
    changed = changed_values(network, reference)
    known = {node.name: node for node in solvable_layers(reference)}
    return tuple(
        node
        for node in solvable_layers(network)
        if node.name in known
        and node.density == 1
        and (changed.intersection(node.inputs) or _reads_another(node, known[node.name], network, reference))
        and _outputs_match(node, known[node.name], kept)
    )


def _reads_another(node: Node, old: Node, network: Network, reference: Network) -> bool:
    """Return whether the layer, with weights of the same shape, reads another value, as behind a dropped
    block."""
    shapes = [of.params[one.params[0]].shape for one, of in ((node, network), (old, reference))]
    return node.inputs != old.inputs and shapes[0] == shapes[1]


def changed_values(network: Network, reference: Network) -> frozenset[str]:
    """Return the names of the nodes that compute something else than in the reference, or from something
    else."""
    changed: set[str] = set()
    for node in network.nodes:
        old = reference.by_name.get(node.name)
        same = old is not None and node.but(bits=old.bits, codebook=old.codebook) == old
        same = same and all(network.params[name] == reference.params[name] for name in node.params)
        if not same or changed.intersection(node.inputs):
            changed.add(node.name)
    return frozenset(changed)


def _outputs_match(node: Node, old: Node, kept: KeptChannels) -> bool:
    axis = channel_axis(node)
    if (node.op == "linear") != (old.op == "linear") or len(node.shape) != len(old.shape):
        return False
    count = int(kept[node.name].sum()) if node.name in kept else old.shape[axis]
    rest = [size for index, size in enumerate(node.shape) if index != axis % len(node.shape)]
    old_rest = [size for index, size in enumerate(old.shape) if index != axis % len(old.shape)]
    return count == node.shape[axis] and rest == old_rest


def fit_layer(
    student: GraphModule,
    node: Node,
    values: Values,
    target: Tensor,
    kept: KeptChannels,
    ridge: float = RIDGE,
    limit: int = ROWS,
) -> None:
    """Fit one layer to `target`, its output in the teacher as of `layer_outputs`; change it in place.

    `values` holds the input that the layer has in the student, for the images of the target.
    """
    network, groups = student.source_network, groups_of(node)
    weight, bias = weight_of(student, node), bias_tensor(student, node)
    rows = layer_rows(student, node, values[node.inputs[0]], limit)
    keep = kept.get(node.name)
    target = target if keep is None else target[:, torch.from_numpy(keep)]
    error = target - product(rows, matrices(weight, groups)) - (0 if bias is None else bias)
    free_mean = bias is not None or is_normalised(network, node)
    row_mean, error_mean = rows.mean(0), error.mean(0)
    if free_mean:
        rows, error = rows - row_mean, error - error_mean
    change = least_squares(rows, error.reshape(len(error), groups, -1), ridge)
    weight += change.reshape(weight.shape)
    refit_step(student, node)
    if bias is not None:
        bias += error_mean - product(row_mean[None], change)[0]


def refit_step(module: GraphModule, node: Node) -> None:
    """Fit the steps of a layer whose weights are on a grid to the weights as they are now."""
    if node.grid is not None:
        weight = module.tensor_named(node.args[1].name).detach().cpu().numpy()
        with torch.no_grad():
            steps = torch.from_numpy(fit_steps(weight, node.grid.form))
            module.tensor_named(node.grid.step).copy_(steps)


def is_normalised(network: Network, node: Node) -> bool:
    """Return whether a batch norm alone reads the layer, so that the mean of its output does not matter."""
    users = network.users[node.name]
    return bool(users) and all(network.by_name[name].op == "batch_norm" for name in users)


def least_squares(rows: Tensor, error: Tensor, ridge: float) -> Tensor:
    """Return the `(groups, out, fan_in)` matrices C with least |error - rows · Cᵀ|² + penalty · |C|² per
    group.

    `rows` is `(n, groups, fan_in)`, `error` `(n, groups, out)`. The penalty is `ridge` times n times
    the mean square of the rows of the group. Solved in single precision where the ridge is at least
    `SINGLE_RIDGE`, which is enough for it, else in double.
    """
    x, y = rows.permute(1, 0, 2), error.permute(1, 0, 2)
    penalty = ridge * (x.square().sum((1, 2)) / x.shape[-1]).clamp_min(1e-12)
    if x.shape[1] < x.shape[2]:  # By the matrix of the rows, which is the smaller one: the same solution.
        return _solved(x @ x.mT, y, penalty, ridge).mT @ x
    return _solved(x.mT @ x, x.mT @ y, penalty, ridge).mT


def _solved(gram: Tensor, right: Tensor, penalty: Tensor, ridge: float) -> Tensor:
    """Return (gram + penalty · 1)⁻¹ · right for each group; change `gram`."""
    gram.diagonal(dim1=1, dim2=2).add_(penalty[:, None])
    if ridge >= SINGLE_RIDGE:
        factor, info = torch.linalg.cholesky_ex(gram)
        if not info.any():
            return torch.cholesky_solve(right, factor)
    return torch.linalg.solve(gram.double(), right.double()).to(right.dtype)
