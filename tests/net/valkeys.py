"""Several Valkeys for tests: a cluster of masters and replicas, or a master with a replica under Sentinels.

    with Valkeys(folder) as valkeys:
        cluster = valkeys.cluster(masters=3)
        cluster.move(slot, to=2)

All listen on free ports of 127.0.0.1, keep nothing on the disk and end with the block.
"""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.blocking import ask
from vizora_rt.net.valkey.server import binary
from vizora_rt.wire.resp import SLOTS, ReplyError, pack

PATIENCE = 20.0
NODE_TIMEOUT_MS = 1000
"""Milliseconds until a node that says nothing is suspected: a failover takes two or three seconds."""
DOWN_AFTER_MS = 500


class Server:
    """One process."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.port = free_port()
        self.address = Address(port=self.port)
        self.bus = 0
        self._command = [str(binary()), *(arguments[:1] if arguments[:1] and arguments[0].endswith(".conf") else ())]
        options = arguments[1:] if len(self._command) > 1 else arguments
        self._command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), *options]
        self._log = (folder / f"{name}.log").open("ab")
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            return ask(self.address, [pack("PING")], 1.0) == [b"PONG"]
        except OSError:
            return False

    @property
    def id(self) -> str:
        return str(self.tell("CLUSTER", "MYID"), "ascii")

    def tell(self, *command: bytes | str | int) -> Any:
        """The reply to a command, which must be no error."""
        (reply,) = ask(self.address, [pack(*command)], 10.0)
        assert not isinstance(reply, ReplyError), (command, reply)
        return reply

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait()

    def end(self) -> None:
        self.kill()
        self._log.close()


class Cluster:
    """Masters with equal shares of the slots, each with so many replicas."""

    def __init__(self, masters: list[Server], replicas: list[Server]) -> None:
        self.masters = masters
        self.replicas = replicas
        self._moved: set[int] = set()
        self.url = f"redis+cluster://127.0.0.1:{masters[0].port},127.0.0.1:{masters[-1].port}"

    def settle(self) -> None:
        """Empty, and each slot where it was at first."""
        for master in self.masters:
            for command in (("FLUSHALL",), ("SCRIPT", "FLUSH"), ("CONFIG", "RESETSTAT")):
                assert master.tell(*command) == b"OK"
        for slot in list(self._moved):
            for master in self.masters:
                master.tell("CLUSTER", "SETSLOT", slot, "STABLE")
            if self.owner(slot) is not self.home(slot):
                self.move(slot, self.home(slot))
            self._moved.discard(slot)

    def home(self, slot: int) -> Server:
        """Who had a slot at first."""
        return next(each for index, each in enumerate(self.masters) if slot < SLOTS * (index + 1) // len(self.masters))

    def other(self, slot: int) -> Server:
        """A master that has not."""
        owner = self.owner(slot)
        return next(each for each in self.masters if each is not owner)

    def owner(self, slot: int) -> Server:
        """Who has a slot, as the first master that lives says."""
        for first, last, (_, port, *_), *_ in self.masters[0].tell("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(each for each in (*self.masters, *self.replicas) if each.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def begin_move(self, slot: int, to: Server) -> Server:
        """From now on keys may be at either end."""
        self._moved.add(slot)
        source = self.owner(slot)
        to.tell("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.tell("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        return source

    def move_keys(self, slot: int, source: Server, to: Server, count: int = 100) -> int:
        """Some keys of a slot; how many there were."""
        keys = source.tell("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.tell("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, to: Server) -> None:
        for server in (to, *(each for each in self.masters if each is not to)):
            server.tell("CLUSTER", "SETSLOT", slot, "NODE", to.id)

    def move(self, slot: int, to: Server) -> None:
        """A slot with all of its keys, as resharding tools do it."""
        source = self.begin_move(slot, to)
        while self.move_keys(slot, source, to):
            pass
        self.end_move(slot, to)


class Guarded:
    """A master with a replica, and Sentinels that watch them."""

    def __init__(self, master: Server, replica: Server, sentinels: list[Server]) -> None:
        self.master = master
        self.replica = replica
        self.sentinels = sentinels
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
        self.url = f"redis+sentinel://{hosts}/signage"

    def named(self) -> int:
        """The port of the master that the first Sentinel names."""
        return int(self.sentinels[0].tell("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "signage")[1])


class Valkeys:
    """All that a test starts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: list[Server] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        for server in self._servers:
            server.end()

    def server(self, name: str, *arguments: str) -> Server:
        server = Server(self._folder, name, *arguments)
        self._servers.append(server)
        return server

    def cluster(self, masters: int = 3, replicas: int = 0, *options: str) -> Cluster:
        """Takes two or three seconds: a node does not serve in its first two."""
        nodes = [self._node(f"node-{number}", *options) for number in range(masters * (1 + replicas))]
        first, others = nodes[:masters], nodes[masters:]
        for index, node in enumerate(first):
            share = (SLOTS * index // masters, SLOTS * (index + 1) // masters - 1)
            node.tell("CLUSTER", "ADDSLOTSRANGE", *share)
            node.tell("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in nodes[1:]:
            node.tell("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0].bus)
        until(lambda: all(known(node) == len(nodes) for node in nodes))
        for index, node in enumerate(others):
            node.tell("CLUSTER", "REPLICATE", first[index % masters].id)
        until(lambda: all(b"cluster_state:ok" in node.tell("CLUSTER", "INFO") for node in nodes))
        until(lambda: all(b"master_link_status:up" in node.tell("INFO", "replication") for node in others))
        return Cluster(first, others)

    def _node(self, name: str, *options: str) -> Server:
        cluster = ["--cluster-enabled", "yes", "--cluster-config-file", f"{name}.conf"]
        cluster += ["--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-port", str(pubsub := free_port())]
        cluster += ["--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"]
        # An append-only file of its own, for those whose options ask for one: they share a folder.
        server = self.server(name, "--save", "", "--appenddirname", f"{name}-aof", *cluster, *options)
        server.bus = pubsub
        return server

    def guarded(self, sentinels: int = 3) -> Guarded:
        quick = ["--save", "", "--repl-diskless-sync-delay", "0"]
        master = self.server("master", *quick)
        replica = self.server("replica", *quick, "--replicaof", f"127.0.0.1 {master.port}")
        until(lambda: b"master_link_status:up" in replica.tell("INFO", "replication"))
        watching = []
        for number in range(sentinels):
            file = self._folder / f"sentinel-{number}.conf"
            file.write_text(
                f"sentinel monitor signage 127.0.0.1 {master.port} {sentinels // 2 + 1}\n"
                f"sentinel down-after-milliseconds signage {DOWN_AFTER_MS}\n"
                "sentinel failover-timeout signage 3000\n"
            )
            watching.append(self.server(f"sentinel-{number}", str(file), "--sentinel"))
        until(lambda: all(self._complete(each, sentinels - 1) for each in watching))
        return Guarded(master, replica, watching)

    @staticmethod
    def _complete(sentinel: Server, others: int) -> bool:
        """It knows the replica and the other Sentinels."""
        flat = sentinel.tell("SENTINEL", "MASTER", "signage")
        state = dict(zip(flat[::2], flat[1::2], strict=True))
        return int(state[b"num-slaves"]) == 1 and int(state[b"num-other-sentinels"]) == others


def known(node: Server) -> int:
    """How many nodes one knows, itself among them, that are past their handshake."""
    lines = node.tell("CLUSTER", "NODES").decode().splitlines()
    return sum("handshake" not in line for line in lines)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited for long enough"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cannot_save(valkeys: Valkeys, folder: Path) -> Server:
    """A server whose last save failed: it answers reads, and each write and PING with MISCONF."""
    data = folder / "data"
    data.mkdir()
    server = valkeys.server("unsaved", "--dir", str(data))
    server.tell("CONFIG", "SET", "save", "3600 1")
    server.tell("SET", "k", "v")
    data.rmdir()
    server.tell("BGSAVE")
    until(lambda: b"rdb_last_bgsave_status:err" in server.tell("INFO", "persistence"))
    return server
