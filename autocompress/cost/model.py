"""What a network costs on a device: latency, peak memory, file bytes, multiply-adds. No torch.

The network is in the form that ships (batch norms folded, quantizers in place). Its kernels are those
that the device's runtime executes; the device's table says what each takes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autocompress.cost.kernels import Kernel, elements, kernels
from autocompress.cost.layouts import Layouts
from autocompress.cost.memory import low_bit_layers, peak_memory_bytes, weight_bytes
from autocompress.cost.packed_size import packed_bytes
from autocompress.graph.network import Network
from autocompress.graph.operations import CONVOLUTIONS
from autocompress.problem.candidate import Cost


def file_features(network: Network) -> NDArray[np.float64]:
    """Return what the overhead of an exported file is linear in.

    1, nodes, convolutions, letters in the nodes' names, layers of 8 bits, letters in theirs, their
    output channels, the same without repeats (equal constants are stored once), quantizers,
    parameters. Fitted on exported files when a device is profiled.
    """
    low = list(low_bit_layers(network))
    quantizers = sum(1 for node in network.nodes if node.quantizer) + (network.input_quantizer is not None)
    letters = sum(len(node.name) for node in network.nodes)
    low_letters = sum(len(node.name) for node in low)
    channels = [network.params[node.params[0]].shape[0] for node in low]
    counts = [
        1,
        len(network.nodes),
        sum(node.op in CONVOLUTIONS for node in network.nodes),
        letters,
        len(low),
        low_letters,
        sum(channels),
        sum(set(channels)),
        quantizers,
        len(network.params) - len(network.steps),
    ]
    return np.array(counts, dtype=np.float64)


def file_features_count() -> int:
    """Return the length of `file_features`."""
    return 10


class DeviceTable(Protocol):
    """What pricing needs of a device profile."""

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


class CostModel:
    """Prices networks on one device; kernel times are kept, so a network costs one walk over its nodes."""

    def __init__(self, device: DeviceTable) -> None:
        self.device = device
        self._known: dict[Kernel, float] = {}

    def price(self, network: Network) -> Cost:
        """Return the predicted cost of a network in shipped form.

        Raises ProfileError for a kernel of which the device has no row and nothing to interpolate from.
        """
        found = kernels(network, self.device.layouts)
        latency = (self.device.constant_us + sum(map(self._kernel_us, found))) / 1e3
        margin = self.device.relative_error * latency
        overhead = float(self.device.file_overhead @ file_features(network))
        weights = weight_bytes(network)
        return Cost(
            latency_ms=latency,
            latency_ms_ci95=(latency - margin, latency + margin),
            peak_memory_bytes=peak_memory_bytes(network),
            file_bytes=round(weights + overhead),
            macs=sum(kernel.macs for kernel in found),
            parameters=sum(elements(spec.shape) for spec in network.params.values() if spec.trainable),
            packed_bytes=packed_bytes(network, weights),
        )

    def _kernel_us(self, kernel: Kernel) -> float:
        known = self._known.get(kernel)
        if known is None:
            known = self._known[kernel] = self.device.kernel_us(kernel)
        return known
