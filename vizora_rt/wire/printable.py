"""What others wrote, as people may safely see it: on a terminal, and in a spreadsheet. Pure.

A device or a backend chooses ids, contents and reasons. In them may stand what moves a terminal's cursor or writes its
title (C0 and C1 controls), what turns the order of a line around or has no width (Unicode's format characters), and
what a spreadsheet takes for a formula (CWE-1236).
"""

import re
from typing import Final

_HIDDEN: Final = (
    r"\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    r"\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f"
)
"""Without the joiners U+200C and U+200D, which Persian and emoji need: they only join what is beside them."""

_UNSAFE: Final = re.compile(rf"[\x00-\x1f{_HIDDEN}\ud800-\udfff]")
_UNSAFE_IN_JSON: Final = re.compile(rf"[{_HIDDEN}]")
_UNSAFE_IN_CELL: Final = re.compile(rf"[\x00-\x09\x0b-\x1f{_HIDDEN}\ud800-\udfff]")
"""A line feed is part of a quoted cell (RFC 4180 section 2)."""
_FORMULA: Final = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20\ufe62\ufe63\ufe66\ufe6b]|[\t\r\n]")
"""How OWASP says that a formula may begin, and the wide and small forms that East Asian spreadsheets take as well."""
_QUOTED: Final = re.compile("[\"',;|\\s]")


def escaped(text: str) -> str:
    """`text` in one line, what is hidden in it written as `\\u009b`."""
    return _UNSAFE.sub(_escape, text)


def json(text: bytes) -> bytes:
    """JSON of the same value that hides nothing: JSON itself leaves most of that as it is (RFC 8259 section 7)."""
    shown = text.decode()
    return _UNSAFE_IN_JSON.sub(_escape_pairs, shown).encode() if not shown.isascii() or "\x7f" in shown else text


def cell(value: object) -> str:
    """A cell of a CSV file (RFC 4180). A text that a spreadsheet would take for a formula gets an apostrophe before it;
    numbers are as they are."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value)
    formula = _FORMULA.match(value) is not None
    text = _UNSAFE_IN_CELL.sub(_escape, value)
    if formula:
        text = f"'{text}"
    # More than RFC 4180 asks for: to some spreadsheets a semicolon or a tab is the end of a cell.
    return '"' + text.replace('"', '""') + '"' if formula or _QUOTED.search(text) else text


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _escape_pairs(found: re.Match[str]) -> str:
    pairs = found[0].encode("utf-16-be")
    return "".join(f"\\u{pairs[at]:02x}{pairs[at + 1]:02x}" for at in range(0, len(pairs), 2))
