"""The faults: one for each alert, none of which changes what the alert asks for. That they set it off is test_drill."""

import asyncio

import pytest

from vizora_rt.config import SECTIONS, Config
from vizora_rt.ops import alerts
from vizora_rt.ops.faults import FAULTS, together


def test_every_alert_has_one() -> None:
    names = {alert.name for alert in alerts.ALERTS}
    assert {name for name in FAULTS if "/" not in name} == names
    forms = {f"{alert.name}/{alert.form}" for alert in alerts.ALERTS}
    assert set(FAULTS) - names == {"ConnectionDrops/fleet"} <= forms


@pytest.mark.parametrize("name", FAULTS)
def test_its_environment_is_of_keys_that_exist(name: str) -> None:
    for variable in FAULTS[name].env:
        section, key = variable.removeprefix("VIZORA_").lower().split("__")
        assert section in SECTIONS
        assert key in getattr(Config(), section).__struct_fields__


async def test_what_runs_together_ends_together() -> None:
    ended = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    async def fails() -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await together(forever(), fails())
    assert ended == ["forever"]
