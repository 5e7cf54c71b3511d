"""Writes a kit's folder and reads it again; `results` reads what came back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from autocompress.device.imports.parsing import read_text
from autocompress.device.measure.layout_probe import probes
from autocompress.device.measure.quiet_gate import NATURAL, QUIET_SHARE, WINDOW, QuietSettings
from autocompress.device.profile.sources import CandidateOrigin
from autocompress.device.profiler import (
    LAST_RESORT,
    MOST_ERROR,
    MOST_LOADS,
    MOST_SLOWDOWN,
    PATIENCE,
    PROFILED_ATTEMPTS,
    PROFILED_RUNS,
    PROFILED_S,
    Sample,
)
from autocompress.device.runtimes.description import Plain
from autocompress.errors import ProfileError
from autocompress.files import JsonObject
from autocompress.graph.network import Network, from_json, to_json

FORMAT = 1
MANIFEST, SCRIPT, RESULTS, DEVICE, OPTIMIZED = (
    "kit.json",
    "measure_kit.py",
    "results.jsonl",
    "device.json",
    "optimized",
)
METADATA = "autocompress.network"
MOST_BYTES = 256 * 1024**2
MOST_MODEL_BYTES = 2 * 1024**3

NAME = re.compile(r"[A-Za-z0-9_-]{1,80}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class KitSettings:
    """Say how the script measures: as `profiler.Bench` does, with the same numbers."""

    quiet: QuietSettings = field(default_factory=QuietSettings)
    patience: tuple[int, ...] = PATIENCE
    last_resort: float = LAST_RESORT
    profiled_runs: int = PROFILED_RUNS
    profiled_s: float = PROFILED_S
    profiled_attempts: int = PROFILED_ATTEMPTS
    most_loads: int = MOST_LOADS
    most_error: float = MOST_ERROR
    most_slowdown: float = MOST_SLOWDOWN

    def to_json(self) -> dict[str, Plain]:
        """Return what kit.json says of it: the settings of the quiet gate, then those of this record."""
        own = {name: value for name, value in asdict(self).items() if name != "quiet"}
        gate = {"window": WINDOW, "quiet_share": QUIET_SHARE, "natural": NATURAL}
        return {**asdict(self.quiet), **gate, **own}


@dataclass(frozen=True)
class Entry:
    """Hold a network of a kit: its name, the digest of its file, and its precision."""

    name: str
    sha256: str
    precision: str


@dataclass(frozen=True)
class Kit:
    """Hold a kit that was read; `identity` is the digest of its manifest."""

    folder: Path
    identity: str
    runtime: str
    threads: int
    batch: int
    reference: str
    origin: CandidateOrigin
    entries: tuple[Entry, ...]
    probes: tuple[str, ...]

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.entries}

    def model(self, entry: Entry) -> bytes:
        """Return the network's file. Raises ProfileError when it is missing or is another one."""
        path = self.folder / "models" / f"{entry.name}.onnx"
        data = read_bytes(path, MOST_MODEL_BYTES)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            refuse(path, "its SHA-256 is not the one that kit.json lists", "make the kit again")
        return data

    def sample(self, entry: Entry) -> Sample:
        """Return the network as it was before it went into the kit."""
        network, model = described(self.model(entry), self.folder / "models" / f"{entry.name}.onnx")
        return Sample(entry.name, network, model, entry.precision)


def write_kit(
    folder: Path,
    samples: Sequence[Sample],
    *,
    runtime: str,
    threads: int,
    batch: int,
    origin: CandidateOrigin,
    settings: KitSettings | None = None,
) -> Kit:
    """Write the folder; the first sample, the teacher, is the reference. Raises ProfileError."""
    try:
        (folder / "models").mkdir(parents=True, exist_ok=True)
        entries: list[Plain] = []
        for sample in samples:
            data = with_description(sample.model, sample.network)
            entries.append({**_written(folder, sample.name, data), "precision": sample.precision})
        manifest = {
            "format": FORMAT,
            "runtime": runtime,
            "threads": threads,
            "batch": batch,
            "reference": samples[0].name,
            "settings": (settings or KitSettings()).to_json(),
            "source": origin.to_json(),
            "models": entries,
            "probes": [_written(folder, name, model) for name, model in probes().items()],
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=True)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8", newline="\n")
        shutil.copyfile(Path(__file__).with_name(SCRIPT), folder / SCRIPT)
        (folder / "README.md").write_text(_readme(runtime, threads, len(entries)), encoding="utf-8")
    except OSError as error:
        raise ProfileError(
            f"{folder} cannot be written",
            why=error.strerror or str(error),
            fix="give --output in a folder that can be written to",
        ) from error
    return read_kit(folder)


def read_kit(folder: Path) -> Kit:
    """Return the kit in a folder. Raises ProfileError that names what is wrong with its manifest."""
    path = folder / MANIFEST
    text = read_text(path, MOST_BYTES)
    data = json_object(path, text)
    if data.get("format") != FORMAT:
        refuse(path, f"it has format {data.get('format')!r}, this version reads format {FORMAT}")
    try:
        entries = tuple(_entry(path, entry, str(entry["precision"])) for entry in data["models"])
        found_probes = tuple(_entry(path, entry, "").name for entry in data["probes"])
        kit = Kit(
            folder=folder,
            identity=hashlib.sha256(path.read_bytes()).hexdigest(),
            runtime=str(data["runtime"]),
            threads=count(path, "threads", data["threads"]),
            batch=count(path, "batch", data["batch"]),
            reference=str(data["reference"]),
            origin=CandidateOrigin.from_json(data["source"]),
            entries=entries,
            probes=found_probes,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        refuse(path, f"it is not a kit's manifest: {type(error).__name__} {error}")
    if (
        len(kit.by_name) != len(entries)
        or kit.reference not in kit.by_name
        or found_probes != tuple(probes())
    ):
        refuse(path, "its networks are not unique, or its reference or probes are not among them")
    return kit


def with_description(model: bytes, network: Network) -> bytes:
    """Return the exported model with the network that it was made of in its metadata."""
    import onnx

    proto = onnx.load_from_string(model)
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(to_json(network), separators=(",", ":"))})
    data: bytes = proto.SerializeToString()
    return data


def described(model: bytes, path: Path) -> tuple[Network, bytes]:
    """Return the network that a model's metadata describes, and the model without it. Raises ProfileError."""
    import onnx

    try:
        proto = onnx.load_from_string(model)
        text = next((entry.value for entry in proto.metadata_props if entry.key == METADATA), None)
        if text is None:
            refuse(path, "it is not a model of a kit", "give a model of a kit's models/, or --teacher")
        network = from_json(json.loads(text))
    except ProfileError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        refuse(path, f"it cannot be read: {type(error).__name__}: {first[:120]}")
    del proto.metadata_props[:]
    return network, proto.SerializeToString()


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """Return a file of bounded size. Raises ProfileError."""
    try:
        if path.stat().st_size > most_bytes:
            refuse(path, f"it is larger than {most_bytes // 1024**2} MiB")
        return path.read_bytes()
    except FileNotFoundError:
        refuse(path, "the file is missing", "copy the folder again, whole")
    except OSError as error:
        refuse(path, error.strerror or str(error))


AGAIN = "run measure_kit.py again: it goes on where it stopped"


def _written(folder: Path, name: str, data: bytes) -> dict[str, Plain]:
    """Write a network's file and return what the manifest says of it."""
    file = f"models/{name}.onnx"
    (folder / file).write_bytes(data)
    return {"name": name, "file": file, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _entry(path: Path, data: Any, precision: str) -> Entry:
    """Return one network or probe that the manifest lists."""
    name, digest = str(data["name"]), str(data["sha256"])
    if not NAME.match(name) or data["file"] != f"models/{name}.onnx":
        refuse(path, f"it names a file outside of models/: {str(data['file'])[:80]!r}")
    if not SHA256.match(digest):
        refuse(path, f"the digest of {name} is no SHA-256: {digest[:80]!r}")
    return Entry(name, digest, precision)


def count(path: Path, name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 4096:
        refuse(path, f"{name} is {repr(value)[:40]}, a whole number of 1 or more is expected")
    return value


def json_object(path: Path, text: str, line: int | None = None) -> JsonObject:
    where = "" if line is None else f"line {line}: "
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(path, f"{where}it is not JSON: {str(error)[:80]}", AGAIN if line else FIX)
    if not isinstance(data, dict):
        refuse(path, f"{where}it is not a JSON object")
    return data


FIX = "make the kit and measure it again"


def refuse(path: Path, why: str, fix: str = FIX) -> NoReturn:
    raise ProfileError("the kit's files cannot be used", where=str(path), why=why, fix=fix)


def _readme(runtime: str, threads: int, networks: int) -> str:
    return f"""# A kit to measure a device with

{networks} networks, to be run with {runtime} on {threads} thread(s). The device needs Python
3.9 or later, numpy and the runtime; nothing is sent anywhere.

    pip install numpy {runtime}
    python measure_kit.py

A run that was stopped goes on where it stopped when the command is given again. Keep the device otherwise
idle and cool. Then copy `results.jsonl`, `device.json` and `optimized/` back into this folder and, where
autocompress is installed:

    autocompress profile import THIS_FOLDER -o hardware_profiles/NAME
"""
