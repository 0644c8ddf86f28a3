"""The compose files and the image: what is written there exists, and fits what the processes need."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.config import DEFAULT_FILE, ENVIRONMENT, HustingsConfig, keys, load
from deploy.launch import common_environment
from feedback.kafka_security import KEY_PASSWORD, SASL_PASSWORD
from serve.config import ServeConfig
from serve.hosts import TrustedHosts

ROOT = Path(__file__).resolve().parents[2]


def compose() -> dict[str, Any]:
    text = (ROOT / "deploy" / "compose" / "compose.yaml").read_text(encoding="utf-8")
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def test_compose_gives_a_start_and_an_end_the_time_that_they_may_take() -> None:
    """After 5 minutes a serving that was loading was unhealthy, and `up` never started the trainer."""

    def seconds(time: str) -> int:
        return int(time[:-1]) * {"s": 1, "m": 60}[time[-1]]

    services = compose()["services"]
    health = services["serve"]["healthcheck"]
    assert seconds(health["start_period"]) >= ServeConfig().engine_start_timeout_s + 600
    assert seconds(services["serve"]["stop_grace_period"]) >= ServeConfig().shutdown_grace_s + 20
    assert seconds(services["curate"]["stop_grace_period"]) >= 15, "as the supervisor gives it; Docker's own are 10"
    assert seconds(services["train"]["stop_grace_period"]) >= 30
    # While PostgreSQL makes the database, a server for that alone answers on the socket.
    assert "127.0.0.1" in services["postgres"]["healthcheck"]["test"]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_compose_asks_serving_itself_how_it_is(status: int, healthy: bool) -> None:
    """Behind a company's proxy the proxy was asked for 127.0.0.1, and serving was never healthy."""
    asked: list[str] = []

    class Serving(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    program, *arguments = compose()["services"]["serve"]["healthcheck"]["test"][1:]
    assert program == "python"
    with HTTPServer(("127.0.0.1", 0), Serving) as server, free() as nobody:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, *(one.replace("8000", str(server.server_port)) for one in arguments)]
        environ = {**os.environ, "http_proxy": f"http://127.0.0.1:{nobody}", "no_proxy": ""}
        done = subprocess.run(command, env=environ, capture_output=True, check=False)
        server.shutdown()
    assert asked == ["/readyz"]
    assert (done.returncode == 0) is healthy


@contextmanager
def free() -> Iterator[int]:
    """A port that refuses: taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_compose_publishes_on_this_machine_only_and_mounts_what_exists() -> None:
    folder = ROOT / "deploy" / "compose"
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (folder / source).exists(), f"{name}: {source}"
            else:
                assert source in compose()["volumes"], f"{name}: {source}"
        for other in service.get("depends_on", {}):
            assert "healthcheck" in compose()["services"][other], f"{name} waits for the health of {other}"


def test_compose_settings_are_keys_of_the_configuration() -> None:
    for name in ("serve", "curate", "train"):
        command = compose()["services"][name]["command"]
        settings = {command[n + 1].split("=")[0] for n, argument in enumerate(command) if argument == "--set"}
        assert settings <= set(keys())
        assert command[0] == name


def test_compose_hands_on_how_kafka_is_reached() -> None:
    """Each `${KAFKA_X:-}` as HUSTINGS_KAFKA_X, a variable of a key or of a password; the example names no other."""
    known = {*ENVIRONMENT, SASL_PASSWORD, KEY_PASSWORD}
    environment: dict[str, str] = compose()["services"]["serve"]["environment"]
    kafka = {name: value for name, value in environment.items() if name.startswith("HUSTINGS_KAFKA_")}
    assert set(kafka) <= known
    assert all(value == f"${{{name.removeprefix('HUSTINGS_')}:-}}" for name, value in kafka.items())
    example = (ROOT / "deploy" / "compose" / "example.env").read_text(encoding="utf-8")
    named = dict(re.findall(r"^# (KAFKA_[A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert {f"HUSTINGS_{name}" for name in named} <= set(kafka)
    told = {f"HUSTINGS_{name}": value for name, value in named.items()}
    security = load(None, (), environment=told).feedback.kafka_security
    assert (security.protocol, security.ssl_cafile) == ("SASL_SSL", Path("/certs/ca.pem"))
    assert "./certs:/certs:ro" in compose()["services"]["serve"]["volumes"]


def test_images_hold_no_passwords_and_no_keys() -> None:
    """`COPY . .` took .env along, and a hustings.toml that every process would have read there."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {"**/.env", "deploy/compose/certs", DEFAULT_FILE} <= set(ignored)


def test_in_compose_serving_is_asked_by_its_services_name_and_by_no_strangers() -> None:
    service, scraped = compose()["services"], ROOT / "deploy" / "compose" / "prometheus.yml"
    command = service["serve"]["command"]
    settings = [command[n + 1] for n, argument in enumerate(command) if argument == "--set"]
    hosts = TrustedHosts(load(None, settings, environment={"HUSTINGS_SERVE_HOST": "0.0.0.0"}).serve)

    def trusted(host: str) -> bool:
        return hosts.trust({"type": "http", "headers": [(b"host", host.encode())]})

    assert "http://serve:8000" in service["train"]["command"]
    assert "serve:8000" in scraped.read_text(encoding="utf-8")
    assert all(map(trusted, ("serve:8000", "127.0.0.1:8000", "localhost:8000")))
    assert not trusted("evil.example:8000")


def test_compose_wants_every_secret_named_in_the_example() -> None:
    text = (ROOT / "deploy" / "compose" / "compose.yaml").read_text(encoding="utf-8")
    wanted = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    example = (ROOT / "deploy" / "compose" / "example.env").read_text(encoding="utf-8")
    assert wanted == {line.rstrip("=") for line in example.splitlines() if line.endswith("=")}


def test_processes_of_the_image_get_what_those_of_up_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries reported their use from the image; at home they don't."""
    image = (ROOT / "deploy" / "compose" / "Dockerfile").read_text(encoding="utf-8")
    told = dict(re.findall(r"\b([A-Z_]+)=([^\s\\]+)", image))
    for name in told:
        monkeypatch.delenv(name, raising=False)
    of_up = common_environment(HustingsConfig(), coloured=False) | {"HUSTINGS_LOG_FORMAT": "json"}
    at_home = {"PYTHONPATH", "PYTHONWARNINGS", *ENVIRONMENT}
    assert {name: told.get(name) for name in of_up.keys() - at_home} == {n: of_up[n] for n in of_up.keys() - at_home}
