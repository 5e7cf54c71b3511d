"""What a runtime makes of sections: their operations and the memory of their values, sizes apart.

Both come out of the functions that price a whole network; here they are told how the sections' input lies.
They are worked out once for pieces of some forms, on pieces of these forms whose sizes do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from autocompress.cost.compiled.pieces import NEVER_CLOSES, Uncuttable, Version
from autocompress.cost.compiled.rows import Made, Slot
from autocompress.cost.compiled.sections import Skeleton
from autocompress.cost.fused_graph import Crossing, Operation, Section, is_number
from autocompress.cost.layouts import Layouts, section_operations
from autocompress.cost.memory import alive_values
from autocompress.graph.network import INPUT, Network, Node, ParamSpec, redirect
from autocompress.graph.operations import LAYERS
from autocompress.transforms.apply import rounded
from autocompress.transforms.families.quantize import plan, reads_integers

Carried = tuple[tuple[int, str, int], ...]
"""Values of other pieces that are alive meanwhile: the piece, the name there, bytes a number."""


Ends = tuple[bool, bool, bool | None]
"""Whether the input and the output of sections are rounded, and whether what reads the output works on
integers; None where nothing does."""


class Lowered(NamedTuple):
    """Hold for each piece what is made of it, and what else is alive at each of its slot's `cuts` (an empty
    tuple for nothing at any); and how the output is left."""

    slots: tuple[Slot, ...]
    carried: tuple[tuple[Carried, ...], ...]
    leaves: Crossing


@dataclass(eq=False)
class SectionForm:
    """Sections in a row, joined into one, by the forms of their pieces.

    `skeleton` is that of the first section; `network` has the sizes of the pieces that came first. `names`
    tell for each piece under which name the values lie here that it reads under names of its own.
    """

    skeleton: Skeleton
    network: Network
    piece_of: dict[str, int]
    names: tuple[dict[str, str], ...]
    rounds: dict[Ends, tuple[bool, bool]] = field(default_factory=dict)
    planned: dict[Ends, frozenset[str]] = field(default_factory=dict)
    lowered: dict[tuple[Ends, Crossing | None], Lowered] = field(default_factory=dict)

    @classmethod
    def of(cls, sections: Sequence[tuple[Skeleton, Sequence[Version]]]) -> SectionForm:
        """Join sections, all of which have pieces."""
        nodes: list[Node] = []
        params: dict[str, ParamSpec] = {}
        piece_of: dict[str, int] = {}
        found: list[dict[str, str]] = []
        value, shape = INPUT, ()
        for skeleton, versions in sections:
            here = {old: new for version in versions for old, new in version.renamed.items()}
            here[INPUT] = value
            new_names = {**skeleton.aliases, skeleton.section.entry: INPUT}
            for version in versions:
                names = {}
                for name in version.reads:
                    new_name = new_names.get(name, name)
                    names[name] = here.get(new_name, new_name)
                    if names[name] == INPUT:
                        shape = version.network.shape_of(name)
                nodes += redirect(version.nodes, names)
                params.update(version.network.params)
                piece_of.update((node.name, len(found)) for node in version.nodes)
                found.append(names)
            value = here.get(skeleton.output, skeleton.output)
        return cls(sections[0][0], Network(shape, tuple(nodes), value, params), piece_of, tuple(found))

    @cached_property
    def opens(self) -> bool:
        """Return whether nothing before depends on what reads the input: it is a layer, or not alone."""
        users = (self.network.by_name[name] for name in self.network.users[INPUT])
        readers = [node for node in users if not is_number(node)]
        return len(readers) > 1 or all(node.op in LAYERS for node in readers)

    @cached_property
    def closes(self) -> bool:
        """Return whether nothing behind depends on what computes the output."""
        return self.network.by_name[self.network.output].op not in NEVER_CLOSES

    @cached_property
    def reads_integers(self) -> bool:
        """Return whether something that reads the input works on integers where it can."""
        return reads_integers(self.network, INPUT)

    def round(self, ends: Ends) -> tuple[bool, bool]:
        """Return whether the input and the output have to be rounded, given that they are or are not yet."""
        before, behind, follows = ends
        known = {INPUT: before, self.network.output: behind}
        planned = plan(
            self.network, frozenset(name for name, is_rounded in known.items() if is_rounded), follows
        )
        found = INPUT in planned, self.network.output in planned
        self.planned[*found, follows] = planned
        self.rounds[ends] = found
        return found

    def lower(self, ends: Ends, entry: Crossing | None, layouts: Layouts, slots: dict[Slot, Slot]) -> Lowered:
        """Return what is made of the pieces, between such ends, of an input that lies so (None: the whole
        network's); equal slots are one of `slots`."""
        planned = self.planned[ends]
        network = rounded(self.network, planned, entry is not None and entry.from_zero)
        operations, leaves = section_operations(network, layouts, Section(entry, ends[2] is None))
        made: list[list[Made]] = [[] for _ in self.names]
        for operation in operations:
            piece, one = self._made(operation)
            made[piece].append(one)
        cuts: list[dict[Carried, list[tuple[str, ...]]]] = [{} for _ in self.names]
        for value, alive in alive_values(network):
            piece = self._holder(value)
            own = self._own_names[piece]
            carried = tuple(
                (self._holder(other), self._own_name(other), 1 if other in planned else 4)
                for other in alive
                if other not in own
            )
            cuts[piece].setdefault(carried, []).append(tuple(own[other] for other in alive if other in own))
        found = []
        for operations_of, cuts_of, own in zip(made, cuts, self._own_names, strict=True):
            is_rounded = frozenset(name for value, name in own.items() if value in planned)
            slot = Slot(tuple(operations_of), is_rounded, tuple(map(tuple, cuts_of.values())))
            found.append(slots.setdefault(slot, slot))
        others = tuple(tuple(cuts_of) if any(cuts_of) else () for cuts_of in cuts)
        lowered = Lowered(tuple(found), others, leaves)
        self.lowered[ends, entry] = lowered
        return lowered

    @cached_property
    def _own_names(self) -> tuple[dict[str, str], ...]:
        """Return for each piece the names there of the values that it computes or reads."""
        found: list[dict[str, str]] = [{here: own for own, here in names.items()} for names in self.names]
        for name, piece in self.piece_of.items():
            found[piece][name] = name
        return tuple(found)

    def _holder(self, value: str) -> int:
        """Return the piece that computes a value, or the first that reads the input."""
        if value != INPUT:
            return self.piece_of[value]
        return next(piece for piece, own in enumerate(self._own_names) if INPUT in own)

    def _own_name(self, value: str) -> str:
        return self._own_names[self._holder(value)][value]

    def _made(self, operation: Operation) -> tuple[int, Made]:
        value = operation.nodes[0] if operation.node is None else operation.node.name
        shape = self.network.shape_of(value)
        if operation.shape != shape:
            raise Uncuttable(f"{operation.kind} of {value} works on another shape")
        piece = self._holder(value)
        own = self._own_names[piece]
        return piece, Made(
            operation.kind,
            operation.precision,
            own[value],
            operation.node is None,
            tuple(own[name] for name in operation.nodes if name in own),
            operation.activation,
            operation.layout,
            operation.adds,
        )
