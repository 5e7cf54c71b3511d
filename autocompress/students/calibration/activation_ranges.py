"""Ranges of activations on calibration data, from which 8-bit quantizers are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from autocompress.graph.module import GraphModule
from autocompress.problem.splits import Batch
from autocompress.problem.teacher import eval_mode

Method = Literal["minmax", "percentile", "mse", "entropy"]
Range = tuple[float, float]

PERCENTILE = 0.9999
SAMPLES_PER_BATCH = 8192
CLIPPED_RANGES = 40
SMALLEST_SHARE = 0.3
BINS_A_LEVEL = 8
SMOOTHING = 1e-4
LEVELS = 255
SMALLEST_WIDTH = 1e-6


def collect_ranges(
    module: GraphModule, values: Iterable[str], batches: Iterable[Batch], method: Method = "minmax"
) -> dict[str, Range]:
    """Return {value name: (low, high)} with low ≤ 0 ≤ high, never empty, for each named value of the network.

    `minmax` keeps every value seen; `percentile` the share 0.9999 of them (each side by itself, on
    a sample of each batch); `mse` is the clipped range whose 8-bit rounding has the least squared error
    (on the same sample), `entropy` the one whose 8-bit histogram diverges least from a finer one of all
    values (Migacz 2017, "8-bit inference with TensorRT"). The module should carry no quantizers yet.

    Raises ValueError for an unknown method, without batches, and for values that are not finite.
    """
    if method not in get_args(Method):
        raise ValueError(f"range method {method!r} is not one of {', '.join(get_args(Method))}")
    return ranges_of(observe(module, values, batches, keep_samples=method != "minmax"), method)


def ranges_of(observed: Mapping[str, Seen], method: Method) -> dict[str, Range]:
    """Return the ranges by one method of what `observe` saw; see `collect_ranges`."""
    return {name: _valid(name, _RANGES[method](seen)) for name, seen in observed.items()}


def observe(
    module: GraphModule, values: Iterable[str], batches: Iterable[Batch], keep_samples: bool = True
) -> dict[str, Seen]:
    """Return what each named value was on the batches, enough for every method; `minmax` needs no samples."""
    names = tuple(dict.fromkeys(values))
    seen = {name: Seen() for name in names}
    count = 0
    with eval_mode(module), torch.inference_mode():
        for images, _ in batches:
            for name, value in module.forward_values(images, names).items():
                seen[name].add(value, keep_samples)
            count += 1
    if not count:
        raise ValueError("no calibration batches were given")
    return seen


def range_of(name: str, value: Tensor, method: Method = "mse") -> Range:
    """Return the range of one tensor, as of `collect_ranges`; `name` is for the error."""
    seen = Seen()
    seen.add(value, keep_sample=method != "minmax")
    return _valid(name, _RANGES[method](seen))


@dataclass
class Seen:
    """Extremes of a value and, in `samples`, some of what it was."""

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
    """Draw values at random places: equal steps would fall into step with the axes and miss most channels or
    pixels."""
    if len(values) <= SAMPLES_PER_BATCH:
        return values.float().clone()
    places = torch.randint(len(values), (SAMPLES_PER_BATCH,), generator=torch.Generator().manual_seed(0))
    return values[places].float()


def _minmax(seen: Seen) -> Range:
    return seen.low, seen.high


def _percentile(seen: Seen) -> Range:
    ordered = torch.cat(seen.samples).sort().values
    tail = int((1 - PERCENTILE) * len(ordered))
    return float(ordered[tail]), float(ordered[-1 - tail])


def _least_error(seen: Seen) -> Range:
    return _best_clipped(seen, _rounding_error)


def _least_divergence(seen: Seen) -> Range:
    return _best_clipped(seen, _divergence)


def _best_clipped(seen: Seen, error: Callable[[Tensor, float, float], float]) -> Range:
    """Return both sides of the range cut to the same share of what was seen."""
    sample = torch.cat(seen.samples)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    shares = torch.linspace(1.0, SMALLEST_SHARE, CLIPPED_RANGES).tolist()
    best = min(shares, key=lambda share: error(sample, low * share, high * share))
    return low * best, high * best


def _rounding_error(sample: Tensor, low: float, high: float) -> float:
    scale = max(high - low, SMALLEST_WIDTH) / LEVELS
    zero_point = round(-low / scale)
    rounded = torch.fake_quantize_per_tensor_affine(sample, scale, zero_point, 0, LEVELS)
    return float((rounded - sample).square().mean())


def _divergence(sample: Tensor, low: float, high: float) -> float:
    """Return the divergence of the values told apart by 8 times as many bins as there are levels, those
    beyond the range at its ends, from the same with the values of one level spread evenly over the bins it
    met. Zeros, which are exact in any range, are left out."""
    if high - low < SMALLEST_WIDTH:
        return 0.0
    bins = BINS_A_LEVEL * (LEVELS + 1)
    sample = sample[sample != 0]
    inside = torch.histc(sample[(sample >= low) & (sample <= high)], bins, low, high)
    every = torch.histc(sample.clamp(low, high), bins, low, high)
    met = (inside > 0).view(-1, BINS_A_LEVEL)
    spread = inside.view(-1, BINS_A_LEVEL).sum(1, keepdim=True) / met.sum(1, keepdim=True).clamp_min(1) * met
    p = every / every.sum().clamp_min(1)
    q = (spread.flatten() / inside.sum().clamp_min(1) + SMOOTHING / bins) / (1 + SMOOTHING)
    return float(torch.special.xlogy(p, p / q).sum())


_RANGES = {"minmax": _minmax, "percentile": _percentile, "mse": _least_error, "entropy": _least_divergence}


def _valid(name: str, found: Range) -> Range:
    low, high = found
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError(f"the value {name!r} is not finite on the calibration data")
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high - low >= SMALLEST_WIDTH else (low, low + SMALLEST_WIDTH)
