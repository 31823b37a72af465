"""Times as players write them, and what is none. Each is told in milliseconds, whatever the interpreter's version."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.wire.times import LAST_MS, MAX_TEXT, milliseconds

AT = 1_796_047_206_000
"""2026-11-30T14:00:06Z"""
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000

ISO = {
    "2026-11-30T14:00:06Z": 0,
    "2026-11-30T14:00:06.123Z": 123,
    "2026-11-30T14:00:06.123456Z": 123,
    "2026-11-30T14:00:06.123456789Z": 123,
    "2026-11-30T14:00:06,5Z": 500,
    "2026-11-30T14:00:06": 0,
    "2026-11-30T14:00Z": -6000,
    "2026-11-30T14Z": -6000,
    "2026-11-30T14.5Z": 30 * MINUTE - 6000,
    "2026-11-30T14:00,1Z": 0,
    "2026-11-30T15:00:06+01": 0,
    "2026-11-30T15:00:06+0100": 0,
    "2026-11-30T15:00:06+01:00": 0,
    "2026-11-30T15:00:06 +01:00": 0,
    "2026-11-30T09:00:06-05:00": 0,
    "2026-11-30T09:00:06\u221205:00": 0,
    "2026-11-30T19:45:06+05:45": 0,
    "2026-11-30T14:00:06+00:00:06": -6000,
    "2026-11-30T14:00:06-00:00": 0,
    "2026-11-30t14:00:06z": 0,
    "2026-11-30 14:00:06": 0,
    "2026-11-30 14:00:06 UTC": 0,
    "2026-11-30_14:00:06": 0,
    "2026-11-30T15:00:06+01:00[Europe/Berlin]": 0,
    "2026-11-30T14:00:06Z[u-ca=iso8601]": 0,
    " 2026-11-30T14:00:06Z\n": 0,
    "20261130T140006Z": 0,
    "20261130T140006.5Z": 500,
    "20261130T1400Z": -6000,
    "20261130T150006+0100": 0,
    "20261130140006": 0,
    "20261130": -14 * HOUR - 6000,
    "2026-11-30": -14 * HOUR - 6000,
    "2026-W49-1T14:00:06Z": 0,
    "2026W491T140006Z": 0,
    "2026-334T14:00:06Z": 0,
    "2026334T140006Z": 0,
    "2026-11-30T24:00:00Z": 10 * HOUR - 6000,
    "2026-11-30T24:00Z": 10 * HOUR - 6000,
    "2026-11-30T14:00:60Z": 54_000,
    "2026-11-30T23:59:60Z": 10 * HOUR - 6000,
    "2028-02-29T14:00:06Z": 456 * DAY,
}
OTHERS = {
    "Mon, 30 Nov 2026 14:00:06 GMT": 0,
    "Mon, 30 Nov 2026 15:00:06 +0100": 0,
    "30 Nov 2026 14:00 UT": -6000,
    "Mon, 30 Nov 2026 09:00:06 EST": 0,
    "Mon, 30 Nov 2026 15:00:06 +0100 (CET)": 0,
    "mon, 30 nov 2026 14:00:06 gmt": 0,
    "Monday, 30-Nov-26 14:00:06 GMT": 0,
    "Mon, 30-Nov-2026 14:00:06 GMT": 0,
    "Mon Nov 30 14:00:06 2026": 0,
    "Mon Nov 30 14:00:06 UTC 2026": 0,
    "Tue Nov  3 14:00:06 2026": -27 * DAY,
    "Mon Nov 30 2026 15:00:06 GMT+0100 (Central European Standard Time)": 0,
    "Nov 30, 2026 14:00:06": 0,
    "November 30, 2026 14:00:06": 0,
    "Mon (a), 30 (b (c)) Nov 2026 14:00:06 +0000": 0,
    "Mon, 30 Nov 2026 14:00:06 +0000 (a (b (c)))": 0,
    "Mon,30  Nov  2026   14:00:06 GMT": 0,
    "Nov 30, 2026, 2:00:06 PM": 0,
    "Nov 30, 2026, 2:00:06\u202fPM": 0,
    "Mon Nov 30 02:00:06 PM UTC 2026": 0,
    "Nov 30, 2026, 12:00:06 am": -14 * HOUR,
    "Nov 30, 2026, 12:00:06 PM": -2 * HOUR,
    "2026-11-30T15:00:06+1": 0,
    "2026-11-30 15:00:06 GMT+1": 0,
    "2026-11-30T19:30:06+5:30": 0,
    "2026-11-30\u00a014:00:06Z": 0,
    "2026/11/30 14:00:06": 0,
    "2026-11-3 9:05:06": -27 * DAY - 5 * HOUR + 5 * MINUTE,
    "+1796047206000": 0,
    "1.796047206E9": 0,
    "1.796047206123e+12": 123,
    "1796047206000.0": 0,
    "/Date(1796047206000)/": 0,
    "\\/Date(1796047206000+0100)\\/": 0,
    "1796047206000": 0,
    "1796047206": 0,
    "1796047206.123": 123,
    "1796047206,123": 123,
    "1796047206000.7": 0,
    "1796047206123456": 123,
    "1796047206123456789": 123,
}


class TestUnderstood:
    @pytest.mark.parametrize("text", [*ISO, *OTHERS])
    def test_text(self, text: str) -> None:
        assert milliseconds(text) == AT + (ISO | OTHERS)[text]

    @pytest.mark.parametrize(
        ("number", "ms"),
        [
            (AT, AT),
            (AT + 0.9, AT),
            (AT // 1000, AT),
            (AT / 1000 + 0.25, AT + 250),
            (AT * 1000 + 7, AT),
            (AT * 1_000_000 + 7, AT),
            (0, 0),
            (5.9, 5),
            (999_999_999, 999_999_999),
            (1_000_000_000, 1_000_000_000_000),
            (LAST_MS, LAST_MS),
        ],
    )
    def test_a_number_is_by_its_size_what_it_can_be(self, number: float, ms: int) -> None:
        assert milliseconds(number) == ms

    def test_before_the_epoch(self) -> None:
        assert milliseconds("1969-12-31T23:59:59Z") == -1000

    @given(st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9999, 12, 31, 23)), st.integers(-14, 14))
    def test_what_the_library_writes(self, at: datetime, zone: int) -> None:
        at = at.replace(tzinfo=UTC)
        ms = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
        assert milliseconds(at.isoformat()) == ms
        offset = f"{'-' if zone < 0 else '+'}{abs(zone):02}:00"
        there = (at + timedelta(hours=zone)).replace(tzinfo=None) if 1000 < at.year < 9999 else None
        if there is not None:
            assert milliseconds(there.isoformat(" ") + offset) == ms


NONE: list[Any] = [
    None, True, False, -1, -0.5, float("nan"), float("inf"), LAST_MS * 1_000_000 + 10**12, {}, [], [AT], {"at": AT},
    "", " ", "yesterday", "now", "11/30/2026, 2:00:06 PM", "30.11.2026 14:00", "2026-13-01T00:00:00Z",
    "2026-02-29T00:00:00Z", "2026-11-31", "2026-11-30T25:00Z", "2026-11-30T24:00:01Z", "2026-11-30T14:60Z",
    "2026-11-30T14:00:61Z", "2026-11-30T14:00:06.Z", "2026-11-30T14:00:06+24:00", "2026-11-30T14:00:06+01:60",
    "2026-W54-1", "2025-366", "2026-000", "30 Foo 2026 14:00", "Mon, 30 Nov 2026 14:00:06 CET", "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:60Z", "1" * 30, "-1796047206", "1e400", "1e-3",
    "2026-11-30T14:00:06[Europe/Berlin]", "30 Nov 2026 14:00:06 (CET)", "Nov 30, 2026, 13:00:06 PM", "0:00:06 AM",
    "2026-11-30T14:00:06+1300000", "/Date(-1)/", "/Date(x)/", "2026-11-30T14:00:06Z (((((deep)))))", "(", "()" * 64,
    "\u0661\u0662", "0x1",
    "2026-11-30T14:00:06Z" + " " * MAX_TEXT, "\u0662026-11-30T14:00:06Z",
]  # fmt: skip


class TestNone:
    @pytest.mark.parametrize("value", NONE, ids=repr)
    def test_what_is_none(self, value: Any) -> None:
        assert milliseconds(value) is None

    @given(st.one_of(st.text(), st.floats(), st.integers(), st.text("0123456789TWZ:-+., Mon()[]", max_size=40)))
    def test_nothing_raises(self, value: Any) -> None:
        found = milliseconds(value)
        assert found is None or -62_135_596_800_000 <= found <= LAST_MS
