"""What a process that configured its log writes to stderr."""

import json
import os
import subprocess
import sys
from typing import Any


def output(
    code: str,
    style: str = "json",
    level: str = "INFO",
    env: dict[str, str] | None = None,
) -> bytes:
    """Stderr of a process that ran `code` after `configure`."""
    program = (
        "import asyncio, logging, warnings\n"
        "from vizora_rt import config; from vizora_rt.telemetry import logs, sentry\n"
        "settings = config.load(None, __import__('os').environ)\n"
        "logs.configure(settings, 'worker-0')\n"
        "log = logs.logger('test')\n" + code
    )
    variables = {**os.environ, "VIZORA_LOGGING__FORMAT": style, "VIZORA_LOGGING__LEVEL": level, **(env or {})}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stderr


def records(code: str, **options: Any) -> list[dict[str, Any]]:
    """The same, as JSON lines; split as a log reader splits."""
    return [json.loads(line) for line in output(code, **options).split(b"\n")[:-1]]
