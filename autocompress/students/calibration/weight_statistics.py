"""What calibration data says of single weights, by which `families.sparsity` decides which of them stay."""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.graph.module import GraphModule
from autocompress.problem.splits import Split
from autocompress.problem.tasks.task import Task
from autocompress.students.calibration.importance import saliency
from autocompress.students.calibration.layer_inputs import CALIBRATION_BATCH, collect_moments, solvable_layers
from autocompress.transforms.families.sparsity import Thinning, WeightStatistics


def evidence(
    module: GraphModule, examples: Split, thinnings: Mapping[str, Thinning], task: Task | None = None
) -> WeightStatistics:
    """Return what the methods of these layers need to know of `module`, and no more, on the examples."""
    methods = {thinning.method for thinning in thinnings.values()}
    batches = examples.batches(CALIBRATION_BATCH)
    scores = saliency(module, batches, "obd", task) if "obd" in methods else {}
    wanted = {name for name, thinning in thinnings.items() if thinning.method == "obs"}
    nodes = [node for node in solvable_layers(module.source_network) if node.name in wanted]
    if not nodes:
        return WeightStatistics(scores, {})
    moments = collect_moments(module, nodes, (images for images, _ in examples.batches(CALIBRATION_BATCH)))
    return WeightStatistics(scores, {name: one.second for name, one in moments.items()})
