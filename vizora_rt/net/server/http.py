"""HTTP on the client port: the upgrade at /ws and /socket.io/, and the routes of operators and backends.

A connection serves one request after the other. What a route does may take a while (`Awaitable`); meanwhile nothing
more is read, nor while the client leaves answers unread. Path, method and key are judged before a body is read.
Deadlines are the timer wheel's: a request must be whole 10 s after its first byte, an answer taken and a quiet
connection gone after a minute.

Over 300 lines because one exchange has many ends, and each is here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from time import perf_counter_ns
from typing import Final, NamedTuple, Protocol, cast

from vizora_rt import errors
from vizora_rt.app import auth
from vizora_rt.config import Config
from vizora_rt.errors import Refusal
from vizora_rt.net.access.admission import Refused
from vizora_rt.net.access.handshake_queue import OnAdmitted, OnQueued, Ticket
from vizora_rt.net.server.bounded_reader import BoundedReader
from vizora_rt.net.server.key_guard import Keys
from vizora_rt.net.server.places import Places, Unfinished
from vizora_rt.net.server.responses import LOOPBACK, Answer, Guard, Response, Route, refuse, segments
from vizora_rt.net.server.socketio import Greeting, Host
from vizora_rt.net.server.websocket import CLOSE_SECONDS, Connection, Settle
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry import logs, sentry
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire import http, proxy, socketio
from vizora_rt.wire.http import Request, RequestParser

log = logs.logger("http")

KEEP_ALIVE_SECONDS: Final = 75.0
"""Of a quiet connection. Longer than proxies keep one (nginx and AWS' balancers 60 s): who closes last never meets a
request on its way. Also five of Prometheus' usual scrape intervals."""

LIMITS: Final = {
    errors.HEADERS_TOO_LARGE: "header_bytes",
    errors.TOO_MANY_FIELDS: "header_fields",
    errors.TOO_MANY_CHUNKS: "body_chunks",
    errors.OVERLOADED: "unfinished_bytes",
    errors.URI_TOO_LONG: "header_bytes",
    errors.CONTENT_TOO_LARGE: "body_bytes",
    errors.REQUEST_TIMEOUT: "handshake_seconds",
}
"""Which limit a request met that was refused before it was whole."""

UNMATCHED: Final = "unmatched"

Send = Callable[[Request, str, Response], None]
"""Sends the answer of a request, with its route pattern."""

NATIVE: Final = "/ws"
SOCKETIO: Final = "/socket.io/"

NO_ISSUE: Final = frozenset({"/health", "/health/live", "/health/ready", NATIVE, SOCKETIO})
"""A 503 of /health is an answer, and no error of ours. Handshakes that are refused are reported by their cause."""

METHODS: Final = (("Allow", "GET, HEAD, POST, DELETE, OPTIONS"),)
"""What `OPTIONS *` is answered with: what the server as a whole can do (RFC 9110 section 9.3.7)."""


class RoutedEndpoint(NamedTuple):
    """A route, and what is asked before a body is read. A request without a guard needs no body: that is read past."""

    route: Route
    guard: Guard | None = None


ELSEWHERE: Final = RoutedEndpoint(lambda request, sender: refuse(errors.INTERNAL))
"""Of the paths of handshakes, which no route answers."""


class HandshakeHandler(Host, Protocol):
    """Who decides on opening handshakes: the gateway."""

    @property
    def connections(self) -> int: ...
    @property
    def draining(self) -> bool: ...
    @property
    def leaving(self) -> bool: ...

    def connections_of(self, address: str) -> int: ...
    def admit(self, request: Request, address: str, settle: Settle, waits: OnQueued) -> None: ...
    def admit_anonymous(self, address: str, enter: OnAdmitted, refused: Refused, waits: OnQueued) -> None: ...


class HTTPServer:
    """The routes, and what all exchanges of a worker share."""

    def __init__(self, config: Config, gateway: HandshakeHandler, metrics: Metrics, wheel: Wheel) -> None:
        self.config = config
        self.gateway = gateway
        self.metrics = metrics
        self.wheel = wheel
        self.answering: set[asyncio.Task[None]] = set()
        """Requests whose answer takes a while. What was begun is finished, also when the client has left."""
        self.places = Places(
            config.max_connections,
            config.limits.connections_per_address,
            lambda: gateway.connections,
            gateway.connections_of,
            self.limited,
        )
        self.unfinished = Unfinished(config.limits.body_bytes)
        self.proxies = proxy.networks(config.server.trusted_proxies)
        self.keys = Keys(metrics, wheel)
        self._routes: dict[str, dict[str, RoutedEndpoint]] = {}
        self._patterns: dict[tuple[str, ...], str] = {}
        self._second = 0
        self._date = ""
        self.add("OPTIONS", "*", lambda request, sender: Response(204, headers=METHODS))

    @property
    def exchanges(self) -> int:
        """How many connections are no client's, or not yet."""
        return len(self.places)

    def add(self, method: str, pattern: str, route: Route, guard: Guard | None = None) -> None:
        """Take another route. In a pattern the second part is a placeholder: `/devices/{id}/plays`.

        `guard` judges a request by its head. A body is only kept behind one.
        """
        self._routes.setdefault(pattern, {})[method] = RoutedEndpoint(route, guard)
        parts = pattern.split("/")[1:]
        if len(parts) > 1 and parts[1].startswith("{"):
            self._patterns[(parts[0], *parts[2:])] = pattern

    def exchange(self) -> "Exchange":
        """The protocol of a new TCP connection."""
        return Exchange(self)

    def upgrades(self, request: Request) -> bool:
        """Whether WebSocket is spoken there."""
        return request.path == NATIVE

    def pattern(self, request: Request) -> str:
        """The route that a request is for."""
        if request.path in socketio.PATHS:
            return SOCKETIO
        if request.path in self._routes or self.upgrades(request):
            return request.path
        parts = segments(request)
        if len(parts) < 2 or not parts[1]:
            return UNMATCHED
        return self._patterns.get((parts[0], *parts[2:]), UNMATCHED)

    def date(self) -> str:
        """Now, as the field Date says it; written once a second."""
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        return self._date

    def find(self, request: Request, exchange: "Exchange") -> tuple[str, RoutedEndpoint | Answer]:
        """The route pattern, and the route or a refusal: all that the head tells."""
        path = self.pattern(request)
        if path in (NATIVE, SOCKETIO):
            return path, ELSEWHERE
        methods = self._routes.get(path)
        if methods is None:
            return path, refuse(errors.NOT_FOUND)
        endpoint = methods.get("GET" if request.method == "HEAD" else request.method)
        if endpoint is None:
            allowed = ", ".join((*methods, "HEAD") if "GET" in methods else methods)
            return path, refuse(errors.METHOD_NOT_ALLOWED, allowed)
        refusal = endpoint.guard(request, exchange) if endpoint.guard is not None else None
        return path, endpoint if refusal is None else refusal

    def count(self, method: str, path: str, status: int, ns: int) -> None:
        known = self.metrics.method(method)
        self.metrics.counter("http_requests_total", known, path, str(status)).value += 1
        self.metrics.timer("http_request_duration_seconds", known, path).observe(ns)
        if status > 500 and status != errors.HTTP_VERSION.status and path not in NO_ISSUE:
            # A 500 is reported as what was raised, a version that we do not speak is the client's.
            sentry.issue("request failed", str(status), "error", method=known, path=path, status=status)

    def greeted(self, greeting: Greeting) -> None:
        """A connection that was upgraded for a greeting is somebody's now, or over."""
        self.places.leave(greeting)
        if greeting.closed_by is not None:
            self.metrics.counter("ws_disconnects_total", greeting.closed_by.name).value += 1

    def limited(self, limit: str) -> None:
        """Count that `limit` was met."""
        self.metrics.counter("limits_exceeded_total", limit).value += 1


class Exchange(BoundedReader):
    """One TCP connection until it is upgraded or ends."""

    __slots__ = (
        "_busy",
        "_deadline",
        "_due",
        "_ended",
        "_held",
        "_judged",
        "_known",
        "_parser",
        "_preface",
        "_server",
        "_serving",
        "_stalled",
        "_started",
        "_task",
        "_ticket",
        "address",
        "counted",
        "proxied",
        "transport",
    )

    def __init__(self, server: HTTPServer) -> None:
        self._server = server
        self._parser: RequestParser | None = None
        self._ticket: Ticket | None = None
        """Its place in the line of handshakes, while it waits there."""
        self._busy = False
        self._ended = False
        """Whether the client has said that it sends no more."""
        self._judged = False
        """Whether the head of the request that comes in was found right."""
        self._held = 0
        """Bytes that are kept for it, as they were counted."""
        self._known = False
        """Whether they are those of a caller with the key."""
        self._serving = 0
        """Bytes of the body that is being served."""
        self._stalled = False
        self._deadline = 0.0
        self._due = 0.0
        self._started = 0
        self._task: asyncio.Task[None] | None = None
        self.address = ""
        self.counted = ""
        self.proxied = False
        """Whether a proxy said with the PROXY protocol whose connection it is; `address` is then that one's."""
        self._preface: bytes | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if peer else ""
        trusted = proxy.trusts(server.proxies, self.address)
        self.counted = "" if trusted else self.address  # a proxy stands for many
        if not server.places.enter(self):
            transport, self.transport = self.transport, None
            transport.abort()
            return
        if server.config.server.proxy_protocol and trusted:
            self._preface = b""
        limits = server.config.limits
        self._parser = RequestParser(limits.header_bytes, limits.body_bytes)
        self._expect(limits.handshake_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()
        if self._ticket is not None:
            self._ticket.leave()
            self._ticket = None

    def eof_received(self) -> bool:
        """The client sends no more. True: it is still answered, and the connection closed after that."""
        parser = self._parser
        if parser is None:
            return False
        if self._task is not None or parser.rest or parser.more:
            self._ended = True
            return True
        if parser.started:
            self._reject(errors.BAD_REQUEST)  # RFC 9112 section 8: it never becomes whole
        return False

    def pause_writing(self) -> None:
        # Who does not read answers may not ask for more.
        self._stalled = True
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._stalled = False
        if self._parser is not None:
            self._go_on()
        elif self.transport is not None:
            self.transport.resume_reading()

    @property
    def busy(self) -> bool:
        """Whether it waits for an answer."""
        return self._busy

    def give_way(self) -> None:
        """Its place is needed for another: nothing is under way."""
        transport = self.transport
        self._left()
        if transport is not None:
            transport.abort()

    def _left(self) -> None:
        if self.transport is not None:
            self.transport = None
            self._parser = None
            if self._task is None:  # else it counts until its answer is done
                self._free()

    def _free(self) -> None:
        """It takes no place any more, and no memory."""
        self._serving = 0
        self._hold()
        self._server.places.leave(self)

    def _hold(self) -> bool:
        """Count what is kept for this connection; False when that is more than there is room for."""
        parser = self._parser
        held = self._serving + (parser.held if parser is not None else 0)
        more = held - self._held
        if not more:
            return True
        self._held = held
        return self._server.unfinished.change(self._known, more) or more < 0

    def _keep(self) -> None:
        """Keep what has come behind a request until that is answered; if it is too much, the connection ends."""
        if not self._hold() and self.transport is not None:
            self._server.limited("unfinished_bytes")
            self.transport.abort()

    def _know(self, known: bool) -> None:
        """From now on what is kept counts as that of a caller with the key, or not so."""
        if known is not self._known:
            self._server.unfinished.change(self._known, -self._held)
            self._server.unfinished.change(known, self._held)
            self._known = known

    def _expect(self, seconds: float) -> None:
        """What comes next must have come in `seconds`."""
        now = self._server.wheel.now
        self._deadline = now + seconds
        if not self._due or self._deadline < self._due:
            self._due = self._deadline
            self._server.wheel.add(self, seconds)

    def on_timer(self, now: float) -> float | None:
        if self.transport is None or now < self._due:
            return None  # gone, upgraded, or an entry of an earlier deadline took over
        self._due = 0.0
        if self._busy:
            self._expect(self._server.config.limits.handshake_seconds)
        elif now < self._deadline:
            self._expect(self._deadline - now)
        elif self._parser is None or self.transport.get_write_buffer_size():
            self.transport.abort()  # it takes neither our answer nor our end
        elif self._parser.started:
            self._reject(errors.REQUEST_TIMEOUT)
        else:
            if not self._started:
                self._server.limited("handshake_seconds")  # not a word since it connected
            self.transport.close()
        return None

    def data_received(self, data: bytes) -> None:
        parser, transport = self._parser, self.transport
        if parser is None or transport is None:
            return
        if self._preface is not None:
            data = self._unwrap(data)
            if not data:
                return
        if self._busy:
            # Kept for its turn; reading is stopped only for who sends much, two system calls less for all others.
            parser.rest += data
            if len(parser.rest) > self._server.config.limits.header_bytes:
                transport.pause_reading()
            self._keep()
            return
        if not parser.started:
            self._expect(self._server.config.limits.handshake_seconds)
        outcome = parser.feed(data)
        if outcome is None:
            if parser.request is None or self._judged or self._judge(parser, parser.request):
                self._await_more(parser, transport)
            return
        self._judged = False
        self._started = perf_counter_ns()
        if isinstance(outcome, Refusal):
            self._reject(outcome)
        elif self._ended and (outcome.path in socketio.PATHS or self._server.upgrades(outcome)):
            transport.close()  # it would never say a word there
        elif outcome.path in socketio.PATHS:
            self._greet(outcome)
        elif self._server.upgrades(outcome):
            self._upgrade(outcome)
        else:
            self._serve(outcome)

    def _judge(self, parser: RequestParser, request: Request) -> bool:
        """By its head, before its body is read: whether that may come. Else it is refused, and the connection ends."""
        path, found = self._server.find(request, self)
        if isinstance(found, RoutedEndpoint):
            self._judged = True
            if found.guard is None:
                parser.discard_body()
            else:
                self._know(True)
            return True
        self._started = perf_counter_ns()
        if isinstance(found, Response):
            self._send_last(request, path, found)
        elif self.transport is not None:
            self.transport.pause_reading()
            self._begin(request, path, found, self._send_last)
        return False

    def _await_more(self, parser: RequestParser, transport: asyncio.Transport) -> None:
        """A request is not whole."""
        if not self._hold():
            self._reject(errors.OVERLOADED)
        elif parser.more:
            transport.pause_reading()
            self._server.gateway.turns.add(self)
        elif self._ended:
            self._reject(errors.BAD_REQUEST)
        elif parser.interim:
            transport.write(parser.interim)

    def take_share(self) -> bool:
        """Go on with what was read. Called by the queue of the turn, after others have had their share."""
        parser = self._parser
        if parser is None or not parser.more:
            self._go_on()
        else:
            self.data_received(b"")
            self.read_on()
        return False

    def read_on(self) -> None:
        """Read again, unless a request waits for its turn, or much waits for an answer: `_go_on` does so after that."""
        parser = self._parser
        room = self._server.config.limits.header_bytes if self._busy else 0
        waits = parser is not None and (len(parser.rest) > room or parser.more)
        if self.transport is not None and not self._stalled and not waits:
            self.transport.resume_reading()

    def _unwrap(self, data: bytes) -> bytes:
        """Take the header of the PROXY protocol off what a proxy sends first; what is left of `data`."""
        assert self._preface is not None
        self._preface += data
        header = proxy.parse_proxy(self._preface)
        if header is None:
            return b""
        data, self._preface = self._preface, None
        if isinstance(header, Refusal):
            if self.address.startswith(LOOPBACK):
                self._server.places.counts_for(self, self.address)
                return data  # no proxy: somebody on this machine, whose request it is
            self._reject(header)
            return b""
        self.proxied = True
        if header.address:
            self.address = header.address
            if not self._server.places.counts_for(self, header.address):
                self.give_way()
                return b""
        return data[header.consumed :]

    def client(self, request: Request) -> str:
        """The address of whoever sent `request`, behind however many proxies of ours."""
        proxies = self._server.proxies
        return proxy.client_address(self.address, request.headers, proxies) if proxies else self.address

    def _reject(self, refusal: Refusal) -> None:
        """Refuse what is no whole request. What its head says of it is known where that was whole."""
        request = self._parser.request if self._parser is not None else None
        method, path = (request.method, self._server.pattern(request)) if request is not None else ("other", UNMATCHED)
        self._server.count(method, path, refusal.status, 0)
        if refusal in LIMITS:
            self._server.limited(LIMITS[refusal])
        self._leave(refusal)

    def _leave(self, refusal: Refusal) -> None:
        """A refusal after which the connection ends."""
        self._end(refuse(refusal))

    def _end(self, answer: Response, head: bool = False) -> None:
        """The last answer.

        More of what was refused may be on its way. To close with it unread is a reset, which takes the answer away
        from a client that has not read it yet (RFC 9112 section 9.6): read on until it has seen our end.
        """
        transport = self.transport
        if transport is not None:
            date = self._server.date()
            transport.write(
                http.response(answer.status, answer.body, answer.content_type, answer.headers, False, head, date)
            )
            transport.write_eof()
            self._parser = None
            self._busy = False
            self._serving = 0
            self._hold()
            self._expect(CLOSE_SECONDS)
            if not self._stalled:
                transport.resume_reading()

    # The opening handshake

    def _upgrade(self, request: Request) -> None:
        accept, subprotocol = http.check_upgrade(request), auth.choose_subprotocol(request)
        if isinstance(accept, Refusal):
            self._send(request, NATIVE, refuse(accept, "GET"))
            return
        if subprotocol is None:
            details = {"Sec-WebSocket-Protocol": f"offer {auth.SUBPROTOCOL} beside the token"}
            self._send(request, NATIVE, refuse(errors.BAD_REQUEST, details=details))
            return
        self._busy = True

        def settle(outcome: Connection | Refusal) -> None:
            transport, parser = self.transport, self._parser
            took = perf_counter_ns() - self._started - (self._ticket.waited if self._ticket is not None else 0)
            self._ticket = None
            if transport is None or parser is None:
                return
            if isinstance(outcome, Refusal):
                sentry.traced(sentry.HANDSHAKE, NATIVE, took, outcome.status)
                self._turn_away(NATIVE, outcome, took)
                return
            rest = parser.rest
            self._left()
            outcome.attach(transport, http.upgrade_response(accept, subprotocol or None), rest)
            self._server.gateway.handshaken(took, NATIVE)

        self._server.gateway.admit(request, self.client(request), settle, self._on_queued)

    def _greet(self, request: Request) -> None:
        """Upgrade a Socket.IO client, which then says who it is."""
        server = self._server
        why = (request.param("EIO"), request.param("transport"), request.param("sid"), request.upgrade)
        problem = socketio.handshake_error(*why)
        accept = http.check_upgrade(request)
        if problem is not None or isinstance(accept, Refusal):
            answer = Response(400, problem) if problem is not None else refuse(cast("Refusal", accept), "GET")
            self._send(request, SOCKETIO, answer)
            return
        self._busy = True
        address, subprotocol = self.client(request), auth.first_subprotocol(request)

        def enter() -> None:
            transport, parser = self.transport, self._parser
            self._ticket = None
            if transport is None or parser is None:
                server.gateway.forgo(address)
            else:
                rest = parser.rest
                greeting = Greeting(server, request, address)
                self.transport = self._parser = None
                self._hold()
                server.places.replace(self, greeting)
                greeting.attach(transport, http.upgrade_response(accept, subprotocol or None), rest)

        def refused(refusal: Refusal) -> None:
            waited = self._ticket.waited if self._ticket is not None else 0
            self._turn_away(SOCKETIO, refusal, perf_counter_ns() - self._started - waited)

        server.gateway.admit_anonymous(address, enter, refused, self._on_queued)

    def _turn_away(self, path: str, refusal: Refusal, ns: int) -> None:
        """Refuse a handshake: an answer of HTTP, and counted as one."""
        self._ticket = None
        if self.transport is not None:
            self._server.count("GET", path, refusal.status, ns)
            self._leave(refusal)

    def _on_queued(self, place: Ticket) -> None:
        """It stands in the line of handshakes."""
        self._ticket = place
        if self.transport is None:
            place.leave()

    # Routes

    def _serve(self, request: Request) -> None:
        server = self._server
        path, found = server.find(request, self)
        if isinstance(found, RoutedEndpoint):
            found = self._call(request, path, found)
        if isinstance(found, Response):
            took = perf_counter_ns() - self._started
            self._send(request, path, found)
            sentry.traced(sentry.REQUEST, f"{server.metrics.method(request.method)} {path}", took, found.status)
        else:
            self._begin(request, path, found, self._send)

    def _call(self, request: Request, path: str, endpoint: RoutedEndpoint) -> Answer:
        """What the route answers, if there is room for the body until it has."""
        if endpoint.guard is None:
            request.body = b""
        elif request.body:
            self._know(True)
            self._serving = len(request.body)
            if not self._hold():
                self._server.limited("unfinished_bytes")
                return refuse(errors.OVERLOADED)
        try:
            return endpoint.route(request, self)
        except Exception as error:
            log.exception("route failed", error, path=path)
            return refuse(errors.INTERNAL)

    def _begin(self, request: Request, path: str, answer: Awaitable[Response], send: Send) -> None:
        self._busy = True
        self._task = asyncio.ensure_future(self._await_answer(request, path, answer, send))
        self._server.answering.add(self._task)
        self._keep()

    async def _await_answer(self, request: Request, path: str, answer: Awaitable[Response], send: Send) -> None:
        with sentry.Trace(sentry.REQUEST, f"{self._server.metrics.method(request.method)} {path}") as trace:
            try:
                response = await answer
            except Exception as error:
                log.exception("route failed", error, path=path)
                response = refuse(errors.INTERNAL)
            trace.status = response.status
        task, self._task = self._task, None
        if task is not None:
            self._server.answering.discard(task)
        if self.transport is None:
            self._free()
        send(request, path, response)

    def _send_last(self, request: Request, path: str, answer: Response) -> None:
        """Answer a request whose body is not awaited. Where it ends is not known, so the connection ends."""
        self._server.count(request.method, path, answer.status, perf_counter_ns() - self._started - answer.waited)
        self._end(answer, request.method == "HEAD")

    def _send(self, request: Request, path: str, answer: Response) -> None:
        """Answer, then go on with what has come meanwhile."""
        transport, parser = self.transport, self._parser
        server = self._server
        server.count(request.method, path, answer.status, perf_counter_ns() - self._started - answer.waited)
        if transport is None or parser is None:
            return
        last = self._ended and not parser.rest
        keep_alive = request.keep_alive and not server.gateway.leaving and not last
        head = request.method == "HEAD"
        output = http.response(
            answer.status, answer.body, answer.content_type, answer.headers, keep_alive, head, server.date()
        )
        self._busy = False
        self._serving = 0
        self._hold()
        self._know(False)
        server.places.was_active(self)
        self._expect(KEEP_ALIVE_SECONDS)
        transport.write(output)
        if not keep_alive:
            self._parser = None
            transport.close()
        elif parser.rest:
            # In its turn, not deeper in the stack; meanwhile nothing newer may overtake it.
            transport.pause_reading()
            server.gateway.turns.add(self)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Read the next request, which may have come already, unless the client has yet to take an answer."""
        transport, parser = self.transport, self._parser
        if transport is None or parser is None or self._busy or self._stalled:
            return
        rest, parser.rest = parser.rest, b""
        self._hold()
        if rest:
            self.data_received(rest)
        self.read_on()  # only now: of what was read a request may have to be answered first
