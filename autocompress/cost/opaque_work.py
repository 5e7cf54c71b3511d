"""How much an opaque operation computes, as far as its name and its shapes tell."""

from __future__ import annotations

from math import prod
from typing import Any

from autocompress.graph.network import Network, Node, Param, Ref
from autocompress.graph.operations import RECURRENT, is_opaque, short_name

_CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})
_OVER_INPUT = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_OVER_OUTPUT = frozenset({"conv1d", "conv2d", "conv3d", "convolution", "deform_conv2d"})
_PRODUCTS = frozenset("mm mv dot vdot inner bmm matmul addmm addmv baddbmm addbmm".split())
_MAKE_COMPLEX = frozenset({"view_as_complex", "complex", "polar"})
_TO_REAL = ("fft_irfft", "fft_hfft", "istft", "fft_fftfreq", "fft_rfftfreq")
_MAKE_REAL = frozenset({"view_as_real", "abs", "angle", "real", "imag", "isfinite", "isnan", "isinf"})


def weight_uses(network: Network, node: Node) -> tuple[int, int]:
    """Return (times, weights): an operation's multiply-adds are their product for one example.

    Counts recurrent layers (each weight once a step), convolutions of all ranks and directions (each weight
    once a position) and products of matrices; (0, 0) for everything else.
    """
    name = short_name(node.op)
    shapes = [_shape(network, arg) for arg in node.args if isinstance(arg, (Ref, Param))]
    if name in RECURRENT | _CELLS:
        matrices = (network.params[one].shape for one in node.params)
        return prod(shapes[0][:-1]), sum(prod(shape) for shape in matrices if len(shape) > 1)
    if name in _OVER_INPUT or (name == "convolution" and _is_transposed(node)):
        return prod(shapes[0][2:]), prod(shapes[1])
    if name in _OVER_OUTPUT:
        return prod(node.shape[2:]), prod(shapes[1])
    if name in _PRODUCTS:
        left = shapes[1] if name in ("addmm", "addmv", "baddbmm", "addbmm") else shapes[0]
        return prod(node.shape), left[-1]
    return 0, 0


def _is_transposed(node: Node) -> bool:
    return len(node.args) > 6 and node.args[6] is True


def _shape(network: Network, arg: Ref | Param) -> Any:
    return network.params[arg.name].shape if isinstance(arg, Param) else network.shape_of(arg.node)


def complex_values(network: Network) -> frozenset[str]:
    """Return the names of the values that are complex numbers.

    Files hold none: the operation that makes real numbers of them computes them too.
    """
    found: set[str] = set()
    for node in network.nodes:
        name = short_name(node.op)
        stays = any(one in found for one in node.inputs) and not _makes_real(name)
        if stays or (is_opaque(node.op) and _makes_complex(name)):
            found.add(node.name)
    return frozenset(found)


def _makes_complex(name: str) -> bool:
    transforms = name.lstrip("_").startswith(("fft", "stft")) and not name.endswith("shift")
    return name in _MAKE_COMPLEX or (transforms and not _makes_real(name))


def _makes_real(name: str) -> bool:
    return name in _MAKE_REAL or name.startswith(_TO_REAL) or name.endswith("c2r")
