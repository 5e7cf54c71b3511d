"""Whatever torch can export opens: the traced network and its file compute what the module computes."""

import numpy as np
import onnxruntime
import pytest
import torch
from strangers import STRANGERS

from autocompress.export.onnx import to_onnx
from autocompress.graph.module import build
from autocompress.graph.trace import trace
from autocompress.problem.teacher import load_teacher

NEAR = 1e-4
"""Of the range of the outputs."""


def near(actual: np.ndarray, expected: np.ndarray) -> bool:
    scale = float(np.abs(expected).max())
    return actual.shape == expected.shape and bool(np.abs(actual - expected).max() <= NEAR * scale)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_s_network_opens_and_its_file_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    make, examples = STRANGERS[name]
    teacher = load_teacher(make())
    network, weights = trace(teacher.module, tuple(examples(1)[0].shape[1:]))
    (x,) = examples(3)
    with torch.no_grad():
        expected = teacher.module(x.clone()).numpy()
        assert near(build(network, weights)(x).numpy(), expected)
    session = onnxruntime.InferenceSession(to_onnx(network, weights, batch=3).SerializeToString())
    (actual,) = session.run(None, {"input": x.numpy()})
    assert near(actual, expected)
