"""The sockets that clients connect to: one per worker, all on one port (SO_REUSEPORT, socket(7))."""

import os
import socket

from vizora_rt.errors import ConfigError, UnavailableError


def bind(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets that share one address (SO_REUSEPORT), bound and not listening yet. Port 0: any free one.

    A shared bind of a port that another service shares succeeds, and would take half of its connections. So a socket
    that does not share asks first; SO_REUSEADDR keeps it from meeting the closed connections of the last run.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(f"server.host: {host}: {error.strerror}") from None
    sockets: list[socket.socket] = []
    try:
        if port:
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        for _ in range(count):
            sockets.append(socket.socket(family, kind | socket.SOCK_NONBLOCK))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sockets[-1].bind(address)
            address = sockets[0].getsockname()
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise UnavailableError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from None
    return sockets
