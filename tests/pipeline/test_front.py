import json
import random
import subprocess
import sys
from itertools import pairwise

import pytest
from places import ROOT

from autocompress.errors import BudgetError, InputError, NothingFeasibleError, StudentError
from autocompress.problem.budgets import MIB, Limits
from autocompress.runs.events import Certified, RunStarted
from autocompress.runs.front import Front, front_of
from autocompress.runs.pareto import hypervolume, hypervolume_history, non_dominated
from autocompress.runs.store import RunStore, read_run
from autocompress.runs.student import Student

LIMITS = Limits(latency_ms=2.0, file_bytes=MIB)


def student(key, accuracy=0.9, latency_ms=1.0, certified=True, spread=0.1, size=MIB // 2, **changes):
    values = {
        "key": key,
        "accuracy": accuracy,
        "accuracy_std_err": 0.01,
        "latency_ms": latency_ms,
        "latency_ms_ci95": (latency_ms * (1 - spread), latency_ms * (1 + spread)),
        "peak_memory_bytes": MIB,
        "file_bytes": size,
        "macs": 1000,
        "parameters": 100,
        "certified": certified,
        "path": f"students/{key}",
        "validation_accuracy": accuracy,
    }
    return Student(**{**values, **changes})


TEACHER = student("teacher", 0.95, 4.0, peak_memory_bytes=4 * MIB, size=2 * MIB)
FAST, GOOD, SMALL = (
    student("fast", 0.80, 0.5),
    student("good", 0.94, 1.5),
    student("small", 0.85, 1.0, size=MIB // 8),
)
SLOW = student("slow", 0.95, 1.95, certified=False)


def front(*students, measured=None):
    return Front("runs/x", TEACHER, LIMITS, students, students if measured is None else measured)


FRONT = front(GOOD, SMALL, FAST, measured=(GOOD, SMALL, FAST, SLOW))


def record(root, students):
    with RunStore.create(root, {"identity": {}}, {}) as store:
        store.append(RunStarted(teacher=TEACHER, limits=LIMITS))
        for item, violated in students:
            store.append(Certified(candidate=item.key, student=item, violated=tuple(violated)))
    return read_run(root)


# Domination


def test_domination_by_hand():
    points = [(1, 5), (2, 3), (3, 3), (4, 1), (2, 6), (4, 1), (5, 0.5)]
    assert non_dominated(points) == [0, 1, 3, 6]
    assert non_dominated([]) == []
    assert non_dominated([(1, 1)]) == [0]
    assert non_dominated([(1, 2, 3), (1, 2, 4), (2, 1, 3), (1, 2, 3), (0, 9, 9)]) == [0, 2, 4]


@pytest.mark.parametrize("coordinates", [1, 2, 3, 4])
def test_domination_agrees_with_its_definition(coordinates):
    numbers = random.Random(coordinates)
    for _ in range(30):
        points = [tuple(numbers.randrange(6) for _ in range(coordinates)) for _ in range(25)]

        def beaten(index, points=points):
            mine = points[index]
            return any(
                all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or position < index)
                for position, other in enumerate(points)
                if position != index
            )

        assert non_dominated(points) == [index for index in range(len(points)) if not beaten(index)]


# Hypervolume


@pytest.mark.parametrize(
    ("points", "reference", "volume"),
    [
        ([], (1, 1), 0),
        ([(1, 1)], (1, 1), 0),
        ([(0, 2)], (1, 1), 0),
        ([(3,), (1,)], (5,), 4),
        ([(1, 1)], (3, 4), 2 * 3),
        ([(1, 3), (2, 1)], (4, 5), 3 * 2 + 2 * 2),
        ([(1, 3), (2, 1), (2, 3), (1, 3)], (4, 5), 3 * 2 + 2 * 2),
        ([(0, 0, 0)], (2, 3, 4), 24),
        ([(0, 0, 1), (1, 1, 0)], (2, 2, 2), 4 * 1 + 1 * 1),
        ([(0, 1, 1), (1, 0, 1), (1, 1, 0)], (2, 2, 2), 3 + 1),
        ([(0, 0, 0, 0), (1, 1, 1, 1)], (2, 2, 2, 2), 16),
    ],
)
def test_hypervolume_by_hand(points, reference, volume):
    assert hypervolume(points, reference) == pytest.approx(volume)


@pytest.mark.parametrize("coordinates", [2, 3, 4])
def test_hypervolume_agrees_with_counting_random_points(coordinates):
    numbers = random.Random(coordinates)
    points = [tuple(numbers.random() for _ in range(coordinates)) for _ in range(12)]
    draws = 20_000
    hits = 0
    for _ in range(draws):
        spot = [numbers.random() for _ in range(coordinates)]
        hits += any(all(a <= b for a, b in zip(point, spot, strict=True)) for point in points)
    # Four standard errors of a share of 20,000 draws are at most 0.0142.
    assert hypervolume(points, (1,) * coordinates) == pytest.approx(hits / draws, abs=0.0142)


def test_hypervolume_does_not_depend_on_order_and_agrees_with_optuna():
    optuna_hypervolume = pytest.importorskip("optuna._hypervolume").compute_hypervolume
    import numpy as np

    numbers = np.random.default_rng(0)
    for coordinates in (2, 3, 4):
        points = numbers.random((15, coordinates))
        reference = np.ones(coordinates)
        expected = optuna_hypervolume(points, reference)
        assert hypervolume(points.tolist(), reference.tolist()) == pytest.approx(expected)
        assert hypervolume(points[::-1].tolist(), reference.tolist()) == pytest.approx(expected)


def test_history_is_the_hypervolume_of_every_beginning_and_never_falls():
    numbers = random.Random(5)
    points = [(numbers.random() * 1.2, numbers.random() * 1.2) for _ in range(60)]
    history = hypervolume_history(points, (1.0, 1.0))
    for end in (1, 2, 7, 60):
        assert history[end - 1] == pytest.approx(hypervolume(points[:end], (1.0, 1.0)))
    assert all(before <= after + 1e-12 for before, after in pairwise(history))
    assert hypervolume_history([], (1.0, 1.0)) == []


# The front of a run


def test_the_front_holds_certified_students_that_nothing_beats_most_accurate_first(tmp_path):
    beaten = student("beaten", 0.79, 0.6)
    found = front_of(
        record(tmp_path / "r", [(s, []) for s in (FAST, beaten, GOOD, SMALL)] + [(SLOW, ["latency_ms"])])
    )
    assert [item.key for item in found.students] == ["good", "small", "fast"]
    assert {item.key for item in found.measured} == {"good", "small", "fast", "beaten", "slow"}
    assert found.violated == {"slow": ("latency_ms",)}
    assert (found.teacher, found.limits) == (TEACHER, LIMITS)


def test_what_breaks_a_budget_beats_nobody(tmp_path):
    better = student("better", 0.99, 0.1, certified=False)
    found = front_of(record(tmp_path / "r", [(better, ["file_bytes"]), (GOOD, [])]))
    assert [item.key for item in found.students] == ["good"]


def test_the_last_word_on_a_student_counts(tmp_path):
    again = student("good", 0.94, 1.5, certified=False)
    found = front_of(record(tmp_path / "r", [(GOOD, []), (again, ["latency_ms"])]))
    assert found.students == ()


def test_json_has_the_promised_keys(tmp_path):
    found = front_of(record(tmp_path / "r", [(GOOD, [])]))
    data = json.loads(json.dumps(found.to_json()))
    assert set(data) == {"run", "teacher", "students"}
    assert data["run"] == str(tmp_path / "r")
    (only,) = data["students"]
    assert set(only) >= {
        "key", "accuracy", "accuracy_std_err", "latency_ms", "latency_ms_ci95", "peak_memory_bytes",
        "file_bytes", "macs", "parameters", "certified", "path",
    }  # fmt: skip
    assert only["latency_ms_ci95"] == pytest.approx([1.35, 1.65])
    assert "run" not in only


def test_a_run_without_students_has_an_empty_front(tmp_path):
    with RunStore.create(tmp_path / "r", {"identity": {}}, {}):
        pass
    found = front_of(read_run(tmp_path / "r"))
    assert found.to_json()["students"] == []
    with pytest.raises(NothingFeasibleError, match="no student was measured"):
        found.best()


# The best within limits


def test_the_best_is_the_most_accurate_that_keeps_the_limits():
    assert FRONT.best() == GOOD
    assert FRONT.best(latency_ms=1.2) == SMALL
    assert FRONT.best(latency_ms=0.6) == FAST
    assert FRONT.best(size_mib=0.2) == SMALL
    assert FRONT.best(latency_ms=2, memory_mib=1, size_mib=0.5) == GOOD


def test_a_latency_is_kept_by_the_upper_end_of_its_interval():
    assert FRONT.best(latency_ms=1.651) == GOOD
    assert FRONT.best(latency_ms=1.649) == SMALL


def test_students_are_chosen_by_validation_and_equals_by_latency():
    lucky = student("lucky", 0.96, 1.0, validation_accuracy=0.90)
    steady = student("steady", 0.93, 1.2, validation_accuracy=0.92)
    quick = student("quick", 0.93, 1.1, validation_accuracy=0.92)
    assert front(lucky, steady, quick).best() == quick


def test_a_beaten_student_is_taken_where_only_its_interval_is_narrow_enough():
    wide = student("wide", 0.9, 1.0, spread=0.5)
    narrow = student("narrow", 0.9, 1.1, spread=0.01)
    assert front(wide, measured=(wide, narrow)).best(latency_ms=1.2) == narrow


def test_the_nearest_miss_and_the_binding_limit_are_named():
    with pytest.raises(NothingFeasibleError) as caught:
        FRONT.best(latency_ms=0.5, size_mib=4)
    assert caught.value.exit_code == 3
    assert "fast" in caught.value.why and "latency 0.55 ms" in caught.value.why
    assert "10.00%" in caught.value.why and "0.5 ms" in caught.value.why
    with pytest.raises(NothingFeasibleError, match=r"(?s)small.*size 128 KiB.*limit of 64 KiB"):
        FRONT.best(size_mib=1 / 16)


def test_without_a_certified_student_the_run_own_limits_name_the_nearest_miss():
    with pytest.raises(NothingFeasibleError, match=r"(?s)slow.*latency 2\.1. ms.*above the limit of 2 ms"):
        front(measured=(SLOW, student("slower", 0.9, 3.0, certified=False))).best()


# Conditions and orders


@pytest.mark.parametrize(
    ("conditions", "keys"),
    [
        ({}, ["good", "small", "fast"]),
        ({"latency": "<=1.5ms"}, ["good", "small", "fast"]),
        ({"latency": "<1.5ms"}, ["small", "fast"]),
        ({"latency": "1000us"}, ["small", "fast"]),
        ({"latency": " ≤ 25 %"}, ["small", "fast"]),
        ({"latency": ">0.5ms"}, ["good", "small"]),
        ({"latency": ">=0.5ms", "size": "<0.5MiB"}, ["small"]),
        ({"memory": "<1MiB"}, []),
        ({"memory": "<=1MiB"}, ["good", "small", "fast"]),
        ({"size": "<=6.25%"}, ["small"]),
    ],
)
def test_conditions(conditions, keys):
    assert [item.key for item in FRONT.filtered(**conditions).students] == keys


@pytest.mark.parametrize("condition", ["", "<=", "fast", "<=10parsecs", "<=0ms", "==1ms", "<=1"])
def test_conditions_that_cannot_be_read(condition):
    with pytest.raises(BudgetError):
        FRONT.filtered(latency=condition)


def test_a_percentage_needs_a_measured_teacher():
    with pytest.raises(InputError, match="teacher"):
        Front("runs/x", None, None, ()).filtered(latency="<40%")


def test_orders():
    def keys(name):
        return [item.key for item in FRONT.sorted_by(name).students]

    assert keys("accuracy") == ["good", "small", "fast"]
    assert keys("latency") == ["fast", "small", "good"]
    assert keys("size") == ["small", "good", "fast"]
    with pytest.raises(InputError, match="accuracy, latency, memory, size"):
        FRONT.sorted_by("macs")


# Saving


@pytest.fixture
def stored(tmp_path):
    """A student with a folder in a run."""
    item = student("good", run=str(tmp_path / "run"))
    item.folder.mkdir(parents=True)
    for name in ("spec.json", "model.onnx", "bench.json"):
        (item.folder / name).write_text(name)
    return item


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_student_is_copied(stored, tmp_path):
    assert stored.save(tmp_path / "deep/out") == tmp_path / "deep/out"
    assert names(tmp_path / "deep/out") == ["bench.json", "model.onnx", "spec.json"]
    (tmp_path / "empty").mkdir()
    assert names(stored.save(tmp_path / "empty")) == names(stored.folder)


def test_only_another_student_is_replaced_and_only_when_asked(stored, tmp_path):
    target = stored.save(tmp_path / "out")
    (target / "old.txt").write_text("")
    with pytest.raises(StudentError, match="--overwrite"):
        stored.save(target)
    assert "old.txt" in names(target)
    stored.save(target, overwrite=True)
    assert "old.txt" not in names(target)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_student_is_never_replaced(stored, tmp_path, overwrite):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("years")
    for target in (folder, folder / "chapter.tex"):
        with pytest.raises(StudentError, match="not a student"):
            stored.save(target, overwrite=overwrite)
    assert (folder / "chapter.tex").read_text() == "years"


def test_a_student_is_not_saved_over_or_inside_itself(stored):
    for target in (stored.folder, stored.folder / "copy"):
        with pytest.raises(StudentError, match="own folder"):
            stored.save(target, overwrite=True)
    assert names(stored.folder) == ["bench.json", "model.onnx", "spec.json"]


def test_a_missing_folder_deletes_nothing(stored, tmp_path):
    target = stored.save(tmp_path / "out")
    lost = student("lost", run=str(tmp_path / "run"))
    with pytest.raises(StudentError, match="missing"):
        lost.save(target, overwrite=True)
    assert len(names(target)) == 3


# Lean reading

READ_FRONT = """
import sys
from autocompress.api import front, status
assert [student.key for student in front(sys.argv[1]).students] == ["good"]
assert status(sys.argv[1])["certified"] == 1
heavy = {"torch", "optuna", "ray", "onnx", "onnxruntime", "timm", "pydantic", "scipy", "sklearn", "numpy"}
sys.exit(",".join(heavy & set(sys.modules)) or None)
"""


def test_a_front_is_read_without_heavy_packages(tmp_path):
    record(tmp_path / "r", [(GOOD, []), (SLOW, ["latency_ms"])])
    command = [sys.executable, "-c", READ_FRONT, str(tmp_path / "r")]
    found = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
