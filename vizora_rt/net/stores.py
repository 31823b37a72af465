"""The store that a URL asks for: one server's, a cluster's, or that of whichever master the Sentinels name.

After a failover the Sentinels end the connections to the old master, and the store connects to the new one. An old
master that nobody can reach but us is left when they name another: they are asked every few seconds.
"""

import asyncio

from vizora_rt import report
from vizora_rt.config import Redis
from vizora_rt.metrics import Metrics
from vizora_rt.net.cluster import Cluster
from vizora_rt.net.link import Address
from vizora_rt.net.store import Store
from vizora_rt.net.topology import Where, find_master

WATCH_SECONDS = 5.0
"""Between two questions: what is written to an old master until then is lost. Sentinels take as long to agree."""

log = report.logger("store")


class Guarded(Store):
    """The store of a master that Sentinels name."""

    __slots__ = ("_watcher", "_where")

    def __init__(self, config: Redis, where: Where, metrics: Metrics, *, name: str) -> None:
        super().__init__(config, where.seeds[0], metrics, name=name)
        self._where = where
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        super().start()
        self._watcher = self._loop.create_task(self._watch())

    async def close(self, timeout: float | None = None) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        await super().close(timeout)

    @property
    def database(self) -> int:
        return self._where.access.database

    def place(self, key: bytes) -> Address | None:
        return None if self.address in self._where.seeds else self.address

    async def _locate(self) -> Address:
        return await asyncio.to_thread(find_master, self._where, self._config.connect_timeout_seconds)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                master = await self._locate()
            except OSError as error:
                log.debug("sentinels are away", reason=str(error))
            except Exception as error:
                log.exception("sentinels were not understood", error)
            else:
                if self.up and master != self.address:
                    self.reconnect(f"the master is {master.host}:{master.port} now")


def open_store(config: Redis, url: str, metrics: Metrics, *, name: str) -> Store:
    """A store that is not started yet. Raises ConfigError."""
    where = Where.parse(url)
    if where.kind == "cluster":
        return Cluster(config, where, metrics, name=name)
    if where.kind == "sentinel":
        return Guarded(config, where, metrics, name=name)
    return Store(config, where.access, metrics, name=name)
