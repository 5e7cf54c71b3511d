"""A new budget answered from a run that has scores: the solver once more, nothing evaluated. No torch.

    Answers.of("runs/first").solve(Limits(latency_ms=1.5))

The run keeps what single choices cost and how much they hurt; its teacher, space and device profile make
the exact price of the answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from autocompress.cost.kernels import kernels
from autocompress.cost.marginal import EffectTable
from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer
from autocompress.cost.repair import Repairer
from autocompress.device.profile_files.store import load_profile
from autocompress.errors import InputError, NothingFeasibleError, RunError
from autocompress.files import JsonObject
from autocompress.graph.network import from_json
from autocompress.problem.budgets import MIB, Limits, show
from autocompress.problem.candidate import Candidate, Cost, Option
from autocompress.problem.space import space_of
from autocompress.runs.conditions import NAMES
from autocompress.runs.events import ChoicesPriced, PairsScored, Scored
from autocompress.runs.store import RunRecord, read_run
from autocompress.search.proposers.solver import Pairs, Solver, pairs_of_rows
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sites import BoundSpace, bind


@dataclass(frozen=True)
class Answer:
    """The candidate that is expected to lose least within limits; predicted, not trained or measured.

    `summed_sensitivity` is the sum of its choices' scores, by the measure that the run found to rank best.
    """

    candidate: Candidate
    predicted: Cost
    summed_sensitivity: float
    limits: Limits

    def to_json(self) -> JsonObject:
        return {
            "key": self.candidate.key,
            "choices": self.candidate.to_json(),
            "predicted": self.predicted.to_json(),
            "summed_sensitivity": self.summed_sensitivity,
            "limits": self.limits.to_json(),
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as JSON to a file, a new one without `overwrite`. Raises InputError."""
        target = Path(path)
        try:
            with target.open("w" if overwrite else "x", encoding="utf-8") as file:
                json.dump(self.to_json(), file, indent=2)
        except OSError as error:
            raise InputError(f"{path} cannot be written", why=str(error), fix="give another file") from error
        return target


@dataclass(frozen=True, eq=False)
class Answers:
    """Hold what is needed to answer budgets: see `of`."""

    run: str
    solver: Solver
    own_limits: Limits

    @classmethod
    def of(cls, run: str | Path) -> Answers:
        """Read a run that is scored, finished or not. Raises RunError for one that is not."""
        record = read_run(run)
        damage, table = _scores(record), _priced_choices(record)
        network = from_json(json.loads((record.paths.teacher / "network.json").read_text(encoding="utf-8")))
        space = space_of(record.config["space"], str(record.paths.config))
        bound = _as_recorded(bind(space, network), record)
        profile = load_profile(record.paths.device)
        found = kernels(deployed_network(bound, Candidate()), profile.layouts)
        teacher = str(record.config["identity"]["teacher"])
        view = profile.for_network(network.input_shape, space.fingerprint, teacher, found)
        solver = Solver(Pricer(bound, CostModel(view)), damage, table, _pairs(record))
        assert record.limits is not None  # a run is scored after its teacher was measured
        return cls(str(run), solver, record.limits)

    def solve(
        self,
        latency_ms: float | None = None,
        memory_mib: float | None = None,
        size_mib: float | None = None,
        packed_size_mib: float | None = None,
    ) -> Answer:
        """Return the least damaged candidate within these limits; those that are not given are the run's own.

        The upper end of the predicted latency's interval keeps the limit. Raises NothingFeasibleError,
        which names the nearest miss and the limit that it breaks.
        """
        own = self.own_limits
        limits = Limits(
            own.latency_ms if latency_ms is None else latency_ms,
            own.peak_memory_bytes if memory_mib is None else int(memory_mib * MIB),
            own.file_bytes if size_mib is None else int(size_mib * MIB),
            own.packed_bytes if packed_size_mib is None else int(packed_size_mib * MIB),
        )
        candidate = self.solver.solve(limits, rebase=False)
        if candidate is None:
            candidate = self._repaired(limits)
        price = self.solver.pricer.price(candidate)
        return Answer(candidate, price, self.solver.harm(candidate), limits)

    def _repaired(self, limits: Limits) -> Candidate:
        pricer = self.solver.pricer
        nearest = Repairer(pricer, limits, self.solver.damage)(pricer.low_bits)
        cost = pricer.price(nearest)
        excess = limits.excess(cost, upper=True)
        binding = max(excess, key=lambda name: excess[name])
        if excess[binding] <= 0:
            return nearest
        value = cost.latency_ms_ci95[1] if binding == "latency_ms" else getattr(cost, binding)
        raise NothingFeasibleError(
            "no candidate found is predicted to keep these limits",
            where=self.run,
            why=f"the nearest, {nearest.key}, has {NAMES[binding]} {show(binding, value)}, which is "
            f"{excess[binding]:.2%} above the limit of {show(binding, limits.as_dict[binding])}",
            fix=f"loosen the {NAMES[binding]} limit",
        )


def _scores(record: RunRecord) -> dict[tuple[str, Option], float]:
    scored = record.first(Scored)
    if scored is None:
        raise RunError(
            "the run has no scores yet, so budgets cannot be answered from it",
            where=str(record.paths.root),
            fix=f"go on with it: autocompress resume {record.paths.root}",
        )
    return {(name, option): value for name, option, value in scored.damage}


def _pairs(record: RunRecord) -> Pairs:
    event = record.first(PairsScored)
    return pairs_of_rows(() if event is None else event.pairs)


def _priced_choices(record: RunRecord) -> EffectTable | None:
    """Return what single choices cost, if the run got that far; otherwise it is computed, in seconds."""
    event = record.first(ChoicesPriced)
    return None if event is None else EffectTable.from_json(event.table)


def _as_recorded(bound: BoundSpace, record: RunRecord) -> BoundSpace:
    """Return the space with the choices that the run had: those that a network survives and that pay."""
    recorded = {site.name: site.options for site in record.sites}
    return bound.without(
        {
            (site.name, option): "the run left it out"
            for site in bound.sites
            for option in site.options
            if option != site.default and option not in recorded.get(site.name, ())
        }
    )
