"""A search over a real Ray cluster of several nodes, one of which is killed under way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from priced_networks import SPACE, Arithmetic, small_resnet

from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer
from autocompress.cost.repair import Repairer
from autocompress.graph.trace import trace
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.problem.data import load_data
from autocompress.problem.space import parse_space
from autocompress.progress import Console
from autocompress.runs.events import Certified
from autocompress.runs.ray_workers import executor
from autocompress.runs.store import RunStore, read_run
from autocompress.runs.student import Student
from autocompress.runs.tasks import Ask, Executor, Stop, Tell
from autocompress.search.halving import Plan
from autocompress.search.loop import Search, Setting
from autocompress.students.builder import StudentBuilder
from autocompress.students.importances import importances
from autocompress.students.remote import remote_evaluator
from autocompress.transforms.sites import bind

pytest.importorskip("ray.tune")

NODES = 3
PLAN = Plan(
    trials=9, trial_epochs=0.2, promotion_epochs=0.2, final_epochs=0.2, quantized_epochs=0, students=1
)
SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 12,
}
"""A dead node is missed sooner than after half a minute, and one that a busy machine makes slow is not."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """`NODES` nodes with one processor each, the first of which is the head."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    quiet = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": SOON, **quiet})
    try:
        for _ in range(NODES - 1):
            found.add_node(wait=False, num_cpus=1, **quiet)
        found.wait_for_nodes()
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


class Killing:
    """An executor during which a node of the cluster dies, right after the third result."""

    def __init__(self, on: Executor, cluster: Any) -> None:
        self.on, self.cluster, self.results = on, cluster, 0
        self.workers = on.workers

    def run(self, ask: Ask, tell: Tell, stop: Stop) -> None:
        def counting(result: Any) -> None:
            tell(result)
            self.results += 1
            if self.results == 3:
                victim = next(iter(self.cluster.worker_nodes))
                killer = threading.Thread(target=self.cluster.remove_node, args=(victim, False))
                killer.start()
                killer.join()

        self.on.run(ask, counting, stop)

    def close(self) -> None:
        self.on.close()


def test_a_search_outlives_a_node_and_records_every_trial_once(cluster: Any, tmp_path: Path) -> None:
    network, weights = trace(small_resnet(in_channels=3, classes=10), (3, 8, 8))
    pricer = Pricer(bind(parse_space(SPACE), network), CostModel(Arithmetic()))
    limits = Limits(latency_ms=0.8 * pricer.teacher.latency_ms)
    data = load_data("digits")
    builder = StudentBuilder(pricer.bound, weights, data, importances(pricer.bound, weights, data))
    factory = remote_evaluator(builder, parse_space(SPACE), tmp_path / "distilled")
    on = Killing(executor(factory, address=cluster.address), cluster)
    with RunStore.create(tmp_path / "run", {"identity": {}}, {}) as store:

        def certify(candidate: Candidate) -> Student:
            assert (tmp_path / "distilled" / candidate.key / "model.onnx").is_file()
            cost = vars(pricer.price(candidate))
            student = Student(
                key=candidate.key, accuracy=0.5, accuracy_std_err=0.0, certified=True, path="", **cost
            )
            store.append(Certified(candidate=candidate.key, student=student))
            return student

        setting = Setting(
            pricer, Repairer(pricer, limits, {}), limits, PLAN, store, on, certify,
            tmp_path / "distilled", Console(quiet=True),
        )  # fmt: skip
        try:
            students = Search(setting).run()
        finally:
            on.close()
    assert len(cluster.worker_nodes) == NODES - 2
    assert len(students) == PLAN.students
    events = [event for event in read_run(tmp_path / "run").events if hasattr(event, "trial")]
    told = Counter(event.trial for event in events if event.name == "trial_finished")
    assert told == dict.fromkeys(range(PLAN.trials), 1)
    assert [event for event in events if event.name == "trial_failed"] == []
