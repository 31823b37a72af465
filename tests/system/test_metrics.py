"""The exposition of the running service: valid for its readers, true whatever workers do, bounded whatever peers do."""

import asyncio
import contextlib
import gzip
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.net.peers import SECRETS, Wire, device_token, dial_device, frame, text, upgrade, user_token
from tests.service_process import Service, until
from tests.tools import tool
from vizora_rt.telemetry.metrics import FAMILIES, PREFIX

UNLIMITED = {
    **SECRETS,
    "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
    "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0",
    "VIZORA_LIMITS__PACKETS_PER_MINUTE": "0",
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(service: Service, **headers: str) -> str:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    status, body = service.get("/metrics", fields)
    assert status == 200, body
    return (gzip.decompress(body) if "accept-encoding" in fields else body).decode()


def samples(exposition: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(exposition)
        for sample in family.samples
    }


def read(openmetrics: str) -> list[Metric]:
    return list(openmetrics_parser.text_string_to_metric_families(openmetrics))  # type: ignore[no-untyped-call]


def counters(found: Samples) -> Samples:
    """What must never fall. Of a process that is gone there are no figures, and its successor's are its own."""
    ends = ("_total", "_bucket", "_sum", "_count")
    return {key: value for key, value in found.items() if key[0].endswith(ends) and not key[0].startswith("process_")}


async def busy(service: Service) -> None:
    """Something of most that there is to count."""
    screen = await dial_device(service.port, "lobby")
    await screen.heartbeat(metrics={"cpuUsage": 5, "memoryUsage": 6}, odd=1)
    await screen.ask("heartbeat", [])
    play = {"contentId": "c", "playlistId": "p", "timestamp": int(time.time() * 1000), "eventId": "e1"}
    await screen.ask("content:impression", play)
    await screen.ask("content:error", {"contentId": "c", "errorType": "timeout"})
    await screen.leave()
    for path in ("/health", "/nothing", "/health/ready"):
        await asyncio.to_thread(service.get, path)
    with contextlib.suppress(InvalidStatus):
        await dial_device(service.port, "lobby", secret="x" * 40)


async def test_readers_of_both_formats_read_the_same_and_promtool_has_no_complaint(tmp_path: Path) -> None:
    with Service(tmp_path, UNLIMITED, workers=2) as service:
        await asyncio.to_thread(service.start)
        await busy(service)
        plain = await asyncio.to_thread(scrape, service)
        zipped = await asyncio.to_thread(scrape, service, accept_encoding="gzip")
        openmetrics = await asyncio.to_thread(scrape, service, accept="application/openmetrics-text;version=1.0.0")

        names = {sample for sample, _ in samples(plain)}
        in_openmetrics = {sample.name for family in read(openmetrics) for sample in family.samples}
        assert names == in_openmetrics == {sample for sample, _ in samples(zipped)}
        headers = {line.split()[2] for line in plain.splitlines() if line.startswith("# TYPE")}
        assert headers == {family.full_name for family in FAMILIES}

        found = samples(plain)
        failed = (("method", "GET"), ("path", "unmatched"))
        assert found[f"{PREFIX}http_request_duration_seconds_count", failed] == 1
        assert found[f"{PREFIX}ws_messages_total", (("result", "refused"), ("type", "heartbeat"))] == 1

        check = await asyncio.to_thread(
            subprocess.run, [tool("promtool"), "check", "metrics"], input=plain, capture_output=True, text=True
        )
        assert (check.returncode, check.stdout + check.stderr) == (0, "")


async def live(service: Service, name: str, over: asyncio.Event) -> None:
    """A screen that sends heartbeats and comes back whenever its worker is gone."""
    while not over.is_set():
        with contextlib.suppress(ConnectionClosed, InvalidStatus, OSError, TimeoutError, EOFError):
            screen = await dial_device(service.port, name)
            while not over.is_set():
                await screen.heartbeat()
                await asyncio.sleep(0.02)
            await screen.leave()


@contextlib.asynccontextmanager
async def fleet(service: Service, screens: int) -> AsyncIterator[None]:
    over = asyncio.Event()
    alive = [asyncio.create_task(live(service, f"lobby-{number}", over)) for number in range(screens)]
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*alive)


@pytest.mark.parametrize("deaths", [5, pytest.param(200, marks=pytest.mark.soak)])
async def test_no_counter_falls_when_workers_die_under_load_and_the_exposition_stays_as_it_is(
    tmp_path: Path, deaths: int
) -> None:
    with Service(tmp_path, UNLIMITED, workers=2) as service:
        await asyncio.to_thread(service.start)
        sizes, times = [], []
        async with fleet(service, 24):
            await asyncio.to_thread(
                until, lambda: service.metric('vizora_realtime_devices_online{organization_id="acme"}') == 24
            )
            last = samples(await asyncio.to_thread(scrape, service))
            began = last
            for number in range(deaths):
                workers = await asyncio.to_thread(until, lambda: ready(service))
                os.kill(workers[number % 2], signal.SIGKILL)
                now = await watched(service, last)
                await asyncio.to_thread(service.wait, "worker ready", 2 + number + 1)
                at = time.perf_counter()
                exposition = await asyncio.to_thread(scrape, service)
                times.append(time.perf_counter() - at)
                sizes.append(len(exposition))
                now = samples(exposition)
                assert fallen(last, now) == {}
                last = now
        beats = f"{PREFIX}ws_messages_total", (("result", "ok"), ("type", "heartbeat"))
        crashes = f"{PREFIX}worker_restarts_total", (("reason", "crash"),)
        assert last[beats] > began[beats] + deaths
        assert last[crashes] == deaths
        assert max(sizes[2:]) < min(sizes[2:]) * 1.05, "digits grow, series do not"
        early, late = (median(part) * 1000 for part in (times[: deaths // 4 + 1], times[-deaths // 4 :]))
        print(f"{deaths} deaths, {last[beats]:.0f} heartbeats")
        print(f"scrapes: {sizes[2]} to {sizes[-1]} bytes, {early:.1f} ms at first, {late:.1f} ms at last")


async def watched(service: Service, before: Samples) -> Samples:
    """A scrape while the worker is away."""
    now = samples(await asyncio.to_thread(scrape, service))
    assert fallen(before, now) == {}
    return now


def ready(service: Service) -> list[int]:
    workers = service.workers()
    return workers if len(workers) == 2 else []


def fallen(before: Samples, after: Samples) -> dict[str, tuple[float, float | None]]:
    later = counters(after)
    return {
        f"{name}{labels}": (value, later.get((name, labels)))
        for (name, labels), value in counters(before).items()
        if later.get((name, labels), -1.0) < value
    }


ORGANIZATIONS = {f"org-{number}" for number in range(30)}
"""More than there are series for. Who they are is said by whoever signs tokens, and not by a peer."""


def inventions(number: int) -> list[bytes]:
    """Names that nobody ever had: of events, fields, errors, paths, methods, devices, codes."""
    dice = random.Random(number)
    word = f"{dice.getrandbits(64):x}"
    organization = f"org-{number % len(ORGANIZATIONS)}"
    token = device_token(f"screen-{word}", organization)
    close = frame(0x8, dice.randrange(3000, 5000).to_bytes(2, "big") + word.encode())
    talk = [
        text(word, {word: word}, number),
        text("heartbeat", {word: 1, "metrics": {word: 2}}, number),
        text("content:error", {"contentId": word, "errorType": word, "errorCode": word}, number),
        text("ack", {"commandId": word}, number),
        text("content:impression", {"contentId": word, "eventId": word, "timestamp": word}, number),
        close,
    ]
    return [
        f"GET /{word} HTTP/1.1\r\nHost: {word}\r\nConnection: close\r\n\r\n".encode(),
        f"{word.upper()} /devices/{word} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(),
        upgrade(token) + b"".join(talk),
        upgrade(user_token(word, organization)) + text("join:room", {"room": word}) + close,
        upgrade(device_token(word, secret=word * 4)),
    ]


async def invent(port: int, numbers: range) -> None:
    for number in numbers:
        for data in inventions(number):
            wire = await Wire.open(port)
            try:
                await wire.send(data)
                await wire.ends()
            except (OSError, TimeoutError):
                pass
            await wire.close()


@pytest.mark.parametrize("peers", [200, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_peers_can_not_create_a_series(tmp_path: Path, peers: int) -> None:
    caps = {"VIZORA_METRICS__MAX_DEVICE_SERIES": "50", "VIZORA_METRICS__MAX_ORGANIZATION_SERIES": "20"}
    env = {**UNLIMITED, **caps, "VIZORA_LIMITS__HANDSHAKES_PER_SECOND": "0"}
    with Service(tmp_path, env, workers=1) as service:
        await asyncio.to_thread(service.start)
        await asyncio.to_thread(until, lambda: service.metric("vizora_realtime_redis_memory_bytes"))
        half = peers // 2
        await crowd(service, range(half))
        first = samples(await asyncio.to_thread(scrape, service))
        await crowd(service, range(half, peers))
        second = samples(await asyncio.to_thread(scrape, service))
        fresh = {(name, dict(labels).get("organization_id", "")) for name, labels in set(second) - set(first)}
        # Of these an organisation has a series once one of its clients was there when it was counted.
        gauges = {(f"{PREFIX}{name}", each) for name in NEVER_AT_ONCE for each in (*ORGANIZATIONS, "other")}
        assert fresh - gauges == set()
        unknown = f"{PREFIX}ws_messages_total", (("result", "refused"), ("type", "unknown"))
        assert second[unknown] >= peers * 0.9
        print(f"{peers * 5} connections with names of their own: {len(first)} series, and {len(second)} after more")


NEVER_AT_ONCE = ("devices_online", "ws_connections_active")


async def crowd(service: Service, numbers: range) -> None:
    await asyncio.gather(*(invent(service.port, numbers[start::16]) for start in range(16)))
    await asyncio.to_thread(until, lambda: not service.status()["workers"][0]["connections"])
