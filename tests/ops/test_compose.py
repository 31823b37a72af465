"""ops/compose.yml: valid, and what it mounts, names and asks for is there. It is not started: that takes Docker."""

import os
import re
import secrets
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import run, tool
from vizora_rt import config
from vizora_rt.ops import files

ROOT = Path(__file__).parent.parent.parent
OPS = ROOT / "ops"
FILE = OPS / "compose.yml"
SECRET = secrets.token_hex(32)
SECRETS = ("DEVICE_JWT_SECRET", "JWT_SECRET", "INTERNAL_API_SECRET", "METRICS_TOKEN", "GRAFANA_PASSWORD")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))["services"]
    return made


def test_it_is_valid_and_asks_for_each_secret() -> None:
    command = [tool("docker-compose"), "-f", str(FILE), "config", "--quiet"]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **dict.fromkeys(SECRETS, "opaque")}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    del env["METRICS_TOKEN"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "METRICS_TOKEN is not set" in done.stderr
    asked = set(re.findall(r"\$\{(\w+):\?\1 is not set\}", FILE.read_text("utf-8")))
    assert asked == set(SECRETS)


def test_all_parts_are_there(services: dict[str, Any]) -> None:
    assert set(services) == {"gateway", "valkey", "prometheus", "alertmanager", "grafana"}


def test_what_is_mounted_is_there(services: dict[str, Any]) -> None:
    volumes = yaml.safe_load(FILE.read_text("utf-8"))["volumes"]
    sources = [mount.split(":")[0] for service in services.values() for mount in service.get("volumes", ())]
    for source in sources:
        if source.startswith("./"):
            assert (OPS / source).exists() or source == "./secrets", source
        else:
            assert source in volumes
    assert (ROOT / services["gateway"]["build"]["dockerfile"]).is_file()


def test_images_are_pinned(services: dict[str, Any]) -> None:
    images = [service["image"] for service in services.values() if "image" in service]
    assert len(images) == 4
    for image in images:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", image), image


def test_pages_are_on_loopback(services: dict[str, Any]) -> None:
    assert services["gateway"]["ports"] == ["3001:3001"]
    assert "ports" not in services["valkey"]
    for name in ("prometheus", "alertmanager", "grafana"):
        (port,) = services[name]["ports"]
        assert port.startswith("127.0.0.1:")


def test_the_gateway_s_environment_is_understood(services: dict[str, Any]) -> None:
    environ = {name: re.sub(r"\$\{\w+:[?-].*\}", "", value) or SECRET for name, value in given(services, "gateway")}
    environ["SENTRY_DSN"] = ""
    settings = config.with_secrets(config.load(None, environ))
    assert settings.environment == "production"
    assert settings.redis.url == "redis://valkey:6379/0"
    assert settings.metrics.token == SECRET
    assert settings.server.drain_seconds < int(services["gateway"]["stop_grace_period"].removesuffix("s"))


def given(services: dict[str, Any], name: str) -> list[tuple[str, str]]:
    return list(services[name]["environment"].items())


def test_prometheus_asks_the_services_by_name_and_with_the_token(services: dict[str, Any], tmp_path: Path) -> None:
    text = (ROOT / files.COMPOSE).read_text("utf-8")
    made = yaml.safe_load(text)
    job = made["scrape_configs"][0]
    hosts = {job["static_configs"][0]["targets"][0].split(":")[0] for job in made["scrape_configs"]}
    assert hosts <= set(services)
    assert made["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["alertmanager:9093"]
    assert job["authorization"] == {"type": "Bearer", "credentials_file": files.TOKEN_FILE}
    assert "localhost" not in text
    code, output = run("promtool", "check", "config", "--syntax-only", ROOT / files.COMPOSE)
    assert code == 0, output


def test_prometheus_finds_the_token_where_its_file_says(services: dict[str, Any], tmp_path: Path) -> None:
    """The entry point as the container runs it, with another program in the place of Prometheus."""
    shell, flag, script, name = services["prometheus"]["entrypoint"]
    token = tmp_path / "token"
    script = script.replace("$$", "$").replace(files.TOKEN_FILE, shlex.quote(str(token)))
    assert str(token) in script
    arguments = services["prometheus"]["command"]
    done = subprocess.run(
        [shell, flag, script.replace("/bin/prometheus", "printf '%s\\n'"), name, *arguments],
        env={"PATH": os.environ["PATH"], "METRICS_TOKEN": "opaque"},
        capture_output=True,
        text=True,
    )
    assert token.read_text() == "opaque"
    assert token.stat().st_mode & 0o777 == 0o600
    assert done.stdout.splitlines() == arguments
    assert "--storage.tsdb.retention.time=30d" in arguments


def test_grafana_gets_what_its_files_ask_for(services: dict[str, Any]) -> None:
    asked = {
        name
        for path in (OPS / "grafana/provisioning").rglob("*.yml")
        for name in re.findall(r"\$\{(\w+)\}", path.read_text("utf-8"))
    }
    assert asked == {"PROMETHEUS_URL", "DASHBOARDS_PATH"}
    environment = dict(given(services, "grafana"))
    assert asked <= set(environment)
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == environment["DASHBOARDS_PATH"]


def test_the_image_starts_the_service_with_what_the_package_needs() -> None:
    text = (OPS / "Dockerfile").read_text("utf-8")
    for line in re.findall(r"(?m)^COPY (.+) \S+$", text):
        for source in line.split():
            assert (ROOT / source).exists(), source
    assert "USER vizora" in text
    assert text.rstrip().endswith('ENTRYPOINT ["vizora-rt"]\nCMD ["serve"]')
