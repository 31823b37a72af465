"""Plays and events out of Redis, for `vizora-rt plays` and `vizora-rt events`: as lines, followed or to their end.

With a consumer group every entry is delivered at least once: it is acknowledged after the output was flushed, and what
was not acknowledged when a reader died comes first when one starts again. The partitions are read side by side and
merged by the time at which Redis took an entry. All of it blocks; Redis is asked over a connection of its own.

Over 300 lines because following, resuming and ending a read are one loop.
"""

import re
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final, TextIO

from vizora_rt.app import events, plays
from vizora_rt.errors import UnavailableError
from vizora_rt.net.redis.address import explain
from vizora_rt.net.redis.blocking_client import BlockingClient
from vizora_rt.net.redis.topology import RedisTarget
from vizora_rt.net.streams.formats import EVENTS, Fold, Format, Order, Output, StreamEntry, StreamKind, fold
from vizora_rt.net.streams.partitions import SCHEMA
from vizora_rt.wire import printable
from vizora_rt.wire.resp import ReplyError, pack

PAGE: Final = 500
"""Entries of one partition that are asked for at a time: 100 KB or so."""
POLL_SECONDS: Final = 0.25
AGAIN_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 30.0
STALE_MS: Final = 600_000
"""What another reader of the group has not acknowledged for so long, it will not: it is taken over. One that joins the
phases of plays acknowledges the first of them when the other has come, or has not come in time: that is added."""
PROGRESS_SECONDS: Final = 0.2

TO_THE_END: Final = 2**62

LAST: Final = 2**64 - 1
"""The last entry of a millisecond: a group begins after an entry, not at one."""

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Options:
    """`since` is milliseconds since the epoch; `fold` those that a phase of a play waits for the other, 0: nothing is
    joined, TO_THE_END: it waits as long as the export runs."""

    format: Format = "jsonl"
    follow: bool = False
    since: int | None = None
    group: str = ""
    consumer: str = "reader"
    fold: int = 0


def parse_since(text: str, now: float) -> int:
    """`15m` ago, an ISO date or time, or milliseconds since the epoch. Raises ValueError."""
    ago = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if ago is not None:
        return max(0, int((now - int(ago[1]) * UNITS[ago[2]]) * 1000))
    if re.fullmatch(r"\d{12,14}", text):
        return int(text)
    at = datetime.fromisoformat(text)
    return max(0, int((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1000))


class AwayError(Exception):
    """Redis went away or refused; a follower tries again."""


class Streams:
    """Where a reader stands in each partition."""

    def __init__(self, line: BlockingClient, keys: Sequence[bytes], options: Options) -> None:
        self.client = line
        self._group, self._consumer = options.group.encode(), options.consumer.encode()
        self._fold = options.fold
        self._at: dict[bytes, bytes] = {}
        self._buffers: dict[bytes, deque[StreamEntry]] = {key: deque() for key in keys}
        self._more = dict.fromkeys(keys, True)
        since = options.since
        if since is None:
            since = int(time.time() * 1000) if options.follow and not options.group else 0
        for key in keys:
            self._at[key] = b"0" if options.group else b"%d" % since
        if options.group:
            self._join(b"%d-%d" % (since - 1, LAST) if since else b"0")

    def _join(self, start: bytes) -> None:
        """Make the group where it is not there, and take over what a dead reader left."""
        makes = [pack("XGROUP", "CREATE", key, self._group, start, "MKSTREAM") for key in self._at]
        for reply in self.client.ask(makes):
            if isinstance(reply, ReplyError) and reply.code != "BUSYGROUP":
                raise AwayError(f"{reply.code} {reply.message}")
        stale = STALE_MS + (self._fold if self._fold < TO_THE_END else 0)
        cursors = dict.fromkeys(self._at, b"0-0")
        while cursors:
            ownership_store = [
                pack("XAUTOCLAIM", key, self._group, self._consumer, stale, cursor, "COUNT", PAGE, "JUSTID")
                for key, cursor in cursors.items()
            ]
            replies = [_list(reply) for reply in self.client.ask(ownership_store)]
            cursors = {key: reply[0] for key, reply in zip(cursors, replies, strict=True) if reply[0] != b"0-0"}

    @property
    def drained(self) -> bool:
        """Nothing more was there at the last look."""
        return not any(self._more.values())

    def read(self) -> list[StreamEntry]:
        """What comes next, in order of time. Empty when there is nothing now, or nothing of which that is known."""
        keys = [key for key, buffer in self._buffers.items() if not buffer]
        replies = self.client.ask([self._command(key) for key in keys])
        gone: list[StreamEntry] = []
        for key, reply in zip(keys, replies, strict=True):
            rows = _list(reply)
            if self._group:
                rows = rows[0][1] if rows else []
            fresh = self._at[key] == b">"
            for row_id, fields in rows:
                entry = StreamEntry(key, row_id, _order(row_id), _fields(fields))
                # An entry that was trimmed is still pending: it has no fields, and nobody can read it any more.
                (self._buffers[key] if entry.fields else gone).append(entry)
            self._more[key] = len(rows) == PAGE or (bool(self._group) and not fresh)
            if self._group:
                self._at[key] = b">" if fresh or not rows else rows[-1][0]
            elif rows:
                self._at[key] = b"(" + rows[-1][0]
        self.acknowledge(gone)
        return self._ready()

    def _command(self, key: bytes) -> bytes:
        if not self._group:
            return pack("XRANGE", key, self._at[key], "+", "COUNT", PAGE)
        return pack("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", PAGE, "STREAMS", key, self._at[key])

    def _ready(self) -> list[StreamEntry]:
        """All before the point up to which every partition is known."""
        ends = [buffer[-1].order for key, buffer in self._buffers.items() if self._more[key] and buffer]
        unknown = any(self._more[key] and not buffer for key, buffer in self._buffers.items())
        limit = min(ends) if ends else None
        ready: list[StreamEntry] = []
        for buffer in self._buffers.values():
            while buffer and not unknown and (limit is None or buffer[0].order <= limit):
                ready.append(buffer.popleft())
        ready.sort(key=lambda entry: entry.order)
        return ready

    def acknowledge(self, entries: Iterable[StreamEntry]) -> None:
        """Their lines are safe."""
        ids: dict[bytes, list[bytes]] = {}
        for entry in entries if self._group else ():
            ids.setdefault(entry.key, []).append(entry.id)
        if ids:
            for reply in self.client.ask([pack("XACK", key, self._group, *each) for key, each in ids.items()]):
                if isinstance(reply, ReplyError):
                    raise AwayError(f"{reply.code} {reply.message}")


class Progress:
    """How far an export is, on a terminal."""

    def __init__(self, to: TextIO | None, name: str) -> None:
        self._to = to
        self._name = name
        self.total = 0
        self._shown = 0.0

    def show(self, count: int, last: bool = False) -> None:
        now = time.monotonic()
        if self._to is None or (now - self._shown < PROGRESS_SECONDS and not last):
            return
        self._shown = now
        of = f" of {max(count, self.total):,}" if self.total and not last else ""
        self._to.write(f"\r{count:,}{of} {self._name}{' ' * 12}" + ("\n" if last else ""))
        self._to.flush()


def run(
    url: str,
    kind: StreamKind,
    out: BinaryIO,
    options: Options,
    progress: TextIO | None = None,
    say: TextIO | None = None,
) -> int:
    """Read to the end, or for ever. How many entries were read. Raises UnavailableError, and what `out` raises."""
    where = RedisTarget.parse(url)
    columns = kind.folded if options.fold else kind.columns
    output = Output(out, columns, options.format)
    bar = Progress(progress if output.is_file and not options.follow else None, kind.name)
    reading = Reading(kind, output, options, bar)
    told = ""
    while True:
        try:
            reading.go(where)
            return reading.count
        except (OSError, AwayError) as error:
            if reading.writing:
                raise  # not Redis, but who reads us or the disk
            reason = str(error) if isinstance(error, AwayError) else explain(error)
            if not options.follow or not reading.connected:
                raise UnavailableError(f"Redis at {where} cannot be read: {reason}") from None
            if reason != told and say is not None:
                say.write(f"vizora-rt: Redis at {where} is away, trying again: {printable.escaped(reason)}\n")
            told = reason
            time.sleep(AGAIN_SECONDS)


class Reading:
    """One run of a reader, over as many connections as it takes."""

    def __init__(self, kind: StreamKind, output: Output, options: Options, progress: Progress) -> None:
        self._kind = kind
        self._output = output
        self._options = options
        self._progress = progress
        self.count = 0
        self.connected = False
        self.writing = False
        self._fold = Fold(options.fold)
        self._streams: Streams | None = None

    def go(self, where: RedisTarget) -> None:
        line = BlockingClient(where, "vizora-reader", TIMEOUT_SECONDS)
        try:
            self._follow(self._open(line))
        finally:
            line.close()

    def _open(self, line: BlockingClient) -> Streams:
        """Where it was when the last connection was lost. Of a group Redis knows that, and what is held comes again."""
        if self._streams is not None and not self._options.group:
            self._streams.client = line
            return self._streams
        keys = [events.STREAM] if self._kind is EVENTS else _partitions(line)
        self._streams, self._fold = Streams(line, keys, self._options), Fold(self._options.fold)
        if not self.connected:
            self._progress.total = sum(n for n in line.ask([pack("XLEN", key) for key in keys]) if isinstance(n, int))
        self.connected = True
        return self._streams

    def _follow(self, streams: Streams) -> None:
        while True:
            ready = streams.read()
            drained = streams.drained
            done = self._write(ready, drained)
            if done:
                streams.acknowledge(done)
            self.count += len(ready)
            self._progress.show(self.count)
            if drained and not ready:
                if not self._options.follow:
                    self._end()
                    return
                time.sleep(POLL_SECONDS)

    def _write(self, ready: list[StreamEntry], drained: bool) -> list[StreamEntry]:
        """Write and flush; the entries whose lines are out."""
        done: list[StreamEntry] = []
        self.writing = True
        if self._options.fold:
            now = int(time.time() * 1000) if drained else ready[-1].order[0] if ready else 0
            for record, parts in self._fold.feed(ready, now):
                self._output.write(record)
                done += parts
        else:
            for entry in ready:
                self._output.write(self._kind.record(entry))
            done = ready
        if done:
            self._output.flush()
        self.writing = False
        return done

    def _end(self) -> None:
        """An export is over. Of a group, plays of which one phase waits stay for the next run; else they go alone."""
        self.writing = True
        if not self._options.group:
            for parts in self._fold.held.values():
                self._output.write(fold(parts))
        self._output.flush()
        self.writing = False
        self._progress.show(self.count, last=True)


def _partitions(line: BlockingClient) -> list[bytes]:
    (reply,) = line.ask([pack("HGET", SCHEMA, "partitions")])
    if isinstance(reply, ReplyError):
        raise AwayError(f"{reply.code} {reply.message}")
    if not isinstance(reply, bytes):
        raise AwayError("no service has used it yet")
    return [plays.stream_key(number) for number in range(int(reply))]


def _list(reply: object) -> list[Any]:
    if isinstance(reply, ReplyError):
        raise AwayError(f"{reply.code} {reply.message}")
    return reply if isinstance(reply, list) else []


def _order(row_id: bytes) -> Order:
    ms, _, number = row_id.partition(b"-")
    return int(ms), int(number)


def _fields(fields: list[bytes] | None) -> dict[str, str]:
    pairs = fields or []
    return {
        name.decode(errors="replace"): value.decode(errors="replace")
        for name, value in zip(pairs[::2], pairs[1::2], strict=True)
    }
