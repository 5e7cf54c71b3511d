"""`student.acz`: bit-exact both ways, small, readable as a stream, and hostile files are refused."""

import io
import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from torch import nn

import autocompress as ac
from autocompress.errors import StudentError
from autocompress.export.acz import acz_bytes, is_worth_coding, load_acz, read_meta, save_acz
from autocompress.export.coding import container
from autocompress.export.coding.container import MAGIC, Header
from autocompress.export.coding.records import body_of, smallest, unpack
from autocompress.export.coding.tensors import (
    CodedGrid,
    Plain,
    Scaled,
    Shared,
    Sparse,
    candidates,
    on_grid,
    shared_values,
)
from autocompress.export.onnx import to_onnx
from autocompress.export.student_folder import is_intact, load_student, save_student
from autocompress.graph.module import build
from autocompress.graph.network import Network, ParamSpec, Weights
from autocompress.graph.trace import trace
from autocompress.transforms.families.quantize import dequantize_weight, plan, quantize_weight, with_ranges
from autocompress.transforms.families.sparsity import mask_of

floats = arrays(
    np.float32,
    array_shapes(max_dims=3, max_side=6),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)


def few_values(
    shape: tuple[int, ...], values: int, density: float = 1.0, seed: int = 0
) -> NDArray[np.float32]:
    """Weights that share a few values, most of them zero where the density is low."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.1, values).astype(np.float32)[rng.integers(0, values, shape)]
    return np.where(rng.random(shape) < density, shared, np.float32(0))


def small_network() -> tuple[Network, Weights]:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 4))
    network, weights = trace(module.eval(), (1, 6, 6))
    weights["0.weight"] = few_values((4, 1, 3, 3), 3)
    weights["3.weight"] = few_values((16, 64), 5, density=0.1)
    weights["3.bias"] = np.round(weights["3.bias"] * 256) / np.float32(256) + np.float32(0)
    return network, weights


def bits(array: NDArray[np.float32]) -> NDArray[np.uint32]:
    return array.view(np.uint32)


@pytest.fixture
def content() -> bytes:
    return acz_bytes(*small_network(), {"note": "a student"})


@pytest.mark.parametrize("coder", ["context", "huffman"])
def test_network_and_weights_come_back_bit_for_bit(tmp_path: Path, coder: str) -> None:
    network, weights = small_network()
    count = save_acz(tmp_path / "student.acz", network, weights, {"note": "a student"}, coder)
    assert count == (tmp_path / "student.acz").stat().st_size
    module = load_acz(tmp_path / "student.acz")
    assert module.source_network.params == network.params
    for name, array in module.export_weights().items():
        np.testing.assert_array_equal(bits(array), bits(weights[name]), err_msg=name)
    x = torch.randn(3, 1, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(module(x), build(network, weights)(x), rtol=0, atol=0)
    assert read_meta(tmp_path / "student.acz") == {"note": "a student"}


@settings(max_examples=150, deadline=None)
@given(array=floats)
def test_every_form_of_an_array_gives_its_bits_back(array: NDArray[np.float32]) -> None:
    for form in candidates(array):
        np.testing.assert_array_equal(bits(form.values()), bits(array))


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"]
)
def test_arrays_of_every_type_come_back(dtype: str) -> None:
    array = (np.arange(12) % 3 - (0 if dtype in ("uint8", "bool") else 1)).astype(dtype).reshape(3, 4)
    assert tensors_of(written({"a": array}))["a"].dtype == array.dtype
    np.testing.assert_array_equal(tensors_of(written({"a": array}))["a"], array)


def written(arrays_: dict[str, NDArray[np.generic]], coder: str = "context") -> bytes:
    header = Header({name: ParamSpec(a.shape, str(a.dtype)) for name, a in arrays_.items()}, {})
    stream = io.BytesIO()
    container.write(stream, header, [smallest(array) for array in arrays_.values()], coder)
    return stream.getvalue()


def tensors_of(content: bytes, limit_bytes: int = container.LIMIT_BYTES) -> dict[str, NDArray[np.generic]]:
    return dict(container.read(io.BytesIO(content), "a file", limit_bytes)[1])


def test_forms_by_hand() -> None:
    grid = on_grid(np.array([0.75, -0.5, 0.0], dtype=np.float32))
    assert grid is not None and grid.exponent == -2 and grid.levels.tolist() == [3, -2, 0]
    shared = shared_values(np.array([0.3, 0, 0, -0.1, 0.3, 0.3, 0], dtype=np.float32))
    assert shared is not None and shared.levels.tolist() == [1, 0, 0, -1, 1, 1, 0]
    assert on_grid(np.array([1.0, 2**-20], dtype=np.float32)) is None
    assert shared_values(np.arange(10, dtype=np.float32)) is None
    scaled = Scaled(np.array([[1, 2], [3, 4]]), np.array([0.5, 2], dtype=np.float32))
    assert scaled.values().tolist() == [[0.5, 1], [6, 8]]


def test_sparse_shared_weights_take_what_theory_says() -> None:
    """2 % of 150 × 400 kept, 6 values: H(0.02) + 0.02 · log2 6 bits each at best."""
    array = few_values((150, 400), 6, density=0.02)
    ideal = array.size * (0.02 * np.log2(1 / 0.02) + 0.98 * np.log2(1 / 0.98) + 0.02 * np.log2(6)) / 8
    assert ideal < len(written({"a": array})) < 1.06 * ideal + 200
    assert len(written({"a": array}, "huffman")) > array.size / 8


def test_8_bit_layers_keep_their_integers() -> None:
    torch.manual_seed(0)
    network, weights = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), (3, 8, 8))
    network = network.with_nodes(node.but(bits=8) if node.op == "conv2d" else node for node in network.nodes)
    network = with_ranges(network, dict.fromkeys(plan(network), (-1.0, 1.0)))
    loaded = load_acz(acz_bytes(network, weights)).export_weights()
    np.testing.assert_array_equal(
        loaded["0.weight"], dequantize_weight(*quantize_weight(weights["0.weight"]))
    )
    np.testing.assert_array_equal(loaded["0.bias"], weights["0.bias"])


def test_8_bit_layers_with_few_weights_left_are_not_taken_for_shared_ones() -> None:
    """230 of 2304 weights are at most 231 values: a table of floats is longer than integers with scales."""
    torch.manual_seed(0)
    network, weights = trace(nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU()).eval(), (16, 8, 8))
    network = network.with_nodes(node.but(bits=8) if node.op == "conv2d" else node for node in network.nodes)
    network = with_ranges(network, dict.fromkeys(plan(network), (-1.0, 1.0)))
    weight = weights["0.weight"] * mask_of(weights["0.weight"], 0.1)
    integers, scales = quantize_weight(weight)
    content = acz_bytes(network, {**weights, "0.weight": weight})
    exact = Scaled(integers, scales)
    assert len(content) - len(body_of(exact, "context")[1]) < 700
    np.testing.assert_array_equal(load_acz(content).export_weights()["0.weight"], exact.values())


def test_student_folder_has_one_where_weights_are_shared(tmp_path: Path) -> None:
    network, weights = small_network()
    dense = {name: np.random.default_rng(0).random(a.shape, dtype=np.float32) for name, a in weights.items()}
    assert is_worth_coding(network, weights) and not is_worth_coding(network, dense)
    for folder, values in (("shared", weights), ("dense", dense)):
        save_student(
            tmp_path / folder, network=network, weights=values, onnx_model=to_onnx(network, values),
            spec_extra={"classes": ["a", "b"]}, bench={}, readme="",
        )  # fmt: skip
        assert (tmp_path / folder / "student.acz").exists() == (folder == "shared")
        assert is_intact(tmp_path / folder)
    alone = ac.load(tmp_path / "shared/student.acz")
    x = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(alone(x), load_student(tmp_path / "shared")(x), rtol=0, atol=0)
    (tmp_path / "shared/student.acz").write_bytes(b"")
    assert not is_intact(tmp_path / "shared")


def test_zeros_of_either_sign_are_one_value() -> None:
    network, weights = small_network()
    signed = {name: np.where(array == 0, np.float32(-0.0), array) for name, array in weights.items()}
    assert acz_bytes(network, signed) == acz_bytes(network, weights)


def test_tensors_are_read_one_at_a_time() -> None:
    arrays_ = {f"t{i}": few_values((64, 64), 4, seed=i) for i in range(5)}
    stream = io.BytesIO(written(arrays_))
    _, tensors = container.read(stream)
    ends = []
    for name, array in tensors:
        np.testing.assert_array_equal(array, arrays_[name])
        ends.append(stream.tell())
    assert ends == sorted(set(ends)) and len(ends) == 5


def places(content: bytes) -> list[int]:
    """Every byte of the frame at both ends, every third in between."""
    return [place for place in range(len(content)) if place % 3 == 0 or not 30 < place < len(content) - 60]


def test_truncation_is_noticed_wherever_it_is(content: bytes) -> None:
    for length in places(content):
        with pytest.raises(StudentError):
            load_acz(content[:length])
    with pytest.raises(StudentError, match="after its end"):
        load_acz(content + b"\0")


def test_a_flipped_bit_is_noticed_wherever_it_is(content: bytes) -> None:
    rng = np.random.default_rng(0)
    for place in places(content):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(0, 8))
        with pytest.raises(StudentError):
            load_acz(bytes(damaged))


def test_swapped_records_are_noticed() -> None:
    arrays_ = {"a": few_values((16, 16), 3, seed=1), "b": few_values((16, 16), 3, seed=2)}
    one, other = written({"a": arrays_["a"]}), written({"a": arrays_["b"]})
    record = slice(len(MAGIC) + 1, -16)
    assert one[record] != other[record]
    swapped = one[: record.start] + other[record] + one[-16:]
    with pytest.raises(StudentError, match="checksum at the end"):
        tensors_of(swapped)


def forged(tensors: object, records: list[tuple[int, bytes]] = (), **meta: object) -> bytes:  # type: ignore[assignment]
    """A file with right checksums around whatever is in it."""
    header = zlib.compress(json.dumps({"tensors": tensors, **meta}).encode())
    return forged_from(header, records)


def forged_from(header: bytes, records: list[tuple[int, bytes]] = ()) -> bytes:  # type: ignore[assignment]
    content = MAGIC + b"\x01" + container._varint(len(header)) + header + container._crc(header)
    for form, body in records:
        record = bytes([form]) + container._varint(len(body)) + body
        content += record + container._crc(record)
    return content + container.blake2b(content, digest_size=16).digest()


SIXTEEN = ["a", [4, 4], "float32"]
CODED = b"\x00" + b"\x01\x00\x02\x00" + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (forged([["a", [2**30, 2**30], "float32"]]), "the limit is"),
        (forged([["a", [2**20, 2**9], "float32"], ["b", [2**20], "float32"]]), "the limit is"),
        (forged([["a", [4, -4], "float32"]]), "impossible shape"),
        (forged([["a", [4] * 40, "float32"]]), "impossible shape"),
        (forged([["a", [True], "float32"]]), "impossible shape"),
        (forged([["a", [4], "object"]]), "type 'object'"),
        (forged([["a", [4], ["float32"]]]), "header cannot be read"),
        (forged([SIXTEEN, SIXTEEN]), "not unique"),
        (forged({"a": 1}), "header cannot be read"),
        (forged(None), "header cannot be read"),
        (forged_from(b"no zlib"), "header cannot be read"),
        (forged_from(zlib.compress(b"[1]")), "header cannot be read"),
        (forged_from(zlib.compress(b"[" * 100_000)), "header cannot be read"),
        (forged_from(zlib.compress(b" " * (70 * 2**20))), "larger than allowed"),
        (forged([SIXTEEN], [(9, b"")]), "form 9"),
        (forged([SIXTEEN], [(0, bytes(63))]), "64 are expected"),
        (forged([SIXTEEN], [(2, b"\x7f" + CODED)]), "exponent"),
        (forged([SIXTEEN], [(2, b"\x00" + b"\x07" + CODED)]), "coder"),
        (forged([SIXTEEN], [(2, b"")]), "coder"),
        (forged([SIXTEEN], [(1, b"\x03\x00\x00\x00" + bytes(12) + CODED)]), "3 scales"),
        (forged([SIXTEEN], [(1, b"\xff\xff\xff\xff" + CODED)]), "4294967295 scales"),
        (forged([SIXTEEN], [(1, b"\x01\x00\x00\x00\x00\x00\xc0\x7f" + CODED)]), "not finite"),
        (forged([SIXTEEN], [(3, b"\xff\x04" + CODED)]), "cut off"),
        (
            forged([SIXTEEN], [(3, b"\x00\x04" + bytes(4) + b"\x00\x01\x00\x01\x00\x55\x55")]),
            "outside the codebook",
        ),
        (forged([["a", [30000, 3000], "float32"]], [(2, b"\x00" + CODED)]), "cannot hold"),
        (
            forged([["a", [30000, 3000], "float32"]], [(2, b"\x00\x01\x00\x00\x02\x00\x11" + bytes(9))]),
            "cannot hold",
        ),
        (forged([SIXTEEN], [(0, bytes(9000))]), "claims"),
        (forged([["a", [2], "bool"]], [(0, b"\x01\x02")]), "truth value"),
        (forged([["a", [4], "int64"]], [(2, b"\x00" + CODED)]), "not stored as levels"),
        (b"PK\x03\x04" + bytes(50), "no student.acz"),
        (MAGIC + b"\x02" + bytes(50), "version 2"),
        (MAGIC + b"\x01" + b"\xff" * 10, "five bytes"),
        (MAGIC + b"\x01" + b"\xff\xff\xff\xff\x0f", "at most"),
    ],
)
def test_impossible_files_are_refused_at_little_cost(content: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(StudentError, match=message):
            tensors_of(content)
        assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
    finally:
        tracemalloc.stop()


def test_the_limit_is_the_readers() -> None:
    content = written({"a": np.zeros((1000, 1000), dtype=np.float32)})
    assert len(content) < 200
    assert tensors_of(content)["a"].shape == (1000, 1000)
    with pytest.raises(StudentError, match="limit_bytes"):
        tensors_of(content, limit_bytes=3_999_999)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (None, "network cannot be read"),
        ({"nodes": []}, "network cannot be read"),
        ({"input_shape": [1, 4], "nodes": [], "output": "nowhere"}, "not computed"),
        (
            {
                "input_shape": [1, 4],
                "output": "x",
                "nodes": [{"name": "x", "op": "__import__", "args": [], "shape": []}],
            },
            "__import__",
        ),
    ],
)
def test_networks_outside_the_list_are_refused(network: object, message: str) -> None:
    with pytest.raises(StudentError, match=message):
        load_acz(forged([], network=network))


@settings(max_examples=200, deadline=None)
@given(form=st.integers(0, 4), body=st.binary(max_size=80), shape=st.lists(st.integers(0, 5), max_size=3))
def test_any_record_decodes_or_is_refused(form: int, body: bytes, shape: list[int]) -> None:
    content = forged([["a", shape, "float32"]], [(form, body)])
    try:
        assert tensors_of(content)["a"].shape == tuple(shape)
    except StudentError as error:
        assert error.why


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_mutated_records_with_right_checksums_decode_or_are_refused(data: st.DataObject) -> None:
    array = few_values((12, 20), 5, density=0.3)
    good = smallest(array)
    form, body = container.pack(good, "context", "a", ParamSpec(array.shape))
    body = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert unpack(form, bytes(body), ParamSpec(array.shape)).shape == array.shape
    except ValueError as error:
        assert str(error)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="cannot be read"):
        load_acz(tmp_path / "nowhere.acz")


def test_wrong_arguments_are_refused() -> None:
    network, weights = small_network()
    with pytest.raises(ValueError, match="network"):
        acz_bytes(network, weights, {"network": 1})
    with pytest.raises(ValueError, match="zip"):
        acz_bytes(network, weights, coder="zip")
    header = Header({"a": ParamSpec((3,))}, {})
    for tensor in (
        Plain(np.zeros(4, np.float32)),
        CodedGrid(np.zeros(4, int), 0),
        Shared(np.zeros(4, int), np.zeros(1)),
    ):
        with pytest.raises(ValueError, match="header says"):
            container.write(io.BytesIO(), header, [tensor])


def test_pack_writes_the_file_of_a_folder(tmp_path: Path) -> None:
    network, weights = small_network()
    folder = tmp_path / "student"
    save_student(
        folder, network=network, weights=weights, onnx_model=to_onnx(network, weights),
        spec_extra={"classes": ["a", "b"]}, bench={}, readme="",
    )  # fmt: skip
    outputs = [ac.pack(folder), ac.pack(folder, tmp_path / "h.acz", coder="huffman")]
    assert [path for path, _ in outputs] == [folder / "student.acz", tmp_path / "h.acz"]
    assert is_intact(folder)
    x = torch.randn(2, 1, 6, 6)
    for path, size_bytes in outputs:
        assert path.stat().st_size == size_bytes
        assert read_meta(path) == {"classes": ["a", "b"]}
        with torch.no_grad():
            torch.testing.assert_close(ac.load(path)(x), build(network, weights)(x), rtol=0, atol=0)
    with pytest.raises(StudentError, match="cannot be written"):
        ac.pack(folder, tmp_path / "nowhere" / "x.acz")


def test_sparse_values_and_their_places_have_to_fit() -> None:
    numbers = np.arange(1600)
    array = np.where(numbers % 4 == 0, numbers / 3, 0).astype(np.float32).reshape(40, 40)
    (sparse,) = (form for form in candidates(array) if isinstance(form, Sparse))
    np.testing.assert_array_equal(tensors_of(written({"a": array}))["a"], array)
    spec = ParamSpec(array.shape)
    form, body = body_of(sparse, "context")
    np.testing.assert_array_equal(unpack(form, body, spec), array)
    twos = Sparse(2 * sparse.levels, sparse.kept)
    for damaged in (body[:-4], body + b"\0" * 4, body[:-1], body[:3], body_of(twos, "context")[1]):
        with pytest.raises(ValueError):
            unpack(form, damaged, spec)
