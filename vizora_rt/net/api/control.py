"""The control API: what backends ask of the gateway over HTTP. Guard, body, idempotency and audit of every call.

A call is refused before anything is done, or it is done and one line of the log says so. What the calls do is in
`control_routes`.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl

from vizora_rt import errors
from vizora_rt.app.auth import valid_id
from vizora_rt.errors import Refusal
from vizora_rt.net.redis.client import CONNECTION_LOST, RedisClient
from vizora_rt.net.server.http import HTTPServer
from vizora_rt.net.server.responses import Answer, Response, Sender, refuse, segments
from vizora_rt.telemetry import logs
from vizora_rt.wire import bodies, resp
from vizora_rt.wire.http import Request
from vizora_rt.wire.payloads import MAX_DETAILS, Invalid
from vizora_rt.wire.resp import ReplyError

log = logs.logger("control")

KEY_HEADER: Final = "x-internal-api-key"
IDEMPOTENCY_HEADER: Final = "idempotency-key"

KEPT_SECONDS: Final = 86_400
CALL_SECONDS: Final = 5.0
"""The longest that a call takes: 4 s for the device's ack, the rest for Redis. A worker that ends waits so long."""
UNDER_WAY_SECONDS: Final = 10
"""A worker that dies in a call leaves its key locked for so long: twice the longest call."""


class RefusedError(Exception):
    """A call cannot be done. Caught where it is answered."""

    def __init__(self, refusal: Refusal, **more: Any) -> None:
        self.refusal = refusal
        self.more = more


@dataclass(slots=True)
class Call:
    """One call: its body as its schema, its query, the id in its path, and what the audit line shall name."""

    request: Request
    body: Any
    query: Mapping[str, str]
    argument: str
    key: str
    fingerprint: str
    audit: dict[str, object] = field(default_factory=dict)

    @property
    def derived_id(self) -> str:
        """An id that a repetition of the call has too; empty without an idempotency key."""
        return hashlib.sha256(f"{self.key} {self.fingerprint}".encode()).hexdigest()[:32] if self.key else ""


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """What a route takes: a body with a `schema`, parameters of the `query`, which stand for fields of the schema where
    there is one. A call that `changes` something is audited."""

    pattern: str
    handler: Handler
    schema: type[Any] | None
    query: tuple[str, ...]
    changes: bool


class AwaitableRedis:
    """The store for calls: replies are awaited, and what is no answer ends the call."""

    def __init__(self, store: RedisClient) -> None:
        self._client = store

    async def ask(self, *commands: bytes) -> list[Any]:
        """The replies to commands that are sent together. Raises RefusedError when one of them is an error."""
        return [_check(reply) for reply in await self._ask(commands)]

    async def ask_in_part(self, *commands: bytes) -> list[Any]:
        """The same, but errors are in the list, as `ReplyError`, unless all are: in a cluster one shard may be away."""
        replies = await self._ask(commands)
        if replies and all(isinstance(reply, ReplyError) for reply in replies):
            raise RefusedError(errors.STORE_UNAVAILABLE)
        return replies

    async def _ask(self, commands: tuple[bytes, ...]) -> list[Any]:
        submit = self._client.submit
        return [await each for each in [self._begin(partial(submit, "other", command)) for command in commands]]

    async def publish(self, channel: str, text: bytes) -> Any:
        """Ring a doorbell; how many heard it."""
        return _check(await self._begin(partial(self._client.publish, channel, text)))

    async def script(self, name: str, keys: tuple[str, ...], args: tuple[bytes | str | int, ...]) -> Any:
        """The reply of a registered script."""
        return _check(await self._begin(partial(self._client.eval, name, keys, args)))

    def _begin(self, submit: Callable[[Callable[[object], None]], bool]) -> asyncio.Future[Any]:
        """The reply to come. An error is its result: nobody may look at the second of two that fail."""
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_reply(reply: object) -> None:
            if not answered.done():  # else the call was ended meanwhile
                answered.set_result(reply)

        if not submit(on_reply):
            on_reply(CONNECTION_LOST)
        return answered


def _check(reply: Any) -> Any:
    if isinstance(reply, ReplyError):
        raise RefusedError(errors.STORE_UNAVAILABLE)
    return reply


class Control:
    """The calls of one worker."""

    def __init__(self, secret: str, server: HTTPServer, store: RedisClient) -> None:
        self._secret = secret
        self._keys = server.keys
        self._server = server
        self._store = store
        self._under_way: set[asyncio.Task[Response]] = set()
        self._closing = False
        self.redis = AwaitableRedis(store)

    def add(
        self,
        method: str,
        pattern: str,
        handler: Handler,
        schema: type[Any] | None = None,
        query: tuple[str, ...] = (),
    ) -> None:
        """Take a route. With a schema there must be a body, or, with a `query` too, one of the two."""
        kind = ApiRoute(pattern, handler, schema, query, method != "GET")

        def route(request: Request, sender: Sender) -> Response | Awaitable[Response]:
            if self._closing:
                return refuse(errors.DRAINING)  # before anything is done: the caller may go elsewhere with it
            return self._begin(request, sender, kind)

        self._server.add(method, pattern, route, self._guard)

    async def close(self, seconds: float = CALL_SECONDS) -> None:
        """Begin no more calls, and wait up to `seconds` for those under way. They leave their caller an answer, their
        line in the log, and their idempotency key in order."""
        self._closing = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)

    async def _begin(self, request: Request, sender: Sender, kind: ApiRoute) -> Response:
        """What was begun is finished, whether its caller waits for the answer or has gone."""
        task = asyncio.get_running_loop().create_task(self._serve(request, sender, kind))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    def _guard(self, request: Request, sender: Sender) -> Answer | None:
        """The key is asked for before a body is read."""
        given = request.headers.get(KEY_HEADER, "")
        if self._keys.same(given, self._secret):
            return None
        if not given:
            return refuse(errors.API_KEY_INVALID)
        path = self._server.pattern(request)
        return self._keys.refuse_wrong("internal", sender.client(request), path, errors.API_KEY_INVALID)

    async def _serve(self, request: Request, sender: Sender, kind: ApiRoute) -> Response:
        call: Call | None = None
        address = sender.client(request)
        try:
            call = self._call(request, kind)
            if not self._store.available:
                raise RefusedError(errors.STORE_UNAVAILABLE)
            response = await (self._once(call, kind.handler) if call.key and kind.changes else kind.handler(call))
        except RefusedError as refused:
            response = refuse(refused.refusal, **refused.more)
        except Exception as error:
            log.exception("call failed", error, path=kind.pattern)
            response = refuse(errors.INTERNAL)
        if kind.changes and call is not None:
            log.info(
                "audit",
                method=request.method,
                path=kind.pattern,
                status=response.status,
                address=address,
                **({"idempotency_key": call.key} if call.key else {}),
                **call.audit,
            )
        return response

    def _call(self, request: Request, kind: ApiRoute) -> Call:
        query = parameters(request.query, kind.query)
        if kind.schema is None:
            body = bodies.read(bodies.Nothing, request.body or b"{}")
        elif kind.query:
            body = bodies.read(kind.schema, request.body or b"{}", query)
        else:
            body = bodies.read(kind.schema, request.body)
        if isinstance(body, Invalid):
            raise RefusedError(errors.INVALID_BODY, details=body.details)
        argument = segments(request)[1] if "{" in kind.pattern else ""
        if argument and not valid_id(argument):
            raise RefusedError(errors.NOT_FOUND)
        key = request.headers.get(IDEMPOTENCY_HEADER, "")
        if key and not valid_id(key):
            why = "expected 1 to 128 printable characters without space or braces"
            raise RefusedError(errors.INVALID_BODY, details={"Idempotency-Key": why})
        parts = (request.method.encode(), request.path.encode(), request.query.encode(), request.body)
        return Call(request, body, query, argument, key, hashlib.sha256(b"\n".join(parts)).hexdigest())

    async def _once(self, call: Call, handler: Handler) -> Response:
        """Do a call once: the same key and the same request get the same answer for a day."""
        name = f"vz:{{i:{call.key}}}"
        before = await self.redis.script("idempotency", (name,), (call.fingerprint, UNDER_WAY_SECONDS))
        if before:
            request, answer = before
            if request.decode() != call.fingerprint:
                raise RefusedError(errors.KEY_REUSED)
            if answer is None:
                raise RefusedError(errors.IN_PROGRESS)
            call.audit = {"repeated": True}
            status, _, body = answer.partition(b"\n")
            return Response(int(status), body)
        try:
            response = await handler(call)
        except RefusedError as refused:
            response = refuse(refused.refusal, **refused.more)
        except Exception:
            self._store.submit("other", resp.pack("DEL", name))
            raise
        if response.status >= 500 or response.status == errors.LEDGER_FULL.status:
            # It may be tried again, with the same key.
            self._store.submit("other", resp.pack("DEL", name))
        else:
            answer = b"%d\n%b" % (response.status, response.body)
            self._store.submit("other", resp.pack("HSET", name, "answer", answer))
            self._store.submit("expire", resp.pack("EXPIRE", name, KEPT_SECONDS))
        return response


def parameters(query: str, known: tuple[str, ...]) -> Mapping[str, str]:
    """The parameters of a query. Raises RefusedError when one is not `known`, or is there twice."""
    found: dict[str, str] = {}
    details: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            details[name[: bodies.SHOWN_NAME]] = f"unknown: expected {', '.join(known) or 'no query'}"
        elif name in found:
            details[name] = "is there more than once"
        found[name] = value
        if len(details) == MAX_DETAILS:
            break
    if details:
        raise RefusedError(errors.INVALID_BODY, details=details)
    return found


def now_ms() -> int:
    return time.time_ns() // 1_000_000
