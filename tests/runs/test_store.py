import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from autocompress.errors import RunError
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Cost
from autocompress.runs import event_log
from autocompress.runs.events import OtherEvent, SiteRecord
from autocompress.runs.store import RunPaths, RunStore, check_available, environment_record, read_run
from autocompress.runs.student import Student

IDENTITY = {
    "teacher": "t1",
    "data": "d1",
    "space": "s1",
    "budgets": {"latency_ms": 2.0},
    "device": "p1",
    "seed": 0,
}
CONFIG = {"identity": IDENTITY, "options": {"trials": 10}}


def make(root, *events, **options):
    with RunStore.create(root, options.pop("config", CONFIG), {"python": "3"}, **options) as store:
        for name, fields in events:
            store.append(written(name, **fields))
    return RunPaths(Path(root))


def lines(paths):
    return paths.events.read_bytes().splitlines(keepends=True)


def student(key, **changes):
    record = {
        "key": key,
        "accuracy": 0.9,
        "accuracy_std_err": 0.01,
        "latency_ms": 1.0,
        "latency_ms_ci95": [0.9, 1.1],
        "peak_memory_bytes": 100,
        "file_bytes": 10,
        "macs": 5,
        "parameters": 3,
        "certified": True,
        "path": f"students/{key}",
    }
    return {**record, **changes}


COST = {name: student("a")[name] for name in vars(Cost(1, (1, 1), 1, 1, 1, 1)) if name in student("a")}
SITE = {"name": "bits:a", "kind": "bits", "options": [8, 32], "default": 32, "locked": ""}


def written(event, **fields):
    """An event of any kind, its fields as they are: also such as no program writes."""
    return OtherEvent(name_written=event, extra=fields)


# A line of events.jsonl


def test_a_line_is_json_with_a_number_a_time_a_name_and_the_checksum_of_the_rest(tmp_path):
    paths = make(tmp_path / "r", ("one", {"trial": 3, "note": "größer"}), ("two", {}))
    first, second = lines(paths)
    record = json.loads(first)
    assert list(record) == ["seq", "time", "event", "trial", "note", "crc32"]
    assert (record["seq"], record["event"], record["note"]) == (0, "one", "größer")
    assert json.loads(second)["seq"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", record["time"])
    checksum = record.pop("crc32")
    assert checksum == zlib.crc32(json.dumps(record, separators=(",", ":")).encode())


def test_append_returns_what_was_recorded_and_values_become_plain_json(tmp_path):
    fields = {"a": np.float32(0.5), "b": np.int64(7), "c": (1, 2), "d": Path("x/y"), "e": float("nan")}
    with RunStore.create(tmp_path / "r", CONFIG, {}) as store:
        returned = store.append(written("values", **fields))
    (event,) = read_run(tmp_path / "r").events
    assert (returned.seq, returned.time, returned.extra["b"]) == (0, event.time, 7)
    assert [event.extra[name] for name in "abcde"] == [0.5, 7, [1, 2], "x/y", None]


# Torn and damaged lines


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_is_dropped_by_readers_and_cut_off_by_the_next_writer(tmp_path, cut):
    paths = make(tmp_path / "r", ("one", {}), ("two", {"text": "a line long enough to be cut"}))
    whole = paths.events.read_bytes()
    paths.events.write_bytes(whole[:-cut])
    record = read_run(paths.root)
    assert ([event.name for event in record.events], record.damaged) == (["one"], ())
    make(paths.root, ("three", {}), resume=True)
    record = read_run(paths.root)
    assert [(event.seq, event.name) for event in record.events] == [(0, "one"), (1, "three")]
    assert record.damaged == ()


def test_a_damaged_line_inside_is_reported_to_readers_and_refused_by_the_writer(tmp_path):
    paths = make(tmp_path / "r", *[("trial_finished", {"trial": n, "accuracy": 0.5}) for n in range(4)])
    content = lines(paths)
    content[1] = content[1].replace(b"0.5", b"0.6")
    paths.events.write_bytes(b"".join(content))
    record = read_run(paths.root)
    assert record.damaged == (2,)
    assert [trial.trial for trial in record.trials] == [0, 2, 3]
    with pytest.raises(RunError, match="line 2"):
        make(paths.root, resume=True)
    assert lines(paths) == content


def test_a_missing_line_is_reported_where_the_numbers_jump(tmp_path):
    paths = make(tmp_path / "r", *[("x", {}) for _ in range(5)])
    content = lines(paths)
    paths.events.write_bytes(b"".join(content[:2] + content[3:]))
    assert read_run(paths.root).damaged == (3,)
    with pytest.raises(RunError, match="line 3"):
        make(paths.root, resume=True)


@pytest.mark.parametrize("garbage", [b"\n", b"[1]\n", b'{"seq":1}\n', b'{"crc32":0}\n', b"\x00\xff\n"])
def test_lines_that_are_no_events_are_damage(tmp_path, garbage):
    paths = make(tmp_path / "r", ("x", {}))
    with paths.events.open("ab") as file:
        file.write(garbage)
    assert read_run(paths.root).damaged == (2,)


def test_any_single_flipped_byte_is_noticed(tmp_path):
    paths = make(tmp_path / "r", ("one", {"value": 12}), ("two", {}), ("three", {}))
    whole = paths.events.read_bytes()
    for position in range(0, len(whole) - 1, 3):
        flipped = bytearray(whole)
        flipped[position] ^= 0x01
        paths.events.write_bytes(flipped)
        record = read_run(paths.root)
        assert record.damaged or len(record.events) < 3, position


# Full disk


def full_after(count):
    """os.write on a disk with room for `count` more bytes."""
    left = [count]
    write = os.write

    def limited(descriptor, content):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, bytes(content)[: left[0]])
        left[0] -= written
        return written

    return limited


def test_an_append_to_a_full_disk_takes_back_what_it_wrote_and_later_ones_work(tmp_path, monkeypatch):
    paths = RunPaths(tmp_path / "r")
    with RunStore.create(paths.root, CONFIG, {}) as store:
        store.append(written("one"))
        before = paths.events.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(event_log.os, "write", full_after(15))
            with pytest.raises(RunError, match=r"(?s)No space left.*resume"):
                store.append(written("two", text="x" * 100))
        assert paths.events.read_bytes() == before
        store.append(written("three"))
    record = read_run(paths.root)
    assert [(event.seq, event.name) for event in record.events] == [(0, "one"), (1, "three")]


def test_what_cannot_be_taken_back_at_once_is_taken_back_by_the_next_append(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "input/output error")

    paths = RunPaths(tmp_path / "r")
    with RunStore.create(paths.root, CONFIG, {}) as store:
        with monkeypatch.context() as patch:
            truncate = os.ftruncate
            calls = []
            patch.setattr(event_log.os, "write", full_after(15))
            patch.setattr(
                event_log.os,
                "ftruncate",
                lambda *a: calls.append(a) or (truncate if len(calls) == 1 else refuse)(*a),
            )
            with pytest.raises(RunError):
                store.append(written("one", text="x" * 100))
        assert len(paths.events.read_bytes()) == 15
        store.append(written("two"))
    record = read_run(paths.root)
    assert [event.name for event in record.events] == ["two"] and record.damaged == ()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_really_full_device_gives_a_run_error():
    log = event_log.EventLog.__new__(event_log.EventLog)
    log.path, log._end, log._seq = Path("/dev/full"), 0, 0
    log._file = event_log.io.FileIO("/dev/full", "w")
    with pytest.raises(RunError, match="cannot be written"):
        log.append("x")
    log.close()


# One writer


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    with RunStore.create(tmp_path / "r", CONFIG, {}):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match=rf"(?s)another process.*{os.getpid()}"):
                RunStore.create(tmp_path / "r", CONFIG, {}, **options)
    make(tmp_path / "r", resume=True)


# Who may have the folder


def test_an_existing_run_needs_resume_or_overwrite(tmp_path):
    paths = make(tmp_path / "r", ("one", {}))
    before = paths.events.read_bytes()
    with pytest.raises(RunError, match=r"(?s)exists.*--resume.*--overwrite") as caught:
        make(paths.root)
    assert caught.value.exit_code == 2
    assert paths.events.read_bytes() == before


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(tmp_path):
    paths = make(tmp_path / "r", ("one", {}))
    paths.student("abc").mkdir(parents=True)
    (paths.root / "notes.txt").write_text("mine")
    make(paths.root, ("fresh", {}), overwrite=True)
    assert [event.name for event in read_run(paths.root).events] == ["fresh"]
    assert not paths.students.exists()
    assert (paths.root / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_that_is_no_run_is_never_touched(tmp_path, options):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "config.yaml").write_text("mine: 1")
    (folder / "cat.jpg").write_text("meow")
    with pytest.raises(RunError, match="not a run folder"):
        make(folder, **options)
    assert sorted(path.name for path in folder.iterdir()) == ["cat.jpg", "config.yaml"]
    with pytest.raises(RunError, match="not a run folder"):
        make(folder / "cat.jpg", **options)


def test_an_empty_folder_and_what_a_killed_start_left_are_used(tmp_path):
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    paths = make(tmp_path / "half")
    paths.events.unlink()
    make(paths.root, ("one", {}))
    assert len(read_run(paths.root).events) == 1


def test_missing_parents_are_made(tmp_path):
    assert make(tmp_path / "a/b/c").is_run()


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        make(tmp_path / "file/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    paths = make(tmp_path / "r", ("one", {}))
    paths.root.chmod(0o555)
    try:
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match="cannot be written"):
                make(paths.root, **options)
        with pytest.raises(RunError, match="cannot be written"):
            make(paths.root / "deeper")
    finally:
        paths.root.chmod(0o755)


def test_the_check_alone_writes_nothing(tmp_path):
    check_available(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    paths = make(tmp_path / "r")
    with pytest.raises(RunError, match="exists"):
        check_available(paths.root)
    check_available(paths.root, resume=True)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("space", "s2", "the search space changed.*s1 → s2"),
        ("data", "d2", "the data changed"),
        ("budgets", {"latency_ms": 1.0}, "the budgets changed.*latency_ms 2.0 → latency_ms 1.0"),
        ("seed", 1, "the seed changed.*0 → 1"),
        ("teacher", None, "the teacher changed.*t1 → none"),
    ],
)
def test_resuming_another_search_is_refused_with_what_changed(tmp_path, name, value, words):
    paths = make(tmp_path / "r", ("one", {}))
    before = paths.config.read_bytes()
    with pytest.raises(RunError, match=f"(?s){words}"):
        make(paths.root, resume=True, config={**CONFIG, "identity": {**IDENTITY, name: value}})
    assert paths.config.read_bytes() == before


def test_resuming_goes_on_counting_and_records_new_options(tmp_path):
    paths = make(tmp_path / "r", ("one", {}), ("two", {}))
    make(paths.root, ("three", {}), resume=True, config={**CONFIG, "options": {"trials": 20}})
    record = read_run(paths.root)
    assert [event.seq for event in record.events] == [0, 1, 2]
    assert record.config["options"] == {"trials": 20}
    assert yaml.safe_load(paths.config.read_text()) == record.config


# Reading


def test_a_record_says_what_happened(tmp_path):
    cost = {**COST, "latency_ms": 1.0}
    paths = make(
        tmp_path / "r",
        (
            "run_started",
            {"teacher": student("teacher"), "limits": {"latency_ms": 2.0}, "sites": [SITE]},
        ),
        ("decision", {"text": "start"}),
        ("trial_started", {"trial": 0, "candidate": "a"}),
        ("trial_finished", {"trial": 0, "candidate": "a", "accuracy": 0.8, "predicted": cost}),
        ("trial_failed", {"trial": 1, "candidate": "b", "reason": "nan"}),
        ("trial_infeasible", {"trial": 2, "candidate": "c", "violated": ["latency_ms"]}),
        ("trial_started", {"trial": 3, "candidate": "d"}),
        ("promoted", {"candidate": "a", "rung": 1, "accuracy": 0.8, "epochs": 3}),
        (
            "certified",
            {"candidate": "a", "student": student("a", certified=False), "violated": ["latency_ms"]},
        ),
        ("certified", {"candidate": "a", "student": student("a", latency_ms=1.5), "violated": []}),
    )
    record = read_run(paths.root)
    assert (record.teacher, record.limits) == (Student.from_json(student("teacher")), Limits(latency_ms=2.0))
    assert record.sites == (SiteRecord("bits:a", "bits", (8, 32), 32),)
    assert record.counts == {"finished": 1, "failed": 1, "infeasible": 1, "promoted": 1, "measured": 1}
    assert [trial.trial for trial in record.trials] == [0, 1, 2]
    (last,) = record.students
    assert (last.candidate, last.violated) == ("a", ())
    assert (last.student.key, last.student.certified, last.student.latency_ms) == ("a", True, 1.5)
    assert [decision.text for decision in record.decisions] == ["start"]
    assert record.exit_code is None
    make(paths.root, ("run_finished", {"exit_code": 3}), resume=True)
    assert read_run(paths.root).exit_code == 3


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_is_no_run_is_refused_and_runs_beside_it_are_named(tmp_path, name):
    make(tmp_path / "first")
    with pytest.raises(RunError, match="is not a run folder") as caught:
        read_run(tmp_path / name)
    assert name == "." or "first" in caught.value.fix


ALIASES = "a: &a [1]\nb: [*a, *a]\n"


@pytest.mark.parametrize("text", ["a: [1", "- 1", "\x00", ALIASES, "a: " + "[" * 3000])
def test_an_unreadable_configuration_is_named(tmp_path, text):
    paths = make(tmp_path / "r")
    paths.config.write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml"):
        read_run(paths.root)


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("certified", {"student": {}}),
        ("certified", {"candidate": ["a"], "student": {}}),
        ("trial_finished", {"candidate": "a"}),
        ("decision", {}),
        ("run_started", {"teacher": 3, "limits": {}}),
    ],
)
def test_an_event_without_what_readers_need_counts_as_damaged(tmp_path, event, fields):
    paths = make(tmp_path / "r", (event, fields), ("run_finished", {"exit_code": 0}))
    record = read_run(paths.root)
    assert record.damaged == (1,)
    assert [one.name for one in record.events] == ["run_finished"]


def test_an_environment_that_nests_for_ever_is_named(tmp_path):
    paths = make(tmp_path / "r")
    paths.environment.write_text("[" * 200_000)
    with pytest.raises(RunError, match="environment"):
        read_run(paths.root)


def test_the_environment_names_versions_and_the_seed():
    record = environment_record(7)
    assert record["seed"] == 7
    assert record["packages"]["numpy"] == np.__version__
    assert record["python"].count(".") == 2


# kill -9

APPEND_FOREVER = """
import sys
from autocompress.runs.events import OtherEvent
from autocompress.runs.store import RunStore
store = RunStore.create(sys.argv[1], {"identity": {}}, {}, resume=True)
sys.stdout.write("ready\\n")
sys.stdout.flush()
while True:
    record = store.append(OtherEvent(name_written="noted", extra={"text": "x" * 3000}))
    sys.stdout.write(f"{record.seq}\\n")
    sys.stdout.flush()
"""


def killed_after(root, seconds):
    """Numbers that a writer acknowledged before it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", APPEND_FOREVER, str(root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    acknowledged = process.stdout.read().splitlines(keepends=True)
    process.wait()
    return [int(line) for line in acknowledged if line.endswith("\n")]


def test_kill_9_at_random_moments_loses_no_acknowledged_event(tmp_path):
    moments = random.Random(0)
    acknowledged = []
    for _ in range(20):
        acknowledged += killed_after(tmp_path / "r", moments.uniform(0.0, 0.05))
        record = read_run(tmp_path / "r")
        numbers = [event.seq for event in record.events]
        assert numbers == list(range(len(numbers)))
        assert record.damaged == ()
        assert set(acknowledged) <= set(numbers)
    assert len(acknowledged) > 20
