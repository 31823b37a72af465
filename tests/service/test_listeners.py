"""Sockets that share a port, and ports that are taken."""

import socket

import pytest

from vizora_rt.errors import ConfigError, UnavailableError
from vizora_rt.service.listeners import bind


def test_all_sockets_share_one_port() -> None:
    sockets = bind("127.0.0.1", 0, 3)
    try:
        assert len({opened.getsockname() for opened in sockets}) == 1
    finally:
        for opened in sockets:
            opened.close()


def test_a_port_in_use_is_refused_even_if_its_owner_shares_it() -> None:
    (first,) = bind("127.0.0.1", 0, 1)
    with first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: Address already in use$"):
            bind("127.0.0.1", port, 2)


def test_connections_of_the_last_run_are_no_obstacle() -> None:
    (first,) = bind("127.0.0.1", 0, 1)
    port = first.getsockname()[1]
    with first, socket.socket() as client:
        first.listen()
        first.setblocking(True)
        client.connect(("127.0.0.1", port))
        accepted, _ = first.accept()
    # We closed first, so the connection is in TIME_WAIT on our port.
    accepted.close()
    for opened in bind("127.0.0.1", port, 2):
        opened.close()


def test_an_unknown_host_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"^server\.host: nowhere\.invalid: "):
        bind("nowhere.invalid", 0, 1)
