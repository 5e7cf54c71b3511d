"""A profile folder is read back as it was written, or refused with the file and the line or key."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from profile_samples import cell, edit, example

from autocompress.api_profile import profile
from autocompress.cost.kernels import Kernel
from autocompress.cost.layouts import Layouts
from autocompress.device.profile import latency_table
from autocompress.device.profile.profile import LatencyFit
from autocompress.device.profile.validation import Validation
from autocompress.device.profile_files.store import (
    KERNELS,
    PROFILE,
    VALIDATION,
    load_profile,
    read_profile,
    write_profile,
)
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import ProfileError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_profile(tmp_path / "example", example())
    return tmp_path / "example"


def test_what_was_written_is_read_back(folder: Path):
    found, wanted = read_profile(folder), example()
    assert found.table.rows == wanted.table.rows
    assert found.sources == wanted.sources
    assert (found.fit, found.file_coefficients) == (wanted.fit, wanted.file_coefficients)
    assert found.layouts == Layouts(8, False)
    assert (found.name, found.runtime, found.threads, found.batch) == ("example", "onnxruntime", 1, 1)
    assert found.fingerprint == wanted.fingerprint
    assert found.relative_error == 0.04


def test_reading_and_writing_again_changes_no_byte(folder: Path, tmp_path: Path):
    write_profile(tmp_path / "again", read_profile(folder))
    for name in (PROFILE, KERNELS, VALIDATION):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_or_its_profile_file_may_be_named(folder: Path):
    assert load_profile(folder).fingerprint == load_profile(folder / PROFILE).fingerprint


def test_rows_need_not_rise_with_their_size(folder: Path):
    for name, value in (("median_us", "1.0"), ("ci95_low_us", "0.5"), ("ci95_high_us", "1.5")):
        edit(folder / KERNELS, cell(name, value, 4))
    assert read_profile(folder).table.rows[2].median_us == 1.0


def test_a_name_that_is_unknown_tells_how_to_make_one():
    with pytest.raises(ProfileError, match="'nowhere'") as caught:
        load_profile("nowhere")
    assert "autocompress profile" in caught.value.fix


@pytest.mark.parametrize("name", [PROFILE, KERNELS, VALIDATION])
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (None, "missing"),
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("formats: 1".encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbfformat: 1\n", "byte order mark"),
    ],
    ids=["missing", "empty", "blank", "binary", "utf-16", "bom"],
)
def test_files_that_are_no_text_are_refused(folder: Path, name: str, data: bytes | None, why: str):
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(ProfileError) as caught:
        read_profile(folder)
    assert str(folder / name) in caught.value.where
    assert why in caught.value.why


@pytest.mark.parametrize("name", [PROFILE, KERNELS, VALIDATION])
def test_files_of_a_gigabyte_are_refused_unread(folder: Path, name: str):
    with (folder / name).open("r+b") as file:
        file.truncate(1024**3)
    tracemalloc.start()
    with pytest.raises(ProfileError, match="cannot be used") as caught:
        read_profile(folder)
    assert tracemalloc.get_traced_memory()[1] < 16 * 1024**2
    tracemalloc.stop()
    assert f"larger than {1 if name == PROFILE else 64} MiB" in caught.value.why


@pytest.mark.parametrize("name", [PROFILE, KERNELS, VALIDATION])
def test_every_truncation_is_refused_or_reads_as_whole_lines(folder: Path, name: str):
    text = (folder / name).read_bytes()
    for length in np.linspace(0, len(text) - 2, 40).astype(int):
        (folder / name).write_bytes(text[:length])
        try:
            rows = read_profile(folder).table.rows
        except ProfileError as error:
            assert name in error.where
        else:
            assert name != VALIDATION
            assert set(rows) <= set(example().table.rows)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("format: 2", "format: 99", "99"),
        ("format: 2", "format: one", "format"),
        ("format: 2", "format: 2\nformat: 2", "line 2"),
        ("threads: 1", "threads: 0", "threads"),
        ("threads: 1", "threads: true", "threads"),
        ("threads: 1", "threads: 1.5", "threads"),
        ("threads: 1\n", "", "threads"),
        ("batch: 1", "batch: -1", "batch"),
        ("format: 2", "format: 2\nfurther: 1", "further"),
        ("fit:", "fits:", "fit"),
        ("constant_us: 2.0", "constant_us: 2.0\n  constant_ms: 1", "constant_ms"),
        ("networks: 2", "networks: many", "networks"),
        ("networks: 2", "networks: -2", "networks"),
        ("network: resnet20", "network: ../resnet20", "leads out of the folder"),
        ("network: resnet20", "network: [a]", "network"),
        ("space: joint", "space: ..\\\\joint", "leads out of the folder"),
        ("space: joint", "space: joint\n  spaces: joint", "spaces"),
        ("runtime: onnxruntime", "runtime: ../onnxruntime", "leads out of the folder"),
        ("  - 1\n  - 3\n", "  - 1\n  - 0\n", "input_shape"),
        ("threads: 1", "threads: 99999999", "threads"),
        ("runtime: onnxruntime", "runtime: &a [*a]", "line"),
        ("runtime: onnxruntime", "runtime: {? [a] : b}", "line"),
        ("conv.fp32: 1.5", "conv.fp32: .nan", "overheads_us.conv.fp32"),
        ("conv.fp32: 1.5", "conv.fp32: true", "overheads_us.conv.fp32"),
        ("constant_us: 2.0", "constant_us: .inf", "constant_us"),
        ("constant_us: 2.0", "constant_us: fast", "constant_us"),
        ("constant_us: 2.0", "constant_us: -2.0", "constant_us"),
        ("constant_us: 2.0\n", "\n", "constant_us"),
        ("overheads_us:", "overheads_ms:", "overheads_us"),
        ("float_block: 8", "float_block: -8", "float_block"),
        ("float_block: 8", "float_block: true", "float_block"),
        ("int8_channels_last: false", "int8_channels_last: 0", "int8_channels_last"),
        ("conv.fp32: 0.9", "conv.fp32: -0.9", "conv.fp32"),
        ("conv.fp32: 0.9", "conv.fp32: 0", "conv.fp32"),
        ("- 5.0", "", "file_coefficients"),
        ("- 5.0", "- .nan", "file_coefficients"),
        ("runtime: onnxruntime", "runtime: &a onnxruntime\nagain: *a", "line"),
        ("runtime: onnxruntime", "runtime: !!python/object/apply:os.system ['false']", "line"),
        ("runtime: onnxruntime", "runtime: [onnxruntime", "line"),
        ("runtime: onnxruntime", "runtime: 1", "runtime"),
    ],
)
def test_profile_yaml_is_checked_key_by_key(folder: Path, old: str, new: str, why: str):
    edit(folder / PROFILE, lambda text: text.replace(old, new))
    with pytest.raises(ProfileError) as caught:
        read_profile(folder)
    assert PROFILE in caught.value.where
    assert why in caught.value.why


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "1e999", "fast", "0x10"])
def test_a_median_must_be_a_positive_number(folder: Path, value: str):
    edit(folder / KERNELS, cell("median_us", value))
    with pytest.raises(ProfileError) as caught:
        read_profile(folder)
    assert "line 3" in caught.value.why
    assert KERNELS in caught.value.where


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ci95_low_us", "-1"),
        ("ci95_low_us", "1000"),
        ("ci95_high_us", "0.1"),
        ("count", "-3"),
        ("count", "2.5"),
        ("count", "0"),
        ("count", "9" * 5000),
        ("operations", "-1"),
        ("op", ""),
        ("op", "../conv"),
        ("groups", "0"),
        ("in_channels", "many"),
        ("in_channels", "-8"),
        ("height", ""),
    ],
)
def test_other_cells_are_checked_too(folder: Path, name: str, value: str):
    edit(folder / KERNELS, cell(name, value))
    with pytest.raises(ProfileError) as caught:
        read_profile(folder)
    assert "line 3" in caught.value.why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text + text.splitlines()[-1] + "\n", "line 4 is of the same kernel"),
        (lambda text: text.replace("median_us", "median_ms"), "median_us"),
        (lambda text: text.splitlines()[0] + "\n", "no rows"),
        (lambda text: text.rstrip() + ",7\n", "line 4"),
        (lambda text: text.rstrip()[: -len(",12.5000")] + "\n", "line 4"),
        (lambda text: text + '"conv', "line 5"),
    ],
    ids=["duplicate", "other unit", "no rows", "one cell more", "one cell fewer", "open quote"],
)
def test_rows_that_do_not_belong_are_refused(folder: Path, change: Callable[[str], str], why: str):
    edit(folder / KERNELS, change)
    with pytest.raises(ProfileError) as caught:
        read_profile(folder)
    assert why in caught.value.why


@pytest.mark.parametrize(
    "text", ["[]", "1", '{"error95": "low"}', '{"error95": -1}', '{"error95": NaN}', "{"]
)
def test_a_validation_that_says_nothing_is_refused(folder: Path, text: str):
    (folder / VALIDATION).write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        read_profile(folder)
    assert VALIDATION in caught.value.where


def test_a_profile_that_was_not_validated_is_not_trusted_much():
    assert replace(example(), validation=Validation()).relative_error == 0.1


def test_it_is_for_one_runtime_thread_count_and_batch():
    example().check_fits(runtime="onnxruntime", threads=1, batch=1)
    for wanted in ({"runtime": "openvino"}, {"threads": 2}, {"batch": 32}):
        ((name, value),) = wanted.items()
        with pytest.raises(ProfileError, match=f"measured with {name}") as caught:
            example().check_fits(**wanted)
        assert f"{name} {value} is wanted" in caught.value.why


def test_it_is_used_on_its_own_machine_only():
    example().check_here(DeviceDescription({"cpu": "An Example", "usable_cores": 1}))
    with pytest.raises(ProfileError, match="another machine"):
        example().check_here(DeviceDescription({"cpu": "Another", "usable_cores": 8}))
    hidden = replace(example(), device=DeviceDescription({"cpu": "AMD EPYC", "cpu_id": "25-17-1"}))
    hidden.check_here(DeviceDescription({"cpu": "AMD EPYC", "cpu_id": "25-17-1"}))
    with pytest.raises(ProfileError, match="another machine"):
        hidden.check_here(DeviceDescription({"cpu": "AMD EPYC", "cpu_id": "26-2-1"}))
    with pytest.raises(ProfileError, match="another machine"):
        replace(example(), device=DeviceDescription({})).check_here(DeviceDescription({"cpu": "An Example"}))
    with pytest.raises(ProfileError, match="4 threads"):
        replace(example(), threads=4).check_here(DeviceDescription({"cpu": "An Example", "usable_cores": 2}))


def test_a_profile_of_a_gpu_holds_for_that_gpu_on_any_processor():
    profile = replace(example(), device=DeviceDescription({"cpu": "An Example", "gpu": "A GPU"}))
    profile.check_here(DeviceDescription({"cpu": "Another", "gpu": "A GPU"}))
    with pytest.raises(ProfileError, match="another machine"):
        profile.check_here(DeviceDescription({"cpu": "An Example", "gpu": "Another GPU"}))
    with pytest.raises(ProfileError, match="another machine"):
        profile.check_here(DeviceDescription({"cpu": "An Example"}))


def test_a_kernel_is_scaled_and_relieved_of_the_profiler():
    fit = LatencyFit({"conv.fp32": 0.5, "add.fp32": 2.0}, {"conv.fp32": 1.5, "add.fp32": 0.5}, 10.0)
    convolution = Kernel("conv", "fp32", kernel_height=3, kernel_width=3)
    assert fit.kernel_us(convolution, 100.0, 2) == 0.5 * 100 - 1.5 * 2
    assert fit.kernel_us(Kernel("add", "fp32"), 3.0, 1) == 2.0 * 3 - 0.5


def test_a_kernel_of_a_group_without_fit_gets_the_typical_one():
    fit = LatencyFit({"conv.fp32": 0.5, "add.fp32": 2.0}, {"conv.fp32": 1.5, "add.fp32": 0.5}, 10.0)
    assert fit.kernel_us(Kernel("softmax", "fp32"), 10.0, 1) == 1.25 * 10 - 1.0


def test_no_kernel_is_free_or_gives_time_back():
    fit = LatencyFit({"add.fp32": 1.0}, {"add.fp32": 5.0}, 0.0)
    assert fit.kernel_us(Kernel("add", "fp32"), 2.0, 1) == 0.05 * 2


def test_everything_that_decides_a_price_is_in_the_fingerprint():
    base = example()
    changed = [
        replace(base, threads=2),
        replace(base, fit=replace(base.fit, overheads_us={"conv.fp32": 1.6})),
        replace(base, layouts=Layouts(16, False)),
        replace(base, file_coefficients=(1.0, *base.file_coefficients[1:])),
        replace(base, table=latency_table.LatencyTable(base.table.rows[:2])),
    ]
    assert len({base.fingerprint, *(one.fingerprint for one in changed)}) == 6
    assert replace(base, name="other").fingerprint == base.fingerprint


def test_more_threads_than_cpus_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="4096 threads were asked for") as caught:
        profile("timm:resnet18", "resnet", tmp_path / "p", threads=4096, input_size=64)
    assert "--threads" in caught.value.fix
    assert not (tmp_path / "p").exists()
