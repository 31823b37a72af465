"""Doorbells between workers and nodes: Redis pub/sub that says "look", never the letter itself.

A doorbell may be lost: whatever must arrive lies in keys, and is found there at the next heartbeat at the latest.
"""

import asyncio
import random
from collections.abc import Callable

from vizora_rt import report
from vizora_rt.config import Redis
from vizora_rt.net.link import Address, Link, connect, explain
from vizora_rt.net.store import Store
from vizora_rt.wire import messages, resp

log = report.logger("bus")

Bell = dict[str, object]

ORGANIZATION = "vz:org:"

STATUS = b'{"status":'
"""How the bell of a status change begins. A worker without dashboards of the organisation reads no further."""

CHECK_SECONDS = 10.0
"""A subscriber sends nothing, so it would not notice a dead connection: a PING asks for a sign of life."""


class Bus:
    """This worker's own channel, those of organisations that have clients here, and the way to ring another's."""

    def __init__(
        self, config: Redis, url: str, node: str, worker: int, store: Store, on_bell: Callable[[Bell], None]
    ) -> None:
        self._config = config
        self._address = Address.parse(url)
        self._channel = _channel(node, worker)
        self._name = f"vizora-bus-{worker}"
        self._store = store
        self._on_bell = on_bell
        self.on_status: Callable[[str, bytes], None] = lambda *_: None
        """Gets the organisation and the bell, unread, of a status change."""
        self.on_subscribed: Callable[[str], None] = lambda _: None
        """From now on nothing is missed of this organisation. Called again after each loss of the connection."""
        self._organizations: dict[str, bool] = {}
        self._link: Link | None = None
        self._loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._heard = False
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._runner = self._loop.create_task(self._run())

    async def close(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])

    def ring(self, node: str, worker: int, bell: Bell) -> None:
        """Ring the doorbell of a worker of any node. Not waited for, not repeated."""
        self._store.submit("publish", resp.pack("PUBLISH", _channel(node, worker), messages.dumps(bell)))

    def ring_organization(self, organization: str, bell: Bell) -> bool:
        """Ring all workers that have clients of an organisation."""
        return self._store.submit("publish", resp.pack("PUBLISH", ORGANIZATION + organization, messages.dumps(bell)))

    def watch(self, organization: str) -> None:
        """Hear the bells of an organisation."""
        if organization not in self._organizations:
            self._organizations[organization] = False
            if self._link is not None:
                self._link.transport.write(resp.pack("SUBSCRIBE", ORGANIZATION + organization))

    def unwatch(self, organization: str) -> None:
        if self._organizations.pop(organization, None) is not None and self._link is not None:
            self._link.transport.write(resp.pack("UNSUBSCRIBE", ORGANIZATION + organization))

    def hears(self, organization: str) -> bool:
        """Whether bells of an organisation arrive now."""
        return self._organizations.get(organization, False)

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
            channels = [ORGANIZATION + organization for organization in self._organizations]
            link.transport.write(resp.pack("SUBSCRIBE", self._channel, *channels))
            await self._watch(link)
        finally:
            self._link = None
            self._organizations = dict.fromkeys(self._organizations, False)
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
                    self._take(*reply)
                except Exception as error:
                    # One bell that cannot be followed must not cost the connection, and the bells behind it.
                    log.exception("doorbell failed", error)

    def _take(self, kind: bytes, channel: bytes, payload: bytes) -> None:
        if kind == b"message":
            if payload.startswith(STATUS):
                self.on_status(channel.decode().removeprefix(ORGANIZATION), payload)
            else:
                self._hear(payload)
        elif kind == b"subscribe" and channel.startswith(ORGANIZATION.encode()):
            organization = channel.decode().removeprefix(ORGANIZATION)
            if organization in self._organizations:
                self._organizations[organization] = True
                self.on_subscribed(organization)

    def _hear(self, payload: bytes) -> None:
        try:
            bell = messages.loads(payload)
        except messages.JSONError:
            bell = None
        if isinstance(bell, dict):
            self._on_bell(bell)
        else:
            log.warning("doorbell not understood")


def _channel(node: str, worker: int) -> str:
    return f"vz:node:{node}:{worker}"
