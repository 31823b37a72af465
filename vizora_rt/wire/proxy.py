"""For whom a proxy speaks: the PROXY protocol (versions 1 and 2), and the fields X-Forwarded-For and Forwarded.

Only what a configured proxy says counts. Of a list of addresses the rightmost that is no such proxy is the client:
whatever stands to its left the client may have written itself.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

from vizora_rt import errors
from vizora_rt.errors import Refusal

Networks = tuple[IPv4Network | IPv6Network, ...]

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
V1_BYTES: Final = 107
"""The longest line of version 1, its end included; proxy-protocol.txt section 2.1 counts it out."""
V2_BYTES: Final = 4096
"""Of the addresses and TLVs of version 2. HAProxy sends some hundred at most, a client certificate's name included."""
HOPS: Final = 32
"""Proxies in a row that are looked past. A list may have as many addresses as fit into a request's head."""

_V1: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [\x20-\x7e]*)?|(TCP[46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (\d{1,5}) (\d{1,5}))\r\n"
)
_V2_FAMILIES: Final = {1: 4, 2: 16}
"""Bytes of an address of AF_INET and AF_INET6. Others (AF_UNSPEC, AF_UNIX) name nobody on a network."""
_NODE: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[\w.-]+)?|([\d.]+)(?::[\w.-]+)?|([0-9A-Fa-f:.]+)")
_FOR: Final = re.compile(r'(?:^|;)[ \t]*for[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"]*)', re.IGNORECASE)


class Proxied(NamedTuple):
    """A header of the PROXY protocol: the client's address, "" when it names none, and how many bytes it took."""

    address: str
    consumed: int


def parse_proxy(data: bytes) -> Proxied | Refusal | None:
    """The header that `data` begins with; a refusal when there is none, None when more is needed."""
    head = data[: len(SIGNATURE)]
    if head == SIGNATURE:
        return _version2(data)
    if SIGNATURE.startswith(head) or (head.startswith(b"PROXY ") and b"\n" not in data[:V1_BYTES]):
        return None if len(data) < V1_BYTES else errors.BAD_REQUEST
    if b"PROXY ".startswith(head):
        return None
    return _version1(data)


def _version1(data: bytes) -> Proxied | Refusal:
    match = _V1.match(data[:V1_BYTES])
    if match is None:
        return errors.BAD_REQUEST
    family, source = match[1], match[2]
    if family is None:
        return Proxied("", match.end())
    try:
        found: list[IPv4Address | IPv6Address] = [ip_address(text.decode("ascii")) for text in (source, match[3])]
    except ValueError:
        return errors.BAD_REQUEST
    if {address.version for address in found} != {4 if family == b"TCP4" else 6}:
        return errors.BAD_REQUEST
    return Proxied(str(_unmapped(found[0])), match.end())


def _version2(data: bytes) -> Proxied | Refusal | None:
    if len(data) < 16:
        return None
    version_command, family_protocol = data[12], data[13]
    length = int.from_bytes(data[14:16])
    command, family = version_command & 0xF, family_protocol >> 4
    if version_command >> 4 != 2 or command > 1 or length > V2_BYTES:
        return errors.BAD_REQUEST
    if len(data) < 16 + length:
        return None
    size = _V2_FAMILIES.get(family)
    if command == 0 or size is None:
        return Proxied("", 16 + length)  # LOCAL: a health check of the proxy's own
    if length < 2 * (size + 2):  # two addresses, two ports
        return errors.BAD_REQUEST
    return Proxied(str(_unmapped(ip_address(data[16 : 16 + size]))), 16 + length)


def networks(texts: tuple[str, ...]) -> Networks:
    """Addresses and networks in CIDR notation. Raises ValueError: they are the operator's."""
    return tuple(ip_network(text) for text in texts)


def trusts(trusted: Networks, address: str) -> bool:
    """Whether a proxy of ours has this address."""
    parsed = parse_address(address)
    return parsed is not None and _among(trusted, parsed)


def client_address(peer: str, headers: dict[str, str], trusted: Networks) -> str:
    """Who is behind `peer`, by the fields of a request that came from it.

    A proxy sets one of the two fields; the other one is then the client's own invention. So when both are there they
    must agree, else neither is believed.
    """
    if not trusts(trusted, peer):
        return peer
    found = {
        _rightmost(peer, names, trusted)
        for names in (_x_forwarded_for(headers), _forwarded(headers))
        if names is not None
    }
    return found.pop() if len(found) == 1 else peer


def _x_forwarded_for(headers: dict[str, str]) -> list[str] | None:
    text = headers.get("x-forwarded-for")
    return None if text is None else text.rsplit(",", HOPS)


def _forwarded(headers: dict[str, str]) -> list[str] | None:
    """The `for` of each element (RFC 7239 section 4). A comma or semicolon within quotes names nobody we could use."""
    text = headers.get("forwarded")
    if text is None:
        return None
    named = (_FOR.search(element.strip(" \t")) for element in text.rsplit(",", HOPS))
    return [match[1].strip(" \t").strip('"') if match else "" for match in named]


def _rightmost(peer: str, names: list[str], trusted: Networks) -> str:
    """The rightmost that is no proxy of ours; the last one known when what comes next is no address."""
    last = peer
    for name in reversed(names[-HOPS:]):
        match = _NODE.fullmatch(name.strip(" \t"))
        address = parse_address(match[1] or match[2] or match[3]) if match else None
        if address is None:
            break
        last = str(address)
        if not _among(trusted, address):
            break
    return last


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, IPv4 also when it is mapped into IPv6, without a zone: that may be any text."""
    try:
        return None if "%" in text else _unmapped(ip_address(text))
    except ValueError:
        return None


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address


def _among(trusted: Networks, address: IPv4Address | IPv6Address) -> bool:
    return any(address in network for network in trusted)
