"""Commands about device profiles: `profile kit`, `import`, `show`, `diff`, `validate`, `merge`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from autocompress.cli.options import FOLDER, FORMAT, check_options, import_options, kit_options
from autocompress.cli.support import one_of, to_stdout


@click.command("show", short_help="Print a profile, and check all of its files.")
@click.argument("name")
@FORMAT
def show_profile(name: str, output_format: str) -> None:
    """Show the device profile NAME, a shipped name or a folder, and check all of its files.

    What was measured of each kind of kernel, how well it predicts, and which widths and precisions
    are worth offering on the device.

    \b
    Example:
      autocompress profile show hardware_profiles/mine
    """
    from autocompress.device.profile.widths import coverage, precision_gains
    from autocompress.device.profile_files.store import load_profile
    from autocompress.reporting.profile_tables import profile_report

    found = load_profile(name)
    fields = ("name", "runtime", "threads", "batch", "device", "validation", "fingerprint")
    data: dict[str, object] = {field: getattr(found, field) for field in fields}
    data["device"] = dict(found.device.values)
    data["validation"] = found.validation.to_json()
    data["sources"] = [dataclasses.asdict(source) for source in found.sources]
    data["fit"] = dataclasses.asdict(found.fit)
    data["coverage"] = [one.to_json() for one in coverage(found)]
    data["precisions"] = [
        {**dataclasses.asdict(gain), "never_faster": gain.never_faster} for gain in precision_gains(found)
    ]
    to_stdout(data, lambda: profile_report(found), output_format)


@click.command("diff", short_help="Compare two profiles.")
@click.argument("first")
@click.argument("second")
@FORMAT
def diff_profiles(first: str, second: str, output_format: str) -> None:
    """Compare two device profiles: what they were measured with, and what equal kernels take.

    A ratio above 1 means that SECOND is slower. Ends with exit code 0 whatever the difference.

    \b
    Example:
      autocompress profile diff hardware_profiles/before hardware_profiles/now
    """
    from autocompress import api_profile
    from autocompress.reporting.profile_tables import difference_table

    found = api_profile.diff_profiles(first, second)
    to_stdout(found, lambda: difference_table(found), output_format)


@click.command("validate", short_help="Check a profile again on its device.")
@click.argument("name")
@check_options
@FORMAT
def validate_profile(name: str, output_format: str, **options: Any) -> None:
    """Check the device profile NAME on this machine, on networks that it was not made from.

    Measures them as profiling does and compares with the predictions. Refuses another machine than
    was profiled. Keep the machine otherwise idle meanwhile.

    \b
    Example:
      autocompress profile validate hardware_profiles/mine --teacher timm:resnet18 --space resnet
    """
    from autocompress import api_profile
    from autocompress.reporting.profile_tables import revalidation_table

    found = api_profile.validate_profile(name, **options)
    to_stdout(found, lambda: revalidation_table(found), output_format)
    if options["update"]:
        click.echo(f"the validation of {name} was replaced", err=True)


@click.command("merge", short_help="Join the profiles of several networks.")
@click.argument("profiles", nargs=-1, required=True)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder to write the merged profile to.")
@click.option("--overwrite", is_flag=True, help="Replace a profile that is there.")
def merge_profiles(profiles: tuple[str, ...], output: Path, overwrite: bool) -> None:
    """Make one profile of PROFILES of the same device, runtime, number of threads and batch size.

    Each network keeps its own fit; equal kernels are pooled.

    \b
    Example:
      autocompress profile merge hardware_profiles/resnet hardware_profiles/vit -o hardware_profiles/mine
    """
    from autocompress import api_profile
    from autocompress.reporting.profile_tables import profile_table

    merged = api_profile.merge_profiles(profiles, output, overwrite)
    to_stdout(None, lambda: profile_table(merged), "table")
    click.echo(f"the profile is in {output}", err=True)


@click.command("kit", short_help="Write a folder to measure another device with.")
@kit_options
def make_kit(**options: Any) -> None:
    """Write a folder to measure a device with that autocompress cannot run on.

    It holds the networks and one script that needs only numpy and the runtime. Run it there by hand,
    or over ssh with --ssh, which also fetches the results and makes the profile.

    \b
    Example:
      autocompress profile kit --teacher timm:resnet18 --space resnet -o kit
      autocompress profile kit --teacher timm:resnet18 --space resnet -o kit --ssh pi@raspberrypi
    """
    one_of(options, "resume", "overwrite")
    from autocompress import api_profile
    from autocompress.reporting.profile_tables import profile_table

    measured = api_profile.profile_kit(**options)
    if measured is None:
        click.echo(f"copy {options['output']} to the device and run there: python measure_kit.py", err=True)
        return
    to_stdout(None, lambda: profile_table(measured), "table")


@click.command("import", short_help="Make a profile of a kit's results or a profiler's log.")
@import_options
def import_profile(**options: Any) -> None:
    """Make a device profile of a measured kit, or of what a vendor's profiler wrote.

    SOURCES is a kit's folder or its results.jsonl; or dumps of ONNX Runtime, OpenVINO, trtexec, TFLite or
    torch.profiler, each with the profiled model of a kit as --model.

    \b
    Example:
      autocompress profile import kit -o hardware_profiles/phone
      autocompress profile import layers.json --model kit/models/4f53cda18c2b.onnx -o hardware_profiles/jetson
    """
    from autocompress import api_profile
    from autocompress.reporting.profile_tables import profile_table

    measured = api_profile.profile_import(**options)
    to_stdout(None, lambda: profile_table(measured), "table")
    gaps = measured.validation.imported
    for one in gaps.unknown_operators if gaps else ():
        click.echo(
            f"unknown operator, counted with its neighbour: {one.operator}, "
            f"{one.count} times, {one.total_us:g} µs together",
            err=True,
        )
    for text in gaps.kernels_not_found if gaps else ():
        click.echo(f"not found in the dump, and not priced: {text}", err=True)


COMMANDS = (make_kit, import_profile, show_profile, validate_profile, diff_profiles, merge_profiles)
