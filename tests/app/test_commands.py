"""The ledger's decisions: entries, bodies, acks, and the delivery machine against a model of all around it."""

import json
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vizora_rt.app import commands
from vizora_rt.app.commands import (
    FIRST_ACK_TIMEOUT,
    MAX_ACK_TIMEOUT,
    Action,
    Delivery,
    Phase,
    QueuedCommand,
    parse_line,
    verdict,
)

IDS = st.text(st.characters(blacklist_categories=("C", "Z"), blacklist_characters="{}"), min_size=1, max_size=128)


class TestEntry:
    @given(IDS, st.sampled_from(commands.TYPES), st.integers(0, 2**53), st.integers(0, 2**53), st.binary(max_size=99))
    def test_a_line_is_read_as_it_was_written(
        self, entry_id: str, kind: str, expires: int, created: int, body: bytes
    ) -> None:
        entry = QueuedCommand(entry_id, kind, expires, created, "host-1-ab 3", body)
        assert parse_line(entry.line()) == entry

    def test_a_line_without_a_body(self) -> None:
        assert parse_line(b"c1 5 4 node 1 reload") == QueuedCommand("c1", "reload", 5, 4, "node 1")

    def test_events(self) -> None:
        events = {kind: QueuedCommand("c", kind, 0, 0, "n 0").event for kind in ("reload", "playlist", "token")}
        assert events == {"reload": "command", "playlist": "playlist:update", "token": "token:refresh"}


class TestBodies:
    def test_command(self) -> None:
        body = json.loads(commands.command_body("c1", "pause", {"a": [1]}, "t", "e"))
        assert body == {"type": "pause", "payload": {"a": [1]}, "commandId": "c1", "timestamp": "t", "expiresAt": "e"}
        assert "payload" not in json.loads(commands.command_body("c1", "pause", None, "t", "e"))

    def test_playlist(self) -> None:
        body = json.loads(commands.playlist_body({"items": []}, "v1", "push", "t"))
        assert body == {"playlist": {"items": []}, "version": "v1", "source": "push", "timestamp": "t"}

    def test_nested_too_deep(self) -> None:
        deep: object = {}
        for _ in range(300):
            deep = {"a": deep}
        with pytest.raises(TypeError):
            commands.command_body("c1", "pause", deep, "t", "e")


class TestVerdict:
    @pytest.mark.parametrize("data", [None, {}, {"ok": True}, {"ok": None}, {"ok": 0}, [], "no", 7])
    def test_anything_but_false_is_an_ack(self, data: object) -> None:
        assert verdict(data) == ("acked", "")

    @pytest.mark.parametrize(
        ("data", "error"),
        [
            ({"ok": False}, ""),
            ({"ok": False, "error": "no disk"}, "no disk"),
            ({"ok": False, "error": "a\nb\x1b[0m"}, "a b [0m"),
            ({"ok": False, "error": {"a": 1}}, ""),
            ({"ok": False, "error": "x" * 5000}, "x" * commands.ERROR_CHARACTERS),
        ],
    )
    def test_false_is_a_failure(self, data: object, error: str) -> None:
        assert verdict(data) == ("failed", error)


class TestDelivery:
    def test_the_ordinary_way(self) -> None:
        delivery = Delivery()
        assert delivery.look() is Action.LOOK
        assert delivery.found("a") is Action.SEND
        assert delivery.acked() is Action.RECORD
        assert delivery.found("b") is Action.SEND
        assert delivery.acked() is Action.RECORD
        assert delivery.found(None) is Action.NOTHING
        assert delivery.phase is Phase.IDLE

    def test_one_at_a_time(self) -> None:
        delivery = Delivery()
        delivery.look()
        delivery.found("a")
        assert delivery.look() is Action.NOTHING
        assert delivery.phase is Phase.AWAITING

    def test_a_bell_during_a_look_or_a_record_is_heard_afterwards(self) -> None:
        delivery = Delivery()
        delivery.look()
        assert delivery.look() is Action.NOTHING
        assert delivery.found(None) is Action.LOOK
        delivery.found("a")
        delivery.acked()
        assert delivery.look() is Action.NOTHING
        assert delivery.found(None) is Action.LOOK
        assert delivery.found(None) is Action.NOTHING

    def test_patience_doubles_for_the_same_entry_and_begins_anew_for_another(self) -> None:
        delivery = Delivery()
        delivery.look()
        patience = []
        for _ in range(8):
            assert delivery.found("a") is Action.SEND
            patience.append(delivery.ack_timeout)
            assert delivery.overdue() is Action.LOOK
        assert patience == [10, 20, 40, 80, 160, 300, 300, 300]
        assert (patience[0], patience[-1]) == (FIRST_ACK_TIMEOUT, MAX_ACK_TIMEOUT)
        delivery.found("b")
        assert delivery.ack_timeout == FIRST_ACK_TIMEOUT

    def test_an_ack_that_comes_late_while_it_is_looked_up_again(self) -> None:
        delivery = Delivery()
        delivery.look()
        delivery.found("a")
        delivery.overdue()
        assert delivery.acked() is Action.NOTHING
        assert delivery.found("a") is Action.RECORD

    def test_a_late_ack_of_what_has_expired_meanwhile(self) -> None:
        delivery = Delivery()
        delivery.look()
        delivery.found("a")
        delivery.overdue()
        delivery.acked()
        assert delivery.found("b") is Action.SEND
        assert delivery.acked() is Action.RECORD

    def test_an_ack_that_could_not_be_recorded_is_not_asked_for_again(self) -> None:
        delivery = Delivery()
        delivery.look()
        delivery.found("a")
        delivery.acked()
        delivery.failed()
        assert delivery.look() is Action.LOOK
        assert delivery.found("a") is Action.RECORD

    def test_acks_that_nobody_waits_for(self) -> None:
        delivery = Delivery()
        assert delivery.acked() is Action.NOTHING
        delivery.look()
        assert delivery.acked() is Action.NOTHING
        delivery.found("a")
        delivery.acked()
        assert delivery.acked() is Action.NOTHING

    def test_overdue_only_while_an_ack_is_awaited(self) -> None:
        delivery = Delivery()
        assert delivery.overdue() is Action.NOTHING
        delivery.look()
        assert delivery.overdue() is Action.NOTHING


class Fleet(RuleBasedStateMachine):
    """One screen, workers that come and go, a network that loses and a store that fails; the ledger outlives them.

    Commands are numbers, in the order in which they were put. The store does what it is asked in order, each at its
    time; the screen dedupes and remembers what it executed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.expiry: list[int] = []
        self.ledger: deque[int] = deque()
        self.recorded: set[int] = set()
        self.expired: set[int] = set()
        self.executed: list[int] = []
        self.connect()

    def connect(self) -> None:
        self.delivery = Delivery()
        self.asked: deque[tuple[Action, int]] = deque()
        self.to_screen: deque[int] = deque()
        self.acks: deque[int] = deque()
        self.sent = -1
        if self.ledger:
            self.do(self.delivery.look())

    # What a worker does.

    def do(self, do: Action) -> None:
        if do is Action.LOOK:
            self.asked.append((do, -1))
        elif do is Action.RECORD:
            self.asked.append((do, int(self.delivery.entry_id)))
        elif do is Action.SEND:
            self.sent = int(self.delivery.entry_id)
            self.to_screen.append(self.sent)

    def apply(self, do: Action, number: int) -> str | None:
        """What the scripts do."""
        if do is Action.RECORD and self.ledger and self.ledger[0] == number:
            self.recorded.add(self.ledger.popleft())
        while self.ledger and self.expiry[self.ledger[0]] <= self.now:
            self.expired.add(self.ledger.popleft())
        return str(self.ledger[0]) if self.ledger else None

    # What happens.

    @rule(life=st.integers(1, 60), rings=st.booleans())
    def command(self, life: int, rings: bool) -> None:
        self.ledger.append(len(self.expiry))
        self.expiry.append(self.now + life)
        if rings:
            self.do(self.delivery.look())

    @rule()
    def renew(self) -> None:
        if self.ledger:
            self.do(self.delivery.look())

    @precondition(lambda self: self.asked)
    @rule()
    def store_answers(self) -> None:
        self.do(self.delivery.found(self.apply(*self.asked.popleft())))

    @precondition(lambda self: self.asked)
    @rule(applied=st.booleans())
    def store_fails(self, applied: bool) -> None:
        asked = self.asked.popleft()
        if applied:
            self.apply(*asked)
        self.delivery.failed()

    @precondition(lambda self: self.to_screen)
    @rule(acks=st.booleans())
    def screen_receives(self, acks: bool) -> None:
        number = self.to_screen.popleft()
        if number not in self.executed:
            self.executed.append(number)
        if acks:
            self.acks.append(number)

    @precondition(lambda self: self.acks)
    @rule()
    def ack_arrives(self) -> None:
        if self.acks.popleft() == self.sent:
            self.do(self.delivery.acked())

    @rule()
    def ack_is_overdue(self) -> None:
        self.do(self.delivery.overdue())

    @rule()
    def reconnect(self) -> None:
        """The screen's connection is lost, or the worker dies: what was under way is gone."""
        self.connect()

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def order_is_kept(self) -> None:
        assert self.executed == sorted(self.executed)

    @invariant()
    def nothing_is_taken_off_before_it_is_executed_or_expired(self) -> None:
        assert self.recorded <= set(self.executed)
        assert all(self.expiry[number] <= self.now for number in self.expired)
        assert self.recorded | self.expired | set(self.ledger) == set(range(len(self.expiry)))

    def teardown(self) -> None:
        """When nothing fails any more, everything arrives without another reconnect."""
        steps: list[tuple[Callable[[], object], Callable[[], None]]] = [
            (lambda: self.asked, self.store_answers),
            (lambda: self.to_screen, lambda: self.screen_receives(True)),
            (lambda: self.acks, self.ack_arrives),
        ]
        for _ in range(20 * len(self.expiry) + 20):
            due = next((step for may, step in steps if may()), None)
            if due is not None:
                due()
            elif self.delivery.phase is Phase.AWAITING:
                self.ack_is_overdue()
            elif self.ledger:
                self.renew()
        assert not self.ledger
        assert set(self.executed) | self.expired == set(range(len(self.expiry)))
        self.order_is_kept()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
