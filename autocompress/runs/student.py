"""A measured student as a record, and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from autocompress.errors import StudentError
from autocompress.files import JsonObject, copy_folder
from autocompress.problem.tasks.metric import ACCURACY, Metric


@dataclass(frozen=True)
class Student:
    """One measured student, or the teacher. `accuracy` is on test data where there is some,
    `validation_accuracy` on the data the search chose by; both were computed from the exported file.

    They are scores by the `metric`, which for classes are the accuracy itself: see `Metric`.
    """

    key: str
    accuracy: float
    accuracy_std_err: float
    latency_ms: float
    latency_ms_ci95: tuple[float, float]
    peak_memory_bytes: int
    file_bytes: int
    macs: int
    parameters: int
    certified: bool
    path: str
    validation_accuracy: float = 0.0
    run: str = ""
    packed_bytes: int = 0
    accuracy_from: str = ""
    """`test` or `validation`; nothing where the version that measured it did not record it."""
    metric: Metric = ACCURACY

    @property
    def folder(self) -> Path:
        """Return the student's folder in its run."""
        return Path(self.run) / self.path

    @property
    def value(self) -> float:
        """Return the metric's value, of which `accuracy` is the score."""
        return self.metric.value(self.accuracy)

    def upper(self, cost: str) -> float:
        """Return the cost as a budget is held against it: of the latency the upper end of its interval."""
        return float(self.latency_ms_ci95[1] if cost == "latency_ms" else getattr(self, cost))

    def excess(self, limits: Mapping[str, float]) -> dict[str, float]:
        """Return for each limit the share by which the student is above (> 0) or below (≤ 0) it."""
        return {name: self.upper(name) / limit - 1 for name, limit in limits.items()}

    @classmethod
    def from_json(cls, data: JsonObject) -> Student:
        """Return the student that `to_json` made `data` of; later versions may have added to it.

        Raises KeyError, TypeError or ValueError for what is no such record.
        """
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        for name in _NUMBERS & known.keys():
            if isinstance(known[name], bool) or not isinstance(known[name], (int, float)):
                raise TypeError(f"{name} is {known[name]!r}, not a number")
        low, high = data["latency_ms_ci95"]
        if "metric" in known:
            known["metric"] = Metric.from_json(known["metric"])
        return cls(**{**known, "latency_ms_ci95": (float(low), float(high))})

    def to_json(self) -> JsonObject:
        """Return the record as JSON, without the run that it was found in."""
        data = asdict(self)
        del data["run"], data["metric"]
        if self.metric != ACCURACY:
            data["metric"] = {**self.metric.to_json(), "value": self.value}
        return {**data, "latency_ms_ci95": list(self.latency_ms_ci95)}

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Copy the student's folder. Only another student's folder is ever replaced, and only with
        `overwrite`. Raises StudentError where something else is in the way or cannot be written."""
        source, target = self.folder.resolve(), Path(folder).resolve()
        if not source.is_dir():
            raise StudentError(f"the student's folder {self.folder} is missing", fix="resume the run")
        if source == target or source in target.parents:
            raise StudentError(f"{folder} is the student's own folder", fix="give another folder")
        occupied = check_output(target, overwrite=overwrite)
        try:
            copy_folder(source, target, replace=occupied)
        except OSError as error:
            raise StudentError(
                f"{folder} cannot be written", why=str(error), fix="give another folder"
            ) from error
        return Path(folder)


def check_output(folder: str | Path, *, overwrite: bool) -> bool:
    """Return whether a student's folder is there already, to be replaced.

    Raises StudentError for anything else that is there, and for a student unless `overwrite`.
    """
    target = Path(folder)
    if not (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        return False
    is_student = (target / "spec.json").is_file() and (target / "model.onnx").is_file()
    if overwrite and is_student:
        return True
    raise StudentError(
        f"{folder} exists" if is_student else f"{folder} exists and is not a student's folder",
        fix="give --overwrite to replace it" if is_student else "give another folder",
    )


_NUMBERS = {one.name for one in fields(Student) if one.type in ("int", "float")}
