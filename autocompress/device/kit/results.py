"""Reads what came back from a device: nothing that it sent is believed unchecked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from autocompress.device.imports.parsing import read_text
from autocompress.device.kit.folder import (
    AGAIN,
    DEVICE,
    MOST_BYTES,
    MOST_MODEL_BYTES,
    NAME,
    OPTIMIZED,
    Kit,
    count,
    json_object,
    read_bytes,
    refuse,
)
from autocompress.device.runtimes.base import NodeTime
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.files import JsonObject

MOST_DEVICE_BYTES = 1024**2
MOST_MS, MOST_NODE_US = 1e7, 1e9
MOST_APART = 50
"""A network and the sum of its operations differ less than that many times, unless a unit is wrong."""


@dataclass(frozen=True)
class KitResult:
    """Hold what the device found for one network: operators with the exported nodes that they carry out,
    where the runtime tells, and the network as the runtime rewrote it, where it shows that."""

    name: str
    latency_ms: float
    reference_ms: float
    nodes: tuple[tuple[NodeTime, tuple[str, ...]], ...]
    optimized: bytes


@dataclass(frozen=True)
class KitResults:
    """Hold all results of a kit on one device."""

    runtime: str
    threads: int
    device: DeviceDescription
    optimized_probes: Mapping[str, bytes]
    found: tuple[KitResult, ...]


def read_results(path: Path, kit: Kit) -> KitResults:
    """Return the results of a kit, with device.json and optimized/ beside them. Raises ProfileError.

    A cut-off last line does not count. Every network of the kit must be there.
    """
    lines = read_text(path, MOST_BYTES).split("\n")[:-1]
    if not lines:
        refuse(path, "it has no whole line", AGAIN)
    head = json_object(path, lines[0], 1)
    if head.get("kit") != kit.identity:
        refuse(path, f"these are results of another kit than {kit.folder}", "give the kit that was run")
    runtime = head.get("runtime")
    if not isinstance(runtime, str) or not NAME.match(runtime):
        refuse(path, f"line 1: the runtime is {str(runtime)[:40]!r}")
    found: dict[str, KitResult] = {}
    for number, line in enumerate(lines[1:], start=2):
        result = _result(path, number, json_object(path, line, number), kit)
        if result.name in found:
            refuse(path, f"line {number}: the network {result.name} is there twice")
        found[result.name] = result
    missing = [entry.name for entry in kit.entries if entry.name not in found]
    if missing:
        refuse(
            path,
            f"{len(missing)} of {len(kit.entries)} networks are missing: {', '.join(missing[:3])}",
            AGAIN,
        )
    return KitResults(
        runtime=runtime,
        threads=count(path, "line 1: threads", head.get("threads")),
        device=read_device(path.with_name(DEVICE)),
        optimized_probes={name: _optimized(path, name, None) for name in kit.probes},
        found=tuple(found.values()),
    )


def read_device(path: Path) -> DeviceDescription:
    """Return the plain values of device.json. Raises ProfileError."""
    data = json_object(path, read_text(path, MOST_DEVICE_BYTES))
    plain = (str, int, float, bool, type(None))
    return DeviceDescription(
        {
            key: value
            for key, value in data.items()
            if isinstance(value, plain)
            or (isinstance(value, list) and all(isinstance(one, plain) for one in value))
        }
    )


def _result(path: Path, number: int, data: JsonObject, kit: Kit) -> KitResult:
    where = f"line {number}"
    entry = kit.by_name.get(str(data.get("name")))
    if entry is None or data.get("sha256") != entry.sha256:
        refuse(
            path,
            f"{where}: {str(data.get('name'))[:80]!r} is no network of this kit, or another version of it",
        )
    try:
        own = [_number(path, where, value, MOST_MS, least=1e-6) for value in data["latency_ms"]]
        beside = [_number(path, where, value, MOST_MS, least=1e-6) for value in data["reference_ms"]]
        nodes = tuple(
            (NodeTime(_text(name), _text(op), _number(path, where, time_us, MOST_NODE_US)), _texts(origins))
            for name, op, time_us, origins in data["nodes"]
        )
    except (KeyError, TypeError, ValueError) as error:
        refuse(path, f"{where} is not a result: {type(error).__name__} {error}", AGAIN)
    if not own or len(own) != len(beside) or not sum(node.time_us for node, _ in nodes):
        refuse(path, f"{where}: it has no times")
    together_us = sum(node.time_us for node, _ in nodes)
    if not 1 / MOST_APART <= 1e3 * median(own) / together_us <= MOST_APART:
        refuse(
            path,
            f"{where}: the network takes {median(own):g} ms, and its operations {together_us:g} µs together",
            "give latency_ms in milliseconds and the times of nodes in microseconds",
        )
    digest = data.get("optimized_sha256")
    optimized = _optimized(path, entry.name, str(digest)) if digest is not None else b""
    return KitResult(entry.name, median(own), median(beside), nodes, optimized)


def _optimized(path: Path, name: str, digest: str | None) -> bytes:
    """Return the network as the runtime rewrote it; empty where there is none and none was promised."""
    file = path.with_name(OPTIMIZED) / f"{name}.onnx"
    if digest is None and not file.exists():
        return b""
    data = read_bytes(file, MOST_MODEL_BYTES)
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        refuse(file, "it is not the file that the results name", "copy optimized/ again, or measure again")
    return data


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise ValueError(f"{str(value)[:40]!r} is not a name")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{str(values)[:40]!r} is not a list of names")
    return tuple(_text(value) for value in values)


def _number(path: Path, where: str, value: Any, most: float, *, least: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{str(value)[:40]!r} is not a number")
    if not math.isfinite(value) or not least <= value <= most:
        refuse(path, f"{where}: the time {value} is not possible", AGAIN)
    return float(value)
