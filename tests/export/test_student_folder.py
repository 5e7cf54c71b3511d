"""A student's folder is written whole, read back equal, and refused when it is not what was written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from autocompress.errors import StudentError
from autocompress.export.onnx import to_onnx
from autocompress.export.student_folder import is_intact, load_student, pack_student, read_spec, save_student
from autocompress.graph.module import build
from autocompress.graph.network import Network, Weights
from autocompress.graph.trace import trace
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.quantize import plan, with_ranges

FILES = {"spec.json", "model.safetensors", "model.onnx", "bench.json", "README.md"}


def student(floats: tuple[str, ...] = ()) -> tuple[Network, Weights]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    ).eval()
    network, weights = fold_batch_norms(*trace(module, (3, 8, 8)))
    assert weights is not None
    nodes = [
        replace(node, bits=8) if node.op in ("conv2d", "linear") and node.name not in floats else node
        for node in network.nodes
    ]
    network = network.with_nodes(nodes)
    with torch.no_grad():
        values = build(network, weights).forward_values(batch(), plan(network))
    return with_ranges(network, {k: (v.min().item(), v.max().item()) for k, v in values.items()}), weights


def batch() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def save(
    folder: Path, network: Network, weights: Weights, spec_extra: dict[str, object] | None = None
) -> None:
    save_student(
        folder,
        network=network,
        weights=weights,
        onnx_model=to_onnx(network, weights),
        spec_extra=spec_extra or {"classes": ["cat", "dog"]},
        bench={"latency_ms": 1.5},
        readme="# A student\n",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "students/one", *student())
    return tmp_path / "students/one"


def test_files_and_metadata(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
    assert read_spec(folder)["classes"] == ["cat", "dog"]
    assert json.loads((folder / "bench.json").read_text()) == {"latency_ms": 1.5}
    assert (folder / "README.md").read_text() == "# A student\n"
    assert is_intact(folder)


def test_loaded_student_computes_the_same(folder: Path) -> None:
    network, weights = student()
    loaded = load_student(folder)
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch()), build(network, weights)(batch()), rtol=1e-5, atol=1e-6)


def test_exporting_a_loaded_student_gives_the_same_integers(folder: Path) -> None:
    network, weights = student()
    first, second = to_onnx(network, weights), to_onnx(network, load_student(folder).export_weights())
    for one, other in zip(first.graph.initializer, second.graph.initializer, strict=True):
        if one.data_type in (2, 3):
            assert one.raw_data == other.raw_data


def test_8_bit_weights_are_stored_in_8_bits(tmp_path: Path) -> None:
    network, weights = student(floats=("_4",))
    assert {node.name: node.bits for node in network.nodes}["_4"] == 32
    save(tmp_path / "mixed", network, weights)
    arrays = load_file(tmp_path / "mixed/model.safetensors")
    kinds = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    assert kinds == {
        "0.weight": ("int8", (8, 3, 3, 3)),
        "0.weight.scale": ("float32", (8,)),
        "0.bias": ("float32", (8,)),
        "4.weight": ("float32", (4, 288)),
        "4.bias": ("float32", (4,)),
    }
    np.testing.assert_array_equal(arrays["4.weight"], weights["4.weight"])


def test_loads_in_a_fresh_process(folder: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from autocompress.export.student_folder import load_student\n"
        "x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))\n"
        "sys.stdout.write(str(load_student(Path(sys.argv[1]))(x).double().sum().item()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    expected = load_student(folder)(batch()).double().sum().item()
    assert float(done.stdout) == pytest.approx(expected, rel=1e-4)


def test_saving_again_replaces_the_folder(folder: Path) -> None:
    (folder / "stray.txt").write_text("old")
    save(folder, *student(), {"note": "second"})
    assert {path.name for path in folder.iterdir()} == FILES
    assert read_spec(folder)["note"] == "second"
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_failed_save_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "spec.json").read_bytes()
    write = Path.write_bytes

    def full_disk(path: Path, content: bytes) -> int:
        if path.name == "model.onnx":
            raise OSError("no space left")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save(folder, *student(), {"note": "second"})
    assert (folder / "spec.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_metadata_may_not_hide_the_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="network"):
        save(tmp_path / "x", *student(), {"network": {}})


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [_truncate, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_or_missing_file_is_named(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    damage(folder / name)
    with pytest.raises(StudentError, match=name):
        load_student(folder)


def test_flipped_bit_is_noticed(folder: Path) -> None:
    _flip_a_bit(folder / "model.onnx")
    assert not is_intact(folder)
    _flip_a_bit(folder / "model.safetensors")
    with pytest.raises(StudentError, match="checksum"):
        load_student(folder)


def _edit(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    spec = json.loads((folder / "spec.json").read_text())
    change(spec)
    (folder / "spec.json").write_text(json.dumps(spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.update(format=99), "format 99"),
        (lambda spec: spec.pop("network"), "network"),
        (lambda spec: spec["network"].pop("nodes"), "nodes"),
        (lambda spec: spec["network"].update(nodes=[[]]), "network cannot be read"),
        (lambda spec: spec["network"]["nodes"][0].update(op="__import__"), "__import__"),
        (lambda spec: spec["network"]["nodes"][0].update(op="set_.source_Storage"), "set_"),
        (lambda spec: spec["network"]["params"]["0.weight"].update(shape=[8, 3, 5, 5]), "0.weight"),
        (lambda spec: spec["network"]["params"]["0.weight"].update(dtype="int64"), "int64"),
        (lambda spec: spec["network"]["nodes"][0].update(op=["relu"]), "network cannot be read"),
        (lambda spec: spec["network"]["nodes"][0].update(bits=float("inf")), "no number"),
        (lambda spec: spec.update(mean=float("nan")), "no number"),
    ],
)
def test_spec_that_does_not_fit_is_refused(
    folder: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    _edit(folder, change)
    with pytest.raises(StudentError, match=message):
        load_student(folder)


def test_nesting_that_goes_on_for_ever_is_refused(folder: Path) -> None:
    (folder / "spec.json").write_text("[" * 200_000)
    with pytest.raises(StudentError, match=r"spec\.json"):
        load_student(folder)


def test_a_full_disk_leaves_what_is_packed_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_student(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write = Path.write_bytes

    def full_disk(path: Path, content: bytes) -> int:
        if path.name == "spec.json":
            raise OSError("no space left")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(StudentError, match="cannot be written"):
        pack_student(folder, coder="huffman")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    pack_student(folder, coder="huffman")
    assert is_intact(folder) and (folder / "student.acz").read_bytes() != before["student.acz"]


def test_what_a_killed_process_left_beside_a_student_is_in_nobodys_way(folder: Path) -> None:
    for name in (f".{folder.name}.{os.getpid()}.new", f".{folder.name}.{os.getpid()}.old"):
        (folder.parent / name).mkdir()
    save(folder, *student(), {"note": "second"})
    assert read_spec(folder)["note"] == "second"


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="cannot be read"):
        read_spec(tmp_path / "nowhere")
