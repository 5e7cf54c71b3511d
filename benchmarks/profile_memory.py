"""How far the predicted peak memory is from what a process really uses, in ONNX Runtime on the CPU.

    python benchmarks/profile_memory.py --cifar-teacher cifar_resnet.py:load

For each network: the teacher in float32 and 8 bits, and random candidates. Each runs in a fresh process. What
it used is its resident memory, after three inferences and after freed memory was given back, less that of the
same process with a network of one layer. Predicted is `peak_memory_bytes`, weights and live activations, and
the same with an overhead of the runtime that is fitted on others (constant, for each node, for each byte).
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from profile_accuracy import cases

from autocompress.cost import peak_memory_bytes, weight_bytes
from autocompress.export.onnx import to_onnx
from autocompress.network import Network, Node, Param, ParamSpec, Ref
from autocompress.preparation import bound_space, open_teacher
from autocompress.profiling import profile_samples, shipped
from autocompress.space import load_space
from autocompress.transforms.sampling import random_candidate, random_weights

SEED = 2000
CANDIDATES = 12
MIB = 1024**2

PROCESS = """
import ctypes, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
sessions = []
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    feed = {given.name: numpy.ones(given.shape, numpy.float32)}
    for _ in range(3):
        session.run(None, feed)
    sessions.append(session)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(int(status["RssAnon"].split()[0]) * 1024)
"""


@dataclass(frozen=True)
class Point:
    """A network: what its process used, and what the overhead may depend on. Bytes."""

    case: str
    used: int
    predicted: int
    weights: int
    nodes: int

    @property
    def features(self) -> list[float]:
        return [MIB, self.nodes * 1024, self.weights, self.predicted - self.weights]


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
            network = shipped(bound, candidate)
            networks.append((network, to_onnx(network, random_weights(network)).SerializeToString()))
        for network, model in networks:
            points.append(
                Point(case.name, used_bytes(model), peak_memory_bytes(network), weight_bytes(network),
                      len(network.nodes))
            )  # fmt: skip
        show(case.name, points)
    for name in dict.fromkeys(point.case for point in points):
        show_fitted(name, points)
    return 0


def used_bytes(model: bytes) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tiny, own = Path(folder) / "tiny.onnx", Path(folder) / "model.onnx"
        network = one_layer()
        tiny.write_bytes(to_onnx(network, random_weights(network)).SerializeToString())
        own.write_bytes(model)
        command = [sys.executable, "-c", PROCESS, str(tiny), str(own)]
        before, after = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    return after - before


def one_layer() -> Network:
    node = Node("fc", "linear", (Ref("input"), Param("w"), None), (1, 2))
    return Network((1, 4), (node,), "fc", {"w": ParamSpec((2, 4))})


def show(name: str, points: list[Point]) -> None:
    own = [point for point in points if point.case == name]
    report(name, "weights and live activations", own, [point.predicted for point in own])


def show_fitted(name: str, points: list[Point]) -> None:
    """With an overhead fitted on the other candidates of the same network, and on the other networks."""
    own = [point for point in points if point.case == name]
    left_out = [fitted([other for other in own if other is not point], point) for point in own]
    report(name, "with overhead, fitted on its other candidates", own, left_out)
    others = [point for point in points if point.case != name]
    if others:
        report(name, "with overhead, fitted on the other networks", own, [fitted(others, p) for p in own])


def fitted(known: list[Point], point: Point) -> float:
    used = np.array([other.used for other in known], dtype=float)
    matrix = np.array([other.features for other in known]) / used[:, None]
    ridge = 1e-3 * np.eye(matrix.shape[1])
    prior = np.array([0.0, 0.0, 1.0, 1.0])
    solution = prior + np.linalg.solve(matrix.T @ matrix + ridge, matrix.T @ (1 - matrix @ prior))
    return float(np.array(point.features) @ solution)


def report(name: str, way: str, points: list[Point], predicted: list[float] | list[int]) -> None:
    errors = np.abs(np.array(predicted) / np.array([point.used for point in points]) - 1)
    used = [point.used / MIB for point in points]
    print(
        f"{name:16} {way:46} {len(points):3} networks, {min(used):6.1f} to {max(used):6.1f} MiB used, error:"
        f" median {np.median(errors):6.1%}, largest {errors.max():6.1%},"
        f" within 10 % {np.mean(errors <= 0.1):5.0%}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
