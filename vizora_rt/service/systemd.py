"""What systemd is told: sd_notify(3), ten lines that need no library."""

import os
import socket
from collections.abc import Mapping


class Notifier:
    """sd_notify(3): datagrams to $NOTIFY_SOCKET. Nothing is sent, and nothing fails, where there is no systemd."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of an abstract address (unix(7)).
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        usec = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(usec) / 1e6 if usec.isdecimal() and mine else 0.0

    def send(self, *lines: str) -> None:
        if self._address:
            try:
                self._socket.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                pass

    def close(self) -> None:
        self._socket.close()
