"""`http` and `combined`: the control API, health checks and /metrics under load, beside devices that go on living."""

import json

from bench.load.fleet import Fleet
from bench.load.load_context import Agent
from bench.load.requests import Request, Requests
from bench.load.tokens import organization, subject
from bench.plan import Options
from bench.scenario import OLD_SUITE, Scenario

RATE = 1000.0
ROUND = 100
SCRAPES_A_ROUND = 1
OK = (200,)


def mix(devices: list[str]) -> list[Request]:
    """A round of requests: half ask for a device, the others for health, plays, a notice, a command, the figures."""
    notice = json.dumps({"organizationId": organization(0), "notification": {"title": "bench"}}).encode()
    requests: list[Request] = []
    for number in range(ROUND):
        device = devices[number % len(devices)]
        command = json.dumps({"deviceId": device, "command": {"type": "reload"}}).encode()
        choice = number % 10
        if number < SCRAPES_A_ROUND:
            requests.append(("scrape", "GET", "/metrics", None, OK))
        elif choice < 5:
            requests.append(("http", "GET", f"/devices/{device}", None, OK))
        elif choice < 7:
            requests.append(("http", "GET", "/health", None, OK))
        elif choice == 7:
            requests.append(("http", "GET", f"/devices/{device}/plays", None, OK))
        elif choice == 8:
            requests.append(("http", "POST", "/notifications/broadcast", notice, OK))
        else:
            requests.append(("http_command", "POST", "/internal/command", command, (200, 202)))
    return requests


async def load(agent: Agent) -> None:
    fleet = Fleet(agent)
    requests = Requests(agent, mix([subject(token) for token in agent.job.tokens]))
    await requests.connect()
    await fleet.connect()
    requests.start((agent.options.rate or RATE) * agent.job.share)
    await fleet.live(own_rate=True)
    await requests.stop()
    await fleet.leave()


SCENARIOS = (
    Scenario(
        "http",
        "The control API and /metrics at --rate requests a second, devices connected",
        load,
        Options(devices=20, rate=500.0, seconds=10.0),
        ("connected>=95%", "http.p95<100ms", "scrape.p95<500ms", "errors<0.1%"),
        needs_key=True,
    ),
    Scenario(
        "combined",
        "100 devices and 1,000 requests a second at the same time",
        load,
        Options(devices=100, rate=1000.0, seconds=15.0, interval=1.0),
        (*OLD_SUITE, "http.p95<100ms", "errors<0.1%"),
        needs_key=True,
    ),
)
