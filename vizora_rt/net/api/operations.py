"""The routes of operators: metrics, health and status. What the supervisor knows is asked of it."""

import asyncio
import time
from collections.abc import Callable
from time import perf_counter_ns
from typing import Final, Protocol

from vizora_rt import errors
from vizora_rt.config import Config
from vizora_rt.net.redis.address import TAKES_NO_WRITES, one_line
from vizora_rt.net.redis.client import Part, RedisClient
from vizora_rt.net.redis.refusals import DENIED
from vizora_rt.net.server.http import HTTPServer
from vizora_rt.net.server.key_guard import Keys
from vizora_rt.net.server.responses import LOOPBACK, Response, Route, Sender, json_response, refuse
from vizora_rt.net.streams import gauges
from vizora_rt.telemetry import metrics
from vizora_rt.wire import messages, resp
from vizora_rt.wire.http import Request, accepts_gzip
from vizora_rt.wire.resp import ReplyError

SERVICE: Final = "vizora-rt"

PING: Final = resp.pack("PING")
HEALTH_SECONDS: Final = 1.0
REFUSALS: Final = TAKES_NO_WRITES | {DENIED}
"""Errors of a Redis that is there: MISCONF is the answer to each PING while a server cannot save."""

FORWARDED: Final = ("forwarded", "x-forwarded-", "x-real-ip")
"""Beginnings of the header fields of a proxy; who sends one of its own is only trusted less."""

Ask = Callable[..., None]
"""Has the supervisor answer: what, whether as OpenMetrics, who gets it, whether gzipped."""


class Draining(Protocol):
    """The gateway, as far as operators ask for it."""

    @property
    def draining(self) -> bool: ...


class HealthRoutes:
    """Their routes of one worker."""

    def __init__(self, config: Config, gateway: Draining, store: RedisClient, ask: Ask, keys: Keys) -> None:
        self._config = config
        self._gateway = gateway
        self._store = store
        self._ask = ask
        self._keys = keys
        self._started = time.monotonic()
        self.routes: dict[str, Route] = {
            "/metrics": self._metrics,
            "/internal/metrics": self._metrics,
            "/health": self._health,
            "/health/live": lambda request, sender: json_response(200, {"status": "live"}),
            "/health/ready": self._ready,
            "/status": self._status,
        }

    async def _metrics(self, request: Request, sender: Sender) -> Response:
        if not self._may_scrape(request, sender):
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not token:
                return refuse(errors.FORBIDDEN)
            answer = self._keys.refuse_wrong("metrics", sender.client(request), "/metrics", errors.FORBIDDEN)
            return answer if isinstance(answer, Response) else await answer
        openmetrics, content_type = metrics.negotiate(request.headers.get("accept", ""))
        compress = accepts_gzip(request.headers.get("accept-encoding", ""))
        body = await self._asked("metrics", openmetrics, compress)
        if body is None:
            return refuse(errors.OVERLOADED)
        encoding = (("Content-Encoding", "gzip"),) if compress else ()
        return Response(200, body, content_type, (*encoding, ("Vary", "Accept, Accept-Encoding")))

    def _may_scrape(self, request: Request, sender: Sender) -> bool:
        settings = self._config.metrics
        if settings.public:
            return True
        if settings.token:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and self._keys.same(token.strip(), settings.token):
                return True
        # A proxy on this machine connects from loopback too: then it says for whom.
        forwarded = sender.proxied or any(name.startswith(FORWARDED) for name in request.headers)
        return sender.address.startswith(LOOPBACK) and not forwarded

    async def _health(self, request: Request, sender: Sender) -> Response:
        redis, status = await asyncio.gather(self._redis(), self._asked("status"))
        service = messages.loads(status) if status is not None else {}
        workers = service.get("workers", [])
        up = sum(worker["state"] == "ready" for worker in workers)
        whole = redis["status"] == "up" and up >= self._config.workers
        word = "unhealthy" if self._gateway.draining else "healthy" if whole else "degraded"
        body = {
            "status": word,
            "service": SERVICE,
            "timestamp": messages.iso(time.time_ns() // 1_000_000),
            # The service's, not that of the worker which happens to answer: that one may have come with the last roll.
            "uptime": service.get("uptime", round(time.monotonic() - self._started, 3)),
            "dependencies": {
                "redis": redis,
                "workers": {
                    "status": "up" if up >= self._config.workers else "degraded",
                    "up": up,
                    "of": self._config.workers,
                },
            },
        }
        return json_response(200, body)

    def _ready(self, request: Request, sender: Sender) -> Response:
        """Whether this node can serve anybody. A worker that answers is one that is up."""
        if self._gateway.draining:
            return refuse(errors.DRAINING)
        auth = self._config.auth
        # Without Redis most clients are let in all the same: a proxy that sent them nowhere would darken their screens.
        serves = self._store.available or auth.fail_open_devices or auth.fail_open_dashboards
        return json_response(200, {"status": "ready"}) if serves else refuse(errors.STORE_UNAVAILABLE)

    async def _status(self, request: Request, sender: Sender) -> Response:
        body = await self._asked("status")
        return Response(200, body) if body is not None else refuse(errors.OVERLOADED)

    async def _asked(self, what: str, openmetrics: bool = False, compress: bool = False) -> bytes | None:
        answered: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def on_answer(body: bytes | None) -> None:
            if not answered.done():
                answered.set_result(body)

        self._ask(what, openmetrics, on_answer, compress)
        return await answered

    async def _redis(self) -> dict[str, object]:
        """What is said of Redis: `down` when it does not answer, `degraded` when it turns down what it is asked or when
        a shard of a cluster is away. Of a cluster each shard is named."""
        started = perf_counter_ns()
        latency: float | None = None
        reply = info = None
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                reply, info = await asyncio.gather(
                    self._store.request("ping", PING), self._store.request("info", gauges.INFO_MEMORY)
                )
            latency = (perf_counter_ns() - started) / 1e6
        except TimeoutError:
            silent = f"no answer within {HEALTH_SECONDS:g} s"
        else:
            silent = ""
        parts = self._store.parts
        reasons = [part.reason or silent if not part.up or (silent and part.owes) else "" for part in parts]
        shards = [_shard(part, reason) for part, reason in zip(parts, reasons, strict=True)]
        more: dict[str, object] = {"shards": shards} if shards else {}
        away = [f"shard {part.number} ({part.address}): {why}" for part, why in zip(parts, reasons, strict=True) if why]
        failed = isinstance(reply, ReplyError) and reply.code not in REFUSALS
        if away and len(away) < len(parts):
            return {"status": "degraded", "latencyMs": latency, "reason": "; ".join(away), **more}
        if silent:
            return {"status": "down", "latencyMs": None, "reason": silent, **more}
        if failed:
            assert isinstance(reply, ReplyError)
            return {"status": "down", "latencyMs": None, "reason": self._store.reason or one_line(reply.code), **more}
        policies = gauges.evicting(info)
        evicts = f"may delete keys: maxmemory-policy {', '.join(map(one_line, policies))}" if policies else ""
        reason = "; ".join(filter(None, (self._store.refusal, evicts)))
        if reason:
            return {"status": "degraded", "latencyMs": latency, "reason": reason, **more}
        return {"status": "up", "latencyMs": latency, **more}


def _shard(part: Part, reason: str) -> dict[str, object]:
    """What is said of a shard; `reason` says why it does not answer, "" when it does."""
    said: dict[str, object] = {"shard": part.number, "address": str(part.address)}
    return {**said, "status": "down", "reason": reason} if reason else {**said, "status": "up"}


def add_health_routes(server: HTTPServer, config: Config, gateway: Draining, store: RedisClient, ask: Ask) -> None:
    """Serve the routes of operators. `ask` has the supervisor answer."""
    for path, route in HealthRoutes(config, gateway, store, ask, server.keys).routes.items():
        server.add("GET", path, route)
