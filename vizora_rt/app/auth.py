"""Who is this? A token and the keys give an `Identity`, or the refusal with its code. The only `jwt`.

The algorithm is pinned by configuration and never read from the token (RFC 8725 section 3.1). The claim `type` only
chooses which secret must have signed it, so a dashboard's secret can never make a device.

Over 300 lines because tokens are found, verified and minted by one set of rules.
"""

import base64
import hashlib
import re
import secrets
from collections import deque
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Any, Literal, TypeGuard

import jwt
from jwt.algorithms import Algorithm, get_default_algorithms

from vizora_rt.config import AuthSettings
from vizora_rt.errors import AUTH_EXPIRED, AUTH_INVALID, ORIGIN_DENIED, ConfigError, Refusal
from vizora_rt.wire import messages, payloads
from vizora_rt.wire.http import Request

COOKIE = "vizora_auth_token"
SUBPROTOCOL = "vizora.v1"
BEARER_SUBPROTOCOL = "bearer."

_ID = re.compile(payloads.ID_PATTERN)
_COMPACT = re.compile(r"([\w-]++)\.([\w-]++)\.([\w-]++)", re.ASCII)  # RFC 7515 section 7.1

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[^\[\]/?#@:,\s]+)(?::([0-9]{0,5}))?")

PORTS = {"http": 80, "https": 443}
"""Of a scheme whose port is not named (RFC 9110 sections 4.2.1 and 4.2.2)."""

MAX_TOKEN = 8192
"""Characters of a token; a signed token of this platform has about 300."""

MAX_IDENTIFIER = 128
"""Characters of a `deviceIdentifier`, a hardware id, that a connection keeps."""

DEFAULT_LIFE = 90 * 86_400
"""Seconds, of a token that follows one which did not say how long it lived: what `vizora-rt token device` gives."""

LAST_TIME = 1e11
"""Seconds since the epoch, the year 5138. A larger claim is in milliseconds: its token would live a thousand times too
long."""

Kind = Literal["device", "dashboard"]


class Identity:
    """Whose connection it is. `expires` and `issued` are seconds since the epoch, 0 when the token has none.

    `identifier` is the claim `deviceIdentifier`, kept for the token that may follow this one.
    """

    __slots__ = ("expires", "id", "identifier", "issued", "jti", "kind", "organization_id")

    def __init__(
        self,
        kind: Kind,
        id: str,  # noqa: A002
        organization_id: str,
        jti: str,
        issued: float,
        expires: float,
        identifier: str = "",
    ) -> None:
        self.kind: Kind = kind
        self.id = id
        self.organization_id = organization_id
        self.jti = jti
        self.issued = issued
        self.expires = expires
        self.identifier = identifier


class Verifier:
    """Verifies tokens and remembers the good ones until they expire: a signature costs 10 us, a look-up under one.

    Of PyJWT only algorithms and keys are used. Its reader of tokens takes 29 us, prepares the key for each token again
    and raises on a key that it does not like: here that happens once, before anybody connects, as a ConfigError.
    """

    def __init__(self, config: AuthSettings) -> None:
        self._pinned = config.algorithm
        self._algorithm = _algorithm(config.algorithm)
        self._device_keys = _keys(self._algorithm, config, "device_jwt_secret")
        self._user_keys = _keys(self._algorithm, config, "jwt_secret")
        self._header = ""
        self._entries = config.cache_entries
        self._known: dict[bytes, Identity] = {}
        self._order: deque[bytes] = deque()
        self._organizations: dict[str, str] = {}

    def verify(self, token: str, now: float) -> Identity | Refusal:
        """`now` is in seconds since the epoch."""
        if not token or len(token) > MAX_TOKEN or not token.isascii():
            return AUTH_INVALID
        digest = fingerprint(token)
        identity = self._known.get(digest)
        if identity is None:
            found = self._decode(token, now)
            if isinstance(found, Identity):
                self._remember(digest, found)
            return found
        if identity.expires and identity.expires <= now:
            del self._known[digest]
            return AUTH_EXPIRED
        return identity

    def _remember(self, digest: bytes, identity: Identity) -> None:
        if not self._entries:
            return
        # The order stands apart: to find the first key of a dict is to walk over the holes that others left before it.
        if len(self._order) >= self._entries:
            self._known.pop(self._order.popleft(), None)
        self._order.append(digest)
        self._known[digest] = identity

    def _decode(self, token: str, now: float) -> Identity | Refusal:
        parts = _COMPACT.fullmatch(token)
        if parts is None:
            return AUTH_INVALID
        header, payload, signature = parts.groups()
        if header != self._header:
            if not self._accepts(_object(header)):
                return AUTH_INVALID
            self._header = header  # an issuer writes the same one into all tokens
        ownership_store = _object(payload)
        if ownership_store is None:
            return AUTH_INVALID
        is_device = ownership_store.get("type") == "device"
        signed, proof = token[: parts.end(2)].encode(), _unpack(signature)
        for key in self._device_keys if is_device else self._user_keys:
            if self._algorithm.verify(signed, key, proof):
                return self._identity(ownership_store, is_device, now)
        return AUTH_INVALID

    def _accepts(self, header: dict[str, Any] | None) -> bool:
        # An extension that must be understood (RFC 7515 section 4.1.11) is not.
        return header is not None and header.get("alg") == self._pinned and "crit" not in header

    def _identity(self, ownership_store: dict[str, Any], is_device: bool, now: float) -> Identity | Refusal:
        subject, organization = ownership_store.get("sub"), ownership_store.get("organizationId")
        jti, issued, expires = (
            ownership_store.get("jti", ""),
            ownership_store.get("iat", 0),
            ownership_store.get("exp", 0),
        )
        ends = "exp" in ownership_store  # 0 is a time too, and over; so is -0.0, and 1e-400, which is read as 0.0
        if not valid_id(subject) or not valid_id(organization):
            return AUTH_INVALID
        if not isinstance(jti, str) or len(jti) > 128 or not _is_time(issued) or not _is_number(expires):
            return AUTH_INVALID
        if ends and expires <= now:
            return AUTH_EXPIRED
        if expires >= LAST_TIME:
            return AUTH_INVALID
        if "nbf" in ownership_store and not (_is_time(ownership_store["nbf"]) and ownership_store["nbf"] <= now):
            return AUTH_INVALID
        # One string object for all screens of an organisation: 20,000 connections share it.
        organization = self._organizations.setdefault(organization, organization)
        if not is_device:
            return Identity("dashboard", subject, organization, jti, issued, expires)
        identifier = ownership_store.get("deviceIdentifier")
        kept = identifier if isinstance(identifier, str) and len(identifier) <= MAX_IDENTIFIER else ""
        return Identity("device", subject, organization, jti, issued, expires, kept)


def fingerprint(token: str) -> bytes:
    """What a token is remembered by: 16 bytes, so that no cache holds tokens."""
    return hashlib.blake2b(token.encode(), digest_size=16).digest()


def valid_id(value: object) -> TypeGuard[str]:
    """Ids are 1 to 128 printable characters without space or braces: they become parts of Redis keys and labels."""
    return isinstance(value, str) and _ID.match(value) is not None


def token_of(request: Request) -> tuple[str, bool]:
    """The token that a native client brought, and whether it came by cookie. Empty when there is none."""
    authorization = request.headers.get("authorization", "")
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip(), False
    for protocol in offered_subprotocols(request):
        if protocol.startswith(BEARER_SUBPROTOCOL) and protocol != BEARER_SUBPROTOCOL:
            return protocol.removeprefix(BEARER_SUBPROTOCOL), False
    query = request.param("token")
    if query:
        return query, False
    return request.cookie(COOKIE) or "", True


def offered_subprotocols(request: Request) -> list[str]:
    """What the client offered in Sec-WebSocket-Protocol (RFC 6455 section 4.1)."""
    header = request.headers.get("sec-websocket-protocol")
    return [part.strip() for part in header.split(",")] if header else []


def choose_subprotocol(request: Request) -> str | None:
    """The subprotocol of the answer, "" for none; None when the client would end the connection for lack of one.

    A browser offers its token as `bearer.TOKEN`, and ends a connection whose answer names nothing that it offered (RFC
    6455 section 4.1). The token is a secret and is not named back: so there must be `vizora.v1` beside it.
    """
    offered = offered_subprotocols(request)
    if SUBPROTOCOL in offered:
        return SUBPROTOCOL
    return None if any(protocol.startswith(BEARER_SUBPROTOCOL) for protocol in offered) else ""


def first_subprotocol(request: Request) -> str:
    """The one that the reference server of Socket.IO chooses: the first; "" when none was offered."""
    offered = offered_subprotocols(request)
    return offered[0] if offered and _TOKEN.fullmatch(offered[0]) else ""


def check_origin(request: Request, allowed: Iterable[str], by_cookie: bool) -> Refusal | None:
    """Browsers name the page that connects; others do not. A cookie travels by itself, so it needs a page we trust.

    Players in a shell of their own send `file://`, `null` or an own scheme: not a page of the web, so no origin. For a
    cookie only a named page of the web counts: any frame in a sandbox is `null` too, any file is `file://`.
    """
    text = request.headers.get("origin", "")
    if not text:
        return ORIGIN_DENIED if by_cookie else None
    page = _page(text)
    # "*" names no page: as in the browsers' own rules it does not cover what travels by itself.
    if by_cookie:
        return None if page is not None and any(_page(each) == page for each in allowed) else ORIGIN_DENIED
    if not text.lower().startswith(("http:", "https:")):
        return None
    for each in allowed:
        if each == "*" or (page is not None and _page(each) == page):
            return None
    same_host = page is not None and _page(f"{page[0]}://{request.headers.get('host', '')}") == page
    return None if same_host else ORIGIN_DENIED


def _page(text: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of a page of the web, as origins are compared (RFC 6454 sections 4 and 5); None of others.

    Scheme and host have no case, a port that is not named is the scheme's, an IPv6 address has several spellings, and
    people end an origin with a slash.
    """
    match = _ORIGIN.fullmatch(text.lower().rstrip("/"))
    if match is None:
        return None
    scheme, host, port = match.groups()
    if host.startswith("["):
        try:
            host = IPv6Address(host[1:-1]).compressed
        except ValueError:
            return None
    return scheme, host, int(port) if port else PORTS[scheme]


def mint_device(config: AuthSettings, device: str, organization: str, now: int, ttl: int) -> str:
    """A device token as the backend makes them; `ttl` in seconds."""
    ownership_store = {"sub": device, "organizationId": organization, "type": "device", "jti": secrets.token_hex(8)}
    return _mint(config, config.device_jwt_secret, ownership_store, now, ttl)


def renew(config: AuthSettings, identity: Identity, now: int) -> tuple[str, Identity]:
    """A device token that follows another: the same claims, as long a life, from now on; and whose it is.

    It has the `jti` of the one before, since that is the name by which a backend that knows of no other token revokes.
    """
    life = int(identity.expires - identity.issued) if 0 < identity.issued < identity.expires else DEFAULT_LIFE
    ownership_store = {"sub": identity.id, "organizationId": identity.organization_id, "type": "device"}
    optional = {"jti": identity.jti, "deviceIdentifier": identity.identifier}
    ownership_store |= {name: value for name, value in optional.items() if value}
    token = _mint(config, config.device_jwt_secret, ownership_store, now, life)
    of = (identity.id, identity.organization_id, identity.jti, now, now + life, identity.identifier)
    return token, Identity("device", *of)


def mint_user(config: AuthSettings, user: str, organization: str, now: int, ttl: int, email: str = "") -> str:
    """A dashboard user's token; `ttl` in seconds."""
    ownership_store = {"sub": user, "organizationId": organization, "type": "user", "jti": secrets.token_hex(8)}
    return _mint(config, config.jwt_secret, ownership_store | ({"email": email} if email else {}), now, ttl)


def _mint(config: AuthSettings, key: str, ownership_store: dict[str, Any], now: int, ttl: int) -> str:
    if config.algorithm != "HS256":
        raise ConfigError(f"auth.algorithm is {config.algorithm}: only the holder of the private key can make tokens")
    for name in ("sub", "organizationId"):
        if not valid_id(ownership_store[name]):
            raise ConfigError(
                f"{ownership_store[name]!r}: an id has 1 to 128 printable characters without space or braces"
            )
    try:
        return jwt.encode({**ownership_store, "iat": now, "exp": now + ttl}, key, algorithm=config.algorithm)
    except jwt.InvalidKeyError:
        raise ConfigError(f"auth: the secret cannot be a key for {config.algorithm}") from None


def _algorithm(name: str) -> Algorithm:
    found = get_default_algorithms().get(name)
    if found is None:
        raise ConfigError(f"auth.algorithm is {name}: it needs the extra `crypto`: pip install 'vizora-rt[crypto]'")
    return found


def _keys(algorithm: Algorithm, config: AuthSettings, name: str) -> tuple[Any, ...]:
    """The keys of config.toml's `name` and the one before it, ready for use. The text of a key is shown to nobody."""
    keys = []
    for each in (name, f"{name}_previous"):
        text = getattr(config, each)
        if not text:
            continue
        try:
            key = algorithm.prepare_key(text)
        except Exception:  # each kind of key has exceptions of its own
            raise ConfigError(f"auth.{each}: cannot be a key for auth.algorithm {config.algorithm}") from None
        if hasattr(key, "private_bytes"):
            raise ConfigError(f"auth.{each}: is a private key; the gateway wants the public one")
        keys.append(key)
    return tuple(keys)


def _object(segment: str) -> dict[str, Any] | None:
    try:
        value = messages.loads(_unpack(segment))
    except messages.JSONError:
        return None
    return value if isinstance(value, dict) else None


def _unpack(segment: str) -> bytes:
    """base64url without padding (RFC 7515 section 2); nothing when it is not that.

    What the last character holds beyond the last byte must be zero: else one token could be spelled in four ways, and
    have four times the connections.
    """
    try:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError:
        return b""
    return data if base64.urlsafe_b64encode(data).rstrip(b"=") == segment.encode() else b""


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_time(value: object) -> bool:
    return _is_number(value) and 0 <= value < LAST_TIME
