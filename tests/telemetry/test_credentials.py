"""Every secret-like name in every syntax: its value goes, and what is beside it stays where it can."""

import html
import json
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizora_rt.telemetry import redact
from vizora_rt.telemetry.credentials import REMOVED, secret_name, unescaped, without_values

NAMES: Final = (
    "token", "access_token", "accessToken", "refreshToken", "id_token", "X-Auth-Token", "secret", "client_secret",
    "DEVICE_JWT_SECRET", "password", "Password", "passwd", "db_pass", "pwd", "passphrase", "authorization",
    "Proxy-Authorization", "cookie", "Set-Cookie", "vizora_auth_token", "connect.sid", "JSESSIONID", "sessionId",
    "api_key", "apikey", "x-internal-api-key", "ApiKey", "AWSAccessKeyId", "Signature", "sig", "signature",
    "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "X-Goog-Credential",
    "Key-Pair-Id", "AccountKey", "SharedAccessKey", "private_key", "privateKey", "credentials", "auth", "x-sig",
    "InstrumentationKey",
    "Ocp-Apim-Subscription-Key", "x-functions-key", "CloudFront-Policy", "remember_me", "auth_key", "Kennwort",
    "contraseña", "hmac", "otp", "csrf_token", "jwt", "sentry_dsn", "user[password]", "OSSAccessKeyId", "hdnts", "sas",
)  # fmt: skip
MARK: Final = "zQmarkXw"
"""What must not be left of a value, in letters that no escape changes."""

Syntax = Callable[[str, str], str]

FREE: Final[dict[str, Syntax]] = {
    # Syntaxes that quote: the value may be any text.
    "json": lambda name, value: json.dumps({"a": 1, name: value, "status": 200}),
    "json in ascii": lambda name, value: json.dumps({name: value}, ensure_ascii=False),
    "compact json": lambda name, value: json.dumps({name: value, "b": 2}, separators=(",", ":")),
    "json list": lambda name, value: json.dumps({name: ["first", value]}),
    "nested json": lambda name, value: json.dumps({"outer": {"list": [{name: {"value": value}}]}}),
    "json in json": lambda name, value: json.dumps({"body": json.dumps({name: value}), "b": 2}),
    "json in json in json": lambda name, value: json.dumps({"a": json.dumps({"b": json.dumps({name: value})})}),
    "repr": lambda name, value: repr({name: value, "status": 200}),
    "repr of bytes": lambda name, value: repr({name.encode(): value.encode("utf-8", "replace")}),
    "repr of headers": lambda name, value: repr([("host", "h"), (name, value), ("accept", "*/*")]),
    "repr of headers in bytes": lambda name, value: repr([(name.encode(), value.encode("utf-8", "replace"))]),
    "keyword argument": lambda name, value: f"connect(host='h', {name}={value!r}, port=1)",
    "yaml, quoted": lambda name, value: f"a: 1\n{name}: {json.dumps(value)}\nb: 2",
    "toml": lambda name, value: f"[auth]\n{name} = {json.dumps(value)}\nb = 2",
    "query": lambda name, value: f"GET https://cdn.example/a.mp4?b=1&{name}={quote(value, safe='')}&c=2 failed",
    "first of a query": lambda name, value: f"https://cdn.example/a.mp4?{name}={quote(value, safe='')}",
    "fragment": lambda name, value: f"https://h/cb#{name}={quote(value, safe='')}&c=2",
    "url in a query": lambda name, value: "https://h/?n=" + quote(f"//i/?{name}={quote(value, safe='')}", safe=""),
    "json in a query": lambda name, value: "https://h/?q=" + quote(json.dumps({name: value}), safe=""),
    "json in html": lambda name, value: html.escape(json.dumps({name: value})),
    "doubled quotes": lambda name, value: f"{name}='" + value.replace("\\", "").replace("'", "''") + "' host='h'",
    "long string": lambda name, value: f'{name} = """' + value.replace("\\", "").replace('"', "'") + '"""',
    "call": lambda name, value: f"Auth({name}=Secret({json.dumps(value)}), port=1)",
    "name and value": lambda name, value: json.dumps([{"name": name, "value": value, "b": 2}]),
    "value and name": lambda name, value: json.dumps([{"value": value.replace('"', "'"), "key": name}]),
    "attribute": lambda name, value: f'<add key="{name}" value="{html.escape(value)}"/>',
    "part of a form": lambda name, value: (
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\nContent-Type: text/plain\r\n\r\n'
        + value.replace("\n--", "")
        + "\r\n--b--"
    ),
    "xml": lambda name, value: f"<a><{name}>{html.escape(value)}</{name}></a>",
}  # fmt: skip
TO_THE_END_OF_THE_LINE: Final = {
    "header": lambda name, value: f"GET / HTTP/1.1\r\n{name}: {value}\r\nhost: h\r\n",
    "yaml": lambda name, value: f"a: 1\n  {name}: {value}\nb: 2",
    "yaml, next line": lambda name, value: f"{name}:\n  - first\n  - {value}\nb: 2",
    "yaml, block": lambda name, value: f"{name}: |\n  first\n  {value}\nb: 2",
    "words": lambda name, value: f"it failed with {name}: {value}",
}
ONE_WORD: Final = {
    "variable": lambda name, value: f"export {name}={value} next",
    "cookie": lambda name, value: f"a=b; {name}={value}; c=d",
    "connection string": lambda name, value: f"Endpoint=sb://h/;{name}={value};Entity=e",
    "with spaces": lambda name, value: f"{name} = {value} next",
    "appended": lambda name, value: f"{name}+={value} next",
    "member": lambda name, value: f"{name}->{value} next",
    "wide": lambda name, value: f"{name}\uff1d{value} next",
    "long arrow": lambda name, value: f"{name} \u2192 {value} next",
    "curly quotes": lambda name, value: f"\u201c{name}\u201d: \u201c{value}\u201d, next",
    "unseen": lambda name, value: f"{name}\u200b={value} next",
    "arrow": lambda name, value: f"{{:{name} => {value}}}",
    "command line": lambda name, value: f"curl --{name} {value} https://h/",
    "command line with =": lambda name, value: f"curl --{name}={value} https://h/",
}

any_text = st.text(st.characters(codec="utf-8"), max_size=12)
line_text = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="\"'`{[("), max_size=12
)
word_text = st.text(st.sampled_from("abcXYZ0189+/=-_.~!@#$%^*:,|"), max_size=12)


def names() -> st.SearchStrategy[str]:
    return st.builds(
        lambda name, change: change(name), st.sampled_from(NAMES), st.sampled_from([str, str.upper, str.lower])
    )


def gone(text: str) -> None:
    for scrubbed in (redact.scrub(text), redact.scrub_for_others(text)):
        assert MARK not in scrubbed, scrubbed
        assert REMOVED in scrubbed


@pytest.mark.parametrize("syntax", FREE)
@given(name=names(), before=any_text, after=any_text)
@settings(max_examples=60, deadline=None)
def test_any_value_that_is_quoted(syntax: str, name: str, before: str, after: str) -> None:
    gone(FREE[syntax](name, before + MARK + after))


@pytest.mark.parametrize("syntax", TO_THE_END_OF_THE_LINE)
@given(name=names(), before=line_text, after=line_text)
@settings(max_examples=60, deadline=None)
def test_any_value_on_its_line(syntax: str, name: str, before: str, after: str) -> None:
    gone(TO_THE_END_OF_THE_LINE[syntax](name, before.strip() + MARK + after))


@pytest.mark.parametrize("syntax", ONE_WORD)
@given(name=names(), before=word_text, after=word_text)
@settings(max_examples=60, deadline=None)
def test_any_word(syntax: str, name: str, before: str, after: str) -> None:
    gone(ONE_WORD[syntax](name, before + MARK + after))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("GET /a?token=x&b=2 HTTP/1.1", f"GET /a?token={REMOVED}&b=2 HTTP/1.1"),
        ('{"password": "a\\"b,}", "b": 2}', f'{{"password": {REMOVED}, "b": 2}}'),
        ('{"pin": 1234, "b": 2}', f'{{"pin": {REMOVED}, "b": 2}}'),
        ('{"credentials": {"user": "u", "more": ["]"]}, "b": 2}', f'{{"credentials": {REMOVED}, "b": 2}}'),
        ("Server=h;Pwd={a;b}c;Port=1", f"Server=h;Pwd={REMOVED};Port=1"),
        ("{a: 1, pin: {b: 2}}", f"{{a: 1, pin: {REMOVED}"),
        ("Auth(pin={1: 2}, b=3)", f"Auth(pin={REMOVED}, b=3)"),
        ("secret key: x\nnext", f"secret key: {REMOVED}\nnext"),
        ('{"name": "pin", "value": "1", "b": 2}', f'{{"name": "pin", {REMOVED}: {REMOVED}, "b": 2}}'),
        (
            '<a name="b" value="c"><a name="pin" value="1" x="y">',
            f'<a name="b" value="c"><a name="pin" value={REMOVED} x="y">',
        ),
        ('{"pin": "", "b": ""}', f'{{"pin": {REMOVED}, "b": ""}}'),
        ("https://maps/?key=AbC&z=1", f"https://maps/?key={REMOVED}&z=1"),
        ("/v.mp4?md5=AbC&expires=9", f"/v.mp4?md5={REMOVED}&expires=9"),
    ],
)
def test_what_is_beside_it_stays(text: str, left: str) -> None:
    assert without_values(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "token:refresh", "a token of love", "no token", "key: value", "keys: a, b", "pass_count=3", "monkey=3",
        "author: ann", "bypass: on", "https://token.example/path", "design: flat",
        "config.toml:3: auth.jwt_secret: expected `str`, got `int`",
        "x=1&y=2", "basic: off", "code: AUTH_EXPIRED", "the cookie jar, opened", "status=200 path=/a",
    ],
)  # fmt: skip
def test_ordinary_words_stay(text: str) -> None:
    assert without_values(text) == text


@given(st.text(st.sampled_from("token:= \\\"'`{}[](),;&%<>\n-x|"), max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_text_is_taken(text: str) -> None:
    assert isinstance(without_values(text), str)
    assert isinstance(unescaped(text), str)


def test_names() -> None:
    assert all(secret_name(name) for name in NAMES)
    assert not any(secret_name(name) for name in ("key", "code", "device_id", "passes", "signal", "authors", "", "..."))
    assert secret_name("key", query=True)
