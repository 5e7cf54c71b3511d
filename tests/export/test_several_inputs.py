"""Networks of several inputs and outputs run in runtimes, are kept in folders and come back as they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from strangers import STRANGERS, Found, Result

from autocompress.cost.kernels import kernels
from autocompress.cost.memory import live_bytes, peak_memory_bytes, weight_bytes
from autocompress.device.runtimes.base import get_runtime
from autocompress.errors import InputError
from autocompress.export.onnx import to_onnx
from autocompress.export.student_folder import load_student, save_student
from autocompress.graph.capture.example import Example
from autocompress.graph.capture.signature import named_type
from autocompress.graph.module import build
from autocompress.graph.network import Network, Weights
from autocompress.graph.trace import trace


def opened(name: str) -> tuple[Network, Weights, Example]:
    torch.manual_seed(0)
    module = STRANGERS[name][0]().eval()
    example = Example.of_call(module, STRANGERS[name][1](1))
    return *trace(module, example), example


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_run_all_inputs_and_give_all_outputs(runtime: str) -> None:
    pytest.importorskip(runtime)
    engine = get_runtime(runtime)
    for name in ("denoiser", "siamese", "detector"):
        network, weights, example = opened(name)
        session = engine.load(to_onnx(network, weights).SerializeToString(), 1)
        session.run_once()
        with torch.no_grad():
            expected = build(network, weights).outputs_of(list(example.tensors))
        found = session.run_all([one.numpy() for one in example.tensors])
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-3, atol=1e-4)


def test_a_runtime_of_one_input_says_which_others_there_are() -> None:
    network, weights, _ = opened("siamese")
    with pytest.raises(InputError, match=r"it has 2 inputs[\s\S]*fix: use onnxruntime"):
        get_runtime("torch").load(to_onnx(network, weights).SerializeToString(), 1)


def test_a_folder_gives_back_the_structure_that_the_network_returns(tmp_path: Path) -> None:
    for name in ("detector", "pyramid", "words"):
        network, weights, _ = opened(name)
        model = to_onnx(network, weights)
        save_student(
            tmp_path / name,
            network=network,
            weights=weights,
            onnx_model=model,
            spec_extra={},
            bench={},
            readme="",
        )
    given = STRANGERS["detector"][1](2)
    found = load_student(tmp_path / "detector")(images=given[0])
    assert isinstance(found, Result) and isinstance(found.found, Found)
    assert found.found.boxes.shape == (2, 4, 4) and found.found.classes.dtype == torch.int64
    levels = load_student(tmp_path / "pyramid")(*STRANGERS["pyramid"][1](2))
    assert list(levels) == ["levels", "stride", "loss"] and levels["stride"] == 2 and levels["loss"] is None
    assert [tuple(one.shape[2:]) for one in levels["levels"]] == [(8, 8), (4, 4), (2, 2)]
    words = load_student(tmp_path / "words")
    assert words(**STRANGERS["words"][1](2)).shape == (2, 6, 20)
    with pytest.raises(TypeError, match="'mask'"):
        words(torch.zeros(1, 6, dtype=torch.int64))
    with pytest.raises(TypeError, match="takes the arguments tokens, mask"):
        words(torch.zeros(1, 6, dtype=torch.int64), masks=None)


def test_a_type_that_is_not_at_hand_is_replaced_by_one_like_it() -> None:
    missing = named_type("dataclass no_such_module:Result", ("boxes", "scores"))(1, 2)
    assert (missing.boxes, missing.scores, type(missing).__name__) == (1, 2, "Result")
    assert named_type("tuple strangers:Found", ("boxes", "scores", "classes")) is Found
    assert named_type("tuple strangers:Found", ("boxes",)) is not Found
    assert named_type("dataclass os:system", ("command",)) is not __import__("os").system


def test_memory_and_kernels_count_every_input_and_output() -> None:
    network, _, _ = opened("siamese")
    live = live_bytes(network)
    assert live["input"] == 2 * 4 * 81
    assert peak_memory_bytes(network) == max(live.values()) + weight_bytes(network)
    convolutions = [kernel for kernel in kernels(network) if kernel.macs == 8 * 9 * 16]
    assert len(convolutions) == 2
