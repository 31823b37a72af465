"""What is taken out of whatever is written down, and what stays."""

import base64
import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.config import AuthSettings, Config, MetricsSettings, RedisSettings
from vizora_rt.telemetry import redact
from vizora_rt.telemetry.credentials import REMOVED

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkIn0.c2lnbmF0dXJl-_"


@given(st.text())
def test_any_text_becomes_one_printable_line(text: str) -> None:
    line = json.dumps(redact.clean({"key": text}))
    assert json.loads(line).keys() == {"key"}
    json.loads(line)["key"].encode()


@pytest.mark.parametrize(
    "text",
    [
        JWT,
        f"GET /ws?a=1&token={JWT} HTTP/1.1",
        "GET /ws?token=opaque-SECRET&b=2",
        "access_token=opaque-SECRET; next",
        "Authorization: Bearer opaque-SECRET",
        "'authorization': 'opaque-SECRET'",
        "Cookie: vizora_auth_token=opaque-SECRET; other=opaque-SECRET",
        "x-internal-api-key: opaque-SECRET",
        "DEVICE_JWT_SECRET=opaque-SECRET",
        f"vizora.v1, bearer.{JWT}",
        f"prefix-{JWT}",
        "redis://user:opaque-SECRET@10.0.0.1:6379/0",
        "redis://:opaque-SECRET@10.0.0.1:6379/0",
        "redis://user:opaque/SECRET@10.0.0.1:6379/0",
        "redis://:12#opaque?SECRET@10.0.0.1",
        "https://user:opaque@SECRET@cdn.example/a.mp4",
        "could not log in as user:opaque/SECRET@host",
        "https%3A%2F%2Fuser%3Aopaque-SECRET%40cdn.example%2Fa.mp4",
        "https://cdn.example/a.mp4?Expires=1&Signature=opaque-SECRET&Key-Pair-Id=opaque-SECRET",
        "https://cdn.example/a.mp4?X-Amz-Credential=opaque-SECRET%2F20261130&X-Amz-Date=1",
        "https://blob.example/a.mp4?sv=1&sig=opaque-SECRET%3D",
        '{"password": "opaque-SECRET"}',
        "token: opaque-SECRET",
        f"Basic {base64.b64encode(b'user:SECRET').decode()}",
        f"proxy said: basic {base64.urlsafe_b64encode(b'user:??>>SECRET').decode()}",
        "Authorization: AWS4-HMAC-SHA256 Credential=opaque-SECRET/1, SignedHeaders=host, Signature=opaque-SECRET",
        "-----BEGIN RSA PRIVATE KEY-----\nopaqueSECRET\n-----END RSA PRIVATE KEY-----",
        "id AKIASECRETSECRETSECR of AWS",
        "ghp_opaqueSECRETopaqueSECRETopaqueSECRET",
        "key xoxb-opaque-SECRET-SECRET of a bot",
        "POST https://hooks.slack.com/services/T0/B0/opaque-SECRET",
        "https://api.telegram.org/bot123456789:opaque-SECRETopaque-SECRET/sendMessage",
        "data:image/png;base64,opaqueSECRET==",
    ],
)
def test_credentials_are_scrubbed_from_text(text: str) -> None:
    cleaned = redact.scrub(text)
    assert REMOVED in cleaned
    assert "SECRET" not in cleaned.removeprefix("DEVICE_JWT_SECRET")
    assert base64.b64encode(b"SECRET").decode()[:7] not in cleaned
    assert "eyJ" not in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Basic authentication failed",
        "basic: dG9vbG9uZw",
        "ann@example.com",
        "ASIA-singapore-mall-01",
        "a: b@c",
        "10.0.0.1:6379",
        "redis://10.0.0.1:6379/0",
        "v1.2.3",
        "a token of love",
        "x=1&y=2",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact.scrub(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "ann.b+c@mail.example",
        "mailto:ann@mail.example",
        "sent to <ann@mail.example>",
        "ann%40mail.example",
        "10.1.2.3",
        "http://10.1.2.3:8080/a.mp4",
        "from 10.1.2.3.",
        "2001:db8::1",
        "[2001:db8::1]:443",
        "::ffff:10.1.2.3",
        "fe80::1%eth0",
        "ip-10-1-2-3.ec2.internal of ann@mail.example",
    ],
)
def test_addresses_are_for_the_log_only(text: str) -> None:
    cleaned = redact.scrub_for_others(text)
    assert REMOVED in cleaned
    assert not any(part in cleaned for part in ("ann", "10.1.2.3", "10-1-2", "2001", "fe80"))
    assert redact.tree({"said": [text]}) == {"said": [cleaned]}
    assert any(part in redact.scrub(text) for part in ("ann", "10.1.2.3", "2001", "fe80", "mail.example"))


@pytest.mark.parametrize(
    "text", ["1.2.3", "12:34:56", "2026-11-30T12:34:56.000Z", "300.1.1.1", "@property", "00:1a:2b:3c:4d:5e"]
)
def test_what_is_no_address_stays(text: str) -> None:
    assert redact.scrub_for_others(text) == text


def test_fields_named_like_secrets_are_removed_at_any_depth() -> None:
    value = {"token": "a", "headers": {"Authorization": "b", "Host": "c"}, "imageData": "d", "jwt_secrets": ["e"]}
    assert redact.clean(value) == {
        "token": REMOVED,
        "headers": {"Authorization": REMOVED, "Host": "c"},
        "imageData": REMOVED,
        "jwt_secrets": [REMOVED],
    }
    nested = {
        "credentials": {"user": "a", "more": ["b"]},
        "pin": 1234,
        "otp": 1.5,
        "auth": True,
        "passwords": [{"x": "y"}],
    }
    gone = {"credentials": REMOVED, "pin": REMOVED, "otp": REMOVED, "auth": True, "passwords": [REMOVED]}
    assert redact.clean(nested) == redact.tree(nested) == gone


def test_pairs_and_named_values_are_known_by_their_name() -> None:
    """Headers as lists hold them, cookies and parameters as HAR does."""
    value = {
        "headers": [["Authorization", "opaque"], ["host", "h"], ["status", "ok"]],
        "cookies": [],
        "query": [{"name": "sig", "value": "opaque", "b": 2}, {"name": "b", "value": "2"}],
        "nested": {"key": "password", "value": {"a": ["opaque"]}},
    }
    gone = {
        "headers": [["Authorization", REMOVED], ["host", "h"], ["status", "ok"]],
        "cookies": [],
        "query": [{"name": "sig", "value": REMOVED, "b": 2}, {"name": "b", "value": "2"}],
        "nested": {"key": "password", "value": REMOVED},
    }
    assert redact.clean(value) == redact.tree(value) == gone
    assert redact.tree({"headers": [("Cookie", "opaque")]}) == {"headers": [["Cookie", REMOVED]]}


def test_names_of_fields_are_text_too() -> None:
    secret = f"https://h/a?token=opaque-{JWT}"
    assert redact.clean({secret: 1}) == redact.tree({secret: 1}) == {f"https://h/a?token={REMOVED}": REMOVED}
    assert redact.tree({"by": {"10.1.2.3": 1, 4: 5}}) == {"by": {REMOVED: 1, "4": 5}}


def test_a_value_is_bounded_and_the_cut_leaves_no_half_token() -> None:
    assert len(redact.clean("word " * 100_000)) < redact.MAX_TEXT + 50
    assert redact.clean("x " * 1020 + "y" * 4 + JWT) == "x " * 1019 + "x... (2095 characters)"
    nested: list[Any] = []
    for _ in range(50):
        nested = [nested]
    assert "..." in json.dumps(redact.clean(nested))


def test_numbers_that_json_lacks_become_text() -> None:
    assert redact.clean([float("nan"), float("inf"), 1.5]) == ["nan", "inf", 1.5]


HOSTILE = """[
    "eyJ-" * n, "token" * n, "a" * 4 * n, "eyJ" + "a." * 2 * n, "://" * n, "a:" * n + "@", "@" * n, "a@" * n, ":" * n,
    "token=" * n, "token: " * n, "token:\\n" * n, 'token="' * n, 'token=\\\\"' * n, "token={" * n, "token=[\\"" * n,
    "token: |\\n " * n, "<token>" * n, "--token " * n, "api " * n, "token" + "[a" * n, "token" + "\\\\" * n, "%25" * n,
    "%" * n, "&amp;" * n, "&" * n, "\\\\u005c" * n, "basic " * n, "bearer " * n, "1." * n, "a:1" * n, "-----BEGIN " * n,
    "-----BEGIN PRIVATE KEY-----" * n, ";base64," * n, "AKIA" * n, " " * n, "\\n" * n, "'" * n, "token," + "'" * n,
    "token " * n, "token is " * n, "AUTH " * n, "AUTH $4 " * n, "token/" * n, "token/" + "a" * n, "token " + "a" * n,
    "token '" * n, "digest a=" * n, "sk-" * n, "SG.a" * n, "eyJ" + "." * n, "-----BEGIN PRIVATE KEY-----" + "-" * n,
    "=" * n + "-----END PRIVATE KEY-----", "a-----END PRIVATE KEY-----" * n, "-u a" * n, " -u " * n, "-cli -a " * n,
    "-cli " * n, "mysql " * n, "mysql -p" * n, "sshpass -p" * n, 'name="pin"' * n, 'name="pin"\\n\\n' * n, "ip-1" * n,
    'name="pin" value=' * n, 'value="' * n, 'value="",name="' * n, "token=a(" * n, "token=" + "''" * n, "-" * n,
    "token" + "-" * n, "\\u200b" * n, "\\uff1d" * n, "name='a'\\n" + "a\\n" * n,
]"""
"""Texts that patterns have to go back in, if they can."""

LIMITED = """
import re, resource, sys
from vizora_rt.telemetry import redact
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
n = 50_000
for text in {texts}:
    print({work})
"""
"""A process with so many seconds of processor time, whatever else the machine does."""


def limited(seconds: int, work: str, texts: str = HOSTILE) -> int:
    program = LIMITED.format(seconds=seconds, work=work, texts=texts)
    return subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode


def test_scrubbing_is_linear() -> None:
    """A quadratic pattern takes 2,500,000,000 steps for one of these texts: minutes. All of them take some seconds."""
    assert limited(60, "len(redact.scrub_for_others(text))") == 0


def test_what_is_not_linear_would_be_seen() -> None:
    assert limited(2, "re.search('(?:a+)+b', text)", "['a' * n]") == -signal.SIGKILL


def test_a_picture_without_its_prefix_is_removed_and_long_ids_and_paths_stay() -> None:
    assert redact.scrub(f"bad picture: {'iVBORw0KGgo' * 40}= at 3") == f"bad picture: {REMOVED} at 3"
    stays = f"{'d' * 128} and /{'folder/' * 20}file.py"
    assert redact.scrub(stays) == stays


def test_the_secrets_of_the_configuration_are_known_by_their_value() -> None:
    auth = AuthSettings(device_jwt_secret="correct horse", internal_api_secret="battery/staple", jwt_secret="short")
    redis = RedisSettings(url="redis://user:p%40ssword9@10.0.0.1:6379/0")
    try:
        redact.learn(Config(auth=auth, redis=redis, metrics=MetricsSettings(token="scrape-me-not")))
        text = redact.scrub("keys correct horse, battery/staple, scrape-me-not, p@ssword9, p%40ssword9: short")
        assert text == f"keys {', '.join([REMOVED] * 5)}: short"
    finally:
        redact.learn(Config())
    assert redact.scrub("correct horse") == "correct horse"


def test_a_tree_is_scrubbed_and_keeps_its_shape() -> None:
    long = "word " * 2000
    value = {"a": [{"cookie": "b", "n": 1, "text": f"bearer {JWT}"}], "stack": long, "none": None}
    assert redact.tree(value) == {
        "a": [{"cookie": REMOVED, "n": 1, "text": f"bearer {REMOVED}"}],
        "stack": long,
        "none": None,
    }
