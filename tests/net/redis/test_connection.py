"""Addresses of all forms, greetings by real and by odd servers, and what an operator reads when one cannot be used."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.net.proxy import Proxy
from vizora_rt.errors import ConfigError, UnavailableError
from vizora_rt.net.redis.address import UNSOLICITED_REPLY, Address, ServerRefusedError, explain, fault, hint, one_line
from vizora_rt.net.redis.blocking import BlockingConnection, ask, probe
from vizora_rt.net.redis.connection import RedisConnection, connect
from vizora_rt.net.redis.topology import RedisTarget
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer
from vizora_rt.telemetry.redact import scrub
from vizora_rt.wire.resp import ReplyError, pack

SECRET = "s3cret:/@ü"
QUOTED = "s3cret%3A%2F%40%C3%BC"


@pytest.mark.parametrize(
    ("url", "address", "text"),
    [
        ("redis://", Address(), "redis://127.0.0.1:6379/0"),
        ("redis://cache", Address(host="cache"), "redis://cache:6379/0"),
        ("redis://cache:7000/3", Address(host="cache", port=7000, database=3), "redis://cache:7000/3"),
        ("redis://cache/?db=4", Address(host="cache", database=4), "redis://cache:6379/4"),
        ("valkey://cache", Address(host="cache"), "redis://cache:6379/0"),
        ("redis://[::1]:7000", Address(host="::1", port=7000), "redis://[::1]:7000/0"),
        ("redis://[fe80::1%25eth0]", Address(host="fe80::1%eth0"), "redis://[fe80::1%eth0]:6379/0"),
        ("redis://cache/4?db=4", Address(host="cache", database=4), "redis://cache:6379/4"),
        (f"redis://:{QUOTED}@cache", Address(host="cache", password=SECRET), "redis://cache:6379/0"),
        (f"redis://me:{QUOTED}@cache", Address(host="cache", user="me", password=SECRET), "redis://cache:6379/0"),
        ("rediss://cache", Address(host="cache", tls=True), "rediss://cache:6379/0"),
        ("valkeys://cache?ca_file=/a.pem", Address(host="cache", tls=True, ca_file="/a.pem"), "rediss://cache:6379/0"),
        ("unix:///run/redis.sock", Address(path="/run/redis.sock"), "unix:///run/redis.sock"),
        ("unix:///a%20b?db=2", Address(path="/a b", database=2), "unix:///a%20b?db=2"),
        (f"unix://:{QUOTED}@/s", Address(path="/s", password=SECRET), "unix:///s"),
    ],
)
def test_address(url: str, address: Address, text: str) -> None:
    parsed = Address.parse(url)
    assert parsed == address
    assert str(parsed) == text
    assert SECRET not in repr(parsed) + str(parsed)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "must begin with"),
        ("http://cache", "must begin with"),
        ("cache:6379", "must begin with"),
        ("redis://:s3cret@cache:port", "not a URL"),
        ("redis://:s3cret@cache:70000", "not a URL"),
        ("redis://:s3cret@[::1", "not a URL"),
        ("redis://:s3cret@cache:0", "the port is"),
        ("redis://:s3cret@cache/first", "from 0"),
        ("redis://:s3cret@cache/1_0", "from 0"),
        ("redis://:s3cret@cache/+1", "from 0"),
        ("redis://:s3cret@cache/\u0663", "from 0"),
        ("redis://:s3cret@cache/1/2", "from 0"),
        ("redis://:s3cret@cache?db=1_0", "from 0"),
        ("redis://:s3cret@cache/0?db=1", "two databases"),
        ("redis://:s3cret@cache?db=1&db=2", "'db' stands there twice"),
        ("redis://:s3cret@cache/0?db", "not a URL"),
        (f"redis://:s3cret@{'x' * 64}.example", "not a URL"),
        ("redis://:s3cret@cache/-1", "from 0"),
        ("redis://:s3cret@cache?timeout=5", "unknown option 'timeout'"),
        ("redis://:s3cret@cache?ca_file=/a.pem", "unknown option 'ca_file'"),
        ("unix://run/redis.sock", "absolute"),
        ("unix://", "absolute"),
        (f"unix:///{'x' * 107}", "at most 107 bytes"),
    ],
)
def test_a_wrong_url_is_one_line_without_the_password(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Address.parse(url)
    assert complaint in str(raised.value)
    assert "redis.url" in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "redis+cluster", "redis+sentinel"])
@pytest.mark.parametrize(
    ("names", "escape"),
    [
        (":12#s3cret@", "%23"),
        (":s3cret#4@", "%23"),
        (":12/s3cret@", "%2F"),
        ("me:s3cret/@", "%2F"),
        (":s3cret/4@5@", "%2F"),
        (":12?s3cret@", "%3F"),
        (":s3cret@12@", "%40"),
        ("me@s3cret:12@", "%40"),
        (":s3cret 12@", "%20"),
        (":s3cret\t12@", "%20"),
        (":s3cret\n12@", "%20"),
        (":50%s3cret@", "%25"),
        (":s3cret%@", "%25"),
    ],
)
def test_a_password_that_is_not_escaped_is_refused(scheme: str, names: str, escape: str) -> None:
    """As it stands it would name another server: `redis://:12#4@host` is port 12 of this machine."""
    with pytest.raises(ConfigError) as raised:
        RedisTarget.parse(f"{scheme}://{names}cache:6379/0")
    assert f"must be written {escape}" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_what_may_hold_an_at_sign() -> None:
    assert Address.parse("unix:///run/@redis.sock").path == "/run/@redis.sock"
    assert Address.parse("rediss://cache?ca_file=/a@b.pem").ca_file == "/a@b.pem"
    where = RedisTarget.parse("redis+sentinel://a/m?sentinel_user=u&sentinel_password=a@b")
    assert where.sentinel_password == "a@b"


@pytest.mark.parametrize("names", [":s3cret?x=@", ":12?s3cret=4@", "me:12?s3cret=4@", ":1?a&s3cret@"])
def test_an_option_that_is_a_piece_of_a_password_is_not_shown(names: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Address.parse(f"redis://{names}cache")
    assert "s3cret" not in str(raised.value)


def test_greeting_says_only_what_is_needed() -> None:
    def words(address: Address) -> list[bytes]:
        return [packed for _, packed in address.greeting("me")]

    courtesies = [pack("CLIENT", "SETNAME", "me"), pack("ROLE"), pack("PING")]
    assert words(Address()) == courtesies
    assert words(Address(password="p", database=3)) == [pack("AUTH", "p"), pack("SELECT", 3), *courtesies]
    assert words(Address(user="u")) == [pack("AUTH", "u", ""), *courtesies]
    assert words(Address(user="u", password="p")) == [pack("AUTH", "u", "p"), *courtesies]


@pytest.mark.parametrize(
    ("word", "reply"),
    [
        ("AUTH", ReplyError("WRONGPASS invalid username-password pair or user is disabled.")),
        ("AUTH", ReplyError("ERR AUTH <password> called without any password configured for the default user.")),
        ("PING", ReplyError("NOAUTH Authentication required.")),
        ("PING", ReplyError("NOPERM User gw has no permissions to run the 'ping' command")),
    ],
)
def test_the_log_says_why_credentials_are_refused(word: str, reply: ReplyError) -> None:
    """The scrubber takes what follows a name of a secret and a colon."""
    said = str(fault(Address(), [(word, b"")], [reply]))
    assert reply.code in said
    assert scrub(said) == said


def test_explain_is_one_line() -> None:
    assert explain(None) == "connection closed"
    assert explain(TimeoutError()) == "timed out"
    assert explain(ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)")) == "Connection refused"
    assert explain(socket.gaierror(-2, "Name or service not known")) == "Name or service not known"
    assert explain(ValueError()) == "ValueError"
    assert one_line("ERR no\nsuch\x1b[31m thing\r\n") == "ERR no such [31m thing"
    assert len(one_line("x" * 10_000)) == 300


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A store that the test may spoil."""
    store = valkey_server.start(tmp_path)
    yield store
    store.stop()


def tell(store: EmbeddedServer, *commands: tuple[str, ...]) -> list[object]:
    return ask(Address.parse(store.url), [pack(*command) for command in commands], 5.0)


def listen_tcp(store: EmbeddedServer) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    assert tell(store, ("CONFIG", "SET", "bind", "127.0.0.1", "port", str(port))) == [b"OK"]
    return port


class Heard:
    """What links told their owner."""

    def __init__(self) -> None:
        self.links: list[RedisConnection] = []
        self.replies: asyncio.Queue[object] = asyncio.Queue()
        self.lost: asyncio.Queue[str] = asyncio.Queue()

    def on_replies(self, replies: list[object]) -> None:
        for reply in replies:
            self.replies.put_nowait(reply)

    async def connect(
        self, url: str, *, timeout: float = 5.0, first: tuple[tuple[str, bytes], ...] = ()
    ) -> RedisConnection:
        link = await connect(
            Address.parse(url),
            "test",
            self.on_replies,
            self.lost.put_nowait,
            connect_timeout=timeout,
            reply_timeout=timeout,
            first=first,
        )
        self.links.append(link)
        return link


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    heard = Heard()
    yield heard
    for link in heard.links:
        link.drop("the test ended")


async def test_connect_then_replies_then_lost(redis_url: str, heard: Heard) -> None:
    link = await heard.connect(redis_url + "?db=2", first=(("SET", pack("SET", "k", "v")),))
    link.transport.write(pack("CLIENT", "GETNAME") + pack("GET", "k") + pack("QUIT"))
    assert [await heard.replies.get() for _ in range(3)] == [b"test", b"v", b"OK"]
    assert await heard.lost.get() == "connection closed"
    assert ask(Address.parse(redis_url), [pack("GET", "k")], 5.0) == [None]
    link.drop("again")
    assert heard.lost.empty()


async def test_drop_gives_the_first_reason(redis_url: str, heard: Heard) -> None:
    link = await heard.connect(redis_url)
    link.drop("enough")
    link.drop("more than enough")
    assert await heard.lost.get() == "enough"


async def test_what_is_not_resp_ends_the_link(proxy: Proxy, heard: Heard) -> None:
    await heard.connect(await proxy.open())
    proxy.inject(b"+hello\r\nHTTP/1.1 200 OK\r\n")
    assert await heard.replies.get() == b"hello"
    assert "Protocol error" in await heard.lost.get()


@pytest.mark.parametrize(
    ("rewrite", "complaint"),
    [
        (lambda data: b"HTTP/1.1 400 Bad Request\r\n", "Protocol error"),
        (lambda data: data + b"+OK\r\n", UNSOLICITED_REPLY),
        (lambda data: b"-LOADING Valkey is loading the dataset in memory\r\n" * 3, "PING was answered LOADING"),
        (lambda data: b"-MASTERDOWN Link with MASTER is down\r\n" * 3, "PING was answered MASTERDOWN"),
        (lambda data: b"-NOAUTH not\x1b yet\r\n" * 3, "PING was answered NOAUTH not  yet"),
        (lambda data: b"", "timed out"),
    ],
)
async def test_a_server_that_cannot_be_used(proxy: Proxy, rewrite: object, complaint: str, heard: Heard) -> None:
    assert callable(rewrite)
    proxy.rewrite = rewrite
    url = await proxy.open()
    with pytest.raises(OSError) as raised:
        await heard.connect(url, timeout=0.5 if complaint == "timed out" else 5.0)
    assert complaint in explain(raised.value)
    # The same without a loop, as check-config sees it.
    with pytest.raises((ConfigError, UnavailableError)) as line:
        await asyncio.to_thread(probe, url, 0.5 if complaint == "timed out" else 5.0)
    assert complaint in str(line.value)
    assert heard.replies.empty()
    assert heard.lost.empty()


async def test_a_server_that_hangs_up_while_greeting(proxy: Proxy, heard: Heard) -> None:
    def hang_up(data: bytes) -> bytes:
        proxy.cut()
        return b""

    proxy.rewrite = hang_up
    with pytest.raises(ConnectionError):
        await heard.connect(await proxy.open())
    assert heard.lost.empty()


async def test_a_server_that_says_why_it_hangs_up(proxy: Proxy, heard: Heard) -> None:
    def full(data: bytes) -> bytes:
        proxy.hang_up()
        return b"-ERR max number of clients reached\r\n"

    proxy.rewrite = full
    with pytest.raises(ConnectionError, match="connection closed after ERR max number of clients reached"):
        await heard.connect(await proxy.open())


async def test_a_server_in_protected_mode(proxy: Proxy, heard: Heard) -> None:
    """Only its operator can mend that: it is no outage."""

    def protected(data: bytes) -> bytes:
        proxy.hang_up()
        return b"-DENIED Redis is running in protected mode because\r\n"

    proxy.rewrite = protected
    url = await proxy.open()
    with pytest.raises(
        ServerRefusedError, match="its own machine only: connection closed after DENIED Redis is running"
    ):
        await heard.connect(url)
    with pytest.raises(ConfigError, match="cannot be used: it takes connections of its own machine only"):
        await asyncio.to_thread(probe, url, 5.0)


async def test_courtesies_may_be_refused(own: EmbeddedServer, heard: Heard) -> None:
    rules = ("ACL", "SETUSER", "plain", "on", ">pw", "~*", "+@all", "-client|setname", "-role")
    assert tell(own, rules) == [b"OK"]
    link = await heard.connect(own.url.replace("unix://", "unix://plain:pw@"))
    link.transport.write(pack("CLIENT", "SETNAME", "x") + pack("ACL", "WHOAMI"))
    refused = await heard.replies.get()
    assert isinstance(refused, ReplyError)
    assert refused.code == "NOPERM"
    assert await heard.replies.get() == b"plain"


async def test_cancelled_while_greeting(proxy: Proxy, heard: Heard) -> None:
    swallowed = asyncio.Event()

    def swallow(data: bytes) -> bytes:
        swallowed.set()
        return b""

    proxy.rewrite = swallow
    task = asyncio.create_task(heard.connect(await proxy.open()))
    await swallowed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard.lost.empty()


class TestLine:
    def test_asks_again_and_again(self, redis_url: str) -> None:
        line = BlockingConnection(Address.parse(redis_url), "test", 5.0)
        long = "x" * 3_000_000
        assert line.ask([pack("SET", "a", long), pack("GET", "a")]) == [b"OK", long.encode()]
        assert line.ask([pack("CLIENT", "GETNAME"), pack("GET", "b")]) == [b"test", None]
        line.close()

    def test_whom_it_cannot_use_it_names(self, own: EmbeddedServer) -> None:
        address = Address.parse(own.url)
        assert ask(address, [pack("CONFIG", "SET", "requirepass", SECRET)], 5.0) == [b"OK"]
        with pytest.raises(ConnectionError, match="PING was answered NOAUTH"):
            BlockingConnection(address, "test", 5.0)
        line = BlockingConnection(Address(path=address.path, password=SECRET), "test", 5.0)
        own.stop()
        with pytest.raises(OSError, match=r"connection closed|Broken pipe|reset"):
            line.ask([pack("PING")])
        line.close()

    def test_one_that_is_silent(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
            BlockingConnection(Address(port=silent.getsockname()[1]), "test", 0.05)


class TestProbe:
    def test_a_good_one(self, own: EmbeddedServer) -> None:
        probe(own.url, 5.0)
        port = listen_tcp(own)
        assert tell(own, ("CONFIG", "SET", "requirepass", SECRET)) == [b"OK"]
        probe(f"redis://:{QUOTED}@127.0.0.1:{port}/1", 5.0)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            with pytest.raises(UnavailableError) as raised:
                probe(f"redis://:s3cret@127.0.0.1:{port}", 5.0)
        assert str(raised.value) == f"Redis at redis://127.0.0.1:{port}/0 cannot be reached: Connection refused"
        with pytest.raises(UnavailableError, match="cannot be reached: No such file or directory"):
            probe(f"unix://{tmp_path}/none", 5.0)

    def test_a_wrong_password(self, own: EmbeddedServer) -> None:
        assert tell(own, ("CONFIG", "SET", "requirepass", SECRET)) == [b"OK"]
        with pytest.raises(ConfigError) as raised:
            probe(own.url.replace("unix://", "unix://:s3cret@"), 5.0)
        assert "cannot be used: wrong user or password (AUTH was answered WRONGPASS" in str(raised.value)
        assert "s3cret" not in str(raised.value)
        with pytest.raises(
            ConfigError, match=r"cannot be used: a password is needed, and redis.url has none \(PING was answered"
        ):
            probe(own.url, 5.0)

    async def test_one_that_is_full(self, own: EmbeddedServer, heard: Heard) -> None:
        assert tell(own, ("CONFIG", "SET", "maxclients", "1")) == [b"OK"]
        await heard.connect(own.url)
        # Closed, broken or reset: it depends on who was faster.
        with pytest.raises(UnavailableError, match=r"cannot be reached: .* after ERR max number of clients reached"):
            await asyncio.to_thread(probe, own.url, 5.0)

    def test_a_replica(self, own: EmbeddedServer) -> None:
        assert tell(own, ("REPLICAOF", "127.0.0.1", "1")) == [b"OK"]
        with pytest.raises(UnavailableError, match="cannot be used: it is a slave, not a master"):
            probe(own.url, 5.0)

    def test_one_that_is_silent(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            with pytest.raises(UnavailableError, match="cannot be reached: timed out"):
                probe(f"redis://127.0.0.1:{silent.getsockname()[1]}", 0.2)

    def test_one_that_drips(self) -> None:
        """The timeout is for all of it: a byte now and then does not start it anew."""
        with socket.socket() as dripping:
            dripping.bind(("127.0.0.1", 0))
            dripping.listen()
            done = threading.Event()

            def drip() -> None:
                connection, _ = dripping.accept()
                with connection:
                    connection.sendall(b"$1000\r\n")
                    while not done.wait(0.02):
                        connection.sendall(b"x")

            thread = threading.Thread(target=drip)
            thread.start()
            try:
                with pytest.raises(UnavailableError, match="timed out"):
                    probe(f"redis://127.0.0.1:{dripping.getsockname()[1]}", 0.3)
            finally:
                done.set()
                thread.join()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 and its key, signed by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("VIZORA_REQUIRE_TOOLS"):
            pytest.fail("openssl is missing")
        pytest.skip("openssl is missing")
    path = tmp_path / "certificate.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path) + ".key", "-out", str(path)]
    subprocess.run([openssl, "req", *options.split(), *extension], check=True, capture_output=True)
    return path


async def test_tls(proxy: Proxy, certificate: Path, heard: Heard) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, f"{certificate}.key")
    url = await proxy.open(context)
    link = await heard.connect(f"{url}?ca_file={certificate}")
    link.transport.write(pack("PING"))
    assert await heard.replies.get() == b"PONG"
    link.drop("closed")
    assert await heard.lost.get() == "closed"
    await asyncio.to_thread(probe, f"{url}?ca_file={certificate}", 5.0)
    # Nobody vouches for it.
    with pytest.raises(UnavailableError, match="certificate verify failed"):
        await asyncio.to_thread(probe, url, 5.0)
    with pytest.raises(ssl.SSLCertVerificationError):
        await heard.connect(url)
    with pytest.raises(ConfigError, match=r"redis.ca_file: .*: No such file"):
        await asyncio.to_thread(probe, f"{url}?ca_file={certificate}.none", 5.0)


class TestClientCertificate:
    """A server that lets nobody in without a certificate that it knows."""

    @pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def url(self, request: pytest.FixtureRequest, proxy: Proxy, certificate: Path) -> str:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
        context.load_cert_chain(certificate, f"{certificate}.key")
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = request.param
        return f"{await proxy.open(context)}/0?ca_file={certificate}"

    async def test_with_it(self, url: str, certificate: Path, heard: Heard) -> None:
        url += f"&cert_file={certificate}&key_file={certificate}.key"
        link = await heard.connect(url)
        link.transport.write(pack("PING"))
        assert await heard.replies.get() == b"PONG"
        await asyncio.to_thread(probe, url, 5.0)

    async def test_without_it(self, url: str, heard: Heard) -> None:
        with pytest.raises(OSError) as raised:
            await heard.connect(url)
        wanted = "if it wants a client certificate, set redis.cert_file and redis.key_file"
        assert wanted in hint(Address.parse(url), raised.value)
        with pytest.raises(UnavailableError, match=wanted):
            await asyncio.to_thread(probe, url, 5.0)

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ("&cert_file={0}.none&key_file={0}.key", r"redis.cert_file or key_file: .*\.none: No such file"),
            ("&cert_file={0}&key_file={0}.none", r"redis.cert_file or key_file: .*: No such file"),
            ("&cert_file={0}&key_file={0}", r"redis.cert_file or key_file: "),
            ("&cert_file={0}&key_file={0}.locked", r"redis.cert_file or key_file: "),
            ("&cert_file={0}", r"needs both cert_file and key_file"),
            ("&key_file={0}.key", r"needs both cert_file and key_file"),
        ],
    )
    async def test_files_that_cannot_be_used(self, url: str, certificate: Path, files: str, said: str) -> None:
        """Also a key with a passphrase: nobody is there to type it."""
        lock = ["openssl", "ec", "-in", f"{certificate}.key", "-aes128", "-passout", "pass:x"]
        subprocess.run([*lock, "-out", f"{certificate}.locked"], check=True, capture_output=True)
        with pytest.raises(ConfigError, match=said) as raised:
            await asyncio.to_thread(probe, url + files.format(certificate), 5.0)
        assert "\n" not in str(raised.value)

    async def test_one_end_speaks_no_tls(self, url: str, proxy: Proxy, certificate: Path) -> None:
        plain = url.partition("/0?")[0].replace("rediss://", "redis://")
        with pytest.raises(UnavailableError, match="if it speaks TLS, use rediss://"):
            await asyncio.to_thread(probe, plain, 5.0)
        other = Proxy(proxy.target)
        try:
            tls = (await other.open()).replace("redis://", "rediss://")
            with pytest.raises(UnavailableError, match="if it speaks no TLS, use redis://"):
                await asyncio.to_thread(probe, f"{tls}?ca_file={certificate}", 0.5)
        finally:
            await other.close()
