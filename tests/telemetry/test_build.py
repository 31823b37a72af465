"""The commit of `build_info`: only what is one."""

import json
from importlib import metadata

import pytest

from vizora_rt.telemetry import build

FULL = "5c1f0a2b3d4e5f60718293a4b5c6d7e8f9012345"


@pytest.mark.parametrize(
    ("release", "commit"),
    [
        (FULL, FULL),
        (FULL.upper(), FULL),
        (f" {FULL}\n", FULL),
        ("5c1f0a2", "5c1f0a2"),
        ("1" * 40, "1" * 40),
        ("a" * 64, "a" * 64),
        ("1.4.0+5c1f0a2", "5c1f0a2"),
        (f"vizora-rt@{FULL}", FULL),
        ("vizora-rt@1.4.0+5c1f0a2", "5c1f0a2"),
        ("v1.4.0-3-g5c1f0a2", "5c1f0a2"),
        ("v1.4.0-3-g1234567", "1234567"),
        ("v1.4.0-3-g5c1f0a2-dirty", "5c1f0a2"),
        ("1.4.1.dev3+g5c1f0a2", "5c1f0a2"),
        ("1.4.1.dev3+g5c1f0a2.d20261130", "5c1f0a2"),
        ("5c1f0a2-dirty", "5c1f0a2"),
        ("sha-5c1f0a2", "5c1f0a2"),
        ("sha-1234567", "1234567"),
        (f"git-{FULL}", FULL),
    ],
)
def test_a_release_that_names_a_commit(release: str, commit: str) -> None:
    assert build.commit(release) == commit


@pytest.mark.parametrize(
    "release",
    [
        "1.0.0",
        "v2",
        "20261130",
        "1.4.0+20261130",
        "release",
        "",
        "5c1f",
        "abcdef",
        "1.4.0-beta",
        "production",
        "g5c1f0a2x",
        "123e4567-e89b-12d3-a456-42661417400a",
        "2026.11.30",
        "1.4.0-rc.1",
        "staging-1234567",
        "sha-5c1f",
        "-dirty",
        "latest",
    ],
)
def test_a_version_is_no_commit(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PACKAGE", "no-such-package")
    assert build.commit(release) == "unknown"


class Installed:
    """A distribution with this in its direct_url.json."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def read_text(self, name: str) -> str | None:
        return self.text if name == "direct_url.json" else None


@pytest.mark.parametrize(
    ("text", "commit"),
    [
        (json.dumps({"url": "https://example.com/x.git", "vcs_info": {"vcs": "git", "commit_id": FULL}}), FULL),
        (json.dumps({"url": "file:///srv/vizora-rt", "dir_info": {"editable": True}}), "unknown"),
        ("no json", "unknown"),
        ("[]", "unknown"),
        (None, "unknown"),
    ],
)
def test_without_one_it_is_what_the_package_was_installed_from(
    text: str | None, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed(text))
    assert build.commit("1.0.0") == commit
    assert build.commit(f"1.0.0+{FULL}") == FULL
