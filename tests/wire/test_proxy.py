"""PROXY headers as bytes, whole, byte by byte and with a tail; lists of addresses in which a client lies."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizora_rt.errors import BAD_REQUEST, Refusal
from vizora_rt.wire.proxy import HOPS, SIGNATURE, V2_BYTES, Proxied, client_address, networks, parse_proxy, trusts

V2 = SIGNATURE + b"\x21"
V4 = b"\xc0\x00\x02\x07\xc0\x00\x02\x01\x8e\x4c\x0b\xb9"
V6 = b"\x20\x01\x0d\xb8" + bytes(11) + b"\x05" + bytes(15) + b"\x01\x8e\x4c\x0b\xb9"
MAPPED = bytes(10) + b"\xff\xff\xc0\x00\x02\x07" + bytes(20)

GOOD: dict[str, tuple[bytes, str]] = {
    "v1 IPv4": (b"PROXY TCP4 192.0.2.7 192.0.2.1 36428 3001\r\n", "192.0.2.7"),
    "v1 IPv6": (b"PROXY TCP6 2001:db8::5 ::1 36428 3001\r\n", "2001:db8::5"),
    "v1 mapped": (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 36428 3001\r\n", "192.0.2.7"),
    "v1 of nobody": (b"PROXY UNKNOWN\r\n", ""),
    "v1 of nobody, with words": (b"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n", ""),
    "v1, the longest": (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", ""),
    "v2 IPv4": (V2 + b"\x11\x00\x0c" + V4, "192.0.2.7"),
    "v2 IPv4 over UDP": (V2 + b"\x12\x00\x0c" + V4, "192.0.2.7"),
    "v2 IPv4 with TLVs": (V2 + b"\x11\x00\x13" + V4 + b"\x04\x00\x04abcd", "192.0.2.7"),
    "v2 IPv6": (V2 + b"\x21\x00\x24" + V6, "2001:db8::5"),
    "v2 mapped": (V2 + b"\x21\x00\x24" + MAPPED, "192.0.2.7"),
    "v2 Unix": (V2 + b"\x31\x00\xd8" + bytes(216), ""),
    "v2 of no family": (V2 + b"\x00\x00\x00", ""),
    "v2 LOCAL": (SIGNATURE + b"\x20\x00\x00\x00", ""),
    "v2 LOCAL with an address that counts for nothing": (SIGNATURE + b"\x20\x11\x00\x0c" + V4, ""),
    "v2, the longest": (V2 + b"\x11" + V2_BYTES.to_bytes(2) + V4 + bytes(V2_BYTES - 12), "192.0.2.7"),
}

BAD: dict[str, bytes] = {
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower case": b"proxy TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
    "v1 without a carriage return": b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n",
    "v1 without an end": b"PROXY UNKNOWN " + b"f" * 200,
    "v1 too long": b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    "v1 UDP": b"PROXY UDP4 192.0.2.7 192.0.2.1 1 2\r\n",
    "v1 with two spaces": b"PROXY TCP4  192.0.2.7 192.0.2.1 1 2\r\n",
    "v1 without a port": b"PROXY TCP4 192.0.2.7 192.0.2.1 1\r\n",
    "v1 of another family": b"PROXY TCP4 2001:db8::5 ::1 1 2\r\n",
    "v1 of another family still": b"PROXY TCP6 192.0.2.7 192.0.2.1 1 2\r\n",
    "v1 of no address": b"PROXY TCP4 192.0.2.777 192.0.2.1 1 2\r\n",
    "v1 to no address": b"PROXY TCP4 192.0.2.7 192.0.2 1 2\r\n",
    "v1 with a name": b"PROXY TCP4 localhost 192.0.2.1 1 2\r\n",
    "v1 with a zone": b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    "v2 of version 3": SIGNATURE + b"\x31\x11\x00\x0c" + V4,
    "v2 of another command": SIGNATURE + b"\x22\x11\x00\x0c" + V4,
    "v2 shorter than its addresses": V2 + b"\x11\x00\x0b" + V4[:11],
    "v2 IPv6 shorter than its addresses": V2 + b"\x21\x00\x0c" + V4,
    "v2 too long": V2 + b"\x11\xff\xff" + bytes(100),
}


def fed(chunks: list[bytes]) -> Proxied | Refusal | None:
    """The outcome of bytes that come in pieces."""
    data = b""
    for chunk in chunks:
        data += chunk
        outcome = parse_proxy(data)
        if outcome is not None:
            return outcome
    return None


class TestProxyProtocol:
    @pytest.mark.parametrize(("data", "address"), GOOD.values(), ids=GOOD)
    def test_good(self, data: bytes, address: str) -> None:
        wanted = Proxied(address, len(data))
        assert parse_proxy(data) == wanted
        assert parse_proxy(data + b"GET / HTTP/1.1\r\n") == wanted
        assert fed([data[at : at + 1] for at in range(len(data))]) == wanted
        assert all(parse_proxy(data[:at]) is None for at in range(len(data)))

    @pytest.mark.parametrize("data", BAD.values(), ids=BAD)
    def test_bad(self, data: bytes) -> None:
        assert parse_proxy(data) == BAD_REQUEST
        assert fed([data[at : at + 1] for at in range(len(data))]) == BAD_REQUEST

    @given(
        st.one_of(st.just(b""), st.just(b"PROXY "), st.just(b"PROXY TCP4 "), st.just(SIGNATURE), st.just(V2)),
        st.binary(max_size=300),
    )
    @settings(max_examples=500)
    def test_no_bytes_raise_and_none_wait_for_ever(self, head: bytes, rest: bytes) -> None:
        outcome = parse_proxy(head + rest)
        if isinstance(outcome, Proxied):
            assert outcome.consumed <= len(head + rest)
            assert outcome.address.isprintable() and len(outcome.address) <= 39
        assert parse_proxy(head + rest + bytes(V2_BYTES + 16)) is not None

    @given(st.binary(max_size=300), st.integers(0, 300))
    def test_pieces_make_no_difference(self, rest: bytes, at: int) -> None:
        for data in (b"PROXY TCP4 " + rest, V2 + rest, rest):
            assert fed([data[:at], data[at:]]) == fed([data])


TRUSTED = networks(("127.0.0.0/8", "10.7.0.0/16", "2001:db8:7::/48"))
PEER = "10.7.0.1"


class TestForwarded:
    @pytest.mark.parametrize(
        ("value", "address"),
        [
            ("192.0.2.7", "192.0.2.7"),
            ("198.51.100.9, 192.0.2.7", "192.0.2.7"),
            ("192.0.2.7,10.7.0.2 ,\t127.0.0.1", "192.0.2.7"),
            ("2001:db8::5", "2001:db8::5"),
            ("2001:DB8:0::5", "2001:db8::5"),
            ("[2001:db8::5]:443", "2001:db8::5"),
            ("192.0.2.7:61234", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("192.0.2.7, ::ffff:10.7.0.2", "192.0.2.7"),
            ("192.0.2.7, 2001:db8:7::1", "192.0.2.7"),
            # Only proxies of ours: the one that came first.
            ("10.7.0.3, 10.7.0.2", "10.7.0.3"),
            # What is no address hides what is behind it.
            ("192.0.2.7, unknown", PEER),
            ("192.0.2.7, unknown, 10.7.0.2", "10.7.0.2"),
            ("", PEER),
            (",", PEER),
            ("192.0.2.7,", PEER),
            ("192.0.2.777", PEER),
            ("fe80::1%eth0", PEER),
            ("a\x1b[31m", PEER),
        ],
    )
    def test_x_forwarded_for(self, value: str, address: str) -> None:
        assert client_address(PEER, {"x-forwarded-for": value}, TRUSTED) == address

    @pytest.mark.parametrize(
        ("value", "address"),
        [
            ("for=192.0.2.7", "192.0.2.7"),
            ("For=192.0.2.7;proto=https;by=10.7.0.1", "192.0.2.7"),
            ("proto=https; for=192.0.2.7", "192.0.2.7"),
            ('for="[2001:db8::5]:4711"', "2001:db8::5"),
            ('for="192.0.2.7:4711"', "192.0.2.7"),
            ("for=198.51.100.9, for=192.0.2.7, for=10.7.0.2", "192.0.2.7"),
            ("for=192.0.2.7, for=_hidden", PEER),
            ("for=192.0.2.7, proto=https", PEER),
            ("for=unknown", PEER),
            ('for="a, for=192.0.2.7', "192.0.2.7"),
            ('for="192.0.2.7, b"', PEER),
            ("fort=192.0.2.7", PEER),
            ("", PEER),
        ],
    )
    def test_forwarded(self, value: str, address: str) -> None:
        assert client_address(PEER, {"forwarded": value}, TRUSTED) == address

    @pytest.mark.parametrize("peer", ["192.0.2.1", "11.7.0.1", "2001:db8::1", ""])
    def test_nobody_else_is_believed(self, peer: str) -> None:
        lies = {"x-forwarded-for": "198.51.100.9", "forwarded": "for=198.51.100.9"}
        assert client_address(peer, lies, TRUSTED) == peer

    def test_two_fields_must_agree(self) -> None:
        """A proxy writes one of them; the other is the client's."""
        true, lie = "192.0.2.7", "198.51.100.9"
        assert client_address(PEER, {"x-forwarded-for": true, "forwarded": f"for={true}"}, TRUSTED) == true
        assert client_address(PEER, {"x-forwarded-for": true, "forwarded": f"for={lie}"}, TRUSTED) == PEER
        assert client_address(PEER, {"x-forwarded-for": lie, "forwarded": f"for={true}"}, TRUSTED) == PEER

    def test_other_fields_say_nothing(self) -> None:
        assert client_address(PEER, {"x-real-ip": "192.0.2.7", "via": "1.1 proxy"}, TRUSTED) == PEER

    def test_a_list_without_an_end(self) -> None:
        for field, each in (("x-forwarded-for", "10.7.0.2"), ("forwarded", "for=10.7.0.2")):
            value = ",".join(["for=192.0.2.7"] + [each] * 10_000)
            assert client_address(PEER, {field: value}, TRUSTED) == "10.7.0.2"
            value = ",".join([each.replace("10.7.0.2", "192.0.2.7")] + [each] * (HOPS - 1))
            assert client_address(PEER, {field: value}, TRUSTED) == "192.0.2.7"

    @given(
        st.lists(st.sampled_from(["192.0.2.7", "10.7.0.2", "unknown", "[", '"', "for=", "=", ";", "\\", "%", " "])),
        st.text(max_size=40),
    )
    @settings(max_examples=300)
    def test_no_text_raises_and_none_gets_into_an_address(self, parts: list[str], text: str) -> None:
        for value in (",".join(parts), "".join(parts), text, f"for={text}"):
            for field in ("x-forwarded-for", "forwarded"):
                found = client_address(PEER, {field: value}, TRUSTED)
                assert set(found) <= set("0123456789abcdef.:")

    @given(st.lists(st.sampled_from(["198.51.100.9", "10.7.0.2", "unknown", "127.0.0.1"]), max_size=5))
    def test_whatever_a_client_writes_its_own_address_stands_behind_it(self, written: list[str]) -> None:
        for hops in ([], ["10.7.0.2"], ["10.7.0.3", "10.7.0.2"]):
            names = [*written, "192.0.2.7", *hops]
            assert client_address(PEER, {"x-forwarded-for": ", ".join(names)}, TRUSTED) == "192.0.2.7"
            forwarded = ", ".join(f"for={name}" for name in names)
            assert client_address(PEER, {"forwarded": forwarded}, TRUSTED) == "192.0.2.7"


def test_trusts() -> None:
    assert trusts(TRUSTED, "127.3.2.1") and trusts(TRUSTED, "::ffff:127.0.0.1") and trusts(TRUSTED, "2001:db8:7::9")
    assert not any(trusts(TRUSTED, address) for address in ("", "10.8.0.1", "2001:db8:8::9", "unix", "127.0.0.1%a"))
    assert not trusts((), "127.0.0.1")


def test_networks_are_checked() -> None:
    with pytest.raises(ValueError, match="has host bits set"):
        networks(("10.7.0.1/16",))
