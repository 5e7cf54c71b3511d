"""An append-only file of events: one JSON object a line, numbered, checksummed, on the disk once appended.

A line is `{"seq":…,"time":…,"event":…,…,"crc32":N}` in compact JSON; N is the CRC-32 of the same
object without its last member. A last line that was cut off is dropped when the file is next opened
for writing; a line damaged anywhere else is refused by the writer and reported to readers.
"""

from __future__ import annotations

import errno
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autocompress.errors import RunError
from autocompress.files import JsonObject


class EventLog:
    """The writer of one file; that there is only one is the caller's business."""

    def __init__(self, path: Path) -> None:
        """Cut off an unfinished last line. Raises RunError for damage before it."""
        self.path = path
        self._end, self._seq = _checked(path)
        try:
            # Unbuffered: a buffer would try to write what failed once more, at some later time.
            self._file = io.FileIO(path, "r+")
            os.ftruncate(self._file.fileno(), self._end)
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, event: str, **fields: Any) -> JsonObject:
        """Record an event; it is on the disk when this returns.

        Raises RunError when it cannot be written; the file then holds what it held before.
        """
        record = {"seq": self._seq, "time": datetime.now(UTC).isoformat(), "event": event, **fields}
        line = _line(record)
        descriptor = self._file.fileno()
        try:
            # What an earlier append could not take back is cut off here.
            os.ftruncate(descriptor, self._end)
            os.lseek(descriptor, self._end, os.SEEK_SET)
            _write_all(descriptor, line)
            os.fsync(descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(descriptor, self._end)
            raise cannot_write(self.path, error) from error
        self._end += len(line)
        self._seq += 1
        return record

    def close(self) -> None:
        self._file.close()


def read_events(path: Path) -> tuple[list[JsonObject], tuple[int, ...]]:
    """Return the readable events, and the numbers, from 1, of lines that are damaged or follow a gap.

    The file may be written meanwhile: an unfinished last line is left out.
    """
    events: list[JsonObject] = []
    damaged: list[int] = []
    expected = 0
    for number, event, _ in _lines(_content(path)):
        if event is not None:
            events.append(event)
        if event is None or event["seq"] != expected:
            damaged.append(number)
        expected = expected + 1 if event is None else event["seq"] + 1
    return events, tuple(damaged)


def plain(value: Any) -> Any:
    """Return the value in JSON's own types: tuples become lists, paths strings, numpy's numbers Python's, and
    NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if value == value and abs(value) != float("inf") else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    return plain(value.item()) if hasattr(value, "item") else value


def cannot_write(path: Path, error: OSError) -> RunError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return RunError(
        f"{path} cannot be written",
        why=error.strerror or str(error),
        fix="free some space, then resume the run" if full else "give a folder you may write to",
    )


def _line(record: JsonObject) -> bytes:
    body = json.dumps(plain(record), separators=(",", ":"))
    return f'{body[:-1]},"crc32":{zlib.crc32(body.encode())}}}\n'.encode()


def _lines(content: bytes) -> Iterator[tuple[int, JsonObject | None, int]]:
    """Yield (line number, event or None where damaged, offset of its end); a cut-off last line is left
    out."""
    position = 0
    number = 0
    while (end := content.find(b"\n", position)) >= 0:
        number += 1
        yield number, _event(content[position:end]), end + 1
        position = end + 1


def _event(line: bytes) -> JsonObject | None:
    body, separator, tail = line.rpartition(b',"crc32":')
    if not separator or not tail.endswith(b"}"):
        return None
    try:
        if int(tail[:-1]) != zlib.crc32(body + b"}"):
            return None
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(event, dict) and isinstance(event.get("seq"), int) and "event" in event
    return event if sound else None


def _checked(path: Path) -> tuple[int, int]:
    """Return the length of the finished lines and the next number; raise RunError for damage among them."""
    end, seq = 0, 0
    for number, event, position in _lines(_content(path)):
        if event is None or event["seq"] != seq:
            raise RunError(
                "the run's record is damaged",
                where=f"{path}, line {number}",
                why="the line's checksum or its number does not fit",
                fix="restore the file from a copy, or start a new run",
            )
        end, seq = position, seq + 1
    return end, seq


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(
            "the run's record cannot be read",
            where=str(path),
            why=str(error),
            fix="give a run folder that can be read",
        ) from error


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
