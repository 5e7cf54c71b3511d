"""What a network costs on a device: latency, peak memory, file bytes, multiply-adds. No torch.

The network is in the form that ships (batch norms folded, quantizers in place). Its kernels are those
that the device's runtime executes; the device's table says what each takes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import fsum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autocompress.cost.kernels import Kernel, elements, kernels
from autocompress.cost.layouts import Layouts
from autocompress.cost.memory import live_bytes, low_bit_layers, weight_bytes
from autocompress.cost.packed_size import PackedContent, packed_content, packed_total
from autocompress.graph.network import Network, Node
from autocompress.graph.operations import CONVOLUTIONS
from autocompress.problem.candidate import Cost


@dataclass(frozen=True)
class FileContent:
    """Hold what the overhead of an exported file is linear in: nodes, convolutions, letters in the nodes'
    names, layers of 8 bits, letters in theirs, their output channels, the same without repeats (equal
    constants are stored once), quantizers, tensors."""

    nodes: int
    convolutions: int
    letters: int
    low_layers: int
    low_letters: int
    low_channels: int
    distinct_channels: frozenset[int]
    quantizers: int
    tensors: int

    @property
    def features(self) -> NDArray[np.float64]:
        """Return the numbers whose weighted sum is the overhead; fitted on exported files when a device is
        profiled."""
        counts = (
            *(1, self.nodes, self.convolutions, self.letters, self.low_layers, self.low_letters),
            *(self.low_channels, sum(self.distinct_channels), self.quantizers, self.tensors),
        )
        return np.array(counts, dtype=np.float64)


def file_content(network: Network, nodes: Collection[Node] | None = None) -> FileContent:
    """Return what the file of a network holds, or the part of it that is due to these of its nodes."""
    counted = network.nodes if nodes is None else nodes
    low = list(low_bit_layers(network))
    channels = [network.params[node.params[0]].shape[0] for node in low]
    return FileContent(
        nodes=len(counted),
        convolutions=sum(node.op in CONVOLUTIONS for node in counted),
        letters=sum(len(node.name) for node in counted),
        low_layers=len(low),
        low_letters=sum(len(node.name) for node in low),
        low_channels=sum(channels),
        distinct_channels=frozenset(channels),
        quantizers=sum(node.quantizer is not None for node in counted),
        tensors=len(network.params) - len(network.steps),
    )


def file_features(network: Network) -> NDArray[np.float64]:
    """Return what the overhead of a network's exported file is linear in; see `FileContent`."""
    return _whole_file(network).features


def file_features_count() -> int:
    """Return the length of `file_features`."""
    return 10


class DeviceTable(Protocol):
    """Answer what pricing needs of a device profile."""

    @property
    def layouts(self) -> Layouts:
        """Say how the device's runtime lays out values, which decides the kernels it runs."""

    @property
    def constant_us(self) -> float:
        """Return what an inference takes beside its kernels."""

    def kernel_us(self, kernel: Kernel) -> float:
        """Return a kernel's share of a network's latency; raise ProfileError when nothing is known of its
        kind."""

    @property
    def relative_error(self) -> float:
        """Return the half width of the 95 % interval of a predicted latency, as a share of it."""

    @property
    def file_overhead(self) -> NDArray[np.float64]:
        """Return the coefficients of `file_features`, in bytes."""


@dataclass(frozen=True)
class Amounts:
    """Hold what a network's cost on a device follows from; `live_bytes` is the most that its activations take
    at once."""

    kernels_us: float
    macs: int
    parameters: int
    weight_bytes: int
    live_bytes: int
    file: FileContent
    packed: PackedContent


class CostModel:
    """Price networks on one device; the times of kernels are kept."""

    def __init__(self, device: DeviceTable) -> None:
        self.device = device
        self._known: dict[Kernel, float] = {}

    def price(self, network: Network) -> Cost:
        """Return the predicted cost of a network in shipped form.

        Raises ProfileError for a kernel of which the device has no row and nothing to interpolate from.
        """
        found = kernels(network, self.device.layouts)
        return self.cost(
            Amounts(
                kernels_us=fsum(map(self.kernel_us, found)),
                macs=sum(kernel.macs for kernel in found),
                parameters=trainable_parameters(network),
                weight_bytes=weight_bytes(network),
                live_bytes=max(live_bytes(network).values()),
                file=_whole_file(network),
                packed=packed_content(network),
            )
        )

    def cost(self, amounts: Amounts) -> Cost:
        """Return what these amounts cost on the device."""
        latency = (self.device.constant_us + amounts.kernels_us) / 1e3
        margin = self.device.relative_error * latency
        overhead = float(self.device.file_overhead @ amounts.file.features)
        return Cost(
            latency_ms=latency,
            latency_ms_ci95=(latency - margin, latency + margin),
            peak_memory_bytes=amounts.live_bytes + amounts.weight_bytes,
            file_bytes=round(amounts.weight_bytes + overhead),
            macs=amounts.macs,
            parameters=amounts.parameters,
            packed_bytes=packed_total(amounts.packed, amounts.weight_bytes),
        )

    def kernel_us(self, kernel: Kernel) -> float:
        """Return a kernel's share of a latency. Raises ProfileError when nothing is known of its kind."""
        known = self._known.get(kernel)
        if known is None:
            known = self._known[kernel] = self.device.kernel_us(kernel)
        return known


def trainable_parameters(network: Network) -> int:
    """Return how many numbers training may change."""
    return sum(elements(spec.shape) for spec in network.params.values() if spec.trainable)


def _whole_file(network: Network) -> FileContent:
    found = file_content(network)
    return replace(found, quantizers=found.quantizers + (network.input_quantizer is not None))
