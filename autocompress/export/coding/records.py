"""The bytes of one tensor's record in a `student.acz`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.export.coding.huffman import decode_huffman, encode_huffman
from autocompress.export.coding.levels import decode_levels, encode_levels
from autocompress.export.coding.tensors import (
    GREATEST_EXPONENT,
    LEAST_EXPONENT,
    MOST_SHARED_VALUES,
    CodedGrid,
    Plain,
    Scaled,
    Shared,
    Sparse,
    Stored,
    candidates,
)
from autocompress.graph.network import ParamSpec

PLAIN, SCALED, GRID, SHARED, SPARSE = 0, 1, 2, 3, 4
FORMS = (PLAIN, SCALED, GRID, SHARED, SPARSE)
CODERS = ("context", "huffman")
_ENCODE: tuple[Callable[[NDArray[Any]], bytes], ...] = (encode_levels, encode_huffman)
_DECODE: tuple[Callable[[bytes, tuple[int, ...]], NDArray[np.int32]], ...] = (decode_levels, decode_huffman)
_HALF, _SINGLE = 2, 4


def smallest(array: NDArray[Any], coder: str = "context", allowed: Sequence[Stored] = ()) -> Stored:
    """Return the form that takes the fewest bytes, of those that give the array back bit for bit and those
    that are allowed besides."""
    forms = [*candidates(array), *allowed]
    return min(forms, key=lambda form: len(body_of(form, coder)[1])) if len(forms) > 1 else forms[0]


def pack(tensor: Stored, coder: str, name: str, spec: ParamSpec) -> tuple[int, bytes]:
    """Return (form, body) of a tensor.

    Raises ValueError when it is not what `spec` says or the coder is not known.
    """
    array = tensor.array if isinstance(tensor, Plain) else tensor.levels
    dtype = str(array.dtype) if isinstance(tensor, Plain) else "float32"
    if array.shape != spec.shape or dtype != spec.dtype:
        raise ValueError(f"{name} is {dtype} {array.shape}, the header says {spec.dtype} {spec.shape}")
    return body_of(tensor, coder)


def body_of(tensor: Stored, coder: str) -> tuple[int, bytes]:
    if coder not in CODERS:
        raise ValueError(f"the coder {coder!r} is not one of {', '.join(CODERS)}")
    if isinstance(tensor, Plain):
        array = np.ascontiguousarray(tensor.array)
        return PLAIN, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    which = CODERS.index(coder)
    coded = bytes([which]) + _ENCODE[which](tensor.levels)
    if isinstance(tensor, CodedGrid):
        return GRID, tensor.exponent.to_bytes(1, "little", signed=True) + coded
    if isinstance(tensor, Scaled):
        head = len(tensor.scales).to_bytes(4, "little")
        return SCALED, head + tensor.scales.astype("<f4").tobytes() + coded
    if isinstance(tensor, Sparse):
        return SPARSE, len(coded).to_bytes(4, "little") + coded + tensor.kept.astype("<f4").tobytes()
    half = tensor.codebook.astype("<f2")
    single = (half.astype(np.float32) != tensor.codebook).any()
    head = (len(tensor.codebook) - 1).to_bytes(1, "little") + bytes([_SINGLE if single else _HALF])
    return SHARED, head + (tensor.codebook.astype("<f4") if single else half).tobytes() + coded


def unpack(form: int, body: bytes, spec: ParamSpec) -> NDArray[Any]:
    """Return the tensor. Raises ValueError when the body is not one of a tensor of this shape and type."""
    if form == PLAIN:
        return _plain(body, spec)
    if spec.dtype != "float32":
        raise ValueError(f"a tensor of type {spec.dtype} is not stored as levels")
    if form == GRID:
        exponent = int.from_bytes(body[:1], "little", signed=True)
        if not LEAST_EXPONENT <= exponent <= GREATEST_EXPONENT:
            raise ValueError(f"the exponent {exponent} is out of range")
        return CodedGrid(_levels(body[1:], spec), exponent).values()
    return {SCALED: _scaled, SHARED: _shared, SPARSE: _sparse}[form](body, spec)


def _plain(body: bytes, spec: ParamSpec) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    expected = prod(spec.shape) * dtype.itemsize
    if len(body) != expected:
        raise ValueError(f"{len(body)} bytes, {expected} are expected")
    if spec.dtype == "bool" and body.strip(b"\0\1"):
        raise ValueError("a truth value is neither 0 nor 1")
    return np.frombuffer(body, dtype=dtype).reshape(spec.shape).astype(spec.dtype)


def _scaled(body: bytes, spec: ParamSpec) -> NDArray[np.float32]:
    count = int.from_bytes(body[:4], "little")
    if count not in (1, *spec.shape[:1]):
        raise ValueError(f"{count} scales for a tensor of shape {spec.shape}")
    scales = _floats(body[4 : 4 + 4 * count], _SINGLE, count)
    return Scaled(_levels(body[4 + 4 * count :], spec), scales).values()


def _shared(body: bytes, spec: ParamSpec) -> NDArray[np.float32]:
    count, width = int.from_bytes(body[:1], "little") + 1, int.from_bytes(body[1:2], "little")
    if count > MOST_SHARED_VALUES or width not in (_HALF, _SINGLE):
        raise ValueError(f"a codebook of {count} values of {width} bytes")
    end = 2 + width * count
    codebook = _floats(body[2:end], width, count)
    return Shared(_levels(body[end:], spec), codebook).values()


def _sparse(body: bytes, spec: ParamSpec) -> NDArray[np.float32]:
    end = 4 + int.from_bytes(body[:4], "little")
    kept, odd = divmod(len(body) - end, _SINGLE)
    if odd or not 0 <= kept <= prod(spec.shape):
        raise ValueError(f"{len(body) - end} bytes of values for a tensor of shape {spec.shape}")
    return Sparse(_levels(body[4:end], spec), _floats(body[end:], _SINGLE, kept)).values()


def _floats(data: bytes, width: int, count: int) -> NDArray[np.float32]:
    if len(data) != width * count:
        raise ValueError("its scales or its codebook are cut off")
    values = np.frombuffer(data, dtype=f"<f{width}").astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("a scale or a value of its codebook is not finite")
    return values


def _levels(coded: bytes, spec: ParamSpec) -> NDArray[np.int32]:
    which = coded[0] if coded else len(CODERS)
    if which >= len(CODERS):
        raise ValueError("its coder is not known")
    return _DECODE[which](coded[1:], spec.shape)
