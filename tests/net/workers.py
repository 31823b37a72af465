"""Two workers with one Redis on one loop, and what stands in it of devices.

The client named `redis` reads and writes for the tests. Each worker may have a `Gate` of its own before the store, so
that an outage ends for one before it ends for the other.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import cast

import redis

from tests.net.peers import Client, Json, Node, until
from tests.net.proxy import Proxy
from vizora_rt.net.redis.address import Address

AWAY = {"offline_after_seconds": 0.1}
"""A device without a connection is offline soon."""


class Gate(Proxy):
    """A way to the store that can be shut."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.shut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.shut:
            writer.close()
        else:
            await super()._serve(reader, writer)

    def away(self) -> None:
        self.shut = True
        self.cut()

    def back(self) -> None:
        self.shut = False


class Books:
    """What stands in Redis."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url, decode_responses=True)

    def get(self, key: str) -> str | None:
        return cast("str | None", self.client.get(key))

    def ttl(self, key: str) -> int:
        return int(cast(str, self.client.ttl(key)))

    def status(self, device: str = "screen-1") -> Json:
        """The status key, {} when there is none."""
        found: Json = json.loads(self.get(f"vz:{{d:{device}}}:status") or "{}")
        return found

    def owner(self, device: str = "screen-1") -> tuple[int, str, int, int]:
        """Epoch, node, worker and time of the connection; zeros when nobody owns the device."""
        epoch, node, worker, connected = (self.get(f"vz:{{d:{device}}}:owner") or "0  0 0").split(" ")
        return int(epoch), node, int(worker), int(connected)

    async def when(self, true: Callable[[Json], object], device: str = "screen-1") -> Json:
        """The status, as soon as this is true of it."""
        return await until(lambda: self.status(device) if true(self.status(device)) else {})

    def listed(self, organization: str = "acme") -> dict[str, float]:
        return dict(cast("list[tuple[str, float]]", self.client.zrange(key_of(organization), 0, -1, withscores=True)))


def key_of(organization: str) -> str:
    return f"vz:{{o:{organization}}}:devices"


class Two:
    """Two workers of one node, each behind a gate. `start` is given the configuration."""

    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        self._stack = stack
        self._path = Address.parse(url).path

    async def start(self, *, stores: bool = True, **sections: Json) -> "Two":
        self.gates = [Gate(self._path), Gate(self._path)]
        self.nodes: list[Node] = []
        for index, gate in enumerate(self.gates):
            self._stack.push_async_callback(gate.close)
            worker = Node(await gate.open(), index, **sections)
            self.nodes.append(await worker.start(store=stores))
            self._stack.push_async_callback(worker.stop)
        self.a, self.b = self.nodes
        return self

    async def away(self) -> None:
        for gate in self.gates:
            gate.away()
        await until(lambda: not self.a.store.up and not self.b.store.up)


def online(node: Node) -> int:
    """Devices that the worker knows."""
    return len(node.gateway.state.devices)


def owned(node: Node, device: str = "screen-1") -> bool:
    """Whether the worker may write of the device."""
    found = node.gateway.state.devices.get(device)
    return found is not None and found.owned


def look_soon(node: Node, device: str = "screen-1") -> None:
    """See at the next heartbeat who owns the device, and not after most of an interval."""
    node.gateway.state.devices[device].owner_checked = 0


async def settled(client: Client) -> None:
    """All that the gateway has to say to this client is said: it answers, and is not told to go."""
    assert (await client.heartbeat())["success"]
