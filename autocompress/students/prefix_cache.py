"""Values at the ends of blocks, kept by content: a network that begins as an earlier one goes on from there.

A place where a single value is alive cuts a network in two. What that value is follows from the operations
and weights before it and from the images alone, so a digest of these is its key. A value that was kept
is the tensor that would have been computed again, to the last bit.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from autocompress.graph.module import GraphModule
from autocompress.graph.network import INPUT, Network, Node
from autocompress.graph.operations import WEIGHTED

PREFIX_BYTES = 512 * 2**20
LARGEST_SHARE = 0.25


@dataclass(frozen=True)
class Kept:
    """Hold what is kept: `value` is what the first nodes of a network lead to. `weights` and `ranges`, by
    name, are what fitting made of the parameters before it and what ranges the values before it had."""

    value: Tensor
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.value.nbytes + sum(tensor.nbytes for tensor in self.weights.values())


class PrefixCache:
    """Hold at most `maximum_bytes` of tensors; what was not used for the longest time goes first.

    `hits` and `misses` count networks that went on from a kept value and those that began at the input.
    """

    def __init__(self, maximum_bytes: int = PREFIX_BYTES) -> None:
        self.maximum_bytes = maximum_bytes
        self.bytes = self.hits = self.misses = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def put(self, key: str, kept: Kept) -> None:
        """Keep it, unless it is too large or one with as many ranges is there already."""
        before = self._kept.get(key)
        if before is not None and len(before.ranges) >= len(kept.ranges):
            return
        if kept.bytes > LARGEST_SHARE * self.maximum_bytes:
            return
        if before is not None:
            self.bytes -= self._kept.pop(key).bytes
        self._kept[key] = kept
        self.bytes += kept.bytes
        while self.bytes > self.maximum_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.bytes

    def longest(
        self,
        cuts: Mapping[int, str],
        keys: Mapping[int, str],
        serves: Callable[[int, Kept], bool] = lambda _cut, _kept: True,
    ) -> tuple[int, dict[str, Tensor], Kept] | None:
        """Return the last cut at which a value is kept that `serves`: number of the node to go on from, the
        values to go on with, and what was kept."""
        for cut in sorted(cuts, reverse=True):
            kept = self._kept.get(keys[cut])
            if kept is not None and serves(cut, kept):
                self._kept.move_to_end(keys[cut])
                self.hits += 1
                return cut, {cuts[cut]: kept.value}, kept
        self.misses += 1
        return None


def cuts(network: Network) -> dict[int, str]:
    """Return {number of a node: the only value that it and all after it read}, before layers with weights."""
    last: dict[str, int] = {}
    for index, node in enumerate(network.nodes):
        last.update(dict.fromkeys(node.inputs, index))
    last[network.output] = len(network.nodes)
    found: dict[int, str] = {}
    alive = {INPUT} if INPUT in last else set()
    for index, node in enumerate(network.nodes):
        if index and len(alive) == 1 and node.op in WEIGHTED and alive.issubset(node.inputs):
            found[index] = next(iter(alive))
        alive = {name for name in (*alive, node.name) if last.get(name, -1) > index}
    return found


def keys(module: GraphModule, start: str, describe: Callable[[Node], str] = repr) -> dict[int, str]:
    """Return {number of a node: digest of all nodes before it, of their parameters and of `start`}."""
    return dict(_keys(module, start, describe))


def _keys(module: GraphModule, start: str, describe: Callable[[Node], str]) -> Iterator[tuple[int, str]]:
    network = module.source_network
    digest = hashlib.blake2b(f"{start} {network.input_quantizer}".encode(), digest_size=16)
    for index, node in enumerate(network.nodes):
        yield index, digest.hexdigest()
        digest.update(describe(node).encode())
        for name in node.params:
            digest.update(module.tensor_named(name).detach().cpu().contiguous().numpy().tobytes())
