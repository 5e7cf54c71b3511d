"""What replaces a block learns from it: regression on the teacher's own values."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from priced_networks import small_resnet
from torch.nn import functional

from autocompress.graph.module import build
from autocompress.graph.network import INPUT, Network, Weights
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.data import Data, load_data
from autocompress.problem.space import parse_space
from autocompress.students.accuracy import evaluate
from autocompress.students.builder import StudentBuilder
from autocompress.students.training.blockwise import BlockPart, learned, region
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings
from autocompress.transforms.apply import apply
from autocompress.transforms.sites import BoundSpace, bind

SPACE = """
name: forms
rules:
  - match: {block: residual}
    block: [keep, depthwise_separable, ghost, inverted_bottleneck]
  - match: {layer: linear}
    structure: [dense, monarch]
  - match: {layer: conv}
    width: {keep: [0.5, 1.0]}
"""


@cache
def digits() -> Data:
    return load_data("digits,size=8,channels=1")


@cache
def teacher() -> tuple[Network, Weights]:
    module = build(*trace(small_resnet(1, 10), (1, 8, 8)))
    distil(module, None, digits(), DistillSettings(epochs=12))
    return module.source_network, module.export_weights()


@cache
def shop() -> StudentBuilder:
    network, weights = teacher()
    saliency = {"l2": {name: np.square(value) for name, value in weights.items()}}
    return StudentBuilder(bind(parse_space(SPACE), network), weights, digits(), saliency)


def bound() -> BoundSpace:
    return shop().bound


def block_part() -> BlockPart:
    block = bound().blocks["blocks.1"]
    return BlockPart(block.source, block.add)


def test_a_region_computes_what_the_network_computes_there() -> None:
    network, weights = teacher()
    part = block_part()
    own = region(network, part)
    assert own is not None
    images = next(iter(digits().calibration.batches(8)))[0]
    values = build(network, weights).forward_values(images, {part.source, part.output})
    torch.testing.assert_close(build(own, weights)(values[part.source]), values[part.output])
    assert region(network, BlockPart(part.source, "stem")) is None, (
        "the stem does not read the block's source"
    )
    assert region(network, BlockPart(INPUT, network.output)) is not None


@pytest.mark.parametrize("form", ["depthwise_separable", "ghost", "inverted_bottleneck"])
def test_a_compact_block_comes_closer_to_the_teachers_block(form: str) -> None:
    network, weights = apply(bound(), teacher()[1], Candidate.of({"block:blocks.1": form}))
    assert weights is not None
    part, reference = block_part(), build(*teacher())
    before = {name: value.copy() for name, value in weights.items()}
    found = learned(network, weights, part, reference, digits().calibration, steps=60)
    assert found is not None
    assert all(np.array_equal(before[name], weights[name]) for name in before), "arguments are not modified"
    own = region(network, part)
    assert own is not None and found.keys() == own.params.keys()
    images = next(iter(digits().validation.batches(128)))[0]
    values = reference.forward_values(images, {part.source, part.output})
    with torch.no_grad():
        errors = [
            float(functional.mse_loss(build(own, w)(values[part.source]), values[part.output]))
            for w in ({name: weights[name] for name in own.params}, found)
        ]
    assert errors[1] < 0.7 * errors[0]


def test_what_already_computes_the_block_learns_nothing() -> None:
    network, weights = teacher()
    assert learned(network, weights, block_part(), build(network, weights), digits().calibration, 3) is None


def test_students_start_from_what_was_learned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = Candidate.of({"block:blocks.0": "ghost", "structure:fc": "monarch"})
    first = evaluate(shop().start(candidate), digits().validation).accuracy
    taken = {key: found for key, found in shop()._learned.items() if found}
    assert ("block:blocks.0", "ghost") in taken
    start = shop().start(candidate).export_weights()
    for found in taken.values():
        assert all(
            np.array_equal(start[name], value) for name, value in found.items() if "running" not in name
        )
    monkeypatch.setattr(shop(), "_learned", {key: {} for key in shop()._learned})
    assert evaluate(shop().start(candidate), digits().validation).accuracy < first
    narrow = Candidate.of({"block:blocks.0": "ghost", "width:blocks.0.conv1": 0.5})
    assert shop().start(narrow).source_network == apply(bound(), None, narrow)[0]
