"""The error vocabulary agrees with the contract's tables, and no passing fault uses a word that players fear."""

import re

import pytest

from vizora_rt import errors
from vizora_rt.errors import CLOSES, HANDSHAKE_REFUSALS, Close, Refusal

ALL_REFUSALS = [value for value in vars(errors).values() if isinstance(value, Refusal)]

FEARED = ("unauthorized", "invalid token", "device_token_stale", "device_not_found")
"""Shipped players throw their pairing away when a message contains one of these."""


def test_every_close_is_listed_once() -> None:
    assert [value for value in vars(errors).values() if isinstance(value, Close)] == list(CLOSES)
    assert len({close.code for close in CLOSES}) == len(CLOSES)
    assert len({close.name for close in CLOSES}) == len(CLOSES)


def test_codes() -> None:
    assert {close.code for close in CLOSES} == {
        1000, 1002, 1003, 1007, 1009, 1011, 1012, 1013, 4000, 4001, 4002, 4500, 4501, 4503
    }  # fmt: skip


@pytest.mark.parametrize("close", CLOSES, ids=lambda close: close.name)
def test_close(close: Close) -> None:
    assert 1000 <= close.code <= 1015 or 4000 <= close.code <= 4999  # RFC 6455 section 7.4.2
    assert close.come_back is not (close.code >= 4500)
    assert close.report is (close.code in (1002, 1003, 1007, 1009))
    assert len(close.text.encode()) <= 123  # RFC 6455 section 5.5: 125 bytes with the code
    assert re.fullmatch(r"[a-z0-9_]+", close.name)


@pytest.mark.parametrize("refusal", ALL_REFUSALS, ids=lambda refusal: refusal.code)
def test_refusal(refusal: Refusal) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*", refusal.code)
    assert 400 <= refusal.status <= 599
    assert refusal.report is (refusal in (errors.OVERLOADED, errors.STORE_UNAVAILABLE))
    if refusal.retryable:
        assert refusal.status in (408, 409, 429, 500, 503)
    if refusal is not errors.DEVICE_REVOKED:
        assert not any(word in refusal.message.lower() for word in FEARED)


def test_every_refusal_has_a_code_of_its_own() -> None:
    assert len({refusal.code for refusal in ALL_REFUSALS}) == len(ALL_REFUSALS)


def test_handshakes() -> None:
    assert [(refusal.code, refusal.message, refusal.status, refusal.retryable) for refusal in HANDSHAKE_REFUSALS] == [
        ("AUTH_INVALID", "auth_invalid", 401, False),
        ("AUTH_EXPIRED", "auth_expired", 401, False),
        ("DEVICE_REVOKED", "device_token_stale", 403, False),
        ("ORIGIN_DENIED", "origin_denied", 403, False),
        ("RATE_LIMITED", "rate_limited", 429, True),
        ("OVERLOADED", "overloaded", 503, True),
        ("DRAINING", "draining", 503, True),
        ("STORE_UNAVAILABLE", "store_unavailable", 503, True),
    ]


def test_the_vocabulary_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        errors.NORMAL.code = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        errors.INTERNAL.status = 200  # type: ignore[misc]


def test_exit_codes() -> None:
    """sysexits.h: 69 is EX_UNAVAILABLE, 78 is EX_CONFIG."""
    assert [kind.exit_code for kind in (errors.StartupError, errors.ConfigError, errors.UnavailableError)] == [
        1,
        78,
        69,
    ]
    assert issubclass(errors.ConfigError, errors.StartupError)
    assert issubclass(errors.UnavailableError, errors.StartupError)
