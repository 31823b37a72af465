"""Places: who has one, who gets none, and who gives way to whom."""

from collections import Counter

import pytest

from vizora_rt.net.server import places
from vizora_rt.net.server.places import LOOKED_AT, SPARE, UNFINISHED_BYTES, Places, Unfinished


class Guest:
    def __init__(self, room: "Room", address: str, busy: bool = False) -> None:
        self.counted = address
        self.busy = busy
        self._room = room

    def give_way(self) -> None:
        self._room.places.leave(self)
        self._room.left.append(self)


class Room:
    """Places and what they are told."""

    def __init__(self, most: int = 10, per_address: int = 0) -> None:
        self.clients: Counter[str] = Counter()
        self.limited: Counter[str] = Counter()
        self.left: list[Guest] = []
        self.places = Places(
            most - SPARE,
            per_address - SPARE if per_address else 0,
            self.clients.total,
            lambda address: self.clients[address],
            lambda limit: self.limited.update([limit]),
        )

    def enter(self, address: str, count: int = 1, busy: bool = False) -> list[Guest]:
        guests = [Guest(self, address, busy) for _ in range(count)]
        return [guest for guest in guests if self.places.enter(guest)]


def test_a_place_is_taken_and_left() -> None:
    room = Room(3)
    guests = room.enter("a", 3)
    assert (len(room.places), room.places.of("a")) == (3, 3)
    for guest in guests:
        room.places.leave(guest)
    assert (len(room.places), room.places.of("a"), room.limited) == (0, 0, {})


def test_clients_have_places_too() -> None:
    room = Room(3)
    room.clients["a"] = 2
    assert len(room.enter("b", 2)) == 1
    assert room.limited == {"max_connections": 1}


def test_one_address_that_says_nothing_makes_room_for_others() -> None:
    room = Room(10)
    assert len(room.enter("silent", 50)) == 10
    assert room.limited.pop("max_connections") == 40
    for number in range(4):
        assert len(room.enter(f"honest-{number}")) == 1
    assert (room.places.of("silent"), len(room.places), len(room.left)) == (6, 10, 4)
    assert room.limited == {"max_connections": 4}
    # It gets none of them back.
    assert room.enter("silent", 20) == []
    assert all(room.places.of(f"honest-{number}") == 1 for number in range(4))


def test_until_all_have_as_many() -> None:
    room = Room(10)
    room.enter("a", 10)
    assert len(room.enter("b", 20)) == 5
    assert (room.places.of("a"), room.places.of("b")) == (5, 5)


def test_who_has_one_gives_way_to_nobody() -> None:
    room = Room(3)
    for address in "abc":
        room.enter(address)
    assert room.enter("d") == room.enter("") == []


def test_who_waits_for_us_does_not_give_way() -> None:
    room = Room(4)
    room.enter("a", 3, busy=True)
    (quiet,) = room.enter("a")
    assert len(room.enter("b", 2)) == 1
    assert room.left == [quiet]


def test_the_one_that_was_quiet_for_longest_gives_way() -> None:
    room = Room(3)
    first, second, third = room.enter("a", 3)
    room.places.was_active(first)
    room.enter("b")
    assert room.left == [second]
    room.places.leave(third)
    assert room.places.of("a") == 1


def test_a_proxy_stands_for_many() -> None:
    room = Room(6, per_address=2)
    assert len(room.enter("", 6)) == 6
    assert room.enter("a") == []
    room = Room(6, per_address=2)
    room.enter("a", 2)
    assert len(room.enter("", 9)) == 4 + 1  # one of the two gives way


def test_an_address_has_so_many_from_its_first_word_on() -> None:
    room = Room(10, per_address=4)
    room.clients["a"] = 2
    assert len(room.enter("a", 5)) == 2
    assert room.limited == {"connections_per_address": 3}
    assert len(room.enter("b", 5)) == 4


def test_an_address_that_is_told_later() -> None:
    room = Room(10, per_address=2)
    guests = room.enter("", 4)
    assert [room.places.counts_for(guest, "a") for guest in guests] == [True, True, False, False]
    for guest in guests:
        room.places.leave(guest)
    assert (len(room.places), room.places.of("a")) == (0, 0)


def test_the_same_connection_goes_on() -> None:
    room = Room(2, per_address=2)
    before, _ = room.enter("a", 2)
    after = Guest(room, "b")
    room.places.replace(before, after)
    assert (len(room.places), room.places.of("a"), room.places.of("b")) == (2, 1, 1)


def test_not_all_are_looked_at() -> None:
    """A newcomer costs the same, however many there are."""
    room = Room(LOOKED_AT + 2)
    room.enter("busy", LOOKED_AT, busy=True)
    room.enter("silent", 2)
    assert room.enter("b") == []


@pytest.mark.parametrize("known", [False, True])
def test_unfinished_bytes_of_one_kind_leave_the_other_alone(known: bool) -> None:
    unfinished = Unfinished(1000)
    assert unfinished.change(known, UNFINISHED_BYTES)
    assert not unfinished.change(known, 1)
    assert unfinished.change(not known, UNFINISHED_BYTES)
    assert unfinished.change(known, -1)


def test_two_of_the_largest_bodies_always_fit() -> None:
    unfinished = Unfinished(places.UNFINISHED_BYTES)
    assert unfinished.change(True, 2 * UNFINISHED_BYTES)
    assert not unfinished.change(True, 1)
