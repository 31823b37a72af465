"""Devices that live: they beat, play, report errors, ack commands, lose their connection and come back.

What a device does is what the reference player does (`client/player.py`): a play is kept until it is acked, on whatever
connection; nobody comes back at once. What is counted: heartbeats and errors are lost with their connection; a play is
lost when it is not acked by the end, and its latency counts from the time at which it was due, outages included.
"""

import asyncio
import random
from collections import Counter, deque
from time import perf_counter_ns
from typing import Any, Final

from bench.load.counters import refusal
from bench.load.engine import Connection, Engine
from bench.load.load_context import Agent, Connects
from bench.load.messages import CONTENT_ERROR, frame, play, vitals
from bench.load.schedule import ClosedLoop, Timetable
from bench.load.tokens import subject
from vizora_rt.client.player import PlayBuffer, Timing, backoff_seconds
from vizora_rt.client.websocket import CloseInfo, Handshake, seconds
from vizora_rt.wire.messages import dumps, encode, encode_ack, loads

ACK: Final = b'{"event":"ack","id":'
PLAYS_KEPT: Final = 100_000
BODIES: Final = 64
ERROR_SHARE: Final = 0.01
"""Of a device's contents; in the field one in some thousand fails, which would show nothing in a minute."""
ABSENCE_SECONDS: Final = 2.0
"""For how long at most a device that was told to go stays away."""
RETRY_SECONDS: Final = 0.5
DEAF_SECONDS: Final = 1.0
"""Between two attempts of a device that does not hear when it shall come."""
LAST_PLAYS_SECONDS: Final = 15.0
TIMING: Final = Timing()


class Link(Connection):
    """One connection of a device. Its acks are matched by their ids: those of plays come later than their place."""

    __slots__ = ("_client",)

    def __init__(self, engine: Engine, handshake: Handshake, client: "Client") -> None:
        super().__init__(engine, handshake)
        self._client = client

    def pause(self) -> None:
        """Read nothing any more."""
        if self._transport is not None:
            self._transport.pause_reading()

    @property
    def open(self) -> bool:
        return self._transport is not None

    def _other(self, payload: bytes) -> None:
        self._client.received(self, payload, perf_counter_ns())

    def _end(self, ending: CloseInfo) -> None:
        if self._transport is not None and self.settled.done():
            self._client.ended(ending)
        super()._end(ending)


class Client:
    """Whoever holds a connection: it acks what wants to be acked, and measures what is sent to it."""

    def __init__(self, fleet: "Fleet", token: str) -> None:
        self.fleet = fleet
        self.token = token
        self.link: Link | None = None
        self.away = False  # by its own will
        self.wait: float | None = None
        self.failures = 0
        self.deaf = False

    async def connect(self) -> CloseInfo | None:
        """Connect; the ending when there is no connection."""
        fleet = self.fleet
        link = Link(fleet.engine, Handshake(fleet.agent.endpoint, self.token), self)
        self.wait = None
        ending = await fleet.engine.dial(link)
        if ending is None and not link.open:
            ending = CloseInfo("ended at once")
        if ending is None:
            self.link = link
            fleet.open += 1
            self.opened()
        return ending

    def opened(self) -> None:
        """A connection is there."""

    def ended(self, ending: CloseInfo) -> None:
        """The connection is no more, by the server's will."""
        if self.link is not None:
            self.link = None
            self.fleet.open -= 1
            self.fleet.returns(self, perf_counter_ns(), ending)

    def go(self) -> None:
        """End the connection, by its own will."""
        if self.link is not None:
            self.link.leave()
            self.link = None
            self.fleet.open -= 1

    def received(self, link: Link, payload: bytes, now: int) -> None:
        if payload.startswith(ACK):
            self.acked(int(payload[20 : payload.index(b",", 20)]), payload, now)
            return
        message = loads(payload)
        ack_id, data = message.get("id"), message.get("data")
        if ack_id is not None:
            link.write(frame(encode_ack(ack_id, b'{"ok":true}')))
        if message["event"] == "server:shutdown":
            self.wait = seconds(data.get("retryAfterMs"))
        self.fleet.heard(message["event"], data, now)

    def acked(self, ack_id: int, payload: bytes, now: int) -> None:
        """The server acked a message."""


class Device(Client):
    """A screen."""

    def __init__(self, fleet: "Fleet", token: str) -> None:
        super().__init__(fleet, token)
        self.plays = PlayBuffer(PLAYS_KEPT)
        self.dues: deque[int] = deque()
        self.awaited: dict[int, tuple[str, int]] = {}
        self.ids = 0
        self.playing = 0
        self.batch = 0
        self.stored = 0  # starts and ends, which alternate

    def beat(self, due: int) -> None:
        if self.link is None:
            self.fleet.count("missed heartbeats", due)
        else:
            self._ask("heartbeat", "heartbeat", self.fleet.bodies[self.ids % BODIES], due)

    def play(self, due: int) -> None:
        """The content that plays ends, and the next begins; now and then it cannot."""
        if self.playing:
            self._keep("end", due)
        self.plays.seq = self.playing = self.playing + 1
        self._keep("start", due)
        self.send_plays()
        if random.random() < ERROR_SHARE and self.link is not None:
            self._ask("content_error", "content:error", CONTENT_ERROR, due)

    def send_plays(self) -> None:
        """The next batch, when none is in flight."""
        if self.link is None or self.batch:
            return
        body = self.plays.take()
        if body is not None:
            self.batch = self.ids = self.ids + 1
            self.link.write(frame(encode("content:impressions", body, self.ids)))

    def opened(self) -> None:
        self.send_plays()

    def ended(self, ending: CloseInfo) -> None:
        self.awaited.clear()
        self.batch = 0
        super().ended(ending)

    def go(self) -> None:
        self.awaited.clear()
        self.batch = 0
        super().go()

    @property
    def busy(self) -> bool:
        return bool(self.awaited or self.batch)

    def acked(self, ack_id: int, payload: bytes, now: int) -> None:
        if ack_id == self.batch:
            self.batch = 0
            self._plays_acked(payload, now)
            return
        asked = self.awaited.pop(ack_id, None)
        if asked is None:
            self.fleet.count("acks of nothing", now)
            return
        kind, due = asked
        self.fleet.tallies[kind].ack(payload, due, now)
        self.failures = 0
        if payload.find(b'"degraded":true') > 0:
            self.fleet.count("degraded acks", due)

    def _plays_acked(self, payload: bytes, now: int) -> None:
        code = refusal(payload)
        if code is not None:
            self.fleet.count(f"plays to be sent again: {code}", now)
            asyncio.get_running_loop().call_later(RETRY_SECONDS * random.uniform(1, 2), self.send_plays)
            return
        before = len(self.plays.queue)
        self.plays.stored(None)
        result = self.fleet.tallies["play"]
        self.stored += before - len(self.plays.queue)
        for _ in range(before - len(self.plays.queue)):
            result.succeed(self.dues.popleft(), now, 0)
        result.messages += 1
        self.send_plays()

    def _ask(self, kind: str, event: str, body: bytes, due: int) -> None:
        assert self.link is not None
        self.ids += 1
        self.awaited[self.ids] = (kind, due)
        self.fleet.tallies[kind].ask(due)
        self.link.write(frame(encode(event, body, self.ids)))

    def _keep(self, phase: str, due: int) -> None:
        self.plays.queue.append(play(self.playing, phase))
        self.dues.append(due)
        self.fleet.tallies["play"].ask(due)


class Watcher(Client):
    """A dashboard. It says nothing; a slow one reads nothing either."""

    def __init__(self, fleet: "Fleet", token: str, slow: bool = False) -> None:
        super().__init__(fleet, token)
        self.slow = slow

    def opened(self) -> None:
        if self.slow and self.link is not None:
            self.link.pause()


class Fleet:
    """The devices and dashboards of one load process."""

    def __init__(self, agent: Agent, slow: int = 0) -> None:
        self.agent = agent
        self.engine = Engine(agent.endpoint, ClosedLoop([b""], 0))
        kinds = ("heartbeat", "play", "content_error", "command", "notice", "connect", "reconnect")
        self.tallies = {kind: agent.recorder.tally(kind) for kind in kinds}
        self.devices = [Device(self, token) for token in agent.job.tokens]
        for device in self.devices[: round(len(self.devices) * agent.options.deaf)]:
            device.deaf = True
        self.watchers = [Watcher(self, token, number < slow) for number, token in enumerate(agent.job.users)]
        self.open = 0
        self.leaving = False
        self.bodies = [dumps(vitals(number)) for number in range(BODIES)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[str, int] = {}
        agent.recorder.connections = lambda: self.open

    @property
    def clients(self) -> list[Client]:
        return [*self.devices, *self.watchers]

    async def connect(self) -> None:
        """All of them, at the ramp's rate; then `ready`."""
        clients, counts, failed = self.clients, self.engine.handshakes, Counter[str]()
        ramp, begun, tasks = self.agent.options.ramp * self.agent.job.share, perf_counter_ns(), []

        async def one(client: Client, due: int) -> None:
            ending = await client.connect()
            if ending is None:
                counts.record(perf_counter_ns() - due)
            else:
                failed[ending.reason] += 1

        for number, client in enumerate(clients):
            due = begun + int(number / ramp * 1e9)
            if (ahead := due - perf_counter_ns()) > 0:
                self.agent.progress("connecting", number / len(clients))
                await asyncio.sleep(ahead / 1e9)
            tasks.append(asyncio.create_task(one(client, due)))
        if tasks:
            await asyncio.wait(tasks)
        await self.agent.ready(Connects(self.open, failed, counts.counts))

    async def live(self, *, plays: bool = True, own_rate: bool = False) -> None:
        """Until the end of the run each device beats at its interval, and plays.

        The run's rate is that of all heartbeats, unless the devices keep their `own_rate` whatever else is asked for.
        """
        options, devices = self.agent.options, len(self.devices)
        timetable = Timetable(lambda: self.agent.recorder.lateness, 0)
        if devices:
            rate = devices / options.interval
            if options.rate is not None and not own_rate:
                rate = options.rate * self.agent.job.share
            timetable.add(rate, lambda due: self._turn("beat").beat(due))
            if plays:
                timetable.add(devices / options.play, lambda due: self._turn("play").play(due))
            if options.churn:
                timetable.add(options.churn * self.agent.job.share, lambda due: self._churn(self._turn("churn")))
        timetable.start()
        await self.agent.over()
        timetable.stop()

    async def leave(self) -> None:
        """Wait for what is not answered, tell what was acked, and go."""
        seconds = LAST_PLAYS_SECONDS if any(device.plays.queue for device in self.devices) else 2.0
        await self.agent.answered(*(self.tallies[kind] for kind in ("play", "reconnect")), seconds=seconds)
        await self.agent.answered(*(self.tallies[kind] for kind in ("heartbeat", "content_error")))
        self.leaving = True
        for device in self.devices:
            if device.stored:
                self.agent.plays.append((subject(device.token), device.plays.boot, (device.stored + 1) // 2))
        for client in self.clients:
            client.go()
        for task in self._tasks:
            task.cancel()
        await asyncio.sleep(0.2)

    def count(self, what: str, at: int) -> None:
        if at >= self.agent.recorder.since:
            self.agent.recorder.counters[what] += 1

    def heard(self, event: str, data: dict[str, Any], now: int) -> None:
        """An event; commands and notices say when they were sent."""
        if event == "command" and isinstance(payload := data.get("payload"), dict) and "sentAt" in payload:
            self._timed("command", payload["sentAt"], now)
        elif event == "notification:new" and "sentAt" in data:
            self._timed("notice", data["sentAt"], now)
        elif event == "gap":
            self.agent.recorder.counters["notices dropped"] += data.get("dropped", 0)

    def returns(self, client: Client, ended: int, ending: CloseInfo) -> None:
        """A connection ended by the server's will: it comes back, unless it was told not to."""
        if self.leaving:
            return
        self.count(f"ended: {ending.reason}", ended)
        self.tallies["reconnect"].ask(ended)
        self._start(self._return(client, ended, ending))

    def _timed(self, kind: str, sent: int, now: int) -> None:
        result = self.tallies[kind]
        result.ask(sent)
        result.succeed(sent, now)

    def _turn(self, line: str) -> Device:
        number = self._turns.get(line, 0)
        self._turns[line] = number + 1
        return self.devices[number % len(self.devices)]

    def _churn(self, device: Device) -> None:
        """It goes, when nothing is under way, and is back soon."""
        if device.link is not None and not device.busy and not device.away:
            device.away = True
            device.go()
            self.count("left", perf_counter_ns())
            self._start(self._come(device))

    async def _come(self, client: Client) -> None:
        await asyncio.sleep(random.random() * ABSENCE_SECONDS)
        due = perf_counter_ns()
        self.tallies["connect"].ask(due)
        ending = await client.connect()
        client.away = False
        if ending is None:
            self.tallies["connect"].succeed(due, perf_counter_ns())
        else:
            self.tallies["connect"].refuse(due, perf_counter_ns(), ending.reason)
            await self._return(client, due, ending)

    async def _return(self, client: Client, ended: int, ending: CloseInfo | None) -> None:
        while ending is not None:
            if ending.final:
                self.count("never to come back", ended)
                return
            if client.wait is not None:
                ending = ending._replace(wait=client.wait)
            client.failures += 1
            await asyncio.sleep(DEAF_SECONDS if client.deaf else backoff_seconds(ending, client.failures - 1, TIMING))
            ending = await client.connect()
            if ending is not None:
                self.count(f"return failed: {ending.reason}", ended)
        self.tallies["reconnect"].succeed(ended, perf_counter_ns())

    def _start(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
