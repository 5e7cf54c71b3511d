"""What the machine says about itself, against the operating system and a processor description by hand."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from autocompress.device.measure import machine as doctor
from autocompress.device.measure.machine import Examination
from autocompress.device.runtimes.base import runtime_names

XEON = """processor\t: 0
cpu family\t: 6
model\t\t: 106
model name\t: Intel(R) Xeon(R) Gold 6326
stepping\t: 6
flags\t\t: fpu avx2 avx512f avx512_vnni

processor\t: 1
cpu family\t: 6
model\t\t: 106
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd0c
CPU revision\t: 1
"""


def described_by(monkeypatch: pytest.MonkeyPatch, text: str) -> Examination:
    monkeypatch.setattr(doctor, "_cpu_info", text.splitlines)
    return doctor.doctor()


def test_a_runtime_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = doctor.doctor().runtimes
    assert found["openvino"].startswith("not available: ")
    assert "autocompress[openvino]" in found["openvino"]


def test_a_processor_is_recognised(monkeypatch: pytest.MonkeyPatch):
    found = described_by(monkeypatch, XEON)
    assert (found.machine.cpu, found.machine.cpu_id) == ("Intel(R) Xeon(R) Gold 6326", "6-106-6")
    assert found.features == ("AVX2", "AVX-512", "AVX-512 VNNI")
    assert found.int8 == "accelerated"


def test_an_arm_processor_is_told_by_its_part(monkeypatch: pytest.MonkeyPatch):
    found = described_by(monkeypatch, ARM)
    assert found.machine.cpu_id == "0x41-0xd0c-1"
    assert found.features == ("ARM dot product", "ARM int8 matrix multiply")


def test_a_processor_without_integer_products_is_warned_about(monkeypatch: pytest.MonkeyPatch):
    assert described_by(monkeypatch, XEON.replace("avx512_vnni", "")).int8.startswith("not accelerated")


def test_an_unknown_system_is_no_error(monkeypatch: pytest.MonkeyPatch):
    found = described_by(monkeypatch, "")
    assert found.machine.cpu_id is None
    assert found.features == ()


def test_the_machine_at_hand():
    found = doctor.doctor().to_json()
    assert found["cores"] == os.cpu_count()
    assert found["packages"]["onnxruntime"] is not None
    assert found["packages"]["autocompress"] is not None
    assert found["memory_bytes"] > 2**28
    assert found["runtimes"].keys() == set(runtime_names())
    assert found["runtimes"]["onnxruntime"] == f"available, {found['packages']['onnxruntime']}"
    assert {name: found[name] for name in vars(doctor.machine())} == vars(doctor.machine())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"load_average": [9.0, 9.0, 9.0]}, "other programs"),
        ({"governor": "powersave"}, "governor"),
        ({"cpu_quota": 0.5}, "quota"),
        ({"free_disk_bytes": 1}, "disk"),
    ],
)
def test_problems_come_with_a_way_out(change: dict, word: str):
    found = doctor.doctor()
    calm = replace(
        found,
        machine=replace(found.machine, usable_cores=2, governor="performance", cpu_quota=None),
        load_average=(0.0, 0.0, 0.0),
        free_disk_bytes=2**40,
    )
    assert calm.problems == []
    of_machine = {name: value for name, value in change.items() if hasattr(calm.machine, name)}
    others = {name: value for name, value in change.items() if name not in of_machine}
    (problem,) = replace(calm, machine=replace(calm.machine, **of_machine), **others).problems
    assert word in problem
