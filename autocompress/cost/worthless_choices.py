"""Which choices of a space do not pay on a device, and why, in words with the device's own numbers.

A choice is tried by itself, on the teacher and on the teacher at its fewest bits. What makes nothing
faster or smaller in either is dropped. Fewer bits always make the file smaller: a layer whose low
bits are never faster keeps them only where a budget of size or memory could ask for them. Sparsity and shared
values make only `student.acz` smaller, and stay only where a budget of the packed size asks for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from autocompress.cost.kernels import Kernel, kernels
from autocompress.cost.pricer import Pricer, with_choice
from autocompress.problem.candidate import PACKED_KINDS, Candidate, Option, Site, few_bits
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sites import BoundSpace

SHRUNK = frozenset({"peak_memory_bytes", "file_bytes", "packed_bytes"})
"""The budgets that could ask for fewer bits although they are not faster."""

PACKED_REASON = "makes only student.acz smaller, and nothing faster"
_KIND_OF_BITS: Mapping[Option, str] = {32: "float32", 8: "int8"}
Reasons = Mapping[tuple[str, Option], str]


@dataclass(frozen=True)
class Payoff:
    """Say what pays: `useless` options make nothing faster or smaller. `only_smaller` are fewer bits that
    make nothing faster, `only_packed` what makes nothing smaller but `student.acz`. All by (site name,
    option), with the reason."""

    useless: Reasons
    only_smaller: Reasons
    only_packed: Reasons

    def dropped(self, budgeted: Collection[str]) -> dict[tuple[str, Option], str]:
        """Return what a search under budgets of these costs leaves out."""
        found = dict(self.useless)
        if not SHRUNK & set(budgeted):
            found |= self.only_smaller
        if "packed_bytes" not in budgeted:
            found |= self.only_packed
        return found


def payoff(pricer: Pricer) -> Payoff:
    """Find what pays; raise ProfileError for kernels that the device's table cannot price."""
    judge = _Judge(pricer)
    useless = {
        (name, option): judge.words(pricer.bound.by_name[name], option) for name, option in pricer.useless()
    }
    return Payoff(useless, _only_smaller(pricer), only_packed(pricer.bound))


def only_packed(bound: BoundSpace) -> dict[tuple[str, Option], str]:
    """Return the choices of sparsity, of shared values and of fewer than 8 bits, which no runtime here
    computes any faster with."""
    return {
        (site.name, option): PACKED_REASON
        for site in bound.free
        for option in (site.options if site.kind in PACKED_KINDS else few_bits(site))
        if option != site.default
    }


def _only_smaller(pricer: Pricer) -> dict[tuple[str, Option], str]:
    """Look again without what was found, until nothing more is: a layer may only have been faster in few bits
    because its neighbours were, without a conversion in between."""
    found: dict[tuple[str, Option], str] = {}
    while True:
        bound = pricer.bound.without(found) if found else pricer.bound
        judge = _Judge(Pricer(bound, pricer.cost_model) if found else pricer)
        more = {
            (site.name, option): f"{words}, so it only makes the file smaller"
            for site in bound.of_kind("bits")
            for option in site.options
            if option not in (site.default, *few_bits(site)) and (words := judge.never_faster(site, option))
        }
        if not more:
            return found
        found |= more


def _named(option: Option) -> str:
    return _KIND_OF_BITS.get(option, f"{option}-bit" if isinstance(option, int) else str(option))


class _Judge:
    """Compare choices by the kernels that carry them out."""

    def __init__(self, pricer: Pricer) -> None:
        self.pricer = pricer
        self._kernels: dict[str, tuple[Kernel, ...]] = {}

    def never_faster(self, site: Site, option: Option) -> str:
        """Say why the option is never faster; empty where it is faster on the float or the low-bit
        teacher."""
        low = with_choice(self.pricer.low_bits, site.name, option)
        pairs = (
            (Candidate(), with_choice(Candidate(), site.name, option)),
            (with_choice(low, site.name, site.default), low),
        )
        times = [[self._latency_ms(candidate) for candidate in pair] for pair in pairs]
        if any(after < before for before, after in times):
            return ""
        kind, usual = _named(option), _named(site.default)
        before, after = (self._site_us(site, candidate) for candidate in pairs[0])
        if before and after and after >= before:
            compared = f"{after / before:.1f}× slower than {usual} for this layer on this device"
            return f"{kind} is {compared} ({after:.1f} against {before:.1f} µs)"
        (before, after), (low_before, low_after) = times
        return (
            f"{kind} saves nothing at this layer on this device: with the conversions around it the network "
            f"takes {_change(before, after)}, and {_change(low_before, low_after)} where all others are "
            "at their fewest bits"
        )

    def words(self, site: Site, option: Option) -> str:
        """Say why an option makes nothing faster or smaller."""
        changed = with_choice(Candidate(), site.name, option)
        latencies = _change(self._latency_ms(Candidate()), self._latency_ms(changed))
        if site.kind != "width":
            return f"makes nothing faster or smaller on this device: the network takes {latencies}"
        before, after = (self._layer(site, candidate) for candidate in (Candidate(), changed))
        if before is None or after is None:
            return f"makes nothing faster or smaller on this device: the network takes {latencies}"
        (full, full_us), (narrow, narrow_us) = before, after
        return (
            f"makes nothing faster or smaller on this device: width {narrow} of {full} takes "
            f"{narrow_us:.1f} µs, {full} takes {full_us:.1f} µs"
        )

    def _latency_ms(self, candidate: Candidate) -> float:
        return self.pricer.price(candidate).latency_ms

    def _layer(self, site: Site, candidate: Candidate) -> tuple[int, float] | None:
        """Return the output channels and time of the first layer of a site."""
        for kernel in self._found(candidate):
            if site.layers and site.layers[0] in kernel.nodes and kernel.out_channels:
                return kernel.out_channels, self._time_us(kernel)
        return None

    def _site_us(self, site: Site, candidate: Candidate) -> float:
        layers = set(site.layers)
        return sum(
            self._time_us(each) for each in self._found(candidate) if each.macs and layers & {*each.nodes}
        )

    def _time_us(self, kernel: Kernel) -> float:
        return self.pricer.cost_model.device.kernel_us(kernel)

    def _found(self, candidate: Candidate) -> tuple[Kernel, ...]:
        canonical = self.pricer.bound.canonical(candidate)
        if canonical.key not in self._kernels:
            network = deployed_network(self.pricer.bound, canonical)
            self._kernels[canonical.key] = kernels(network, self.pricer.cost_model.device.layouts)
        return self._kernels[canonical.key]


def _change(before_ms: float, after_ms: float) -> str:
    if after_ms == before_ms:
        return f"{before_ms:.3f} ms as before"
    return f"{after_ms:.3f} instead of {before_ms:.3f} ms"
