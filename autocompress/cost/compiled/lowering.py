"""What a runtime makes of a section: its operations and the memory of its values, sizes apart.

Both come out of the functions that price a whole network; here they are told how the section's input lies.
They are worked out once for pieces of some form; what the operations take for pieces of some sizes is another
matter (`rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from autocompress.cost.cache import Cache
from autocompress.cost.compiled.pieces import Version
from autocompress.cost.compiled.rows import Cut, Operator, Slot
from autocompress.cost.compiled.sections import Skeleton
from autocompress.cost.fused_graph import Crossing, Operation, Section
from autocompress.cost.kernels import CONVERSIONS
from autocompress.cost.layouts import Layouts, section_operations
from autocompress.cost.memory import alive_values
from autocompress.graph.network import INPUT, Network, Node, redirect
from autocompress.transforms.apply import rounded
from autocompress.transforms.families.quantize import plan, reads_integers

Carried = tuple[tuple[int, str, int], ...]
"""Values of other pieces that are alive meanwhile: the piece, the name there, bytes a number."""


@dataclass(frozen=True)
class Ends:
    """What a section's surroundings decide. `before` and `behind` say whether its input and its output are
    rounded, `follows` whether what reads its output works on integers; None where nothing does."""

    before: bool
    behind: bool
    follows: bool | None


@dataclass(frozen=True, eq=False)
class Lowered:
    """For each piece its slot and what is alive beside it; and how the section leaves its output."""

    slots: tuple[Slot, ...]
    carried: tuple[tuple[Carried, ...], ...]
    leaves: Crossing


@dataclass(eq=False)
class Form:
    """Sections joined into one, by the forms of their pieces. `network` has the sizes of those that came
    first."""

    network: Network
    piece_of: dict[str, int]
    names: tuple[dict[str, str], ...]
    ...
