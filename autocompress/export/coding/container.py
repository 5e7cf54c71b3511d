"""`student.acz`: tensors, coded without loss, in one file with checksums; docs/acz-format.md says how.

Written and read as a stream, one tensor at a time. A reader takes nothing on trust: lengths are checked
against what the file holds and against a limit before memory is taken, and damage is told from a
checksum before anything is decoded.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Any, BinaryIO

from numpy.typing import NDArray

from autocompress.errors import StudentError
from autocompress.export.coding.records import FORMS, pack, unpack
from autocompress.export.coding.tensors import Stored
from autocompress.files import JsonObject
from autocompress.graph.network import ParamSpec

MAGIC = b"\x89ACZ\r\n\x1a\n"
VERSION = 1
MIB = 2**20
LIMIT_BYTES = 1024 * MIB
"""The most that the tensors of a file may take once decoded, unless a reader is told otherwise."""

_HEADER_LIMIT, _PACKED_HEADER_LIMIT = 64 * MIB, 8 * MIB
_MOST_TENSORS, _MOST_AXES = 1_000_000, 16
_DIGEST_BYTES, _CRC_BYTES, _LONGEST_VARINT = 16, 4, 5
_ITEM_BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
_CHUNK = MIB


@dataclass(frozen=True)
class Header:
    """Hold the `tensors` in the order of their records; `meta` is JSON of the caller's."""

    tensors: Mapping[str, ParamSpec]
    meta: JsonObject


def write(stream: BinaryIO, header: Header, tensors: Iterable[Stored], coder: str = "context") -> int:
    """Write a whole file and return its bytes; `tensors` go with `header.tensors`, one by one.

    `coder` is `context` or `huffman`. Raises ValueError when a tensor is not of its shape and type.
    """
    out = _Out(stream)
    out.put(MAGIC + bytes([VERSION]))
    packed = zlib.compress(_header_json(header), 9)
    out.put(_varint(len(packed)) + packed + _crc(packed))
    for (name, spec), tensor in zip(header.tensors.items(), tensors, strict=True):
        form, body = pack(tensor, coder, name, spec)
        record = bytes([form]) + _varint(len(body)) + body
        out.put(record + _crc(record))
    out.put(out.digest.digest())
    return out.count


def read_header(stream: BinaryIO, where: str = "", limit_bytes: int = LIMIT_BYTES) -> Header:
    """Read the header alone; the stream stands at the first record then. Raises StudentError, as `read`
    does."""
    return _Reader(stream, where, limit_bytes).header()


def read(
    stream: BinaryIO, where: str = "", limit_bytes: int = LIMIT_BYTES
) -> tuple[Header, Iterator[tuple[str, NDArray[Any]]]]:
    """Return the header, and the tensors as they are read: (name, array), each decoded bit for bit.

    The last step checks the file as a whole: go through to the end before you trust any of it.

    Raises StudentError, here or on the way, for a file that is not of this format or of a later version,
    is cut off, damaged or impossible, or whose tensors take more than `limit_bytes`.
    """
    reader = _Reader(stream, where, limit_bytes)
    header = reader.header()
    return header, reader.tensors(header)


class _Out:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.count, self.digest = stream, 0, blake2b(digest_size=_DIGEST_BYTES)

    def put(self, data: bytes) -> None:
        self._stream.write(data)
        self.digest.update(data)
        self.count += len(data)


class _Reader:
    def __init__(self, stream: BinaryIO, where: str, limit_bytes: int) -> None:
        self._stream, self._where, self._limit_bytes = stream, where, limit_bytes
        self._digest = blake2b(digest_size=_DIGEST_BYTES)

    def header(self) -> Header:
        start = self._stream_bytes(len(MAGIC))
        self._digest.update(start)
        if start != MAGIC:
            raise StudentError(
                "this is no student.acz", where=self._where, why="it begins with other bytes",
                fix="give a file that autocompress pack wrote",
            )  # fmt: skip
        version = self._take(1)[0]
        if version != VERSION:
            raise StudentError(
                f"the file has version {version}, this program reads version {VERSION}",
                where=self._where,
                fix="install the version of autocompress that wrote it",
            )
        size = self._size(_PACKED_HEADER_LIMIT, "its header")
        packed = self._take(size)
        self._check_crc(packed, "its header")
        try:
            return _header(json.loads(_inflated(packed)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
            raise self._damaged(f"its header cannot be read: {error}") from error

    def tensors(self, header: Header) -> Iterator[tuple[str, NDArray[Any]]]:
        total = sum(_bytes_of(spec) for spec in header.tensors.values())
        if total > self._limit_bytes:
            raise StudentError(
                f"the file's tensors take {total:,} bytes, the limit is {self._limit_bytes:,}",
                where=self._where,
                fix="raise limit_bytes if you trust the file",
            )
        for name, spec in header.tensors.items():
            yield name, self._tensor(name, spec)
        expected = self._digest.digest()
        if self._stream_bytes(_DIGEST_BYTES) != expected:
            raise self._damaged("its checksum at the end is another one")
        if self._stream.read(1):
            raise self._damaged("bytes follow after its end")

    def _tensor(self, name: str, spec: ParamSpec) -> NDArray[Any]:
        form = self._take(1)
        size_bytes, size = self._varint()
        if size > 2 * _bytes_of(spec) + 4096:
            raise self._damaged(
                f"the record of {name} claims {size:,} bytes for a tensor of {_bytes_of(spec):,}"
            )
        body = self._take(size)
        self._check_crc(form + size_bytes + body, name)
        try:
            if form[0] not in FORMS:
                raise ValueError(f"form {form[0]} is not known")
            return unpack(form[0], body, spec)
        except ValueError as error:
            raise self._damaged(f"{name} cannot be decoded: {error}") from error

    def _size(self, limit: int, what: str) -> int:
        _, size = self._varint()
        if size > limit:
            raise self._damaged(f"{what} claims {size:,} bytes, at most {limit:,} are allowed")
        return size

    def _varint(self) -> tuple[bytes, int]:
        taken = bytearray()
        while len(taken) < _LONGEST_VARINT:
            taken += self._take(1)
            if taken[-1] < 128:
                return bytes(taken), sum((byte & 127) << 7 * place for place, byte in enumerate(taken))
        raise self._damaged("a length in it takes more than five bytes")

    def _check_crc(self, data: bytes, what: str) -> None:
        if self._take(_CRC_BYTES) != _crc(data):
            raise self._damaged(f"the checksum of {what} is another one")

    def _take(self, count: int) -> bytes:
        data = self._stream_bytes(count)
        self._digest.update(data)
        if len(data) < count:
            raise self._damaged("it ends early")
        return data

    def _stream_bytes(self, count: int) -> bytes:
        """Read at most so many; memory is taken for what is there, not for what is claimed."""
        parts = bytearray()
        while len(parts) < count:
            part = self._stream.read(min(_CHUNK, count - len(parts)))
            if not part:
                break
            parts += part
        return bytes(parts)

    def _damaged(self, why: str) -> StudentError:
        return StudentError(
            "the student's file is damaged", where=self._where, why=why, fix="copy or export it again"
        )


def _header_json(header: Header) -> bytes:
    tensors = [
        [name, list(spec.shape), spec.dtype, *([] if spec.trainable else [False])]
        for name, spec in header.tensors.items()
    ]
    return json.dumps({"tensors": tensors, **header.meta}, separators=(",", ":"), allow_nan=False).encode()


def _header(data: Any) -> Header:
    if len(data["tensors"]) > _MOST_TENSORS:
        raise ValueError(f"{len(data['tensors'])} tensors are too many")
    tensors: dict[str, ParamSpec] = {}
    for name, shape, dtype, *fixed in data["tensors"]:
        if not isinstance(name, str) or name in tensors:
            raise ValueError(f"the tensor's name {name!r} is no text or not unique")
        if not (len(shape) <= _MOST_AXES and all(type(size) is int and 0 <= size < 2**31 for size in shape)):
            raise ValueError(f"{name} has the impossible shape {shape}")
        if dtype not in _ITEM_BYTES:
            raise ValueError(f"{name} has type {dtype!r}, known are {', '.join(_ITEM_BYTES)}")
        tensors[name] = ParamSpec(tuple(shape), dtype, not fixed)
    return Header(tensors, {key: value for key, value in data.items() if key != "tensors"})


def _inflated(packed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    data = inflater.decompress(packed, _HEADER_LIMIT)
    if not inflater.eof:
        raise ValueError("it is cut off or larger than allowed")
    return data


def _bytes_of(spec: ParamSpec) -> int:
    return prod(spec.shape) * _ITEM_BYTES[spec.dtype]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "little")
