"""Who is this? A token and the keys give an `Identity`, or the refusal with its code. The only `jwt`.

The algorithm is pinned by configuration and never read from the token (RFC 8725 section 3.1). The claim `type` only
chooses which secret must have signed it, so a dashboard's secret can never make a device.
"""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from typing import Any, Literal, TypeGuard

import jwt

from vizora_rt.config import Auth
from vizora_rt.errors import AUTH_EXPIRED, AUTH_INVALID, ORIGIN_DENIED, ConfigError, Refusal
from vizora_rt.wire.http import Request

COOKIE = "vizora_auth_token"
SUBPROTOCOL = "vizora.v1"
BEARER_SUBPROTOCOL = "bearer."

_ID = re.compile(r"[^ {}]{1,128}")

MAX_TOKEN = 8192
"""Characters of a token; a signed token of this platform has about 300."""

Kind = Literal["device", "dashboard"]


class Identity:
    """Whose connection it is. `expires` and `issued` are seconds since the epoch, 0 when the token has none."""

    __slots__ = ("expires", "id", "issued", "jti", "kind", "organization_id")

    def __init__(self, kind: Kind, id: str, organization_id: str, jti: str, issued: float, expires: float) -> None:  # noqa: A002
        self.kind: Kind = kind
        self.id = id
        self.organization_id = organization_id
        self.jti = jti
        self.issued = issued
        self.expires = expires


class Verifier:
    """Verifies tokens and remembers the good ones until they expire: a signature costs 29 us, a look-up under one."""

    def __init__(self, config: Auth) -> None:
        # Claims are checked here, against the caller's `now`: of PyJWT only the signature is wanted.
        self._jws = jwt.PyJWS()
        self._algorithms = [config.algorithm]
        self._entries = config.cache_entries
        self._known: dict[bytes, Identity] = {}
        self._organizations: dict[str, str] = {}
        self._device_keys = tuple(filter(None, (config.device_jwt_secret, config.device_jwt_secret_previous)))
        self._user_keys = tuple(filter(None, (config.jwt_secret, config.jwt_secret_previous)))

    def verify(self, token: str, now: float) -> Identity | Refusal:
        """`now` is in seconds since the epoch."""
        if not token or len(token) > MAX_TOKEN or not token.isascii():
            return AUTH_INVALID
        digest = fingerprint(token)
        identity = self._known.get(digest)
        if identity is None:
            found = self._decode(token, now)
            if isinstance(found, Refusal):
                return found
            identity = found
            if self._entries:
                while len(self._known) >= self._entries:
                    del self._known[next(iter(self._known))]
                self._known[digest] = identity
        if identity.expires and identity.expires <= now:
            self._known.pop(digest, None)
            return AUTH_EXPIRED
        return identity

    def _decode(self, token: str, now: float) -> Identity | Refusal:
        claims = _claims(token)
        if claims is None:
            return AUTH_INVALID
        is_device = claims.get("type") == "device"
        for key in self._device_keys if is_device else self._user_keys:
            try:
                self._jws.decode(token, key, self._algorithms)
            except (jwt.InvalidTokenError, ValueError):
                continue
            return self._identity(claims, is_device, now)
        return AUTH_INVALID

    def _identity(self, claims: dict[str, Any], is_device: bool, now: float) -> Identity | Refusal:
        subject, organization = claims.get("sub"), claims.get("organizationId")
        jti, issued, expires = claims.get("jti", ""), claims.get("iat", 0), claims.get("exp", 0)
        if not valid_id(subject) or not valid_id(organization):
            return AUTH_INVALID
        if not isinstance(jti, str) or len(jti) > 128 or not _is_time(issued) or not _is_time(expires):
            return AUTH_INVALID
        if "nbf" in claims and not (_is_time(claims["nbf"]) and claims["nbf"] <= now):
            return AUTH_INVALID
        # One string object for all screens of an organisation: 20,000 connections share it.
        organization = self._organizations.setdefault(organization, organization)
        return Identity("device" if is_device else "dashboard", subject, organization, jti, issued, expires)


def fingerprint(token: str) -> bytes:
    """What a token is remembered by: 16 bytes, so that no cache holds tokens."""
    return hashlib.blake2b(token.encode(), digest_size=16).digest()


def valid_id(value: object) -> TypeGuard[str]:
    """Ids are 1 to 128 printable characters without space or braces: they become parts of Redis keys and labels."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None and value.isprintable()


def token_of(request: Request) -> tuple[str, bool]:
    """The token that a native client brought, and whether it came by cookie. Empty when there is none."""
    authorization = request.headers.get("authorization", "")
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip(), False
    for protocol in offered_subprotocols(request):
        if protocol.startswith(BEARER_SUBPROTOCOL):
            return protocol.removeprefix(BEARER_SUBPROTOCOL), False
    query = request.param("token")
    if query:
        return query, False
    return request.cookie(COOKIE) or "", True


def offered_subprotocols(request: Request) -> list[str]:
    """What the client offered in Sec-WebSocket-Protocol (RFC 6455 section 4.1)."""
    header = request.headers.get("sec-websocket-protocol")
    return [part.strip() for part in header.split(",")] if header else []


def check_origin(request: Request, allowed: Iterable[str], by_cookie: bool) -> Refusal | None:
    """Browsers name the page that connects; others do not. A cookie travels by itself, so it needs a page we trust.

    Players in a shell of their own send `file://`, `null` or an own scheme: not a page of the web, so no origin.
    """
    origin = request.headers.get("origin", "").lower().rstrip("/")
    if origin and (origin in allowed or "*" in allowed):
        return None
    if by_cookie:
        return ORIGIN_DENIED
    if not origin.startswith(("http://", "https://")):
        return None
    same_origin = origin.partition("://")[2] == request.headers.get("host", "").lower()
    return None if same_origin else ORIGIN_DENIED


def mint_device(config: Auth, device: str, organization: str, now: int, ttl: int) -> str:
    """A device token as the backend makes them; `ttl` in seconds."""
    claims = {"sub": device, "organizationId": organization, "type": "device", "jti": secrets.token_hex(8)}
    return _mint(config, config.device_jwt_secret, claims, now, ttl)


def mint_user(config: Auth, user: str, organization: str, now: int, ttl: int, email: str = "") -> str:
    """A dashboard user's token; `ttl` in seconds."""
    claims = {"sub": user, "organizationId": organization, "type": "user", "jti": secrets.token_hex(8)}
    return _mint(config, config.jwt_secret, claims | ({"email": email} if email else {}), now, ttl)


def _mint(config: Auth, key: str, claims: dict[str, Any], now: int, ttl: int) -> str:
    if config.algorithm != "HS256":
        raise ConfigError(f"auth.algorithm is {config.algorithm}: only the holder of the private key can make tokens")
    for name in ("sub", "organizationId"):
        if not valid_id(claims[name]):
            raise ConfigError(f"{claims[name]!r}: an id has 1 to 128 printable characters without space or braces")
    return jwt.encode({**claims, "iat": now, "exp": now + ttl}, key, algorithm=config.algorithm)


def _claims(token: str) -> dict[str, Any] | None:
    """The claims of a token whose signature is not verified yet: they say which secret should have signed it."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11
