"""The gateway on a Redis Cluster: two workers on one loop, three real masters, and slots and masters that move."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.net.backend import Backed, Screen, call, command
from tests.net.peers import device_token, dial, until, user_token
from tests.net.valkeys import Cluster, Valkeys
from tests.net.watching import dashboard, join, status
from vizora_rt.app.plays import stream_key
from vizora_rt.net.access import token_revocation
from vizora_rt.net.presence import admin as device_admin
from vizora_rt.net.redis.blocking_client import BlockingClient
from vizora_rt.net.redis.cluster import Cluster as ClusterStore
from vizora_rt.net.redis.topology import RedisTarget
from vizora_rt.net.streams import formats, gauges, reader
from vizora_rt.wire.resp import key_of, pack, slot

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(32)).decode()


@asynccontextmanager
async def workers(url: str, **sections: Any) -> AsyncIterator[tuple[Backed, Backed]]:
    """Two of one node; the second can be killed."""
    async with AsyncExitStack() as stack:
        pair = []
        for index in range(2):
            worker = Backed(url, index, **sections)
            await worker.start()
            stack.push_async_callback(worker.stop)
            pair.append(worker)
        yield pair[0], pair[1]


@pytest.fixture
def books(cluster: Cluster) -> Iterator[Any]:
    """Redis, through somebody else's client."""
    node = cluster.masters[0]
    with redis.RedisCluster("127.0.0.1", node.port, decode_responses=True) as client:
        yield client


def play(number: int, phase: str = "end") -> dict[str, Any]:
    return {"contentId": f"c{number}", "seq": number, "phase": phase, "timestamp": int(time.time() * 1000)}


async def test_two_workers_on_three_masters(cluster: Cluster, books: Any) -> None:
    async with workers(cluster.url) as (one, other):
        screens = [await Screen.dial((one, other)[number % 2], f"lobby-{number}") for number in range(12)]
        for number, screen in enumerate(screens):
            beat = {"metrics": {"cpuUsage": number}}
            answer = await screen.answer("heartbeat", beat, 1)
            assert answer["success"] and "degraded" not in (answer["data"] or {})
            device = f"lobby-{number}"
            await until(lambda d=device: '"cpuUsage"' in (books.get(f"vz:{{d:{d}}}:status") or ""))  # type: ignore[misc]
        # A command from one worker reaches the screens of the other, by a doorbell of another shard.
        asked = await call(one, "POST", "/commands/broadcast",
                           {"organizationId": "acme", "command": {"type": "reload"}})  # fmt: skip
        assert (asked.status, asked.body["delivered"]) == (200, 12)
        found = await call(other, "GET", f"/commands/{asked.body['commandIds'][0]}")
        assert {each["state"] for each in found.body["devices"].values()} == {"acked"}
        # Plays count once, whatever is repeated.
        for screen in screens:
            batch = {"boot": "b1", "plays": [play(number) for number in range(1, 6)]}
            for ack_id, expected in ((2, (5, 0)), (3, (0, 5))):
                data = (await screen.answer("content:impressions", batch, ack_id))["data"]
                assert (data["accepted"], data["duplicates"], data["watermark"]) == (*expected, 5)
        streams = [stream_key(number).decode() for number in range(16)]
        assert sum(books.xlen(each) for each in streams) == 60
        assert len({cluster.owner(slot(each.encode())).port for each in streams}) == 3
        # A dashboard sees all of the organisation, then a change.
        ann = await dashboard(other)
        await join(ann)
        page = await ann.next("device:status:batch")
        assert {each["deviceId"] for each in page["devices"]} == {f"lobby-{number}" for number in range(12)}
        await Screen.dial(one, "hall")
        assert await status(ann) == ("hall", "online", "connected")
        # A newer connection on the other worker supersedes the older one.
        newer = await Screen.dial(other, "lobby-0")
        assert await screens[0].ended() == 4500
        assert (await newer.answer("heartbeat", {}, 1))["success"]
        for screen in [*screens[1:], newer]:
            await screen.leave()


async def test_commands_of_the_shell(cluster: Cluster, tmp_path: Path) -> None:
    async with workers(cluster.url) as (one, other):
        screen = await Screen.dial(one, "lobby")
        for number in range(1, 40):
            answer = await screen.answer("content:impressions", {"boot": "b", "plays": [play(number)]}, number)
            assert answer["success"]
        error = {"contentId": "c1", "errorType": "timeout"}
        assert (await screen.answer("content:error", error, 50))["success"]
        shell = device_admin.Shell(cluster.url)
        assert (await asyncio.to_thread(shell.show, "lobby") or {})["status"] == "online"
        assert (await asyncio.to_thread(shell.members, "acme", 0, 10))["total"] == 1
        out = tmp_path / "plays.jsonl"
        for group, count in (("", 39), ("billing", 39), ("billing", 0)):
            with out.open("wb") as file:
                options = reader.Options(group=group)
                assert await asyncio.to_thread(reader.run, cluster.url, formats.PLAYS, file, options) == count
            lines = [json.loads(line) for line in out.read_text().splitlines()]
            assert len({line["play_id"] for line in lines}) == count
        with out.open("wb") as file:
            assert await asyncio.to_thread(reader.run, cluster.url, formats.EVENTS, file, reader.Options()) >= 2
        assert await asyncio.to_thread(shell.revoke, "lobby", "stolen", 1)
        assert await screen.ended() == 4501
        assert await asyncio.to_thread(shell.restore, "lobby")
        again = await Screen.dial(other, "lobby")
        assert await asyncio.to_thread(shell.kick, "lobby")
        assert await again.ended() == 1000
        assert await asyncio.to_thread(shell.erase, "lobby")
        assert await asyncio.to_thread(shell.show, "lobby") is None


async def test_every_command_keeps_to_one_slot(cluster: Cluster, books: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What workers submit while everything happens that runs a script; the server says which keys a command has."""
    sent: set[bytes] = set()
    submit = ClusterStore.submit

    def noting(self: ClusterStore, operation: str, packed: bytes, on_reply: Any = None) -> bool:
        sent.add(packed)
        return submit(self, operation, packed, on_reply)

    monkeypatch.setattr(ClusterStore, "submit", noting)
    monkeypatch.setattr(gauges, "BACKLOG_SECONDS", 0.1)
    monkeypatch.setattr(token_revocation, "EVERY", 0.1)
    presence = {"worker_lost_after_seconds": 0.6, "offline_after_seconds": 0.1}
    quick: dict[str, Any] = {"presence": presence, "player": {"heartbeat_interval": 1000},
                             "server": {"drain_seconds": 3600}}  # fmt: skip
    async with workers(cluster.url, **quick) as (one, other):
        screen = await Screen.dial(other, "lobby", jti="j2")
        await Screen.dial(other, "bar", jti="j3")
        books.set("revoked_token:j1", "x")
        with pytest.raises(Exception, match="403"):
            await dial(one.port, device_token("hall", jti="j1"))
        assert (await command(one, "lobby")).status == 200
        key = {"Idempotency-Key": "k1"}
        body = {"deviceId": "lobby", "playlist": {"items": []}}
        assert (await call(one, "POST", "/push/playlist", body, headers=key)).status == 200
        assert (await screen.answer("playlist:request", {}, 1))["data"]["source"]
        asked = await command(one, "lobby", "screenshot", payload={"requestId": "r1"})
        assert asked.body["delivered"]
        picture = {"imageData": PNG, "width": 1, "height": 1, "requestId": "r1"}
        assert (await screen.answer("screenshot:response", picture, 2))["success"]
        assert (await screen.answer("content:impression", {"contentId": "c1"}, 3))["success"]
        assert (await screen.answer("content:error", {"contentId": "c", "errorType": "timeout"}, 4))["success"]
        ann = await dial(one.port, user_token("ann"))
        await ann.send("join:room", {"room": "device:lobby"}, 5)
        one.store.reconnect("test")
        other.store.reconnect("test")
        await until(lambda: one.store.up and other.store.up)
        gone = await Screen.dial(one, "cellar")
        await gone.leave()
        await until(lambda: '"offline"' in (books.get("vz:{d:cellar}:status") or ""))
        deadline = time.monotonic() + 20
        books.set("vz:{d:attic}:owner", "7 dead 0 1")
        books.zadd("vz:{o:acme}:devices", {"attic": int(time.time() * 1000)})
        books.zadd("vz:due", {"gone lobby": 1})
        # Last: it is buried as soon as it is seen.
        books.zadd("vz:nodes", {"dead 0": 1})
        scripts = {script.sha1.encode(): name for name, script in one.store._scripts.items()}
        run: set[str] = set()
        while run != set(scripts.values()) and time.monotonic() < deadline:
            await screen.answer("heartbeat", {}, 9)
            await asyncio.sleep(0.1)
            run = {scripts[words[1]] for words in map(unpacked, sent) if words[0] == b"EVALSHA"}
        assert set(scripts.values()) - run == set()
        await screen.leave()
    node = cluster.masters[0]
    for packed in sent:
        if (first := key_of(packed)) is None:
            assert unpacked(packed)[0] in (b"PING", b"INFO")
            continue
        words = unpacked(packed)
        keys = words[1:2] if words[0] == b"SPUBLISH" else node.tell("COMMAND", "GETKEYS", *words)
        assert keys[0] == first, words
        assert len({slot(each) for each in keys}) == 1, words


def unpacked(packed: bytes) -> list[bytes]:
    words, at = [], packed.index(b"$")
    while at < len(packed):
        start = packed.index(b"\r\n", at) + 2
        end = start + int(packed[at + 1 : start - 2])
        words.append(packed[start:end])
        at = end + 2
    return words


class Player:
    """Sends plays one by one, until it is told to stop, and again what was refused. `acked` are those that count."""

    def __init__(self, screen: Screen, boot: str) -> None:
        self.screen = screen
        self.boot = boot
        self.acked: set[int] = set()
        self.refused = 0
        self.stop = False

    async def run(self) -> None:
        number, ack_id = 1, 1
        while not self.stop or number not in self.acked:
            answer = await self.screen.answer(
                "content:impressions", {"boot": self.boot, "plays": [play(number)]}, ack_id
            )
            ack_id += 1
            if answer["success"]:
                self.acked.add(number)
                if self.stop:
                    return
                number += 1
            else:
                assert answer["retryable"], answer
                self.refused += 1
                await asyncio.sleep(0.05)


def recorded(url: str) -> dict[str, list[int]]:
    """The numbers of the plays in all streams, by boot, in order."""
    direct = BlockingClient(RedisTarget.parse(url), "test", 5.0)
    replies: Any = direct.ask([pack("XRANGE", stream_key(number), "-", "+") for number in range(16)])
    direct.close()
    found: dict[str, list[int]] = {}
    for rows in replies:
        for _, fields in rows:
            boot, number = dict(zip(fields[::2], fields[1::2], strict=True))[b"play_id"].decode().split(":")[-2:]
            found.setdefault(boot, []).append(int(number))
    return found


async def test_slots_move_under_load(cluster: Cluster) -> None:
    """Each play that was acked is there, once; nobody is disconnected."""
    free = {"limits": {"messages_per_minute": 0}}
    async with workers(cluster.url, **free) as (one, other):
        screens = [await Screen.dial((one, other)[number % 2], f"lobby-{number}") for number in range(6)]
        players = [Player(screen, f"boot{number}") for number, screen in enumerate(screens)]
        running = [asyncio.create_task(player.run()) for player in players]
        await until(lambda: all(len(player.acked) > 5 for player in players))
        for number in range(16):
            where = slot(stream_key(number))
            await asyncio.to_thread(cluster.move, where, cluster.other(where))
        for number in range(6):
            where = slot(b"vz:{d:lobby-%d}:owner" % number)
            await asyncio.to_thread(cluster.move, where, cluster.other(where))
        assert (await command(one, "lobby-1")).status == 200
        for player in players:
            player.stop = True
        await asyncio.gather(*running)
        assert all(screen.code is None for screen in screens)
        found = recorded(cluster.url)
        for player in players:
            assert found[player.boot] == sorted(player.acked) == list(range(1, len(player.acked) + 1))
        for screen in screens:
            await screen.leave()


async def test_doorbells_follow_their_slots(cluster: Cluster) -> None:
    async with workers(cluster.url) as (one, other):
        screen, ann = await Screen.dial(other, "lobby"), await dashboard(other)
        for count, channel in enumerate((b"vz:org:acme", b"vz:node:node:1", b"vz:org:acme"), 1):
            where = slot(channel)
            await asyncio.to_thread(cluster.move, where, cluster.other(where))
            place = cluster.owner(where)
            await until(lambda p=place, c=channel: p.tell("PUBSUB", "SHARDNUMSUB", c)[1] > 0)  # type: ignore[misc]
            notice = {"organizationId": "acme", "notification": {"number": count}}
            assert (await call(one, "POST", "/notifications/broadcast", notice)).body["delivered"]
            while (message := await ann.receive())["event"] != "notification:new":
                pass
            assert message["data"]["number"] == count
            # Well before the ledger would be looked at again.
            assert (await command(one, "lobby")).status == 200
        await screen.leave()


async def test_the_record_of_a_command_is_made_first_and_comes_right_in_the_end(cluster: Cluster, books: Any) -> None:
    """Its shard takes no writes; that of the device does."""
    away = cluster.owner(slot(b"vz:{d:lobby}:owner"))
    ids = (f"c{number}" for number in range(100))
    first, second = [each for each in ids if cluster.owner(slot(f"vz:{{c:{each}}}".encode())) is not away][:2]
    shards = {cluster.owner(slot(f"vz:{{c:{each}}}".encode())) for each in (first, second)}
    async with workers(cluster.url) as (one, other):
        screen = await Screen.dial(other, "lobby", acks=False)
        asking = asyncio.create_task(command(one, "lobby", commandId=first))
        message = await screen.message("command")
        await until(lambda: books.hget(f"vz:{{c:{first}}}", "d:lobby").startswith("sent"))
        for shard in shards:
            shard.tell("CONFIG", "SET", "maxmemory", 1)
        try:
            await screen.ack(message)
            assert (await asking).body["delivered"]
            found = await call(one, "GET", f"/commands/{first}")
            assert found.body["devices"]["lobby"]["state"] == "sent"
            assert (await command(one, "lobby", commandId=second)).status == 503
            assert (await screen.answer("heartbeat", {}, 1))["success"]
            assert screen.commands() == [first] and books.llen("vz:{d:lobby}:ledger") == 0
        finally:
            for shard in shards:
                shard.tell("CONFIG", "SET", "maxmemory", 0)
        await until(lambda: books.hget(f"vz:{{c:{first}}}", "d:lobby").startswith("acked"))
        assert not books.exists(f"vz:{{c:{second}}}")
        await screen.leave()


@pytest.mark.soak
async def test_a_master_dies_and_its_replica_takes_over(tmp_path: Path) -> None:
    """What was acked and replicated remains; nobody is disconnected; plays go on."""
    free = {"limits": {"messages_per_minute": 0}}
    with Valkeys(tmp_path) as valkeys:
        cluster = valkeys.cluster(3, 1)
        async with workers(cluster.url, **free) as (one, other):
            screens = [await Screen.dial((one, other)[number % 2], f"lobby-{number}") for number in range(12)]
            players = [Player(screen, f"boot{number}") for number, screen in enumerate(screens)]
            running = [asyncio.create_task(player.run()) for player in players]
            await until(lambda: all(len(player.acked) > 20 for player in players))
            victim = cluster.masters[1]
            safe = {player.boot: set(player.acked) for player in players}
            # WAIT is for the writes of its own connection; offsets tell of everybody's.
            written = int(victim.tell("ROLE")[1])
            await until(lambda: int(victim.tell("ROLE")[2][0][2]) >= written)
            victim.kill()
            await until(lambda: not one.store.up)
            async with asyncio.timeout(30):
                while not (one.store.up and other.store.up):
                    await asyncio.sleep(0.05)
            before = {player.boot: len(player.acked) for player in players}
            await until(lambda: all(len(player.acked) > before[player.boot] + 5 for player in players))
            for player in players:
                player.stop = True
            await asyncio.gather(*running)
            assert all(screen.code is None for screen in screens)
            found = recorded(f"redis+cluster://127.0.0.1:{cluster.masters[0].port}")
            for player in players:
                assert len(set(found[player.boot])) == len(found[player.boot])
                assert safe[player.boot] <= set(found[player.boot])
            print({"refused": sum(p.refused for p in players), "acked": sum(len(p.acked) for p in players),
                   "lost": sum(len(p.acked - set(found[p.boot])) for p in players)})  # fmt: skip
            asked = await call(one, "POST", "/commands/broadcast",
                               {"organizationId": "acme", "command": {"type": "reload"}})  # fmt: skip
            assert asked.body["delivered"] == 12
            for screen in screens:
                await screen.leave()
