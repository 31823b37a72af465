"""Who may come in: limits, token, origin, and what Redis knows of a revocation; cheap checks first."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Final

from vizora_rt import errors, report
from vizora_rt.app import auth
from vizora_rt.app.auth import Identity
from vizora_rt.app.limits import Budget, Meter
from vizora_rt.config import Config
from vizora_rt.errors import Refusal
from vizora_rt.metrics import Metrics
from vizora_rt.net.claims import Claim, Claims
from vizora_rt.net.timers import Wheel
from vizora_rt.wire.http import Request

Admitted = Callable[[Identity, Claim], None]
Refused = Callable[[Refusal], None]

UNKNOWN_ORGANIZATION: Final = ""

RETRY_AFTER: Final = 5
"""Seconds in `Retry-After` of a refusal that will pass: long enough for a restart, short for a dark screen."""

TOGETHER: Final = 0.005
"""Seconds. Who comes sooner after the last ones waits for as long, and shares with all who do a write to Redis, its
replies and warm caches: of 2,000 handshakes a second each takes 0.6 of the CPU. Who comes alone waits for nobody."""

log = report.logger("admission")


class Admission:
    """One worker's door."""

    def __init__(self, config: Config, metrics: Metrics, wheel: Wheel, claims: Claims) -> None:
        limits = config.limits
        self.draining = False
        self._metrics = metrics
        self._wheel = wheel
        self._claims = claims
        self._verifier = auth.Verifier(config.auth)
        self._origins = config.auth.cors_origins
        self._budget = Budget(limits.handshakes_per_second)
        self._per_token = Meter(limits.connections_per_minute)
        self._per_address = Meter(limits.connections_per_address_per_minute)
        self._max_per_address = limits.connections_per_address
        self._addresses: dict[str, int] = {}
        self.limit = config.max_connections
        self._inside = 0
        self._loop = asyncio.get_running_loop()
        self._arrived: list[tuple[Callable[[], None], Refused]] = []
        self._next = 0.0
        # Of who is refused before it is known whose it is: there from the start, so that no refusal makes a series.
        metrics.organization("ws_connections_total", UNKNOWN_ORGANIZATION, "rejected")

    def admit(self, request: Request, address: str, admitted: Admitted, refused: Refused) -> None:
        """Decide on a native opening handshake; one of the two is called once, perhaps later.

        Whoever is admitted holds a place until `left`.
        """
        self._together(partial(self._knock, request, address, admitted, refused), refused)

    def arrive(self, request: Request, token: str | None, address: str, admitted: Admitted, refused: Refused) -> None:
        """Decide on a client that has its connection and now says who it is: with a token, or the cookie of the
        request that it came with."""
        self._together(partial(self._introduce, request, token, address, admitted, refused), refused)

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
            try:
                decide()
            except Exception as error:
                # A fault with one must not cost the others their turn.
                log.exception("handshake failed", error)
                refused(errors.INTERNAL)

    def _knock(self, request: Request, address: str, admitted: Admitted, refused: Refused) -> None:
        refusal = self.overload(address)
        if refusal is not None:
            refused(refusal)
        else:
            self.enter(request, *auth.token_of(request), address, admitted, refused)

    def overload(self, address: str) -> Refusal | None:
        """Whether somebody who only asks for a connection is refused already."""
        refusal = self._full(address)
        if refusal is None and (wait := self._per_address.take(address, self._wheel.now)):
            refusal = self.limited("connections_per_address_per_minute", errors.RATE_LIMITED, ceil(wait))
        # With the clock of this moment: the wheel's stands still for longer than the budget's burst.
        elif refusal is None and not self._budget.take(now := time.monotonic()):
            refusal = self.limited("handshakes_per_second", errors.OVERLOADED, self._budget.turn(now))
        return refusal and self.reject(refusal, UNKNOWN_ORGANIZATION)

    def _introduce(
        self, request: Request, token: str | None, address: str, admitted: Admitted, refused: Refused
    ) -> None:
        refusal = self._full(address)
        if refusal is not None:
            refused(self.reject(refusal, UNKNOWN_ORGANIZATION))
        elif token is None:
            self.enter(request, request.cookie(auth.COOKIE) or "", True, address, admitted, refused)
        else:
            self.enter(request, token, False, address, admitted, refused)

    def enter(
        self, request: Request, token: str, by_cookie: bool, address: str, admitted: Admitted, refused: Refused
    ) -> None:
        """Decide on a token."""
        identity = self.identify(token, by_cookie)
        if isinstance(identity, Refusal):
            self._budget.give_back()
            refused(self.reject(identity, UNKNOWN_ORGANIZATION))
            return
        refusal = auth.check_origin(request, self._origins, by_cookie)
        if refusal is None:
            self.check(identity, address, admitted, refused)
        else:
            self._budget.give_back()
            refused(self.reject(refusal, identity.organization_id))

    def identify(self, token: str, by_cookie: bool) -> Identity | Refusal:
        """Whose token it is. A cookie is a dashboard's: a browser sends it whoever wrote the page."""
        identity = self._verifier.verify(token, time.time())
        if isinstance(identity, Refusal):
            return identity
        if by_cookie and identity.kind == "device":
            return errors.AUTH_INVALID
        if wait := self._per_token.take(auth.fingerprint(token), self._wheel.now):
            return self.limited("connections_per_minute", errors.RATE_LIMITED, ceil(wait))
        return identity

    def check(self, identity: Identity, address: str, admitted: Admitted, refused: Refused) -> None:
        """Ask Redis, the last and dearest check; a device is claimed in the same write."""
        self._inside += 1
        self._addresses[address] = self._addresses.get(address, 0) + 1

        def checked(claim: Claim | Refusal) -> None:
            if isinstance(claim, Refusal):
                self.left(address)
                refused(self.reject(claim, identity.organization_id))
            else:
                admitted(identity, claim)

        if identity.kind == "device":
            self._claims.claim(identity, checked)
        else:
            self._claims.check_user(identity, checked)

    def left(self, address: str) -> None:
        """A connection that was admitted is gone."""
        self._inside -= 1
        rest = self._addresses[address] - 1
        if rest:
            self._addresses[address] = rest
        else:
            del self._addresses[address]

    def limited(self, limit: str, refusal: Refusal, retry_after: int = 0) -> Refusal:
        """Count that `limit` was met."""
        self._metrics.counter("limits_exceeded_total", limit).value += 1
        return replace(refusal, retry_after=retry_after) if retry_after else refusal

    def reject(self, refusal: Refusal, organization: str) -> Refusal:
        """Count a handshake that was refused. If that will pass, not all come back in the same second."""
        self._metrics.counter("ws_handshakes_rejected_total", refusal.code).value += 1
        self._metrics.organization("ws_connections_total", organization, "rejected").value += 1
        if refusal.report and not refusal.retry_after:  # with a turn of its own it only waits in a queue
            report.issue("handshake refused", refusal.code, "error", organization_id=organization)
        if refusal.retryable and not refusal.retry_after:
            return replace(refusal, retry_after=RETRY_AFTER - 1 + self._budget.turn(time.monotonic()))
        return refusal

    def _full(self, address: str) -> Refusal | None:
        if self.draining:
            return errors.DRAINING
        if self._inside >= self.limit:
            return self.limited("max_connections", errors.OVERLOADED)
        if self._max_per_address and self._addresses.get(address, 0) >= self._max_per_address:
            return self.limited("connections_per_address", errors.RATE_LIMITED)
        return None
