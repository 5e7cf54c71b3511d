"""Prices candidates of one space as sums over pieces of the network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import fsum

from autocompress.cost.compiled.lowering import Carried, Ends, SectionForm
from autocompress.cost.compiled.pieces import Version
from autocompress.cost.compiled.rows import Counts, PieceRow, Slot
from autocompress.cost.compiled.sections import Skeleton, cut
from autocompress.cost.fused_graph import Crossing
from autocompress.cost.model import Amounts, CostModel, FileContent
from autocompress.cost.packed_size import PackedContent
from autocompress.problem.candidate import Candidate, Cost, Option
from autocompress.transforms.sites import BoundSpace

MOST_ROWS = 200_000
"""What pieces add is remembered so many times; then all is forgotten."""

Part = tuple[SectionForm, Sequence[Version]]


class SumPricer:
    """Price candidates as `CostModel.price` prices their networks, to the last bit.

    Raises Uncuttable for a space whose candidates cannot be priced so.
    """

    def __init__(self, bound: BoundSpace, cost_model: CostModel) -> None:
        self.cost_model = cost_model
        self.bound, self.layouts = bound, cost_model.device.layouts
        self._at = {site.name: at for at, site in enumerate(bound.free)}
        self._defaults = [site.default for site in bound.free]
        self._legal = {(site.name, option) for site in bound.sites for option in site.options}
        self._start()

    def _start(self) -> None:
        self.sections, self.axes = cut(self.bound, self.layouts.float_block)
        self._joined: dict[tuple[SectionForm, ...], SectionForm] = {}
        self._slots: dict[Slot, Slot] = {}
        self._rows = 0

    def price(self, candidate: Candidate) -> Cost:
        """Return the predicted cost of a candidate.

        Raises KeyError for a choice that the space does not have, ProfileError for a kernel of which nothing
        is known and Uncuttable where what a choice makes of a piece depends on others.
        """
        if not self._legal.issuperset(candidate.choices):
            raise KeyError(f"the space does not have all of {candidate.choices}")
        if self._rows > MOST_ROWS:
            self._start()
        forms, versions = self._forms(self._options(candidate))
        ends = _ends(forms)
        rows: list[PieceRow] = []
        live: list[int] = []
        entry: Crossing | None = None
        for form, pieces, end in zip(forms, versions, ends, strict=True):
            lowered = form.lowered.get((end, entry)) or form.lower(end, entry, self.layouts, self._slots)
            slots, carried, entry = lowered
            for slot, others, version in zip(slots, carried, pieces, strict=True):
                row = slot.rows.get(version) or self._row(slot, version)
                rows.append(row)
                live.append(_most(row, others, pieces) if others else row[5])
        return self.cost_model.cost(_amounts(rows, max(live), ends[0][0]))

    def _row(self, slot: Slot, version: Version) -> PieceRow:
        self._rows += 1
        return slot.row(version, self.cost_model)

    def _options(self, candidate: Candidate) -> list[Option]:
        """Return the option of each free site, and the number of channels of each axis behind them."""
        options = self._defaults.copy()
        for name, option in candidate.choices:
            at = self._at.get(name)
            if at is not None:
                options[at] = option
        return options + [axis.count(options) for axis in self.axes]

    def _forms(self, options: Sequence[Option]) -> tuple[list[SectionForm], list[list[Version]]]:
        """Return the forms and the pieces of sections, joined where one depends on what reads its output."""
        forms: list[SectionForm] = []
        versions: list[list[Version]] = []
        joined: dict[int, list[Part]] = {}
        closed = True
        for section in self.sections:
            skeleton = section.skeleton(options) if section.blocks else section.whole
            pieces = [piece.known.get(piece.key(options)) or piece.make(options) for piece in skeleton.pieces]
            if not pieces:
                continue
            form = pieces[0].alone if len(pieces) == 1 else None
            if form is None:
                form = _form(skeleton, pieces)
            if not forms or (form.opens and closed):
                forms.append(form)
                versions.append(pieces)
            else:
                at = len(forms) - 1
                joined.setdefault(at, [(forms[at], versions[at])]).append((form, pieces))
                versions[at] = versions[at] + pieces
            closed = form.closes
        for at, parts in joined.items():
            forms[at] = self._join(parts)
        return forms, versions

    def _join(self, parts: Sequence[Part]) -> SectionForm:
        key = tuple([form for form, _ in parts])
        found = self._joined.get(key)
        if found is None:
            made = [(form.skeleton, versions) for form, versions in parts]
            found = self._joined[key] = SectionForm.of(made)
        return found


def _form(skeleton: Skeleton, versions: Sequence[Version]) -> SectionForm:
    """Return the form of a section, which a piece that is alone in it remembers."""
    key = tuple([version.form for version in versions])
    form = skeleton.forms.get(key)
    if form is None:
        form = skeleton.forms[key] = SectionForm.of([(skeleton, versions)])
    if len(versions) == 1:
        versions[0].alone = form
    return form


def _ends(forms: Sequence[SectionForm]) -> list[Ends]:
    """Return how sections end, where the fewest values between them are rounded with which every section has
    those that it needs."""
    follows = [*[form.reads_integers for form in forms[1:]], None]
    found = [False] * (len(forms) + 1)
    changed = True
    while changed:
        changed = False
        for at, form in enumerate(forms):
            ends = found[at], found[at + 1], follows[at]
            before, behind = form.rounds.get(ends) or form.round(ends)
            if before is not ends[0] or behind is not ends[1]:
                found[at], found[at + 1] = before, behind
                changed = True
    return [*zip(found[:-1], found[1:], follows, strict=True)]


def _most(row: PieceRow, carried: Sequence[Carried], versions: Sequence[Version]) -> int:
    """Return the most bytes alive while a piece is computed, with those of other pieces."""
    most = 0
    for total, others in zip(row.live_bytes, carried, strict=True):
        for piece, name, size in others:
            total += versions[piece].elements[name] * size
        most = max(most, total)
    return most


def _amounts(rows: Sequence[PieceRow], live_bytes: int, rounds_input: bool) -> Amounts:
    counts, channels, kernels_us, coded_bytes, _, _ = zip(*rows, strict=True)
    total = Counts.unpacked(sum(counts))
    coded = fsum(chain.from_iterable(coded_bytes)) if total.coded_layers else 0.0
    file = FileContent(
        nodes=total.nodes,
        convolutions=total.convolutions,
        letters=total.letters,
        low_layers=total.low_layers,
        low_letters=total.low_letters,
        low_channels=total.low_channels,
        distinct_channels=frozenset().union(*channels),
        quantizers=total.quantizers + rounds_input,
        tensors=total.tensors,
    )
    packed = PackedContent(total.nodes, total.stored, total.stored_letters, total.coded_layers, coded)
    return Amounts(
        kernels_us=fsum(chain.from_iterable(kernels_us)),
        macs=total.macs,
        parameters=total.parameters,
        weight_bytes=total.weight_bytes,
        live_bytes=live_bytes,
        file=file,
        packed=packed,
    )
