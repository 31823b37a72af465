"""nginx and HAProxy as `ops/` configures them, in front of the service: TLS, who the client is, who reads metrics."""

import asyncio
import http.client
import json
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.net.peers import SECRETS, Client, device_token, until
from tests.service_process import Service
from tests.service_process import until as soon
from tests.tools import run, tool

OPS = Path(__file__).parent.parent.parent / "ops"
API_SECRET = "i" * 40
PROXY, LOBBY, HALL = "127.0.0.1", "127.0.0.9", "127.0.0.10"
"""Of the proxy, and of two clients. Only the first is trusted."""
LIE = "198.51.100.9"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key in one file, of localhost."""
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key", folder / "pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2")
    code, said = run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", pem, *subject)
    assert code == 0, said
    with pem.open("a") as file:
        file.write(key.read_text())
    return pem


def free_port() -> int:
    with socket.create_server((PROXY, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def changed(path: Path, *publisher: tuple[str, str]) -> str:
    """A configuration of `ops/` with what a test cannot have: ports, certificates, logs of a machine."""
    text = path.read_text()
    for old, new in publisher:
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, upstream: int, port: int, certificate: Path) -> list[str]:
    """With the gateway twice: of a single server nothing is sent again, whatever is configured."""
    site = changed(
        OPS / "nginx/vizora-rt.conf",
        ("server 127.0.0.1:3001", f"server 127.0.0.1:{upstream}"),
        ("# server 10.0.7.12:3001", f"server 127.0.0.1:{upstream}"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/vizora-rt/fullchain.pem", str(certificate)),
        ("/etc/ssl/private/vizora-rt.pem", str(certificate)),
        ("/var/log/nginx/vizora-rt.log", str(folder / "access.log")),
    )
    site = site.replace("max_fails=3", "max_fails=0")  # a gateway that fails on purpose is asked again
    (folder / "site.conf").write_text(site)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{ worker_connections 64; }}\nhttp {{\n{paths}include {folder}/site.conf;\n}}\n"
    )
    arguments = ["-c", str(main), "-p", str(folder), "-e", str(folder / "error.log")]
    code, said = run("nginx", "-t", *arguments)
    assert code == 0 and "[warn]" not in said, said
    return [tool("nginx"), *arguments]


def haproxy(folder: Path, upstream: int, port: int, certificate: Path) -> list[str]:
    file = folder / "haproxy.cfg"
    file.write_text(
        changed(
            OPS / "haproxy/haproxy.cfg",
            ("127.0.0.1:3001", f"127.0.0.1:{upstream}"),
            ("bind :443", f"bind 127.0.0.1:{port}"),
            ("/etc/haproxy/vizora-rt.pem", str(certificate)),
            ("log /dev/log local0", "log stdout format raw local0"),
            ("maxconn 100000", "maxconn 100"),  # descriptors
            ("maxconn 50000", "maxconn 50"),
        )
    )
    code, said = run("haproxy", "-c", "-f", file)
    assert code == 0 and "WARNING" not in said, said
    return [tool("haproxy"), "-db", "-f", str(file)]


@contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield running
        finally:
            running.terminate()
            running.wait(10)


class Front:
    """The service behind a proxy."""

    def __init__(self, service: Service, port: int, certificate: Path, log: Callable[[], str]) -> None:
        self.service = service
        self.port = port
        self.log = log
        self._tls = ssl.create_default_context(cafile=str(certificate))

    async def dial(self, source: str, device: str, **headers: str) -> Client:
        return Client(
            await connect(
                f"wss://localhost:{self.port}/ws",
                additional_headers={"Authorization": f"Bearer {device_token(device)}", **headers},
                ssl=self._tls,
                local_addr=(source, 0),
                proxy=None,
                ping_interval=None,
            )
        )

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            "localhost", self.port, timeout=15, context=self._tls, source_address=(LOBBY, 0)
        )
        try:
            connection.request(method, path, body, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module", params=[nginx, haproxy], ids=["nginx", "haproxy"])
def front(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Path
) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    env = {
        **SECRETS,
        "INTERNAL_API_SECRET": API_SECRET,
        "VIZORA_SERVER__TRUSTED_PROXIES": PROXY,
        "VIZORA_SERVER__PROXY_PROTOCOL": "true" if request.param is haproxy else "false",
        "VIZORA_LIMITS__CONNECTIONS_PER_ADDRESS": "1",
    }
    with Service(folder, env, workers=1) as service:
        port, log = free_port(), folder / "access.log"
        command = request.param(folder, service.start().port, port, certificate)
        with process(command, log if request.param is haproxy else folder / "output") as running:
            made = Front(service, port, certificate, log.read_text)

            def up() -> bool:
                assert running.poll() is None, "the proxy has ended"
                try:
                    return made.ask("GET", "/health/ready")[0] == 200
                except OSError:
                    return False

            soon(up)
            yield made


async def test_screens_through_tls(front: Front) -> None:
    screen = await front.dial(LOBBY, "lobby")
    await screen.next("config")
    assert (await screen.heartbeat())["success"]
    # The limit of an address is a client's own, not the proxy's, whatever the client says.
    for lie in ({}, {"X-Forwarded-For": LIE}, {"Forwarded": f"for={LIE}"}, {"X-Real-IP": LIE}):
        with pytest.raises(InvalidStatus) as refused:
            await front.dial(LOBBY, "twin", **lie)
        assert refused.value.response.status_code == 429
        assert int(refused.value.response.headers["Retry-After"]) > 0
    other = await front.dial(HALL, "hall")
    await other.next("config")
    await other.leave()
    await screen.leave()


async def test_the_log_tells_who_called(front: Front) -> None:
    body = json.dumps({"organizationId": "acme", "state": "suspended", "reason": "test"})
    lie = {"X_Forwarded_For": LIE, "Forwarded": f"for={LIE}"}
    asked = ("POST", "/api/internal/tenant-entitlement", body)
    status, answer = await asyncio.to_thread(front.ask, *asked, x_internal_api_key=API_SECRET, **lie)
    assert status == 200, answer
    assert (await asyncio.to_thread(front.service.wait, "audit"))["address"] == LOBBY


async def test_metrics_are_not_for_the_world(front: Front) -> None:
    assert (await asyncio.to_thread(front.ask, "GET", "/metrics"))[0] == 403
    assert (await asyncio.to_thread(front.ask, "GET", "/internal/metrics"))[0] == 403
    # From the machine itself they are read past the proxy.
    assert (await asyncio.to_thread(front.service.get, "/metrics"))[0] == 200


async def test_no_log_shows_a_token(front: Front) -> None:
    assert (await asyncio.to_thread(front.ask, "GET", "/health/live?token=s3cret"))[0] == 200
    await until(lambda: "/health/live" in front.log())
    assert "s3cret" not in front.log()


class Mute:
    """A gateway whose worker dies in each request: it reads one and closes without an answer, but for health checks."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._listening = socket.create_server((PROXY, 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(10)
                data = b""
                # The PROXY header that may come first has an empty line of its own.
                while not re.search(rb"HTTP/1\.[01]\r\n(.*\r\n)?\r\n", data, re.DOTALL) and (
                    read := connection.recv(65536)
                ):
                    data += read
                for method, path in re.findall(rb"([A-Z]+) (/\S*) HTTP/1\.[01]", data):
                    if path == b"/health/ready":
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    else:
                        self.heard.append(method.decode())

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.mark.parametrize("proxy", [nginx, haproxy], ids=["nginx", "haproxy"])
def test_a_call_without_an_answer_is_not_sent_again(
    tmp_path: Path, certificate: Path, proxy: Callable[[Path, int, int, Path], list[str]]
) -> None:
    """The gateway may have done it: only the caller knows whether it has an id by which it is done once."""
    upstream, port = Mute(), free_port()
    tls = ssl.create_default_context(cafile=str(certificate))

    def ask(method: str) -> int:
        connection = http.client.HTTPSConnection("localhost", port, timeout=15, context=tls)
        try:
            connection.request(method, "/internal/command", "{}")
            return connection.getresponse().status
        finally:
            connection.close()

    def refused(method: str) -> bool:
        try:
            return ask(method) in (502, 503, 504)
        except OSError:
            return False

    with process(proxy(tmp_path, upstream.port, port, certificate), tmp_path / "output"):
        soon(lambda: refused("POST") and upstream.heard)
        upstream.heard.clear()
        for method in ("POST", "DELETE", "PUT", "PATCH"):
            assert refused(method)
            assert upstream.heard.count(method) == 1, method
        upstream.heard.clear()
        assert refused("GET")
        assert upstream.heard.count("GET") > 1  # so there was another server to send it to
    upstream.close()
