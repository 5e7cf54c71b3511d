"""What candidates cost, before anything is trained."""

from __future__ import annotations

import logging
import random
from functools import cached_property

from autocompress.cost.compiled.pieces import Uncuttable
from autocompress.cost.compiled.pricing import SumPricer
from autocompress.cost.model import CostModel
from autocompress.errors import ProfileError
from autocompress.problem.budgets import LIMITED
from autocompress.problem.candidate import PACKED_KINDS, Candidate, Cost, Option, Site, eight_bits
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sampling import random_candidate
from autocompress.transforms.sites import BoundSpace

log = logging.getLogger("autocompress")

_MOST_KEPT = 20_000
_PROBES = 6
"""Random candidates whose price by pieces is compared with that of their whole network."""


class Pricer:
    """Price candidates of one bound space on one device; the last 20,000 answers are kept.

    A price is a sum over pieces of the network where these do not depend on each other, and that of the whole
    network elsewhere; both are the same to the last bit.
    """

    def __init__(self, bound: BoundSpace, cost_model: CostModel) -> None:
        self.bound, self.cost_model = bound, cost_model
        self._known: dict[tuple[tuple[str, Option], ...], Cost] = {}
        self._in_pieces = True

    def price(self, candidate: Candidate) -> Cost:
        """Return the predicted cost of a candidate. Raises ProfileError for a kernel the device has no row
        for."""
        cost = self._known.get(candidate.choices)
        if cost is None:
            cost = self._price(candidate)
            if len(self._known) >= _MOST_KEPT:
                del self._known[next(iter(self._known))]
            self._known[candidate.choices] = cost
        return cost

    def _price(self, candidate: Candidate) -> Cost:
        if self._in_pieces and self._sums is not None:
            try:
                return self._sums.price(candidate)
            except Uncuttable:
                self._in_pieces = False
        return self.price_whole(candidate)

    def price_whole(self, candidate: Candidate) -> Cost:
        """Return what `price` does, worked out on the candidate's whole network."""
        return self.cost_model.price(deployed_network(self.bound.folded, candidate))

    @cached_property
    def _sums(self) -> SumPricer | None:
        """Return what prices by pieces; None where the network cannot be cut, or where prices of a sample of
        candidates are not those of their whole networks."""
        rng = random.Random(0)
        drawn = [random_candidate(self.bound, rng) for _ in range(_PROBES)]
        try:
            sums = SumPricer(self.bound.folded, self.cost_model)
            for candidate in (Candidate(), self.low_bits, *drawn):
                if not self._agrees(sums, candidate):
                    log.warning(
                        "pieces of the network do not add up for %s: it is priced whole", candidate.key
                    )
                    return None
        except Uncuttable:
            return None
        return sums

    def _agrees(self, sums: SumPricer, candidate: Candidate) -> bool:
        try:
            whole = self.price_whole(candidate)
        except ProfileError:
            return True
        return sums.price(candidate) == whole

    @cached_property
    def teacher(self) -> Cost:
        return self.price(Candidate())

    @cached_property
    def low_bits(self) -> Candidate:
        """Return every layer that can in 8 bits: the starting point of most good candidates."""
        return Candidate.of({site.name: eight_bits(site) for site in self.bound.of_kind("bits")})

    @cached_property
    def smallest(self) -> Cost:
        """Return for each cost separately the least that coordinate descent over the sites reaches."""
        least = {name: self._least(name) for name in LIMITED}
        best = least["latency_ms"]
        return Cost(
            best.latency_ms,
            best.latency_ms_ci95,
            least["peak_memory_bytes"].peak_memory_bytes,
            least["file_bytes"].file_bytes,
            best.macs,
            best.parameters,
            least["packed_bytes"].packed_bytes,
        )

    def _least(self, name: str) -> Cost:
        def value(candidate: Candidate) -> float:
            return float(getattr(self.price(candidate), name))

        current = min((Candidate(), self.low_bits, self._extreme()), key=value)
        for site in sorted(self.bound.free, key=lambda site: site.kind != "block"):
            options = [with_choice(current, site.name, option) for option in site.options]
            current = min((current, *options), key=value)
        return self.price(current)

    def _extreme(self) -> Candidate:
        return Candidate.of(
            {
                site.name: ("drop" if "drop" in site.options else site.options[-1])
                if site.kind == "block"
                else site.options[0]
                for site in self.bound.free
            }
        )

    def useless(self) -> dict[tuple[str, Option], str]:
        """Return the options that make nothing faster or smaller, with the reason.

        Each is tried on the teacher and on the teacher at its fewest bits, by itself.
        """
        found = {}
        for site in self.bound.free:
            if site.kind == "bits" or site.kind in PACKED_KINDS:
                continue
            for option in site.options:
                if option != site.default and not any(
                    self._pays(base, site, option) for base in (Candidate(), self.low_bits)
                ):
                    found[site.name, option] = "makes nothing faster or smaller on this device"
        return found

    def _pays(self, base: Candidate, site: Site, option: Option) -> bool:
        before, after = self.price(base), self.price(with_choice(base, site.name, option))
        return any(getattr(after, name) < getattr(before, name) for name in LIMITED)


def with_choice(candidate: Candidate, name: str, option: Option) -> Candidate:
    return Candidate.of({**candidate.as_dict, name: option})
