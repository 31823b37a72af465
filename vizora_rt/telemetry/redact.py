"""Takes credentials, addresses and images out of whatever is written down: of log lines, of what Sentry gets.

By their names (`authorization`, `token=`: credentials.py), by their shape (`eyJ...`, base64: shapes.py), and those of
this process's configuration by their value, wherever they stand. Sentry gets no network address and no e-mail address
either; the log, which stays on the machine, does.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard
from urllib.parse import unquote, urlsplit

from vizora_rt.config import Config
from vizora_rt.telemetry.credentials import MAX_LAYERS, REMOVED, secret_name, unescaped, without_values
from vizora_rt.telemetry.shapes import without_shapes

MAX_TEXT = 2048
"""Characters of one value. An id has 128 and a message of a fault a few hundred: more is somebody filling the disk."""

MAX_DEPTH = 6

MAX_WORD = 20

NAMING = ("name", "key", "id", "header", "field")
"""Keys of a mapping whose value is the name of what stands beside it under `value`."""

_LOCAL_PART = re.compile(r"[^\s\"'`<>()\[\]{},;:=&?/|\\]++")
_EC2 = re.compile(r"(?<![\w-])ip(?:-\d{1,3}){4}(?![\w-])")
"""A name that Amazon gives to a machine: its address, with hyphens."""
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w.:])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,40}+(?:(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])")

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
    return _through_escapes(text, _without_credentials)


def scrub_for_others(text: str) -> str:
    """The same, without e-mail and IP addresses too."""
    return _through_escapes(text, lambda each: _without_addresses(_without_credentials(each)))


def _through_escapes(text: str, clean: Callable[[str], str]) -> str:
    """`clean(text)`; or what it is without its escapes, when they hid what `clean` takes out."""
    layer = text = clean(text)
    for _ in range(MAX_LAYERS):
        plain = unescaped(layer)
        if plain == layer:
            break
        layer = clean(plain)
        if layer != plain:
            text = layer
    return text


def _without_credentials(text: str) -> str:
    if _Known.pattern is not None:
        text = _Known.pattern.sub(REMOVED, text)
    return without_shapes(without_values(text))


def _without_addresses(text: str) -> str:
    if "@" in text:
        text = _LOCAL_PART.sub(lambda word: REMOVED if re.fullmatch(r"[^@]+@[^@]+", word[0]) else word[0], text)
    text = _EC2.sub(REMOVED, text)
    return _IPV6.sub(_ip, _IPV4.sub(_ip, text))


def _ip(found: re.Match[str]) -> str:
    try:
        ipaddress.ip_address(found[0])
    except ValueError:
        return found[0]
    return REMOVED


def clean(value: object, key: str = "", depth: int = MAX_DEPTH) -> Any:
    """`value` as JSON can hold it: scrubbed, bounded, no lone surrogates, no NaN (RFC 8259 section 6)."""
    if value is None or isinstance(value, bool):
        return value
    secret = secret_name(key)
    if isinstance(value, int | float) and not secret:
        return value if isinstance(value, int) or abs(value) < float("inf") else str(value)
    if depth == 0:
        return "..."
    if isinstance(value, Mapping) and secret:
        return REMOVED
    if isinstance(value, Mapping):
        return {
            str(k) if _is_word(str(k)) else bounded(str(k), MAX_TEXT): clean(v, _name(value, k), depth - 1)
            for k, v in value.items()
        }
    if _is_pair(value):
        return [clean(value[0], key, depth - 1), clean(value[1], value[0], depth - 1)]
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(item, key, depth - 1) for item in value]
    text = value if isinstance(value, str) else repr(value) if isinstance(value, bytes) else str(value)
    return REMOVED if text and secret else bounded(text, MAX_TEXT)


def bounded(text: str, limit: int) -> str:
    """At most `limit` characters. A cut falls between words: half a token is a token that no pattern knows."""
    size = len(text)
    if size > limit:
        text = text[:limit].rpartition(" ")[0]
    text = scrub(text).encode("utf-8", "backslashreplace").decode()
    return text if size <= limit else f"{text}... ({size} characters)"


def tree(value: Any, key: str = "") -> Any:
    """`value` for Sentry: scrubbed at any depth and otherwise as it is: `clean` would shorten a stack trace."""
    secret = secret_name(key)
    if isinstance(value, dict):
        return (
            REMOVED
            if secret and value
            else {
                k if _is_word(str(k)) else scrub_for_others(str(k)): tree(v, _name(value, k)) for k, v in value.items()
            }
        )
    if _is_pair(value):
        return [tree(value[0], key), tree(value[1], value[0])]
    if isinstance(value, list | tuple):
        return [tree(item, key) for item in value]
    if isinstance(value, str):
        return REMOVED if value and secret else scrub_for_others(value)
    return REMOVED if secret and isinstance(value, int | float) and not isinstance(value, bool) else value


def _is_word(key: str) -> bool:
    """Whether a key of a mapping is a word, and need not be looked at: no key of a service is that short."""
    return len(key) <= MAX_WORD and key.isidentifier()


def _name(mapping: Mapping[Any, Any], key: object) -> str:
    """What the value under `key` is called. Of `{"name": "cookie", "value": ...}` it is a value itself."""
    named = (mapping.get(each) for each in NAMING) if key == "value" else ()
    return next((name for name in named if isinstance(name, str) and secret_name(name)), str(key))


def _is_pair(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether it is a secret-like name and its value, as lists of headers hold them."""
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str) and secret_name(value[0])
