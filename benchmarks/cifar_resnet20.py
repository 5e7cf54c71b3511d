"""ResNet-20 on CIFAR-10 images: the whole search against the float32 teacher and against 8 bits alone.

    python benchmarks/cifar_resnet20.py --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10

Writes to runs/cifar-resnet20. The profile is measured first and is not part of the search's time. All
latencies are of ONNX Runtime with one thread; accuracies are on test data, computed from the files.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import autocompress as ac
from autocompress.export.onnx import to_onnx
from autocompress.pipeline.certification import Certificate, Device, examine
from autocompress.pipeline.preparation import OpenedTeacher, bound_space, open_teacher
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import load_space
from autocompress.students.builder import StudentBuilder
from autocompress.students.importances import importances

FOLDER = Path("runs/cifar-resnet20")
SPACE = "joint"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--latency", default="33%")
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--students", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = FOLDER / "device"
    if not device.is_dir():
        ac.profile(arguments.teacher, SPACE, device, networks=60, data=arguments.data)
    started = time.monotonic()
    front = ac.compress(
        arguments.teacher,
        arguments.data,
        device=device,
        space=SPACE,
        budgets=ac.Budgets.parse(latency=arguments.latency, size="40%"),
        trials=arguments.trials,
        students=arguments.students,
        distill_epochs=arguments.epochs,
        workers=arguments.workers,
        seed=arguments.seed,
        run=FOLDER / "search",
        overwrite=True,
    )
    minutes = (time.monotonic() - started) / 60
    assert front.teacher is not None
    teacher = front.teacher.to_json()
    show("teacher, float32", teacher, teacher)
    opened = open_teacher(arguments.teacher, arguments.data)
    show("8 bits alone", as_record(in_8_bits(opened)), teacher)
    for student in front.students:
        show(f"student {student.key}", student.to_json(), teacher)
    print(f"the whole search took {minutes:.1f} minutes, seed {arguments.seed}")
    met = [
        student
        for student in front.students
        if 3 * student.latency_ms <= teacher["latency_ms"] and student.accuracy >= teacher["accuracy"] - 0.015
    ]
    print(f"3× faster with at most 1.5 points less in 30 minutes: {bool(met) and minutes <= 30}")
    return 0


def in_8_bits(opened: OpenedTeacher) -> Certificate:
    """The teacher with every layer in 8 bits, calibrated, not trained; measured like a student."""
    assert opened.data is not None
    bound = bound_space(opened, load_space(SPACE))
    saliency = importances(bound, opened.weights, opened.data)
    builder = StudentBuilder(bound, opened.weights, opened.data, saliency)
    low = Candidate.of({site.name: 8 for site in bound.of_kind("bits") if 8 in site.options})
    module = builder.quantized(builder.start(low))
    folder = FOLDER / "8-bits"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = folder / "model.onnx"
    model.write_bytes(to_onnx(module.source_network, module.export_weights()).SerializeToString())
    reference = FOLDER / "search" / "teacher" / "model.onnx"
    return examine(model, opened.data, Device("onnxruntime", 1), module=module, reference=reference)


def as_record(certificate: Certificate) -> dict[str, Any]:
    return {
        "accuracy": certificate.reported.accuracy,
        "accuracy_std_err": certificate.reported.accuracy_std_err,
        "latency_ms": certificate.measurement.latency_ms,
        "latency_ms_ci95": certificate.measurement.latency_ms_ci95,
        "file_bytes": certificate.file_bytes,
    }


def show(name: str, record: Any, teacher: Any) -> None:
    low, high = record["latency_ms_ci95"]
    print(
        f"{name}: {record['accuracy']:.2%} ± {record['accuracy_std_err']:.2%} "
        f"({100 * (record['accuracy'] - teacher['accuracy']):+.2f} points), "
        f"{record['latency_ms']:.3f} ms [{low:.3f}, {high:.3f}], "
        f"{teacher['latency_ms'] / record['latency_ms']:.2f}× faster, {record['file_bytes'] / 1024:.0f} KiB"
    )


if __name__ == "__main__":
    sys.exit(main())
