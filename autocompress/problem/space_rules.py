"""The form of a search-space rule: what a YAML file may say, checked by pydantic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from autocompress.files import JsonObject

LayerKind = Literal["conv", "linear", "depthwise", "embedding"]
BlockKind = Literal["residual"]
Importance = Literal[
    "l1", "l2", "taylor", "fisher", "bn_scale", "geometric_median", "obd", "obs", "slimming", "l0", "decay"
]
RankMethod = Literal["auto", "svd", "tucker2", "spatial_svd", "cp"]
StructureChoice = Literal["dense", "monarch", "kronecker", "circulant", "toeplitz_2", "toeplitz_4"]
BlockChoice = Literal[
    "keep",
    "drop",
    "depthwise_separable",
    "grouped_shuffle",
    "ghost",
    "sign_sharing",
    "fire",
    "inverted_bottleneck",
]
Bits = Literal["binary", "xnor", "ternary", 2, 3, 4, 8, 32]
MergeChoice = Literal["merge", "keep"]
SparsityMethod = Literal["magnitude", "obd", "obs", "l1", "l0", "decay", "gradual"]
RangeMethod = Literal["auto", "minmax", "percentile", "mse", "entropy"]

FULL = "full"
"""The rank option of a layer that stays one layer."""

NONE = "none"
"""The codebook option of a layer whose weights need not share values."""

_N_OF_M = re.compile(r"(\d+):(\d+)\Z")
_FEWEST_BITS = ("binary", "xnor", "ternary")
_CHOICES: tuple[str, ...] = (*get_args(BlockChoice), *get_args(StructureChoice))


def _not_empty(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("is empty")
    return values


def _sorted_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names a choice twice")
    return tuple(sorted(values, key=_order))


def _order(value: Any) -> float:
    if isinstance(value, str) and _N_OF_M.match(value):
        return density_of(value)
    if value in _FEWEST_BITS:
        return _FEWEST_BITS.index(value) - len(_FEWEST_BITS)
    if isinstance(value, str):
        return _CHOICES.index(value) if value in _CHOICES else float("inf")
    return float(value)


def n_of_m(option: Any) -> tuple[int, int] | None:
    """Return (2, 4) for `"2:4"`: two of every four weights along the inputs stay; None for a plain
    density."""
    match = _N_OF_M.match(option) if isinstance(option, str) else None
    return (int(match[1]), int(match[2])) if match else None


def density_of(option: Any) -> float:
    """Return the share of its weights that a sparsity option keeps: of `"2:4"` a half."""
    found = n_of_m(option)
    return float(option) if found is None else found[0] / found[1]


def _must_contain(default: Any) -> AfterValidator:
    def check(values: tuple[Any, ...]) -> tuple[Any, ...]:
        if default not in values:
            raise ValueError(f"must contain {default}: leaving the teacher as it is is always a choice")
        return values

    return AfterValidator(check)


def _rank_share(value: Any) -> Any:
    if value == FULL:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError(f"{value!r} is neither 'full' nor a number above 0 and below 1")


def _density(value: Any) -> Any:
    found = n_of_m(value)
    if found is not None and 0 < found[0] < found[1] <= 64:
        return value
    if isinstance(value, float) and 0 < value <= 1:
        return value
    raise ValueError(
        f"{value!r} is neither a number above 0 and up to 1 nor a pattern such as '2:4', in quotes"
    )


def _values_shared(value: Any) -> Any:
    if value == NONE or (type(value) is int and 2 <= value <= 256):
        return value
    raise ValueError(f"{value!r} is neither 'none' nor a whole number from 2 to 256")


Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Once = AfterValidator(_sorted_once)
Shares = Annotated[tuple[Share, ...], Once, _must_contain(1.0)]
RankShares = Annotated[tuple[Annotated[Any, BeforeValidator(_rank_share)], ...], Once, _must_contain(FULL)]
BitChoices = Annotated[tuple[Bits, ...], Once, _must_contain(32)]
Densities = Annotated[tuple[Annotated[Any, BeforeValidator(_density)], ...], Once, _must_contain(1.0)]
CodebookChoices = Annotated[
    tuple[Annotated[Any, BeforeValidator(_values_shared)], ...], Once, _must_contain(NONE)
]
MergeChoices = Annotated[tuple[MergeChoice, ...], Once, _must_contain("keep")]
BlockChoices = Annotated[tuple[BlockChoice, ...], Once, _must_contain("keep")]
StructureChoices = Annotated[tuple[StructureChoice, ...], Once, _must_contain("dense")]
Size = Annotated[int, Field(ge=1, le=1024)]


class RulePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _no_gaps(cls, data: Any) -> Any:
        gaps = [key for key, value in data.items() if value is None] if isinstance(data, dict) else []
        if gaps:
            raise ValueError(f"leaves {gaps[0]!r} without a value")
        return data

    def written(self) -> JsonObject:
        """Return only what the file says, without the defaults."""
        return self.model_dump(mode="json", exclude_unset=True)


class Match(RulePart):
    """Name parts of a network: every key that is written must fit. `name` is a glob over module paths; `a.*`
    also fits `a`."""

    layer: Literal["conv", "linear", "depthwise", "embedding", "any"] | None = None
    kernel: Size | None = None
    name: Annotated[str, Field(min_length=1)] | None = None
    block: BlockKind | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Match:
        if not self.model_fields_set:
            raise ValueError("is empty; to match every layer write {layer: any}")
        if self.block and (self.layer or self.kernel):
            raise ValueError("asks for a block and for a layer at once; write two rules")
        if self.kernel and self.layer == "linear":
            raise ValueError("asks for the kernel of a linear layer, which has none")
        return self

    def fits_layer(self, name: str, kind: str, kernel: int | tuple[int, ...] | None) -> bool:
        """Say whether a layer fits; `kernel` is its size along every axis, or one size for all."""
        if self.block or (self.layer not in (None, "any", kind)):
            return False
        sizes = {kernel} if isinstance(kernel, int) else set(kernel or ())
        if self.kernel and sizes != {self.kernel}:
            return False
        return self.fits_name(name)

    def fits_block(self, name: str) -> bool:
        return self.block is not None and self.fits_name(name)

    def fits_name(self, name: str) -> bool:
        return self.name is None or fnmatchcase(name, self.name) or self.name == f"{name}.*"


class Width(RulePart):
    """Shares of a group's channels to keep, chosen by `importance`, in multiples of `round_to`."""

    keep: Shares = (0.25, 0.5, 0.75, 1.0)
    importance: Importance = "l2"
    round_to: Size = 1


class Rank(RulePart):
    """Shares of a layer's full rank, in multiples of `round_to`.

    `auto` is tucker2 for kernels above 1×1 and svd for the rest; a layer that the method written
    does not apply to is left out, which `inspect` shows. With `data_aware` the layer's output on
    calibration data is kept close, not its weight.
    """

    method: RankMethod = "auto"
    keep: RankShares = (0.25, 0.5, 0.75, FULL)
    round_to: Size = 1
    data_aware: bool = False


class Sparsity(RulePart):
    """Shares of a layer's weights that stay, or patterns such as `2:4`; the others are zero.

    `method` says which stay: those of `magnitude`, `obd` and `obs` are chosen before a student trains, `l1`,
    `l0`, `decay` and `gradual` find them while it does. Nothing gets faster: the zeros make `student.acz`
    smaller.
    """

    keep: Densities = (0.1, 0.25, 0.5, 1.0)
    method: SparsityMethod = "magnitude"


class Quantize(RulePart):
    """Say how layers get their 8 bits before any training; see `students.calibration.quantization`."""

    ranges: RangeMethod = "mse"
    equalise: bool = False
    correct_biases: bool = True
    rounding: Literal["nearest", "adaptive"] = "nearest"


class Rule(RulePart):
    match: Match | None = None
    lock: Match | None = None
    optional: bool = False
    width: Width | None = None
    rank: Rank | None = None
    structure: StructureChoices | None = None
    bits: BitChoices | None = None
    merge: MergeChoices | None = None
    sparsity: Sparsity | None = None
    codebook: CodebookChoices | None = None
    block: BlockChoices | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Rule:
        written = self.model_fields_set - {"match", "lock", "optional"}
        if (self.match is None) == (self.lock is None):
            raise ValueError("needs either 'match' or 'lock'")
        if self.lock and written:
            raise ValueError("is a lock, which offers no choices; move them to a rule with 'match'")
        if self.match:
            self._check_choices(self.match, written)
        return self

    def _check_choices(self, match: Match, written: set[str]) -> None:
        if not written:
            raise ValueError(
                "offers no choices; write width, rank, structure, bits, merge, sparsity, codebook or block"
            )
        if match.block and written != {"block"}:
            raise ValueError(f"matches a block, which has no {min(written - {'block'})!r}")
        if not match.block and "block" in written:
            raise ValueError("offers 'block' but matches layers; write match: {block: residual}")
        of_dense = written & {"width", "rank", "structure"}
        if match.layer == "depthwise" and of_dense:
            raise ValueError(
                f"gives {max(of_dense)!r} to depthwise layers: they take the width of the layer they read "
                "and have no rank"
            )
        method = self.rank.method if self.rank else "auto"
        if method not in ("auto", "svd") and (match.layer == "linear" or match.kernel == 1):
            raise ValueError(f"asks for {method} where there is no kernel to decompose; use svd or auto")

    @property
    def target(self) -> Match:
        target = self.match or self.lock
        assert target is not None
        return target

    def fits_block(self, name: str) -> bool:
        """Return whether the block is meant; a lock that gives only a name fits blocks as well as layers."""
        only_name = self.lock is not None and self.lock.model_fields_set == {"name"}
        return self.target.fits_block(name) or (only_name and self.target.fits_name(name))


class SpaceFile(RulePart):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    description: str = ""
    quantize: Quantize = Quantize()
    rules: Annotated[tuple[Rule, ...], AfterValidator(_not_empty)]


PartType = TypeVar("PartType", bound=RulePart)


def merge(kind: type[PartType], parts: Iterable[PartType | None]) -> PartType | None:
    """Merge parts, of which later ones replace the keys that they write themselves; return None when there is
    no part."""
    written = [part.model_dump(exclude_unset=True) for part in parts if part is not None]
    return kind.model_validate({key: part[key] for part in written for key in part}) if written else None
