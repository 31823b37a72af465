"""When was it? The times that players write, as milliseconds since the epoch. Pure: no clock, no locale, no zone files.

Players write what their platform's library gives them: ISO 8601 in all its forms, a number, the dates of RFC 9110 and
RFC 5322, what `date`, JavaScript and .NET print. A time without a zone is taken for UTC. A date in the order of one
country (11/30/2026) is not understood, nor is a zone that has only a name, except those of RFC 5322.
"""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)

FIRST_DAY: Final = EPOCH.toordinal()
FIRST_MS: Final = (datetime.min.replace(tzinfo=UTC) - EPOCH) // MILLISECOND
LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999, the last that RFC 3339 can write."""

MAX_TEXT: Final = 128
"""Characters of a time. The longest in use, of JavaScript's Date.toString(), has 60 to 80, as the zone is called."""

SECONDS_FROM: Final = 1_000_000_000
SECONDS_TO: Final = 100_000_000_000
"""A number in between is of seconds: from 2001 on. As milliseconds it would be a day between 1970 and 1973, but not of
the first eleven days, which a clock without a battery counts from."""

_DATE = (
    r"(?P<year>\d{4})"
    r"(?:-?(?P<month>\d\d)-?(?P<day>\d\d)|-?W(?P<week>\d\d)-?(?P<weekday>[1-7])|-?(?P<ordinal>\d{3}))"
)
_TIME = r"(?P<hour>\d\d)(?::?(?P<minute>\d\d)(?::?(?P<second>\d\d))?)?(?:[.,](?P<fraction>\d{1,30}))?"
_ZONE = r"(?P<zone>Z|[A-Z]{1,3}|(?:UTC|GMT)?\s?[+\-\u2212]\d\d?(?::?\d\d(?::?\d\d)?)?)?"
_MONTH = r"(?P<name>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
_CLOCK = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,30}))?)?(?:\s?(?P<half>[AP])M)?"
)
_WEEKDAY = r"(?:[a-z]{2,9}(?:,?\s+|,))?"

_FORMS: Final = tuple(
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        # ISO 8601, RFC 3339, RFC 9557
        rf"{_DATE}(?:(?:T|\s+|_){_TIME}\s*{_ZONE})?",
        # The same order with slashes, or without zeros
        rf"(?P<year>\d{{4}})[-/](?P<month>\d\d?)[-/](?P<day>\d\d?)(?:(?:T|,?\s+){_CLOCK}\s*{_ZONE})?",
        # RFC 5322, RFC 9110 with its RFC 850
        rf"{_WEEKDAY}(?P<day>\d{{1,2}})[ -]{_MONTH}[ -](?P<year>\d{{4}}|\d\d),?\s+{_CLOCK}\s*{_ZONE}",
        # asctime, date(1)
        rf"{_WEEKDAY}{_MONTH}\s+(?P<day>\d{{1,2}})\s+{_CLOCK}(?:\s+{_ZONE})?\s+(?P<year>\d{{4}})",
        # JavaScript
        rf"{_WEEKDAY}{_MONTH}\s+(?P<day>\d{{1,2}}),?\s+(?P<year>\d{{4}}),?\s+{_CLOCK}\s*{_ZONE}",
    )
)
_NAMED: Final = re.compile(r"\s*\([^()]*\)|\[[^\[\]]*\]")
"""What says nothing new beside an offset: a zone's name, in parentheses or as RFC 9557 has it, and RFC 5322's comments.
Of these the innermost."""
MAX_NESTED: Final = 3
_COMPACT: Final = re.compile(r"((?:19|20)\d{6})(\d{6})?", re.ASCII)
"""A date, or a date and a time, in digits alone. As milliseconds it would be 1970, or past the year 2500."""
_NUMBER: Final = re.compile(
    r"\+?(?P<whole>\d{1,30})(?:[.,](?P<part>\d{1,30}))?(?:E\+?(?P<power>\d{1,2}))?", re.ASCII | re.IGNORECASE
)
"""Also as C and Java write one that is a double: 1.796050000123E12."""
_DOTNET: Final = re.compile(r"\\?/Date\((?P<whole>\d{1,30})(?:[+-]\d{4})?\)(?P<part>)(?P<power>)\\?/", re.ASCII)
"""Milliseconds, and an offset that says nothing new."""

_USUAL: Final = (len("2026-11-30T14:00:06Z"), len("2026-11-30T14:00:06.123Z"), len("2026-11-30T14:00:06.123456Z"))
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_ZONES: Final = {
    "Z": 0, "UT": 0, "UTC": 0, "GMT": 0,
    "EDT": -4, "EST": -5, "CDT": -5, "CST": -6, "MDT": -6, "MST": -7, "PDT": -7, "PST": -8,
}  # fmt: skip
"""RFC 5322 section 4.3, in hours."""


def milliseconds(value: Any) -> int | None:
    """What a time is, whatever JSON it is; None when it is not understood, or is no time of the years 1 to 9999."""
    kind = value.__class__
    if kind is int or kind is float:
        return _of_number(value)
    if kind is not str or len(value) > MAX_TEXT:
        return None
    if len(value) in _USUAL and value[10] == "T" and value[-1] == "Z":
        # As most players write it: a tenth of the time of what follows.
        try:
            return (datetime.fromisoformat(value) - EPOCH) // MILLISECOND
        except ValueError:
            pass
    # One space between two words: what follows reads each character once.
    text = " ".join(value.split())
    compact, number = _COMPACT.fullmatch(text), _NUMBER.fullmatch(text) or _DOTNET.fullmatch(text)
    if compact is not None:
        text = f"{compact[1]}T{compact[2] or '00'}"
    elif number is not None:
        whole, part, power = number["whole"], number["part"], number["power"]
        # A whole number is exact; nanoseconds are more than a float can hold.
        return _of_number(float(f"{whole}.{part or 0}E{power or 0}") if part or power else int(whole))
    named = 0
    for _ in range(MAX_NESTED):
        text, found = _NAMED.subn("", text)
        named += found
        if not found:
            break
    for form in _FORMS:
        match = form.fullmatch(text)
        if match is not None:
            parts = match.groupdict()
            # A zone that has only a name is not known.
            return None if named and not parts["zone"] else _of_parts(parts)
    return None


def _of_number(number: float) -> int | None:
    """Milliseconds, or by its size seconds, microseconds or nanoseconds."""
    if not 0 <= number <= LAST_MS * 1_000_000:  # also what is no number
        return None
    if SECONDS_FROM <= number < SECONDS_TO:
        return round(number * 1000) if number.__class__ is float else int(number) * 1000
    for unit in (1, 1000, 1_000_000):
        if number <= LAST_MS * unit:
            return int(number) // unit
    return None


def _of_parts(parts: dict[str, str | None]) -> int | None:
    try:
        day = _day(parts)
        hour, minute, second = _int(parts, "hour"), _int(parts, "minute"), _int(parts, "second")
        half = parts.get("half")
        if half:
            if not 1 <= hour <= 12:
                return None
            hour = hour % 12 + (12 if half in "Pp" else 0)
        # 24:00 is the end of the day, and a leap second the start of the next minute, as clocks that have none say.
        if hour > 24 or minute > 59 or second > 60 or (hour == 24 and (minute or second)):
            return None
        unit = 1 if parts.get("second") else 60 if parts.get("minute") else 3600
        since = timedelta(0, second, _fraction(parts.get("fraction"), unit), 0, minute, hour)
        offset = _offset(parts.get("zone"))
        if offset is None:
            return None
        ms = (timedelta(day.toordinal() - FIRST_DAY) + since - offset) // MILLISECOND
    except (ValueError, OverflowError):
        return None
    return ms if FIRST_MS <= ms <= LAST_MS else None


def _day(parts: dict[str, str | None]) -> date:
    """Raises ValueError for a day that the calendar does not have."""
    year = _int(parts, "year")
    if parts.get("week"):
        return date.fromisocalendar(year, _int(parts, "week"), _int(parts, "weekday"))
    if parts.get("ordinal"):
        day = date(year, 1, 1) + timedelta(days=_int(parts, "ordinal") - 1)
        if day.year != year:
            raise ValueError
        return day
    name = parts.get("name")
    if name:
        if len(parts["year"] or "") == 2:
            year += 2000 if year < 50 else 1900  # RFC 5322 section 4.3
        return date(year, _MONTHS.index(name.lower()) + 1, _int(parts, "day"))
    return date(year, _int(parts, "month"), _int(parts, "day"))


def _fraction(digits: str | None, seconds: int) -> int:
    """Microseconds of a fraction of the last unit that is written, which has so many seconds."""
    return int(digits[:9].ljust(9, "0")) * seconds // 1000 if digits else 0


def _offset(zone: str | None) -> timedelta | None:
    """None for a zone that has only a name."""
    if not zone:
        return timedelta()
    text = zone.upper()
    if text in _ZONES:
        return timedelta(hours=_ZONES[text])
    digits = re.sub(r"[^0-9]", "", text)
    if not digits:
        return None
    if len(digits) % 2:
        digits = f"0{digits}"
    hours, minutes, seconds = int(digits[:2]), int(digits[2:4] or 0), int(digits[4:6] or 0)
    if hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError
    size = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return size if "+" in text else -size


def _int(parts: dict[str, str | None], name: str) -> int:
    return int(parts.get(name) or 0)
