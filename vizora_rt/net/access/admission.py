"""Who may come in: limits, token, origin, and what Redis knows of a revocation; cheap checks first."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Final

from vizora_rt import errors
from vizora_rt.app import auth
from vizora_rt.app.auth import Identity
from vizora_rt.app.limits import KeyedRateLimiter, RateLimiter
from vizora_rt.app.retry_schedule import MEMORY_BYTES, RetrySchedule, key_of
from vizora_rt.config import Config
from vizora_rt.errors import Refusal
from vizora_rt.net.access.handshake_queue import TOGETHER, HandshakeQueue, OnAdmitted, OnQueued
from vizora_rt.net.presence.claim import Grant, OwnershipStore
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry import logs, sentry
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.http import Request

Admitted = Callable[[Identity, Grant], None]
Refused = Callable[[Refusal], None]

UNKNOWN_ORGANIZATION: Final = ""

UNIDENTIFIED_PART: Final = 2
"""Which part of the budget of handshakes those have, in a budget of their own, who only say later who they are. To let
one in costs half of a handshake; one that then shows a token gives its share back."""

RETRY_AFTER: Final = 5
"""Seconds in `Retry-After` of a refusal that will pass: long enough for a restart, short for a dark screen."""

log = logs.logger("admission")


class Admission:
    """One worker's door."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        wheel: Wheel,
        ownership_store: OwnershipStore,
        turns: memoryview | None = None,
    ) -> None:
        """`turns`: the memory of turns that all workers share; without it this worker has its own."""
        limits = config.limits
        self.draining = False
        self._metrics = metrics
        self._wheel = wheel
        self._ownership_store = ownership_store
        self._verifier = auth.Verifier(config.auth)
        self._origins = config.auth.cors_origins
        per_second = limits.handshakes_per_second
        self._budget = RateLimiter(per_second)
        whole = (
            RetrySchedule(turns, per_second * config.workers)
            if turns is not None
            else RetrySchedule(memoryview(bytearray(MEMORY_BYTES)), per_second)
        )
        self._queue = HandshakeQueue(self._budget, whole, per_second, limits.handshake_wait_seconds)
        unidentified = max(1.0, per_second / UNIDENTIFIED_PART) if per_second else 0
        self._unidentified_budget = RateLimiter(unidentified)
        own = RetrySchedule(memoryview(bytearray(MEMORY_BYTES)), unidentified)
        self._unidentified_line = HandshakeQueue(
            self._unidentified_budget, own, unidentified, limits.handshake_wait_seconds
        )
        self._unidentified: dict[str, int] = {}
        self._unidentified_of_one = limits.unidentified_per_address
        self._per_token = KeyedRateLimiter(limits.connections_per_minute)
        self._per_address = KeyedRateLimiter(limits.connections_per_address_per_minute)
        self._max_per_address = limits.connections_per_address
        self._addresses: dict[str, int] = {}
        self.limit = config.max_connections
        self._inside = 0
        self._loop = asyncio.get_running_loop()
        self._arrived: list[tuple[Callable[[], None], Refused]] = []
        self._next = 0.0
        # Of who is refused before it is known whose it is: there from the start, so that no refusal makes a series.
        metrics.organization("ws_connections_total", UNKNOWN_ORGANIZATION, "rejected")

    def admit(self, request: Request, address: str, admitted: Admitted, refused: Refused, waits: OnQueued) -> None:
        """Decide on a native opening handshake; one of the two is called once, perhaps later, and `waits` meanwhile.

        Whoever is admitted holds a place among the connections until `left`.
        """
        self._together(partial(self._admit, request, address, admitted, refused, waits), refused)

    def admit_anonymous(self, address: str, enter: OnAdmitted, refused: Refused, waits: OnQueued) -> None:
        """The same of a client that only asks for a connection, and says later who it is: then it is to `arrive`, or to
        `forgo` when it leaves. It takes nothing from the budget of those who have said it."""
        refusal = self._crowded(address)
        of_one = self._unidentified_of_one
        if refusal is None and of_one and self._unidentified.get(address, 0) >= of_one:
            refusal = self.limited("unidentified_per_address", errors.RATE_LIMITED)
        if refusal is not None:
            refused(self.reject(refusal, UNKNOWN_ORGANIZATION))
            return

        def counted() -> None:
            self._unidentified[address] = self._unidentified.get(address, 0) + 1
            enter()

        limit = "unidentified_per_second"
        self._wait(self._unidentified_line, limit, 0, UNKNOWN_ORGANIZATION, counted, refused, waits)

    def forgo(self, address: str) -> None:
        """A client that had its connection has left, and never said who it was."""
        rest = self._unidentified[address] - 1
        if rest:
            self._unidentified[address] = rest
        else:
            del self._unidentified[address]

    def authenticate(
        self, request: Request, token: str | None, address: str, admitted: Admitted, refused: Refused, waits: OnQueued
    ) -> None:
        """Decide on a client that has its connection and now says who it is: with a token, or the cookie of the
        request that it came with."""
        self.forgo(address)
        self._together(partial(self._authenticate, request, token, address, admitted, refused, waits), refused)

    def _together(self, decide: Callable[[], None], refused: Refused) -> None:
        self._arrived.append((decide, refused))
        if len(self._arrived) == 1:
            ahead = self._next - self._loop.time()
            if ahead > 0:
                self._loop.call_later(ahead, self._decide)
            else:
                self._decide()

    def _decide(self) -> None:
        self._next = self._loop.time() + TOGETHER
        arrived, self._arrived = self._arrived, []
        for decide, refused in arrived:
            self._try(decide, refused)

    def _try(self, decide: Callable[[], None], refused: Refused) -> None:
        try:
            decide()
        except Exception as error:
            # A fault with one must not cost the others their turn.
            log.exception("handshake failed", error)
            refused(errors.INTERNAL)

    def _admit(self, request: Request, address: str, admitted: Admitted, refused: Refused, waits: OnQueued) -> None:
        refusal = self._crowded(address)
        if refusal is None:
            token, by_cookie = auth.token_of(request)
            identity = self.identify(request, token, by_cookie, refused)
            if identity is not None:
                enter = partial(self.enter, identity, token, address, admitted, refused)
                self._wait_known(identity, enter, refused, waits)
        else:
            refused(self.reject(refusal, UNKNOWN_ORGANIZATION))

    def _authenticate(
        self, request: Request, token: str | None, address: str, admitted: Admitted, refused: Refused, waits: OnQueued
    ) -> None:
        by_cookie = token is None
        token = request.cookie(auth.COOKIE) or "" if token is None else token
        identity = self.identify(request, token, by_cookie, refused)
        if identity is None:
            return
        self._unidentified_budget.give_back()
        if self.draining:
            refused(self.reject(errors.DRAINING, identity.organization_id))
        else:
            self._wait_known(identity, partial(self.enter, identity, token, address, admitted, refused), refused, waits)

    def _wait_known(self, identity: Identity, enter: OnAdmitted, refused: Refused, waits: OnQueued) -> None:
        key, organization = key_of(identity.id), identity.organization_id
        self._wait(self._queue, "handshakes_per_second", key, organization, enter, refused, waits)

    def _wait(
        self,
        line: HandshakeQueue,
        limit: str,
        key: int,
        organization: str,
        enter: OnAdmitted,
        refused: Refused,
        waits: OnQueued,
    ) -> None:
        """Have it wait for its turn, unless it is now."""

        def refuse(seconds: int) -> None:
            if self.draining:
                refused(self.reject(errors.DRAINING, organization))
            else:
                refusal = self.limited(limit, errors.OVERLOADED, seconds)
                refused(self.reject(refusal, organization))

        place = line.ask(key, partial(self._try, enter, refused), refuse)
        if place is not None:
            waits(place)

    def identify(self, request: Request, token: str, by_cookie: bool, refused: Refused) -> Identity | None:
        """Whose token it is; None when it was refused. A cookie is a dashboard's: a browser sends it whoever wrote the
        page."""
        identity = self._verifier.verify(token, time.time())
        if isinstance(identity, Refusal) or (by_cookie and identity.kind == "device"):
            refusal = identity if isinstance(identity, Refusal) else errors.AUTH_INVALID
            refused(self.reject(refusal, UNKNOWN_ORGANIZATION))
            return None
        origin = auth.check_origin(request, self._origins, by_cookie)
        if origin is not None:
            refused(self.reject(origin, identity.organization_id))
            return None
        return identity

    def enter(self, identity: Identity, token: str, address: str, admitted: Admitted, refused: Refused) -> None:
        """Somebody is let in, unless its time has passed while it waited, or it comes too often."""
        refusal = self._full(address)
        if refusal is None and (wait := self._per_token.take(auth.fingerprint(token), self._wheel.now)):
            refusal = self.limited("connections_per_minute", errors.RATE_LIMITED, ceil(wait))
        if refusal is None:
            self.check(identity, address, admitted, refused)
        else:
            self._budget.give_back()
            refused(self.reject(refusal, identity.organization_id))

    def check(self, identity: Identity, address: str, admitted: Admitted, refused: Refused) -> None:
        """Ask Redis, the last and dearest check; a device is claimed in the same write."""
        self._inside += 1
        self._addresses[address] = self._addresses.get(address, 0) + 1
        self._queue.asks()

        def checked(grant: Grant | Refusal) -> None:
            self._queue.answered()
            if isinstance(grant, Refusal):
                self.left(address)
                refused(self.reject(grant, identity.organization_id))
            else:
                admitted(identity, grant)

        if identity.kind == "device":
            self._ownership_store.acquire(identity, checked)
        else:
            self._ownership_store.check_user(identity, checked)

    def left(self, address: str) -> None:
        """A connection that was admitted is gone."""
        self._inside -= 1
        rest = self._addresses[address] - 1
        if rest:
            self._addresses[address] = rest
        else:
            del self._addresses[address]

    def connections_of(self, address: str) -> int:
        """How many of this address are in, or being checked."""
        return self._addresses.get(address, 0)

    def limited(self, limit: str, refusal: Refusal, retry_after: int = 0) -> Refusal:
        """Count that `limit` was met."""
        self._metrics.counter("limits_exceeded_total", limit).value += 1
        return replace(refusal, retry_after=retry_after) if retry_after else refusal

    def reject(self, refusal: Refusal, organization: str) -> Refusal:
        """Count a handshake that was refused. If that will pass, not all come back in the same second."""
        self._metrics.counter("ws_handshakes_rejected_total", refusal.code).value += 1
        self._metrics.organization("ws_connections_total", organization, "rejected").value += 1
        if refusal.report and not refusal.retry_after:  # with a turn of its own it only waits in a queue
            sentry.issue("handshake refused", refusal.code, "error", organization_id=organization)
        if refusal.retryable and not refusal.retry_after:
            return replace(refusal, retry_after=RETRY_AFTER - 1 + self._budget.retry_after(time.monotonic()))
        return refusal

    def close(self) -> None:
        """Nobody is let in any more."""
        self.draining = True
        self._queue.clear()
        self._unidentified_line.clear()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return self._queue.length + self._unidentified_line.length

    def _crowded(self, address: str) -> Refusal | None:
        """Whether somebody is refused whoever it is."""
        refusal = self._full(address)
        if refusal is None and (wait := self._per_address.take(address, self._wheel.now)):
            return self.limited("connections_per_address_per_minute", errors.RATE_LIMITED, ceil(wait))
        return refusal

    def _full(self, address: str) -> Refusal | None:
        if self.draining:
            return errors.DRAINING
        if self._inside + self.waiting >= self.limit:
            return self.limited("max_connections", errors.OVERLOADED)
        if self._max_per_address and self._addresses.get(address, 0) >= self._max_per_address:
            return self.limited("connections_per_address", errors.RATE_LIMITED)
        return None
