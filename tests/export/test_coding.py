"""Coders give back what they were given, take what theory says, and refuse what is too short."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from autocompress.export.coding.huffman import LONGEST_CODE, code_lengths, decode_huffman, encode_huffman
from autocompress.export.coding.levels import decode_levels, encode_levels
from autocompress.export.coding.mixing import NAT, ONE, Predictor, squash_table, stretch_table
from autocompress.export.coding.range_coder import BitReader, encode_bits

Coder = tuple[Callable[[NDArray[np.integer]], bytes], Callable[[bytes, tuple[int, ...]], NDArray[np.int32]]]
CODERS = [
    pytest.param((encode_levels, decode_levels), id="context"),
    pytest.param((encode_huffman, decode_huffman), id="huffman"),
]
small_levels = arrays(np.int32, array_shapes(max_dims=4, max_side=9), elements=st.integers(-9, 9))


def gaussian(shape: tuple[int, ...], scale: float, seed: int = 0) -> NDArray[np.int64]:
    return np.rint(np.random.default_rng(seed).normal(0, scale, shape)).astype(np.int64)


def entropy_bits(levels: NDArray[np.integer]) -> float:
    """Shannon's bound in bits for the whole array, its distribution known."""
    _, counts = np.unique(levels, return_counts=True)
    return float(-(counts * np.log2(counts / levels.size)).sum())


@pytest.mark.parametrize("coder", CODERS)
@settings(max_examples=60, deadline=None)
@given(levels=small_levels)
def test_small_tensors_come_back(coder: Coder, levels: NDArray[np.int32]) -> None:
    encode, decode = coder
    np.testing.assert_array_equal(decode(encode(levels), levels.shape), levels)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(
    "levels",
    [
        np.zeros((0, 5), dtype=np.int64),
        np.zeros((300, 784), dtype=np.int64),
        np.full((3, 4), -7),
        gaussian((64, 32, 3, 3), 2.0),
        gaussian((40, 300), 40.0),
        gaussian((700, 30), 0.2),
        np.array([[32767, -32767, 1, 0]]),
        np.arange(-300, 300),
    ],
    ids=["empty", "zeros", "constant", "kernels", "wide", "many rows", "extremes", "vector"],
)
def test_tensors_of_all_kinds_come_back(coder: Coder, levels: NDArray[np.int64]) -> None:
    encode, decode = coder
    np.testing.assert_array_equal(decode(encode(levels), levels.shape), levels)


def test_context_coder_is_near_the_entropy_where_there_is_no_structure() -> None:
    levels = gaussian((64, 900), 1.5)
    assert 8 * len(encode_levels(levels)) < 1.02 * entropy_bits(levels)


def test_context_coder_goes_far_below_the_entropy_where_rows_and_columns_differ() -> None:
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(0, 1, (128, 1)) + rng.normal(0, 1, (1, 256)))
    levels = np.rint(rng.normal(0, 1, scale.shape) * scale).astype(np.int64)
    known = sum(entropy_bits(levels[np.abs(np.log(scale) - step / 4) < 1 / 8]) for step in range(-30, 31))
    assert known < 0.75 * entropy_bits(levels)
    assert 8 * len(encode_levels(levels)) < 0.87 * entropy_bits(levels)


def test_sparse_levels_take_less_than_a_bit() -> None:
    rng = np.random.default_rng(0)
    levels = np.where(rng.random((300, 784)) < 0.02, rng.choice([-1, 1], (300, 784)), 0)
    assert 8 * len(encode_levels(levels)) < 1.03 * entropy_bits(levels) < 0.2 * levels.size
    assert 8 * len(encode_huffman(levels)) > levels.size


def test_huffman_codes_by_hand() -> None:
    """Counts 1, 1, 2, 4: the two rare ones join first, so 3, 3, 2, 1 bits."""
    np.testing.assert_array_equal(code_lengths(np.array([1, 1, 0, 2, 4])), [3, 3, 0, 2, 1])
    levels = np.array([0, 1, 2, 2, 3, 3, 3, 3])
    # codes 110, 111, 10, 0 of symbols 0, 1, 2, 3: 14 bits
    assert encode_huffman(levels)[6:] == bytes([0b11011110, 0b10000000])


def test_huffman_codes_stay_short() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(np.array(fibonacci))
    assert lengths.max() <= LONGEST_CODE
    assert (2.0**-lengths).sum() <= 1


@given(st.lists(st.tuples(st.booleans(), st.integers(16, 65520)), max_size=300))
def test_range_coder_gives_bits_back_and_takes_what_they_cost(told: list[tuple[bool, int]]) -> None:
    bits, probabilities = [int(bit) for bit, _ in told], [probability for _, probability in told]
    data = encode_bits(bits, probabilities)
    assert BitReader(data).code(np.array(probabilities, dtype=np.int64)).tolist() == bits
    cost = -sum(
        np.log2(p / 65536 if bit else 1 - p / 65536) for bit, p in zip(bits, probabilities, strict=True)
    )
    assert cost - 48 <= 8 * len(data) <= cost + 16


def test_tables_are_the_logistic_function_and_its_inverse() -> None:
    odds = np.arange(-1500, 1501)
    squash, stretch = squash_table(), stretch_table()
    middle = len(squash) // 2
    np.testing.assert_allclose(squash[middle + odds] / ONE, 1 / (1 + np.exp(-odds / NAT)), atol=2 / ONE)
    assert np.abs(stretch[squash[middle + odds] >> 4] - odds).max() <= 20
    everything = b"".join(table.astype("<i8").tobytes() for table in (squash, stretch))
    assert hashlib.sha256(everything).hexdigest().startswith("43f14fc0f1611ec3"), "old files would not decode"


def test_predictor_learns_which_model_is_right() -> None:
    rng = np.random.default_rng(0)
    predictor = Predictor(1, (4, 2))
    for _ in range(300):
        useless, telling = rng.integers(0, 4, 16), rng.integers(0, 2, 16)
        predicted = predictor.predict(0, np.stack([useless, telling]))
        predictor.learn(0, (rng.random(16) < np.where(telling == 1, 0.9, 0.1)).astype(np.int64))
    np.testing.assert_allclose(predicted / ONE, np.where(telling == 1, 0.9, 0.1), atol=0.05)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (b"", (4,)),
        (b"\x01\x00\x01", (4,)),
        (b"\xff\xff\x01\x00", (4,)),
        (b"\x01\x00\x00\x00\x00", (4,)),
        (b"\x01\x00\x09\x00\x00", (2, 4)),
        (b"\x01\x00\x01\x00" + bytes(100), (3000, 3000)),
    ],
)
def test_impossible_levels_are_refused(data: bytes, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"bytes|range"):
        decode_levels(data, shape)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x04\x00\x11",
        b"\x00\x00\x03\x00\x11\x10\x00\x00",
        b"\x00\x00\x02\x00\x20\xff\xff",
        b"\x00\x00\x02\x00\xff",
    ],
)
def test_impossible_huffman_codes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"table|bytes|prefix|codes"):
        decode_huffman(data, (4,))


@pytest.mark.parametrize("coder", CODERS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60), levels=small_levels)
def test_any_bytes_decode_or_are_refused(coder: Coder, data: bytes, levels: NDArray[np.int32]) -> None:
    encode, decode = coder
    for tried in (data, encode(levels)[:4] + data):
        try:
            assert decode(tried, levels.shape).shape == levels.shape
        except ValueError as error:
            assert str(error)


def test_levels_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="40000"):
        encode_levels(np.array([40000]))
