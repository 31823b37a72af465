"""What moves no terminal, hides nothing, and is no formula."""

import csv
import io
import json as library
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.wire import messages, printable

HIDDEN = [
    *map(chr, (0x00, 0x07, 0x1B, 0x0D, 0x09, 0x7F, 0x80, 0x85, 0x9B, 0x9D)),
    *map(chr, (0x200B, 0x200E, 0x202E, 0x2028, 0x2066, 0xFEFF, 0xE0041, 0x034F, 0x1160, 0x3164)),
]


class TestEscaped:
    @pytest.mark.parametrize("character", HIDDEN)
    def test_what_is_hidden_is_shown(self, character: str) -> None:
        code = ord(character)
        wanted = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
        assert printable.escaped(f"a{character}b\n") == f"a{wanted}b\\u000a"

    @pytest.mark.parametrize(
        "text", ["", "lobby-1", "Caf\u00e9 \u65e5\u672c \U0001f600", "\U0001f468\u200d\U0001f469", "=1"]
    )
    def test_the_rest_is_as_it_is(self, text: str) -> None:
        assert printable.escaped(text) == text

    @given(st.text())
    def test_no_control_is_left(self, text: str) -> None:
        assert not any(unicodedata.category(each) in ("Cc", "Zl", "Zp", "Cs") for each in printable.escaped(text))


class TestJson:
    @given(st.text(), st.sampled_from(HIDDEN))
    def test_the_value_is_the_same_and_nothing_hidden(self, text: str, character: str) -> None:
        value = {"a": [text + character, 1], character: None}
        shown = printable.json(messages.dumps(value))
        assert library.loads(shown) == value
        assert not any(each in shown.decode() for each in HIDDEN)

    def test_plain_json_is_not_copied(self) -> None:
        plain = b'{"a":"b"}'
        assert printable.json(plain) is plain


class TestCell:
    @pytest.mark.parametrize(
        ("value", "cell"),
        [
            (None, ""),
            (-5, "-5"),
            (2.5, "2.5"),
            ("", ""),
            ("lobby-1", "lobby-1"),
            ("a b", '"a b"'),
            ("a,b", '"a,b"'),
            ('a"b', '"a""b"'),
            ("a\nb", '"a\nb"'),
            ("a;b", '"a;b"'),
            ("=1", '"\'=1"'),
            ("+1", '"\'+1"'),
            ("-1", '"\'-1"'),
            ("@a", '"\'@a"'),
            ("  =1", '"\'  =1"'),
            ("\t=1", '"\'\\u0009=1"'),
            ("\r=1", '"\'\\u000d=1"'),
            ("\n=1", '"\'\n=1"'),
            ("\uff1d1", '"\'\uff1d1"'),
            ("\ufe66A1", '"\'\ufe66A1"'),
            ("a\x1b[2J", "a\\u001b[2J"),
            ("a\x9b", "a\\u009b"),
        ],
    )
    def test_a_cell(self, value: object, cell: str) -> None:
        assert printable.cell(value) == cell

    @given(st.text(st.characters(codec="utf-8")))
    def test_it_is_one_cell_that_is_no_formula(self, text: str) -> None:
        line = printable.cell(text) + ",x\n"
        ((cell, last),) = csv.reader(io.StringIO(line, newline=""))
        assert last == "x"
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r"))
