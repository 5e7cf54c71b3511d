"""How far the predicted peak memory is from what a process really uses, in ONNX Runtime on the CPU.

    python benchmarks/profile_memory.py --cifar-teacher cifar_resnet.py:load

For each network: the teacher in float32 and 8 bits, and random candidates. Each runs in a fresh process, once
as the runtime does by default and once without its arena, which grows in powers of two. What it used is its
resident memory less that of the same process with a network of one layer: with the arena, which keeps what it
has, after three inferences; without it, the most during the third one, as Linux counts it. Predicted is
`peak_memory_bytes`, weights and live activations, and the same with an overhead of the runtime that is fitted
on others: constant, for each kernel and 8-bit layer, for each byte of weights of a kind and of activations.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from profile_accuracy import cases
from scipy.optimize import nnls

from autocompress.cost.kernels import kernels
from autocompress.cost.memory import live_bytes, low_bit_weights, peak_memory_bytes
from autocompress.export.onnx import to_onnx
from autocompress.graph.network import Network, Node, Param, ParamSpec, Ref
from autocompress.pipeline.preparation import bound_space, open_teacher
from autocompress.pipeline.profile_device import profile_samples
from autocompress.problem.space import load_space
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sampling import random_candidate, random_weights

SEED = 2000
CANDIDATES = 12
MIB = 1024**2

PROCESS = """
import ctypes, sys
import numpy, onnxruntime
def kept(field):
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status[field].split()[0]) * 1024
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.enable_cpu_mem_arena = sys.argv[1] == "arena"
sessions = []
for path in sys.argv[2:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    feed = {given.name: numpy.ones(given.shape, numpy.float32)}
    for _ in range(2):
        session.run(None, feed)
    before = kept("RssAnon")
    rest = kept("VmRSS") - before
    open("/proc/self/clear_refs", "w").write("5")
    session.run(None, feed)
    sessions.append(session)
    print(kept("RssAnon") if options.enable_cpu_mem_arena else kept("VmHWM") - rest)
"""
ARENA = {"arena": "as by default", "none": "without an arena"}


@dataclass(frozen=True)
class Point:
    """A network: what its process used with and without the arena, and features of it. Bytes."""

    case: str
    used: dict[str, int]
    predicted: int
    features: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cifar-teacher", help="file.py:callable that takes depth=20 and depth=56")
    arguments = parser.parse_args()
    points = []
    for case in cases(arguments.cifar_teacher):
        bound = bound_space(open_teacher(case.teacher, None, case.input_size), load_space(case.space))
        rng = random.Random(SEED)
        networks = [(sample.network, sample.model) for sample in profile_samples(bound, 2, SEED, 1)]
        for index in range(CANDIDATES):
            candidate = random_candidate(bound, rng, ("fp32", "int8", "mixed")[index % 3])
            network = deployed_network(bound, candidate)
            networks.append((network, to_onnx(network, random_weights(network)).SerializeToString()))
        for network, model in networks:
            used = {arena: used_bytes(model, arena) for arena in ARENA}
            points.append(Point(case.name, used, peak_memory_bytes(network), features(network)))
        show(case.name, points)
    for name in dict.fromkeys(point.case for point in points):
        show_fitted(name, points)
    return 0


def features(network: Network) -> list[float]:
    """What the overhead is linear in: 1, kernels, 8-bit layers, weights by kind, live activations."""
    weights = dict.fromkeys(itertools.product(("conv", "linear"), ("fp32", "int8")), 0)
    found = kernels(network)
    for kernel in found:
        if kernel.weights:
            weights[kernel.op, kernel.precision] += kernel.weights * (4 if kernel.precision == "fp32" else 1)
    low = len(low_bit_weights(network))
    return [MIB, len(found) * 1024, low * 1024, *weights.values(), max(live_bytes(network).values())]


def used_bytes(model: bytes, arena: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tiny, own = Path(folder) / "tiny.onnx", Path(folder) / "model.onnx"
        network = one_layer()
        tiny.write_bytes(to_onnx(network, random_weights(network)).SerializeToString())
        own.write_bytes(model)
        command = [sys.executable, "-c", PROCESS, arena, str(tiny), str(own)]
        before, after = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    return after - before


def one_layer() -> Network:
    node = Node("fc", "linear", (Ref("input"), Param("w"), None), (1, 2))
    return Network((1, 4), (node,), "fc", {"w": ParamSpec((2, 4))})


def show(name: str, points: list[Point]) -> None:
    own = [point for point in points if point.case == name]
    for arena in ARENA:
        report(name, arena, "weights and live activations", own, [point.predicted for point in own])


def show_fitted(name: str, points: list[Point]) -> None:
    """With an overhead fitted on the other candidates of the same network, and on the other networks."""
    own = [point for point in points if point.case == name]
    others = [point for point in points if point.case != name]
    for arena in ARENA:
        left_out = [fitted([other for other in own if other is not point], point, arena) for point in own]
        report(name, arena, "with overhead, fitted on its other candidates", own, left_out)
        if others:
            unseen = [fitted(others, point, arena) for point in own]
            report(name, arena, "with overhead, fitted on the other networks", own, unseen)


def fitted(known: list[Point], point: Point, arena: str) -> float:
    """By non-negative least squares of relative errors, held a little towards 0."""
    used = np.array([other.used[arena] for other in known], dtype=float)
    matrix = np.array([other.features for other in known]) / used[:, None]
    size = np.abs(matrix).mean(axis=0) + 1e-9
    held = np.vstack([matrix / size, 1e-2 * np.eye(matrix.shape[1])])
    solution, _ = nnls(held, np.concatenate([np.ones(len(known)), np.zeros(matrix.shape[1])]))
    return float(np.array(point.features) @ (solution / size))


def report(name: str, arena: str, way: str, points: list[Point], predicted: list[float] | list[int]) -> None:
    errors = np.abs(np.array(predicted) / np.array([point.used[arena] for point in points]) - 1)
    used = [point.used[arena] / MIB for point in points]
    print(
        f"{name:16} {ARENA[arena]:17} {way:46} {len(points):3} networks,"
        f" {min(used):6.1f} to {max(used):6.1f} MiB used, error:"
        f" median {np.median(errors):6.1%}, largest {errors.max():6.1%},"
        f" within 10 % {np.mean(errors <= 0.1):5.0%}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
