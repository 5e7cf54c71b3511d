"""Ranges of activations on calibration data, from which 8-bit quantizers are made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from autocompress.data_splits import Batch
from autocompress.graph.module import GraphModule
from autocompress.teacher import eval_mode

Method = Literal["minmax", "percentile", "mse"]
Range = tuple[float, float]

PERCENTILE = 0.9999
SAMPLES_PER_BATCH = 8192
MSE_STEPS = 40
MSE_SMALLEST_SHARE = 0.3
LEVELS = 255
SMALLEST_WIDTH = 1e-6


def collect_ranges(
    module: GraphModule, values: Iterable[str], batches: Iterable[Batch], method: Method = "minmax"
) -> dict[str, Range]:
    """{value name: (low, high)} with low ≤ 0 ≤ high, never empty, for each named value of the network.

    `minmax` keeps every value seen; `percentile` the share 0.9999 of them (each side by itself, on
    a sample of each batch); `mse` is the clipped range whose 8-bit rounding has the least squared error
    (on the same sample). The module should carry no quantizers yet.

    Raises ValueError for an unknown method, without batches, and for values that are not finite.
    """
    names = tuple(dict.fromkeys(values))
    if method not in get_args(Method):
        raise ValueError(f"range method {method!r} is not one of {', '.join(get_args(Method))}")
    seen = {name: _Seen() for name in names}
    count = 0
    with eval_mode(module), torch.inference_mode():
        for images, _ in batches:
            for name, value in module.forward_values(images, names).items():
                seen[name].add(value, keep_sample=method != "minmax")
            count += 1
    if not count:
        raise ValueError("no calibration batches were given")
    return {name: _valid(name, _RANGES[method](observed)) for name, observed in seen.items()}


def range_of(name: str, value: Tensor, method: Method = "mse") -> Range:
    """The range of one tensor, as of `collect_ranges`; `name` is for the error."""
    seen = _Seen()
    seen.add(value, keep_sample=method != "minmax")
    return _valid(name, _RANGES[method](seen))


@dataclass
class _Seen:
    low: float = float("inf")
    high: float = float("-inf")
    samples: list[Tensor] = field(default_factory=list)

    def add(self, value: Tensor, keep_sample: bool) -> None:
        low, high = torch.aminmax(value)
        self.low = min(self.low, float(low)) if bool(torch.isfinite(low)) else float("nan")
        self.high = max(self.high, float(high)) if bool(torch.isfinite(high)) else float("nan")
        if keep_sample:
            self.samples.append(_sample(value.flatten()))


def _sample(values: Tensor) -> Tensor:
    """At random places: equal steps would fall into step with the axes and miss most channels or pixels."""
    if len(values) <= SAMPLES_PER_BATCH:
        return values.float().clone()
    places = torch.randint(len(values), (SAMPLES_PER_BATCH,), generator=torch.Generator().manual_seed(0))
    return values[places].float()


def _minmax(seen: _Seen) -> Range:
    return seen.low, seen.high


def _percentile(seen: _Seen) -> Range:
    ordered = torch.cat(seen.samples).sort().values
    tail = int((1 - PERCENTILE) * len(ordered))
    return float(ordered[tail]), float(ordered[-1 - tail])


def _least_error(seen: _Seen) -> Range:
    sample = torch.cat(seen.samples)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    shares = torch.linspace(1.0, MSE_SMALLEST_SHARE, MSE_STEPS).tolist()
    best = min(shares, key=lambda share: _rounding_error(sample, low * share, high * share))
    return low * best, high * best


def _rounding_error(sample: Tensor, low: float, high: float) -> float:
    scale = max(high - low, SMALLEST_WIDTH) / LEVELS
    zero_point = round(-low / scale)
    rounded = torch.fake_quantize_per_tensor_affine(sample, scale, zero_point, 0, LEVELS)
    return float((rounded - sample).square().mean())


_RANGES = {"minmax": _minmax, "percentile": _percentile, "mse": _least_error}


def _valid(name: str, found: Range) -> Range:
    low, high = found
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError(f"the value {name!r} is not finite on the calibration data")
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high - low >= SMALLEST_WIDTH else (low, low + SMALLEST_WIDTH)
