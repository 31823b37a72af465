"""Doorbells between workers and nodes: Redis pub/sub that says "look", never the letter itself.

A doorbell may be lost: whatever must arrive lies in keys, and is found there at the next heartbeat at the latest. A
channel is heard where the store says that it is: of a cluster, at the shard that has its slot (sharded pub/sub).
Channels belong to a whole server, so their names carry the number of the database: see `keyspace`.
"""

import asyncio
import random
from collections.abc import Callable

from vizora_rt import lines, report
from vizora_rt.config import Redis
from vizora_rt.net import keyspace
from vizora_rt.net.link import Address, Link, connect, explain
from vizora_rt.net.refusals import DENIED
from vizora_rt.net.store import Store
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

log = report.logger("bus")

Bell = dict[str, object]

STATUS = b'{"status":'
"""How the bell of a status change begins. A worker without dashboards of the organisation reads no further."""

CHECK_SECONDS = 10.0
"""A subscriber sends nothing, so it would not notice a dead connection: a PING asks for a sign of life."""

AGAIN_SECONDS = 0.1
"""Until a channel is looked for again that was refused or has moved: the map of the cluster may be a moment behind."""

DENIED_SECONDS = 5.0
"""Until a channel is asked for again that the user may not have: often enough for `/health` to name it all the time."""

LEAVE = {"SUBSCRIBE": "UNSUBSCRIBE", "SSUBSCRIBE": "SUNSUBSCRIBE"}


class Ear:
    """One connection that hears the channels which one server has."""

    __slots__ = ("_address", "_bus", "_config", "_heard", "_link", "_lost", "_name", "_runner", "channels")

    def __init__(self, bus: "Bus", config: Redis, address: Address, name: str) -> None:
        self.channels: set[str] = set()
        self._bus = bus
        self._config = config
        self._address = address
        self._name = name
        self._link: Link | None = None
        self._lost = asyncio.Event()
        self._heard = False
        self._runner = asyncio.get_running_loop().create_task(self._run())

    def add(self, channel: str) -> None:
        """Hear a channel, or ask for it once more."""
        self.channels.add(channel)
        self._tell(self._bus.subscribe, channel)

    def remove(self, channel: str) -> None:
        self.channels.discard(channel)
        self._tell(LEAVE[self._bus.subscribe], channel)

    def end(self) -> asyncio.Task[None]:
        self._runner.cancel()
        return self._runner

    def _tell(self, word: str, channel: str) -> None:
        if self._link is not None:
            self._link.transport.write(resp.pack(word, channel))

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except OSError as error:
                log.debug("bus is not up", reason=explain(error))
            except Exception as error:
                log.exception("bus failed", error)
            await asyncio.sleep(self._config.reconnect_max_seconds * random.uniform(0.1, 1.0))

    async def _listen(self) -> None:
        """Subscribe, then hear until the connection is lost or silent."""
        self._lost.clear()
        config = self._config
        link = await connect(
            self._address,
            self._name,
            self._deliver,
            self._on_lost,
            connect_timeout=config.connect_timeout_seconds,
            reply_timeout=config.reply_timeout_seconds,
        )
        try:
            self._link = link
            # One command each: channels of one command must have one slot.
            word = self._bus.subscribe
            link.transport.write(b"".join(resp.pack(word, channel) for channel in self.channels))
            await self._watch(link)
        finally:
            self._link = None
            self._bus.deaf(self.channels)
            link.drop("closed")

    async def _watch(self, link: Link) -> None:
        while True:
            self._heard = False
            link.transport.write(resp.pack("PING"))
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._lost.wait()
                return
            except TimeoutError:
                if not self._heard:
                    return

    def _on_lost(self, reason: str) -> None:
        self._lost.set()

    def _deliver(self, replies: list[object]) -> None:
        self._heard = True
        for reply in replies:
            if isinstance(reply, list) and len(reply) == 3:
                try:
                    self._bus.take(self, *reply)
                except Exception as error:
                    # One bell that cannot be followed must not cost the connection, and the bells behind it.
                    log.exception("doorbell failed", error)
            elif isinstance(reply, ReplyError):
                # Which channel it was shows by none having been confirmed.
                self._bus.refused(reply)


class Bus:
    """This worker's own channel, those of organisations that have clients here, and the way to ring another's."""

    def __init__(self, config: Redis, node: str, worker: int, store: Store, on_bell: Callable[[Bell], None]) -> None:
        self._config = config
        self._name = f"vizora-bus-{worker}"
        self._store = store
        self.subscribe = store.subscribe
        self._on_bell = on_bell
        self.on_status: Callable[[str, bytes], None] = lambda *_: None
        """Gets the organisation and the bell, unread, of a status change."""
        self.on_subscribed: Callable[[str], None] = lambda _: None
        """From now on nothing is missed of this organisation. Called again after each loss of the connection."""
        self._database = store.database
        self._organization = keyspace.organization_channel(store.database, "")
        self._channels: dict[str, Ear | None] = dict.fromkeys(self._names(node, worker))
        self._heard: set[str] = set()
        self._ears: dict[Address, Ear] = {}
        self._loop = asyncio.get_running_loop()
        self._open = False
        self._again: asyncio.TimerHandle | None = None
        store.on_up.append(self._assign)
        store.on_moved.append(self._assign)

    def start(self) -> None:
        self._open = True
        self._assign()

    async def close(self) -> None:
        self._open = False
        if self._again is not None:
            self._again.cancel()
        ending = [ear.end() for ear in self._ears.values()]
        self._ears.clear()
        if ending:
            await asyncio.wait(ending)

    def ring(self, node: str, worker: int, bell: Bell) -> None:
        """Ring the doorbell of a worker of any node. Not waited for, not repeated."""
        names = self._names(node, worker)
        name = next((each for each in names if self._store.takes(each.encode())), names[0])
        self._store.publish(name, messages.dumps(bell))

    def _names(self, node: str, worker: int) -> list[str]:
        return keyspace.node_channels(self._database, node, worker, self._store.one_slot)

    def ring_organization(self, organization: str, bell: Bell) -> bool:
        """Ring all workers that have clients of an organisation."""
        return self._store.publish(self._organization + organization, messages.dumps(bell))

    def watch(self, organization: str) -> None:
        """Hear the bells of an organisation."""
        channel = self._organization + organization
        if channel not in self._channels:
            self._channels[channel] = None
            self._place(channel)

    def unwatch(self, organization: str) -> None:
        channel = self._organization + organization
        ear = self._channels.pop(channel, None)
        self._heard.discard(channel)
        if ear is not None:
            ear.remove(channel)

    def hears(self, organization: str) -> bool:
        """Whether bells of an organisation arrive now."""
        return self._organization + organization in self._heard

    # Which ear hears what

    def _assign(self, again: bool = False) -> None:
        """Hear each channel where it is now; `again`: those that are not heard are asked for once more."""
        if not self._open:
            return
        for channel in self._channels:
            self._place(channel, again)
        for address, ear in list(self._ears.items()):
            if not ear.channels:
                del self._ears[address]
                ear.end()

    def _retry(self) -> None:
        self._again = None
        self._assign(again=True)

    def _place(self, channel: str, again: bool = False) -> None:
        address = self._store.place(channel.encode())
        if not self._open or address is None:
            return
        ear = self._ears.get(address)
        if ear is None:
            ear = self._ears[address] = Ear(self, self._config, address, self._name)
        before = self._channels[channel]
        if before is ear and (not again or channel in self._heard):
            return
        if before is not None and before is not ear:
            before.remove(channel)
            self._heard.discard(channel)
        self._channels[channel] = ear
        ear.add(channel)

    def deaf(self, channels: set[str]) -> None:
        """The connection that heard these is gone."""
        self._heard -= channels
        # It connects again. But its server may be gone for good, and the channels elsewhere.
        self._store.look_again()

    def refused(self, reply: ReplyError) -> None:
        """A subscription was answered with an error: MOVED, a cluster that is down, or a user who may not."""
        self._store.turned_down(reply, "subscribe")
        self.astray(DENIED_SECONDS if reply.code == DENIED else AGAIN_SECONDS)

    def astray(self, seconds: float = AGAIN_SECONDS) -> None:
        """A channel is not where it was looked for; it is looked for again after `seconds`."""
        self._store.look_again()
        if self._again is None and self._open:
            self._again = self._loop.call_later(seconds, self._retry)

    def take(self, ear: Ear, kind: bytes, channel: bytes, payload: bytes) -> None:
        """What an ear has heard."""
        name = channel.decode()
        if kind in (b"message", b"smessage"):
            if payload.startswith(STATUS):
                self.on_status(name.removeprefix(self._organization), payload)
            else:
                self._hear(payload)
        elif kind in (b"subscribe", b"ssubscribe"):
            if self._channels.get(name) is ear:
                self._heard.add(name)
                if name.startswith(self._organization):
                    self.on_subscribed(name.removeprefix(self._organization))
        elif kind == b"sunsubscribe" and self._channels.get(name) is ear:
            # Its slot has moved away.
            self._heard.discard(name)
            self.astray()

    def _hear(self, payload: bytes) -> None:
        try:
            bell = messages.loads(payload)
        except messages.JSONError:
            bell = None
        if isinstance(bell, dict):
            self._on_bell(bell)
        else:
            lines.limited(("doorbell", "json"), "WARNING", "bus", "doorbell not understood")
