"""How well the bytes of a `student.acz` are estimated before anything is trained or coded.

    python benchmarks/packed_size.py --teacher cifar_resnet.py:load,depth=20 --input 3,32,32

First the numbers that the estimate is made of (`autocompress/cost/packed_size.py`): bits a weight of single
layers by codebook, density and precision, and bytes of headers. Then candidates drawn at random from a space
of widths, bits, densities and codebooks: each is cut from the teacher, folded, shared and coded, and its
bytes are compared with the estimate, which sees shapes and choices alone.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys

import numpy as np
from numpy.typing import NDArray

from autocompress.cost.memory import weight_bytes
from autocompress.cost.packed_size import entropy_bits, packed_bytes
from autocompress.export.acz import acz_bytes, tensor_bytes
from autocompress.graph.network import Network, Weights
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate, Option
from autocompress.problem.space import parse_space
from autocompress.problem.teacher import load_teacher
from autocompress.transforms.apply import apply, deployed
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.quantize import quantize_weight
from autocompress.transforms.families.sparsity import mask_of, rounded, share, shared
from autocompress.transforms.sites import BoundSpace, bind

SPACE = """
name: packed
rules:
  - match: {layer: any}
    sparsity: {keep: [0.05, 0.1, 0.25, 0.5, 1.0]}
    codebook: [none, 64, 32, 16, 8]
    bits: [32, 8]
  - match: {layer: conv}
    width: {keep: [0.5, 0.75, 1.0]}
"""
CODEBOOKS, DENSITIES = (64, 32, 16, 8, 4), (1.0, 0.25, 0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--input", default="3,32,32", help="Channels, height, width.")
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape = tuple(map(int, arguments.input.split(",")))
    network, weights = trace(load_teacher(arguments.teacher).module, shape)
    folded = fold_batch_norms(network, weights)
    assert folded[1] is not None
    print(f"{arguments.teacher}: seed {arguments.seed}")
    if arguments.layers:
        print_bits(folded[0], folded[1], arguments.layers)
    print_headers(*folded)
    print_errors(bind(parse_space(SPACE), network), weights, arguments.candidates, arguments.seed)
    return 0


def print_bits(network: Network, weights: Weights, count: int) -> None:
    """Of a value that is not pruned, without places and codebook, on layers spread over the network."""
    names = [node.params[0] for node in network.nodes if node.op in ("conv2d", "linear")]
    names = [name for name in names if weights[name].size >= 2000]
    chosen = [names[round(place)] for place in np.linspace(0, len(names) - 1, count)]
    for density in DENSITIES:
        pruned = {name: weights[name] * mask_of(weights[name], density) for name in chosen}
        for codebook in CODEBOOKS:
            found = [value_bits(share(array, codebook), density) for array in pruned.values()]
            print(f"density {density:4}, codebook {codebook:3}: {show(found)} bits a value", flush=True)
        found = [
            value_bits(quantize_weight(array)[0].astype(np.float32), density) for array in pruned.values()
        ]
        print(f"density {density:4}, 8 bits      : {show(found)} bits a value", flush=True)


def value_bits(array: NDArray[np.float32], density: float) -> float:
    tables = 4 * len(np.unique(array)) if len(np.unique(array)) <= max(CODEBOOKS) else 0
    return (8 * (tensor_bytes(array) - tables) / array.size - entropy_bits(density)) / density


def show(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


def print_headers(network: Network, weights: Weights) -> None:
    plain = sum(array.nbytes for array in weights.values())
    size = len(acz_bytes(network, weights))
    counts = f"{len(network.nodes)} nodes, {len(network.params)} parameters"
    print(f"headers: {size - plain} bytes for {counts}")


def print_errors(bound: BoundSpace, weights: Weights, count: int, seed: int) -> None:
    rng = random.Random(seed)
    errors, pairs = [], []
    for _ in range(count):
        candidate = drawn(bound, rng)
        network, cut = deployed(*apply(bound, weights, candidate))
        assert cut is not None
        actual = len(acz_bytes(network, rounded(network, shared(network, cut))))
        estimated = packed_bytes(network, weight_bytes(network))
        errors.append(estimated / actual - 1)
        pairs.append((estimated, actual))
        print(f"estimated {estimated:9,}, coded {actual:9,} bytes: {errors[-1]:+.1%}", flush=True)
    estimates, sizes = np.array(pairs).T
    ranks = np.corrcoef(estimates.argsort().argsort(), sizes.argsort().argsort())[0, 1]
    print(
        f"{count} candidates: median error {statistics.median(map(abs, errors)):.1%}, "
        f"largest {max(map(abs, errors)):.1%}, bias {statistics.mean(errors):+.1%}, "
        f"rank correlation {ranks:.3f}"
    )


def drawn(bound: BoundSpace, rng: random.Random) -> Candidate:
    """One density and one codebook set the tone, so that small and large files are drawn alike."""
    choices: dict[str, Option] = {}
    tone = {kind: rng.random() for kind in ("sparsity", "codebook", "bits", "width")}
    for site in bound.free:
        place = min(max(tone[site.kind] + rng.gauss(0, 0.2), 0.0), 0.999)
        choices[site.name] = site.options[int(place * len(site.options))]
    return bound.canonical(Candidate.of(choices))


if __name__ == "__main__":
    sys.exit(main())
