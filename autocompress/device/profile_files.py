"""Reading and writing the files of a device profile, strictly."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from autocompress.cost import file_features_count
from autocompress.device.latency_table import LatencyTable, Row
from autocompress.device.profile import DeviceProfile, Fit
from autocompress.errors import ProfileError
from autocompress.kernels import COLUMNS, Kernel
from autocompress.runtime_layouts import Layouts
from autocompress.strict_yaml import StrictYamlError, parse_document

FORMAT = 1
MOST_BYTES = 64 * 1024 * 1024
TIMES = ("count", "operations", "median_us", "ci95_low_us", "ci95_high_us")
PROFILE, KERNELS, VALIDATION = "profile.yaml", "kernels.csv", "validation.json"
_TEXTS = ("op", "precision", "activation", "layout")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.]*\Z")
_MOST_DIGITS = 15
_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "format": int,
    "runtime": str,
    "threads": int,
    "batch": int,
    "device": dict,
    "source": dict,
    "layouts": dict,
    "fit": dict,
    "file_coefficients": tuple,
}


def write_profile(folder: Path, profile: DeviceProfile) -> None:
    """Writes the three files; `folder` may hold raw measurements already. Raises ProfileError."""
    import yaml

    data = {
        "format": FORMAT,
        "runtime": profile.runtime,
        "threads": profile.threads,
        "batch": profile.batch,
        "device": dict(profile.device),
        "source": dict(profile.source),
        "layouts": asdict(profile.layouts),
        "fit": {
            "scales": dict(profile.fit.scales),
            "overheads_us": dict(profile.fit.overheads_us),
            "constant_us": profile.fit.constant_us,
        },
        "file_coefficients": list(profile.file_coefficients),
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *TIMES))
    for row in profile.table.rows:
        measured = (row.operations, row.median_us, row.ci95_low_us, row.ci95_high_us)
        times = (row.count, *(f"{value:.4f}" for value in measured))
        writer.writerow((*(getattr(row.kernel, name) for name in COLUMNS), *times))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / KERNELS).write_text(text.getvalue(), encoding="utf-8")
        validation = json.dumps(dict(profile.validation), indent=2)
        (folder / VALIDATION).write_text(validation + "\n", encoding="utf-8")
        plain = json.loads(json.dumps(data))
        (folder / PROFILE).write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{folder} cannot be written", why=error.strerror or str(error)) from error


def read_profile(folder: Path) -> DeviceProfile:
    """Reads and checks a profile folder. Raises ProfileError."""
    if folder.is_file():
        folder = folder.parent
    data = _read_yaml(folder / PROFILE)
    fit = _fit(folder / PROFILE, data["fit"])
    rows = tuple(_read_rows(folder / KERNELS))
    if not rows:
        _refuse(folder / KERNELS, "it has no rows", "profile the device again")
    path, given = folder / PROFILE, data["file_coefficients"]
    coefficients = tuple(_finite(path, "file_coefficients", value) for value in given)
    if len(coefficients) != file_features_count():
        _refuse(path, f"file_coefficients needs {file_features_count()} numbers, has {len(coefficients)}")
    return DeviceProfile(
        name=folder.name,
        runtime=data["runtime"],
        threads=data["threads"],
        batch=data["batch"],
        device=data["device"],
        source=data["source"],
        layouts=_layouts(path, data["layouts"]),
        table=LatencyTable(rows),
        fit=fit,
        file_coefficients=coefficients,
        validation=_read_validation(folder / VALIDATION),
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = parse_document(_text(path)).data
    except StrictYamlError as error:
        _refuse(path, f"line {error.line}: {error.message}")
    if not isinstance(data, dict):
        _refuse(path, "it is not a mapping of keys to values")
    for key, kind in _KEYS.items():
        if key not in data:
            _refuse(path, f"the key {key!r} is missing")
        if not isinstance(data[key], kind) or isinstance(data[key], bool):
            _refuse(path, f"the key {key!r} has the value {data[key]!r}, which is of the wrong type")
    if data["format"] != FORMAT:
        why = f"it has format {data['format']}, this version reads format {FORMAT}"
        _refuse(path, why, "update autocompress, or profile the device again")
    for key in ("threads", "batch"):
        if data[key] < 1:
            _refuse(path, f"the key {key!r} is {data[key]}, it must be 1 or more")
    return data


def _layouts(path: Path, data: Mapping[str, Any]) -> Layouts:
    block, last = data.get("float_block"), data.get("int8_channels_last")
    if type(block) is not int or not 0 <= block <= 1024:
        _refuse(path, f"the key layouts.float_block is {block!r}, a whole number from 0 to 1024 is expected")
    if type(last) is not bool:
        _refuse(path, f"the key layouts.int8_channels_last is {last!r}, true or false is expected")
    return Layouts(block, last)


def _fit(path: Path, data: Mapping[str, Any]) -> Fit:
    constant = _finite(path, "fit.constant_us", data.get("constant_us"))
    if constant < 0:
        _refuse(path, f"fit.constant_us is {constant}, it must be 0 or more")
    return Fit(_numbers(path, data, "scales"), _numbers(path, data, "overheads_us"), constant)


def _numbers(path: Path, data: Mapping[str, Any], key: str) -> dict[str, float]:
    values = data.get(key)
    if not isinstance(values, dict):
        _refuse(path, f"the key fit.{key} is missing or is not a mapping")
    positive = key == "scales"
    return {
        name: _finite(path, f"fit.{key}.{name}", value, positive=positive) for name, value in values.items()
    }


def _read_rows(path: Path) -> Iterator[Row]:
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    seen: dict[Kernel, int] = {}
    try:
        header = tuple(next(lines, ()))
        if header != (*COLUMNS, *TIMES):
            missing = [name for name in (*COLUMNS, *TIMES) if name not in header]
            _refuse(
                path,
                f"line 1: these are not the columns of a profile; missing: {', '.join(missing) or 'none'}",
            )
        for cells in lines:
            number = lines.line_num
            row = _row(path, number, cells)
            if row.kernel in seen:
                _refuse(path, f"line {number}: line {seen[row.kernel]} is of the same kernel")
            seen[row.kernel] = number
            yield row
    except csv.Error as error:
        _refuse(path, f"line {lines.line_num}: {error}")


def _row(path: Path, number: int, cells: list[str]) -> Row:
    if len(cells) != len(COLUMNS) + len(TIMES):
        _refuse(path, f"line {number}: {len(cells)} cells instead of {len(COLUMNS) + len(TIMES)}")
    given = dict(zip((*COLUMNS, *TIMES), cells, strict=True))
    values: dict[str, Any] = {}
    for name in COLUMNS:
        where = f"line {number}: {name}"
        values[name] = (
            _text_cell(path, where, given[name]) if name in _TEXTS else _whole(path, where, given[name])
        )
    if not (values["op"] and values["precision"]) or not values["groups"]:
        _refuse(path, f"line {number}: op and precision must not be empty, and groups not 0")
    count = _whole(path, f"line {number}: count", given["count"])
    operations, median, low, high = (
        _finite(path, f"line {number}: {name}", given[name], positive=name == "median_us")
        for name in TIMES[1:]
    )
    if count < 1 or operations < 0:
        _refuse(path, f"line {number}: count must be 1 or more, and operations 0 or more")
    if not 0 <= low <= median <= high:
        _refuse(path, f"line {number}: the interval {low} … {high} does not hold the median {median}")
    return Row(Kernel(**values), count, operations, median, low, high)


def _text_cell(path: Path, where: str, cell: str) -> str:
    if cell and not _WORD.match(cell):
        _refuse(path, f"{where} is {cell[:40]!r}, a plain word is expected")
    return cell


def _read_validation(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        _refuse(path, f"it is not JSON: {error}")
    if not isinstance(data, dict):
        _refuse(path, "it is not a JSON object")
    if data.get("error95") is not None:
        _finite(path, "error95", data["error95"], positive=True)
    return data


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            _refuse(path, f"it is larger than {MOST_BYTES // 1024**2} MiB")
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        _refuse(path, "the file is missing")
    except OSError as error:
        _refuse(path, error.strerror or str(error))
    except UnicodeDecodeError:
        _refuse(path, "it is not UTF-8 text")
    if not text.strip():
        _refuse(path, "the file is empty")
    if text.startswith("\ufeff"):
        _refuse(path, "it starts with a byte order mark", "save it as UTF-8 without one")
    return text


def _whole(path: Path, where: str, cell: str) -> int:
    if not cell.isascii() or not cell.isdigit() or len(cell) > _MOST_DIGITS:
        _refuse(path, f"{where} is {cell[:40]!r}, a whole number is expected")
    return int(cell)


def _finite(path: Path, where: str, value: Any, *, positive: bool = False) -> float:
    try:
        if isinstance(value, bool) or "_" in str(value):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        _refuse(path, f"{where} is {str(value)[:40]!r}, a number is expected")
    if not math.isfinite(number) or (positive and number <= 0):
        _refuse(path, f"{where} is {value}, a {'positive ' if positive else 'finite '}number is expected")
    return number


def _refuse(path: Path, why: str, fix: str = "correct the file, or profile the device again") -> NoReturn:
    raise ProfileError("the device profile cannot be used", where=str(path), why=why, fix=fix)
