"""Messages between workers: what fits a schema is read, and nothing that anybody publishes raises."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.app.dashboards import status_body
from vizora_rt.net.gateway import control_messages
from vizora_rt.wire import bells

RIGHT: dict[str, dict[str, Any]] = {
    "look": {"look": ["lobby", "hall"]},
    "done": {"done": "c1", "of": [["lobby", "acked", ""], ["hall", "failed", "no disk"]]},
    "revoked": {"revoked": "lobby", "reason": "stolen", "jti": None},
    "kick": {"kick": "lobby"},
    "erased": {"erased": "lobby"},
    "superseded": {"superseded": "lobby", "epoch": 1796065784883635},
    "tenant": {"tenant": "suspended", "organizationId": "acme", "reason": ""},
    "notice": {"notice": "notification:new", "organizationId": "acme", "userId": None, "data": {"text": "hello"}},
    "status": json.loads(status_body("lobby", "online", 5, 6, "connected", 7)),
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", bells.SCHEMAS)
def test_what_a_worker_says(name: str) -> None:
    found = bells.read(name, RIGHT[name])
    assert type(found) is bells.SCHEMAS[name]
    assert bells.read(name, {**RIGHT[name], "novelty": [1]}) == found  # of a newer release


@pytest.mark.parametrize("name", bells.SCHEMAS)
def test_a_field_that_is_missing_or_wrong(name: str) -> None:
    needed = [field.encode_name for field in msgspec.structs.fields(bells.SCHEMAS[name]) if field.required]
    assert needed
    for field in needed:
        assert bells.read(name, {key: value for key, value in RIGHT[name].items() if key != field}) is None
        wrongs: tuple[Any, ...] = (None, [[1]], {"a": {}}, -1, 1e300, "\x00")
        for wrong in wrongs:
            if field != "data" and not isinstance(wrong, type(RIGHT[name][field])):
                assert bells.read(name, {**RIGHT[name], field: wrong}) is None, (field, wrong)


@pytest.mark.parametrize("name", bells.SCHEMAS)
@given(data=JSON)
def test_nothing_raises(name: str, data: Any) -> None:
    bells.read(name, data)
    for field in RIGHT[name]:
        bells.read(name, {**RIGHT[name], field: data})


def test_all_are_named_where_they_are_acted_on() -> None:
    listed = re.findall(r"\w+", (control_messages.__doc__ or "").split("\n\n")[1].split(".")[0])
    assert {*listed, "status"} == set(bells.SCHEMAS)
