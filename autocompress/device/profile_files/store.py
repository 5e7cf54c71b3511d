"""Reading and writing the files of a device profile, strictly. Format 2 is written, 1 and 2 are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from autocompress import files
from autocompress.cost.layouts import Layouts
from autocompress.cost.model import file_features_count
from autocompress.device.profile.latency_table import LatencyTable, Row
from autocompress.device.profile.profile import DeviceProfile, LatencyFit
from autocompress.device.profile.sources import ProfileSource, newer_name
from autocompress.device.profile.validation import Validation
from autocompress.device.profile_files.bounded_text import MOST_BYTES, finite, read_text, refuse
from autocompress.device.profile_files.kernels_csv import WIDEST, read_rows, rows_text
from autocompress.device.profile_files.unit_checks import check_units
from autocompress.device.profile_files.validation_json import read_validation
from autocompress.device.runtimes.description import DeviceDescription, Plain
from autocompress.errors import ProfileError
from autocompress.files import JsonObject
from autocompress.strict_yaml import StrictYamlError, parse_document

__all__ = [
    "FORMAT",
    "KERNELS",
    "MOST_BYTES",
    "PROFILE",
    "VALIDATION",
    "load_profile",
    "profile_folder",
    "read_profile",
    "write_profile",
    "write_validation",
]

FORMAT = 2
FORMATS = (1, 2)
MOST_YAML_BYTES = 1024 * 1024
MOST_SOURCES = 200
MOST_THREADS = MOST_BATCH = 65536
PROFILE, KERNELS, VALIDATION = "profile.yaml", "kernels.csv", "validation.json"
_WIDEST_OF_FORMAT_1 = 10.0
_SHARED: Mapping[str, type | tuple[type, ...]] = {
    "format": int,
    "runtime": str,
    "threads": int,
    "batch": int,
    "device": dict,
    "layouts": dict,
    "fit": dict,
    "file_coefficients": tuple,
}
_KEYS = {1: {**_SHARED, "source": dict}, 2: {**_SHARED, "sources": tuple}}
_SOURCE_TEXTS = (
    "network", "space", "space_fingerprint", "teacher_fingerprint", "kernels_fingerprint", "measured_at",
)  # fmt: skip
_MOST_LETTERS = 300


def write_profile(folder: Path, profile: DeviceProfile) -> None:
    """Write the three files; `folder` may hold raw measurements already. Raises ProfileError."""
    import yaml

    data = {
        "format": FORMAT,
        "runtime": profile.runtime,
        "threads": profile.threads,
        "batch": profile.batch,
        "device": dict(profile.device.values),
        "layouts": asdict(profile.layouts),
        "sources": [_source_data(source) for source in profile.sources],
        "fit": _fit_data(profile.fit),
        "file_coefficients": list(profile.file_coefficients),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / KERNELS).write_text(rows_text(profile.table.rows), encoding="utf-8")
        plain = json.loads(json.dumps(data))
        (folder / PROFILE).write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ProfileError(
            f"{folder} cannot be written",
            why=error.strerror or str(error),
            fix="give a folder that can be written to",
        ) from error
    write_validation(folder, profile.validation)


def write_validation(folder: Path, validation: Validation) -> None:
    """Write `validation.json` alone, all of it or nothing. Raises ProfileError."""
    unfinished = folder / f".{VALIDATION}.partial"
    try:
        unfinished.write_text(json.dumps(validation.to_json(), indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / VALIDATION)
    except OSError as error:
        raise ProfileError(
            f"{folder} cannot be written",
            why=error.strerror or str(error),
            fix="give a folder that can be written to",
        ) from error


def read_profile(folder: Path) -> DeviceProfile:
    """Read and check a profile folder. Raises ProfileError."""
    if folder.is_file():
        folder = folder.parent
    path = folder / PROFILE
    data = _read_yaml(path)
    fit = _fit(path, "fit", data["fit"])
    old = data["format"] == 1
    rows = tuple(read_rows(folder / KERNELS, _WIDEST_OF_FORMAT_1 if old else WIDEST))
    if old:
        rows = tuple(map(_narrowed, rows))
    if not rows:
        refuse(folder / KERNELS, "it has no rows", "profile the device again")
    sources = (_only_source(path, data["source"], fit),) if old else _sources(path, data["sources"])
    profile = DeviceProfile(
        name=folder.resolve().name,
        runtime=data["runtime"],
        threads=data["threads"],
        batch=data["batch"],
        device=DeviceDescription(_plain(data["device"])),
        sources=sources,
        layouts=_layouts(path, data["layouts"]),
        table=LatencyTable(rows),
        fit=fit,
        file_coefficients=_coefficients(path, "file_coefficients", data["file_coefficients"]),
        validation=read_validation(folder / VALIDATION, len(sources)),
    )
    check_units(folder / KERNELS, profile)
    return profile


def _narrowed(row: Row) -> Row:
    """Return a row with no wider an interval than format 2 has: format 1 did not limit them."""
    low, high = 0.0, 2 * row.median_us
    return replace(row, ci95_low_us=max(row.ci95_low_us, low), ci95_high_us=min(row.ci95_high_us, high))


def _read_yaml(path: Path) -> JsonObject:
    try:
        data = parse_document(read_text(path, MOST_YAML_BYTES)).data
    except StrictYamlError as error:
        refuse(path, f"line {error.line}: {error.message}")
    if not isinstance(data, dict):
        refuse(path, "it is not a mapping of keys to values")
    number = data.get("format")
    if "format" in data and (type(number) is not int or number not in FORMATS):
        known = " and ".join(map(str, FORMATS))
        why = f"the key 'format' is {str(number)[:40]!r}, this version reads formats {known}"
        refuse(path, why, "update autocompress, or profile the device again")
    keys = _KEYS[data.get("format", FORMAT)]
    for key, kind in keys.items():
        if key not in data:
            refuse(path, f"the key {key!r} is missing")
        if not isinstance(data[key], kind) or isinstance(data[key], bool):
            given = str(data[key])[:80]
            refuse(path, f"the key {key!r} has the value {given!r}, which is of the wrong type")
    _known_keys(path, "", data, keys)
    for key, most in (("threads", MOST_THREADS), ("batch", MOST_BATCH)):
        if not 1 <= data[key] <= most:
            refuse(path, f"the key {key!r} is {data[key]}, it must be from 1 to {most}")
    _text(path, "runtime", data["runtime"])
    return data


def _known_keys(path: Path, where: str, data: Mapping[str, object], known: Iterable[str]) -> None:
    unknown = sorted(set(data) - set(known))
    if unknown:
        name = f"{where}.{unknown[0]}" if where else unknown[0]
        refuse(path, f"the key {name[:80]!r} is not known here; known: {', '.join(known)}")


def _layouts(path: Path, data: Mapping[str, object]) -> Layouts:
    block, last = data.get("float_block"), data.get("int8_channels_last")
    if type(block) is not int or not 0 <= block <= 1024:
        refuse(path, f"the key layouts.float_block is {block!r}, a whole number from 0 to 1024 is expected")
    if type(last) is not bool:
        refuse(path, f"the key layouts.int8_channels_last is {last!r}, true or false is expected")
    _known_keys(path, "layouts", data, ("float_block", "int8_channels_last"))
    return Layouts(block, last)


def _fit_data(fit: LatencyFit) -> dict[str, Plain]:
    return {
        "scales": dict(fit.scales),
        "overheads_us": dict(fit.overheads_us),
        "constant_us": fit.constant_us,
    }


def _fit(path: Path, where: str, data: Any) -> LatencyFit:
    """Return a fit, which is made of a number and of mappings from kernel groups to numbers."""
    if not isinstance(data, dict):
        refuse(path, f"the key {where} is missing or is not a mapping")
    scales = _numbers(path, f"{where}.scales", data.get("scales"), positive=True)
    overheads_us = _numbers(path, f"{where}.overheads_us", data.get("overheads_us"), positive=False)
    constant_us = finite(path, f"{where}.constant_us", data.get("constant_us"))
    if constant_us < 0:
        refuse(path, f"{where}.constant_us is {constant_us}, it must be 0 or more")
    _known_keys(path, where, data, tuple(each.name for each in fields(LatencyFit)))
    return LatencyFit(scales, overheads_us, constant_us)


def _numbers(path: Path, key: str, values: Any, *, positive: bool) -> dict[str, float]:
    if not isinstance(values, dict):
        refuse(path, f"the key {key} is missing or is not a mapping")
    return {name: finite(path, f"{key}.{name}", value, positive=positive) for name, value in values.items()}


def _coefficients(path: Path, where: str, given: Any) -> tuple[float, ...]:
    if not isinstance(given, tuple):
        refuse(path, f"the key {where} is not a list of numbers")
    found = tuple(finite(path, where, value) for value in given)
    if len(found) != file_features_count():
        refuse(path, f"{where} needs {file_features_count()} numbers, has {len(found)}")
    return found


def _only_source(path: Path, data: Mapping[str, object], fit: LatencyFit) -> ProfileSource:
    """Return the source of a profile of format 1, which may say more than is known here."""
    given = {newer_name(name): value for name, value in data.items()}
    own = {name: value for name, value in given.items() if name in ProfileSource.__dataclass_fields__}
    return _source(path, "source", own, fit)


def _sources(path: Path, data: Sequence[object]) -> tuple[ProfileSource, ...]:
    if not 1 <= len(data) <= MOST_SOURCES:
        refuse(path, f"the key 'sources' has {len(data)} entries, 1 to {MOST_SOURCES} are expected")
    found = []
    for index, given in enumerate(data):
        where = f"sources[{index}]"
        if not isinstance(given, dict):
            refuse(path, f"the key {where} is not a mapping")
        _known_keys(path, where, given, tuple(ProfileSource.__dataclass_fields__))
        found.append(_source(path, where, given, _fit(path, f"{where}.fit", given.get("fit"))))
    return tuple(found)


def _source(path: Path, where: str, given: Mapping[str, object], fit: LatencyFit) -> ProfileSource:
    texts = {name: _text(path, f"{where}.{name}", _plain(given.get(name, ""))) for name in _SOURCE_TEXTS}
    numbers = {
        name: finite(path, f"{where}.{name}", given[name], positive=name.endswith("_ms"))
        for name in ("teacher_latency_ms", "reference_drift")
        if given.get(name) is not None
    }
    shape, networks, seed = given.get("input_shape", ()), given.get("networks", 0), given.get("seed")
    if not isinstance(shape, tuple) or not all(type(size) is int and 1 <= size < 2**31 for size in shape):
        refuse(path, f"the key {where}.input_shape is {str(shape)[:40]!r}, a list of sizes is expected")
    if not isinstance(networks, int) or type(networks) is bool or not 0 <= networks < 2**31:
        refuse(path, f"the key {where}.networks is {str(networks)[:40]!r}, a whole number is expected")
    if seed is not None and (not isinstance(seed, int) or type(seed) is bool):
        refuse(path, f"the key {where}.seed is {str(seed)[:40]!r}, a whole number is expected")
    of_files = given.get("file_coefficients")
    coefficients = _coefficients(path, f"{where}.file_coefficients", of_files) if of_files else ()
    return ProfileSource(
        fit=fit,
        input_shape=shape,
        networks=networks,
        seed=seed,
        network=texts["network"],
        space=texts["space"],
        space_fingerprint=texts["space_fingerprint"],
        teacher_fingerprint=texts["teacher_fingerprint"],
        kernels_fingerprint=texts["kernels_fingerprint"],
        measured_at=texts["measured_at"],
        teacher_latency_ms=numbers.get("teacher_latency_ms"),
        reference_drift=numbers.get("reference_drift"),
        file_coefficients=coefficients,
    )


def _source_data(source: ProfileSource) -> dict[str, Plain]:
    """Return the source without what is not known; the fit last, since it is long."""
    values = {each.name: getattr(source, each.name) for each in fields(source) if each.name != "fit"}
    known = {name: value for name, value in values.items() if value not in ("", (), None)}
    return {**known, "fit": _fit_data(source.fit)}


def _text(path: Path, where: str, value: Any) -> str:
    """Return one short line that leads nowhere."""
    if not isinstance(value, str) or len(value) > _MOST_LETTERS or not (value.isprintable()):
        refuse(path, f"the key {where} is {str(value)[:40]!r}, one line of text is expected")
    if ".." in value.replace("\\", "/").split("/"):
        refuse(path, f"the key {where} is {value[:60]!r}, which leads out of the folder", "leave ../ out")
    return value


def _plain(value: Any) -> Any:
    """Return dates as text, tuples as lists: what JSON can say."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list, set)):
        return [_plain(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else value


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Return the profile of a shipped name or of a folder. Raises ProfileError naming file, line or key."""
    return read_profile(profile_folder(name_or_path))


def profile_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a profile, or its `profile.yaml`. Raises ProfileError."""
    path = files.find("hardware_profiles", name_or_path)
    if path is None:
        known = files.names("hardware_profiles")
        raise ProfileError(
            f"there is no device profile {str(name_or_path)!r}",
            why="it is neither a folder nor the name of a profile that ships with autocompress",
            fix=f"make one with: autocompress profile. Shipped: {', '.join(known) or 'none'}",
        )
    return path.parent if path.is_file() else path
