"""What a search starts from: the solver's answers, or where it has none, candidates repaired step by step."""

from __future__ import annotations

from autocompress.cost.repair import Repairer, seeds
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.runs.conditions import NAMES
from autocompress.search.proposers.solver import Solver

SEEDS = 6


def starting_points(solver: Solver, limits: Limits) -> tuple[list[Candidate], str]:
    """Return (candidates to try first, what they are, in words)."""
    found = solver.sweep(limits, SEEDS)
    if found:
        return found, (
            f"starting from {len(found)} candidates that keep the budgets with the least summed sensitivity, "
            "by integer programming"
        )
    return _repaired(solver, limits)


def _repaired(solver: Solver, limits: Limits) -> tuple[list[Candidate], str]:
    """Repair candidates step by step towards the budgets, and say how near that comes."""

    def repairer(some: Limits) -> Repairer:
        return Repairer(solver.pricer, some, solver.damage)

    def excess_of(candidate: Candidate) -> dict[str, float]:
        return limits.excess(solver.pricer.price(candidate), upper=True)

    found = seeds(solver.pricer, repairer, limits, SEEDS)
    nearest = min(found, key=lambda candidate: max(excess_of(candidate).values()))
    excess = excess_of(nearest)
    binding = max(excess, key=lambda name: excess[name])
    text = f"the solver finds nothing inside the budgets; starting from {len(found)} repaired candidates"
    if excess[binding] > 0:
        text += f"; the nearest, {nearest.key}, is {excess[binding]:.1%} above the {NAMES[binding]} budget"
    return found, text
