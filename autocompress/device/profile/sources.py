"""The networks that a device profile was measured on, and which of them speaks for a given network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autocompress.cost.kernels import COLUMNS, Kernel
from autocompress.device.profile.validation import Validation
from autocompress.device.runtimes.description import Plain

if TYPE_CHECKING:
    from autocompress.device.profile.profile import LatencyFit


@dataclass(frozen=True)
class CandidateOrigin:
    """Hold the network and the space that measured candidates come from. Empty and None mean not known.

    `input_shape` starts with the batch of one; `seed` decided which candidates.
    """

    network: str = ""
    space: str = ""
    space_fingerprint: str = ""
    teacher_fingerprint: str = ""
    input_shape: tuple[int, ...] = ()
    seed: int | None = None

    def to_json(self) -> dict[str, Plain]:
        """Return what a kit writes."""
        return {
            "space": self.space,
            "space_fingerprint": self.space_fingerprint,
            "network": self.network,
            "teacher_fingerprint": self.teacher_fingerprint,
            "input_shape": list(self.input_shape),
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Plain]) -> CandidateOrigin:
        """Return the origin that a kit names. Raises TypeError for what is of another type."""
        given = {newer_name(name): value for name, value in data.items()}
        texts = {}
        for name in ("network", "space", "space_fingerprint", "teacher_fingerprint"):
            text = given.get(name) or ""
            if not isinstance(text, str):
                raise TypeError(f"source.{name} is no text")
            texts[name] = text
        shape, seed = given.get("input_shape") or (), given.get("seed")
        if not isinstance(shape, (list, tuple)) or not all(isinstance(size, int) for size in shape):
            raise TypeError("source.input_shape is no list of sizes")
        if seed is not None and not isinstance(seed, int):
            raise TypeError("source.seed is no whole number")
        return cls(**texts, input_shape=tuple(shape), seed=seed)


@dataclass(frozen=True)
class ProfileSource:
    """Hold one network and space whose random candidates were measured, and what they alone were fitted to.

    `input_shape` starts with the batch of one. `networks` counts measured candidates;
    `reference_drift` is how far the reference's latency moved while they were, as a share of it.
    `kernels_fingerprint` is that of the network, see the function of this name. Empty texts and
    None mean not known.
    """

    network: str
    space: str
    fit: LatencyFit
    space_fingerprint: str = ""
    teacher_fingerprint: str = ""
    kernels_fingerprint: str = ""
    input_shape: tuple[int, ...] = ()
    networks: int = 0
    seed: int | None = None
    measured_at: str = ""
    teacher_latency_ms: float | None = None
    reference_drift: float | None = None
    file_coefficients: tuple[float, ...] = ()


_RENAMED = {"teacher": "network", "created": "measured_at"}


def newer_name(name: str) -> str:
    """Return what a field of a source is called now, where profiles of format 1 call it otherwise."""
    return _RENAMED.get(name, name)


def kernels_fingerprint(kernels: Sequence[Kernel]) -> str:
    """Return 16 hexadecimal digits over a network's kernels without the last, so that neither weights nor the
    number of classes count."""
    content = repr([[getattr(kernel, name) for name in COLUMNS] for kernel in kernels[:-1]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SourceMatch:
    """Say what speaks for a network. `index` is that of the source whose fit is used, None for the pooled
    fit.

    `also` are the sources whose errors count besides; `trusted` is whether errors found there hold
    for this network too; `basis` says it in words.
    """

    index: int | None
    also: tuple[int, ...]
    trusted: bool
    basis: str


def match(
    sources: Sequence[ProfileSource],
    input_shape: Sequence[int],
    space_fingerprint: str = "",
    teacher_fingerprint: str = "",
    network_kernels: Sequence[Kernel] = (),
) -> SourceMatch:
    """Return the source of the same teacher, else of the same network with other weights, else of the same
    space and input size where a single one has them, else none.

    The same network in another space is matched, but its errors are not trusted.
    """
    shape = tuple(input_shape)
    alike = [i for i, source in enumerate(sources) if not source.input_shape or source.input_shape == shape]

    def in_space(index: int) -> bool:
        known = sources[index].space_fingerprint
        return not (known and space_fingerprint) or known == space_fingerprint

    own = kernels_fingerprint(network_kernels) if network_kernels else ""
    for attribute, wanted, words in (
        ("teacher_fingerprint", teacher_fingerprint, "measured on this network"),
        ("kernels_fingerprint", own, "measured on this network with other weights"),
    ):
        found = [i for i in alike if wanted and getattr(sources[i], attribute) == wanted]
        for index in sorted(found, key=lambda i: not in_space(i)):
            words += "" if in_space(index) else f", in the space {sources[index].space!r}"
            return SourceMatch(index, (), in_space(index), words)
    near = [i for i in alike if in_space(i)]
    if len(near) == 1:
        name = sources[near[0]].network or "another network"
        return SourceMatch(near[0], (), True, f"measured on {name} in the same space and input size")
    if near:
        names = ", ".join(sources[i].network for i in near)
        return SourceMatch(None, tuple(near), True, f"measured on {names}, in the same space and input size")
    return SourceMatch(None, (), False, "not measured on this network, its space or its input size")


def with_sources(validation: Validation, sources: Iterable[ProfileSource]) -> Validation:
    """Return the validation of a profile of one source, with that source's own summary in `sources`."""
    own = replace(validation, networks=(), sources=())
    return replace(validation, sources=tuple(replace(own, network=source.network) for source in sources))
