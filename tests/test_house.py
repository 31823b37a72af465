"""The rules of the house, read off the syntax trees. Each check is shown able to fail on a small bad source."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "vizora_rt"

LAYERS: tuple[tuple[str, ...], ...] = (
    # Lowest first. A module imports from lower layers, and from its own as long as no circle closes.
    ("early", "errors", "cpus", "secret_strength"),
    ("config",),
    (
        "wire.http",
        "wire.frames",
        "wire.proxy",
        "wire.resp",
        "wire.messages",
        "wire.payloads",
        "wire.times",
        "wire.printable",
    ),
    ("wire.session", "wire.socketio", "wire.bells", "wire.bodies"),
    ("app.*",),
    ("telemetry.*",),
    ("net.timer_wheel",),
    ("net.redis.*",),
    ("net.valkey.*",),
    ("net.streams.*",),
    ("net.presence.*",),
    ("net.commands.*",),
    ("net.access.*",),
    ("net.server.*",),
    ("net.gateway.*",),
    ("net.api.*",),
    ("client.*",),
    ("service.*",),
    ("ops", "ops.*"),
    ("shell.*",),
    ("cli",),
    ("__main__",),
)

SHARED_DEPENDENCIES = {
    # A third-party package is imported in one file; it can be replaced there. These have a reason for more.
    "msgspec": {
        "config",
        "wire.messages",
        "wire.payloads",
        "wire.bells",
        "wire.bodies",
    },  # the places where outside data gets its schema
    "click": {
        "cli",
        "shell.options",
        "shell.service",
        "shell.tokens",
        "shell.readers",
        "shell.devices",
        "shell.operations",
    },  # what is typed
}

IMPURE = frozenset(
    {"asyncio", "concurrent", "logging", "multiprocessing", "os", "random", "select", "signal", "socket", "subprocess",
     "sys", "threading", "time"}
)  # fmt: skip
"""What `wire` and `app` may not import: they neither wait, look at a clock, throw dice nor write. `secrets` may be
used (keys and masks must not be guessed), but decides nothing."""

IMPURITIES = {
    ("wire.session", "random"): "masks of client frames; the server, which is what is decided on, masks nothing",
}

CLOCKS = frozenset({"now", "utcnow", "today"})

WITHOUT_TEST = {
    "__main__": "one call of cli.main, which tests/test_cli.py starts as a process",
    "net.redis.slots": "slots that are on their way are a cluster's: tests/net/redis/test_cluster.py",
    "shell.options": "words of all commands, which the tests of each give",
    "shell.readers": "parsing and calling: tests/net/streams/test_reader.py starts its commands as processes",
    "net.redis.address": "its URLs and refusals are of a connection: tests/net/redis/test_connection.py",
    "net.redis.blocking": "the same without a loop: tests/net/redis/test_connection.py",
    "net.presence.user_session": "at the door and later: tests/net/access/test_session_check.py",
}

WHOLE_SYSTEM = {
    # Tests of no single module, and what they are of.
    "tests/test_house.py": "the rules of the house themselves",
    "tests/bench/": "the load generator, which stands outside the package",
    "tests/test_examples.py": "the programs in examples/, against the running service",
    "tests/conformance/": "RFC 6455, Socket.IO and hostile peers against the running service",
    "tests/ops/test_contract.py": "whatever asks for a figure, against the registry",
    "tests/ops/test_queries.py": "whatever asks for a figure, of a real Prometheus",
    "tests/ops/test_receivers.py": "what alertmanager.yml sends, of the real Alertmanager",
    "tests/ops/test_compose.py": "the compose file and what it mounts",
    "tests/ops/test_checklist.py": "the production checklist, against what the owner asked for",
    "tests/system/": "the service as a process: start, roll, crash, drain",
}

UNMEASURED = {
    "app.events": "two constants and a tuple",
    "wire.printable": "what people read, on cold paths only",
    "app.play_script": "runs in Redis; the scenario `plays` measures it there",
}
"""Modules of `wire` and `app` without a micro-benchmark, and why they need none."""

NO_NAMES = frozenset({"util", "utils", "helper", "helpers", "common", "misc"})

FORBIDDEN_TEXT = {
    "a path of somebody's home": re.compile(r"(?<![\w.-])/(?:home|Users)/\w|(?<![\w.-])/root/"),
    "an open end": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "a merge conflict": re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE),
}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name without the package: `wire.http`."""
    return {name_of(path): ast.parse(path.read_text("utf-8")) for path in sources(PACKAGE)}


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that `tree` imports; of `from a import b` both `a` and `a.b`, for `b` may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST, known: set[str]) -> set[str]:
    """Which of the `known` modules `tree` imports."""
    names = {name.removeprefix(f"{PACKAGE}.") for name in imports(tree) if name.startswith(f"{PACKAGE}.")}
    return names & known


def layer(name: str) -> int | None:
    for rank, patterns in enumerate(LAYERS):
        for pattern in patterns:
            if name == pattern or (pattern.endswith(".*") and name.startswith(pattern[:-1])):
                return rank
    return None


def upward(trees: dict[str, ast.Module]) -> list[str]:
    found = []
    for name, tree in trees.items():
        rank = layer(name)
        if rank is None:
            found.append(f"{name} has no layer")
            continue
        for other in own_imports(tree, set(trees)):
            above = layer(other)
            if above is not None and above > rank:
                found.append(f"{name} imports {other}, which is above it")
    return sorted(found)


def circles(trees: dict[str, ast.Module]) -> list[str]:
    """Circles of imports, each told once."""
    graph = {name: sorted(own_imports(tree, set(trees)) - {name}) for name, tree in trees.items()}
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            found.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    return found


def third_party(tree: ast.AST) -> set[str]:
    tops = {name.partition(".")[0] for name in imports(tree) if not name.startswith(".")}
    return tops - sys.stdlib_module_names - {PACKAGE}


def scattered(trees: dict[str, ast.Module]) -> list[str]:
    where: dict[str, set[str]] = {}
    for name, tree in trees.items():
        for dependency in third_party(tree):
            where.setdefault(dependency, set()).add(name)
    return sorted(
        f"{dependency} is imported in {', '.join(sorted(files))}"
        for dependency, files in where.items()
        if len(files) > 1 and not files <= SHARED_DEPENDENCIES.get(dependency, set())
    )


def hidden(tree: ast.Module) -> list[str]:
    """Imports that the import law would not see, or that it would see and Python would not."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and next(imports(node), None) is not None:
            found.append(f"{node.lineno}: import inside a function")
        elif isinstance(node, ast.Name | ast.Attribute | ast.alias):
            name = {ast.Name: "id", ast.Attribute: "attr", ast.alias: "name"}[type(node)]
            if getattr(node, name) in ("TYPE_CHECKING", "__import__", "import_module"):
                found.append(f"{node.lineno}: {getattr(node, name)}")
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"{node.lineno}: relative import")
    return found


def impure(name: str, tree: ast.Module) -> list[str]:
    tops = {each.partition(".")[0] for each in imports(tree)} & IMPURE
    found = [f"{name} imports {top}" for top in sorted(tops) if (name, top) not in IMPURITIES]
    if name.startswith("wire.") and "config" in own_imports(tree, {"config"}):
        found.append(f"{name} imports config")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
            found.append(f"{name}:{node.lineno} asks a clock")
    return found


def without_docstring(tree: ast.Module) -> bool:
    return not (ast.get_docstring(tree) or "").strip()


def mirror(packaged: set[str], tests: set[str]) -> list[str]:
    """`packaged`: module names. `tests`: paths from the root, with slashes."""
    wanted = {name: "/".join(("tests", *name.split(".")[:-1], f"test_{name.split('.')[-1]}.py")) for name in packaged}
    missing = [
        f"{name} has no {path}" for name, path in wanted.items() if path not in tests and name not in WITHOUT_TEST
    ]
    stray = [
        f"{path} mirrors no module"
        for path in tests - set(wanted.values())
        if not any(path == each or (each.endswith("/") and path.startswith(each)) for each in WHOLE_SYSTEM)
    ]
    return sorted(missing + stray)


def unmeasured(packaged: set[str], benchmarks: set[str]) -> list[str]:
    """`packaged`: module names. `benchmarks`: file names of micro-benchmarks."""
    pure = {name for name in packaged if name.startswith(("wire.", "app."))}
    wanted = {name: f"test_{name.partition('.')[2]}.py" for name in pure - set(UNMEASURED)}
    missing = [f"{name} has no bench/micro/{file}" for name, file in wanted.items() if file not in benchmarks]
    return sorted(missing + [f"{name} is no module" for name in UNMEASURED if name not in packaged])


def tracked() -> list[Path]:
    """What git knows; of a tree without git, nothing."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def forbidden(text: str, checkout: Path) -> list[str]:
    patterns = dict(FORBIDDEN_TEXT)
    if len(checkout.parts) > 2:  # "/app" alone would be found in many an honest path
        patterns["the path of this checkout"] = re.compile(rf"(?<![\w.-]){re.escape(str(checkout))}\b")
    return [what for what, pattern in patterns.items() if pattern.search(text)]


def parse(**texts: str) -> dict[str, ast.Module]:
    """Small sources by module name, with `__` for the dot: for the checks of the checks."""
    return {name.replace("__", ".") if name != "__main__" else name: ast.parse(text) for name, text in texts.items()}


class TestImportLaw:
    def test_strictly_downward(self) -> None:
        assert upward(modules()) == []

    def test_no_circles(self) -> None:
        assert circles(modules()) == []

    def test_no_hidden_imports(self) -> None:
        assert {name: found for name, tree in modules().items() if (found := hidden(tree))} == {}

    def test_one_dependency_in_one_file(self) -> None:
        assert scattered(modules()) == []

    @pytest.mark.parametrize(
        ("texts", "problem"),
        [
            ({"errors": "from vizora_rt import config", "config": ""}, "errors imports config, which is above it"),
            ({"errors": "import vizora_rt.config", "config": ""}, "errors imports config, which is above it"),
            (
                {"wire__http": "from vizora_rt.wire.session import X", "wire__session": ""},
                "wire.http imports wire.session, which is above it",
            ),
            (
                {"app__auth": "from vizora_rt.net.redis import client", "net__redis__client": ""},
                "app.auth imports net.redis.client, which is above it",
            ),
            (
                {"service__supervisor": "def f():\n    from vizora_rt.cli import main", "cli": ""},
                "service.supervisor imports cli, which is above it",
            ),
            (
                {"net__redis__client": "from vizora_rt.net.gateway import hub", "net__gateway__hub": ""},
                "net.redis.client imports net.gateway.hub, which is above it",
            ),
            ({"novelty": ""}, "novelty has no layer"),
            ({"net__novelty": ""}, "net.novelty has no layer"),
        ],
    )
    def test_upward_is_seen(self, texts: dict[str, str], problem: str) -> None:
        assert upward(parse(**texts)) == [problem]

    def test_downward_and_sideways_are_not(self) -> None:
        trees = parse(
            net__server__http="from vizora_rt import errors\nfrom vizora_rt.net.redis import client\nimport os",
            net__redis__client="from vizora_rt.wire.resp import pack",
            wire__resp="import hiredis",
            errors="",
        )
        assert upward(trees) == []
        assert circles(trees) == []

    def test_circles_are_seen(self) -> None:
        trees = parse(
            app__a="from vizora_rt.app.b import X",
            app__b="from vizora_rt.app import c",
            app__c="import vizora_rt.app.a",
            app__d="import vizora_rt.app.a",
        )
        assert circles(trees) == ["app.a -> app.b -> app.c -> app.a"]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("def f():\n    import os", "1: import inside a function"),
            ("class A:\n  async def f(self):\n    if 1:\n      from os import path", "2: import inside a function"),
            ("from typing import TYPE_CHECKING", "1: TYPE_CHECKING"),
            ("import typing\nif typing.TYPE_CHECKING:\n    import os", "2: TYPE_CHECKING"),
            ("import importlib\nimportlib.import_module('os')", "2: import_module"),
            ("__import__('os')", "1: __import__"),
            ("from . import errors", "1: relative import"),
        ],
    )  # fmt: skip
    def test_hidden_imports_are_seen(self, text: str, problem: str) -> None:
        assert hidden(ast.parse(text)) == [problem]

    def test_open_imports_are_not(self) -> None:
        assert hidden(ast.parse("try:\n    import fast\nexcept ImportError:\n    fast = None\ndef f(): pass")) == []

    def test_a_scattered_dependency_is_seen(self) -> None:
        trees = parse(net__a="from redis.asyncio import Redis", net__b="import redis", cli="import os, msgspec")
        assert scattered(trees) == ["redis is imported in net.a, net.b"]
        trees = parse(config="import msgspec", wire__messages="from msgspec import Struct")
        assert scattered(trees) == []
        assert scattered({**trees, **parse(cli="import msgspec")}) == [
            "msgspec is imported in cli, config, wire.messages"
        ]


class TestPurity:
    def test_wire_and_app(self) -> None:
        assert [
            line
            for name, tree in modules().items()
            if name.startswith(("wire.", "app."))
            for line in impure(name, tree)
        ] == []  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "text", "problem"),
        [
            ("wire.http", "import asyncio.streams", "wire.http imports asyncio"),
            ("wire.http", "from time import monotonic", "wire.http imports time"),
            ("app.auth", "import logging as log", "app.auth imports logging"),
            ("app.auth", "def f():\n    import socket", "app.auth imports socket"),
            ("app.auth", "from os import environ", "app.auth imports os"),
            ("app.auth", "import random", "app.auth imports random"),
            ("wire.frames", "from random import getrandbits", "wire.frames imports random"),
            ("wire.http", "from vizora_rt.config import LimitSettings", "wire.http imports config"),
            ("app.auth", "from datetime import datetime\nx = datetime.now()", "app.auth:2 asks a clock"),
        ],
    )
    def test_the_impure_is_seen(self, name: str, text: str, problem: str) -> None:
        assert impure(name, ast.parse(text)) == [problem]

    def test_the_pure_is_not(self) -> None:
        text = (
            "import base64, binascii, hashlib, hmac, secrets\nfrom datetime import datetime\ndatetime.fromisoformat('')"
        )
        assert impure("wire.http", ast.parse(text)) == []
        assert impure("app.auth", ast.parse("from vizora_rt.config import AuthSettings")) == []


class TestShape:
    def test_tests_mirror_the_package(self) -> None:
        tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
        assert mirror(set(modules()), tests) == []

    def test_a_crooked_mirror_is_seen(self) -> None:
        assert mirror({"wire.http", "cli"}, {"tests/wire/test_http.py", "tests/test_cli.py"}) == []
        assert mirror({"wire.http"}, {"tests/test_http.py"}) == [
            "tests/test_http.py mirrors no module",
            "wire.http has no tests/wire/test_http.py",
        ]
        assert mirror({"__main__"}, {"tests/test_house.py", "tests/conformance/test_anything.py"}) == []

    def test_each_pure_module_is_measured(self) -> None:
        assert unmeasured(set(modules()), {path.name for path in (ROOT / "bench/micro").glob("test_*.py")}) == []

    def test_an_unmeasured_module_is_seen(self) -> None:
        known = set(UNMEASURED)
        assert unmeasured(known | {"wire.http", "net.http"}, {"test_http.py"}) == []
        assert unmeasured(known | {"wire.http", "app.auth"}, {"test_auth.py"}) == [
            "wire.http has no bench/micro/test_http.py"
        ]
        assert unmeasured(known - {"app.events"}, set()) == ["app.events is no module"]

    def test_each_module_begins_with_its_job(self) -> None:
        silent = [
            path.relative_to(ROOT).as_posix()
            for folder in (PACKAGE, "tests", "bench")
            for path in sources(folder)
            if without_docstring(ast.parse(path.read_text("utf-8")))
        ]
        assert silent == []

    def test_a_module_without_a_word_is_seen(self) -> None:
        assert without_docstring(ast.parse("import os"))
        assert without_docstring(ast.parse("import os\n'late'"))
        assert without_docstring(ast.parse("''"))
        assert not without_docstring(ast.parse("'''Does one thing.'''"))

    def test_packages_are_empty(self) -> None:
        folders = [ROOT / PACKAGE, ROOT / "tests", ROOT / "bench"]
        full = [path for folder in folders for path in folder.rglob("__init__.py") if path.stat().st_size]
        assert full == []

    def test_every_folder_is_a_package(self) -> None:
        """mypy and pytest tell tests/wire/test_http.py from bench/micro/test_http.py by their packages."""
        bare = {
            path.parent
            for folder in (PACKAGE, "tests", "bench")
            for path in (ROOT / folder).rglob("*.py")
            if not (path.parent / "__init__.py").exists()
        }
        assert bare == set()

    def test_a_name_says_something(self) -> None:
        assert [name for name in modules() if name.split(".")[-1] in NO_NAMES] == []


class TestText:
    def test_tracked_files(self) -> None:
        found = {}
        for path in tracked():
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            if path != Path(__file__) and (problems := forbidden(text, ROOT)):
                found[path.relative_to(ROOT).as_posix()] = problems
        assert found == {}

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("see /home/ann/notes", "a path of somebody's home"),
            ('"/Users/ann"', "a path of somebody's home"),
            ("cd /root/x", "a path of somebody's home"),
            ("# TODO: later", "an open end"),
            ("<<<<<<< HEAD", "a merge conflict"),
            ("python /srv/ann/gateway/run", "the path of this checkout"),
        ],
    )
    def test_forbidden_text_is_seen(self, text: str, problem: str) -> None:
        assert forbidden(text, Path("/srv/ann/gateway")) == [problem]

    def test_honest_text_is_not(self) -> None:
        text = "vizora_rt/home/x, $HOME/.local, <https://h/root/>, net/app/x, mastodon"
        assert forbidden(text, Path("/app")) == []


OLD_WORDS = frozenset(
    {
        "Bus",
        "Ear",
        "Doorbells",
        "Claims",
        "Claim",
        "Statuses",
        "Orders",
        "Asker",
        "Changes",
        "Tally",
        "Absence",
        "Silence",
        "Reminder",
        "Courier",
        "Tenants",
        "Lobby",
        "Door",
        "Turns",
        "Budget",
        "Meter",
        "Guarded",
        "Nowhere",
        "Aside",
        "Counted",
        "Terms",
        "Notices",
        "Pulse",
        "Scrapes",
        "Operators",
        "Departure",
        "place_of",
        "enlist",
        "delist",
        "distrust",
        "astray",
        "partly_up",
        "UNASKED",
        "knock",
        "asker",
        "bell",
    }
)
"""Identifiers that the package no longer uses; docs/glossary.md has the words of today."""

LONG = 300
"""Lines of a file. A longer one says in its docstring why it is not split."""


def class_names(tree: ast.Module) -> list[str]:
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def repeated(trees: dict[str, ast.Module]) -> list[str]:
    """Names of classes that more than one class has."""
    counted = Counter(name for tree in trees.values() for name in class_names(tree))
    return sorted(name for name, count in counted.items() if count > 1)


def old_words(tree: ast.Module) -> list[str]:
    """Old words that are names of something in `tree`."""
    found = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str) and (name in OLD_WORDS or name.removeprefix("_") in OLD_WORDS):
                found.add(name)
    return sorted(found)


def too_long(text: str) -> bool:
    """Whether a file has more than LONG lines and no reason for it."""
    reason = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    return text.count("\n") > LONG and not re.search(r"(?:Past|Over) 300 lines because", reason)


def listed(text: str) -> set[str]:
    """The modules in a list of README or ARCHITECTURE: a line for each folder, and below it the names."""
    found: set[str] = set()
    folder: tuple[str, ...] | None = None
    for line in text.splitlines():
        if match := re.match(rf"    {PACKAGE}/(?:([\w/]+)/)?(?: |$)", line):
            folder = tuple((match[1] or "").split("/")) if match[1] else ()
        elif folder is not None and re.fullmatch(r" {8}[\w, ]+", line):
            found |= {".".join((*folder, name)) for name in line.replace(",", " ").split()}
        else:
            folder = None
    return found


class TestNames:
    def test_a_class_name_stands_once(self) -> None:
        assert repeated(modules()) == []

    def test_a_repeated_name_is_seen(self) -> None:
        assert repeated(parse(app__a="class X: pass", app__b="class X: pass\nclass Y: pass")) == ["X"]

    def test_old_words_are_gone(self) -> None:
        assert {name: found for name, tree in modules().items() if (found := old_words(tree))} == {}

    def test_an_old_word_is_seen(self) -> None:
        assert old_words(ast.parse("def f(bell): self._bell = Bus()")) == ["Bus", "_bell", "bell"]
        assert old_words(ast.parse("'bell'  # bell")) == []


class TestLength:
    def test_a_long_file_has_a_reason(self) -> None:
        assert [path.name for path in sources(PACKAGE) if too_long(path.read_text("utf-8"))] == []

    def test_a_long_file_without_a_reason_is_seen(self) -> None:
        assert too_long('"""Does one thing."""\n' + "x = 1\n" * LONG)
        assert not too_long('"""Does one thing.\n\nOver 300 lines because it is a table.\n"""\n' + "x = 1\n" * LONG)
        assert not too_long('"""Does one thing."""\n')


class TestPapers:
    @pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md"])
    def test_each_module_is_listed(self, page: str) -> None:
        assert listed((ROOT / page).read_text("utf-8")) == set(modules())

    def test_what_is_listed_is_read(self) -> None:
        text = (
            "    vizora_rt/    all\n        cli, config\n    vizora_rt/net/redis/\n        client,\n        keys\ntext"
        )
        assert listed(text) == {"cli", "config", "net.redis.client", "net.redis.keys"}
