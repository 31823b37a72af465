"""Takes out of text what is a credential by its shape or by the words before it, whatever field it stands in.

Tokens, keys of well-known services, private keys, addresses that are a key, passwords in URLs, on command lines and in
sentences. Each pattern is linear in the text, whatever a peer put there: possessive, anchored to the start of a run,
or bounded.
"""

import base64
import binascii
import re
from typing import Final

from vizora_rt.telemetry.credentials import REMOVED

_SERVICES: Final = (
    "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "gldt-", "glrt-", "npm_", "pypi-AgE", "dckr_pat_",
    "xoxa-", "xoxb-", "xoxc-", "xoxd-", "xoxe-", "xoxe.", "xoxp-", "xoxr-", "xoxs-", "xapp-", "sk_live_", "sk_test_",
    "rk_live_", "rk_test_", "whsec_", "AIza", "ya29.", "1//0", "GOCSPX-", "hvs.", "hvb.", "dop_v1_", "doo_v1_",
    "dor_v1_", "shpat_", "shpss_", "shpca_", "shppa_", "sk-proj-", "sk-ant-", "sk-svcacct-", "sntrys_", "sntryu_",
    "glsa_", "glc_", "lin_api_", "ATATT", "NRAK-", "PMAK-", "sq0csp-", "sq0atp-", "pat-na1-", "pat-eu1-",
    "AGE-SECRET-KEY-1", "EAACEdEose0cBA", "v1.local.", "v2.local.", "v3.local.", "v4.local.", "v1.public.",
    "v2.public.", "v3.public.", "v4.public.",
)  # fmt: skip
"""What keys of well-known services begin with, so that they are found. None that an id may begin with."""

_PEM: Final = r"[A-Z ]{0,32}PRIVATE KEY(?: BLOCK)?-----"
_RANDOM: Final = r"(?=[^\s\"'`<>]{0,256}\d)[^\s\"'`<>]{8,}+"
"""A word with a digit in it: what follows "token" in a sentence is more often "expired" than the token."""

_BEFORE: Final = (
    "passw", "passphrase", "pwd", "secret", "token", "key", "credential", "requirepass", "masterauth", "jwt",
    "identified by",
)  # fmt: skip
"""What stands before a secret in a sentence."""

Shapes = tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...]
"""What the text has when the pattern can match at all, in small letters where the pattern ignores case, `()` for
anything; the pattern; what takes its place. A look for a word costs a hundredth of a pattern that finds nothing."""

_LONG: Final = re.compile(r"[\w+/=.-]{16}")
"""What keys and tokens have and sentences seldom: so many characters without a space."""

LONG: Final[Shapes] = (
    # A JWT, or a JWE, which has five parts and may have empty ones.
    (("eyJ",), re.compile(r"(?<![\w-])(?=[\w-]*?eyJ)[\w-]++(?:\.[\w-]*+){1,4}+"), REMOVED),
    ((), re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, _SERVICES))})[\w.-]{{12,256}}+"), REMOVED),
    (("sk-",), re.compile(r"(?<![\w-])sk-[A-Za-z0-9]{32,256}+"), REMOVED),
    (("hf_",), re.compile(r"(?<![\w-])hf_[A-Za-z0-9]{24,256}+"), REMOVED),
    (("SG.",), re.compile(r"(?<![\w-])SG\.[\w-]{16,64}+\.[\w-]{16,256}+"), REMOVED),
    (("IA",), re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])(?::[\w+/=-]{1,256}+)?"), REMOVED),
    # A picture without its prefix. No id has this length, nor a path without a dot.
    ((), re.compile(r"(?<![\w+/=-])[\w+/=-]{256,}+"), REMOVED),
)
"""Shapes of a text with such a run."""

SHAPES: Final[Shapes] = (
    # What follows an Authorization field's scheme, or "bearer" in a list of subprotocols.
    (("digest",), re.compile(r"(\bdigest\s{1,16}+)(?=\w{1,16}+=)[^\r\n]*+", re.IGNORECASE), rf"\1{REMOVED}"),
    (
        ("bearer", "negotiate", "digest", "aws4-"),
        re.compile(r"(\b(?:bearer|negotiate|digest|aws4-hmac-sha256)[\s.,]{1,16}+)[^\s,;\"']++", re.IGNORECASE),
        rf"\1{REMOVED}",
    ),
    # Addresses that are a key themselves: who knows one can post to it.
    (
        ("/services/", "/triggers/", "/workflows/", "/webhooks/", "/webhookb2/"),
        re.compile(r"(/(?:services|triggers|workflows|webhooks|webhookb2)/)[^\s\"'<>]++"),
        rf"\1{REMOVED}",
    ),
    (("/bot",), re.compile(r"(/bot)\d{6,16}+(?::|%3A)[\w-]{20,}+"), rf"\1{REMOVED}"),
    (
        ("token/", "tokens/", "secret", "passw", "key", "jwt", "reset", "invite", "activate"),
        re.compile(
            r"((?:token|secret|password|passwd|api[_-]?key|jwt|reset|invite|activate)s?/)(?=[^\s/?#\"'<>]{0,256}\d)[^\s/?#\"'<>]{8,}+",
            re.IGNORECASE,
        ),
        rf"\1{REMOVED}",
    ),
    (
        ("PRIVATE KEY",),
        re.compile(rf"(-----BEGIN {_PEM})(?:[^-]++|-(?!----))*+(?:-----END {_PEM})?"),
        rf"\1{REMOVED}",
    ),
    # The end of one, the rest of which was cut off.
    (("PRIVATE KEY",), re.compile(rf"(?<![\w+/=\s])[\w+/=\s]++(-----END {_PEM})"), rf"{REMOVED}\1"),
    ((";base64,",), re.compile(r"(;base64,)[\w+/=]+"), rf"\1{REMOVED}"),
    # In a sentence, of a configuration without a separator (redis.conf, .netrc), of a command.
    (
        _BEFORE,
        re.compile(
            r"(\b(?:passwords?|passwd|passphrase|pwd|secrets?|tokens?|(?:api|access|secret)[ _-]?key|credentials?|"
            r"requirepass|masterauth|jwt)\s{1,4}+(?:(?:is|was|value)\s{1,4}+)?)" + _RANDOM,
            re.IGNORECASE,
        ),
        rf"\1{REMOVED}",
    ),
    (
        _BEFORE,
        re.compile(
            r"(\b(?:passwords?|passphrase|secrets?|tokens?|(?:api|access|secret)[ _-]?key|identified by)"
            r"\s{1,4}+(?:(?:is|was)\s{1,4}+)?)(?:'[^'\r\n]{4,}+'|\"[^\"\r\n]{4,}+\"|`[^`\r\n]{4,}+`)",
            re.IGNORECASE,
        ),
        rf"\1{REMOVED}",
    ),
    # What is said to Redis.
    (
        ("AUTH",),
        re.compile(rf"(\bAUTH\s{{1,4}}+(?:\$\d{{1,4}}\s{{1,4}}+|\w{{1,64}}+\s{{1,4}}+)?){_RANDOM}"),
        rf"\1{REMOVED}",
    ),
    (
        ("setuser",),
        re.compile(r"(\bSETUSER\s)[^\r\n]*+", re.IGNORECASE),
        rf"\1{REMOVED}",
    ),
    # Of a command line: curl, wget and redis-cli, mysql, sshpass.
    (
        ("-u ", "-u=", "-user"),
        re.compile(r"((?<!\S)(?:-u|--user|--proxy-user)[ =][\"']?)[^\s:\"']{1,128}+:[^\s\"']++"),
        rf"\1{REMOVED}",
    ),
    (("-cli ",), re.compile(r"(-cli\s(?:[^\r\n]{0,200}?\s)?-a\s{1,4}+)[^\s]++"), rf"\1{REMOVED}"),
    (("sshpass",), re.compile(r"(\bsshpass\s{1,4}+-p\s{0,4}+)[^\s]++"), rf"\1{REMOVED}"),
    (("mysql",), re.compile(r"(\bmysql\w{0,8}+\s(?:[^\r\n]{0,200}?\s)?-p)[^\s]++"), rf"\1{REMOVED}"),
)

MIN_TEXT: Final = 10
"""Characters: "basic" and four of base64. A shorter text holds no shape but that of `user:password@host`."""

_BASIC = re.compile(r"(\bbasic[\s:]{1,16}+)([A-Za-z0-9+/_-]{4,}+={0,2})", re.IGNORECASE)
_RUN = re.compile(r"[^\s\"'`<>]++")


def without_shapes(text: str) -> str:
    """`text` with `<removed>` in place of what looks like a credential."""
    if len(text) >= MIN_TEXT:
        if _LONG.search(text):
            text = _without(text, LONG)
        text = _without(text, SHAPES)
    return _RUN.sub(_userinfo, text) if "@" in text else text


def _without(text: str, shapes: Shapes) -> str:
    small = text.lower()
    for parts, pattern, replacement in shapes:
        within = small if pattern.flags & re.IGNORECASE else text
        for part in parts or ("",):
            if part in within:
                text = pattern.sub(replacement, text)
                break
    return _BASIC.sub(_basic, text) if "basic" in small else text


def _userinfo(run: re.Match[str]) -> str:
    """A password in a URL may hold `/`, `#` and `@` too: so all before the last `@` is taken for it."""
    text = run[0]
    before, at, host = text.rpartition("@")
    scheme, separator, user = before.partition("://")
    if not at or ":" not in before or (separator and not user):
        return text
    return f"{scheme}{separator}{REMOVED}@{host}" if separator else f"{REMOVED}@{host}"


def _basic(found: re.Match[str]) -> str:
    """RFC 7617: user, colon and password in base64. An ordinary word behind "basic" is none."""
    try:
        pair = b":" in base64.b64decode(found[2] + "==", b"-_" if re.search("[-_]", found[2]) else None)
    except binascii.Error:
        pair = False
    return f"{found[1]}{REMOVED}" if pair else found[0]
