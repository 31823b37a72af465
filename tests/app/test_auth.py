"""Tokens, signed by hand so that each can be wrong in one way; where they may stand; pages that may bring them."""

import base64
import gc
import hashlib
import hmac
import json
import string
import subprocess
import sys
import unicodedata
from typing import Any, ClassVar

import jwt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.app.auth import (
    COOKIE,
    MAX_TOKEN,
    Identity,
    Verifier,
    check_origin,
    choose_subprotocol,
    fingerprint,
    mint_device,
    mint_user,
    offered_subprotocols,
    renew,
    token_of,
    valid_id,
)
from vizora_rt.config import AuthSettings
from vizora_rt.errors import AUTH_EXPIRED, AUTH_INVALID, ORIGIN_DENIED, ConfigError, Refusal
from vizora_rt.wire.http import Request, RequestParser

DEVICE_SECRET = "device-secret-of-more-than-32-bytes"
USER_SECRET = "user-secret-that-has-also-32-bytes"
OLD_DEVICE_SECRET = "the-device-secret-before-this-one-"
OLD_USER_SECRET = "the-user-secret-before-this-one---"

KEYS = AuthSettings(device_jwt_secret=DEVICE_SECRET, jwt_secret=USER_SECRET)
ROTATING = msgspec.structs.replace(
    KEYS, device_jwt_secret_previous=OLD_DEVICE_SECRET, jwt_secret_previous=OLD_USER_SECRET
)

NOW = 1_764_000_000

DEVICE = {"sub": "lobby-1", "organizationId": "acme", "type": "device", "jti": "j1", "iat": NOW - 9, "exp": NOW + 9}
USER = {"sub": "alice", "organizationId": "acme", "type": "user", "jti": "j2", "iat": NOW - 9, "exp": NOW + 9}

HS256 = {"alg": "HS256", "typ": "JWT"}

ABSENT = ...
"""Stands for a claim that is not there. Its name is the same in every process, so that several can run the tests."""

IDS = ["a", "lobby-1", "x" * 128, "ünïcode", "日本", "a:b/c.d_e~", "a,b", '"quoted"', "\\", "<&>", "*", "%20"]

NO_IDS: list[Any] = [
    "", "x" * 129, " ", "a b", " a", "a ", "{", "}", "{d}", "a\n", "\na", "a\r", "a\tb", "a\0", "\x1b[31m", "a\x7f",
    "a\x85", "a\u2028", "a\u00a0b", "a\u200b", "\ufeffa", "\u202ea", None, 0, 7, 1.5, True, [], ["a"], {}, {"a": 1},
]  # fmt: skip

UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zs", "Zl", "Zp"}
"""Unicode's categories of characters without a shape of their own."""

UNSEEN_SINCE_3_2 = (
    *range(0x600, 0x606), 0x890, 0x891, 0x61C, 0xAD, 0x8E2, 0x2064, *range(0x2066, 0x206A), 0x110BD, 0x110CD,
    *range(0x13430, 0x13440), *range(0x1BCA0, 0x1BCA4),
)  # fmt: skip
"""Characters that joined these categories from Unicode 4.0 to 17.0. Each Python brings a Unicode version of its own;
all bring 3.2, so that this list and 3.2 say the same on each."""

SHAPES_REFUSED = [
    "{h}", "{h}.{p}", "{h}.{p}.", ".{p}.{s}", "{h}..{s}", "{h}.{p}.{s}.{s}", "{h}.{p}.{s}.", ".{h}.{p}.{s}",
    "{h}.{p}.{s}..", " {h}.{p}.{s}", "{h}.{p}.{s} ", "{h}.{p}.{s}\n", "{h}.{p} .{s}", "{h}.{p}.{s}=", "{h}=.{p}.{s}",
    "{h}.{p}=.{s}", "{h}.{p}.{s}é", "{h}.{p}.{s}\0", "{h}.{p}.{s}\ud800", "Bearer {h}.{p}.{s}", "{h}{p}{s}",
    "{p}.{h}.{s}", "{h}.{p}.{s}{s}", "{h}.{p}A.{s}", "", ".", "..", " ", "null",
]  # fmt: skip

NO_JTIS: list[Any] = [None, 7, True, [], {}, "x" * 129]

NO_TIMES: list[Any] = [None, True, False, str(NOW), "", [], {}, 1e11, 1e300, 2**64 - 1, 10**30]

CLAIMS_REFUSED: dict[str, tuple[str, Any]] = {
    **{f"{claim} {value!r}": (claim, value) for claim in ("sub", "organizationId") for value in [ABSENT, *NO_IDS]},
    **{f"jti {value!r}": ("jti", value) for value in NO_JTIS},
    **{f"{claim} {value!r}": (claim, value) for claim in ("exp", "iat", "nbf") for value in NO_TIMES},
    "iat before the epoch": ("iat", -1),
    "nbf before the epoch": ("nbf", -1),
    "nbf later": ("nbf", NOW + 1),
    "nbf a little later": ("nbf", NOW + 0.001),
}

HEADERS_REFUSED: dict[str, Any] = {
    "none": {"alg": "none"},
    "None": {"alg": "None"},
    "empty": {"alg": ""},
    "lower case": {"alg": "hs256"},
    "HS384": {"alg": "HS384"},
    "HS512": {"alg": "HS512"},
    "RS256": {"alg": "RS256"},
    "ES256": {"alg": "ES256"},
    "no alg": {"typ": "JWT"},
    "alg null": {"alg": None},
    "alg list": {"alg": ["HS256"]},
    "alg object": {"alg": {"HS256": 1}},
    "a critical extension": {**HS256, "crit": ["exp"], "exp": NOW},
    "nothing critical": {**HS256, "crit": []},
    "payload as it is": {**HS256, "crit": ["b64"], "b64": False},  # RFC 7797
    "array": ["HS256"],
    "string": "HS256",
    "null": None,
}

PUBLIC_PEM = (
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"  # cut: not read
)


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(payload: bytes, key: str, header: Any = HS256, digest: str = "sha256") -> str:
    """A token of any bytes (RFC 7515 section 5.1), with a signature that is right."""
    signed = f"{base64url(json.dumps(header).encode())}.{base64url(payload)}"
    return f"{signed}.{base64url(hmac.digest(key.encode(), signed.encode(), digest))}"


def token(ownership_store: dict[str, Any], key: str = DEVICE_SECRET, header: Any = HS256) -> str:
    return sign(json.dumps(ownership_store).encode(), key, header)


UNSIGNED = ".".join(base64url(json.dumps(part).encode()) for part in ({"alg": "none"}, DEVICE)) + "."
"""RFC 7519 section 6.1."""


def changed(ownership_store: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    rest = {key: ownership_store[key] for key in ownership_store if key != name}
    return rest if value is ABSENT else {**rest, name: value}


def verify(text: str, now: float = NOW, config: AuthSettings = KEYS) -> Identity | Refusal:
    return Verifier(config).verify(text, now)


def accepted(text: str, now: float = NOW, config: AuthSettings = KEYS) -> Identity:
    identity = verify(text, now, config)
    assert isinstance(identity, Identity)
    return identity


def request(query: str = "", **headers: str) -> Request:
    """An opening handshake; `_` in a header's name stands for `-`."""
    return Request(
        method="GET",
        target=f"/ws?{query}",
        path="/ws",
        query=query,
        version="1.1",
        headers={"host": "gate.example:3001", **{name.replace("_", "-"): value for name, value in headers.items()}},
        keep_alive=True,
        upgrade=True,
    )


class TestIdentity:
    def test_device(self) -> None:
        identity = accepted(token(DEVICE))
        assert (identity.kind, identity.id, identity.organization_id) == ("device", "lobby-1", "acme")
        assert (identity.jti, identity.issued, identity.expires) == ("j1", NOW - 9, NOW + 9)

    def test_dashboard(self) -> None:
        identity = accepted(token(USER, USER_SECRET))
        assert (identity.kind, identity.id, identity.organization_id, identity.jti) == (
            "dashboard",
            "alice",
            "acme",
            "j2",
        )

    def test_what_may_be_absent(self) -> None:
        identity = accepted(token({"sub": "lobby-1", "organizationId": "acme", "type": "device"}), now=1e10)
        assert (identity.jti, identity.issued, identity.expires) == ("", 0, 0)

    def test_what_else_is_in_it(self) -> None:
        ownership_store = {**DEVICE, "deviceIdentifier": "MAC", "email": None, "aud": ["x"], "iss": 7, "roles": [{}]}
        assert accepted(token(ownership_store)).id == "lobby-1"

    @pytest.mark.parametrize("kind", [ABSENT, None, "user", "Device", "device ", ["device"], {"device": 1}, True])
    def test_all_but_device_is_a_dashboard(self, kind: Any) -> None:
        ownership_store = changed(USER, "type", kind)
        assert accepted(token(ownership_store, USER_SECRET)).kind == "dashboard"
        assert verify(token(ownership_store, DEVICE_SECRET)) is AUTH_INVALID

    def test_made_by_another_implementation(self) -> None:
        assert accepted(jwt.encode(DEVICE, DEVICE_SECRET, algorithm="HS256")).id == "lobby-1"
        assert accepted(jwt.encode(USER, USER_SECRET, algorithm="HS256", headers={"kid": "1"})).id == "alice"

    def test_screens_of_an_organisation_share_its_name(self) -> None:
        verifier = Verifier(KEYS)
        names = [verifier.verify(token({**DEVICE, "sub": each}), NOW) for each in ("lobby-1", "lobby-2")]
        first, second = (each.organization_id for each in names if isinstance(each, Identity))
        assert first is second


class TestMalformed:
    @pytest.mark.parametrize("shape", SHAPES_REFUSED)
    def test_shapes(self, shape: str) -> None:
        header, payload, signature = token(DEVICE).split(".")
        assert accepted(f"{header}.{payload}.{signature}")
        assert verify(shape.format(h=header, p=payload, s=signature)) is AUTH_INVALID

    @pytest.mark.parametrize("end", range(1, len(token(DEVICE))))
    def test_every_part(self, end: int) -> None:
        assert verify(token(DEVICE)[:end]) is AUTH_INVALID

    def test_one_spelling(self) -> None:
        """32 bytes are 43 characters, of whose last two bits say nothing. Each spelling would have its own limits."""
        alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
        good = token(DEVICE)
        last = alphabet.index(good[-1])
        assert last % 4 == 0
        assert [verify(good[:-1] + twin) for twin in alphabet[last + 1 : last + 4]] == [AUTH_INVALID] * 3

    def test_every_character_counts(self) -> None:
        good = token(DEVICE)
        for index, character in enumerate(good):
            for other in "AQgw-_09Zz.":
                if other != character:
                    assert verify(good[:index] + other + good[index + 1 :]) is AUTH_INVALID, index

    @pytest.mark.parametrize("character", "+/= \t\r\n.!")
    def test_alphabet(self, character: str) -> None:
        """The lenient decoder of base64 would pass over these."""
        header, payload, signature = token(DEVICE).split(".")
        assert verify(f"{header}.{payload[:9]}{character}{payload[9:]}.{signature}") is AUTH_INVALID
        assert verify(f"{header[:9]}{character}{header[9:]}.{payload}.{signature}") is AUTH_INVALID
        assert verify(f"{header}.{payload}.{signature[:9]}{character}{signature[9:]}") is AUTH_INVALID

    def test_length(self) -> None:
        tokens = [token({**DEVICE, "pad": "x" * size}) for size in range(5900, 6000)]
        short, long = (
            list(filter(fits, tokens)) for fits in (lambda t: len(t) <= MAX_TOKEN, lambda t: len(t) > MAX_TOKEN)
        )
        assert len(long[0]) - len(short[-1]) <= 2
        assert accepted(short[-1]).id == "lobby-1"
        assert verify(long[0]) is AUTH_INVALID
        assert verify("x" * 1_000_000) is AUTH_INVALID

    @pytest.mark.parametrize("payload", [
        b"", b"null", b"7", b'"device"', b"[]", b'["sub"]', b"{", b"{}", b"\xff", b'\xff\xfe{\x00}\x00', b"{} {}",
        b'{"type":"device","sub":"a","organizationId":"b","exp":NaN}',
        b'{"type":"device","sub":"a","organizationId":"b","exp":1e999}',
        b'{"type":"device","sub":"a","organizationId":"b","exp":' + b"9" * 5000 + b"}",
        b'{"type":"device","sub":"a","organizationId":"\\ud800"}',
        b'{"type":"device","sub":"a","organizationId":"b","jti":"\\ud800"}',
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
    ])  # fmt: skip
    def test_payloads(self, payload: bytes) -> None:
        for key in (DEVICE_SECRET, USER_SECRET):
            assert verify(sign(payload, key)) is AUTH_INVALID

    @pytest.mark.parametrize("header", HEADERS_REFUSED.values(), ids=HEADERS_REFUSED.keys())
    def test_headers(self, header: Any) -> None:
        assert verify(token(DEVICE, header=header)) is AUTH_INVALID

    def test_headers_after_a_good_one(self) -> None:
        """The header that was good before is remembered; another one is not taken for it."""
        verifier = Verifier(KEYS)
        for header in HEADERS_REFUSED.values():
            assert isinstance(verifier.verify(token(DEVICE), NOW), Identity)
            assert verifier.verify(token(USER, USER_SECRET, header), NOW) is AUTH_INVALID

    @pytest.mark.parametrize("header", [{"alg": "HS256"}, {**HS256, "kid": "2", "typ": "x"}, {**HS256, "b64": True}])
    def test_headers_that_say_more_or_less(self, header: Any) -> None:
        assert accepted(token(DEVICE, header=header)).id == "lobby-1"

    def test_a_header_that_is_no_json(self) -> None:
        _, payload, signature = token(DEVICE).split(".")
        for header in (b"{", b"\xff", b"", b"[" * 5000):
            assert verify(f"{base64url(header)}.{payload}.{signature}") is AUTH_INVALID

    def test_unsigned(self) -> None:
        assert verify(UNSIGNED) is AUTH_INVALID
        assert verify(f"{UNSIGNED}AAAA") is AUTH_INVALID

    def test_another_hash(self) -> None:
        payload = json.dumps(DEVICE).encode()
        assert verify(sign(payload, DEVICE_SECRET, {"alg": "HS512"}, "sha512")) is AUTH_INVALID
        assert verify(sign(payload, DEVICE_SECRET, HS256, "sha512")) is AUTH_INVALID


class TestKeys:
    def test_each_kind_has_its_own(self) -> None:
        """A dashboard's secret can never make a device, nor a device's a dashboard."""
        assert verify(token(DEVICE, USER_SECRET)) is AUTH_INVALID
        assert verify(token(USER, DEVICE_SECRET)) is AUTH_INVALID

    def test_a_stranger(self) -> None:
        for key in ("", "x", DEVICE_SECRET[:-1], DEVICE_SECRET + " "):
            assert verify(token(DEVICE, key)) is AUTH_INVALID

    def test_the_one_before(self) -> None:
        for key in (DEVICE_SECRET, OLD_DEVICE_SECRET):
            assert accepted(token(DEVICE, key), config=ROTATING).kind == "device"
            assert verify(token(USER, key), config=ROTATING) is AUTH_INVALID
        for key in (USER_SECRET, OLD_USER_SECRET):
            assert accepted(token(USER, key), config=ROTATING).kind == "dashboard"
            assert verify(token(DEVICE, key), config=ROTATING) is AUTH_INVALID

    def test_the_one_before_is_gone_after(self) -> None:
        assert verify(token(DEVICE, OLD_DEVICE_SECRET)) is AUTH_INVALID
        assert verify(token(USER, OLD_USER_SECRET)) is AUTH_INVALID

    def test_none(self) -> None:
        """An empty secret is no secret: what it signs is refused too."""
        for text in (token(DEVICE), token(DEVICE, ""), token(USER, "")):
            assert verify(text, config=AuthSettings()) is AUTH_INVALID

    def test_short(self) -> None:
        """Operators have short ones in the field, though RFC 7518 section 3.2 asks for 32 bytes."""
        config = AuthSettings(device_jwt_secret="short")
        assert accepted(token(DEVICE, "short"), config=config).id == "lobby-1"

    @pytest.mark.parametrize(
        "name", ["device_jwt_secret", "device_jwt_secret_previous", "jwt_secret", "jwt_secret_previous"]
    )
    @pytest.mark.parametrize("text", [PUBLIC_PEM, "ssh-rsa AAAAB3NzaC1yc2E", '{"kty":"oct","k":"c2VjcmV0"}'])
    def test_a_public_key_is_no_secret(self, name: str, text: str) -> None:
        """Everybody knows it, so everybody could sign. Found when the service starts; the key is shown to nobody."""
        with pytest.raises(ConfigError) as raised:
            Verifier(msgspec.structs.replace(KEYS, **{name: text}))
        assert str(raised.value) == f"auth.{name}: cannot be a key for auth.algorithm HS256"
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__

    @pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
    def test_without_cryptography(self, algorithm: str) -> None:
        """One line for the operator, at start, not a refusal of every screen."""
        program = (
            "import sys; sys.modules['cryptography'] = None\n"
            "from vizora_rt.app.auth import Verifier\n"
            "from vizora_rt.config import AuthSettings\n"
            "from vizora_rt.errors import ConfigError\n"
            "try: Verifier(AuthSettings(algorithm=sys.argv[1], device_jwt_secret='x'))\n"
            "except ConfigError as error: print(error)\n"
        )
        shown = subprocess.run([sys.executable, "-c", program, algorithm], capture_output=True, text=True, check=True)
        assert shown.stdout == (
            f"auth.algorithm is {algorithm}: it needs the extra `crypto`: pip install 'vizora-rt[crypto]'\n"
        )


class Pair:
    """A key pair in PEM."""

    def __init__(self, private: Any) -> None:
        serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
        self.private = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        self.public = (
            private.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    rsa = pytest.importorskip(
        "cryptography.hazmat.primitives.asymmetric.rsa", reason="RS256 and ES256 need the extra `crypto`"
    )
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    return {
        "RS256": Pair(rsa.generate_private_key(65537, 2048)),
        "RS256 other": Pair(rsa.generate_private_key(65537, 2048)),
        "ES256": Pair(ec.generate_private_key(ec.SECP256R1())),
        "ES256 other": Pair(ec.generate_private_key(ec.SECP256R1())),
        "ES384": Pair(ec.generate_private_key(ec.SECP384R1())),
    }


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
class TestPublicKeys:
    def config(self, algorithm: Any, pairs: dict[str, Pair]) -> AuthSettings:
        return AuthSettings(
            algorithm=algorithm,
            device_jwt_secret=pairs[algorithm].public,
            jwt_secret=pairs[f"{algorithm} other"].public,
        )

    def test_accepted(self, algorithm: str, pairs: dict[str, Pair]) -> None:
        config = self.config(algorithm, pairs)
        device = jwt.encode(DEVICE, pairs[algorithm].private, algorithm=algorithm)
        user = jwt.encode(USER, pairs[f"{algorithm} other"].private, algorithm=algorithm)
        assert accepted(device, config=config).id == "lobby-1"
        assert accepted(user, config=config).id == "alice"
        assert verify(device, NOW + 9, config) is AUTH_EXPIRED

    def test_the_one_before(self, algorithm: str, pairs: dict[str, Pair]) -> None:
        config = msgspec.structs.replace(
            self.config(algorithm, pairs), device_jwt_secret_previous=pairs[f"{algorithm} other"].public
        )
        old = jwt.encode(DEVICE, pairs[f"{algorithm} other"].private, algorithm=algorithm)
        assert accepted(old, config=config).id == "lobby-1"

    def test_refused(self, algorithm: str, pairs: dict[str, Pair]) -> None:
        config = self.config(algorithm, pairs)
        good = jwt.encode(DEVICE, pairs[algorithm].private, algorithm=algorithm)
        stranger = jwt.encode(DEVICE, pairs[f"{algorithm} other"].private, algorithm=algorithm)
        assert verify(stranger, config=config) is AUTH_INVALID
        for wrong in (good[:-1], good[:-8] + "AAAAAAAA", good.rpartition(".")[0] + ".AAAA"):
            assert verify(wrong, config=config) is AUTH_INVALID

    def test_the_public_key_as_a_secret(self, algorithm: str, pairs: dict[str, Pair]) -> None:
        """The old confusion: the public key is public, so anybody can sign HS256 with it."""
        config, public = self.config(algorithm, pairs), pairs[algorithm].public
        assert verify(token(DEVICE, public), config=config) is AUTH_INVALID
        assert verify(token(DEVICE, public, {"alg": algorithm}), config=config) is AUTH_INVALID
        assert verify(UNSIGNED, config=config) is AUTH_INVALID

    def test_keys_of_another_kind(self, algorithm: Any, pairs: dict[str, Pair]) -> None:
        for other in ({"RS256": "ES256", "ES256": "RS256"}[algorithm], "ES384"):
            with pytest.raises(ConfigError, match=f"auth.jwt_secret: cannot be a key for auth.algorithm {algorithm}"):
                Verifier(AuthSettings(algorithm=algorithm, jwt_secret=pairs[other].public))
        for text in (DEVICE_SECRET, PUBLIC_PEM, "-----BEGIN"):
            with pytest.raises(ConfigError, match="cannot be a key"):
                Verifier(AuthSettings(algorithm=algorithm, jwt_secret=text))

    def test_a_private_key(self, algorithm: Any, pairs: dict[str, Pair]) -> None:
        with pytest.raises(ConfigError, match=r"auth\.device_jwt_secret: is a private key"):
            Verifier(AuthSettings(algorithm=algorithm, device_jwt_secret=pairs[algorithm].private))

    def test_a_public_key_cannot_mint(self, algorithm: str, pairs: dict[str, Pair]) -> None:
        with pytest.raises(ConfigError, match=f"auth.algorithm is {algorithm}: only the holder of the private key"):
            mint_device(self.config(algorithm, pairs), "lobby-1", "acme", NOW, 9)


class TestClaims:
    @pytest.mark.parametrize(("claim", "value"), CLAIMS_REFUSED.values(), ids=CLAIMS_REFUSED.keys())
    def test_refused(self, claim: str, value: Any) -> None:
        assert verify(token(changed(DEVICE, claim, value))) is AUTH_INVALID
        assert verify(token(changed(USER, claim, value), USER_SECRET)) is AUTH_INVALID

    @pytest.mark.parametrize("text", IDS)
    def test_ids(self, text: str) -> None:
        identity = accepted(token({**DEVICE, "sub": text, "organizationId": text[::-1]}))
        assert (identity.id, identity.organization_id) == (text, text[::-1])

    @pytest.mark.parametrize(("left", "expected"), [(0.001, None), (0, AUTH_EXPIRED), (-0.001, AUTH_EXPIRED)])
    def test_expires_at_exp(self, left: float, expected: Refusal | None) -> None:
        """RFC 7519 section 4.1.4: on or after."""
        found = verify(token(DEVICE), DEVICE["exp"] - left)  # type: ignore[operator]
        assert found is expected if expected else isinstance(found, Identity)

    @pytest.mark.parametrize(
        "text", ["0", "-0", "-0.0", "0.0", "1e-400", "-1e-400", "1", "-1", "-1e300", "-1" + "0" * 30]
    )
    def test_a_time_long_over(self, text: str) -> None:
        """Whatever number it is: 0 is not "without an end". Written by hand, for no encoder writes all of them."""
        for ownership_store, key in ((DEVICE, DEVICE_SECRET), (USER, USER_SECRET)):
            payload = json.dumps({**ownership_store, "exp": "EXP", "iat": 0}).replace('"EXP"', text).encode()
            verifier = Verifier(KEYS)
            for _ in range(2):
                assert verifier.verify(sign(payload, key), NOW) is AUTH_EXPIRED

    @pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
    @pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "01", "0x7fffffff", "+1"])
    def test_no_number_of_json(self, claim: str, text: str) -> None:
        payload = json.dumps({**DEVICE, claim: "TIME"}).replace('"TIME"', text).encode()
        assert verify(sign(payload, DEVICE_SECRET)) is AUTH_INVALID

    @pytest.mark.parametrize("text", ["0", "-0.0", "1e-400"])
    def test_issued_and_not_before_at_the_epoch(self, text: str) -> None:
        payload = json.dumps({**USER, "iat": "T", "nbf": "T"}).replace('"T"', text).encode()
        assert accepted(sign(payload, USER_SECRET)).issued == 0

    def test_a_fraction_of_a_second(self) -> None:
        assert verify(token({**DEVICE, "exp": NOW + 0.5}), NOW + 0.5) is AUTH_EXPIRED
        assert accepted(token({**DEVICE, "exp": NOW + 0.5}), NOW + 0.25).expires == NOW + 0.5

    def test_expired_and_more(self) -> None:
        """A stranger is not told that a token once was good."""
        assert verify(token(DEVICE, USER_SECRET), NOW + 100) is AUTH_INVALID
        assert verify(token({**DEVICE, "sub": ""}), NOW + 100) is AUTH_INVALID

    def test_not_before(self) -> None:
        early = token({**DEVICE, "nbf": NOW})
        verifier = Verifier(KEYS)
        assert verifier.verify(early, NOW - 0.001) is AUTH_INVALID
        assert isinstance(verifier.verify(early, NOW), Identity)

    def test_issued_later(self) -> None:
        """The clock of the backend may be ahead of ours; `nbf` is the claim that says not before."""
        assert accepted(token({**DEVICE, "iat": NOW + 5})).issued == NOW + 5

    @pytest.mark.parametrize("value", IDS)
    def test_valid_id(self, value: str) -> None:
        assert valid_id(value)

    def test_what_nobody_sees_is_no_id(self) -> None:
        later = frozenset(UNSEEN_SINCE_3_2)
        for code in range(sys.maxunicode + 1):
            character, category = chr(code), unicodedata.ucd_3_2_0.category(chr(code))
            if category in UNSEEN or code in later:
                assert not valid_id(character), ascii(character)
            elif category != "Cn" and character not in "{}":
                assert valid_id(character), ascii(character)

    @pytest.mark.parametrize("value", [*NO_IDS, "\ud800", b"a"])
    def test_no_valid_id(self, value: Any) -> None:
        assert not valid_id(value)

    @given(st.text(st.characters(), max_size=140))
    def test_any_id(self, text: str) -> None:
        """Neither a Redis key, a label nor a log line is broken by an id."""
        if valid_id(text):
            assert 1 <= len(text) <= 128
            assert not set(text) & set(" {}\r\n\t\0\x7f")
            text.encode()


class TestNoise:
    @given(st.text(st.characters(), max_size=300) | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True))
    def test_any_text(self, text: str) -> None:
        assert verify(text) is AUTH_INVALID

    @given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=40))
    def test_any_bytes(self, header: bytes, payload: bytes, signature: bytes) -> None:
        assert verify(".".join(map(base64url, (header, payload, signature)))) is AUTH_INVALID

    @given(
        st.dictionaries(
            st.sampled_from(["sub", "organizationId", "type", "jti", "iat", "exp", "nbf", "alg"]),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("device"),
        ),
        st.sampled_from([DEVICE_SECRET, USER_SECRET]),
    )
    def test_any_claims(self, claims: dict[str, Any], key: str) -> None:
        found = verify(token(claims, key))
        assert found in (AUTH_INVALID, AUTH_EXPIRED) or (isinstance(found, Identity) and valid_id(found.id))

    @given(st.dictionaries(st.sampled_from(["alg", "crit", "typ", "b64"]), st.none() | st.text() | st.lists(st.text())))
    def test_any_header(self, header: dict[str, Any]) -> None:
        good = header.get("alg") == "HS256" and "crit" not in header
        assert isinstance(verify(token(DEVICE, header=header)), Identity) is good


class TestMemory:
    def devices(self, count: int) -> list[str]:
        return [token({**DEVICE, "sub": f"lobby-{number}"}) for number in range(count)]

    def test_remembered(self) -> None:
        verifier = Verifier(KEYS)
        assert verifier.verify(token(DEVICE), NOW) is verifier.verify(token(DEVICE), NOW + 1)

    def test_expired_while_remembered(self) -> None:
        verifier = Verifier(KEYS)
        assert isinstance(verifier.verify(token(DEVICE), NOW), Identity)
        assert verifier.verify(token(DEVICE), NOW + 9) is AUTH_EXPIRED
        assert not verifier._known
        assert verifier.verify(token(DEVICE), NOW + 9) is AUTH_EXPIRED

    def test_bounded_and_the_oldest_goes_first(self) -> None:
        verifier = Verifier(msgspec.structs.replace(KEYS, cache_entries=10))
        tokens = self.devices(35)
        found = []
        for text in tokens:
            found.append(verifier.verify(text, NOW))
            assert len(verifier._known) <= 10
            assert len(verifier._order) <= 10
        again = [verifier.verify(text, NOW) for text in tokens[25:]]
        assert all(old is new for old, new in zip(found[25:], again, strict=True))
        assert verifier.verify(tokens[24], NOW) is not found[24]

    def test_bounded_though_some_expire(self) -> None:
        verifier = Verifier(msgspec.structs.replace(KEYS, cache_entries=10))
        for number in range(200):
            text = token({**DEVICE, "sub": f"lobby-{number}", "exp": NOW + 1 + number % 2})
            assert isinstance(verifier.verify(text, NOW), Identity)
            verifier.verify(text, NOW + 1)
            assert len(verifier._known) <= len(verifier._order) <= 10

    def test_switched_off(self) -> None:
        verifier = Verifier(msgspec.structs.replace(KEYS, cache_entries=0))
        first, second = (verifier.verify(token(DEVICE), NOW) for _ in range(2))
        assert isinstance(first, Identity)
        assert first is not second
        assert not verifier._known

    def test_the_refused_are_not_remembered(self) -> None:
        """They would push out the good ones."""
        verifier = Verifier(KEYS)
        for text in (token(DEVICE, "stranger"), token({**DEVICE, "exp": NOW}), token({**DEVICE, "sub": ""}), "x"):
            assert isinstance(verifier.verify(text, NOW), Refusal)
        assert not verifier._known
        assert not verifier._order

    def test_no_token_is_held(self) -> None:
        """Neither whole nor its signature: a dump of the process's memory lets nobody in."""
        verifier = Verifier(KEYS)
        text = token(DEVICE)
        verifier.verify(text, NOW)
        seen: set[int] = set()
        held: list[object] = [verifier]
        words = []
        while held:
            each = held.pop()
            if id(each) in seen or callable(each):  # neither classes nor functions, and what they refer to
                continue
            seen.add(id(each))
            if isinstance(each, str | bytes):
                words.append(each if isinstance(each, str) else each.decode("latin-1"))
            else:
                held += gc.get_referents(each)
        assert "lobby-1" in words
        assert not [word for word in words if text in word or text.rpartition(".")[2] in word]

    def test_fingerprint(self) -> None:
        """BLAKE2b of 16 bytes: from it comes no token back."""
        assert fingerprint("a.b.c") == hashlib.blake2b(b"a.b.c", digest_size=16).digest()


class TestTokenOf:
    @pytest.mark.parametrize(
        ("brought", "found"),
        [
            (request(authorization="Bearer T"), ("T", False)),
            (request(authorization="bearer T"), ("T", False)),
            (request(authorization="BEARER   T  "), ("T", False)),
            (request(authorization="Bearer a b"), ("a b", False)),  # which no verifier takes
            (request(sec_websocket_protocol="vizora.v1, bearer.T"), ("T", False)),
            (request(sec_websocket_protocol="bearer.a.b.c,vizora.v1"), ("a.b.c", False)),
            (request(sec_websocket_protocol=" \tbearer.T "), ("T", False)),
            (request("token=T"), ("T", False)),
            (request("v=1&token=a%2Eb&token=c"), ("a.b", False)),
            (request("token=+T%0A"), (" T\n", False)),
            (request(cookie=f"{COOKIE}=T"), ("T", True)),
            (request(cookie=f'theme=dark; {COOKIE}="T"; x=1'), ("T", True)),
        ],
    )
    def test_places(self, brought: Request, found: tuple[str, bool]) -> None:
        assert token_of(brought) == found

    def test_precedence(self) -> None:
        """What was sent on purpose comes before what the browser sends by itself."""
        headers = {"authorization": "Bearer A", "sec_websocket_protocol": "bearer.B", "cookie": f"{COOKIE}=D"}
        query, order = "token=C", []
        for name in (*list(headers), "query"):
            order.append(token_of(request(query, **headers)))
            if name == "sec_websocket_protocol":
                del headers[name]
                order.append(token_of(request(query, **headers)))
                query = ""
            elif name in headers:
                del headers[name]
        assert order == [("A", False), ("B", False), ("C", False), ("D", True), ("", True)]

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": ""},
            {"authorization": "Bearer"},
            {"authorization": "Bearer "},
            {"authorization": "Basic dXNlcjpwYXNz"},
            {"authorization": "Bearer\tA"},
            {"authorization": "BearerA"},
            {"authorization": "Token A"},
            {"sec_websocket_protocol": "vizora.v1"},
            {"sec_websocket_protocol": "bearer."},
            {"sec_websocket_protocol": "Bearer.A"},
            {"sec_websocket_protocol": ",,"},
        ],
    )
    def test_a_header_that_brings_none(self, headers: dict[str, str]) -> None:
        """Then the next place is looked at."""
        assert token_of(request(**headers)) == ("", True)
        assert token_of(request("token=C", **headers)) == ("C", False)
        assert token_of(request("token=", **headers, cookie=f"{COOKIE}=D")) == ("D", True)

    def test_off_the_wire(self) -> None:
        head = b"GET /ws HTTP/1.1\r\nHost: h\r\nAuthorization: \t Bearer  T \t\r\n\r\n"
        parsed = RequestParser(16384, 0).feed(head)
        assert isinstance(parsed, Request)
        assert token_of(parsed) == ("T", False)

    @pytest.mark.parametrize("space", ["{} ", " {}", "{}\n", "a{}", "{}\t", "\u00a0{}"])
    def test_whitespace_in_a_token_is_not_forgiven(self, space: str) -> None:
        """Only around credentials of a header, where HTTP allows it."""
        brought, _ = token_of(request(f"token={space.format(token(DEVICE)).replace(' ', '%20')}"))
        assert verify(brought) is AUTH_INVALID

    def test_subprotocols(self) -> None:
        assert offered_subprotocols(request()) == []
        assert offered_subprotocols(request(sec_websocket_protocol="vizora.v1 ,bearer.T")) == ["vizora.v1", "bearer.T"]

    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [
            ("vizora.v1", "vizora.v1"),
            ("vizora.v1, bearer.T", "vizora.v1"),
            ("bearer.T,chat,vizora.v1", "vizora.v1"),
            ("chat", ""),
            ("VIZORA.V1", ""),
            (",", ""),
            ("bearer.T", None),
            ("bearer.", None),
            ("chat, bearer.T", None),
            ("VIZORA.V1, bearer.T", None),
        ],
    )
    def test_the_subprotocol_of_the_answer_was_offered(self, offered: str, chosen: str | None) -> None:
        assert choose_subprotocol(request(sec_websocket_protocol=offered)) == chosen
        assert choose_subprotocol(request()) == ""


class TestOrigin:
    ALLOWED = ("https://app.example", "http://localhost:3000")

    @pytest.mark.parametrize(
        "origin",
        ["https://app.example", "https://app.example/", "HTTPS://App.Example", "http://localhost:3000"],
    )
    @pytest.mark.parametrize("by_cookie", [False, True])
    def test_allowed(self, origin: str, by_cookie: bool) -> None:
        assert check_origin(request(origin=origin), self.ALLOWED, by_cookie) is None

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "http://app.example",
            "https://app.example:444",
            "https://app.example.evil.example",
            "https://evil.example/https://app.example",
            "https://x@app.example",
            "https://app.example, https://evil.example",
            "http://gate.example:3002",
            "https://gate.example",
            "https://",
            "https://*",
        ],
    )
    @pytest.mark.parametrize("by_cookie", [False, True])
    def test_denied(self, origin: str, by_cookie: bool) -> None:
        assert check_origin(request(origin=origin), self.ALLOWED, by_cookie) is ORIGIN_DENIED
        assert check_origin(request(origin=origin), (), by_cookie) is ORIGIN_DENIED

    @pytest.mark.parametrize("written", ["https://App.Example/", "HTTPS://APP.EXAMPLE"])
    def test_as_people_write_it(self, written: str) -> None:
        assert check_origin(request(origin="https://app.example"), [written], True) is None

    @pytest.mark.parametrize("origin", ["http://gate.example:3001", "https://GATE.example:3001"])
    def test_a_page_of_ours(self, origin: str) -> None:
        """TLS ends before this process, so the scheme is not ours to compare."""
        assert check_origin(request(origin=origin), (), False) is None

    @pytest.mark.parametrize(
        "origin", ["", "null", "file://", "app://player", "capacitor://localhost", "chrome-extension://x"]
    )
    def test_players_are_no_pages(self, origin: str) -> None:
        assert check_origin(request(origin=origin), self.ALLOWED, False) is None
        assert check_origin(request(origin=origin), (), False) is None

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("https://x.example", "x.example"),
            ("http://x.example", "x.example"),
            ("https://x.example", "x.example:443"),
            ("http://x.example", "x.example:80"),
            ("https://x.example", "X.Example:443"),
            ("https://X.example:443", "x.example"),
            ("https://x.example", "x.example:"),
            ("https://x.example:8443", "x.example:8443"),
            ("http://x.example:443", "x.example:443"),
            ("https://[2001:db8::1]", "[2001:db8::1]"),
            ("https://[2001:DB8::1]", "[2001:db8:0:0:0:0:0:1]:443"),
            ("http://[::1]:3001", "[0:0:0:0:0:0:0:1]:3001"),
            ("http://127.0.0.1:3001", "127.0.0.1:3001"),
        ],
    )
    def test_the_same_host_however_it_is_written(self, origin: str, host: str) -> None:
        brought = request(origin=origin)
        brought.headers["host"] = host
        assert check_origin(brought, (), False) is None
        assert check_origin(brought, (), True) is ORIGIN_DENIED

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("http://x.example", "x.example:443"),
            ("https://x.example", "x.example:80"),
            ("https://x.example:8443", "x.example"),
            ("https://x.example", "x.example:8443"),
            ("https://x.example", "y.example:443"),
            ("https://[::1]", "[::2]:443"),
            ("https://[::1", "[::1"),
            ("https://[nonsense]", "[nonsense]"),
            ("https://", ""),
            ("https://:443", ":443"),
            ("https:x.example", "x.example"),
            ("https://x.example https://x.example", "x.example"),
            ("https://x.example:999999", "x.example:999999"),
        ],
    )
    def test_another_host(self, origin: str, host: str) -> None:
        brought = request(origin=origin)
        brought.headers["host"] = host
        assert check_origin(brought, (), False) is ORIGIN_DENIED
        assert check_origin(brought, ("null", "file://"), True) is ORIGIN_DENIED

    @pytest.mark.parametrize("written", ["https://app.example:443", "https://app.example:443/", "https://APP.example:"])
    def test_the_port_of_the_scheme_may_be_named(self, written: str) -> None:
        for by_cookie in (False, True):
            assert check_origin(request(origin="https://app.example"), [written], by_cookie) is None

    def test_no_origin(self) -> None:
        assert check_origin(request(), self.ALLOWED, False) is None

    @pytest.mark.parametrize("origin", ["", "null", "file://", "http://gate.example:3001", "https://evil.example"])
    def test_a_cookie_needs_an_allowed_origin(self, origin: str) -> None:
        """It travels by itself, whoever made the page."""
        assert check_origin(request(origin=origin), self.ALLOWED, True) is ORIGIN_DENIED
        assert check_origin(request(), self.ALLOWED, True) is ORIGIN_DENIED

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "file://"])
    def test_all_are_allowed(self, origin: str) -> None:
        assert check_origin(request(origin=origin), ("*",), False) is None
        assert check_origin(request(origin=origin), ("*",), True) is ORIGIN_DENIED

    def test_all_is_not_none(self) -> None:
        assert check_origin(request(), ("*",), True) is ORIGIN_DENIED

    @pytest.mark.parametrize("origin", ["null", "file://", "app://player", "chrome-extension://x", "*"])
    def test_a_cookie_needs_a_named_page_of_the_web(self, origin: str) -> None:
        """Whatever is configured: any frame in a sandbox says `null`, any file `file://`."""
        assert check_origin(request(origin=origin), (origin,), True) is ORIGIN_DENIED
        assert check_origin(request(origin=origin), (origin,), False) is None


class TestMint:
    def test_device(self) -> None:
        text = mint_device(KEYS, "lobby-1", "acme", NOW, 60)
        identity = accepted(text)
        assert (identity.kind, identity.id, identity.organization_id) == ("device", "lobby-1", "acme")
        assert (identity.issued, identity.expires) == (NOW, NOW + 60)
        assert verify(text, NOW + 60) is AUTH_EXPIRED

    def test_user(self) -> None:
        text = mint_user(KEYS, "alice", "acme", NOW, 60, "alice@example.com")
        assert accepted(text).kind == "dashboard"
        ownership_store = jwt.decode(
            text, USER_SECRET, algorithms=["HS256"], options={"verify_exp": False, "verify_iat": False}
        )
        assert ownership_store["email"] == "alice@example.com"
        assert ownership_store["type"] == "user"

    def test_without_email(self) -> None:
        text = mint_user(KEYS, "alice", "acme", NOW, 60)
        assert b"email" not in base64.urlsafe_b64decode(text.split(".")[1] + "==")

    def test_no_two_are_the_same(self) -> None:
        """Each can be revoked alone."""
        assert len({accepted(mint_device(KEYS, "a", "o", NOW, 60)).jti for _ in range(100)}) == 100

    @given(st.text(st.characters(), max_size=130), st.text(st.characters(), max_size=130))
    def test_what_is_minted_is_taken(self, device: str, organization: str) -> None:
        if valid_id(device) and valid_id(organization):
            identity = accepted(mint_device(KEYS, device, organization, NOW, 60))
            assert (identity.id, identity.organization_id) == (device, organization)
        else:
            with pytest.raises(ConfigError, match="an id has 1 to 128 printable characters"):
                mint_device(KEYS, device, organization, NOW, 60)

    @pytest.mark.parametrize("secret", ["", PUBLIC_PEM])
    def test_without_a_secret(self, secret: str) -> None:
        with pytest.raises(ConfigError, match="the secret cannot be a key for HS256"):
            mint_device(AuthSettings(device_jwt_secret=secret), "lobby-1", "acme", NOW, 60)
        with pytest.raises(ConfigError, match="the secret cannot be a key for HS256"):
            mint_user(AuthSettings(jwt_secret=secret), "alice", "acme", NOW, 60)


class TestRenew:
    CLAIMS: ClassVar = {"sub": "lobby-1", "organizationId": "acme", "type": "device"}

    def old(self, **ownership_store: Any) -> Identity:
        return accepted(jwt.encode({**self.CLAIMS, **ownership_store}, DEVICE_SECRET, "HS256"))

    def claims(self, text: str) -> dict[str, Any]:
        options: Any = {"verify_exp": False, "verify_iat": False}
        found: dict[str, Any] = jwt.decode(text, DEVICE_SECRET, algorithms=["HS256"], options=options)
        return found

    def test_the_same_claims_and_as_long_a_life(self) -> None:
        kept = {"jti": "t1", "deviceIdentifier": "00:1b:44:11:3a:b7"}
        text, identity = renew(KEYS, self.old(**kept, iat=NOW - 500, exp=NOW + 100), NOW)
        assert self.claims(text) == {**self.CLAIMS, **kept, "iat": NOW, "exp": NOW + 600}
        found = accepted(text)
        for name in Identity.__slots__:
            assert getattr(found, name) == getattr(identity, name), name

    @pytest.mark.parametrize("issued", [{}, {"iat": NOW + 100}, {"iat": NOW + 101}])
    def test_who_does_not_say_how_long_it_lived_gets_90_days(self, issued: dict[str, int]) -> None:
        text, _ = renew(KEYS, self.old(**issued, exp=NOW + 100), NOW)
        assert self.claims(text)["exp"] == NOW + 90 * 86_400

    def test_no_claim_is_made_up(self) -> None:
        text, _ = renew(KEYS, self.old(exp=NOW + 100), NOW)
        assert self.claims(text).keys() == {*self.CLAIMS, "iat", "exp"}

    @pytest.mark.parametrize("identifier", [7, None, "x" * 129, ["a"], {}])
    def test_an_identifier_that_is_none_is_left_out(self, identifier: Any) -> None:
        text, _ = renew(KEYS, self.old(deviceIdentifier=identifier, exp=NOW + 100), NOW)
        assert "deviceIdentifier" not in self.claims(text)

    def test_one_of_the_secret_before_is_followed_by_one_of_the_secret_now(self) -> None:
        keys = AuthSettings(device_jwt_secret=DEVICE_SECRET, device_jwt_secret_previous="p" * 40)
        old = Verifier(keys).verify(jwt.encode({**self.CLAIMS, "exp": NOW + 100}, "p" * 40, "HS256"), NOW)
        assert isinstance(old, Identity)
        assert accepted(renew(keys, old, NOW)[0]).id == "lobby-1"
