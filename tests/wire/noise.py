"""Values of every kind that JSON has, and schemas with a struct in each place where one may stand."""

from typing import Annotated

import msgspec
from hypothesis import strategies as st
from msgspec import Meta, Struct

from vizora_rt.wire import payloads
from vizora_rt.wire.payloads import (
    Content,
    DeviceMetrics,
    Heartbeat,
)


class Phase(Struct, forbid_unknown_fields=True):
    seq: Annotated[int, Meta(ge=1)]
    name: str | None = None


class Play(Struct, forbid_unknown_fields=True, rename="camel"):
    """What no heartbeat has: fields that are required, in each way that a struct may stand in a field."""

    content_id: Annotated[str, Meta(min_length=1, max_length=8)]
    phase: Phase
    last_phase: Phase | None = None
    noted: Annotated[Phase | str | None, Meta(description="either")] = None
    phases: Annotated[list[Phase], Meta(max_length=2)] = []
    by_name: dict[str, Phase] = {}
    timestamp: str | float | None = None
    volume: int = 5


class Batch(Struct, forbid_unknown_fields=True):
    phases: Annotated[list[Phase], Meta(max_length=100)]


SCHEMAS: list[type[Struct]] = [
    Play,
    Phase,
    Batch,
    *(
        kind
        for name, kind in vars(payloads).items()
        if isinstance(kind, type) and issubclass(kind, Struct) and not name.startswith("_")
    ),
]
SCHEMAS.remove(Struct)


def names_of(schema: type[Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(schema)]


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
json_text = st.text(max_size=140)
any_text = st.text(st.characters(), max_size=140)
"""Also what no UTF-8 has: halves of surrogate pairs."""
any_name = st.sampled_from(sorted({name for schema in SCHEMAS for name in names_of(schema)})) | json_text
any_json = st.recursive(
    scalars | json_text | st.datetimes().map(lambda time: f"{time.isoformat()}Z"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_name, inner, max_size=6),
    max_leaves=20,
)
heartbeats = st.dictionaries(
    st.sampled_from(names_of(Heartbeat)) | any_name,
    scalars | json_text | st.dictionaries(st.sampled_from(names_of(DeviceMetrics) + names_of(Content)), scalars),
)
