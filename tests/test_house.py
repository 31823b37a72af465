"""The rules of the house, read off the syntax trees. Each check is shown able to fail on a small bad source."""

import ast
import re
import subprocess
import sys
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
    ("metrics", "build", "device_series", "exposition", "credentials", "shapes", "scrub", "lines", "report"),
    ("net.*",),
    ("worker",),
    ("orphans", "process", "scrape", "supervisor"),
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
    "net.shards": "slots that are on their way are a cluster's: tests/net/test_cluster.py",
    "shell.options": "words of all commands, which the tests of each give",
    "shell.readers": "parsing and calling: tests/net/test_readers.py starts its commands as processes",
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
    missing = [f"{name} has no bench/{file}" for name, file in wanted.items() if file not in benchmarks]
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
    """Small sources by module name, with `_` for the dot: for the checks of the checks."""
    return {name.replace("_", ".", 1): ast.parse(text) for name, text in texts.items()}


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
                {"wire_http": "from vizora_rt.wire.session import X", "wire_session": ""},
                "wire.http imports wire.session, which is above it",
            ),
            (
                {"app_auth": "from vizora_rt.net import store", "net_store": ""},
                "app.auth imports net.store, which is above it",
            ),
            (
                {"supervisor": "def f():\n    from vizora_rt.cli import main", "cli": ""},
                "supervisor imports cli, which is above it",
            ),
            ({"novelty": ""}, "novelty has no layer"),
        ],
    )
    def test_upward_is_seen(self, texts: dict[str, str], problem: str) -> None:
        assert upward(parse(**texts)) == [problem]

    def test_downward_and_sideways_are_not(self) -> None:
        trees = parse(
            net_http="from vizora_rt import errors\nfrom vizora_rt.net import store\nimport os, vizora_rt",
            net_store="from vizora_rt.wire.resp import pack",
            wire_resp="import hiredis",
            errors="",
        )
        assert upward(trees) == []
        assert circles(trees) == []

    def test_circles_are_seen(self) -> None:
        trees = parse(
            net_a="from vizora_rt.net.b import X",
            net_b="from vizora_rt.net import c",
            net_c="import vizora_rt.net.a",
            net_d="import vizora_rt.net.a",
        )
        assert circles(trees) == ["net.a -> net.b -> net.c -> net.a"]

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
        trees = parse(net_store="from redis.asyncio import Redis", net_bus="import redis", cli="import os, msgspec")
        assert scattered(trees) == ["redis is imported in net.bus, net.store"]
        trees = parse(config="import msgspec", wire_messages="from msgspec import Struct")
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
            ("wire.http", "from vizora_rt.config import Limits", "wire.http imports config"),
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
        assert impure("app.auth", ast.parse("from vizora_rt.config import Auth")) == []


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
        assert unmeasured(set(modules()), {path.name for path in (ROOT / "bench").glob("test_*.py")}) == []

    def test_an_unmeasured_module_is_seen(self) -> None:
        known = set(UNMEASURED)
        assert unmeasured(known | {"wire.http", "net.http"}, {"test_http.py"}) == []
        assert unmeasured(known | {"wire.http", "app.auth"}, {"test_auth.py"}) == [
            "wire.http has no bench/test_http.py"
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
        """mypy and pytest tell tests/wire/test_http.py from bench/test_http.py by their packages."""
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
