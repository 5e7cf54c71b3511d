"""Decisions as data: the sites of a search, a candidate's choice at each, and the user's budgets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TypeVar

from autocompress.files import JsonObject

Option = float | int | str

_CANONICAL = json.JSONEncoder(separators=(",", ":"), sort_keys=True)

KINDS = ("block", "merge", "width", "rank", "structure", "bits", "sparsity", "codebook")
"""The kinds of site, in the order in which `transforms.apply` carries them out is its own affair."""

PACKED_KINDS = frozenset({"sparsity", "codebook"})
"""The kinds that make nothing smaller but `student.acz`, and nothing faster."""

BITS: tuple[Option, ...] = ("binary", "xnor", "ternary", 2, 3, 4, 8, 32)
"""Options of a `bits` site, from the fewest to the most on disk."""


@dataclass(frozen=True)
class WidthSettings:
    """Say how the channels of a group are ranked, and of which multiple are kept; `size` is their number."""

    importance: str
    round_to: int
    size: int


@dataclass(frozen=True)
class RankSettings:
    """Say how a layer is factorised, and of which multiple its rank is."""

    method: str
    round_to: int
    data_aware: bool


@dataclass(frozen=True)
class MergeSettings:
    """Name the layer that takes the site's in, and the activation between them that is dropped."""

    into: str
    activation: str


@dataclass(frozen=True)
class SparsitySettings:
    """Say how the weights that stay are found."""

    method: str


SiteSettings = WidthSettings | RankSettings | MergeSettings | SparsitySettings
Kind = TypeVar("Kind", bound=SiteSettings)


@dataclass(frozen=True)
class Site:
    """One decision.

    `name` is `kind:target`, for example `width:layer1.0.conv1`. `options` holds every legal
    choice with `default` (the teacher as it is) among them. A site with a `locked` reason has the
    default as its only option. `settings` are the rule's details, of the kinds that have any.
    """

    name: str
    kind: str
    target: str
    options: tuple[Option, ...]
    default: Option
    layers: tuple[str, ...] = ()
    locked: str = ""
    settings: SiteSettings | None = None

    def to_json(self) -> JsonObject:
        """Return every field by its name."""
        return {
            "name": self.name,
            "kind": self.kind,
            "options": list(self.options),
            "default": self.default,
            "layers": list(self.layers),
            "locked": self.locked,
            "settings": {} if self.settings is None else asdict(self.settings),
        }


def settings_of(site: Site, kind: type[Kind]) -> Kind:
    """Return the settings of a site whose kind has such. Raises TypeError for another site."""
    if not isinstance(site.settings, kind):
        raise TypeError(f"{site.name} has no {kind.__name__}")
    return site.settings


def few_bits(site: Site) -> tuple[Option, ...]:
    """Return the options of a `bits` site below 8, where it offers 8 too: they are no faster than 8 bits."""
    return site.options[: site.options.index(8)] if site.kind == "bits" and 8 in site.options else ()


def eight_bits(site: Site) -> Option:
    """Return the option of a `bits` site that computes on integers with the least harm: 8 where it is
    offered."""
    return site.options[-2] if len(site.options) > 1 else site.default


@dataclass(frozen=True)
class Candidate:
    """One choice for some of the sites; a site that is not named keeps its default."""

    choices: tuple[tuple[str, Option], ...] = ()

    @classmethod
    def of(cls, choices: Mapping[str, Option] | Iterable[tuple[str, Option]]) -> Candidate:
        return cls(tuple(sorted(dict(choices).items())))

    @cached_property
    def as_dict(self) -> dict[str, Option]:
        return dict(self.choices)

    def get(self, site: Site) -> Option:
        return self.as_dict.get(site.name, site.default)

    def to_json(self) -> dict[str, Option]:
        return dict(self.choices)

    @cached_property
    def key(self) -> str:
        """Return 12 hexadecimal digits of the SHA-256 of the canonical JSON: equal choices, equal key."""
        return hashlib.sha256(_CANONICAL.encode(self.choices).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Cost:
    """Hold what a candidate costs on a device; `latency_ms_ci95` is the interval of the estimate."""

    latency_ms: float
    latency_ms_ci95: tuple[float, float]
    peak_memory_bytes: int
    file_bytes: int
    macs: int
    parameters: int
    packed_bytes: int = 0
    """Estimated bytes of `student.acz`; of a student without one, of its `model.safetensors`."""

    @classmethod
    def from_json(cls, data: JsonObject) -> Cost:
        """Return the cost that `to_json` made `data` of. Raises KeyError, TypeError or ValueError."""
        low, high = data["latency_ms_ci95"]
        numbers = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        return cls(**{**numbers, "latency_ms_ci95": (float(low), float(high))})

    def to_json(self) -> JsonObject:
        return {
            "latency_ms": self.latency_ms,
            "latency_ms_ci95": list(self.latency_ms_ci95),
            "peak_memory_bytes": self.peak_memory_bytes,
            "file_bytes": self.file_bytes,
            "macs": self.macs,
            "parameters": self.parameters,
            "packed_bytes": self.packed_bytes,
        }
