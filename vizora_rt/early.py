"""Obeys signals from the first line of the program on: importing the rest takes a second.

The kernel gives the first process of a container (PID 1) no default action: a SIGTERM without a handler is lost
(kill(2), signal(7)), and `docker stop` waits for its SIGKILL. So this module imports next to nothing, and installs its
handlers when it is imported, before any other module of the package. The service has its own from Supervisor.run on.
"""

import signal
import sys
from types import FrameType
from typing import Final, Never

SERVICES: Final = ("serve", "demo")
"""Commands that end with 0 when they are told to stop, as they do once they run. Others have not done their work."""


def _end(number: int, _: FrameType | None) -> Never:
    sys.exit(0 if sys.argv[1:2] and sys.argv[1] in SERVICES else 128 + number)


def _wait(_: int, __: FrameType | None) -> None:
    """A service that has not read its configuration yet need not read it again."""


def obey() -> None:
    """Install the handlers. A signal that whoever started the program has it ignore stays ignored."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL and sys.argv[1:2] == ["serve"]:
        signal.signal(signal.SIGHUP, _wait)


def imported() -> None:
    """All is imported: Ctrl-C is KeyboardInterrupt again, which commands and asyncio know how to end with."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


obey()
