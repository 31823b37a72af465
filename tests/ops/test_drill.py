"""Drills: the alert of a real fault arrives; one that does not is told apart. All alerts: make soak, make drill."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.service_process import PATIENCE, alive, until
from tests.tools import tool
from vizora_rt.errors import StartupError
from vizora_rt.ops import alerts, drill, faults, monitors
from vizora_rt.ops.drill import DrillError, Inbox, Result
from vizora_rt.ops.faults import FAULTS
from vizora_rt.ops.monitors import AlertNotification
from vizora_rt.ops.site import Sandbox

OPS = Path(__file__).parent.parent.parent / "ops"


@pytest.fixture
def programs() -> None:
    tool("prometheus")
    tool("prometheus-alertmanager")


def changed(folder: Path, old: str, new: str) -> None:
    """The files of ops/ with something else in them."""
    for name in monitors.CHECKOUT_FILES:
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((OPS / name).read_text("utf-8").replace(old, new))


def told(receiver: str, firing: bool = True) -> AlertNotification:
    return AlertNotification(receiver, "RedisDown", firing, "summary", "description", "runbook")


@pytest.mark.usefixtures("programs")
class TestDrill:
    async def test_two_alerts_fire_arrive_and_resolve(self) -> None:
        said: list[str] = []
        results = await drill.run(["ServiceDown", "RedisDown"], OPS, said.append, jobs=2)
        assert [result.failure for result in results] == ["", ""], said
        assert [result.alert for result in results] == ["ServiceDown", "RedisDown"]
        for result in results:
            # Two scrapes fail, or a reply does not come for a second, before anybody is told.
            assert result.fired > 1 and result.resolved > 0
            # Of its one gateway, or of every one: Alertmanager puts the latter first.
            assert re.search(r"127\.0\.0\.1:|any gateway|Every gateway", result.description)
            assert any(line.startswith(f"{result.alert}: fired after") for line in said)

    @pytest.mark.soak
    async def test_all(self) -> None:
        results = await drill.run([], OPS, print, jobs=2)
        print("\n".join(drill.table(results)))
        assert {result.alert: result.failure for result in results} == dict.fromkeys(FAULTS, "")

    @pytest.mark.soak
    async def test_an_alert_that_cannot_fire_is_seen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        changed(tmp_path, "vizora_realtime_redis_up", "vizora_realtime_redis_upp")
        monkeypatch.setattr(drill, "FIRE_SECONDS", 15.0)
        (result,) = await drill.run(["RedisDown"], tmp_path, print)
        assert result.failure == "firing did not reach pagerduty, slack within 15 s"

    @pytest.mark.soak
    async def test_an_alert_that_always_fires_is_seen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was told before the fault is not taken for its effect."""
        changed(tmp_path, 'up{job="vizora-realtime"} == 0', 'up{job="vizora-realtime"} >= 0')
        monkeypatch.setattr(drill, "CALM_SECONDS", 8.0)
        (result,) = await drill.run(["ServiceDown"], tmp_path, print)
        assert result.failure == "no screens, or it fires before anything was done"

    @pytest.mark.soak
    async def test_a_fault_that_ends_by_itself_is_no_drill(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def nothing(site: Sandbox) -> None:
            pass

        monkeypatch.setitem(faults.FAULTS, "RedisDown", replace(FAULTS["RedisDown"], run=nothing))
        (result,) = await drill.run(["RedisDown"], OPS, print)
        assert result.failure == "the fault ended by itself: None"


class TestHeard:
    async def test_all_who_must_hear_of_it(self) -> None:
        inbox = Inbox()
        wanted = frozenset({"pagerduty", "slack"})
        inbox.take(told("slack"))
        with pytest.raises(DrillError, match="firing did not reach pagerduty within"):
            await drill.heard(inbox, "RedisDown", True, wanted, 0.2)
        inbox.take(told("pagerduty"))
        await drill.heard(inbox, "RedisDown", True, wanted, 0.2)
        with pytest.raises(DrillError, match="its resolution did not reach pagerduty, slack"):
            await drill.heard(inbox, "RedisDown", False, wanted, 0.2)
        with pytest.raises(DrillError, match="firing did not reach"):
            await drill.heard(inbox, "ServiceDown", True, wanted, 0.2)

    async def test_a_fault_that_fails(self) -> None:
        async def fails() -> None:
            raise ConnectionError("no gateway")

        task = asyncio.ensure_future(fails())
        with pytest.raises(DrillError, match="no gateway"):
            await drill.heard(Inbox(), "RedisDown", True, frozenset({"slack"}), 5, task)


def test_a_form_is_told_apart_from_others_of_its_name() -> None:
    inbox = Inbox()
    inbox.take(told("email")._replace(alert="ConnectionDrops", form="ratio", description="one"))
    assert inbox.receivers("ConnectionDrops", True) == {"email"}
    assert inbox.receivers("ConnectionDrops/fleet", True) == frozenset()
    inbox.take(told("email")._replace(alert="ConnectionDrops", form="fleet", description="all"))
    assert inbox.receivers("ConnectionDrops/fleet", True) == {"email"}
    assert inbox.description("ConnectionDrops/fleet") == "all"


async def test_an_alert_that_does_not_exist() -> None:
    with pytest.raises(StartupError, match="no drill for Redisdown; there are HighErrorRate, "):
        await drill.run(["Redisdown"], OPS, print)


def test_the_table() -> None:
    assert drill.table([Result("A", "info", "a fault", 1.4, 2.6, "d"), Result("B", "critical", "b", failure="no")]) == [
        "| alert | severity | fault | fired | resolved | told |",
        "|---|---|---|---:|---:|---|",
        "| A | info | a fault | 1 s | 3 s | email |",
        "| B | critical | b | | | **no** |",
    ]


def test_the_page_tells_of_each_drill_as_it_is_done() -> None:
    page = (OPS.parent / "docs/monitoring.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.endswith((" slack |", " email |"))]
    severities = {alert.name: alert.severity for alert in alerts.ALERTS}
    seen = {row[0]: (row[1], row[2], row[5]) for row in rows if len(row) == 6}
    assert seen == {
        name: (severity, fault.about, ", ".join(sorted(drill.RECEIVERS[severity])))
        for name, fault in FAULTS.items()
        if (severity := severities[name.partition("/")[0]])
    }


@pytest.mark.soak
@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_ends_it_early_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vizora_rt", "ops", "drill", "DuplicateIdentity", f"--ops={OPS}"],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert until(lambda: children(process.pid) >= {"prometheus", "prometheus-aler"})
        mine = descendants(process.pid)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
        process.stdout.close()
    assert [pid for pid in mine if alive(pid)] == []
    assert list(tmp_path.iterdir()) == []


def descendants(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed] + [each for child in listed for each in descendants(int(child))]


def children(pid: int) -> set[str]:
    """Their names, of which the kernel keeps 15 characters."""
    return {Path(f"/proc/{each}/comm").read_text().strip() for each in descendants(pid)}
