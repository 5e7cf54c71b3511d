"""Which weights of the teacher matter, by every method that a space uses, from calibration data."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from autocompress.graph.coupling import Coupling
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Weights
from autocompress.problem.candidate import RankSettings, SparsitySettings, WidthSettings, settings_of
from autocompress.problem.data import Data
from autocompress.students.calibration.channel_obs import obs_importance
from autocompress.students.calibration.importance import Method, saliency
from autocompress.students.calibration.layer_inputs import CALIBRATION_BATCH, collect_moments, solvable_layers
from autocompress.students.training.trained_importance import TRAINED, trained_importance
from autocompress.transforms.apply import MOMENTS, Saliency
from autocompress.transforms.sites import BoundSpace


def importances(bound: BoundSpace, weights: Weights, data: Data) -> Saliency:
    """Return what the space's choices need to know of the teacher, on calibration data: importances of
    channels by every method it uses, and the second moments of the layers whose rank or sparsity minds the
    data."""
    teacher = build(bound.network, weights)
    sites: dict[str, set[str]] = {}
    for site in bound.of_kind("width"):
        sites.setdefault(settings_of(site, WidthSettings).importance, set()).add(site.target)
    found = {
        method: importance(bound.coupling, teacher, data, method, sites[method]) for method in sorted(sites)
    }
    sparse = bound.of_kind("sparsity")
    if "obd" not in found and any(settings_of(site, SparsitySettings).method == "obd" for site in sparse):
        found["obd"] = saliency(teacher, data.calibration.batches(CALIBRATION_BATCH), "obd", data.task)
    layers = {site.target for site in bound.of_kind("rank") if settings_of(site, RankSettings).data_aware}
    layers |= {site.target for site in sparse if settings_of(site, SparsitySettings).method == "obs"}
    if layers:
        nodes = [node for node in solvable_layers(bound.network) if node.name in layers]
        images = (images for images, _ in data.calibration.batches(CALIBRATION_BATCH))
        moments = collect_moments(teacher, nodes, images)
        found[MOMENTS] = {
            name: (one.second if len(one.second) > 1 else one.second[0]).astype("float32")
            for name, one in moments.items()
        }
    return found


def importance(
    coupling: Coupling, teacher: GraphModule, data: Data, method: str, groups: Collection[str]
) -> Weights:
    """Return by one method, for the named groups at least, importances by parameter, output channels
    first."""
    if method in TRAINED:
        return trained_importance(teacher, data, TRAINED[method])
    batches = data.calibration.batches(CALIBRATION_BATCH)
    if method == "obs":
        wanted = (group for group in coupling.groups if group.name in groups)
        return obs_importance(coupling, teacher, [images for images, _ in batches], wanted, data.task)
    return saliency(teacher, batches, cast(Method, method), data.task)
