"""Take credentials and images out of whatever is written down: of log lines, of what Sentry gets.

By their names (`authorization`, `token=`), by their shape (`eyJ...`, base64), and those of this process's configuration
by their value, wherever they stand.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from vizora_rt.config import Config

MAX_TEXT = 2048
"""Characters of one value. An id has 128 and a message of a fault a few hundred: more is somebody filling the disk."""

MAX_DEPTH = 6

REMOVED = "<removed>"

SECRET_KEY = re.compile(r"token|secret|passw|authorization|cookie|api[-_]?key|dsn|imagedata", re.IGNORECASE)

# Each is linear in the text, whatever a peer put there: possessive, anchored to the start of a run, or bounded.
SECRETS = (
    (re.compile(r"(?<![\w-])(?=[\w-]*?eyJ)[\w-]++\.[\w-]++(?:\.[\w-]*+)?"), REMOVED),
    (re.compile(r"(\bbearer[ .])[^\s,;\"']+", re.IGNORECASE), rf"\1{REMOVED}"),
    (re.compile(r"((?:token|secret|passw|api[-_]?key)[\w-]{0,32}=)[^&\s;,\"']+", re.IGNORECASE), rf"\1{REMOVED}"),
    (re.compile(r"((?:authorization|cookie|api[-_]key)['\"]?: ?)[^\r\n]+", re.IGNORECASE), rf"\1{REMOVED}"),
    (re.compile(r"(://)[^/\s@]+@"), rf"\1{REMOVED}@"),
    (re.compile(r"(;base64,)[\w+/=]+"), rf"\1{REMOVED}"),
    # A picture without its prefix. No id has this length, nor a path without a dot.
    (re.compile(r"(?<![\w+/=-])[\w+/=-]{256,}+"), REMOVED),
)

MIN_SECRET = 8
"""A secret of fewer characters is left to the patterns: "dev" is in half of all words."""


class _Known:
    """The secrets of this process's configuration."""

    pattern: re.Pattern[str] | None = None


def learn(config: Config) -> None:
    """Know the secrets of `config`, in place of those of another."""
    auth, password = config.auth, urlsplit(config.redis.url).password or ""
    values = {
        auth.device_jwt_secret,
        auth.device_jwt_secret_previous,
        auth.jwt_secret,
        auth.jwt_secret_previous,
        auth.internal_api_secret,
        config.metrics.token,
        password,
        unquote(password),
    }
    known = sorted((re.escape(value) for value in values if len(value) >= MIN_SECRET), key=len, reverse=True)
    _Known.pattern = re.compile("|".join(known)) if known else None


def scrub(text: str) -> str:
    """`text` without tokens, secrets, credentials in URLs and image data."""
    if _Known.pattern is not None:
        text = _Known.pattern.sub(REMOVED, text)
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def clean(value: object, key: str = "", depth: int = MAX_DEPTH) -> Any:
    """`value` as JSON can hold it: scrubbed, bounded, no lone surrogates, no NaN (RFC 8259 section 6)."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        return {str(k): clean(v, str(k), depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(item, key, depth - 1) for item in value]
    text = value if isinstance(value, str) else repr(value) if isinstance(value, bytes) else str(value)
    return bounded(REMOVED if text and SECRET_KEY.search(key) else text, MAX_TEXT)


def bounded(text: str, limit: int) -> str:
    """At most `limit` characters. A cut falls between words: half a token is a token that no pattern knows."""
    size = len(text)
    if size > limit:
        text = text[:limit].rpartition(" ")[0]
    text = scrub(text).encode("utf-8", "backslashreplace").decode()
    return text if size <= limit else f"{text}... ({size} characters)"


def tree(value: Any, key: str = "") -> Any:
    """`value` scrubbed at any depth and otherwise as it is: `clean` would shorten a stack trace."""
    if isinstance(value, dict):
        return {k: tree(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [tree(item, key) for item in value]
    if isinstance(value, str):
        return REMOVED if value and SECRET_KEY.search(key) else scrub(value)
    return value
