"""How many candidates a second are priced, on one core.

    python benchmarks/pricing_speed.py --device hardware_profiles/mine --teacher timm:resnet18

Random candidates of the space, float, in 8 bits and mixed, each priced once; then changes of one choice, as
a search makes them. Medians over repetitions with other candidates.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence

from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer, with_choice
from autocompress.device.profile_files.store import load_profile
from autocompress.pipeline.preparation import bound_space, open_teacher
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import load_space
from autocompress.transforms.sampling import random_candidate

COUNT, REPETITIONS = 300, 5
TARGET = 5_000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--space", default="joint")
    parser.add_argument("--input-size", type=int)
    arguments = parser.parse_args()
    bound = bound_space(
        open_teacher(arguments.teacher, None, arguments.input_size), load_space(arguments.space)
    )
    pricer = Pricer(bound, CostModel(load_profile(arguments.device)))
    rng = random.Random(0)
    drawn: list[float] = []
    changed: list[float] = []
    for _ in range(REPETITIONS):
        some = [random_candidate(bound, rng, ("fp32", "int8", "mixed")[i % 3]) for i in range(COUNT)]
        drawn.append(rate(pricer, some))
        changed.append(rate(pricer, [neighbour(pricer, rng, some[0]) for _ in range(COUNT)]))
    for what, rates in (("random candidates", drawn), ("changes of one choice", changed)):
        print(
            f"{arguments.teacher}: {what}: {statistics.median(rates):,.0f} a second"
            f" ({min(rates):,.0f} to {max(rates):,.0f}), target {TARGET:,}"
        )
    return 0


def neighbour(pricer: Pricer, rng: random.Random, candidate: Candidate) -> Candidate:
    site = rng.choice(pricer.bound.free)
    return with_choice(candidate, site.name, rng.choice(site.options))


def rate(pricer: Pricer, candidates: Sequence[Candidate]) -> float:
    """Candidates a second."""
    started = time.perf_counter()
    for candidate in candidates:
        pricer.price(candidate)
    return len(candidates) / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
