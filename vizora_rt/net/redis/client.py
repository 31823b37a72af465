"""Redis as the hot path sees it: `submit` packed commands, callbacks get the replies in order.

One write per loop tick, one clock reading per write and per read, no task and no future per command. Nothing here
raises because of what Redis does: a command that cannot be taken is refused with False, an error is a `ReplyError`, and
every command that was taken gets exactly one reply, be it LOST. LOST means that nobody knows whether Redis did it.

The connection is made again for ever, with jitter. `up` is True only between a complete greeting, with all scripts
loaded, and the first sign that the server cannot be used.

Over 300 lines because the hot path of a command stays in one class.
"""

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from typing import Final, NamedTuple

from vizora_rt.config import RedisSettings
from vizora_rt.net.redis.address import UNSOLICITED_REPLY, Address, hint
from vizora_rt.net.redis.connection import RedisConnection, connect
from vizora_rt.net.redis.refusals import Refusals
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.resp import ReplyError, pack

OnReply = Callable[[object], None]

CONNECTION_LOST: Final = ReplyError("LOST the connection to Redis ended before the reply")
"""The reply of a command whose connection went away. Also a ReplyError, so that it is never taken for success."""

NOT_USABLE = frozenset({"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"})
"""Errors of a server that was demoted or restarted under the connection, the master may be elsewhere by now; or of a
cluster that serves nobody."""

NOT_SERVED = "Hash slot not served"
"""CLUSTERDOWN for one slot only: the server serves others."""

FLAPS = 3
FLAP_SECONDS = 60.0
"""A connection that was lost three times within a minute is said to be up only after `STEADY_SECONDS`: a server that
dies with each write would fill the log."""
STEADY_SECONDS = 5.0
MOST_REASONS = 8
"""Reasons that an outage is logged with, each once. A text from the network may never be the same twice."""

REDIRECTIONS = frozenset({"MOVED", "ASK", "TRYAGAIN"})
"""What a node of a cluster answers when the key is, or is about to be, another's: no error yet, `cluster` follows."""

FIRST_DELAY = 0.1
"""Seconds before the second attempt at most, half of that at least; doubled up to `reconnect_max_seconds`."""

CHECKS = 4
"""A reply timeout is this many checks in a row without a byte. Counting checks and not seconds, a process that was
stopped or starved of CPU for long does not take the replies that wait in its socket for silence."""

IDLE_CHECKS = 6
"""Checks without a command after which a PING looks whether the connection still leads anywhere: 15 s by default,
below the minute or more after which NAT and load balancers forget a quiet connection."""

PING = pack("PING")

log = logs.logger("store")


class Operation:
    """The metric children of one operation name, resolved once."""

    __slots__ = ("error", "name", "ok", "timer")

    def __init__(self, metrics: Metrics, name: str) -> None:
        self.name = name
        self.ok = metrics.counter("redis_operations_total", name, "ok")
        self.error = metrics.counter("redis_operations_total", name, "error")
        self.timer = metrics.timer("redis_operation_duration_seconds", name)


class Operations(dict[str, Operation]):
    """Operation names to their children. A name that the metrics registry lacks is a fault of ours and raises."""

    __slots__ = ("_metrics",)

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics

    def __missing__(self, name: str) -> Operation:
        operation = self[name] = Operation(self._metrics, name)
        return operation


class Script:
    """A Lua script, addressed by its SHA-1 as EVALSHA wants it."""

    __slots__ = ("operation", "sha1", "source")

    def __init__(self, name: str, source: str) -> None:
        self.operation = f"eval_{name}"
        self.source = source
        self.sha1 = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Part(NamedTuple):
    """One shard of a cluster. `number` is its place in the order of the slots, `reason` says why it is not `up`; `owes`
    says whether it has yet to reply to something."""

    number: int
    address: Address
    up: bool
    reason: str
    owes: bool


class RedisClient:
    """One connection to one Redis. Everything but `close` and `request` is synchronous and returns at once.

    `stores` and `cluster` have stores whose address Sentinels name, and that are many servers. Of these, replies come
    in order per key.
    """

    __slots__ = (
        "_at",
        "_bytes",
        "_check_handle",
        "_closing",
        "_config",
        "_connection",
        "_depth_gauge",
        "_full_bytes",
        "_full_commands",
        "_gone",
        "_idle",
        "_loop",
        "_losses",
        "_max_bytes",
        "_max_commands",
        "_name",
        "_operations",
        "_out",
        "_refusals",
        "_runner",
        "_said",
        "_scripts",
        "_shard_gauges",
        "_silent",
        "_steady_handle",
        "_up_gauge",
        "_waiting",
        "address",
        "on_down",
        "on_moved",
        "on_up",
        "reason",
        "up",
    )

    subscribe: str = "SUBSCRIBE"
    """The command that hears what `publish` sends."""
    one_slot: bool = False
    """Whether all keys of a command must be of one slot."""

    def __init__(
        self, config: RedisSettings, url: str | Address, metrics: Metrics, *, name: str, gauges: bool = True
    ) -> None:
        self.address = url if isinstance(url, Address) else Address.parse(url)
        """Where it is, or was the last time."""
        self.up = False
        """All of it."""
        self.reason = "not connected yet"
        """Why it is not up, or was not the last time."""
        self.on_up: list[Callable[[], None]] = []
        """Called when it is up; of a cluster, when a shard is that was not."""
        self.on_down: list[Callable[[], None]] = []
        self.on_moved: list[Callable[[], None]] = []
        """Called when a key or channel may have another `place`."""
        self._config = config
        self._name = name
        self._max_commands = config.pending_commands
        self._max_bytes = config.pending_bytes
        self._operations = Operations(metrics)
        self._full_commands = metrics.counter("limits_exceeded_total", "pending_commands")
        self._full_bytes = metrics.counter("limits_exceeded_total", "pending_bytes")
        self._up_gauge = metrics.gauge("redis_up")
        self._shard_gauges = {"0": metrics.gauge("redis_shard_up", "0")}
        self._depth_gauge = metrics.gauge("redis_pipeline_depth")
        if gauges:
            metrics.on_collect(self._collect)
        self._scripts: dict[str, Script] = {}
        self._loop = asyncio.get_running_loop()
        self._refusals = Refusals(self._loop.time)
        self._said: set[str] = set()
        """Reasons that the present outage was logged with."""
        self._losses: deque[float] = deque(maxlen=FLAPS)
        self._steady_handle: asyncio.TimerHandle | None = None
        self._out: list[bytes] = []
        self._waiting: deque[tuple[Operation, OnReply | None, int]] = deque()
        self._bytes = 0
        self._at = 0
        self._silent = self._idle = 0
        self._connection: RedisConnection | None = None
        self._gone = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None
        self._check_handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._runner = self._loop.create_task(self._run())
        self._check_handle = self._loop.call_later(self._config.reply_timeout_seconds / CHECKS, self._check)

    def submit(self, operation: str, packed: bytes, on_reply: OnReply | None = None) -> bool:
        """Queue a command for this tick's write. False, and no reply, when the store is down or full."""
        if not self.up:
            return False
        children = self._operations[operation]
        waiting = self._waiting
        if len(waiting) >= self._max_commands:
            self._full_commands.value += 1
            return False
        if self._bytes + len(packed) > self._max_bytes and not self._make_room(len(packed)):
            self._full_bytes.value += 1
            return False
        out = self._out
        if not out:
            self._at = perf_counter_ns()
            self._loop.call_soon(self._flush)
        out.append(packed)
        self._bytes += len(packed)
        waiting.append((children, on_reply, self._at))
        return True

    async def request(self, operation: str, packed: bytes) -> object:
        """`submit` for cold paths: the reply, a ReplyError, or LOST, also when the store is down or full."""
        future: asyncio.Future[object] = self._loop.create_future()
        return await future if self.submit(operation, packed, partial(_resolve, future)) else CONNECTION_LOST

    @property
    def write_error(self) -> str:
        """The error with which writes are turned down while reads are answered, "" when none was lately."""
        return self._refusals.full

    @property
    def refusal(self) -> str:
        """What a Redis that answers turned down lately, and why, in words for an operator; "" when nothing was."""
        return self._refusals.reason

    @property
    def parts(self) -> list[Part]:
        """The shards of a cluster, as its map was last."""
        return []

    @property
    def database(self) -> int:
        """The number of the database: channels are not divided by it, keys are."""
        return self.address.database

    @property
    def available(self) -> bool:
        """Whether anything is taken now. Only a cluster can be up in part."""
        return self.up

    @property
    def busy(self) -> bool:
        """Whether a reply is awaited."""
        return bool(self._waiting)

    def turned_down(self, reply: ReplyError, operation: str) -> None:
        """Another connection to this Redis got an error that may be a refusal: see `refusal`."""
        self._refusals.take(reply, operation, self.address)

    def is_available(self, key: bytes) -> bool:
        """Whether commands for a key are taken now."""
        return self.up

    def stores(self, key: bytes) -> bool:
        """The same, and no write was turned down lately where the key is."""
        return self.up and not self.write_error

    def place(self, key: bytes) -> Address | None:
        """Where a key, or a channel, is."""
        return self.address

    def look_again(self) -> None:
        """Something is not where it should be. Only a cluster has a map that may be old."""

    def publish(self, channel: str, payload: bytes, on_reply: OnReply | None = None) -> bool:
        """Ring a doorbell; as `submit`. The reply is how many heard it."""
        return self.submit("publish", pack("PUBLISH", channel, payload), on_reply)

    def script(self, name: str, source: str) -> None:
        """Register a script for `eval`; its operation is `eval_<name>`. Before `start`, so that it is loaded first."""
        script = Script(name, source)
        # Both are faults of ours, and show at the start rather than when the script is first run.
        if self._scripts.setdefault(name, script).source != source:
            raise ValueError(f"there is another script {name!r}")
        self._operations[script.operation]

    def eval(
        self,
        name: str,
        keys: tuple[bytes | str, ...],
        args: tuple[bytes | str | int, ...] = (),
        on_reply: OnReply | None = None,
    ) -> bool:
        """Run a registered script; as `submit`. A server that lost it (SCRIPT FLUSH) gets its source, once.

        Such a second run comes after whatever was submitted meanwhile.
        """
        script = self._scripts[name]

        def replied(reply: object) -> None:
            if type(reply) is ReplyError and reply.code == "NOSCRIPT":
                if self.submit(script.operation, pack(b"EVAL", script.source, len(keys), *keys, *args), on_reply):
                    return
                reply = CONNECTION_LOST
            if on_reply is not None:
                on_reply(reply)

        return self.submit(script.operation, pack(b"EVALSHA", script.sha1, len(keys), *keys, *args), replied)

    def reconnect(self, reason: str) -> None:
        """Leave the present connection, if there is one; what waits gets LOST."""
        if self._connection is not None:
            self.up = False
            self._connection.drop(reason)

    async def close(self, timeout: float | None = None) -> None:
        """Take nothing more, wait for the replies to what was taken (at most `timeout`), then end the connection."""
        self._closing = True
        answered: asyncio.Future[object] = self._loop.create_future()
        # Replies come in order: behind this one, nothing waits.
        if self.submit("ping", PING, partial(_resolve, answered)):
            self.up = False
            try:
                async with asyncio.timeout(self._config.reply_timeout_seconds if timeout is None else timeout):
                    await answered
            except TimeoutError:
                log.warning("redis did not answer before closing", waiting=len(self._waiting))
        self.up = False
        for handle in (self._check_handle, self._steady_handle):
            if handle is not None:
                handle.cancel()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        if self._connection is not None:
            self._connection.drop("closed")
            await self._gone.wait()

    async def _run(self) -> None:
        failures = 0
        while True:
            started = self._loop.time()
            try:
                link = await self._connect()
            except OSError as error:
                self._not_up(hint(self.address, error))
            except Exception as error:
                log.exception("redis connection failed", error=error)
            else:
                self._take(link)
                await self._gone.wait()
                # A server that lets go at once is not asked again at once, however well it greets.
                if self._loop.time() - started > self._config.reconnect_max_seconds:
                    failures = 0
            delay = min(self._config.reconnect_max_seconds, FIRST_DELAY * 2 ** min(failures, 16))
            failures += 1
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def _locate(self) -> Address:
        """Where to connect to. Raises OSError when nobody knows."""
        return self.address

    async def _connect(self) -> RedisConnection:
        self.address = await self._locate()
        return await connect(
            self.address,
            self._name,
            self._deliver,
            self._lost,
            connect_timeout=self._config.connect_timeout_seconds,
            reply_timeout=self._config.reply_timeout_seconds,
            first=self._greeting(),
        )

    def _greeting(self) -> list[tuple[str, bytes]]:
        """What is said first on each connection, behind the greeting of all."""
        return [("SCRIPT", pack("SCRIPT", "LOAD", script.source)) for script in self._scripts.values()]

    def _take(self, link: RedisConnection) -> None:
        self._connection = link
        self._gone.clear()
        self._silent = self._idle = 0
        self.reason = ""
        self.up = True
        if link.turned_down is not None:
            self._refusals.take(link.turned_down, "ping", self.address)
        flaps = len(self._losses) == FLAPS and self._losses[0] > self._loop.time() - FLAP_SECONDS
        if flaps:
            self._steady_handle = self._loop.call_later(STEADY_SECONDS, self._say_up)
        else:
            self._say_up()
        for callback in self.on_up:
            self._call(callback)

    def _say_up(self) -> None:
        self._steady_handle = None
        self._said.clear()
        log.info("redis is up", address=str(self.address))

    def _not_up(self, reason: str) -> None:
        """Log a reason once in an outage: at two attempts a second, an outage would fill the log."""
        self.reason = reason
        if reason not in self._said and len(self._said) < MOST_REASONS:
            self._said.add(reason)
            log.warning("redis is not up", address=str(self.address), reason=reason)

    def _flush(self) -> None:
        if self._out and self._connection is not None:
            data = b"".join(self._out)
            self._out.clear()
            self._connection.transport.write(data)

    def _make_room(self, wanted: int) -> bool:
        """Whether `wanted` more bytes fit. `_bytes` only grows, until it meets the bound and is made exact here."""
        self._flush()
        self._bytes = self._connection.transport.get_write_buffer_size() if self._connection is not None else 0
        return self._bytes + wanted <= self._max_bytes

    def _deliver(self, replies: list[object]) -> None:
        now = perf_counter_ns()
        self._silent = 0
        waiting, refusals = self._waiting, self._refusals
        drop = UNSOLICITED_REPLY if len(replies) > len(waiting) else ""
        # Cut first: a callback may submit, and must not be given a reply to nothing.
        del replies[len(waiting) :]
        for reply in replies:
            operation, on_reply, at = waiting.popleft()
            if type(reply) is ReplyError:
                operation.error.value += reply.code not in REDIRECTIONS
                refusals.take(reply, operation.name, self.address)
                if reply.code in NOT_USABLE and reply.message != NOT_SERVED:
                    drop = f"the server answered {reply.code}"
            else:
                operation.ok.value += 1
                if refusals.waits:
                    refusals.taken(operation.name)
            operation.timer.observe(now - at)
            if on_reply is not None:
                try:
                    on_reply(reply)
                except Exception as error:
                    log.exception("reply handler failed", error=error)
        if drop:
            self.reconnect(drop)

    def _lost(self, reason: str) -> None:
        self.up = False
        self._connection = None
        self._losses.append(self._loop.time())
        if self._steady_handle is not None:
            self._steady_handle.cancel()
            self._steady_handle = None
        waiting, self._waiting = self._waiting, deque()
        self._out.clear()
        self._bytes = 0
        if not self._closing:
            self._not_up(reason)
            for callback in self.on_down:
                self._call(callback)
        for operation, on_reply, _ in waiting:
            operation.error.value += 1
            if on_reply is not None:
                self._call(partial(on_reply, CONNECTION_LOST))
        self._gone.set()

    def _check(self) -> None:
        """Is anybody there? Replies reset `_silent`."""
        self._refusals.look(self.address)
        self._check_handle = self._loop.call_later(self._config.reply_timeout_seconds / CHECKS, self._check)
        if self._waiting:
            self._idle = 0
            self._silent += 1
            # One more than CHECKS: the command may have been submitted just now.
            if self._silent > CHECKS:
                self.reconnect(f"no reply for {self._config.reply_timeout_seconds:g} s")
        else:
            self._idle += 1
            if self._idle >= IDLE_CHECKS:
                self.submit("ping", PING)

    def _collect(self) -> None:
        # A worker that closes its connection at its end has no outage: what was true before stays told.
        if not self._closing:
            self._up_gauge.value = self._shard_gauges["0"].value = int(self.up)
        self._depth_gauge.value = len(self._waiting)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            log.exception("store handler failed", error=error)


def _resolve(future: asyncio.Future[object], reply: object) -> None:
    # The waiter may have given up.
    if not future.done():
        future.set_result(reply)
