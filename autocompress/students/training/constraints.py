"""Training that keeps pruned weights at zero and shared weights equal.

A hook on the gradient is enough, whatever the optimiser: where gradients are masked, or summed over the
weights that share a value (Han et al. 2016, arXiv:1510.00149), equal weights get equal steps, momentum
and decay included, and zeros get none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from autocompress.graph.module import GraphModule


class Held:
    """Hold parameters that are held; `release` lets them go, after a last `settle`."""

    def __init__(self, handles: list[RemovableHandle], settle: Callable[[], None] = lambda: None) -> None:
        self._handles, self._settle = handles, settle

    def release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._settle()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def held(student: GraphModule) -> Held:
    """Keep the student to what its network says: layers with a density keep their zeros, layers with a
    codebook keep equal weights equal. A layer that has more values than its codebook is not shared yet."""
    network = student.source_network
    masks: dict[str, NDArray[np.bool_]] = {}
    indices: dict[str, NDArray[np.integer[Any]]] = {}
    for node in network.nodes:
        if node.density == 1 and not node.codebook:
            continue
        weight = student.tensor_named(node.params[0]).detach().cpu().numpy()
        values, index = np.unique(weight, return_inverse=True)
        if len(values) <= node.codebook:
            indices[node.params[0]] = index.reshape(weight.shape)
        elif node.density < 1:
            masks[node.params[0]] = weight != 0
    zeros, shared = hold_zeros(student, masks), hold_shared(student, indices)
    return Held([*zeros._handles, *shared._handles], shared._settle)


def hold_zeros(student: GraphModule, masks: Mapping[str, NDArray[np.bool_]]) -> Held:
    """Set the weights outside the masks to zero and keep them there. Names are the network's."""
    handles = []
    for name, mask in masks.items():
        parameter = student.tensor_named(name)
        kept = torch.from_numpy(np.ascontiguousarray(mask)).to(parameter.device)
        with torch.no_grad():
            parameter.mul_(kept)
        handles.append(parameter.register_hook(_masked(kept)))
    return Held(handles)


def hold_shared(student: GraphModule, indices: Mapping[str, NDArray[np.integer[Any]]]) -> Held:
    """Keep the weights of one index equal, and those that are zero at zero.

    Weights of one index must be equal already. Each takes the sum of their gradients over the square
    root of their number, so that one learning rate suits values that few and that many weights share.
    Equal steps may round unequally in a last bit, so that on release each weight takes the value of
    the first of its index.
    """
    handles = []
    for name, groups in indices.items():
        parameter = student.tensor_named(name)
        flat = torch.from_numpy(np.ascontiguousarray(groups).astype(np.int64).ravel())
        roots = torch.bincount(flat).clamp_min(1).to(parameter.dtype).sqrt()
        flat, roots = flat.to(parameter.device), roots.to(parameter.device)
        handles.append(parameter.register_hook(_pooled(flat, roots, parameter.detach() == 0)))
    return Held(handles, lambda: _equalise(student, indices))


def _equalise(student: GraphModule, indices: Mapping[str, NDArray[np.integer[Any]]]) -> None:
    for name, groups in indices.items():
        parameter = student.tensor_named(name)
        _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
        with torch.no_grad():
            values = parameter.reshape(-1).cpu()[torch.from_numpy(first)]
            parameter.copy_(values[torch.from_numpy(inverse.ravel())].reshape(parameter.shape))


def _masked(kept: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a hook that masks the gradient; the parameter may have moved to a GPU since."""
    return lambda gradient: gradient * kept.to(gradient.device)


def _pooled(flat: Tensor, roots: Tensor, fixed: Tensor) -> Callable[[Tensor], Tensor]:
    def pooled(gradient: Tensor) -> Tensor:
        index, scale, zero = (tensor.to(gradient.device) for tensor in (flat, roots, fixed))
        sums = torch.zeros_like(scale).index_add_(0, index, gradient.reshape(-1))
        return (sums / scale)[index].reshape(gradient.shape).masked_fill(zero, 0.0)

    return pooled
