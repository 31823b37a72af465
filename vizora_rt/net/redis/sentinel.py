"""The store that a URL asks for: one server's, a cluster's, or that of whichever master the Sentinels name.

After a failover the Sentinels end the connections to the old master, and the store connects to the new one. An old
master that nobody can reach but us is left when they name another: they are asked every few seconds.
"""

import asyncio

from vizora_rt.config import RedisSettings
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.redis.cluster import Cluster
from vizora_rt.net.redis.topology import RedisTarget, find_master
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.metrics import Metrics

WATCH_SECONDS = 5.0
"""Between two questions: what is written to an old master until then is lost. Sentinels take as long to agree."""

log = logs.logger("store")


class SentinelClient(RedisClient):
    """The store of a master that Sentinels name."""

    __slots__ = ("_target", "_watcher")

    def __init__(self, config: RedisSettings, where: RedisTarget, metrics: Metrics, *, name: str) -> None:
        super().__init__(config, where.seeds[0], metrics, name=name)
        self._target = where
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
        return self._target.credentials.database

    def place(self, key: bytes) -> Address | None:
        return None if self.address in self._target.seeds else self.address

    async def _locate(self) -> Address:
        return await asyncio.to_thread(find_master, self._target, self._config.connect_timeout_seconds)

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


def open_client(config: RedisSettings, url: str, metrics: Metrics, *, name: str) -> RedisClient:
    """A store that is not started yet. Raises ConfigError."""
    where = RedisTarget.parse(url)
    if where.kind == "cluster":
        return Cluster(config, where, metrics, name=name)
    if where.kind == "sentinel":
        return SentinelClient(config, where, metrics, name=name)
    return RedisClient(config, where.credentials, metrics, name=name)
