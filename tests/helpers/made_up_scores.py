"""Scores of choices that no network was asked for."""

from __future__ import annotations

import random

from autocompress.cost.pricer import Pricer
from autocompress.problem.candidate import Option


def made_up_damage(pricer: Pricer, seed: int) -> dict[tuple[str, Option], float]:
    """The more of a site is given up, the more it hurts."""
    rng = random.Random(seed)
    damage = {}
    for site in pricer.bound.free:
        weight = rng.uniform(0.2, 2.0)
        for option in site.options:
            if site.kind == "width":
                damage[site.name, option] = weight * (1 - float(option)) ** 1.5
            elif site.kind == "block" and option != "keep":
                damage[site.name, option] = weight * (1.0 if option == "drop" else 0.6)
    return {choice: value for choice, value in damage.items() if value > 0}
