"""Plays and events as lines, JSON or CSV: what stands in one, and how the start and the end of a play become one."""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Literal

from vizora_rt.wire import messages, printable

MAX_HELD: Final = 100_000
"""Plays of which one phase waits for the other, 200 MB."""

Order = tuple[int, int]
Record = dict[str, Any]
Format = Literal["jsonl", "csv"]


@dataclass(frozen=True, slots=True)
class StreamEntry:
    key: bytes
    id: bytes
    order: Order
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class StreamKind:
    """What is read. `columns` are of a line, `folded` of a line that joins two entries."""

    name: str
    columns: tuple[str, ...]
    record: Callable[[StreamEntry], Record]
    folded: tuple[str, ...] = ()


@dataclass(slots=True)
class Fold:
    """Joins the start and the end of a play, whichever comes first. What has waited too long goes alone."""

    wait: int
    held: dict[str, list[StreamEntry]] = field(default_factory=dict)

    def feed(self, entries: Iterable[StreamEntry], now: int) -> Iterator[tuple[Record, list[StreamEntry]]]:
        """Lines and what they are made of. `now` is the time up to which all is read."""
        for entry in entries:
            play_id = entry.fields.get("play_id", "")
            parts = self.held.get(play_id)
            if parts is None:
                if entry.fields.get("first") == "0" or not play_id:
                    # The other phase was recorded before: it went alone, or is older than what is read. Or an operator
                    # has put something else into the stream.
                    yield fold([entry]), [entry]
                else:
                    self.held[play_id] = [entry]
                continue
            parts.append(entry)
            # The same phase again: a reader of the group had died before it acknowledged the entry.
            if entry.fields.get("phase") != parts[0].fields.get("phase"):
                del self.held[play_id]
                yield fold(parts), parts
        while self.held:
            play_id, parts = next(iter(self.held.items()))
            if now - parts[0].order[0] < self.wait and len(self.held) <= MAX_HELD:
                return
            del self.held[play_id]
            yield fold(parts), parts


def fold(parts: Sequence[StreamEntry]) -> Record:
    """The line of a play of which both phases, or one, are known, in whatever order they came."""
    phases = {part.fields.get("phase"): play_record(part) for part in parts}
    start, end = phases.get("start"), phases.get("end")
    record = dict(end or start or play_record(parts[0]))
    record["phase"] = "both" if start is not None and end is not None else record["phase"]
    record["started"] = start["client_time"] if start is not None else None
    record["ended"] = end["client_time"] if end is not None else None
    if start is not None:
        for name in ("playlist_id", "duration", "completion", "client_text"):
            record[name] = start[name] if record[name] is None else record[name]
    return {name: record[name] for name in PLAYS.folded}


def play_record(entry: StreamEntry) -> Record:
    fields = entry.fields
    record: Record = {name: fields.get(name) or None for name in PLAYS.columns}
    for name in ("client_time", *_TOLD[:-1]):
        text = fields.get(name)
        record[name] = _number(text) if text else None
    return record


def event_record(entry: StreamEntry) -> Record:
    fields = entry.fields
    record: Record = {name: fields.get(name) or None for name in EVENTS.columns}
    record["id"], record["at"] = entry.id.decode(), _number(fields.get("at") or "0")
    try:
        record["data"] = messages.loads(fields.get("json") or "null")
    except messages.JSONError:
        record["data"] = None
    return record


_PLAY = ("device_id", "organization_id", "content_id", "playlist_id")
_TOLD = ("server_time", "offset_ms", "duration", "completion", "clock_ms", "late_ms", "client_text")
"""All numbers but the last."""

PLAYS: Final = StreamKind(
    "plays",
    ("play_id", "phase", *_PLAY, "client_time", *_TOLD),
    play_record,
    ("play_id", "phase", *_PLAY, "started", "ended", *_TOLD),
)
EVENTS: Final = StreamKind("events", ("id", "type", "deviceId", "organizationId", "at", "data"), event_record)


class Output:
    """The lines of a file or a pipe. After `flush` they are out of our hands; of a file, on the disk."""

    def __init__(self, out: BinaryIO, columns: tuple[str, ...], form: Format) -> None:
        self._out = out
        self._columns = columns
        self._json = form == "jsonl"
        mode = os.fstat(out.fileno())
        self.is_file = stat.S_ISREG(mode.st_mode)
        if not self._json and not (self.is_file and mode.st_size):
            self._out.write(_csv(columns))

    def write(self, record: Record) -> None:
        if self._json:
            self._out.write(printable.json(messages.dumps(record)) + b"\n")
        else:
            self._out.write(_csv([_cell(record[name]) for name in self._columns]))

    def flush(self) -> None:
        self._out.flush()
        if self.is_file:
            os.fsync(self._out.fileno())


def _number(text: str) -> int | float | None:
    try:
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    except ValueError:
        return None


def _cell(value: object) -> object:
    return messages.dumps(value).decode() if isinstance(value, dict | list) else value


def _csv(cells: Sequence[object]) -> bytes:
    """One line of RFC 4180, but for its line end, which is Unix'."""
    return (",".join(map(printable.cell, cells)) + "\n").encode()
