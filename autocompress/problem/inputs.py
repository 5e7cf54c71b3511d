"""What a network is called with, read from its first layer, or from an example that it brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.problem.specs import InputSize

_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def first_channels(module: nn.Module, name: Any = None) -> int | None:
    """Return the channels that the first 2-D convolution reads; `name` is that layer's, where it is known."""
    layers = dict(module.named_modules())
    known = layers.get(name) if isinstance(name, str) else None
    for layer in (known, *layers.values()):
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
    return None


def shape_of_size(module: nn.Module, size: InputSize) -> tuple[int, ...]:
    """Return the shape of one example of this size: one side, all sides, or these behind the channels.

    The first convolution tells how many axes and channels there are; two axes and three channels where there
    is none. A network of linear layers alone takes as many numbers as are given.
    """
    sides = (size,) if isinstance(size, int) else tuple(size)
    if not 1 <= len(sides) <= 4 or min(sides) < 1:
        raise InputError(f"the input size {size} is none", fix="give 64, (32, 96) or (3, 32, 96)")
    first = _first_layer(module)
    if first is None or isinstance(first, nn.Linear):
        if first is not None and sides[-1] == first.in_features:
            return sides
        axes, channels = 2, 3
    else:
        axes, channels = len(first.kernel_size), first.in_channels
    if len(sides) == axes + 1:
        return sides
    if len(sides) == 1:
        return (channels, *sides * axes)
    if len(sides) == axes:
        return (channels, *sides)
    raise InputError(
        f"the input size {size} has {len(sides)} numbers",
        where=type(module).__name__,
        why=f"the first convolution reads {channels} channels of {axes} axes",
        fix=f"give {axes} numbers, or {axes + 1} with the channels first",
    )


def shape_without_size(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of one example where the layers leave no choice: of linear layers alone."""
    first = _first_layer(module)
    return (first.in_features,) if isinstance(first, nn.Linear) else None


def _first_layer(module: nn.Module) -> Any:
    """Return the first convolution; the first linear layer of a network that has neither those nor
    embeddings."""
    layers = list(module.modules())
    for layer in layers:
        if isinstance(layer, _CONVOLUTIONS):
            return layer
    if any(isinstance(layer, (nn.Embedding, nn.EmbeddingBag, nn.RNNBase)) for layer in layers):
        return None
    return next((layer for layer in layers if isinstance(layer, nn.Linear)), None)


def example_of(module: nn.Module) -> Any:
    """Return what the module itself says that it is called with: as Lightning's and Hugging Face's do."""
    for name in ("example_input_array", "dummy_inputs"):
        found = getattr(module, name, None)
        if isinstance(found, Tensor) or (isinstance(found, (tuple, list, Mapping)) and len(found) > 0):
            return found
    return None
