"""Credentials that no name stands before: each shape is taken out, and ordinary words are not."""

import pytest

from vizora_rt.telemetry import redact
from vizora_rt.telemetry.credentials import REMOVED
from vizora_rt.telemetry.shapes import without_shapes

MARK = "zQmark9Xw7"
LONG = f"{MARK}aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3"
"""As a key of a service, with what makes it as long as one."""

KEYS = (
    "ghp_", "github_pat_", "glpat-", "npm_", "pypi-AgEIcHlwaS5vcmc", "dckr_pat_", "xoxb-", "xoxe-1-", "xoxe.xoxp-1-",
    "xapp-1-", "sk_live_", "AIza", "ya29.a0", "1//0g", "GOCSPX-", "hvs.", "dop_v1_", "doo_v1_", "shpat_", "shpss_",
    "sk-proj-", "sk-ant-api03-", "sk-", "hf_", "sntrys_", "glsa_", "glc_", "lin_api_", "ATATT3", "NRAK-", "PMAK-",
    "sq0csp-", "pat-na1-", "AGE-SECRET-KEY-1", "v4.local.", "v2.public.",
)  # fmt: skip


@pytest.mark.parametrize("begin", KEYS)
def test_keys_of_services(begin: str) -> None:
    assert without_shapes(f"it said {begin}{LONG}, and ended") == f"it said {REMOVED}, and ended"


PEM = f"MIIEvQIBADANBgkq\n{MARK}aa=\n"


@pytest.mark.parametrize(
    "text",
    [
        f"-----BEGIN PRIVATE KEY-----\n{PEM}-----END PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\\n{MARK}\\n-----END PRIVATE KEY-----",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{PEM}",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,A-B\n\n"
        f"{PEM}-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: a-b\n\n{PEM}-----END PGP PRIVATE KEY BLOCK-----",
        f"...{PEM}-----END PRIVATE KEY-----",
    ],
)
def test_private_keys(text: str) -> None:
    cleaned = without_shapes(text)
    assert MARK not in cleaned and REMOVED in cleaned


@pytest.mark.parametrize(
    "text",
    [
        f"GET /ws/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.{MARK} HTTP/1.1",
        f"eyJhbGciOiJSU0EtT0FFUCJ9.OKOawDo13.48V1_AL.5eym8{MARK}.XFBoMYUZ",
        f"eyJhbGciOiJkaXIifQ..AxY8DCtDaGlsbGljb3RoZQ.KDlT{MARK}.aaaa",
        f"GET /ws/token/{MARK}/a",
        f"POST /reset-password/{MARK}?x=1",
        f"GET /api/v1/reset/{MARK}",
        f"Sec-WebSocket-Protocol: bearer, {MARK}",
        f"Sec-WebSocket-Protocol: vizora.v1, bearer.{MARK}",
        f'Digest username="u", realm="r", response="{MARK}"',
        f"AWS AKIAIOSFODNN7EXAMPLE:{MARK}bWq12/34=",
        f"https://hooks.slack.com/triggers/T0/1/{MARK}",
        f"https://x.webhook.office.com/webhookb2/{MARK}/IncomingWebhook/c/d",
        f"redis+sentinel://u:{MARK}@h1:1,h2:2/m",
        f"mongodb://u:{MARK}@h1:27017,h2:27017,h3:27017/db?replicaSet=rs",
        f"amqp://u:{MARK}@[::1]:5672/%2f",
        f"redis://:{MARK}@[fe80::1%25eth0]:6379/0",
        f"redis%3A%2F%2Fu%3A{MARK}%40h%3A6379",
        f"http:\\/\\/u:{MARK}@h\\/a",
        f"u:{MARK}@tcp(h:3306)/d",
    ],
)
def test_tokens_and_addresses(text: str) -> None:
    cleaned = redact.scrub(text)
    assert MARK not in cleaned and REMOVED in cleaned


@pytest.mark.parametrize(
    "text",
    [
        f"the password is {MARK}",
        f"with token {MARK}, again",
        "the password 'two words' is wrong",
        'token "opaque" expired',
        f"API key {MARK} is not valid",
        "CREATE USER u IDENTIFIED BY 'opaque'",
        f"CONFIG SET requirepass {MARK}",
        f"machine h login u password {MARK}",
        f"AUTH {MARK}",
        f"HELLO 3 AUTH default {MARK}",
        f"*2\r\n$4\r\nAUTH\r\n$10\r\n{MARK}\r\n",
        "ACL SETUSER u on >opaque ~*",
        "curl -u user:opaque https://h/",
        "curl --user user:opaque https://h/",
        "redis-cli -h h -a opaque ping",
        "sshpass -p opaque ssh h",
        "mysqldump -u root -popaque db",
    ],
)
def test_sentences_and_commands(text: str) -> None:
    cleaned = without_shapes(text)
    assert not any(part in cleaned for part in (MARK, "opaque", "two words")) and REMOVED in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "NOAUTH Authentication required",
        "ERR AUTH <password> called without any password configured for the default user",
        "code: AUTH_EXPIRED",
        "Unexpected token < in JSON at position 0",
        "Unexpected token '<', \"<!DOCTYPE \"... is not valid JSON",
        "the token was revoked",
        "invalid token",
        "a token expired yesterday",
        "token lobby",
        "password for user is wrong",
        "sk-learn",
        "SG.x",
        "hf_hub",
        "sk-lobby-screen-0000000000000000001",
        "GET /api/tokens/count",
        "the bearer, and the rest",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert without_shapes(text).replace(f"bearer, {REMOVED}", "bearer, and") == text
