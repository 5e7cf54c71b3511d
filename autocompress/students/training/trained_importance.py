"""Importances of channels that training finds: what a copy of the teacher does without when it is pressed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Param, Weights
from autocompress.problem.data import Data
from autocompress.students.calibration.layer_inputs import solvable_layers
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.sparsification import Thinner

TRAINED = {"slimming": "l1", "l0": "l0", "decay": "decay"}
"""Importance → the method of `training.sparsification` that finds it."""

SHARE = 0.5
"""The share of the channels that the penalty is set to leave."""

MOST_EPOCHS, MOST_STEPS = 2.0, 400
_PAST_THE_END = 1.01


def trained_importance(teacher: GraphModule, data: Data, method: str, seed: int = 0) -> Weights:
    """Return by parameter one importance per channel, `(channels,)`, after a short distillation of a copy
    under `l1` (network slimming, Liu et al. 2017, arXiv:1708.06519), `l0` (Louizos et al. 2018,
    arXiv:1712.01312) or `decay` (Hanson and Pratt 1989).

    Scales of batch norms are pressed, and the filters of layers whose outputs no batch norm scales. Training
    takes at most `MOST_EPOCHS` passes over the training data and `MOST_STEPS` steps. `teacher` is not
    modified.
    """
    student = build(teacher.source_network, teacher.export_weights())
    pressed = _pressed(teacher.source_network)
    thinner = Thinner(
        student, method, dict.fromkeys(pressed, (SHARE, _largest)), channels=True, until=_PAST_THE_END
    )
    steps = len(data.train.order(DistillSettings.batch_size, False, 0, True))
    epochs = min(MOST_EPOCHS, MOST_STEPS / max(1, steps))
    distil(
        student, teacher, data, DistillSettings(epochs=epochs, seed=seed, train_on="cpu"), progress=thinner
    )
    return {name: np.array(found) for name, found in thinner.scores().items()}


def _largest(scores: NDArray[np.floating]) -> NDArray[np.bool_]:
    return scores >= np.quantile(scores, 1 - SHARE)


def _pressed(network: Network) -> list[str]:
    norms = {node.name: node for node in network.nodes if node.op == "batch_norm"}
    scales = [node.args[1].name for node in norms.values() if isinstance(node.args[1], Param)]
    alone = [
        node.params[0]
        for node in solvable_layers(network)
        if not any(user in norms for user in network.users[node.name])
    ]
    return [*scales, *alone]
