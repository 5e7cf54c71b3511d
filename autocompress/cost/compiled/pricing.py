"""Prices candidates of one space as sums over pieces of the network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import fsum

from autocompress.cost.cache import Cache
from autocompress.cost.compiled.lowering import Carried, Ends, Form
from autocompress.cost.compiled.pieces import Version
from autocompress.cost.compiled.rows import Row, Slot
from autocompress.cost.compiled.sections import Skeleton, cut
from autocompress.cost.fused_graph import Crossing
from autocompress.cost.model import Amounts, CostModel, FileContent
from autocompress.cost.packed_size import PackedContent
from autocompress.problem.candidate import Candidate, Cost, Option
from autocompress.transforms.sites import BoundSpace

MOST_FORMS = 20_000
"""Of a section, or of several joined into one."""

Part = tuple[Skeleton, Sequence[Version]]


class SumPricer:
    """Prices candidates as `CostModel.price` prices their networks, to the last bit.

    Raises Uncuttable for a space whose candidates cannot be priced so.
    """

    def __init__(self, bound: BoundSpace, cost_model: CostModel) -> None:
        self.cost_model = cost_model
        self.layouts = cost_model.device.layouts
        self.sections, self.axes = cut(bound, self.layouts.float_block)
        self._at = {site.name: at for at, site in enumerate(bound.free)}
        self._defaults = [site.default for site in bound.free]
        self._legal = {(site.name, option) for site in bound.sites for option in site.options}
        self._joined: Cache[tuple[Form, ...], Form] = Cache(MOST_FORMS)
        self._slots: dict[Slot, Slot] = {}

    def price(self, candidate: Candidate) -> Cost:
        """Return the predicted cost of a candidate.

        Raises KeyError for a choice that the space does not have, ProfileError for a kernel of which nothing
        is known and Uncuttable where what a choice makes of a piece depends on others.
        """
        if not self._legal.issuperset(candidate.choices):
            raise KeyError(f"the space does not have all of {candidate.choices}")
        runs = self._runs(self._options(candidate))
        forms = [form for form, _ in runs]
        is_rounded = _rounded(forms)
        rows: list[Row] = []
        live: list[int] = []
        entry: Crossing | None = None
        for at, (form, versions) in enumerate(runs):
            follows = forms[at + 1].reads_integers if at + 1 < len(forms) else None
            ends = Ends(is_rounded[at], is_rounded[at + 1], follows)
            lowered = form.lowered.get((ends, entry)) or form.lower(ends, entry, self.layouts, self._slots)
            for slot, carried, version in zip(lowered.slots, lowered.carried, versions, strict=True):
                row = slot.rows.get(version) or slot.row(version, self.cost_model)
                rows.append(row)
                for own, others in zip(row.live_bytes, carried, strict=True):
                    live.append(own + _bytes(versions, others) if others else own)
            entry = lowered.leaves
        return self.cost_model.cost(_amounts(rows, max(live), is_rounded[0]))

    def _options(self, candidate: Candidate) -> list[Option]:
        """Return the option of each free site, and the number of channels of each axis behind them."""
        options = self._defaults.copy()
        for name, option in candidate.choices:
            at = self._at.get(name)
            if at is not None:
                options[at] = option
        return options + [axis.count(options) for axis in self.axes]

    def _runs(self, options: Sequence[Option]) -> list[tuple[Form, list[Version]]]:
        """Return the sections, joined where one depends on what reads its output, and their pieces."""
        runs: list[tuple[list[Part], list[Form], list[Version]]] = []
        for section in self.sections:
            skeleton = section.skeleton(options)
            if not skeleton.pieces:
                continue
            versions = [piece.version(options) for piece in skeleton.pieces]
            key = tuple([version.form for version in versions])
            form = skeleton.forms.get(key)
            if form is None:
                form = skeleton.forms.keep(key, Form.of([(skeleton, versions)]))
            if runs and not (form.opens and runs[-1][1][-1].closes):
                parts, forms, all_versions = runs[-1]
                parts.append((skeleton, versions))
                forms.append(form)
                all_versions += versions
            else:
                runs.append(([(skeleton, versions)], [form], [*versions]))
        return [(self._join(parts, forms), versions) for parts, forms, versions in runs]

    def _join(self, parts: Sequence[Part], forms: Sequence[Form]) -> Form:
        if len(forms) == 1:
            return forms[0]
        key = tuple(forms)
        found = self._joined.get(key)
        return self._joined.keep(key, Form.of(parts)) if found is None else found


def _rounded(forms: Sequence[Form]) -> list[bool]:
    """Return which values between sections are rounded, the input and the output included: the fewest with
    which every section has those that it needs."""
    found = [False] * (len(forms) + 1)
    last = len(forms) - 1
    changed = True
    while changed:
        changed = False
        for at, form in enumerate(forms):
            ends = Ends(found[at], found[at + 1], forms[at + 1].reads_integers if at < last else None)
            wanted = form.rounds.get(ends) or form.round(ends)
            if wanted != ends:
                found[at], found[at + 1] = wanted.before, wanted.behind
                changed = True
    return found


def _bytes(versions: Sequence[Version], carried: Carried) -> int:
    return sum([versions[piece].elements[name] * size for piece, name, size in carried])


def _amounts(rows: Sequence[Row], live_bytes: int, rounds_input: bool) -> Amounts:
    counts, channels, kernels_us, coded_bytes, _ = zip(*rows, strict=True)
    total = [sum(column) for column in zip(*counts, strict=True)]
    macs, quantizers, parameters, weight_bytes, nodes, convolutions, letters = total[:7]
    low_layers, low_letters, low_channels, tensors, stored, stored_letters, coded_layers = total[7:]
    coded = fsum(chain.from_iterable(coded_bytes)) if coded_layers else 0.0
    return Amounts(
        fsum(chain.from_iterable(kernels_us)),
        macs,
        parameters,
        weight_bytes,
        live_bytes,
        FileContent(
            nodes,
            convolutions,
            letters,
            low_layers,
            low_letters,
            low_channels,
            frozenset().union(*channels),
            quantizers + rounds_input,
            tensors,
        ),
        PackedContent(nodes, stored, stored_letters, coded_layers, coded),
    )
