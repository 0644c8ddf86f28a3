"""The process as a whole, on the fake engine: starts early, gets ready, stops clean."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import serve.main
from feedback.config import FeedbackConfig, KafkaSecurity
from feedback.ledger import LedgerUnavailable
from feedback.paths import DataPaths
from feedback.privacy import Redactor
from serve.config import ServeConfig
from serve.deps import ServeDeps
from serve.engines.base import EngineLost, EngineUnavailable
from serve.main import CannotStart, listen
from tests.fakes.engine import FakeEngine

SCRIPT = """
import sys
from pathlib import Path
import serve.main
from feedback.config import FeedbackConfig
from feedback.paths import DataPaths
from serve.config import ServeConfig
from tests.fakes.engine import FakeEngine

class Engine(FakeEngine):
    async def start(self):
        if sys.argv[3] == "broken":
            from serve.engines.base import EngineUnavailable
            raise EngineUnavailable("no such model; give another --model")
        await super().start()

serve.main.build_engine = lambda model, config: Engine()
config = ServeConfig(port=int(sys.argv[2]), shutdown_grace_s=1)
sys.exit(serve.main.run(config, FeedbackConfig(), DataPaths(Path(sys.argv[1])), "none", "127.0.0.1:1"))
"""


@contextmanager
def serving(folder: Path, port: int, engine: str = "good") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(port), engine], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until_ready(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("serving didn't get ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_without_a_broker_and_stops_clean_on_a_signal(tmp_path: Path, number: int) -> None:
    port = free_port()
    with serving(tmp_path, port) as process:
        until_ready(port)
        ask = {"messages": [{"role": "user", "content": "Hello?"}]}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            pair = client.post("/v1/pairs", json=ask).json()
            vote = client.post("/v1/votes", json={"pair_id": pair["pair_id"], "choice": "a"})
            assert vote.status_code == 201
            assert "hustings_outbox_pending 2.0" in client.get("/metrics").text
            assert "process_resident_memory_bytes" in client.get("/metrics").text
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = raw.recv(65_536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert body, "head and body came apart"
        process.send_signal(number)
        assert process.wait(20) == 0


def test_an_engine_that_cannot_start_ends_the_process_with_the_reason(tmp_path: Path) -> None:
    with serving(tmp_path, free_port(), "broken") as process:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "no such model; give another --model" in errors
        assert "Traceback" not in errors


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"can't listen on 127.0.0.1:{port}.*--port"):
            listen("127.0.0.1", port)
        with serving(tmp_path, port) as process:
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(errors.strip().splitlines()) == 1


def test_a_kafka_that_cannot_be_reached_as_set_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HUSTINGS_KAFKA_SASL_PASSWORD", raising=False)
    for of_a_process in ("logs.configure", "allow_open_files"):  # not of this one
        monkeypatch.setattr(f"serve.main.{of_a_process}", lambda *_, **__: None)
    security = KafkaSecurity(protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="ann")
    config = ServeConfig(port=free_port())
    status = serve.main.run(config, FeedbackConfig(kafka_security=security), DataPaths(tmp_path), "none", "127.0.0.1:1")
    assert status == 2
    assert "SASL_SSL wants a password; give it in HUSTINGS_KAFKA_SASL_PASSWORD" in capsys.readouterr().out


async def test_the_start_waits_for_a_database_that_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed together, serving comes up before PostgreSQL has recovered: that is no wrong setting to give up over."""
    answers: list[Exception | str] = [LedgerUnavailable("connection refused"), LedgerUnavailable("starting up"), "open"]

    def opened(url: str, redactor: object) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(serve.main.Ledger, "open", opened)
    monkeypatch.setattr(serve.main, "LEDGER_RETRY_S", 0.001)
    config = FeedbackConfig(ledger_url="postgresql://db/hustings")
    server = serve.main._Server(ServeConfig(), config, DataPaths(Path("/nowhere")), "none", "127.0.0.1:1")
    assert await server._open_ledger(Redactor(config.privacy)) == "open"
    monkeypatch.setattr(serve.main, "LEDGER_PATIENCE_S", 0.0)
    answers.append(LedgerUnavailable("connection refused"))
    with pytest.raises(LedgerUnavailable):
        await server._open_ledger(Redactor(config.privacy))


def test_a_ledger_that_is_away_ends_the_start_with_the_status_of_a_passing_failure(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").mkdir()
    with serving(tmp_path, free_port()) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "unable to open" in errors
    assert "Traceback" not in errors


async def test_an_engine_that_is_away_is_waited_for_and_one_that_is_lost_ends_serving(
    engine: FakeEngine, deps: ServeDeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM servers are restarted now and then; ending with them would take the pages and the votes away too."""
    monkeypatch.setattr(serve.main, "WATCH_S", 0.001)
    found: list[EngineUnavailable | None] = [None]

    async def health() -> None:
        if found[0] is not None:
            raise found[0]

    monkeypatch.setattr(engine, "check_health", health)
    server = serve.main._Server(deps.config, FeedbackConfig(), deps.paths, "none", "127.0.0.1:1")
    watching = asyncio.create_task(server._watch(deps))

    async def until(reason: str | None) -> None:
        async with asyncio.timeout(5):
            while deps.readiness.reason != reason:
                await asyncio.sleep(0.001)

    found[0] = EngineUnavailable("no vLLM server answers")
    await until("no vLLM server answers")
    found[0] = None
    await until(None)
    found[0] = EngineLost("the core process has died")
    with pytest.raises(EngineLost):
        await asyncio.wait_for(watching, 5)


async def test_answers_on_a_kept_connection_do_not_wait_for_the_clients_acknowledgement() -> None:
    """Nagle's algorithm and delayed acknowledgements make 40 ms of every answer that goes out in two pieces."""
    accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken = writer.get_extra_info("socket")
        accepted.set_result(bool(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        writer.close()

    with listen("127.0.0.1", 0) as sock:
        async with await asyncio.start_server(note, sock=sock):
            _, writer = await asyncio.open_connection(*sock.getsockname())
            assert await accepted
            writer.close()
