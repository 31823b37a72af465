"""Places for connections of a worker: each takes one from its accept on, whether it says a word or not.

How many there are, how many of one address, who gives way when all are taken, and how many bytes are kept of requests
that are not whole yet or not answered.
"""

from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

SPARE: Final = 100
"""Beyond what clients may have, of all and of one address: half of the descriptor reserve. For health checks and
scrapes at the limit, and so that who is refused is told why."""

LOOKED_AT: Final = 64
"""Of the places that were quiet for longest, when somebody has to give way: some 10 us."""

UNFINISHED_BYTES: Final = 64 * 1024 * 1024
"""Of requests that are not whole or not answered: 64 bodies or 4,096 heads of the largest size at a time. Kept twice:
those of callers with the key have room of their own."""


class Guest(Protocol):
    """A connection that is not known to be a client's yet."""

    counted: str
    """The address that it counts for; empty for a proxy, which stands for many."""

    @property
    def busy(self) -> bool:
        """Whether it waits for us, and not we for it."""

    def give_way(self) -> None:
        """End at once, and leave."""


class Places:
    """Those of one worker. `connections` and `connections_of` an address: how many clients were admitted."""

    def __init__(
        self,
        most: int,
        per_address: int,
        connections: Callable[[], int],
        connections_of: Callable[[str], int],
        limited: Callable[[str], None],
    ) -> None:
        """`most` clients are admitted, `per_address` of them of one address, 0 for any number."""
        self._most = most + SPARE
        self._per_address = per_address
        self._connections = connections
        self._connections_of = connections_of
        self._limited = limited
        self._guests: dict[Guest, None] = {}
        self._of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._guests)

    def of(self, address: str) -> int:
        """How many guests an address has."""
        return self._of.get(address, 0)

    def enter(self, guest: Guest) -> bool:
        """Take a place; False when there is none for this address."""
        if not self._allows(guest.counted):
            return False
        if len(self._guests) + self._connections() >= self._most:
            self._limited("max_connections")
            if not self._make_room(guest.counted):
                return False
        self._take(guest)
        return True

    def counts_for(self, guest: Guest, address: str) -> bool:
        """It speaks for this address, as is known by now; False when that has too many."""
        self.leave(guest)
        guest.counted = address
        self._take(guest)
        return self._allows(address, 1)

    def replace(self, guest: Guest, successor: Guest) -> None:
        """The same connection goes on as another guest."""
        self.leave(guest)
        self._take(successor)

    def was_active(self, guest: Guest) -> None:
        """It is the last one now to give way."""
        del self._guests[guest]
        self._guests[guest] = None

    def leave(self, guest: Guest) -> None:
        """Its place is free."""
        del self._guests[guest]
        rest = self._of.get(guest.counted, 0) - 1
        if rest > 0:
            self._of[guest.counted] = rest
        else:
            self._of.pop(guest.counted, None)

    def _take(self, guest: Guest) -> None:
        self._guests[guest] = None
        if guest.counted:
            self._of[guest.counted] = self.of(guest.counted) + 1

    def _allows(self, address: str, already: int = 0) -> bool:
        if not self._per_address or not address:
            return True
        if self.of(address) - already + self._connections_of(address) < self._per_address + SPARE:
            return True
        self._limited("connections_per_address")
        return False

    def _make_room(self, address: str) -> bool:
        """All places are taken: who was quiet for longest of an address that has more than this one gives way to it."""
        own = max(self.of(address), 1)
        for guest in islice(self._guests, LOOKED_AT):
            if not guest.busy and self.of(guest.counted) > own:
                guest.give_way()
                return True
        return False


class Unfinished:
    """Bytes that are kept of unfinished requests, of callers that have shown the key and of all others."""

    __slots__ = ("known", "limit", "unknown")

    def __init__(self, body_limit: int) -> None:
        self.limit = max(UNFINISHED_BYTES, 2 * body_limit)
        self.known = 0
        self.unknown = 0

    def change(self, known: bool, by: int) -> bool:
        """Keep so many more, or fewer. False when that is too much."""
        if known:
            self.known += by
            return self.known <= self.limit
        self.unknown += by
        return self.unknown <= self.limit
