"""From what the user named to what a search works on: teacher traced, space bound, choices priced."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from autocompress.cost.kernels import Kernel, kernels
from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer, with_choice
from autocompress.cost.worthless_choices import payoff
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.runtimes.base import runs_torch_operators
from autocompress.errors import InputError, SpaceError, TeacherError
from autocompress.export.onnx import to_onnx, without_onnx_form
from autocompress.graph.capture.example import Example
from autocompress.graph.capture.signature import taken_apart
from autocompress.graph.network import XNOR, Network, Weights
from autocompress.graph.operators import has_gradient, needs_providers, provide_operators
from autocompress.graph.trace import trace
from autocompress.pipeline.before_search.task_fit import AskedTask, fitted, is_of_classes, of_classes
from autocompress.problem.budgets import LIMITED
from autocompress.problem.candidate import Candidate, Option, eight_bits
from autocompress.problem.data import CACHE_MEMORY_BYTES, Data, load_data
from autocompress.problem.inputs import shape_of_size, shape_without_size
from autocompress.problem.space import Space
from autocompress.problem.specs import InputSize
from autocompress.problem.teacher import Teacher, check_teacher, load_teacher, result_of
from autocompress.progress import Console
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.probe import probed
from autocompress.transforms.sites import BoundSpace, bind

REPLACEMENTS = frozenset({"rank", "structure", "block", "merge"})
"""Kinds of site whose options run operations that the teacher may not have."""

NOTHING_PAYS = "no choice of the space makes anything faster or smaller on this device"


@dataclass(frozen=True, eq=False)
class OpenedTeacher:
    """A teacher that runs on its data: loaded, checked, traced.

    `shipped` is its network and weights as they are exported, with batch norms folded away, and
    `without_onnx` says which of its operations have no form in ONNX.
    """

    teacher: Teacher
    data: Data | None
    network: Network
    weights: Weights
    shipped: tuple[Network, Weights]
    example: Example
    without_onnx: tuple[TeacherError, ...] = ()


def open_teacher(
    teacher: str | nn.Module | Teacher,
    data: Any = None,
    input_size: InputSize | None = None,
    data_seed: int = 0,
    console: Console | None = None,
    cache_memory_bytes: int = CACHE_MEMORY_BYTES,
    runtime: str | None = None,
    asked: AskedTask | None = None,
) -> OpenedTeacher:
    """Load, check and trace a teacher; raise InputError for whatever cannot be used.

    It is exported once for the runtime that is to run it, so that an operation that cannot be is found now
    and not after a search; without a runtime such operations are listed. `asked` says which task students are
    for; without it, data other than classes only says how large images are.
    """
    loaded = load_teacher(teacher)
    if console is not None:
        for note in loaded.notes:
            console.say(note)
    opened_data = None
    if data is not None:
        opened_data = open_data(loaded, data, data_seed, console, cache_memory_bytes, asked)
        outputs = check_teacher(loaded.module, opened_data.input_shape)
        opened_data = _with_task(loaded, opened_data, outputs, asked, console)
        example = Example.of_shape(opened_data.input_shape)
    else:
        example = _example_without_data(loaded, input_size)
        _check_runs(loaded, example)
    network, weights = trace(loaded.module, example)
    folded, folded_weights = fold_batch_norms(network, weights)
    assert folded_weights is not None
    if needs_providers(network):
        provide_operators(loaded.module)
    if console is not None:
        for op in sorted({node.op for node in network.nodes if not has_gradient(node.op)}):
            console.say(f"{op} has no gradient: layers before it are not trained through it")
    missing: tuple[TeacherError, ...] = ()
    if runtime is None:
        missing = without_onnx_form(folded, folded_weights)
    else:
        to_onnx(folded, folded_weights, torch_operators=runs_torch_operators(runtime))
    return OpenedTeacher(loaded, opened_data, network, weights, (folded, folded_weights), example, missing)


def open_data(
    teacher: Teacher,
    data: Any,
    seed: int,
    console: Console | None,
    cache_memory_bytes: int = CACHE_MEMORY_BYTES,
    asked: AskedTask | None = None,
) -> Data:
    """Return the data, in the size and normalisation that the teacher asks for where the spec says
    nothing."""
    task = None if asked is None else asked.named()
    targets = None if task is None else task.targets
    if console is None:
        return load_data(
            data,
            seed,
            preprocessing=teacher.preprocessing,
            cache_memory_bytes=cache_memory_bytes,
            targets=targets,
        )
    with console.stage("reading data", None) as stage:
        return load_data(
            data,
            seed,
            preprocessing=teacher.preprocessing,
            progress=lambda what, done, total: stage.update(done, total, what),
            cache_memory_bytes=cache_memory_bytes,
            targets=targets,
        )


def _with_task(
    teacher: Teacher, data: Data, outputs: tuple[int, ...], asked: AskedTask | None, console: Console | None
) -> Data:
    """Return the data with its task and labels to match; tell what was taken and what is doubtful."""
    notes: tuple[str, ...] = ()
    if asked is not None:
        data, notes = fitted(teacher, data, outputs, asked)
    elif is_of_classes(data, outputs, None):
        data, notes = of_classes(teacher, data, outputs)
    if console is not None:
        for line in (*data.notes, *notes):
            console.say(line)
    return data


def _example_without_data(teacher: Teacher, input_size: InputSize | None) -> Example:
    """Return what the teacher is called with: the size given, else what it says, or its layers."""
    if input_size is not None:
        return Example.of_shape(shape_of_size(teacher.module, input_size))
    if teacher.example is not None:
        return Example.of_call(teacher.module, teacher.example)
    known = teacher.preprocessing.input_shape or shape_without_size(teacher.module)
    if known is None:
        raise InputError(
            "the input size of the teacher is not known",
            where=teacher.name,
            fix="give --data, or --input-size in pixels: 64, 32x96 (height x width) or 1x32x96; for several "
            "inputs let file.py:callable return a pair: the module, and a tuple or dict of example tensors",
        )
    return Example.of_shape(known)


def _check_runs(teacher: Teacher, example: Example) -> None:
    """Raise TeacherError when the teacher does not run on its example, or computes NaN."""
    results, _ = taken_apart(result_of(teacher.module, *example.arguments(teacher.module)))
    if any(one.is_floating_point() and bool(one.isnan().any()) for one in results):
        raise TeacherError(
            "the teacher computes NaN on a random input",
            where=teacher.name,
            fix="load a checkpoint from before the training diverged",
        )


def bound_space(opened: OpenedTeacher, space: Space) -> BoundSpace:
    """Return the space bound to the teacher, with every choice probed once."""
    bound = probed(bind(space, opened.network), opened.weights)
    if not bound.free:
        raise SpaceError(
            f"the space {space.name!r} leaves nothing to decide for {opened.teacher.name}",
            fix="run: autocompress inspect, which shows why each site is locked",
        )
    return bound


def seen_by(profile: DeviceProfile, opened: OpenedTeacher, bound: BoundSpace, space: Space) -> DeviceProfile:
    """Return the profile with the fit and the error of what was measured nearest to this teacher.

    Raises ProfileError naming the operations of the teacher that the profile knows nothing of.
    """
    bound = _in_measured_precisions(bound, profile)
    for candidate in (_in_eight_bits(bound), Candidate()):
        found = kernels(deployed_network(bound, candidate), profile.layouts)
        profile.check_prices(found)
    return profile.for_network(
        opened.network.input_shape, space.fingerprint, opened.teacher.fingerprint, found
    )


def priced(bound: BoundSpace, profile: DeviceProfile, budgeted: Collection[str] = LIMITED) -> Pricer:
    """Return a pricer for the space without the choices that do not pay on the device.

    `budgeted` names the costs that have a budget. Raises SpaceError when no choice is left.
    """
    bound = measured_choices(bound, profile)
    everything = Pricer(bound, CostModel(profile))
    dropped = payoff(everything).dropped(budgeted)
    if not dropped:
        return everything
    kept = bound.without(dropped)
    if not kept.free:
        raise SpaceError(
            NOTHING_PAYS, fix="run: autocompress inspect --device, which lists each of them with the reason"
        )
    return Pricer(kept, everything.cost_model)


def measured_choices(bound: BoundSpace, profile: DeviceProfile) -> BoundSpace:
    """Return the space without what the device's runtime, or this profile, has no kernels of."""
    return _in_measured_forms(_in_measured_precisions(bound, profile), profile)


def _in_measured_forms(bound: BoundSpace, profile: DeviceProfile) -> BoundSpace:
    """Return the space without replacements and binary activations that run operations of which the device
    measured nothing alike, which could only be priced by operations of another form."""
    known = {row.kernel.form for row in profile.table.rows}
    low = _in_eight_bits(bound)
    priced_as = {
        base: {kernel.form for kernel in _kernels(bound, base, profile)} for base in (Candidate(), low)
    }
    unknown: dict[tuple[str, Option], str] = {}
    for site in bound.free:
        for option in site.options:
            if site.kind not in REPLACEMENTS and option != XNOR:
                continue
            for base, forms in priced_as.items():
                found = _kernels(bound, with_choice(base, site.name, option), profile)
                lacking = {kernel.form: kernel for kernel in found if kernel.form not in known | forms}
                if lacking:
                    what = "; ".join(sorted(" ".join(map(str, form)) for form in lacking))
                    unknown[site.name, option] = (
                        f"the device profile has measured nothing like {what}; profile with this space"
                    )
                    break
    return bound.without(unknown) if unknown else bound


def _in_eight_bits(bound: BoundSpace) -> Candidate:
    """Put every layer that can in 8 bits; in 32 those that could only be `xnor`, which may not be
    measured."""
    found = {site.name: eight_bits(site) for site in bound.of_kind("bits")}
    return Candidate.of({name: option for name, option in found.items() if option != XNOR})


def _kernels(bound: BoundSpace, candidate: Candidate, profile: DeviceProfile) -> tuple[Kernel, ...]:
    return kernels(deployed_network(bound.folded, bound.canonical(candidate)), profile.layouts)


def _in_measured_precisions(bound: BoundSpace, profile: DeviceProfile) -> BoundSpace:
    """Return the space without the bit-widths that the device's runtime has no kernels for."""
    if any(row.kernel.precision == "int8" for row in profile.table.rows):
        return bound
    reason = f"{profile.runtime} was measured without 8-bit kernels"
    unmeasured: dict[tuple[str, Option], str] = {
        (site.name, option): reason
        for site in bound.of_kind("bits")
        for option in site.options
        if option != site.default
    }
    return bound.without(unmeasured) if unmeasured else bound
