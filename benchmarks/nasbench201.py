"""NAS-Bench-201: how fast samplers find the front of accuracy and latency when latency is free.

    python benchmarks/nasbench201.py --data nb201.csv.gz --seeds 20

Every cell's accuracy (CIFAR-10, validation, mean over seeds) and its latency on four devices are known, so
the exact front is, too. A sampler pays for accuracies and gets latencies and parameter counts for nothing.
Printed are the share of the true hypervolume (reference point: 20 % error, the largest latency) after 50,
100, 200 and 400 evaluations, and, under a hard latency cap at the 30th percentile, the regret in accuracy
after 50 evaluations and the violations; medians over seeds with the 10th and 90th percentile.
Histories are kept in --keep, so that a run that was ended goes on. Dong and Yang 2020, arXiv:2001.00326;
latencies: Lee et al. 2021, arXiv:2106.08630.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Site
from autocompress.runs.pareto import hypervolume_history
from autocompress.search.proposers.bayesian import Engine
from autocompress.search.proposers.optuna_study import SAMPLERS, Study
from autocompress.search.proposers.samplers import WORTH_BEYOND_LIMIT

EDGES = ("edge_0_1", "edge_0_2", "edge_1_2", "edge_0_3", "edge_1_3", "edge_2_3")
PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))
OPERATIONS = ("nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "skip_connect", "none")
TABLES = ("gold_6226", "gold_6240", "silver_4114", "raspi4")
EVALUATIONS = (50, 100, 200, 400)
TARGETS = (0.95, 0.98, 0.99, 0.995)
CAPPED_EVALUATIONS = 50
LARGEST_ERROR = 20.0
SITES = tuple(Site(f"block:{edge}", "block", edge, OPERATIONS, OPERATIONS[0]) for edge in EDGES)


@dataclass(frozen=True, eq=False)
class Cells:
    """All 15,625 cells on one device; rows in the order of `operations`."""

    operations: np.ndarray
    error: np.ndarray
    latency_ms: np.ndarray
    parameters: np.ndarray

    def __post_init__(self) -> None:
        rows = {tuple(row): index for index, row in enumerate(self.operations.tolist())}
        object.__setattr__(self, "_rows", rows)

    def row(self, candidate: Candidate) -> int:
        """Where the cell of a candidate stands."""
        return self._rows[tuple(OPERATIONS.index(candidate.get(site)) for site in SITES)]  # type: ignore[attr-defined]

    def costs(self, candidate: Candidate) -> dict[str, float]:
        row = self.row(candidate)
        return {"latency_ms": float(self.latency_ms[row]), "parameters": float(self.parameters[row])}


def cells(path: Path, table: str) -> Cells:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Cells(
        np.array([[OPERATIONS.index(row[edge]) for edge in EDGES] for row in rows]),
        np.array([100 - float(row["val_accuracy_cifar10"]) for row in rows]),
        np.array([float(row[f"latency_ms_{table}"]) for row in rows]),
        np.array([float(row["parameters_m"]) for row in rows]),
    )


def evaluated(sampler: str, found: Cells, seed: int, limits: Limits | None, count: int) -> Iterator[int]:
    """Rows of the cells that a sampler evaluates, in order.

    What breaks the cap by its known latency is told to the sampler and not evaluated, as in a search.
    """
    study = (
        Study(SITES, limits=limits, sampler=sampler, seed=seed)
        if sampler in SAMPLERS
        else engine(sampler, found, seed, limits)
    )
    done = 0
    while done < count and (asked := study.ask()) is not None:
        number, candidate = asked
        costs = found.costs(candidate)
        if limits is not None and limits.violated(costs):
            study.tell(number, costs)
            continue
        row = found.row(candidate)
        study.tell(number, {"accuracy": 1 - found.error[row] / 100, **costs})
        done += 1
        yield row


def engine(name: str, found: Cells, seed: int, limits: Limits | None) -> Engine:
    """The search's own engine: `engine` knows how operations form paths, `engine-plain` only the edges."""
    largest = float(found.latency_ms.max()) if limits is None else WORTH_BEYOND_LIMIT * limits.latency_ms
    return Engine(
        SITES,
        found.costs,
        allowed=lambda candidate: limits is None or not limits.violated(found.costs(candidate)),
        features=path_features if name == "engine" else lambda _: (),
        largest_error=LARGEST_ERROR / 100,
        largest_cost=largest,
        seed=seed,
    )


def path_features(candidate: Candidate) -> list[float]:
    """Of the paths from input to output that no `none` cuts: how many there are, which operations they
    hold, how many convolutions the deepest and the shallowest have, and whether one is free of operations."""
    chosen = [candidate.get(site) for site in SITES]
    paths = [[chosen[edge] for edge in path] for path in PATHS]
    whole = [path for path in paths if "none" not in path]
    edges = {edge for path, on in zip(PATHS, paths, strict=True) if "none" not in on for edge in path}
    counts = [sum(chosen[edge] == operation for edge in edges) for operation in OPERATIONS[:-1]]
    wide = [path.count("nor_conv_3x3") for path in whole] or [0]
    deep = [path.count("nor_conv_3x3") + path.count("nor_conv_1x1") for path in whole] or [0]
    pooled = [path.count("avg_pool_3x3") for path in whole] or [0]
    free = any(set(path) == {"skip_connect"} for path in whole)
    return [*counts, len(whole), max(wide), max(deep), min(deep), max(pooled), sum(wide), sum(deep), free]


def history(sampler: str, found: Cells, seed: int, limits: Limits | None, keep: Path) -> list[int]:
    """Rows that were evaluated, from `keep` where they are there."""
    count = EVALUATIONS[-1] if limits is None else CAPPED_EVALUATIONS
    if keep.is_file():
        return json.loads(keep.read_text(encoding="utf-8"))["rows"]
    started = time.process_time()
    rows = list(evaluated(sampler, found, seed, limits, count))
    keep.parent.mkdir(parents=True, exist_ok=True)
    content = {"rows": rows, "cpu_s": time.process_time() - started}
    keep.write_text(json.dumps(content), encoding="utf-8")
    return rows


def shares(rows: list[int], found: Cells) -> list[float]:
    """Share of the true hypervolume after each of EVALUATIONS."""
    reference = (LARGEST_ERROR, float(found.latency_ms.max()))
    points = list(zip(found.error.tolist(), found.latency_ms.tolist(), strict=True))
    true = hypervolume_history([points[row] for row in true_front(found)], reference)[-1]
    reached = hypervolume_history([points[row] for row in rows], reference)
    return [reached[min(count, len(reached)) - 1] / true for count in EVALUATIONS]


def true_front(found: Cells) -> list[int]:
    front, best = [], np.inf
    for row in np.lexsort((found.error, found.latency_ms)):
        if found.error[row] < best:
            best = found.error[row]
            front.append(int(row))
    return front


def shown(values: list[float], digits: int = 3) -> str:
    low, median, high = np.percentile(values, (10, 50, 90))
    return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="nb201.csv.gz")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--samplers", default="engine,tpe,nsga2,random")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--keep", type=Path, default=Path("runs/nasbench201"))
    arguments = parser.parse_args()
    samplers = arguments.samplers.split(",")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for table in arguments.tables.split(","):
        found = cells(arguments.data, table)
        cap = Limits(latency_ms=float(np.percentile(found.latency_ms, 30)))
        print(f"\n{table}: share of the true hypervolume after {EVALUATIONS} evaluations, {len(seeds)} seeds")
        print(f"  target     {'   '.join(f'{target}' for target in TARGETS)}", flush=True)
        for sampler in samplers:
            folder = arguments.keep / table / sampler
            each = [shares(history(sampler, found, s, None, folder / f"{s}.json"), found) for s in seeds]
            print(f"  {sampler:9}", "   ".join(map(shown, zip(*each, strict=True))), flush=True)
        print(f"{table}: latency ≤ {cap.latency_ms:.2f} ms, after {CAPPED_EVALUATIONS} evaluations")
        allowed = found.latency_ms <= cap.latency_ms
        best = found.error[allowed].min()
        for sampler in samplers:
            folder = arguments.keep / f"{table}-capped" / sampler
            rows = [history(sampler, found, s, cap, folder / f"{s}.json") for s in seeds]
            regrets = [float(found.error[row].min() - best) for row in rows]
            broken = sum(int((~allowed[row]).sum()) for row in rows)
            print(f"  {sampler:9} regret {shown(regrets)} points, {broken} violations", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
