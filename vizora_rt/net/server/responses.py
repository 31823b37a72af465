"""What routes answer, and with what words they refuse. A route is asked by a `Sender`, and may take a while."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import unquote

from vizora_rt.errors import Refusal
from vizora_rt.net.access.admission import RETRY_AFTER
from vizora_rt.wire import messages
from vizora_rt.wire.http import Request, origin_form


@dataclass(slots=True)
class Response:
    """What a route answers. `waited`: nanoseconds of it that were spent waiting for a device."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    waited: int = 0


Answer = Response | Awaitable[Response]


class Sender(Protocol):
    """The connection that a request came on."""

    address: str
    proxied: bool
    """Whether a proxy said with the PROXY protocol whose connection it is; `address` is then that one's."""

    def client(self, request: Request) -> str:
        """The address of whoever sent `request`, behind however many proxies of ours."""


Route = Callable[[Request, Sender], Answer]
Guard = Callable[[Request, Sender], Answer | None]
"""Judges a request by its head, before its body is read: a refusal, or None."""


def json_response(status: int, value: Any) -> Response:
    return Response(status, messages.dumps(value))


def refuse(refusal: Refusal, allow: str = "", **more: object) -> Response:
    """The one shape of all refusals. A passing one says when to come back, a wrong method which ones are right."""
    body = {"code": refusal.code, "message": refusal.message, "retryable": refusal.retryable, **more}
    headers: tuple[tuple[str, str], ...] = ()
    if refusal.status in (429, 503):
        headers = (("Retry-After", str(refusal.retry_after or RETRY_AFTER)),)
    elif refusal.status == 405:
        headers = (("Allow", allow or "GET, HEAD"),)  # RFC 9110 section 15.5.6
    return Response(refusal.status, messages.dumps(body), headers=headers)


def segments(request: Request) -> list[str]:
    """The parts of a path, each decoded by itself: an id may hold a slash."""
    target = origin_form(request.target)
    if not target:
        return request.path.split("/")[1:]
    parts = [unquote(part) for part in target.partition("?")[0].split("/")[1:]]
    return parts[1:] if parts[:1] == ["api"] and len(parts) > 1 else parts


LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
