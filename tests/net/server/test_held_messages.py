"""Messages that wait: their order, and the bytes that are counted of one client and of all."""

import pytest

from vizora_rt.net.server import held_messages
from vizora_rt.net.server.held_messages import MESSAGE_BYTES, Held, Total


def test_the_oldest_comes_first_and_what_was_put_back_before_it() -> None:
    messages = Held(Total())
    for each in ("a", b"b", "c"):
        messages.append(each)
    assert messages.pop() == "a"
    messages.put_back("a")
    assert [messages.pop() for _ in range(len(messages))] == ["a", b"b", "c"]


def test_the_bytes_of_all_are_counted() -> None:
    total = Total()
    one, other = Held(total), Held(total)
    one.append("x" * 10)
    other.put_back("x" * 20)
    assert total.bytes == 30 + 2 * MESSAGE_BYTES
    one.pop()
    assert total.bytes == 20 + MESSAGE_BYTES
    other.clear()
    assert (total.bytes, len(other)) == (0, 0)


@pytest.mark.parametrize("limit", ["KEPT_BYTES", "KEPT_BYTES_ALL"])
def test_there_is_room_until_a_limit_is_met(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(held_messages, limit, 200)
    messages = Held(Total())
    rooms = [messages.room]
    for each in ("x" * 100, ""):
        messages.append(each)
        rooms.append(messages.room)
    messages.pop()
    assert [*rooms, messages.room] == [True, True, False, True]
