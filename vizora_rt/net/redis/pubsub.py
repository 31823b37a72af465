"""Doorbells between workers and nodes: Redis pub/sub that says "look", never the letter itself.

A doorbell may be lost: whatever must arrive lies in keys, and is found there at the next heartbeat at the latest. A
channel is heard where the store says that it is: of a cluster, at the shard that has its slot (sharded pub/sub).
Channels belong to a whole server, so their names carry the number of the database: see `keyspace`.
"""

import asyncio
import random
from collections.abc import Callable

from vizora_rt.config import RedisSettings
from vizora_rt.net.redis import keys
from vizora_rt.net.redis.address import Address, explain
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.redis.connection import RedisConnection, connect
from vizora_rt.net.redis.refusals import DENIED
from vizora_rt.telemetry import logs
from vizora_rt.telemetry import logs as telemetry_logs
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

log = telemetry_logs.logger("bus")

ControlMessage = dict[str, object]

STATUS = b'{"status":'
"""How the bell of a status change begins. A worker without dashboards of the organisation reads no further."""

CHECK_SECONDS = 10.0
"""A subscriber sends nothing, so it would not notice a dead connection: a PING asks for a sign of life."""

AGAIN_SECONDS = 0.1
"""Until a channel is looked for again that was refused or has moved: the map of the cluster may be a moment behind."""

DENIED_SECONDS = 5.0
"""Until a channel is asked for again that the user may not have: often enough for `/health` to name it all the time."""

LEAVE = {"SUBSCRIBE": "UNSUBSCRIBE", "SSUBSCRIBE": "SUNSUBSCRIBE"}


class Subscriber:
    """One connection that hears the channels which one server has."""

    __slots__ = ("_address", "_alive", "_config", "_connection", "_lost", "_name", "_pubsub", "_runner", "channels")

    def __init__(self, pubsub: "PubSub", config: RedisSettings, address: Address, name: str) -> None:
        self.channels: set[str] = set()
        self._pubsub = pubsub
        self._config = config
        self._address = address
        self._name = name
        self._connection: RedisConnection | None = None
        self._lost = asyncio.Event()
        self._alive = False
        self._runner = asyncio.get_running_loop().create_task(self._run())

    def add(self, channel: str) -> None:
        """Hear a channel, or ask for it once more."""
        self.channels.add(channel)
        self._send(self._pubsub.subscribe, channel)

    def remove(self, channel: str) -> None:
        self.channels.discard(channel)
        self._send(LEAVE[self._pubsub.subscribe], channel)

    def close(self) -> asyncio.Task[None]:
        self._runner.cancel()
        return self._runner

    def _send(self, word: str, channel: str) -> None:
        if self._connection is not None:
            self._connection.transport.write(resp.pack(word, channel))

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
            self._connection = link
            # One command each: channels of one command must have one slot.
            word = self._pubsub.subscribe
            link.transport.write(b"".join(resp.pack(word, channel) for channel in self.channels))
            await self._watch(link)
        finally:
            self._connection = None
            self._pubsub.on_subscriber_lost(self.channels)
            link.drop("closed")

    async def _watch(self, link: RedisConnection) -> None:
        while True:
            self._alive = False
            link.transport.write(resp.pack("PING"))
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._lost.wait()
                return
            except TimeoutError:
                if not self._alive:
                    return

    def _on_lost(self, reason: str) -> None:
        self._lost.set()

    def _deliver(self, replies: list[object]) -> None:
        self._alive = True
        for reply in replies:
            if isinstance(reply, list) and len(reply) == 3:
                try:
                    self._pubsub.on_push(self, *reply)
                except Exception as error:
                    # One bell that cannot be followed must not cost the connection, and the bells behind it.
                    log.exception("doorbell failed", error)
            elif isinstance(reply, ReplyError):
                # Which channel it was shows by none having been confirmed.
                self._pubsub.refused(reply)


class PubSub:
    """This worker's own channel, those of organisations that have clients here, and the way to ring another's."""

    def __init__(
        self,
        config: RedisSettings,
        node: str,
        worker: int,
        store: RedisClient,
        on_bell: Callable[[ControlMessage], None],
    ) -> None:
        self._config = config
        self._name = f"vizora-bus-{worker}"
        self._store = store
        self.subscribe = store.subscribe
        self._on_message = on_bell
        self.on_status: Callable[[str, bytes], None] = lambda *_: None
        """Gets the organisation and the bell, unread, of a status change."""
        self.on_subscribed: Callable[[str], None] = lambda _: None
        """From now on nothing is missed of this organisation. Called again after each loss of the connection."""
        self._database = store.database
        self._organization = keys.organization_channel(store.database, "")
        self._channels: dict[str, Subscriber | None] = dict.fromkeys(self._names(node, worker))
        self._subscribed: set[str] = set()
        self._subscribers: dict[Address, Subscriber] = {}
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
        ending = [subscriber.close() for subscriber in self._subscribers.values()]
        self._subscribers.clear()
        if ending:
            await asyncio.wait(ending)

    def send_to_worker(self, node: str, worker: int, message: ControlMessage) -> None:
        """Ring the doorbell of a worker of any node. Not waited for, not repeated."""
        names = self._names(node, worker)
        name = next((each for each in names if self._store.is_available(each.encode())), names[0])
        self._store.publish(name, messages.dumps(message))

    def _names(self, node: str, worker: int) -> list[str]:
        return keys.node_channels(self._database, node, worker, self._store.one_slot)

    def publish(self, organization: str, message: ControlMessage) -> bool:
        """Ring all workers that have clients of an organisation."""
        return self._store.publish(self._organization + organization, messages.dumps(message))

    def watch(self, organization: str) -> None:
        """Hear the bells of an organisation."""
        channel = self._organization + organization
        if channel not in self._channels:
            self._channels[channel] = None
            self._place(channel)

    def unwatch(self, organization: str) -> None:
        channel = self._organization + organization
        subscriber = self._channels.pop(channel, None)
        self._subscribed.discard(channel)
        if subscriber is not None:
            subscriber.remove(channel)

    def is_subscribed(self, organization: str) -> bool:
        """Whether bells of an organisation arrive now."""
        return self._organization + organization in self._subscribed

    # Which ear hears what

    def _assign(self, again: bool = False) -> None:
        """Hear each channel where it is now; `again`: those that are not heard are asked for once more."""
        if not self._open:
            return
        for channel in self._channels:
            self._place(channel, again)
        for address, subscriber in list(self._subscribers.items()):
            if not subscriber.channels:
                del self._subscribers[address]
                subscriber.close()

    def _retry(self) -> None:
        self._again = None
        self._assign(again=True)

    def _place(self, channel: str, again: bool = False) -> None:
        address = self._store.place(channel.encode())
        if not self._open or address is None:
            return
        subscriber = self._subscribers.get(address)
        if subscriber is None:
            subscriber = self._subscribers[address] = Subscriber(self, self._config, address, self._name)
        before = self._channels[channel]
        if before is subscriber and (not again or channel in self._subscribed):
            return
        if before is not None and before is not subscriber:
            before.remove(channel)
            self._subscribed.discard(channel)
        self._channels[channel] = subscriber
        subscriber.add(channel)

    def on_subscriber_lost(self, channels: set[str]) -> None:
        """The connection that heard these is gone."""
        self._subscribed -= channels
        # It connects again. But its server may be gone for good, and the channels elsewhere.
        self._store.look_again()

    def refused(self, reply: ReplyError) -> None:
        """A subscription was answered with an error: MOVED, a cluster that is down, or a user who may not."""
        self._store.turned_down(reply, "subscribe")
        self.on_redirect(DENIED_SECONDS if reply.code == DENIED else AGAIN_SECONDS)

    def on_redirect(self, seconds: float = AGAIN_SECONDS) -> None:
        """A channel is not where it was looked for; it is looked for again after `seconds`."""
        self._store.look_again()
        if self._again is None and self._open:
            self._again = self._loop.call_later(seconds, self._retry)

    def on_push(self, subscriber: Subscriber, kind: bytes, channel: bytes, payload: bytes) -> None:
        """What an ear has heard."""
        name = channel.decode()
        if kind in (b"message", b"smessage"):
            if payload.startswith(STATUS):
                self.on_status(name.removeprefix(self._organization), payload)
            else:
                self._handle(payload)
        elif kind in (b"subscribe", b"ssubscribe"):
            if self._channels.get(name) is subscriber:
                self._subscribed.add(name)
                if name.startswith(self._organization):
                    self.on_subscribed(name.removeprefix(self._organization))
        elif kind == b"sunsubscribe" and self._channels.get(name) is subscriber:
            # Its slot has moved away.
            self._subscribed.discard(name)
            self.on_redirect()

    def _handle(self, payload: bytes) -> None:
        try:
            message = messages.loads(payload)
        except messages.JSONError:
            message = None
        if isinstance(message, dict):
            self._on_message(message)
        else:
            logs.limited(("doorbell", "json"), "WARNING", "bus", "doorbell not understood")
