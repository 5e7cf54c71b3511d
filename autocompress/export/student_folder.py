"""A student as a folder, and back.

    spec.json           format, network (operations, shapes, quantizers), checksums, the caller's metadata
    model.safetensors   weights; those of 8-bit layers as int8 with `<name>.scale`, one a channel
    student.acz         the same network and weights, coded (`export.acz`); only where the weights are sparse,
                        shared or below 8 bits, so that it is much smaller
    model.onnx          what was measured and what is deployed
    bench.json          the measurements
    README.md           for people

Nothing in it is executed on loading: the operations are named in `spec.json` and must be on the list of
`graph.operations`, and weights are plain arrays.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from autocompress.errors import StudentError
from autocompress.export.acz import ACZ, UNUSABLE, acz_bytes, is_worth_coding, known_network, load_acz
from autocompress.files import JsonObject, replace_folder
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights, to_json
from autocompress.transforms.families.low_bit import from_levels, to_levels
from autocompress.transforms.families.quantize import dequantize_weight, quantize_weight, weights_in_int8

FORMAT = 1
SPEC, WEIGHTS, MODEL, BENCH, README = (
    "spec.json",
    "model.safetensors",
    "model.onnx",
    "bench.json",
    "README.md",
)
_OWN_KEYS = ("format", "network", "sha256")
_SCALE = ".scale"


def save_student(
    folder: Path,
    *,
    network: Network,
    weights: Weights,
    onnx_model: onnx.ModelProto,
    spec_extra: JsonObject,
    bench: JsonObject,
    readme: str,
    coded: bytes | bool = True,
) -> None:
    """Write the student's folder, all of it or nothing; an older one of that name is replaced.

    `coded` is the content of `student.acz`, or whether it is made where it is worth it. `spec_extra`
    (choices, classes, normalisation, …) goes into `spec.json`. Raises ValueError when it uses one of the
    names `format`, `network`, `sha256` or is not JSON.
    """
    taken = [key for key in _OWN_KEYS if key in spec_extra]
    if taken:
        raise ValueError(f"spec_extra may not set {taken}")
    files = {
        WEIGHTS: save_arrays(_packed(network, weights)),
        MODEL: onnx_model.SerializeToString(),
        BENCH: _json(bench),
        README: readme.encode(),
    }
    if isinstance(coded, bytes):
        files[ACZ] = coded
    elif coded and is_worth_coding(network, weights):
        files[ACZ] = acz_bytes(network, weights, spec_extra)
    checksums = {name: _sha256(files[name]) for name in (WEIGHTS, MODEL, ACZ) if name in files}
    spec = {"format": FORMAT, **spec_extra, "sha256": checksums, "network": to_json(network)}
    write_folder(Path(folder), {SPEC: _json(spec), **files})


def read_spec(folder: Path) -> JsonObject:
    """Read `spec.json` as it is; raise StudentError when it is missing, damaged or of a later format."""
    path = Path(folder) / SPEC
    try:
        spec = json.loads(_read(path), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not JSON: {error}") from error
    if not isinstance(spec, dict) or not set(_OWN_KEYS) <= spec.keys():
        raise _damaged(path, f"the keys {', '.join(_OWN_KEYS)} are expected")
    if spec["format"] != FORMAT:
        raise StudentError(
            f"the student has format {spec['format']!r}, this version reads format {FORMAT}",
            where=str(path),
            fix="install the version of autocompress that wrote it",
        )
    if not isinstance(spec["sha256"], dict) or not {WEIGHTS, MODEL} <= spec["sha256"].keys():
        raise _damaged(path, f"sha256 must name {WEIGHTS} and {MODEL}")
    return spec


def load_student(folder: Path) -> GraphModule:
    """Load the student as a module in eval mode that computes what `model.onnx` computes.

    `folder` is a student's folder, or a `student.acz` alone. Needs neither the teacher nor its code.
    Raises StudentError, naming the file, for a folder that is not a student's, is incomplete, or is damaged.
    """
    folder = Path(folder)
    if folder.is_file():
        return load_acz(folder)
    spec = read_spec(folder)
    network = _network(folder / SPEC, spec["network"])
    path = folder / WEIGHTS
    content = _read(path)
    if _sha256(content) != spec["sha256"][WEIGHTS]:
        raise _damaged(path, "its checksum is not the one in spec.json")
    try:
        weights = _unpacked(network, load_arrays(content))
        return build(network, weights)
    except (SafetensorError, *UNUSABLE) as error:
        raise _damaged(path, str(error)) from error


def packed_size(folder: Path) -> int:
    """Return the bytes of the student's coded file; of one without, of its weights as they are stored."""
    coded = Path(folder) / ACZ
    return (coded if coded.is_file() else Path(folder) / WEIGHTS).stat().st_size


def coded_again(folder: Path, meta: JsonObject) -> bytes | None:
    """Return the `student.acz` of a student's folder with other `meta`; None where it has none. Raises
    StudentError."""
    path = Path(folder) / ACZ
    if not path.is_file():
        return None
    module = load_acz(path)
    return acz_bytes(module.source_network, module.export_weights(), meta)


def pack_student(folder: Path, output: Path | None = None, coder: str = "context") -> tuple[Path, int]:
    """Write `student.acz` of a student's folder, there or as `output`: (the file, its bytes).

    A folder whose own `student.acz` is written anew keeps its checksum in `spec.json`. Raises StudentError.
    """
    spec, module = read_spec(folder), load_student(folder)
    meta = {key: value for key, value in spec.items() if key not in _OWN_KEYS}
    try:
        content = acz_bytes(module.source_network, module.export_weights(), meta, coder)
    except UNUSABLE as error:
        raise _damaged(folder / SPEC, str(error)) from error
    path = folder / ACZ if output is None else output
    try:
        with tempfile.TemporaryDirectory(prefix=".packing.", dir=path.parent) as scratch:
            written = {Path(scratch) / ACZ: path}
            (Path(scratch) / ACZ).write_bytes(content)
            if path.resolve() == (folder / ACZ).resolve():
                spec["sha256"][ACZ] = _sha256(content)
                written[Path(scratch) / SPEC] = folder / SPEC
                (Path(scratch) / SPEC).write_bytes(_json(spec))
            for new, target in written.items():
                new.replace(target)
    except OSError as error:
        raise StudentError(
            f"{path.name} cannot be written", where=str(path), why=error.strerror or str(error),
            fix="give an --output in a folder that exists",
        ) from error  # fmt: skip
    return path, len(content)


def is_intact(folder: Path) -> bool:
    """Return whether the weights, coded or not, and the ONNX file are those that `spec.json` was written
    with."""
    checksums = read_spec(folder)["sha256"]
    names = [name for name in (WEIGHTS, MODEL, ACZ) if name in checksums]
    return all(_sha256(_read(Path(folder) / name)) == checksums[name] for name in names)


def _network(path: Path, data: Any) -> Network:
    try:
        return known_network(data)
    except UNUSABLE as error:
        raise _damaged(path, f"its network cannot be read: {error}") from error


def _packed(network: Network, weights: Weights) -> Weights:
    """Return the arrays as they are stored."""
    packed = to_levels(network, weights)
    in_8_bits = weights_in_int8(network)
    for name in network.params:
        if name in packed:
            continue
        if name in in_8_bits:
            packed[name], packed[name + _SCALE] = quantize_weight(weights[name])
        else:
            packed[name] = np.ascontiguousarray(weights[name]).reshape(weights[name].shape)
    return packed


def _unpacked(network: Network, arrays: Mapping[str, NDArray[Any]]) -> Weights:
    """Return the stored arrays as the network's weights; raise ValueError naming the array that does not
    fit."""
    weights: Weights = {}
    on_grid = {node.args[1].name for node in network.nodes if node.grid is not None}
    for name, spec in network.params.items():
        if name not in arrays:
            raise ValueError(f"{name} is missing")
        array = arrays[name]
        scale = arrays.get(name + _SCALE) if name + _SCALE not in network.params else None
        if array.shape != spec.shape or (scale is not None and scale.shape != array.shape[:1]):
            raise ValueError(f"{name} has shape {array.shape}, the network says {spec.shape}")
        value = array if scale is None else dequantize_weight(array, scale)
        if name in on_grid and value.dtype == np.int8:
            value = value.astype(np.float32)
        if str(value.dtype) != spec.dtype:
            raise ValueError(f"{name} has type {value.dtype}, the network says {spec.dtype}")
        weights[name] = value
    return from_levels(network, weights)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all of the folder or nothing; an older one of that name is replaced."""

    def fill(fresh: Path) -> None:
        for name, content in files.items():
            (fresh / name).write_bytes(content)

    folder.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(folder, fill)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StudentError(
            f"the student's {path.name} cannot be read",
            where=str(path),
            why=error.strerror or str(error),
            fix=f"give a folder that holds {SPEC}, {WEIGHTS} and {MODEL}",
        ) from error


def _damaged(path: Path, why: str) -> StudentError:
    return StudentError(
        f"the student's {path.name} is damaged", where=str(path), why=why, fix="export the student again"
    )


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
