"""The runtime itself says which kernels it runs, with which shapes; pricing has to name the same ones."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
from kernel_networks import SmallResNet
from torch import nn

from autocompress.cost.kernels import Kernel, kernels
from autocompress.cost.layouts import Layouts
from autocompress.device.measure.attribution import attribute
from autocompress.device.measure.layout_probe import detect_layouts
from autocompress.device.runtimes.base import get_runtime
from autocompress.export.onnx import to_onnx
from autocompress.graph.network import Network, to_json
from autocompress.graph.trace import trace
from autocompress.problem.space import load_space
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sampling import random_candidate, random_weights
from autocompress.transforms.sites import bind

EACH = 40
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "small residual": (SmallResNet, 16),
    "resnet": (lambda: timm.create_model("test_resnet", num_classes=10), 64),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=10), 64),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=10), 64),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=2), 64),
}
NAMES = {
    "Conv": "conv fp32",
    "QLinearConv": "conv int8",
    "Gemm": "linear fp32",
    "MatMul": "linear fp32",
    "QGemm": "linear int8",
    "QLinearMatMul": "linear int8",
    "Add": "add fp32",
    "QLinearAdd": "add int8",
    "ReorderInput": "to_blocked fp32",
    "ReorderOutput": "from_blocked fp32",
}


def candidates(name: str, count: int) -> Iterator[Network]:
    build, size = NETWORKS[name]
    network, _ = trace(build().eval(), (3, size, size))
    bound = bind(load_space("joint"), network)
    rng = random.Random(0)
    for index in range(count):
        candidate = random_candidate(bound, rng, ("fp32", "int8", "mixed")[index % 3])
        yield deployed_network(bound, candidate)


def run_by_the_runtime(model: bytes, folder: Path) -> Counter[tuple[Any, ...]]:
    """Operations with the numbers of their inputs', results' and weights' elements, from its profiler."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling, options.log_severity_level = True, 3
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    session.run(None, {given.name: np.ones(given.shape, np.float32)})
    path = Path(session.end_profiling())
    events = json.loads(path.read_text())
    path.unlink()
    found: Counter[tuple[Any, ...]] = Counter()
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        op = event["args"]["op_name"]
        read = [next(iter(one.values())) for one in event["args"]["input_type_shape"]]
        (written,) = event["args"]["output_type_shape"][0].values()
        if op not in NAMES or (op == "MatMul" and len(read) > 1 and len(read[1]) > 2):
            continue
        name, sizes = NAMES[op], [prod(written)]
        if op in ("Conv", "Gemm", "MatMul", "ReorderInput"):
            sizes.insert(0, prod(read[0]))
        if op == "Conv":
            sizes.append(prod(read[1]))
        found[name, *(sizes[:1] if op == "ReorderInput" else sizes)] += 1
    return found


def named_by_us(network: Network, layouts: Layouts) -> Counter[tuple[Any, ...]]:
    """The same of our kernels; blocks of channels are whole in memory."""
    found: Counter[tuple[Any, ...]] = Counter()
    for kernel in kernels(network, layouts):
        name = f"{kernel.op} {kernel.precision}"
        if name not in NAMES.values():
            continue
        if name == "conv fp32":
            found[name, *_padded(kernel, layouts.float_block)] += 1
        elif name == "linear fp32":
            found[name, kernel.in_elements, kernel.out_elements] += 1
        else:
            found[name, kernel.out_elements] += 1
    return found


def _padded(kernel: Kernel, block: int) -> tuple[int, int, int]:
    def whole(channels: int) -> int:
        return -(-channels // block) * block

    reads = whole(kernel.in_channels) if kernel.layout == "blocked" else kernel.in_channels
    writes = whole(kernel.out_channels) if kernel.layout else kernel.out_channels
    taps = kernel.kernel_height * kernel.kernel_width
    weights = writes * taps * (reads if kernel.groups == 1 else kernel.in_channels // kernel.groups)
    return (
        kernel.in_elements // kernel.in_channels * reads,
        kernel.out_elements // kernel.out_channels * writes,
        weights,
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_random_candidates_run_the_kernels_that_pricing_names(name: str, tmp_path: Path):
    layouts = detect_layouts(get_runtime("onnxruntime"), 1)
    for network in candidates(name, EACH):
        model = to_onnx(network, random_weights(network)).SerializeToString()
        assert named_by_us(network, layouts) == run_by_the_runtime(model, tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_gets_the_time_of_an_operation_of_its_own(name: str):
    runtime = get_runtime("onnxruntime")
    layouts = detect_layouts(runtime, 1)
    for network in candidates(name, 12):
        model = to_onnx(network, random_weights(network)).SerializeToString()
        times = runtime.node_times(model, 1, 1)
        timings = attribute(times, model, runtime.optimized(model, 1), kernels(network, layouts))
        layers = [timing for timing in timings if timing.kernel.op in ("conv", "linear")]
        assert [timing.kernel.nodes for timing in layers if not timing.operations] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_pricing_without_batch_norms_sees_the_same_networks(name: str):
    build, size = NETWORKS[name]
    bound = bind(load_space("joint"), trace(build().eval(), (3, size, size))[0])
    normalised = any(node.op == "batch_norm" for node in bound.network.nodes)
    assert (len(bound.folded.network.nodes) < len(bound.network.nodes)) == normalised
    rng = random.Random(1)
    for index in range(12):
        candidate = random_candidate(bound, rng, ("fp32", "int8", "mixed")[index % 3])
        whole, folded = (deployed_network(space, candidate) for space in (bound, bound.folded))
        assert to_json(whole) == to_json(folded)
