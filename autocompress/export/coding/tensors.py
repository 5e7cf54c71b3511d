"""How a tensor is stored: as it is, or as small integers and what they stand for.

    Plain     the array's own bytes
    Scaled    level × scale, one scale or one for each slice of the first axis (float32)
    CodedGrid      level × a power of two
    Shared    one of a few values (a codebook; Han et al. 2016, arXiv:1510.00149)
    Sparse    where the values are that are not zero, and these as they are

`candidates` finds the forms that give a float32 array back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_SHARED_VALUES = 256
LARGEST_GRID_LEVEL = 2**15 - 1
_LARGEST_DENSITY = 0.95
LEAST_EXPONENT, GREATEST_EXPONENT = -126, 100

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Plain:
    array: NDArray[Any]

    def values(self) -> NDArray[Any]:
        return self.array


@dataclass(frozen=True, eq=False)
class Scaled:
    """Hold `levels` of any shape; `scales` is (1,) or (levels.shape[0],)."""

    levels: NDArray[np.integer]
    scales: Floats

    def values(self) -> Floats:
        column = self.scales.reshape(-1, *(1,) * max(0, self.levels.ndim - 1))
        return self.levels.astype(np.float32) * (self.scales[0] if len(self.scales) == 1 else column)


@dataclass(frozen=True, eq=False)
class CodedGrid:
    levels: NDArray[np.integer]
    exponent: int

    def values(self) -> Floats:
        return np.ldexp(self.levels.astype(np.float32), self.exponent)


@dataclass(frozen=True, eq=False)
class Shared:
    """Hold values and `levels`, which count from the value nearest to zero: the value is
    `codebook[level + zero_index]`.

    `codebook` is ascending, (K,). Raises ValueError on `values` when a level is outside it.
    """

    levels: NDArray[np.integer]
    codebook: Floats

    @property
    def zero_index(self) -> int:
        return int(np.argmin(np.abs(self.codebook)))

    def values(self) -> Floats:
        indices = self.levels.astype(np.int64) + self.zero_index
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.codebook):
            raise ValueError(f"an index is outside the codebook of {len(self.codebook)} values")
        return self.codebook[indices]


@dataclass(frozen=True, eq=False)
class Sparse:
    """Hold few values: `levels` are 1 where a value stands and 0 elsewhere; `kept` (float32) are the values
    in order.

    Raises ValueError on `values` when a level is neither or there are not as many ones as values.
    """

    levels: NDArray[np.integer]
    kept: Floats

    def values(self) -> Floats:
        stands = self.levels == 1
        if int(stands.sum()) != self.kept.size or (self.levels[~stands] != 0).any():
            raise ValueError("the places of a sparse tensor do not go with its values")
        found = np.zeros(self.levels.shape, dtype=np.float32)
        found[stands] = self.kept
        return found


Stored = Plain | Scaled | CodedGrid | Shared | Sparse


def candidates(array: NDArray[Any]) -> Iterator[Stored]:
    """Yield every form of the array that gives it back bit for bit, `Plain` first."""
    yield Plain(array)
    if array.dtype != np.float32 or not array.size or not np.isfinite(array).all():
        return
    if (np.signbit(array) & (array == 0)).any():
        return
    grid = on_grid(array)
    if grid is not None:
        yield grid
    shared = shared_values(array)
    if shared is not None:
        yield shared
    elif np.count_nonzero(array) <= _LARGEST_DENSITY * array.size:
        yield Sparse((array != 0).astype(np.int32), array[array != 0])


def shared_values(array: Floats) -> Shared | None:
    """Return the array as a codebook and indices, None where it has more than 256 values or as many as
    elements."""
    codebook, indices = np.unique(array, return_inverse=True)
    if len(codebook) > MOST_SHARED_VALUES or 2 * len(codebook) > array.size + 1:
        return None
    zero = int(np.argmin(np.abs(codebook)))
    return Shared((indices.reshape(array.shape) - zero).astype(np.int32), codebook)


def on_grid(array: Floats) -> CodedGrid | None:
    """Return the array as multiples of a power of two, None where one is above 32,767."""
    largest = float(np.abs(array).max(initial=0))
    if not largest:
        return CodedGrid(np.zeros(array.shape, dtype=np.int32), 0)
    most = int(np.frexp(largest)[1])
    least = max(LEAST_EXPONENT, most - 15)
    if most > GREATEST_EXPONENT:
        return None
    levels = np.ldexp(array.astype(np.float64), -least)
    if (levels != np.rint(levels)).any():
        return None
    integers = levels.astype(np.int64)
    spare = int(np.bitwise_or.reduce(np.abs(integers), axis=None))
    shift = (spare & -spare).bit_length() - 1
    return CodedGrid((integers >> shift).astype(np.int32), least + shift)
