"""The store against a real Valkey that is killed, stopped, demoted and refused, on the loops of asyncio and uvloop."""

import asyncio
import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.net.proxy import Proxy
from vizora_rt import config
from vizora_rt.errors import ConfigError
from vizora_rt.net.redis import client as store_module
from vizora_rt.net.redis.address import UNSOLICITED_REPLY, Address
from vizora_rt.net.redis.blocking import ask
from vizora_rt.net.redis.client import CONNECTION_LOST, RedisClient
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.resp import ReplyError, pack, pack_set

COUNT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
SHA1 = hashlib.sha1(COUNT.encode()).hexdigest()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A store that the test may kill."""
    store = valkey_server.start(tmp_path)
    yield store
    if store.alive():
        os.kill(store.pid, signal.SIGCONT)
    store.stop()


class Bench:
    """A store, and what it told."""

    def __init__(self, url: str, **keys: float) -> None:
        settings = {"reconnect_max_seconds": 0.1, **keys}
        self.metrics = Metrics(config.MetricsSettings())
        self.store = RedisClient(config.RedisSettings(**settings), url, self.metrics, name="test")  # type: ignore[arg-type]
        self.store.script("play", COUNT)
        self.told: list[str] = []
        self.up, self.down = asyncio.Event(), asyncio.Event()
        self.store.on_up.append(self._on_up)
        self.store.on_down.append(self._on_down)

    async def start(self) -> RedisClient:
        self.store.start()
        await asyncio.wait_for(self.up.wait(), 10)
        return self.store

    async def again(self) -> None:
        """Wait until it was lost and is up again."""
        async with asyncio.timeout(10):
            await self.down.wait()
            await self.up.wait()

    def count(self, operation: str, result: str) -> int:
        return self.metrics.counter("redis_operations_total", operation, result).value

    def limit(self, name: str) -> int:
        return self.metrics.counter("limits_exceeded_total", name).value

    def _on_up(self) -> None:
        self.told.append("up")
        self.up.set()

    def _on_down(self) -> None:
        self.told.append("down")
        self.up.clear()
        self.down.set()


Make = Callable[..., Bench]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Benches whose stores are closed when the test ends, and which leave no task behind."""
    benches: list[Bench] = []

    def build(url: str, **keys: float) -> Bench:
        benches.append(Bench(url, **keys))
        return benches[-1]

    yield build
    for bench in benches:
        await bench.store.close(0.1)
    assert [task for task in asyncio.all_tasks() if "Store." in repr(task.get_coro())] == []


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def tell(store: EmbeddedServer, *commands: tuple[str, ...]) -> list[object]:
    return ask(Address.parse(store.url), [pack(*command) for command in commands], 5.0)


async def test_up_after_the_greeting_with_scripts_loaded(redis_url: str, make: Make) -> None:
    bench = make(redis_url + "?db=3")
    assert not bench.store.up
    assert not bench.store.submit("ping", pack("PING"))
    assert await bench.store.request("ping", pack("PING")) is CONNECTION_LOST
    store = await bench.start()
    assert store.up
    assert bench.told == ["up"]
    assert await store.request("info", pack("CLIENT", "GETNAME")) == b"test"
    assert b"db=3" in str(await store.request("info", pack("CLIENT", "INFO"))).encode()
    assert await store.request("other", pack("SCRIPT", "EXISTS", SHA1)) == [1]
    await store.close()
    assert not bench.store.up
    assert not store.submit("ping", pack("PING"))
    assert bench.told == ["up"]
    await store.close()


async def test_replies_come_in_order(redis_url: str, make: Make) -> None:
    store = await make(redis_url).start()
    replies: list[object] = []
    for number in range(1000):
        assert store.submit("set", pack("SET", f"k{number % 7}", number))
        assert store.submit("get", pack("GET", f"k{number % 7}"), replies.append)
        if number % 50 == 0:
            # Over several ticks, so that replies arrive between submits.
            await asyncio.sleep(0)
    assert await store.request("ping", pack("PING")) == b"PONG"
    assert replies == [b"%d" % number for number in range(1000)]


async def test_a_hundred_thousand_commands(redis_url: str, make: Make) -> None:
    bench = make(redis_url)
    store = await bench.start()
    total, replies, value = 100_000, 0, b"x" * 300

    def on_reply(reply: object) -> None:
        nonlocal replies
        replies += 1
        assert reply == b"OK"

    for number in range(total):
        assert store.submit("set", pack_set(b"k%d" % (number % 1000), value, 60), on_reply)
        if number % 1000 == 0:
            await asyncio.sleep(0)
    assert await store.request("info", pack("DBSIZE")) == 1000
    assert replies == total
    assert bench.count("set", "ok") == total
    assert sum(bench.metrics.timer("redis_operation_duration_seconds", "set").slots[:-1]) == total
    assert bench.metrics.timer("redis_operation_duration_seconds", "set").slots[-1] > 0


async def test_a_command_bigger_than_any_buffer(redis_url: str, make: Make) -> None:
    store = await make(redis_url).start()
    value = os.urandom(8 * 1024 * 1024)
    assert await store.request("set", pack("SET", "big", value)) == b"OK"
    assert await store.request("get", pack("GET", "big")) == value


async def test_a_callback_may_submit(redis_url: str, make: Make) -> None:
    store = await make(redis_url).start()
    replies: list[object] = []

    def again(reply: object) -> None:
        replies.append(reply)
        if len(replies) < 100:
            assert store.submit("other", pack("INCR", "chain"), again)
            assert store.submit("other", pack("INCR", "side"))

    assert store.submit("other", pack("INCR", "chain"), again)
    await until(lambda: len(replies) == 100)
    assert replies == list(range(1, 101))
    assert await store.request("get", pack("GET", "side")) == b"99"


async def test_an_error_is_a_value_and_counted(redis_url: str, make: Make) -> None:
    bench = make(redis_url)
    store = await bench.start()
    reply = await store.request("other", pack("INCR"))
    assert isinstance(reply, ReplyError)
    assert reply.code == "ERR"
    assert await store.request("ping", pack("PING")) == b"PONG"
    assert (bench.count("other", "error"), bench.count("other", "ok")) == (1, 0)
    assert (bench.count("ping", "error"), bench.count("ping", "ok")) == (0, 1)
    with pytest.raises(ValueError, match="operation"):
        store.submit("no such operation", pack("PING"))
    assert await store.request("ping", pack("PING")) == b"PONG"


def fail(*_: object) -> None:
    raise ZeroDivisionError


async def test_a_callback_that_raises_harms_nobody(
    redis_url: str, make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = make(redis_url)
    bench.store.on_up.insert(0, fail)
    store = await bench.start()
    replies: list[object] = []
    for number in range(3):
        store.submit("other", pack("ECHO", f"before {number}"), replies.append)
        store.submit("ping", pack("PING"), fail)
    assert await store.request("ping", pack("PING")) == b"PONG"
    assert replies == [b"before 0", b"before 1", b"before 2"]
    assert capfd.readouterr().err.count("handler failed") == 4


async def test_a_waiter_that_gave_up(redis_url: str, make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    store = await make(redis_url).start()
    waiter = asyncio.create_task(store.request("ping", pack("PING")))
    await asyncio.sleep(0)
    waiter.cancel()
    assert await store.request("other", pack("ECHO", "next")) == b"next"
    assert "handler failed" not in capfd.readouterr().err


class TestFull:
    async def test_of_commands(self, own: EmbeddedServer, make: Make) -> None:
        bench = make(own.url, pending_commands=10)
        store = await bench.start()
        os.kill(own.pid, signal.SIGSTOP)
        replies: list[object] = []
        taken = [store.submit("other", pack("INCR", "n"), replies.append) for _ in range(15)]
        assert taken == [True] * 10 + [False] * 5
        assert bench.limit("pending_commands") == 5
        assert bench.metrics.snapshot()["values"]
        assert bench.metrics.gauge("redis_pipeline_depth").value == 10
        os.kill(own.pid, signal.SIGCONT)
        await until(lambda: len(replies) == 10)
        assert replies == list(range(1, 11))
        assert store.submit("other", pack("INCR", "n"))

    async def test_of_bytes(self, own: EmbeddedServer, make: Make) -> None:
        bench = make(own.url, pending_bytes=4 * 1024 * 1024)
        store = await bench.start()
        os.kill(own.pid, signal.SIGSTOP)
        replies: list[object] = []
        command = pack("SET", "k", b"x" * 1024 * 1024)
        taken = 0
        # The kernel's buffers take some, a tick at a time; then the bound holds.
        while store.submit("set", command, replies.append):
            taken += 1
            await asyncio.sleep(0)
        assert 3 <= taken < 20
        assert bench.limit("pending_bytes") == 1
        assert not store.submit("set", command)
        os.kill(own.pid, signal.SIGCONT)
        await until(lambda: len(replies) == taken)
        assert replies == [b"OK"] * taken
        # The bound is of what is unsent, not of all that was ever sent.
        for _ in range(20):
            assert await store.request("set", command) == b"OK"
        assert bench.limit("pending_bytes") == 2

    async def test_of_bytes_within_a_tick(self, own: EmbeddedServer, make: Make) -> None:
        bench = make(own.url, pending_bytes=4 * 1024 * 1024)
        store = await bench.start()
        os.kill(own.pid, signal.SIGSTOP)
        command = pack("SET", "k", b"x" * 1024 * 1024)
        assert 3 <= sum(store.submit("set", command) for _ in range(20)) < 10

    async def test_of_one_command(self, redis_url: str, make: Make) -> None:
        bench = make(redis_url, pending_bytes=1000)
        store = await bench.start()
        assert not store.submit("set", pack("SET", "k", b"x" * 1000))
        assert bench.limit("pending_bytes") == 1
        assert await store.request("set", pack("SET", "k", b"x" * 900)) == b"OK"


class TestLost:
    async def test_killed_and_started_again(self, own: EmbeddedServer, make: Make) -> None:
        bench = make(own.url)
        store = await bench.start()
        assert await store.request("set", pack("SET", "kept", "yes")) == b"OK"
        os.kill(own.pid, signal.SIGSTOP)
        replies: list[tuple[int, object]] = []
        refused: list[bool] = []

        def waiter(number: int) -> Callable[[object], None]:
            def on_reply(reply: object) -> None:
                replies.append((number, reply))
                refused.append(store.submit("ping", pack("PING"), waiter(number + 1000)))

            return on_reply

        for number in range(100):
            assert store.submit("set", pack("SET", "k", number), waiter(number))
            if number == 50:
                await asyncio.sleep(0)
        os.kill(own.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            await bench.down.wait()
        # Those of this tick had not even been written; they are lost like the others.
        await until(lambda: len(replies) == 100)
        assert replies == [(number, CONNECTION_LOST) for number in range(100)]
        assert refused == [False] * 100
        assert (store.up, bench.told) == (False, ["up", "down"])
        assert bench.count("set", "error") == 100
        await asyncio.to_thread(own.restart)
        await bench.again()
        assert len(replies) == 100
        assert await store.request("get", pack("GET", "kept")) == b"yes"
        # The new server has the scripts before anybody can ask for one.
        assert await store.request("other", pack("EVALSHA", SHA1, 1, "n", 5)) == 5
        assert bench.told == ["up", "down", "up"]

    async def test_hung(self, own: EmbeddedServer, make: Make) -> None:
        bench = make(own.url, reply_timeout_seconds=0.8)
        store = await bench.start()
        os.kill(own.pid, signal.SIGSTOP)
        assert await asyncio.wait_for(store.request("ping", pack("PING")), 10) is CONNECTION_LOST
        assert "no reply for 0.8 s" in store.reason
        assert not store.up
        os.kill(own.pid, signal.SIGCONT)
        await bench.again()
        # The new connection has all the time that the old one had.
        os.kill(own.pid, signal.SIGSTOP)
        slow = asyncio.create_task(store.request("ping", pack("PING")))
        await asyncio.sleep(0.4)
        os.kill(own.pid, signal.SIGCONT)
        assert await slow == b"PONG"

    async def test_hung_while_idle(self, own: EmbeddedServer, make: Make) -> None:
        """Nobody submits anything, and still the connection is known to lead nowhere."""
        bench = make(own.url, reply_timeout_seconds=0.1)
        await bench.start()
        await until(lambda: bench.count("ping", "ok") >= 2)
        os.kill(own.pid, signal.SIGSTOP)
        await asyncio.wait_for(bench.down.wait(), 10)
        os.kill(own.pid, signal.SIGCONT)
        await bench.again()

    async def test_slow_is_not_hung(self, proxy: Proxy, make: Make) -> None:
        """Each reply starts the clock anew, however long the queue."""
        bench = make(await proxy.open(), reply_timeout_seconds=0.4)
        store = await bench.start()
        proxy.rewrite = lambda data: b""
        replies: list[object] = []
        for _ in range(10):
            assert store.submit("ping", pack("PING"), replies.append)
        for _ in range(10):
            await asyncio.sleep(0.1)
            proxy.inject(b"+PONG\r\n")
        await until(lambda: len(replies) == 10)
        assert replies == [b"PONG"] * 10
        assert bench.told == ["up"]

    async def test_a_process_that_was_stopped_finds_its_replies(self, redis_url: str, make: Make) -> None:
        """The loop is blocked for longer than the timeout, as by SIGSTOP or a host without CPU to spare."""
        bench = make(redis_url, reply_timeout_seconds=0.2)
        store = await bench.start()
        pending = asyncio.create_task(store.request("other", pack("ECHO", "here")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.6)
        assert await pending == b"here"
        assert bench.told == ["up"]

    async def test_not_there_yet(self, own: EmbeddedServer, make: Make) -> None:
        os.kill(own.pid, signal.SIGKILL)
        bench = make(own.url)
        bench.store.start()
        await until(lambda: bench.store.reason == "Connection refused")
        assert not bench.store.submit("ping", pack("PING"))
        await asyncio.to_thread(own.restart)
        await asyncio.wait_for(bench.up.wait(), 10)
        assert bench.told == ["up"]

    async def test_an_outage_is_one_line(self, make: Make, capfd: pytest.CaptureFixture[str]) -> None:
        attempts = 0

        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal attempts
            attempts += 1
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        bench = make(f"redis://:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}")
        bench.store.start()
        await until(lambda: attempts >= 5)
        await bench.store.close()
        server.close()
        await server.wait_closed()
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) <= 2, lines  # closed, or reset: it depends on who was faster
        assert all("redis is not up" in line and "s3cret" not in line for line in lines)
        assert bench.told == []

    async def test_reset_by_the_network(self, valkey: EmbeddedServer, redis_url: str, make: Make, proxy: Proxy) -> None:
        bench = make(await proxy.open())
        store = await bench.start()
        for _ in range(5):
            bench.down.clear()
            proxy.rewrite = lambda data: b""
            replies: list[object] = []
            assert store.submit("other", pack("INCR", "n"), replies.append)
            await until(lambda: tell(valkey, ("GET", "n"))[0])
            proxy.cut()
            proxy.rewrite = bytes
            await bench.again()
            # Redis did it, and we cannot know: that is what LOST means.
            assert replies == [CONNECTION_LOST]
        assert proxy.connections == 6

    async def test_submitting_without_a_pause(self, redis_url: str, proxy: Proxy, make: Make) -> None:
        """What was queued in the tick of the loss belongs to the old connection; the new one begins with nothing."""
        bench = make(await proxy.open())
        store = await bench.start()
        replies: list[object] = []
        taken = 0
        while bench.told == ["up"]:
            taken += store.submit("other", pack("INCR", "n"), replies.append)
            if taken == 100:
                proxy.cut()
            await asyncio.sleep(0)
        await bench.again()
        await until(lambda: len(replies) == taken)
        assert taken >= 100
        lost = replies.count(CONNECTION_LOST)
        assert replies == [*range(1, taken - lost + 1), *[CONNECTION_LOST] * lost]
        assert await store.request("ping", pack("PING")) == b"PONG"
        assert bench.told == ["up", "down", "up"]

    async def test_a_reply_that_nobody_asked_for(self, proxy: Proxy, redis_url: str, make: Make) -> None:
        """From then on no reply can be trusted to be whose turn it is."""
        bench = make(await proxy.open())
        store = await bench.start()
        proxy.inject(b"+surprise\r\n")
        await bench.down.wait()
        assert store.reason == UNSOLICITED_REPLY
        await bench.again()
        # Or together with one that somebody asked for, whose callback asks again.
        bench.down.clear()
        proxy.rewrite = lambda data: data + b"+surprise\r\n"
        replies: list[object] = []

        def on_reply(reply: object) -> None:
            replies.append(reply)
            if reply is not CONNECTION_LOST:
                assert store.submit("ping", pack("PING"), on_reply)

        assert store.submit("other", pack("ECHO", "mine"), on_reply)
        await bench.down.wait()
        assert replies == [b"mine", CONNECTION_LOST]
        proxy.rewrite = bytes
        await bench.again()

    async def test_what_is_not_resp(self, proxy: Proxy, redis_url: str, make: Make) -> None:
        bench = make(await proxy.open())
        store = await bench.start()
        proxy.rewrite = lambda data: data + b"garbage\r\n"
        replies: list[object] = []
        assert store.submit("other", pack("ECHO", "before"), replies.append)
        await bench.down.wait()
        assert replies == [b"before"]
        assert "Protocol error" in store.reason
        proxy.rewrite = bytes
        await bench.again()


class TestNotUsable:
    async def test_wrong_password(self, own: EmbeddedServer, make: Make, capfd: pytest.CaptureFixture[str]) -> None:
        assert tell(own, ("CONFIG", "SET", "requirepass", "right")) == [b"OK"]
        bench = make(own.url.replace("unix://", "unix://:s3cret@"))
        bench.store.start()
        await until(lambda: "WRONGPASS" in bench.store.reason)
        assert not bench.store.up
        assert "s3cret" not in bench.store.reason + capfd.readouterr().err
        good = make(own.url.replace("unix://", "unix://:right@"))
        assert await (await good.start()).request("ping", pack("PING")) == b"PONG"

    async def test_a_master_that_becomes_a_replica(self, own: EmbeddedServer, make: Make) -> None:
        bench = make(own.url)
        store = await bench.start()
        assert tell(own, ("REPLICAOF", "127.0.0.1", "1")) == [b"OK"]
        replies: list[object] = []
        assert store.submit("set", pack("SET", "k", "v"), replies.append)
        await asyncio.wait_for(bench.down.wait(), 10)
        # The writer learns of the refusal itself: Redis did not do it.
        (reply,) = replies
        assert isinstance(reply, ReplyError)
        assert reply.code == "READONLY"
        await until(lambda: "not a master" in store.reason)
        assert not store.up
        assert tell(own, ("REPLICAOF", "NO", "ONE")) == [b"OK"]
        await bench.again()
        assert await store.request("set", pack("SET", "k", "v")) == b"OK"

    async def test_a_server_that_is_full_is_named_once(
        self, own: EmbeddedServer, make: Make, capfd: pytest.CaptureFixture[str]
    ) -> None:
        store = await make(own.url).start()
        assert tell(own, ("CONFIG", "SET", "maxmemory", "1")) == [b"OK"]
        for _ in range(3):
            reply = await store.request("set", pack("SET", "k", "v"))
            assert isinstance(reply, ReplyError)
            assert reply.code == "OOM"
        assert store.up
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        (line,) = [line for line in lines if line["event"] == "redis takes no writes"]
        assert line["level"] == "error"
        assert line["reason"].startswith("OOM ")

    async def test_one_that_comes_and_goes_does_not_fill_the_log(
        self, proxy: Proxy, make: Make, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a server does that dies with each write, when its disk is full."""
        monkeypatch.setattr(store_module, "STEADY_SECONDS", 0.3)
        bench = make(await proxy.open())
        store = await bench.start()

        def said(event: str) -> int:
            lines.extend(json.loads(line) for line in capfd.readouterr().err.splitlines())
            return sum(line["event"] == event for line in lines)

        lines: list[dict[str, str]] = []
        for _ in range(20):
            proxy.cut()
            await until(lambda: not store.up)
            await until(lambda: store.up)
        # Up at first, and after the first losses; then each reason once, however often it is lost.
        assert said("redis is up") == store_module.FLAPS
        reasons = {line["reason"] for line in lines if line["event"] == "redis is not up"}
        assert said("redis is not up") <= store_module.FLAPS * len(reasons)
        await until(lambda: said("redis is up") == store_module.FLAPS + 1)
        # The next outage is a new one.
        before = said("redis is not up")
        proxy.cut()
        await until(lambda: said("redis is not up") == before + 1)

    async def test_sent_elsewhere(self, own: EmbeddedServer, redis_url: str, make: Make) -> None:
        """Whoever learns that the master moved says so."""
        bench = make(own.url)
        store = await bench.start()
        assert await store.request("set", pack("SET", "here", 1)) == b"OK"
        store.address = Address.parse(redis_url)
        store.reconnect("the master moved")
        assert not store.submit("ping", pack("PING"))
        await bench.again()
        assert await store.request("get", pack("GET", "here")) is None
        assert bench.told == ["up", "down", "up"]

    async def test_a_script_that_does_not_compile(self, redis_url: str, make: Make) -> None:
        bench = make(redis_url)
        bench.store.script("claim", "this is no Lua")
        bench.store.start()
        await until(lambda: bench.store.reason.startswith("SCRIPT was answered ERR"))
        assert not bench.store.up

    def test_a_wrong_url(self) -> None:
        async def build() -> None:
            Bench("redis://cache/first")

        with pytest.raises(ConfigError):
            asyncio.run(build())


class TestScripts:
    async def test_names(self, make: Make) -> None:
        store = make("redis://127.0.0.1:1").store
        store.script("play", COUNT)
        with pytest.raises(ValueError, match="another script 'play'"):
            store.script("play", COUNT + " ")
        with pytest.raises(ValueError, match="'eval_no_such_operation' is no value of operation"):
            store.script("no_such_operation", COUNT)

    async def test_eval(self, redis_url: str, make: Make) -> None:
        bench = make(redis_url)
        store = await bench.start()
        replies: list[object] = []
        assert store.eval("play", ("n",), (5,), replies.append)
        assert store.eval("play", (b"n",), (b"6",))
        assert store.eval("play", ("n",), ("seven",), replies.append)
        assert await store.request("get", pack("GET", "n")) == b"11"
        assert replies[0] == 5
        assert isinstance(replies[1], ReplyError)
        assert (bench.count("eval_play", "ok"), bench.count("eval_play", "error")) == (2, 1)

    async def test_after_script_flush(self, redis_url: str, make: Make) -> None:
        store = await make(redis_url).start()
        assert await store.request("other", pack("SCRIPT", "FLUSH")) == b"OK"
        replies: list[object] = []
        for number in range(10):
            assert store.eval("play", ("n",), (1,), replies.append)
            assert store.submit("other", pack("ECHO", str(number)), replies.append)
        await until(lambda: len(replies) == 20)
        assert [reply for reply in replies if isinstance(reply, int)] == list(range(1, 11))
        assert [reply for reply in replies if isinstance(reply, bytes)] == [b"%d" % number for number in range(10)]
        assert await store.request("other", pack("SCRIPT", "EXISTS", SHA1)) == [1]

    async def test_lost_before_the_second_run(self, own: EmbeddedServer, make: Make) -> None:
        bench = make(own.url)
        store = await bench.start()
        assert tell(own, ("SCRIPT", "FLUSH")) == [b"OK"]
        replies: list[object] = []
        # Its reply comes first, and its callback leaves the connection.
        assert store.submit("ping", pack("PING"), lambda _: store.reconnect("test"))
        assert store.eval("play", ("n",), (1,), replies.append)
        await bench.again()
        assert replies == [CONNECTION_LOST]
        assert await store.request("get", pack("GET", "n")) is None


class TestClose:
    async def test_waits_for_what_was_taken(self, redis_url: str, make: Make) -> None:
        bench = make(redis_url)
        store = await bench.start()
        replies: list[object] = []
        for number in range(1000):
            assert store.submit("set", pack("SET", "k", number), replies.append)
        await store.close()
        assert replies == [b"OK"] * 1000
        assert not store.submit("ping", pack("PING"))
        assert bench.told == ["up"]

    async def test_but_not_for_ever(self, own: EmbeddedServer, make: Make) -> None:
        store = await make(own.url).start()
        os.kill(own.pid, signal.SIGSTOP)
        replies: list[object] = []
        assert store.submit("set", pack("SET", "k", "v"), replies.append)
        closing = asyncio.create_task(store.close(0.05))
        await asyncio.sleep(0)
        assert not store.submit("set", pack("SET", "k", "v"), replies.append)
        await closing
        assert replies == [CONNECTION_LOST]

    async def test_while_the_connection_is_lost(self, own: EmbeddedServer, make: Make) -> None:
        bench = make(own.url)
        store = await bench.start()
        os.kill(own.pid, signal.SIGSTOP)
        replies: list[object] = []
        assert store.submit("set", pack("SET", "k", "v"), replies.append)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        os.kill(own.pid, signal.SIGKILL)
        await asyncio.wait_for(closing, 10)
        assert replies == [CONNECTION_LOST]

    async def test_while_connecting(self, own: EmbeddedServer, make: Make) -> None:
        os.kill(own.pid, signal.SIGSTOP)
        bench = make(own.url)
        bench.store.start()
        await asyncio.sleep(0.01)
        await bench.store.close()
        assert bench.told == []

    async def test_never_started(self, make: Make) -> None:
        await make("redis://127.0.0.1:1").store.close()


async def test_gauges(redis_url: str, make: Make) -> None:
    bench = make(redis_url)
    bench.metrics.snapshot()
    assert bench.metrics.gauge("redis_up").value == 0
    store = await bench.start()
    assert store.submit("ping", pack("PING"))
    bench.metrics.snapshot()
    assert bench.metrics.gauge("redis_up").value == 1
    assert bench.metrics.gauge("redis_pipeline_depth").value == 1
    await store.close()
    bench.metrics.snapshot()
    # A worker that ends is no outage: in a roll its successor has the same label.
    assert bench.metrics.gauge("redis_up").value == 1
    assert bench.metrics.gauge("redis_pipeline_depth").value == 0
