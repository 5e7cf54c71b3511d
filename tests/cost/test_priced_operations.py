"""Every operation of the table, in float and in 8 bits: the kernels that are priced are those that run.

Each stands between two layers. ONNX Runtime's own profile says what it ran: layers, conversions between
32 and 8 bits and between layouts, and the operation itself with the type that it read. An operation that
has no integer kernel is priced as one in 8 bits together with the conversions around it, and the copies
of a conversion that the runtime makes, one a reader, belong to that conversion.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from autocompress.cost.kernels import CONVERSIONS, Kernel, kernels
from autocompress.cost.layouts import Layouts
from autocompress.device.measure.layout_probe import detect_layouts
from autocompress.device.runtimes.base import get_runtime
from autocompress.export.onnx import to_onnx
from autocompress.export.onnx_registry import RULES
from autocompress.graph.module import resolve
from autocompress.graph.network import INPUT, Network, Node, Param, ParamSpec, Ref, Weights, flatten
from autocompress.graph.operations import BINARY, COMPARISONS, KNOWN, LAYERS, MOVES, POINTWISE, is_opaque
from autocompress.graph.operators import implementation
from autocompress.transforms.apply import deployed
from autocompress.transforms.sampling import random_weights

A, B, C = (Ref(name) for name in "abc")
IMAGE = (1, 16, 8, 8)
PARAMS: dict[str, ParamSpec] = {
    "kernel": ParamSpec((16, 16, 3, 3)),
    "matrix": ParamSpec((8, 8)),
    "slope": ParamSpec((16,)),
    "step": ParamSpec((1,)),
    "even": ParamSpec((8,), "int64", trainable=False),
    "mask": ParamSpec((16, 8, 8), "bool", trainable=False),
}
CONV = (A, Param("kernel"), None, (1, 1), (1, 1), (1, 1), 1)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(POINTWISE - COMPARISONS - {"to.dtype"}, (A,)),
    **dict.fromkeys(BINARY - COMPARISONS, (A, B)),
    "conv2d": CONV,
    "conv2d.padding": (A, Param("kernel"), None, (1, 1), "same"),
    "conv_transpose2d.input": CONV[:5],
    "linear": (A, Param("matrix")),
    "matmul": (A, B),
    "scaled_dot_product_attention": (A, B, C),
    "layer_norm": (A, (8,)),
    "rms_norm": (A, (8,)),
    "group_norm": (A, 2),
    "clamp": (A, -1.0, 1.0),
    "clamp_min": (A, 0.1),
    "clamp_max": (A, 0.1),
    "pow.Tensor_Scalar": (A, 2),
    "prelu": (A, Param("slope")),
    "binarize": (A, Param("step")),
    "softmax.int": (A, -1),
    "log_softmax.int": (A, -1),
    "_softmax": (A, -1, False),
    **dict.fromkeys(["add.Scalar", "mul.Scalar", "sub.Scalar", "div.Scalar", "rsub.Scalar"], (A, 1.5)),
    "where.self": (Param("mask"), A, B),
    "masked_fill.Scalar": (A, Param("mask"), 0.5),
    "adaptive_avg_pool2d": (A, (1, 1)),
    "adaptive_max_pool2d": (A, (1, 1)),
    "avg_pool2d": (A, (2, 2), (2, 2)),
    "max_pool2d": (A, (2, 2), (2, 2)),
    "upsample_nearest2d": (A, (16, 16)),
    "upsample_nearest2d.vec": (A, None, (2.0, 2.0)),
    "upsample_bilinear2d": (A, (16, 16), False),
    "upsample_bilinear2d.vec": (A, None, False, (2.0, 2.0)),
    "upsample_bicubic2d.vec": (A, None, False, (2.0, 2.0)),
    "mean.dim": (A, (2, 3)),
    "sum.dim_IntList": (A, (3,)),
    "amax": (A, (3,)),
    "amin": (A, (3,)),
    "var.correction": (A, (3,)),
    "norm.ScalarOpt_dim": (A, 2, (3,)),
    "linalg_vector_norm": (A, 2, (3,)),
    **dict.fromkeys(["view", "reshape", "_unsafe_view"], (A, (1, -1, 8))),
    "flatten.using_ints": (A, 2),
    "unflatten.int": (A, 1, (4, 4)),
    "unsqueeze": (A, 1),
    "squeeze": (A,),
    "squeeze.dim": (A, 1),
    "squeeze.dims": (A, (1,)),
    "permute": (A, (0, 2, 3, 1)),
    "transpose.int": (A, 1, 2),
    "movedim.int": (A, 1, -1),
    "movedim.intlist": (A, (1,), (-1,)),
    "expand": (A, (2, 1, 16, 8, 8)),
    "select.int": (A, 2, 1),
    "roll": (A, (1,), (2,)),
    "flip": (A, (3,)),
    "repeat": (A, (1, 1, 1, 2)),
    "tile": (A, (1, 1, 1, 2)),
    "index.Tensor": (A, (None, Param("even"))),
    "index_select": (A, 1, Param("even")),
    "pixel_shuffle": (A, 2),
    "pixel_unshuffle": (A, 2),
    "channel_shuffle": (A, 4),
    "slice.Tensor": (A, 1, 0, 8),
    "pad": (A, (1, 1, 1, 1)),
    "constant_pad_nd": (A, (1, 1, 1, 1), 0.5),
    "split.Tensor": (A, 8, 1),
    "split_with_sizes": (A, (4, 12), 1),
    "chunk": (A, 2, 1),
    "unbind.int": (A, 1),
    "cat": ((A, B), 1),
    "stack": ((A, B), 1),
}
FOLDED = {
    "batch_norm": "is folded into a layer before anything is priced",
    "max_pool2d_with_indices": "is traced as max_pool2d where its values alone are read",
    "einsum": "no images; see test_layer_kinds",
    "conv1d": "no images; see test_layer_kinds",
    "conv1d.padding": "no images; see test_layer_kinds",
    "conv_transpose1d": "no images; see test_layer_kinds",
    **dict.fromkeys(
        """conv3d conv3d.padding conv_transpose3d.input adaptive_avg_pool3d avg_pool3d max_pool3d
        upsample_nearest1d upsample_nearest1d.vec upsample_linear1d upsample_linear1d.vec upsample_nearest3d
        upsample_nearest3d.vec upsample_trilinear3d upsample_trilinear3d.vec""".split(),
        "no images; see test_layer_kinds",
    ),
    "mean": "one number, which no layer reads",
    "adaptive_avg_pool1d": "no images",
    "avg_pool1d": "no images",
    "max_pool1d": "no images",
    "bmm": "no images; as matmul",
    "addmm": "no images",
    "t": "no images; as transpose.int",
    "expand_as": "is traced as expand",
    "embedding": "reads positions in a table",
    "to.dtype": "reads or writes something else than floats",
    **dict.fromkeys(COMPARISONS, "truth values, which no layer reads"),
}
"""Operations with an exporter that do not stand between two convolutions."""

CASES = {"float": (32, 32), "8 bits": (8, 8), "from 8 bits": (8, 32), "to 8 bits": (32, 8)}
RUN = {
    "conv.fp32": "Conv",
    "conv.int8": "QLinearConv",
    "linear.int8": "QGemm",
    "quantize.int8": "QuantizeLinear",
    "dequantize.int8": "DequantizeLinear",
    "to_blocked.fp32": "ReorderInput",
    "from_blocked.fp32": "ReorderOutput",
}


def test_every_operation_that_is_exported_is_compared():
    known = {op for op in RULES if not is_opaque(op)}
    assert set(ARGUMENTS) | set(FOLDED) >= known
    assert known <= KNOWN


def value_of(name: str) -> torch.Tensor:
    spec = PARAMS[name]
    if spec.dtype == "float32":
        return torch.rand(spec.shape)
    return torch.arange(0, 16, 2) if spec.dtype == "int64" else torch.rand(spec.shape) > 0.5


def shape_of(value: Any) -> Any:
    return tuple(map(shape_of, value)) if isinstance(value, (tuple, list)) else tuple(value.shape)


def layer(name: str, source: str, shape: tuple[int, ...], bits: int) -> tuple[Node, ParamSpec]:
    """A convolution of an image, a linear layer of anything else."""
    if len(shape) == 4:
        args = (Ref(source), Param(f"{name}.weight"), None, (1, 1), (1, 1), (1, 1), 1)
        return Node(name, "conv2d", args, (shape[0], 16, *shape[2:]), bits=bits), ParamSpec(
            (16, shape[1], 3, 3)
        )
    args = (Ref(source), Param(f"{name}.weight"))
    return Node(name, "linear", args, (*shape[:-1], 8), bits=bits), ParamSpec((8, shape[-1]))


def between_layers(op: str, before: int, after: int) -> Network:
    """`op` reads layers of `before` bits and is read by layers of `after` bits."""
    arguments = ARGUMENTS[op]
    read = {leaf.node for leaf in flatten(arguments) if isinstance(leaf, Ref)}
    params = {leaf.name: PARAMS[leaf.name] for leaf in flatten(arguments) if isinstance(leaf, Param)}
    nodes = []
    for name in sorted(read):
        node, params[f"{name}.weight"] = layer(name, INPUT, IMAGE, before)
        nodes.append(node)
    images = {name: torch.rand(IMAGE) for name in read}
    values = {name: value_of(name) for name in params if name in PARAMS}
    shape = shape_of(implementation(op)(*(resolve(arg, images, values) for arg in arguments)))
    nodes.append(Node("op", op, arguments, shape, bits=before if op in LAYERS else 32))
    several = isinstance(shape[0] if shape else 1, tuple)
    parts = {f"part{place}": shape[place] for place in range(1 if "pool" in op else 2)} if several else {}
    for place, (name, one) in enumerate(parts.items()):
        nodes.append(Node(name, "getitem", (Ref("op"), place), one))
    readers = []
    for name, one in (parts or {"op": shape}).items():
        node, params[f"read_{name}.weight"] = layer(f"read_{name}", name, one or (1,), after)
        readers.append(node)
    nodes += readers
    if len(readers) == 2:
        nodes.append(Node("sum", "add.Tensor", (Ref("read_part0"), Ref("read_part1")), readers[0].shape))
    return Network(IMAGE, tuple(nodes), nodes[-1].name, params)


@dataclass(frozen=True)
class Event:
    op: str
    name: str
    reads: str


def run_by_the_runtime(model: bytes, folder: Path) -> Iterator[Event]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling, options.log_severity_level = True, 3
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.run(None, {"input": np.ones(IMAGE, np.float32)})
    for event in json.loads(Path(session.end_profiling()).read_text()):
        name = event["name"].removesuffix("_kernel_time")
        if event["cat"] == "Node" and name != event["name"] and "/duplicated" not in name:
            op, read = event["args"]["op_name"], event["args"]["input_type_shape"]
            yield Event(op, name, "uint8" if op.startswith("QLinear") else next(iter(read[0])))


def conversions_within(kernel: Kernel, network: Network, events: list[Event]) -> Counter[str]:
    """Those of an operation that is priced in 8 bits and has no integer kernel."""
    if kernel.precision != "int8" or kernel.op in CONVERSIONS | {"conv", "linear"}:
        return Counter()
    (node, *_) = (network.by_name[name] for name in kernel.nodes)
    own = [event.reads for event in events if event.name == node.name]
    taken_apart = not own and node.name == "op"
    if node.op in MOVES or not (taken_apart or own[:1] == ["float"]):
        return Counter()
    inputs = {"scaled_dot_product_attention": 1}.get(node.op, len(set(node.inputs)))
    return Counter({"DequantizeLinear": inputs, "QuantizeLinear": int(node.quantizer is not None)})


def priced(network: Network, layouts: Layouts, events: list[Event]) -> Counter[str]:
    found: Counter[str] = Counter()
    for kernel in kernels(network, layouts):
        found[RUN.get(f"{kernel.op}.{kernel.precision}", "")] += 1
        found += conversions_within(kernel, network, events)
    found.pop("", None)
    return found


def weights_of(network: Network) -> Weights:
    fixed = {name: value_of(name).numpy() for name, spec in PARAMS.items() if spec.dtype != "float32"}
    return {**random_weights(network), **{name: fixed[name] for name in fixed if name in network.params}}


@pytest.fixture(scope="module")
def layouts() -> Layouts:
    return detect_layouts(get_runtime("onnxruntime"), 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("op", sorted(ARGUMENTS.keys() & RULES.keys()))
def test_what_is_priced_is_what_runs(op: str, case: str, layouts: Layouts, tmp_path: Path):
    network = deployed(between_layers(op, *CASES[case]))[0]
    model = to_onnx(network, weights_of(network)).SerializeToString()
    events = list(run_by_the_runtime(model, tmp_path))
    counted = Counter(event.op for event in events if event.op in RUN.values())
    assert priced(network, layouts, events) == counted
    if op in MOVES:
        precisions = {kernel.precision for kernel in kernels(network, layouts) if "op" in kernel.nodes}
        read = {event.reads for event in events if event.name == "op"}
        assert read <= {"uint8" if precision == "int8" else "float" for precision in precisions}
