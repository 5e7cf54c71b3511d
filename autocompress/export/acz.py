"""A student in one small file, `student.acz`, and back: its network and its weights, coded without loss.

What a student's weights have in common makes the file small: few distinct values (shared weights), many
zeros (sparse weights), 8-bit integers. Each tensor takes the form of `export.coding.tensors` with the fewest
bytes. The file is smaller on disk and nothing else: weights are decoded to the same floats.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from autocompress.cost.packed_size import is_coded
from autocompress.errors import StudentError
from autocompress.export.coding import container
from autocompress.export.coding.container import LIMIT_BYTES, Header
from autocompress.export.coding.records import body_of, smallest
from autocompress.export.coding.tensors import Scaled, Stored, shared_values
from autocompress.files import JsonObject
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights, from_json, to_json
from autocompress.graph.operations import KNOWN, is_opaque
from autocompress.graph.operators import UnknownOperatorError, operator_named
from autocompress.transforms.families.low_bit import from_levels, to_levels
from autocompress.transforms.families.quantize import quantize_weight, weights_in_int8

ACZ = "student.acz"
_NETWORK, _TEACHER_PATHS = "network", "module"
_WORTH_CODING = 256
"""A weight with fewer elements says nothing about whether a student is a sparse or shared one."""


def acz_bytes(
    network: Network, weights: Weights, meta: JsonObject | None = None, coder: str = "context"
) -> bytes:
    """Return the file's content; `meta` is JSON of the caller's, kept in the header beside the network.

    Weights of 8-bit layers are stored as the integers that the layer computes with, or as the values that
    they share where that is shorter, those on a grid as their levels, all others bit for bit, except that
    zeros lose their sign.
    `coder` is `context` (smallest) or `huffman`.
    Raises ValueError when `meta` uses the names `network` or `tensors`.
    """
    taken = {_NETWORK, "tensors"} & set(meta or {})
    if taken:
        raise ValueError(f"meta may not set {sorted(taken)}")
    header = Header(network.params, {**(meta or {}), _NETWORK: _slim(network)})
    stream = io.BytesIO()
    container.write(stream, header, _stored(network, weights, coder), coder)
    return stream.getvalue()


def save_acz(
    path: Path,
    network: Network,
    weights: Weights,
    meta: JsonObject | None = None,
    coder: str = "context",
) -> int:
    """Write `acz_bytes` to a file and return how many they are."""
    content = acz_bytes(network, weights, meta, coder)
    Path(path).write_bytes(content)
    return len(content)


def load_acz(source: Path | bytes, limit_bytes: int = LIMIT_BYTES) -> GraphModule:
    """Return the student as a module in eval mode. Raises StudentError, naming the file; see `container`."""
    with _opened(source) as (stream, where):
        header, tensors = container.read(stream, where, limit_bytes)
        network = _network(header, where)
        weights: Weights = dict(tensors)
    try:
        return build(network, from_levels(network, weights))
    except UNUSABLE as error:
        raise _damaged(where, str(error)) from error


def read_meta(source: Path | bytes) -> JsonObject:
    """Return what `meta` was when the file was written; read the header alone. Raises StudentError."""
    with _opened(source) as (stream, where):
        meta = container.read_header(stream, where).meta
    return {key: value for key, value in meta.items() if key != _NETWORK}


def is_worth_coding(network: Network, weights: Weights) -> bool:
    """Return whether the network chose zeros, shared values or fewer than 8 bits, or a weight has few
    distinct values, so that `student.acz` is much smaller."""
    return any(is_coded(node) for node in network.nodes) or any(
        weight.ndim > 1
        and weight.size >= _WORTH_CODING
        and weight.dtype == np.float32
        and shared_values(weight) is not None
        for weight in (weights[name] for name in network.params)
    )


def tensor_bytes(array: NDArray[Any], coder: str = "context") -> int:
    """Return what a tensor alone takes in the file, the few bytes around its record not counted."""
    return len(body_of(smallest(array, coder), coder)[1])


def _stored(network: Network, weights: Weights, coder: str) -> Iterator[Stored]:
    in_int8 = weights_in_int8(network)
    levels = {name: array.astype(np.float32) for name, array in to_levels(network, weights).items()}
    for name in network.params:
        if name in levels:
            yield smallest(levels[name], coder)
            continue
        array = _unsigned_zeros(weights[name])
        rounded = Scaled(*quantize_weight(array)) if name in in_int8 else None
        if rounded is not None and shared_values(array) is None:
            yield rounded
        else:
            yield smallest(array, coder, [rounded] if rounded is not None else [])


def _unsigned_zeros(array: NDArray[Any]) -> NDArray[Any]:
    """Drop the signs of zeros: masks leave zeros of either sign, which compute the same and would count as
    two values."""
    return np.asarray(array + array.dtype.type(0)) if np.issubdtype(array.dtype, np.floating) else array


def _slim(network: Network) -> JsonObject:
    """Return the network's JSON without what the header says already or nothing reads."""
    data = {name: value for name, value in to_json(network).items() if name != "params"}
    for node in data["nodes"]:
        node.pop(_TEACHER_PATHS, None)
    return data


def _network(header: Header, where: str) -> Network:
    try:
        params = {name: asdict(spec) for name, spec in header.tensors.items()}
        return known_network({**header.meta[_NETWORK], "params": params})
    except UNUSABLE as error:
        raise _damaged(where, f"its network cannot be read: {error}") from error


UNUSABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a network, or building it, raises where its description makes no sense."""


def known_network(data: Any) -> Network:
    """Return the network that `network.to_json` described, of operations that are known or registered here.

    Raises one of `UNUSABLE`, or StudentError for an operator that this process has not registered.
    """
    network = from_json(data)
    ops = {node.op for node in network.nodes} - KNOWN
    unknown = sorted(op for op in ops if not is_opaque(op))
    if unknown:
        raise ValueError(f"it names operations outside the list: {unknown}")
    for op in sorted(ops):
        try:
            operator_named(op)
        except UnknownOperatorError as error:
            raise StudentError(
                f"the student needs the operator {op}, which cannot be used here",
                why=error.why,
                fix=error.fix,
            ) from error
    return network


def _damaged(where: str, why: str) -> StudentError:
    return StudentError("the student's file is damaged", where=where, why=why, fix="export the student again")


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[BinaryIO, str]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source), "bytes"
        return
    try:
        with Path(source).open("rb") as stream:
            yield stream, str(source)
    except OSError as error:
        raise StudentError(
            "the student's file cannot be read", where=str(source), why=error.strerror or str(error),
            fix=f"give a {ACZ}",
        ) from error  # fmt: skip
