"""From a kit's results to the profile that measuring on the device itself would have made."""

from __future__ import annotations

from autocompress.cost.kernels import kernels
from autocompress.cost.layouts import Layouts
from autocompress.device.imports.operators import attribute_operators
from autocompress.device.imports.parsing import OperatorTime
from autocompress.device.kit.folder import Kit
from autocompress.device.kit.results import KitResult, KitResults
from autocompress.device.measure.attribution import attribute
from autocompress.device.measure.layout_probe import layouts_of
from autocompress.device.measure.log import Timed, Timing
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profiler import ProfileSubject, Sample, profile_from
from autocompress.device.runtimes.description import DeviceDescription, Plain
from autocompress.errors import ProfileError


def profile_from_kit(kit: Kit, results: KitResults, name: str) -> DeviceProfile:
    """Return the profile. Raises ProfileError where the rewritten networks cannot be read or do not fit."""
    floats, integers = (results.optimized_probes[probe] for probe in kit.probes)
    try:
        layouts = layouts_of(floats, integers)
    except Exception as error:
        raise _damaged(kit, "the rewritten probes", error) from error
    samples = {entry.name: kit.sample(entry) for entry in kit.entries}
    timed = [_timed(kit, samples[result.name], result, layouts) for result in results.found]
    reference = samples.pop(kit.reference)
    return profile_from(
        timed,
        [reference, *samples.values()],
        ProfileSubject(
            name, results.runtime, results.threads, kit.batch, _device(results), kit.origin, layouts
        ),
    )


def _timed(kit: Kit, sample: Sample, result: KitResult, layouts: Layouts) -> Timed:
    return Timed(
        result.name,
        sample.precision,
        result.latency_ms,
        result.reference_ms,
        _timings(kit, sample, result, layouts),
    )


def _timings(kit: Kit, sample: Sample, result: KitResult, layouts: Layouts) -> tuple[Timing, ...]:
    cut = kernels(sample.network, layouts)
    if result.optimized:
        try:
            return attribute([node for node, _ in result.nodes], sample.model, result.optimized, cut)
        except Exception as error:
            raise _damaged(kit, f"the rewritten network {result.name}", error) from error
    operators = [
        OperatorTime(" ".join(origins) or node.name, node.op, node.time_us, 1)
        for node, origins in result.nodes
    ]
    return attribute_operators(operators, sample.model, sample.network, cut).timings


def _device(results: KitResults) -> DeviceDescription:
    used: dict[str, Plain] = {"runtime": results.runtime, "intra_op_threads": results.threads}
    return DeviceDescription({**results.device.values, **used})


def _damaged(kit: Kit, what: str, error: Exception) -> ProfileError:
    first = (str(error).splitlines() or [""])[0]
    return ProfileError(
        f"{what} cannot be read",
        where=str(kit.folder),
        why=f"{type(error).__name__}: {first[:200]}",
        fix="copy optimized/ from the device again, or measure again",
    )
