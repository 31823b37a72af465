"""Doorbells over a real Valkey: between workers, through cuts and silence, and what is no doorbell."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.net.backend import Screen, call, fleet
from tests.net.peers import until
from tests.net.proxy import Proxy
from tests.net.watching import QUICK, dashboard, join
from vizora_rt import config
from vizora_rt.app.limits import SlidingWindow
from vizora_rt.net.presence.admin import Shell
from vizora_rt.net.redis import blocking, pubsub
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.redis.pubsub import ControlMessage, PubSub
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.resp import pack


class Ears:
    """A bus and what it heard."""

    def __init__(self, url: str, worker: int = 0, node: str = "node") -> None:
        settings = config.RedisSettings(reconnect_max_seconds=0.05)
        self.store = RedisClient(settings, url, Metrics(config.MetricsSettings()), name="test")
        self.heard: list[ControlMessage] = []
        self.bus = PubSub(settings, node, worker, self.store, self.heard.append)
        self.channel = f"vz:node:{node}:{worker}"

    async def start(self) -> "Ears":
        self.store.start()
        self.bus.start()
        await until(lambda: self.store.up)
        return self

    async def close(self) -> None:
        await self.bus.close()
        await self.store.close(0.1)


Make = Callable[..., Any]


@pytest.fixture
async def ears() -> AsyncIterator[Make]:
    made: list[Ears] = []

    async def make(url: str, *names: Any) -> Ears:
        made.append(await Ears(url, *names).start())
        return made[-1]

    yield make
    for each in made:
        await each.close()


@pytest.fixture
def client(redis_url: str) -> Any:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def listeners(client: Any, ears: Ears) -> int:
    return int(client.pubsub_numsub(ears.channel)[0][1])


async def listening(client: Any, *all_ears: Ears) -> None:
    await until(lambda: all(listeners(client, each) == 1 for each in all_ears))


async def test_a_bell_is_heard_where_it_is_rung(redis_url: str, client: Any, ears: Make) -> None:
    here, there, elsewhere = await ears(redis_url, 0), await ears(redis_url, 1), await ears(redis_url, 0, "other")
    await listening(client, here, there, elsewhere)
    for number in range(10):
        here.bus.send_to_worker("node", 1, {"superseded": "screen-1", "epoch": number})
    elsewhere.bus.send_to_worker("node", 0, {"look": "ü\n"})
    await until(lambda: len(there.heard) == 10 and here.heard)
    assert there.heard == [{"superseded": "screen-1", "epoch": number} for number in range(10)]
    assert here.heard == [{"look": "ü\n"}]
    assert elsewhere.heard == []


async def test_what_is_no_bell_is_let_pass(
    redis_url: str, client: Any, ears: Make, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_room", SlidingWindow(logs.PER_MINUTE, 60, logs.MAX_KINDS))  # other tests wrote some too
    here = await ears(redis_url)
    await listening(client, here)
    for nonsense in ("", "nonsense", "[1]", "7", "null", b"\xff\xfe", "{", '"{}"'):
        client.publish(here.channel, nonsense)
    client.publish(here.channel, json.dumps({"look": 1}))
    await until(lambda: here.heard)
    assert here.heard == [{"look": 1}]
    written = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in written].count("doorbell not understood") == 8
    assert all("nonsense" not in str(line) for line in written)
    for _ in range(100):
        client.publish(here.channel, "nonsense")
    client.publish(here.channel, json.dumps({"look": 2}))
    await until(lambda: len(here.heard) == 2)
    assert len(capfd.readouterr().err.splitlines()) == logs.PER_MINUTE - 8  # the log is not filled with it


async def test_a_listener_that_fails_hears_the_next_one(
    redis_url: str, client: Any, ears: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await ears(redis_url)
    await listening(client, here)
    heard = here.heard

    def hear(bell: ControlMessage) -> None:
        heard.append(bell)
        if len(heard) == 1:
            raise RuntimeError("broken")

    monkeypatch.setattr(here.bus, "_on_message", hear)
    for number in range(2):
        client.publish(here.channel, json.dumps({"number": number}))
    await until(lambda: len(heard) == 2)


async def test_it_listens_again_after_a_cut(redis_url: str, client: Any, proxy: Proxy, ears: Make) -> None:
    here = await ears(await proxy.open())
    await listening(client, here)
    for number in range(3):
        proxy.cut()
        await until(lambda: listeners(client, here) == 0)
        await listening(client, here)
        client.publish(here.channel, json.dumps({"number": number}))
        await until(lambda number=number: {"number": number} in here.heard)  # type: ignore[misc]


async def test_it_listens_when_redis_comes_later(
    redis_url: str, client: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    later = tmp_path / "valkey.sock"
    here = Ears(f"unix://{later}")
    here.bus.start()
    here.bus.send_to_worker("node", 0, {"look": 1})  # lost, and no fault
    await asyncio.sleep(0.05)
    later.symlink_to(redis_url.removeprefix("unix://"))
    await listening(client, here)
    assert "error" not in capfd.readouterr().err
    await here.close()


async def test_a_connection_that_leads_nowhere_is_left(
    redis_url: str, client: Any, proxy: Proxy, ears: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "CHECK_SECONDS", 0.1)
    here = await ears(await proxy.open())
    await listening(client, here)
    connections = proxy.connections
    # As behind a firewall that forgot the connection: bytes go, none come. Greetings are let through.
    proxy.rewrite = lambda data: b"" if b"pong" in data.lower() and b"$4" in data else data
    await until(lambda: proxy.connections > connections)


async def test_a_quiet_connection_stays(
    redis_url: str, client: Any, proxy: Proxy, ears: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "CHECK_SECONDS", 0.5)
    here = await ears(await proxy.open())
    await listening(client, here)
    connections, checks = proxy.connections, 0

    def count(data: bytes) -> bytes:
        nonlocal checks
        checks += b"pong" in data
        return data

    proxy.rewrite = count
    await until(lambda: checks >= 3)
    assert proxy.connections == connections
    assert listeners(client, here) == 1


async def test_it_ends(redis_url: str, client: Any, ears: Make) -> None:
    here = await ears(redis_url)
    await listening(client, here)
    await here.bus.close()
    await until(lambda: listeners(client, here) == 0)
    await here.bus.close()


class TestDatabases:
    """Two gateways with one Redis, each with a database of its own."""

    @pytest.mark.usefixtures("quick")
    async def test_they_hear_nothing_of_each_other(
        self, valkey: EmbeddedServer, redis_url: str, stack: AsyncExitStack
    ) -> None:
        nodes, boards, screens = [], [], []
        for number in (0, 1):
            (node,) = await stack.enter_async_context(fleet(f"{valkey.url}?db={number}", 1, presence=QUICK))
            board = await dashboard(node)
            await join(board)
            nodes.append(node)
            boards.append(Screen(board))
        for number, node in enumerate(nodes):
            # A device of the same name in both, and one of its own.
            screens += [await Screen.dial(node, "lobby"), await Screen.dial(node, f"only-{number}")]

        async def notify(number: int) -> None:
            body = {"organizationId": "acme", "notification": {"text": f"for {number}"}}
            assert (await call(nodes[number], "POST", "/notifications/broadcast", body)).status == 200

        await notify(0)
        await screens[1].leave()
        await until(lambda: '"offline"' in json.dumps(boards[0].heard))
        # Behind this, nothing of before is on its way.
        await notify(1)
        await boards[1].event("notification:new")
        assert [each["data"]["text"] for each in boards[0].messages("notification:new")] == ["for 0"]
        assert [each["data"]["text"] for each in boards[1].messages("notification:new")] == ["for 1"]
        assert "only-1" not in json.dumps(boards[0].heard)
        assert "only-0" not in json.dumps(boards[1].heard)
        # A worker of one has the same name as that of the other, and only one of them is told.
        assert await asyncio.to_thread(Shell(f"{valkey.url}?db=1").kick, "lobby")
        await screens[2].ended()
        assert (await screens[0].answer("heartbeat", {}, 9))["success"]
        with redis.Redis.from_url(redis_url) as client:
            found: Any = client.pubsub_channels("vz:*")
            assert sorted(found) == [b"vz:db1:node:node:0", b"vz:db1:org:acme", b"vz:node:node:0", b"vz:org:acme"]
            assert client.keys("*only-1*") == []
        for screen in (screens[0], screens[3], *boards):
            await screen.leave()


async def test_a_channel_that_is_denied_is_named(tmp_path: Path, stack: AsyncExitStack) -> None:
    """Taken away from the user later than at the start. It is asked for again now and then, not ten times a second."""
    store = valkey_server.start(tmp_path)
    stack.callback(store.stop)

    def allow(*rules: str) -> None:
        assert blocking.ask(Address.parse(store.url), [pack("ACL", "SETUSER", "me", *rules)], 5.0) == [b"OK"]

    allow("on", ">p", "+@all", "~*", "resetchannels")
    ears = await Ears(store.url.replace("unix://", "unix://me:p@")).start()
    stack.push_async_callback(ears.close)
    await until(lambda: ears.store.refusal)
    assert ears.store.refusal.startswith("denies commands: NOPERM, ")
    assert ears.store.write_error == ""
    assert ears.bus._again is not None
    assert ears.bus._again.when() - asyncio.get_running_loop().time() > pubsub.DENIED_SECONDS / 2
