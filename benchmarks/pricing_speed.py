"""How many candidates a second are priced, on one core.

    python benchmarks/pricing_speed.py --device hardware_profiles/mine --teacher timm:resnet18

Random candidates of the space, float, in 8 bits and mixed, each priced once: on whole networks, with a new
pricer, and after many others, whose pieces it remembers. Then walks of one change after another, and changes
of one candidate, as searches make them. Medians over repetitions with other candidates, of the processor's
time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer, with_choice
from autocompress.device.profile_files.store import load_profile
from autocompress.pipeline.preparation import bound_space, open_teacher
from autocompress.problem.candidate import Candidate, Cost
from autocompress.problem.space import load_space
from autocompress.transforms.sampling import PRECISIONS, random_candidate

COUNT, REPETITIONS = 300, 5
BEFORE = 20_000
"""Random candidates that a pricer has seen that is not new."""

TARGET = 5_000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--space", default="joint")
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--before", type=int, default=BEFORE)
    arguments = parser.parse_args()
    bound = bound_space(
        open_teacher(arguments.teacher, None, arguments.input_size), load_space(arguments.space)
    )
    pricer = Pricer(bound, CostModel(load_profile(arguments.device)))
    rng = random.Random(0)
    whole = [rate(pricer.price_whole, drawn(pricer, rng, 60)) for _ in range(REPETITIONS)]
    first = [rate(pricer.price, drawn(pricer, rng)) for _ in range(REPETITIONS)]
    for candidate in drawn(pricer, rng, arguments.before):
        pricer.price(candidate)
    later, walked, changed = [], [], []
    for _ in range(REPETITIONS):
        some = drawn(pricer, rng)
        later.append(rate(pricer.price, some))
        walked.append(rate(pricer.price, walk(pricer, rng, some[0])))
        changed.append(rate(pricer.price, [neighbour(pricer, rng, some[0]) for _ in range(COUNT)]))
    results = {
        "random candidates, whole networks": whole,
        f"random candidates, the first {REPETITIONS * COUNT:,}": first,
        f"random candidates, after {arguments.before:,}": later,
        "walks of one change after another": walked,
        "changes of one candidate": changed,
    }
    for what, rates in results.items():
        print(
            f"{arguments.teacher}: {what}: {statistics.median(rates):,.0f} a second"
            f" ({min(rates):,.0f} to {max(rates):,.0f}), target {TARGET:,}"
        )
    return 0


def drawn(pricer: Pricer, rng: random.Random, count: int = COUNT) -> list[Candidate]:
    precisions = [PRECISIONS[index % len(PRECISIONS)] for index in range(count)]
    return [random_candidate(pricer.bound, rng, precision) for precision in precisions]


def walk(pricer: Pricer, rng: random.Random, candidate: Candidate) -> list[Candidate]:
    found = [neighbour(pricer, rng, candidate)]
    while len(found) < COUNT:
        found.append(neighbour(pricer, rng, found[-1]))
    return found


def neighbour(pricer: Pricer, rng: random.Random, candidate: Candidate) -> Candidate:
    site = rng.choice(pricer.bound.free)
    return with_choice(candidate, site.name, rng.choice(site.options))


def rate(price: Callable[[Candidate], Cost], candidates: Sequence[Candidate]) -> float:
    """Return how many candidates are priced in a second of the processor's time."""
    started = time.process_time()
    for candidate in candidates:
        price(candidate)
    return len(candidates) / (time.process_time() - started)


if __name__ == "__main__":
    sys.exit(main())
