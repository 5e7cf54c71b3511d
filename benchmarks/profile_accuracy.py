"""How well profiles predict networks that no row came from, beside four other ways, in the same run.

    python benchmarks/profile_accuracy.py --cifar-teacher cifar_resnet.py:load      # all, 1 to 2 hours
    python benchmarks/profile_accuracy.py --only mobilenetv2_100

For each network of the list a profile is made as `autocompress profile` makes it, and random candidates with
another seed are timed: 100 in float32, 100 in 8 bits or mixed. Both take turns, ten networks at a time, so
that the machine is the same for both. Every way of predicting knows the profiled networks and none other.
Measurements are kept in runs/profile-accuracy, so that a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from autocompress.cost.kernels import Kernel, kernels
from autocompress.cost.model import CostModel
from autocompress.device.measure.latency import machine_lock
from autocompress.device.measure.layout_probe import detect_layouts
from autocompress.device.measure.log import FILE, LogSetting, Measurements, Timed
from autocompress.device.measure.quiet_gate import Gate, QuietSettings
from autocompress.device.profile.fitting import rows, without_drift
from autocompress.device.profile.latency_table import LatencyTable
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile.sources import CandidateOrigin
from autocompress.device.profile.validation import Prediction, summary
from autocompress.device.profile_files.store import write_profile
from autocompress.device.profiler import Bench, ProfileSubject, Sample, profile_from
from autocompress.device.runtimes.base import get_runtime
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import ProfileError
from autocompress.export.onnx import to_onnx
from autocompress.graph.network import INPUT, Network, Ref
from autocompress.graph.operations import LAYERS
from autocompress.pipeline.preparation import bound_space, open_teacher
from autocompress.pipeline.profile_device import CHOSEN_SHARE, Chooser, profile_samples
from autocompress.problem.space import load_space
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sampling import random_candidate, random_weights
from autocompress.transforms.sites import BoundSpace

FOLDER = Path("runs/profile-accuracy")
SEED, TEST_SEED = 0, 1000
TESTED = 100
KINDS = {"fp32": ("fp32",), "int8 and mixed": ("int8", "mixed")}
ALONE = 6
"""Networks of each kind whose layers are timed alone, which takes longest."""

THREADS = 1
TURN = 10
NAN = float("nan")
WEIGHTED = ("conv", "linear")
PATIENT = QuietSettings(blocks=3, most_blocks=600, block_s=0.004)


@dataclass(frozen=True)
class Case:
    """A network and how it is profiled."""

    name: str
    teacher: str
    space: str
    input_size: int
    networks: int


def cases(cifar_teacher: str | None) -> list[Case]:
    found = [
        Case("resnet18", "timm:resnet18", "resnet", 128, 120),
        Case("mobilenetv2_100", "timm:mobilenetv2_100", "mobilenet", 128, 120),
        Case("convnext_atto", "timm:convnext_atto", "joint", 128, 120),
        Case("vit_tiny", "timm:vit_tiny_patch16_224", "vit", 224, 80),
    ]
    if cifar_teacher is not None:
        small = [
            Case(f"resnet{depth}", f"{cifar_teacher},depth={depth}", "joint", 32, networks)
            for depth, networks in ((20, 220), (56, 160))
        ]
        found = small + found
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cifar-teacher", help="file.py:callable that takes depth=20 and depth=56")
    parser.add_argument("--only", action="append", help="one of the networks, may be repeated")
    parser.add_argument("--networks", type=int, help="networks to profile with, instead of those of the list")
    parser.add_argument("--tested", type=int, default=TESTED, help="networks for each row of the table")
    arguments = parser.parse_args()
    for case in cases(arguments.cifar_teacher):
        if arguments.only is None or case.name in arguments.only:
            case = replace(case, networks=arguments.networks or case.networks)
            results = examine(case, arguments.tested)
            (FOLDER / case.name / "results.json").write_text(json.dumps(results, indent=1))
    return 0


def examine(case: Case, tested: int) -> list[dict[str, Any]]:
    folder = FOLDER / case.name
    bound = bound_space(open_teacher(case.teacher, None, case.input_size), load_space(case.space))
    run = Together(bound, folder, case.networks)
    test = list(unseen(bound, {sample.name for sample in run.drawn}, tested))
    with machine_lock():
        profile, minutes = run.measure(test)
        learned, timed = run.profiling.known.found, run.testing.measured(test[1:])
        isolated_us = alone(test, profile, run.gate, folder / "isolated.json")
    latencies_us = np.array(without_drift(timed)) * level(learned, timed)
    ways = predictors(profile, learned, isolated_us)
    print(f"\n{case.name} at {case.input_size}², profiled with {len(learned)} networks in {minutes:.1f} min")
    found = []
    by_name, known = {sample.name: sample for sample in test}, {item.name for item in learned}
    for precision, kinds in KINDS.items():
        chosen = [i for i, item in enumerate(timed) if item.precision in kinds and item.name not in known]
        truth = latencies_us[chosen]
        print(f"  {precision}: {len(chosen)} networks, {truth.min() / 1e3:.3f} to {truth.max() / 1e3:.3f} ms")
        for way, predict in ways.items():
            networks = [by_name[timed[index].name].network for index in chosen]
            pairs = zip(truth, map(predict, networks), strict=True)
            points = [Prediction("", precision, a, b) for a, b in pairs if np.isfinite(b)]
            one = summary(points)
            found.append({"network": case.name, "precision": precision, "way": way, **vars(one)})
            print(
                f"    {way:24} {one.count:3} networks, mean error {one.mean_error:6.1%}"
                f"  within 5 % {one.within_5_percent:6.1%}  within 10 % {one.within_10_percent:6.1%}"
                f"  rank {one.rank_correlation or 0:.4f}",
                flush=True,
            )
    show_bytes(profile, test)
    return found


def unseen(bound: BoundSpace, known: set[str], tested: int) -> Iterator[Sample]:
    """The teacher first, then random candidates that are not `known`, precisions mixed."""
    found = list(_unseen(bound, known, tested))
    random.Random(TEST_SEED).shuffle(found)
    yield next(iter(profile_samples(bound, 1, SEED, 1)))
    yield from found


def _unseen(bound: BoundSpace, known: set[str], tested: int) -> Iterator[Sample]:
    rng = random.Random(TEST_SEED)
    for precision, count in (("fp32", tested), ("int8", tested // 2), ("mixed", tested - tested // 2)):
        seen: set[str] = set()
        while len(seen) < count:
            candidate = random_candidate(bound, rng, precision)
            if candidate.key not in known and candidate.key not in seen:
                seen.add(candidate.key)
                network = deployed_network(bound, candidate)
                model = to_onnx(network, random_weights(network)).SerializeToString()
                yield Sample(candidate.key, network, model, precision)


class Together:
    """Profiling and timing of unseen networks that take turns."""

    def __init__(self, bound: BoundSpace, folder: Path, networks: int) -> None:
        runtime = get_runtime("onnxruntime")
        layouts = detect_layouts(runtime, THREADS)
        wanted = round(CHOSEN_SHARE * networks)
        self.networks, self.device = networks, folder / "device"
        self.chooser = Chooser(bound, layouts, runtime.precisions, 1, SEED, wanted)
        self.drawn = list(profile_samples(bound, networks - wanted, SEED, 1))
        self.gate = Gate(runtime.load(self.drawn[0].model, THREADS))
        setting = LogSetting("onnxruntime", THREADS, 1, self.drawn[0].name)
        progress = Counter("networks measured", networks)
        self.profiling, self.testing = (
            Bench(runtime, THREADS, layouts, Measurements(path / FILE, setting, resume=True),
                  self.drawn[0].name, QuietSettings(), progress, by_kernel=by_kernel)
            for path, by_kernel in ((self.device, True), (folder / "test", False))
        )  # fmt: skip

    def measure(self, test: Sequence[Sample]) -> tuple[DeviceProfile, float]:
        """The profile, and the minutes that its own networks took."""
        waiting, seconds, every = list(test), 0.0, list(self.drawn)
        asked: Sequence[Sample] = self.drawn
        while asked:
            for index in range(0, len(asked), TURN):
                started = time.monotonic()
                self.profiling.run(asked[index : index + TURN], self.gate)
                seconds += time.monotonic() - started
                share = -(-TURN * len(test) // self.networks)
                self.testing.run(waiting[:share], self.gate)
                del waiting[:share]
            asked = self.chooser(LatencyTable(rows(self.profiling.measured(every))))
            every += asked
        self.testing.run(waiting, self.gate)
        subject = ProfileSubject(
            "device",
            "onnxruntime",
            THREADS,
            1,
            DeviceDescription(),
            CandidateOrigin(),
            self.profiling.layouts,
        )
        measured, drawn = self.profiling.measured(every), {sample.name for sample in self.drawn}
        profile = profile_from(measured, every, subject, drawn)
        write_profile(self.device, profile)
        return profile, seconds / 60


def alone(test: Sequence[Sample], profile: DeviceProfile, gate: Gate, path: Path) -> dict[Kernel, float]:
    """µs of each layer of a few tested networks of each kind, as a network of its own."""
    runtime = get_runtime("onnxruntime")
    few = [one for kind in KINDS.values() for one in [s for s in test[1:] if s.precision in kind][:ALONE]]
    wanted: dict[Kernel, Network] = {}
    for sample in few:
        for kernel in kernels(sample.network, profile.layouts):
            if kernel.op in WEIGHTED and kernel not in wanted:
                layer = single(sample.network, kernel)
                if layer is not None:
                    wanted[kernel] = layer
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    progress = Counter("layers alone", len(wanted))
    found = {}
    for index, (kernel, network) in enumerate(wanted.items()):
        name = repr(replace(kernel, nodes=()))
        if name not in known:
            model = to_onnx(network, random_weights(network)).SerializeToString()
            quick = gate.latency(runtime.load(model, THREADS), PATIENT)
            known[name] = quick.latency_ms * 1e3 if quick is not None else float("nan")
        found[kernel] = known[name]
        progress(index + 1)
        if index % 50 == 49 or index + 1 == len(wanted):
            path.write_text(json.dumps(known))
    return found


def single(network: Network, kernel: Kernel) -> Network | None:
    """The layer of a kernel as a network."""
    node = next((network.by_name[name] for name in kernel.nodes if network.by_name[name].op in LAYERS), None)
    if node is None or not isinstance(node.args[0], Ref):
        return None
    source = node.args[0].node
    node = replace(node, args=(Ref(INPUT), *node.args[1:]))
    return Network(
        network.shape_of(source),
        (node,),
        node.name,
        {name: network.params[name] for name in node.params},
        network.quantizer_of(source) if kernel.precision == "int8" else None,
    )


def level(learned: Sequence[Timed], timed: Sequence[Timed]) -> float:
    """Of the reference: its median latency when networks were profiled, by that when they were tested."""
    before, now = ([item.reference_ms for item in items] for items in (learned, timed))
    return float(np.median(before) / np.median(now))


Predict = Callable[[Network], float]


def predictors(
    profile: DeviceProfile, learned: Sequence[Timed], isolated_us: dict[Kernel, float]
) -> dict[str, Predict]:
    """Ways to predict a latency in µs."""
    price = CostModel(profile).price
    latencies_us = without_drift(learned)
    by_macs = linear_in_macs(learned, latencies_us)
    seen = LatencyTable(rows(learned))
    forest = random_forest(profile, learned)

    def cut(network: Network) -> tuple[Kernel, ...]:
        return kernels(network, profile.layouts)

    return {
        "autocompress": lambda network: price(network).latency_ms * 1e3,
        "plain profiler sum": lambda network: sum(seen.lookup(k).median_us for k in cut(network)),
        "layers alone, summed": lambda network: sum(
            isolated_us.get(k, NAN if k.op in WEIGHTED else 0.0) for k in cut(network)
        ),
        "random forest on kernels": lambda network: forest(cut(network)),
        "linear in MACs": lambda network: by_macs(cut(network)),
    }


def linear_in_macs(learned: Sequence[Timed], latencies_us: Any) -> Callable[[Sequence[Kernel]], float]:
    """latency = a + b · float MACs + c · 8-bit MACs, by least squares of relative errors."""

    def features(found: Sequence[Kernel]) -> list[float]:
        low = sum(kernel.macs for kernel in found if kernel.precision == "int8")
        return [1.0, (sum(kernel.macs for kernel in found) - low) / 1e6, low / 1e6]

    matrix = np.array([features([timing.kernel for timing in item.kernels]) for item in learned])
    solution = np.linalg.lstsq(matrix / latencies_us[:, None], np.ones(len(learned)), rcond=None)[0]
    return lambda found: float(np.array(features(found)) @ solution)


def random_forest(profile: DeviceProfile, learned: Sequence[Timed]) -> Callable[[Sequence[Kernel]], float]:
    """nn-Meter's way (Zhang et al. 2021, doi:10.1145/3458864.3467882): a forest for each kind of kernel
    on its shape, summed. Trained on our kernel times with the profiler's overhead already taken out."""
    groups: dict[str, tuple[list[list[float]], list[float]]] = {}
    for row in rows(learned):
        features, times = groups.setdefault(row.kernel.group, ([], []))
        features.append(shape_features(row.kernel))
        times.append(profile.fit.kernel_us(row.kernel, row.median_us, row.operations))
    forests = {
        group: RandomForestRegressor(100, random_state=0).fit(np.array(features), times)
        for group, (features, times) in groups.items()
    }
    known: dict[Kernel, float] = {}

    def predict(found: Sequence[Kernel]) -> float:
        for kernel in found:
            if kernel not in known:
                if kernel.group not in forests:
                    raise ProfileError(f"no kernels of {kernel.group} were profiled")
                known[kernel] = float(forests[kernel.group].predict([shape_features(kernel)])[0])
        return profile.constant_us + sum(known[kernel] for kernel in found)

    return predict


def shape_features(kernel: Kernel) -> list[float]:
    return [
        kernel.in_channels, kernel.out_channels, kernel.height, kernel.width, kernel.kernel_height,
        kernel.stride, kernel.groups, kernel.macs, kernel.weights, kernel.in_elements, kernel.out_elements,
        kernel.adds, float(bool(kernel.activation)), number(kernel.layout), number(kernel.op),
    ]  # fmt: skip


def number(name: str) -> float:
    """Equal for equal names, so that trees can tell them apart."""
    return float(zlib.crc32(name.encode()))


def show_bytes(profile: DeviceProfile, test: Sequence[Sample]) -> None:
    price = CostModel(profile).price
    errors = [abs(price(sample.network).file_bytes / len(sample.model) - 1) for sample in test]
    print(
        f"  file bytes of {len(test)} networks: largest error {max(errors):.2%}, mean {np.mean(errors):.2%}"
    )


class Counter:
    """A plain line on stderr now and then."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.last = what, total, time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self.last > 20:
            self.last = time.monotonic()
            print(f"{self.what}: {done}/{self.total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
