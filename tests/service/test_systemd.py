"""What reaches systemd's socket, and whose watchdog it is. The whole protocol is in
tests/service/test_supervisor.py."""

import os

from vizora_rt.service.systemd import Notifier


def test_a_watchdog_of_another_process_is_not_ours_to_feed() -> None:
    for env, seconds in [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ]:
        notifier = Notifier(env)
        assert notifier.watchdog_seconds == seconds
        notifier.close()


def test_nobody_to_tell_is_no_fault() -> None:
    for env in ({}, {"NOTIFY_SOCKET": "/nonexistent/notify"}):
        notifier = Notifier(env)
        notifier.send("READY=1")
        notifier.close()
