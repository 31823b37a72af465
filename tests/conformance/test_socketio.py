"""Shipped clients against the running service: socket.io-client as player, TV and dashboard; python-socketio beside."""

import asyncio
import http.client
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import socketio
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conformance.players import DASHBOARD, ELECTRON, OLD_CLIENT, TV, Players, Record
from tests.net.peers import DEVICE_SECRET, USER_SECRET, device_token, user_token
from tests.service_process import PATIENCE, Service, until

API_KEY = "k" * 20
PAGE = "https://app.example"
ENV = {
    "DEVICE_JWT_SECRET": DEVICE_SECRET,
    "JWT_SECRET": USER_SECRET,
    "INTERNAL_API_SECRET": API_KEY,
    "CORS_ORIGIN": PAGE,
    "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
    "VIZORA_REDIS__REPLY_TIMEOUT_SECONDS": "0.5",
}
ACKS = {"deliveryAck": True}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests that leave it as it was; their devices have names of their own."""
    with Service(tmp_path_factory.mktemp("service"), ENV) as running:
        yield running.start()


@pytest.fixture
def players() -> Iterator[Players]:
    with Players() as process:
        yield process


def call(service: Service, method: str, path: str, body: Any = None) -> tuple[int, Record]:
    """Call the control API."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    try:
        headers = {"x-internal-api-key": API_KEY, "connection": "close"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        answer: Record = json.loads(response.read())
        return response.status, answer
    finally:
        connection.close()


def command(service: Service, device: str, kind: str) -> tuple[int, Record]:
    return call(service, "POST", "/internal/command", {"deviceId": device, "command": {"type": kind}})


def active(service: Service) -> float:
    return service.metric('vizora_realtime_ws_connections_active{organization_id="acme",kind="device"}') or 0


class TestPlayer:
    """An Electron player: a day in seconds."""

    def test_connects_and_beats(self, service: Service, players: Players) -> None:
        players.open("e1", service.port, ELECTRON, device_token("e1"))
        assert players.wait("e1", "connect")["id"]
        config = players.wait("e1", "event", event="config")
        assert config["data"]["heartbeatInterval"] == 15000
        assert config["wanted"] is False
        # As shipped players write it.
        beat = {
            "metrics": {"cpuUsage": 12.5, "memoryUsage": 40, "temperature": None},
            "currentContent": "content-1",
            "contentVersion": "",
            "screenState": None,
        }
        ack = players.emit("e1", "heartbeat", beat)
        assert ack["success"] is True
        assert ack["data"] == {"reconcileContent": False, "nextHeartbeatIn": 15000, "commands": []}
        seen = until(lambda: call(service, "GET", "/devices/e1")[1].get("currentContent"))
        assert seen == {"contentId": "content-1"}
        assert players.emit("e1", "nothing")["code"] == "UNKNOWN_EVENT"

    def test_plays(self, service: Service, players: Players) -> None:
        players.open("e2", service.port, ELECTRON, device_token("e2"))
        started = int(time.time() * 1000)
        start = {"contentId": "c1", "playlistId": "p1", "timestamp": started}
        end = {**start, "timestamp": started + 10_000, "duration": 10, "completionPercentage": 100}
        for impression in (start, end):
            ack = players.emit("e2", "content:impression", impression)
            assert (ack["success"], ack["data"]["duplicate"]) == (True, False)
        assert players.emit("e2", "content:impression", end)["data"]["duplicate"] is True
        error = {"contentId": "c1", "errorType": "playback_error", "errorMessage": "x", "timestamp": started}
        assert players.emit("e2", "content:error", error)["success"] is True
        _, plays = call(service, "GET", "/devices/e2/plays")
        assert list(plays["days"].values()) == [1]

    def test_is_pushed_to_and_acks(self, service: Service, players: Players) -> None:
        players.open("e3", service.port, ELECTRON, device_token("e3"), capabilities=ACKS)
        players.wait("e3", "event", event="config")
        playlist = {"id": "p1", "items": [{"id": "c1"}]}
        status, answer = call(service, "POST", "/push/playlist", {"deviceId": "e3", "playlist": playlist})
        assert (status, answer["delivered"], answer["queued"]) == (200, True, False)
        update = players.wait("e3", "event", event="playlist:update")
        assert (update["data"]["playlist"], update["wanted"]) == (playlist, True)
        status, answer = command(service, "e3", "reload")
        assert (status, answer["delivered"]) == (200, True)
        heard = players.wait("e3", "event", event="command")["data"]
        assert (heard["type"], heard["commandId"]) == ("reload", answer["commandId"])
        _, states = call(service, "GET", f"/commands/{answer['commandId']}")
        assert states["devices"]["e3"]["state"] == "acked"
        status, answer = call(service, "POST", "/internal/token-refresh", {"deviceId": "e3", "token": "new"})
        assert status == 200
        assert players.wait("e3", "event", event="token:refresh")["data"] == {"token": "new"}
        assert players.emit("e3", "playlist:request", {})["data"]["playlist"] == playlist

    def test_the_other_shape_of_capabilities(self, service: Service, players: Players) -> None:
        players.open("e4", service.port, ELECTRON, device_token("e4"), capabilities=["deliveryAck"])
        players.wait("e4", "event", event="config")
        _, answer = command(service, "e4", "pause")
        assert answer["delivered"] is True

    def test_who_does_not_ack_has_received_nothing(self, service: Service, players: Players) -> None:
        players.open("e5", service.port, ELECTRON, device_token("e5"))
        players.wait("e5", "event", event="config")
        status, answer = command(service, "e5", "reboot")
        assert (status, answer["success"], answer["delivered"], answer["queued"]) == (200, True, False, False)
        heard = players.wait("e5", "event", event="command")
        assert (heard["data"]["type"], heard["wanted"]) == ("reboot", False)
        _, states = call(service, "GET", f"/commands/{answer['commandId']}")
        assert states["devices"]["e5"]["state"] == "sent"
        status, answer = call(service, "POST", "/push/playlist", {"deviceId": "e5", "playlist": {"id": "p"}})
        assert (status, answer["delivered"], answer["queued"]) == (200, False, False)
        players.wait("e5", "event", event="playlist:update")
        # It is not told to reboot again when it is back from that; what to play it is, for it may not have heard.
        players.leave("e5")
        players.wait("e5", "disconnect")
        players.open("e5 again", service.port, ELECTRON, device_token("e5"))
        assert players.wait("e5 again", "event", event="playlist:update")["data"]["playlist"] == {"id": "p"}
        assert players.emit("e5 again", "heartbeat", {})["success"] is True
        assert not players.of("e5 again", "event", event="command")

    def test_a_token_in_time(self, service: Service, players: Players) -> None:
        """Who was given a new token before its old one ended comes back with it; who was not is told why it cannot."""
        ends = int(time.time()) + 2
        for name in ("given", "forgotten"):
            players.open(name, service.port, ELECTRON, device_token(name, exp=ends))
            players.wait(name, "event", event="config")
        fresh = device_token("given")
        assert call(service, "POST", "/internal/token-refresh", {"deviceId": "given", "token": fresh})[0] == 200
        players.wait("given", "event", event="token:refresh")
        until(lambda: time.time() > ends + 1)
        for name in ("given", "forgotten"):
            players.cut(name)
            gone = players.wait(name, "disconnect")
            assert (gone["reason"], gone["active"]) == ("transport close", True)
        players.wait("given", "connect", 2)
        assert players.emit("given", "heartbeat", {})["success"] is True
        error = players.wait("forgotten", "connect_error")
        assert (error["data"], error["active"]) == ({"code": "AUTH_EXPIRED"}, False)

    def test_polling_leads_to_websocket(self, service: Service, players: Players) -> None:
        tries = {"transports": ["polling", "websocket"], "tryAllTransports": True}
        players.open("e6", service.port, tries, device_token("e6"))
        players.wait("e6", "event", event="config")

    def test_superseded(self, service: Service, players: Players) -> None:
        """Two clones must not evict each other for ever."""
        token = device_token("e7")
        players.open("older", service.port, ELECTRON, token)
        players.wait("older", "event", event="config")
        players.open("newer", service.port, ELECTRON, token)
        error = players.wait("older", "event", event="error")["data"]
        assert (error["code"], error["retryable"]) == ("SUPERSEDED", False)
        gone = players.wait("older", "disconnect")
        assert (gone["reason"], gone["active"]) == ("io server disconnect", False)
        assert players.emit("newer", "heartbeat", {})["success"] is True
        assert not players.of("older", "attempt")

    def test_revoked_while_connected(self, service: Service, players: Players) -> None:
        players.open("e8", service.port, ELECTRON, device_token("e8"))
        players.wait("e8", "event", event="config")
        call(service, "POST", "/internal/device-revoked", {"deviceId": "e8", "reason": "sold"})
        assert players.wait("e8", "event", event="device:revoked")["data"] == {"reason": "sold"}
        gone = players.wait("e8", "disconnect")
        assert (gone["reason"], gone["active"]) == ("io server disconnect", False)


class TestRefused:
    """What will not pass is told as connect_error, once; the client stays away."""

    @pytest.mark.parametrize(
        ("token", "message", "code"),
        [
            (None, "auth_invalid", "AUTH_INVALID"),
            ("nonsense", "auth_invalid", "AUTH_INVALID"),
            (device_token("r1", secret="x" * 40), "auth_invalid", "AUTH_INVALID"),
            (device_token("r1", exp=int(time.time()) - 60), "auth_expired", "AUTH_EXPIRED"),
        ],
    )
    def test_token(self, service: Service, players: Players, token: str | None, message: str, code: str) -> None:
        players.open("r1", service.port, ELECTRON, token)
        error = players.wait("r1", "connect_error")
        assert (error["message"], error["data"], error["active"]) == (message, {"code": code}, False)
        assert not players.of("r1", "attempt")

    def test_revoked(self, service: Service, players: Players) -> None:
        call(service, "POST", "/internal/device-revoked", {"deviceId": "r2"})
        players.open("r2", service.port, ELECTRON, device_token("r2"))
        error = players.wait("r2", "connect_error")
        assert (error["message"], error["data"]) == ("device_token_stale", {"code": "DEVICE_REVOKED"})

    def test_origin(self, service: Service, players: Players) -> None:
        players.open("r3", service.port, DASHBOARD, cookie=user_token(), origin="https://elsewhere.example")
        error = players.wait("r3", "connect_error")
        assert (error["message"], error["data"]) == ("origin_denied", {"code": "ORIGIN_DENIED"})

    def test_by_an_old_client(self, service: Service) -> None:
        """It would come back each second after a CONNECT_ERROR alone."""
        with Players(OLD_CLIENT) as players:
            players.open("r4", service.port, ELECTRON, device_token("r4", exp=int(time.time()) - 60))
            error = players.wait("r4", "connect_error")
            assert (error["message"], error["data"]) == ("auth_expired", {"code": "AUTH_EXPIRED"})
            gone = players.wait("r4", "disconnect")
            assert (gone["reason"], gone["active"]) == ("io server disconnect", False)
            players.open("r5", service.port, ELECTRON, device_token("r5"), capabilities=ACKS)
            assert players.emit("r5", "heartbeat", {})["success"] is True
            assert not players.of("r4", "attempt")


class TestDashboard:
    def test_comes_with_a_cookie_and_watches(self, service: Service, players: Players) -> None:
        players.open("d1", service.port, DASHBOARD, cookie=user_token(), origin=PAGE)
        players.wait("d1", "connect")
        assert players.emit("d1", "heartbeat", {})["code"] == "NOT_ALLOWED"
        joined = players.emit("d1", "join:organization", {"organizationId": "acme"})
        assert joined["success"] is True
        players.wait("d1", "event", event="joined:organization")
        players.wait("d1", "event", event="device:status:batch")
        players.open("seen", service.port, TV, device_token("seen"))
        players.wait("seen", "event", event="config")
        until(lambda: [each for each in players.of("d1", "event") if "seen" in json.dumps(each["data"])])
        body = {"organizationId": "acme", "notification": {"title": "hello"}}
        status, _ = call(service, "POST", "/notifications/broadcast", body)
        assert status == 200
        assert players.wait("d1", "event", event="notification:new")["data"]["title"] == "hello"

    def test_its_session_ends(self, service: Service, players: Players) -> None:
        players.open("d2", service.port, DASHBOARD, cookie=user_token(exp=int(time.time()) + 2), origin=PAGE)
        players.wait("d2", "connect")
        assert players.wait("d2", "event", event="session:expired")["data"] == {"reason": "expired"}
        gone = players.wait("d2", "disconnect")
        assert (gone["reason"], gone["active"]) == ("io server disconnect", False)
        assert not players.of("d2", "attempt")


class TestComingBack:
    """What passes ends without a packet: every client comes back by itself, none of them twice."""

    def test_a_restart(self, tmp_path: Path, players: Players) -> None:
        with Service(tmp_path, ENV) as service:
            service.start()
            names = [f"s{number}" for number in range(6)]
            for number, name in enumerate(names):
                players.open(name, service.port, ELECTRON if number % 2 else TV, device_token(name), capabilities=ACKS)
            for name in names:
                players.wait(name, "event", event="config")
            service.args += ["--port", str(service.port)]
            assert service.stop() == 0
            for name in names:
                assert players.wait(name, "event", event="server:shutdown")["data"]["reconnect"] is True
                gone = players.wait(name, "disconnect")
                assert (gone["reason"], gone["active"]) == ("transport close", True)
            service.start()
            for name in names:
                players.wait(name, "connect", 2)
                assert players.emit(name, "heartbeat", {})["success"] is True
            assert until(lambda: active(service) == len(names))
            assert [len(players.of(name, "connect")) for name in names] == [2] * len(names)

    def test_a_roll(self, tmp_path: Path, players: Players) -> None:
        with Service(tmp_path, ENV, workers=1) as service:
            service.start()
            players.open("s", service.port, ELECTRON, device_token("s"))
            players.wait("s", "event", event="config")
            service.signal(signal.SIGHUP)
            players.wait("s", "connect", 2)
            assert players.emit("s", "heartbeat", {})["success"] is True

    @pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.soak)])
    def test_redis_away(self, tmp_path: Path, players: Players, seconds: int) -> None:
        """Devices are let in and checked later, when a revoked one is sent away for good; dashboards are sent away
        without a packet until Redis is back."""
        with Service(tmp_path, ENV, workers=1) as service:
            service.start()
            players.open("there", service.port, ELECTRON, device_token("there"), capabilities=ACKS)
            players.wait("there", "event", event="config")
            call(service, "POST", "/internal/device-revoked", {"deviceId": "sold", "reason": "sold"})
            store = service.wait("embedded store started")["pid"]
            os.kill(store, signal.SIGSTOP)
            try:
                until(lambda: not service.redis_up())
                back = time.monotonic() + seconds
                names = [f"n{number}" for number in range(8)]
                for number, name in enumerate(names):
                    kind = ELECTRON if number % 2 else TV
                    players.open(name, service.port, kind, device_token(name), capabilities=ACKS)
                players.open("sold", service.port, ELECTRON, device_token("sold"))
                players.wait("sold", "event", event="config")
                players.open("board", service.port, DASHBOARD, cookie=user_token(), origin=PAGE)
                for name in names:
                    assert players.emit(name, "heartbeat", {})["data"]["degraded"] is True
                play = {"contentId": "c", "timestamp": int(time.time() * 1000)}
                refused = players.emit("there", "content:impression", play)
                assert (refused["code"], refused["retryable"]) == ("STORE_UNAVAILABLE", True)
                players.wait("board", "attempt")
                until(lambda: time.monotonic() >= back)
                assert not players.of("board", "connect")
                assert not players.of("board", "connect_error")
            finally:
                os.kill(store, signal.SIGCONT)
            players.wait("board", "connect")
            until(service.redis_up)
            for name in ("there", *names):
                until(lambda: "degraded" not in players.emit(name, "heartbeat", {})["data"])  # noqa: B023
                assert len(players.of(name, "connect")) == 1
            gone = players.wait("sold", "disconnect")
            assert (gone["reason"], gone["active"]) == ("io server disconnect", False)
            assert [len(players.of(name, "connect")) for name in ("board", "sold")] == [1, 1]
            assert players.emit("there", "content:impression", play)["success"] is True


class TestSecondPeer:
    """python-socketio shares no code with socket.io-client."""

    async def test_a_player(self, service: Service) -> None:
        heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        async def on_event(event: str, data: Any) -> dict[str, bool]:
            heard.put_nowait((event, data))
            return {"ok": True}

        client = socketio.AsyncClient(reconnection=False)
        client.on("*", on_event)
        auth = {"token": device_token("p1"), "capabilities": ["deliveryAck"]}
        await client.connect(f"http://127.0.0.1:{service.port}", auth=auth, transports=["websocket"])
        try:
            async with asyncio.timeout(PATIENCE):
                assert (await heard.get())[0] == "config"
                ack = await client.call("heartbeat", {"uptime": 1}, timeout=PATIENCE)
                assert ack["success"] is True
                batch = {"boot": "b1", "plays": [{"contentId": "c", "seq": 1, "phase": "end"}]}
                ack = await client.call("content:impressions", batch, timeout=PATIENCE)
                assert ack["data"]["watermark"] == 1
                _, answer = await asyncio.to_thread(command, service, "p1", "reload")
                assert answer["delivered"] is True
                event, data = await heard.get()
                assert (event, data["type"]) == ("command", "reload")
        finally:
            await client.disconnect()

    async def test_refused(self, service: Service) -> None:
        errors: asyncio.Queue[Any] = asyncio.Queue()
        client = socketio.AsyncClient(reconnection=False)
        client.on("connect_error", errors.put)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await client.connect(f"http://127.0.0.1:{service.port}", auth={"token": "x"}, transports=["websocket"])
        async with asyncio.timeout(PATIENCE):
            assert await errors.get() == {"message": "auth_invalid", "data": {"code": "AUTH_INVALID"}}
        await client.shutdown()


def noise(dice: random.Random) -> str | bytes:
    """A packet that no client sends: random, or one of theirs with some of its characters changed."""
    kind = dice.randrange(4)
    if kind == 0:
        return "".join(chr(dice.randrange(32, 0x2FF)) for _ in range(dice.randrange(40)))
    if kind == 1:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(20)))
    name = "".join(dice.choices("abcdef:", k=8))
    text = dice.choice(
        [
            f'42{dice.randrange(99)}["{name}",{{"deviceId":"{name}"}}]',
            '427["heartbeat",{"metrics":{"cpuUsage":5},"uptime":1}]',
            f'427["join:room",{{"room":"device:{name}"}}]',
            f'43{dice.randrange(99)}[{{"ok":false,"error":"{name}"}}]',
            f"40/{name},{{}}",
            '451-3["screenshot:response",{"_placeholder":true,"num":0}]',
        ]
    )
    if kind == 2:
        return text
    where = dice.randrange(len(text))
    return text[:where] + chr(dice.randrange(32, 127)) * dice.randrange(3) + text[where + dice.randrange(4) :]


def test_noise_never_makes_a_series(tmp_path: Path) -> None:
    """Whatever packets say, the service answers afterwards, has logged no fault, and knows no new series."""
    limits = ("MESSAGES_PER_MINUTE", "PACKETS_PER_MINUTE", "CONNECTIONS_PER_MINUTE")
    env = {**ENV, **{f"VIZORA_LIMITS__{limit}": "0" for limit in limits}}
    with Service(tmp_path, env, workers=1) as service:
        service.start()

        address = f"ws://127.0.0.1:{service.port}/socket.io/?EIO=4&transport=websocket"

        def series() -> set[str]:
            lines = service.get("/metrics")[1].decode().splitlines()
            # Of the questions themselves there are more; Redis' memory and its policy are read some time later.
            ours = ("_http_", "_redis_memory_", "_redis_evicts")
            return {
                line.rpartition(" ")[0] for line in lines if line and line[0] != "#" and not any(map(line.count, ours))
            }

        def make_noise(dice: random.Random, connections: int) -> int:
            """How many connections were still there at its end."""
            stayed = 0
            for _ in range(connections):
                with connect(address, compression=None, close_timeout=1) as client:
                    client.send("40" + json.dumps({"token": device_token("noisy")}))
                    while not str(client.recv(timeout=PATIENCE)).startswith('42["config"'):
                        pass
                    try:
                        for _ in range(200):
                            client.send(noise(dice))
                        client.send('42111111["heartbeat",{}]')
                        while not str(client.recv(timeout=PATIENCE)).startswith("43111111["):
                            pass
                        stayed += 1
                    except ConnectionClosed:
                        pass  # a `1` or a `41` among it is a goodbye
            return stayed

        def make_noise_at_the_door(dice: random.Random, connections: int) -> None:
            """Before the CONNECT packet, and in it."""
            for _ in range(connections):
                with connect(address, compression=None, close_timeout=1) as client:
                    try:
                        for _ in range(5):
                            said = noise(dice)
                            client.send(said if dice.random() < 0.5 else "40" + str(said))
                        while True:
                            client.recv(timeout=PATIENCE)
                    except ConnectionClosed:
                        pass

        # An organisation has gauges as long as somebody of it is connected.
        with connect(address, compression=None, close_timeout=1) as quiet:
            quiet.send("40" + json.dumps({"token": device_token("quiet")}))
            make_noise_at_the_door(random.Random(1), 30)
            assert make_noise(random.Random(1), 30) > 20
            before = series()
            make_noise_at_the_door(random.Random(2), 30)
            assert make_noise(random.Random(2), 30) > 20
            assert series() - before == set()
        assert not [record for record in service.records if record["level"] in ("error", "critical")]
