"""The operations that are known one by one, and what is true of each: one table, read by every stage.

Coupling asks how an operation treats the axes of its input, quantization whether 8-bit values pass
through it, pricing which of its forms a runtime executes, and export whether it may be written on the
integers themselves. They all read it here, so that what is priced is what is exported.

An operation without a row is an opaque node: its `op` is the full name of a registered operator,
`namespace::name.overload`, which runs as it is and locks the channels that it touches. `binarize` is our own;
only students have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from autocompress.graph.network import BINARIZE


class Axes(Enum):
    """Say how the axes of an output follow from those of its inputs."""

    POINTWISE = "one input; an element of the output depends on the element at the same place"
    BINARY = "elementwise over inputs that are broadcast to one shape"
    POOLING = "works on the last axes, each channel by itself; axis 1 is kept as it is"
    REDUCTION = "axes that are named leave"
    RESHAPE = "the same numbers in the same order under another shape"
    OTHER = "in a way of its own"


class EightBits(Enum):
    """Say what becomes of an operation whose inputs are rounded to 8 bits."""

    FLOATS = "reads floats"
    MOVES = "moves data, so it runs on the integers as they are and its output has its input's quantizer"
    JOINS = "reads and writes integers where that keeps a chain of 8-bit layers in integers"
    PRODUCT = "reads integers, all of its inputs being such, and writes floats"
    LAYER = "computes in integers where its own bits say so"


@dataclass(frozen=True, slots=True)
class KnownOperation:
    """One row of the table.

    `splits`: the output has several parts. `concatenates`: its inputs lie side by side in the output, so
    that it moves data where all have the same quantizer. `is_view`: costs no memory and, on its own, no
    time. `rounds_first`: a runtime rounds what it moves before it moves it. `keeps_sign`: the output has no
    number below zero where no input has. `never_negative`: it never has. `clips`: rounding to integers can
    do the same. `fuses`: a float layer takes it along. `any_layout`: works on images with their channels
    last as well as first. `compares`: its output holds truth values.
    """

    name: str
    axes: Axes = Axes.OTHER
    in_8_bits: EightBits = EightBits.FLOATS
    splits: bool = False
    concatenates: bool = False
    is_view: bool = False
    rounds_first: bool = False
    keeps_sign: bool = False
    never_negative: bool = False
    clips: bool = False
    fuses: bool = False
    any_layout: bool = False
    compares: bool = False

    @property
    def moves_data(self) -> bool:
        return self.in_8_bits is EightBits.MOVES

    def named(self, names: str) -> Iterator[KnownOperation]:
        """Yield rows like this one under each of these names."""
        return (replace(self, name=name) for name in names.split())


_LAYER = KnownOperation("", in_8_bits=EightBits.LAYER)
_PRODUCT = KnownOperation("", in_8_bits=EightBits.PRODUCT)
_MOVE = KnownOperation("", in_8_bits=EightBits.MOVES, keeps_sign=True)
_TURN = replace(_MOVE, rounds_first=True)
_VIEW = replace(_TURN, is_view=True)
_RESHAPE = replace(_VIEW, axes=Axes.RESHAPE)
_SPLIT = replace(_MOVE, splits=True)
_POINTWISE = KnownOperation("", Axes.POINTWISE, any_layout=True)
_ACTIVATION = replace(_POINTWISE, in_8_bits=EightBits.JOINS)
_TRUTH = KnownOperation("", Axes.POINTWISE, compares=True)
_BINARY = KnownOperation("", Axes.BINARY, any_layout=True)
_JOINING = replace(_BINARY, in_8_bits=EightBits.JOINS)
_POOL = KnownOperation("", Axes.POOLING)
_AVERAGE = replace(_POOL, in_8_bits=EightBits.JOINS, keeps_sign=True)
_REDUCTION = KnownOperation("", Axes.REDUCTION)
_OTHER = KnownOperation("")
_CONCATENATION = replace(_OTHER, in_8_bits=EightBits.JOINS, concatenates=True, keeps_sign=True)

_ROWS: tuple[Iterator[KnownOperation], ...] = (
    _LAYER.named("conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding linear"),
    _PRODUCT.named("matmul bmm"),
    _OTHER.named("conv_transpose1d conv_transpose2d.input conv_transpose3d.input"),
    _OTHER.named("addmm scaled_dot_product_attention"),
    _OTHER.named("batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize"),
    # Activations.
    replace(_ACTIVATION, never_negative=True, clips=True, fuses=True).named("relu relu6"),
    replace(_ACTIVATION, clips=True, fuses=True).named("hardtanh"),
    replace(_ACTIVATION, never_negative=True, fuses=True).named("sigmoid hardsigmoid"),
    replace(_ACTIVATION, fuses=True).named("tanh leaky_relu hardswish"),
    _ACTIVATION.named("silu gelu"),
    replace(_POINTWISE, never_negative=True).named(BINARIZE),
    replace(_POINTWISE, fuses=True).named("clamp clamp_min clamp_max"),
    _POINTWISE.named(
        """elu mish softplus log_sigmoid selu celu prelu exp log sqrt rsqrt neg abs square reciprocal erf sin
        cos pow.Tensor_Scalar floor round to.dtype dropout"""
    ),
    _OTHER.named("softmax.int _softmax log_softmax.int cumsum"),
    # Comparisons and truth values.
    _TRUTH.named("eq.Scalar ne.Scalar gt.Scalar lt.Scalar ge.Scalar le.Scalar logical_not bitwise_not"),
    replace(_TRUTH, axes=Axes.BINARY).named(
        """eq.Tensor ne.Tensor gt.Tensor lt.Tensor ge.Tensor le.Tensor logical_and logical_or logical_xor
        bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor __and__.Tensor __or__.Tensor"""
    ),
    # Arithmetic.
    _JOINING.named("add.Tensor mul.Tensor"),
    _BINARY.named(
        """sub.Tensor div.Tensor maximum minimum add.Scalar mul.Scalar sub.Scalar div.Scalar rsub.Scalar
        pow.Tensor_Tensor where.self masked_fill.Scalar"""
    ),
    _OTHER.named("div.Tensor_mode pow.Scalar outer einsum"),
    # Poolings and reductions.
    replace(_AVERAGE, any_layout=True).named("adaptive_avg_pool2d"),
    _AVERAGE.named("avg_pool2d"),
    replace(_TURN, axes=Axes.POOLING, any_layout=True).named("max_pool2d"),
    replace(_TURN, axes=Axes.POOLING).named("max_pool1d"),
    replace(_MOVE, axes=Axes.POOLING, any_layout=True).named("upsample_nearest2d.vec upsample_nearest2d"),
    replace(_POOL, any_layout=True).named(
        "upsample_bilinear2d.vec upsample_bicubic2d.vec upsample_bilinear2d"
    ),
    replace(_SPLIT, axes=Axes.POOLING, any_layout=True).named("max_pool2d_with_indices"),
    _POOL.named(
        """adaptive_max_pool2d adaptive_avg_pool1d adaptive_avg_pool3d avg_pool1d avg_pool3d max_pool3d
        upsample_nearest1d upsample_nearest1d.vec upsample_linear1d upsample_linear1d.vec upsample_nearest3d
        upsample_nearest3d.vec upsample_trilinear3d upsample_trilinear3d.vec"""
    ),
    replace(_AVERAGE, axes=Axes.REDUCTION, any_layout=True).named("mean.dim"),
    _REDUCTION.named("sum.dim_IntList amax amin mean var.correction norm.ScalarOpt_dim"),
    _OTHER.named("max.dim min.dim linalg_vector_norm topk argmax im2col col2im"),
    # Moves of data.
    _RESHAPE.named("view reshape _unsafe_view flatten.using_ints unflatten.int"),
    _VIEW.named("unsqueeze squeeze squeeze.dim squeeze.dims"),
    _TURN.named("permute transpose.int t movedim.int movedim.intlist flip pixel_unshuffle channel_shuffle"),
    replace(_TURN, any_layout=True).named("slice.Tensor"),
    _MOVE.named(
        """expand select.int roll repeat tile repeat_interleave.self_int index.Tensor index_select
        pixel_shuffle getitem"""
    ),
    replace(_MOVE, any_layout=True, keeps_sign=False).named("pad constant_pad_nd"),
    _SPLIT.named("split.Tensor split_with_sizes chunk unbind.int"),
    replace(_CONCATENATION, any_layout=True).named("cat"),
    _CONCATENATION.named("stack"),
    # Constants, sizes and numbers.
    _OTHER.named(
        """arange arange.start arange.start_step full zeros ones ones_like zeros_like full_like scalar_tensor
        type_as expand_as view_as reshape_as embedding sym_size.int operator.mul operator.floordiv
        operator.add operator.sub"""
    ),
)


def _table() -> dict[str, KnownOperation]:
    table: dict[str, KnownOperation] = {}
    for rows in _ROWS:
        for row in rows:
            if row.name in table:
                raise ValueError(f"two rows for the operation {row.name}")
            table[row.name] = row
    return table


OPERATIONS = _table()
KNOWN = frozenset(OPERATIONS)


OPAQUE = "::"
"""What the names of operators that have no row contain."""


RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Short names of whole recurrent layers, whose weights work once a step."""


def is_opaque(op: str) -> bool:
    """Return whether a node's operation is the full name of an operator instead of a known one."""
    return OPAQUE in op


def short_name(op: str) -> str:
    """Return an operation's name for people: without its namespace and its overload."""
    return op.rpartition(OPAQUE)[2].partition(".")[0]


def known(op: str) -> KnownOperation:
    """Return the row of an operation; one that says nothing for an operation that has none."""
    return OPERATIONS.get(op, _OTHER)


def having(condition: Callable[[KnownOperation], bool]) -> frozenset[str]:
    """Return the names of the operations of which this is true."""
    return frozenset(name for name, row in OPERATIONS.items() if condition(row))


POINTWISE = having(lambda row: row.axes is Axes.POINTWISE)
BINARY = having(lambda row: row.axes is Axes.BINARY)
POOLING = having(lambda row: row.axes is Axes.POOLING)
REDUCTION = having(lambda row: row.axes is Axes.REDUCTION)
RESHAPE = having(lambda row: row.axes is Axes.RESHAPE)
COMPARISONS = having(lambda row: row.compares)
VIEWS = having(lambda row: row.is_view)
LAYERS = having(lambda row: row.in_8_bits is EightBits.LAYER)
CONVOLUTIONS = LAYERS - {"linear"}
TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"})
"""Convolutions whose weight has its inputs on the first axis and its outputs on the second."""
WEIGHTED = LAYERS | TRANSPOSED
"""Operations that are layers: their second argument is a weight."""
EMBEDDING = "embedding"
"""A table of rows as its first argument, `(rows, channels)`, and the numbers of rows as its second."""
PRODUCERS = WEIGHTED | {EMBEDDING}
"""Operations whose channels are those of a weight."""
PRODUCTS = having(lambda row: row.in_8_bits is EightBits.PRODUCT)
MOVES = having(lambda row: row.moves_data)
CLIPS = having(lambda row: row.clips)
CONCATENATIONS = having(lambda row: row.concatenates)

SILENT = frozenset(
    """contiguous detach detach_ clone alias lift_fresh_copy dropout dropout_ feature_dropout alpha_dropout
    feature_alpha_dropout _assert_tensor_metadata _assert_scalar""".split()
)
"""Operations that change nothing at inference; the trace leaves them out."""
