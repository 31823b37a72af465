"""docs/protocol.md is true: its examples, run against a service of two workers, and its tables, against the code's."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import pytest
import redis
from msgspec import Meta, Struct

from tests.contract import PLACEHOLDERS, Page, Reader, WrongError, code, differs, differs_in_text
from tests.net.backend import API_KEY, Backed, call, fleet
from tests.net.peers import SECRETS, device_token, user_token
from tests.service_process import Service, until
from tests.tools import tool
from vizora_rt import config, errors
from vizora_rt.app import auth, commands, content_errors, play_script, screenshots
from vizora_rt.errors import Refusal
from vizora_rt.net.api import control_routes
from vizora_rt.net.api.control import KEPT_SECONDS
from vizora_rt.net.commands import delivery
from vizora_rt.net.presence import record as device_record
from vizora_rt.net.server import held_messages, places, socketio
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.telemetry.metrics import NOTICE, OTHER
from vizora_rt.wire import bodies, http, messages, payloads

PAGE = Page.read(Path(__file__).parents[2] / "docs" / "protocol.md")
ENV = {**SECRETS, "INTERNAL_API_SECRET": API_KEY}


def tokens() -> dict[str, str]:
    return {
        "lobby-1": device_token("lobby-1"),
        "hall-1": device_token("hall-1", "beta"),
        "ann": user_token("ann"),
        "": "",
    }


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), ENV, workers=2) as running:
        yield running.start()


@pytest.fixture
def shell(service: Service) -> dict[str, str]:
    """What the shell of a reader of the page has in its environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{service.env['PATH']}"
    return {**service.env, "PATH": path, "GATEWAY": f"http://127.0.0.1:{service.port}"}


def store_of(service: Service) -> str:
    return valkey_server.running(Path(service.env["VIZORA_STATE_DIR"]))


@pytest.fixture
def reader(service: Service, shell: dict[str, str]) -> Reader:
    tool("curl")
    return Reader(shell["GATEWAY"], store_of(service), shell, service.folder, tokens())


class TestExamples:
    async def test_all_are_true(self, service: Service, reader: Reader) -> None:
        await reader.run(PAGE)
        shown = [block for block in PAGE.blocks() if block.kind in ("native", "socketio", "console", "redis")]
        lines = [line for block in shown for line in block.lines if not line.startswith(("> ", "$ "))]
        assert len(reader.heard) == len(lines) > 100
        check_keys(store_of(service))
        check_sensitive(reader.heard)

    @pytest.mark.parametrize(
        ("shown", "other"),
        [
            ('"cacheSize":1024', '"cacheSize":1025'),
            ('"autoUpdate":true,', ""),
            ('"serverTime":"<ms>"', '"serverTime":"<time>"'),
            ('< {"event":"config"', '< {"event":"welcome"'),
            ('"AUTH_INVALID","message"', '"AUTH_EXPIRED","message"'),
            ("\n401\n", "\n403\n"),
        ],
    )
    async def test_another_is_not(self, reader: Reader, shown: str, other: str) -> None:
        """One that says something else than the service fails, wherever it does so."""
        text = "\n".join(PAGE.lines[: PAGE.lines.index("### Socket.IO")])
        assert shown in text
        page = Page(text.replace(shown, other, 1))
        # The screen of the page is another's by now, perhaps: the first example is not of one connection.
        with pytest.raises(WrongError):
            await reader.run(page)

    async def test_a_player(self, service: Service, shell: dict[str, str]) -> None:
        """The one of the page, as a process: it beats, plays, obeys each command once, and goes when it is told to."""
        (source,) = [block for block in PAGE.blocks() if block.kind == "python"]
        program = service.folder / "player.py"
        program.write_text("\n".join(source.lines), "utf-8")
        env = {**shell, "TOKEN": device_token("player-1")}
        player = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", str(program), env=env, stdout=asyncio.subprocess.PIPE
        )
        try:
            await asyncio.to_thread(until, lambda: watermark(service, "player-1") >= 1)
            command = {"deviceId": "player-1", "command": {"type": "reload", "commandId": "again"}}
            for path, body in (
                ("/push/playlist", {"deviceId": "player-1", "playlist": {}, "version": "v7"}),
                ("/internal/command", command),
                ("/internal/command", command),
                ("/internal/device-revoked", {"deviceId": "player-1"}),
            ):
                assert (await post(service, path, body))["delivered"] is True, path
            assert player.stdout is not None
            async with asyncio.timeout(20):
                said = await player.stdout.read()
            assert said.decode().splitlines() == ["playlist v7", "command reload", "told to stay away: 4501"]
            assert await player.wait() == 0
        finally:
            if player.returncode is None:
                player.kill()
                await player.wait()


async def post(service: Service, path: str, body: Any) -> Any:
    answer = await call(service, "POST", path, body)  # it has a port
    assert answer.status == 200, answer
    return answer.body


def watermark(service: Service, device: str) -> int:
    status, body = service.get(f"/devices/{device}/plays", {"x-internal-api-key": API_KEY})
    assert status == 200
    return max((boot["watermark"] for boot in json.loads(body)["boots"]), default=0)


def check_sensitive(heard: list[tuple[str, str]]) -> None:
    """Each line that the page shows is compared whole: change any one value of it, and it is not what came."""
    changed = 0
    for expected, actual in heard:
        assert differs_in_text(expected, actual) == ""
        for other in others(expected):
            assert differs_in_text(other, actual) != "", other
            changed += 1
    assert changed > 500


def others(line: str) -> Iterator[str]:
    """`line` with one leaf of its JSON another, one name more or one less."""
    start = re.search(r"[\[{]", line)
    try:
        value = json.loads(line[start.start() :]) if start is not None else None
    except ValueError:
        value = None
    if value is None or start is None:
        if line not in PLACEHOLDERS:
            yield line + "x"
        return
    for change in changes(value):
        copy = deepcopy(value)
        change(copy)
        yield line[: start.start()] + json.dumps(copy)


def changes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Callable[[Any], None]]:
    def at(root: Any, way: tuple[Any, ...]) -> Any:
        for step in way:
            root = root[step]
        return root

    for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(each, dict | list):
            yield from changes(each, (*path, key))
        else:
            yield lambda root, key=key: at(root, path).__setitem__(key, "another")  # type: ignore[misc]
        yield lambda root, key=key: at(root, path).__delitem__(key)  # type: ignore[misc]
    if isinstance(value, dict):
        yield lambda root: at(root, path).__setitem__("novelty", 1)


def test_placeholders_are_told_apart() -> None:
    samples = {
        "<time>": "2026-11-23T04:00:00.000Z",
        "<date>": "2026-11-23",
        "<ms>": 1_795_406_400_000,
        "<number>": 1.5,
        "<n>": 7,
        "<text>": "any text",
        "<id>": "lobby-1",
        "<token>": "a.b.c",
    }
    assert samples.keys() == PLACEHOLDERS.keys()
    for name, value in samples.items():
        assert differs(name, value) == ""
    for name in samples:
        assert differs(name, []) != ""
        assert differs(name, None) != ""
        assert differs(name, True) != ""
        assert differs(name, "") != ""


def test_a_block_without_its_service_is_no_proof() -> None:
    kinds = {block.kind for block in PAGE.blocks()}
    assert kinds == {"native", "socketio", "console", "redis", "python"}
    assert not [block for block in PAGE.blocks() if not block.lines]


# Redis


def check_keys(url: str) -> None:
    """Every key that the examples left is in the table, and every row of it was left or is somebody else's."""
    client = redis.Redis.from_url(url, decode_responses=True)
    kinds = {code(name): kind for name, kind, *_ in PAGE.rows("### Keys")}
    patterns = {name: re.compile(re.sub(r"<\w+>", ".+?", re.escape(name))) for name in kinds}
    seen = set()
    for key in client.scan_iter():
        rows = [name for name, pattern in patterns.items() if pattern.fullmatch(key)]
        assert rows, f"{key} is not in the table"
        assert {"zset": "sorted set"}.get(str(client.type(key)), client.type(key)) == kinds[rows[0]], key
        seen.add(rows[0])
    client.close()
    elsewhere = {
        "vz:{d:<device>}:revoked": "undone",
        "vz:{d:<device>}:refreshed": "off by default",
        "vz:{o:<organisation>}:suspended": "resumed",
        "vz:lease:sweeper": "only during a sweep",
        "revoked_token:<jti>": "of others",
        "user_revoked:<user>": "of others",
        "pwd_changed:<user>": "of others",
    }
    assert kinds.keys() - seen <= elsewhere.keys() <= kinds.keys()


# Tables


def refusals(title: str, count: int = 1) -> list[Refusal]:
    found = []
    for cells in PAGE.rows(title, count):
        word, message, *rest = cells
        status = int(rest.pop(0)) if rest[0].isdigit() else 0
        found.append(Refusal(code(word), code(message), status, rest[0] == "yes"))
    return found


def spoken(refusal: Refusal) -> tuple[str, str, bool]:
    return refusal.code, refusal.message, refusal.retryable


class TestRefusals:
    def test_of_handshakes(self) -> None:
        told = refusals("### Refusals")
        assert [(*spoken(each), each.status) for each in told] == [
            (*spoken(each), each.status) for each in errors.HANDSHAKE_REFUSALS
        ]

    def test_all_of_them_are_told(self) -> None:
        calls, of_messages = refusals("### Refused calls"), refusals("What a message is refused for:")
        http = {(*spoken(each), each.status) for each in [*calls, *refusals("### Refusals")]}
        known = [each for each in vars(errors).values() if isinstance(each, Refusal)]
        for each in http:
            assert each in {(*spoken(refusal), refusal.status) for refusal in known}
        for told in of_messages:
            assert spoken(told) in {spoken(refusal) for refusal in known}
        told_codes = {each.code for each in (*calls, *refusals("### Refusals"), *of_messages)}
        assert told_codes == {each.code for each in known}


def test_close_codes() -> None:
    told = [(int(number), code(name), text, back == "yes") for number, name, text, back in PAGE.rows("### Close codes")]
    assert told == [(each.code, each.name, each.text, each.come_back) for each in errors.CLOSES]


class TestEvents:
    async def test_of_clients(self, redis_url: str) -> None:
        table = Backed(redis_url).gateway._dispatcher._events
        rows = {code(name): who for name, who, _ in PAGE.rows("### From clients")}
        assert rows.keys() == table.keys()
        for name, who in rows.items():
            event = table[name].event
            assert event is not None
            assert ("dashboard" in who) is (event.viewer is not None)
            title = PAGE.lines.index(f"#### {name}")
            marker = next(line for line in PAGE.lines[title:] if line.startswith("<!-- fields "))
            assert marker == f"<!-- fields {event.schema.__name__} -->"

    @pytest.mark.parametrize("number", range(sum(line.startswith("<!-- fields ") for line in PAGE.lines)))
    def test_fields(self, number: int) -> None:
        place = [n for n, line in enumerate(PAGE.lines) if line.startswith("<!-- fields ")][number]
        schema = getattr(payloads, PAGE.lines[place].split(" ")[2])
        page = Page("\n".join(PAGE.lines[place:]))
        told = [(name, rule) for name, rule, *_ in page.rows(page.lines[0])]
        assert told == list(fields(schema))

    def test_of_the_server(self) -> None:
        told = {code(name) for name, *_ in PAGE.rows("### To clients")}
        assert NOTICE.values is not None
        assert told == {*NOTICE.values, "gap"} - {OTHER}


def fields(schema: type[Struct], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each field of a message as the page writes it: its name, bold when it is required, and its rule."""
    for each in sorted(msgspec.structs.fields(schema), key=lambda field: not field.required):
        name = f"`{prefix}{each.encode_name}`"
        yield f"**{name}**" if each.required else name, rule(each.type)
        inner, element = payloads._struct(each.type), payloads._element(each.type)
        if inner is not None:
            yield from fields(inner, f"{prefix}{each.encode_name}.")
        elif element is not None:
            yield from fields(element, f"{prefix}{each.encode_name}[].")


def rule(kind: Any) -> str:
    if kind in (payloads.Time | None, payloads.Sent | None):
        return "[time](#times)"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return "; or ".join(rule(each) for each in arguments if each is not type(None))
    if origin is Annotated:
        return bounded(arguments[0], kind.__metadata__[0])
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is dict or (isinstance(kind, type) and issubclass(kind, Struct)):
        return "object"
    return {float: "number", int: "whole number", str: "text", bool: "true or false"}[kind]


def bounded(kind: Any, meta: Meta) -> str:
    if meta.pattern is not None and "8192" in meta.pattern:
        return "1 to 8192 characters of ASCII without space"
    if meta.pattern is not None:
        return "id" if "128" in meta.pattern else "1 to 64 of A to Z, a to z, 0 to 9 and `._~+/=-`"
    if get_origin(kind) is list and meta.min_length:
        return f"list of {meta.min_length} to {meta.max_length} ids"
    if get_origin(kind) is list:
        return f"list of at most {meta.max_length} objects"
    if kind is str:
        low = f"{meta.min_length} to" if meta.min_length else "at most"
        return f"text, {low} {meta.max_length} characters"
    most = "2^53" if meta.le == 2**53 else meta.le
    if meta.gt is not None:
        return f"{rule(kind)}, more than {meta.gt}, at most {most}"
    return f"{rule(kind)}, " + (f"{meta.ge} to {most}" if most is not None else f"at least {meta.ge}")


BODIES: dict[str, type[Struct]] = {
    "/push/playlist": bodies.PushPlaylist,
    "/push/content": bodies.PushContent,
    "/commands/broadcast": bodies.Broadcast,
    "/internal/command": bodies.DeviceCommand,
    "/notifications/broadcast": bodies.Notification,
    "/internal/device-revoked": bodies.Revocation,
    "/internal/tenant-entitlement": bodies.Entitlement,
    "/internal/token-refresh": bodies.TokenRefresh,
}


def body_fields() -> Iterator[tuple[str, str]]:
    """Each field of the bodies, once: the same name has the same rule in all of them."""
    rules: dict[str, str] = {}
    for schema in BODIES.values():
        for name, text in fields(schema):
            assert rules.setdefault(name.strip("*"), text) == text, name
    yield from rules.items()


class TestRoutes:
    async def test_methods_paths_and_bodies(self, redis_url: str) -> None:
        node = Backed(redis_url)
        told = [(method, code(path)) for method, path, *_ in PAGE.rows("### Routes")]
        assert len(told) == len(set(told))
        assert set(told) == {(method, path) for path, methods in node.http._routes.items() for method in methods}

    def test_bodies(self) -> None:
        schemas = dict(BODIES)
        for method, path, _, body, _ in PAGE.rows("### Routes"):
            if method == "POST":
                told = set(re.findall(r"(\*\*)?`(\w+)`", body))
                known = msgspec.structs.fields(schemas.pop(code(path)))
                assert told == {("**" if each.required else "", each.encode_name) for each in known}
        assert schemas == {}

    def test_fields(self) -> None:
        told = [(names, rule) for names, rule in PAGE.rows("<!-- bodies -->")]
        assert told == list(body_fields())

    async def test_the_key(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            for method, path, key, *_ in PAGE.rows("### Routes"):
                target = re.sub(r"\{\w+\}", "x", code(path))
                if key == "yes":
                    assert (await call(node, method, target, key=None)).status == 401
                else:
                    assert (await call(node, method, target, key=None)).status != 401


class TestLimits:
    def test_of_the_configuration(self) -> None:
        defaults = config.LimitSettings()
        told = {code(key): number for key, number, _ in PAGE.rows("## Limits")}
        assert list(told) == list(defaults.__struct_fields__)
        for key, number in told.items():
            value = getattr(defaults, key)
            assert number == ("" if value is None else f"{value:g}" if isinstance(value, float) else str(value))

    def test_of_the_code(self) -> None:
        told = {what: int(number) for what, number, _ in PAGE.rows("Those that are not configured:")}
        assert told == {
            "characters of a token": auth.MAX_TOKEN,
            "header fields of a request": http.MAX_FIELDS,
            "cookies of a request": http.MAX_COOKIES,
            "parameters of a query": http.MAX_PARAMETERS,
            "chunks of a body": http.MAX_CHUNKS,
            "bytes of unfinished requests": places.UNFINISHED_BYTES,
            "packets of a Socket.IO client before CONNECT": socketio.PACKETS,
            "pings, pongs and short fragments before CONNECT": socketio.SMALL_FRAMES,
            "bytes of a client's messages that wait for its rate": held_messages.KEPT_BYTES,
            "halves of characters that are mended in a message": messages.MENDED,
            "plays in a batch": payloads.MAX_PLAYS,
            "bytes of an image": screenshots.MAX_IMAGE,
            "bytes of a message with an image": delivery.SCREENSHOT_BYTES,
            "bytes of a content error's `context`": content_errors.MAX_CONTEXT,
            "reasons in `details` of a message": payloads.MAX_DETAILS,
            "commands that wait for a device": commands.MAX_WAITING,
            "bytes of a command's message": commands.MAX_PAYLOAD,
            "seconds of a command's life": bodies.MAX_TTL,
            "devices in a broadcast": control_routes.MOST_DEVICES,
            "devices on a page": device_record.MOST_A_PAGE,
        }

    def test_of_proof_of_play(self) -> None:
        told = dict(PAGE.rows("## Proof of play"))
        numbers = {what: int(re.sub(r",(?=\d)", "", text).split(" ")[0].rstrip(";")) for what, text in told.items()}
        assert numbers == {
            "plays in a batch": payloads.MAX_PLAYS,
            "boots of a device": play_script.MAX_BOOTS,
            "memory of a boot": play_script.KEEP_DAYS,
            "holes of a boot": play_script.MAX_HOLES,
            "holes that an ack lists": play_script.LISTED_HOLES,
        }

    def test_idempotency(self) -> None:
        assert KEPT_SECONDS == 24 * 3600
        assert "For 24 hours the same call" in PAGE.text

    def test_command_types(self) -> None:
        start = PAGE.text.index("The types are ")
        told = re.findall(r"`(\w+)`", PAGE.text[start : PAGE.text.index(";\n", start)])
        assert tuple(told) == commands.TYPES == get_args(bodies.Type)
