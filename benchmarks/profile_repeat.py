"""Does a profile come out the same when it is made again, and when it is made with a kit over ssh?

    python benchmarks/profile_repeat.py --ssh localhost --ssh-option Port=2222
    python benchmarks/profile_repeat.py --again        # later: the directly made profile once more

The networks are candidates of the demo's, equal in all profiles. Ratios are of equal kernels' medians, and of
the latencies that the profiles predict for networks that none of them was made from.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import numpy as np
from demo_teacher import ARCHITECTURE

import autocompress as ac
from autocompress.cost.model import CostModel
from autocompress.device.profile_files.store import load_profile
from autocompress.pipeline.preparation import bound_space, open_teacher
from autocompress.problem.space import load_space
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sampling import random_candidate

FOLDER = Path("runs/profile-repeat")
SPACE = "joint"
NETWORKS, PREDICTED = 40, 100
INPUT_SIZE = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", default=ARCHITECTURE)
    parser.add_argument("--ssh", help="host to measure a kit on: this machine, by its own sshd")
    parser.add_argument("--ssh-option", action="append", default=[])
    parser.add_argument("--again", action="store_true", help="make the direct profile once more")
    arguments = parser.parse_args()
    common = {"networks": NETWORKS, "input_size": INPUT_SIZE}
    first = FOLDER / "first"
    if not first.exists():
        ac.profile(arguments.teacher, SPACE, first, **common)
    if arguments.ssh:
        ac.profile_kit(
            arguments.teacher, SPACE, FOLDER / "kit", ssh=arguments.ssh, python=sys.executable,
            ssh_options=arguments.ssh_option, profile=FOLDER / "by-kit", overwrite=True, **common,
        )  # fmt: skip
        compare(arguments.teacher, "kit over ssh", first, FOLDER / "by-kit")
    if arguments.again:
        again = FOLDER / time.strftime("again-%H%M%S")
        ac.profile(arguments.teacher, SPACE, again, **common)
        compare(arguments.teacher, "made again", first, again)
    return 0


def compare(teacher: str, what: str, first: Path, second: Path) -> None:
    found = ac.diff_profiles(first, second)["all"]
    made = [load_profile(folder).sources[0].measured_at for folder in (first, second)]
    bound = bound_space(open_teacher(teacher, None, INPUT_SIZE), load_space(SPACE))
    rng = random.Random(7)
    price = [CostModel(load_profile(folder)).price for folder in (first, second)]
    ratios = []
    for index in range(PREDICTED):
        network = deployed_network(bound, random_candidate(bound, rng, ("fp32", "int8", "mixed")[index % 3]))
        before, after = (one(network).latency_ms for one in price)
        ratios.append(after / before)
    low, middle, high = np.percentile(ratios, (2.5, 50, 97.5))
    print(
        f"{what}: {made[0]} and {made[1]}\n"
        f"  {found['count']} equal kernels, median ratio {found['median_ratio']:.4f},"
        f" {found['beyond_5_percent']:.0%} of them differ by more than 5 %\n"
        f"  {PREDICTED} predicted networks: median ratio {middle:.4f}, 95 % within {low:.4f} to {high:.4f}"
    )


if __name__ == "__main__":
    sys.exit(main())
