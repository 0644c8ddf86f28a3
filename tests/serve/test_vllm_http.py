"""Several vLLM servers as one engine, played by a stub that speaks their HTTP: routing, loss, repair."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from feedback.contracts import Message
from serve.config import ServeConfig
from serve.engines.base import (
    AdapterLoadFailed,
    AnswerBroken,
    EngineLost,
    EngineOverloaded,
    EngineUnavailable,
    GenerationRequest,
    InvalidSampling,
    PromptTooLong,
    Sampling,
)
from serve.engines.http_wire import Unreachable
from serve.engines.vllm_http import VllmHttpEngine


class StubServer:
    """One server's state."""

    def __init__(self) -> None:
        self.down = False
        self.adapters: dict[str, str] = {}
        self.served: list[str] = []
        self.refuse: tuple[int, str] | None = None
        self.refuse_load = False
        self.load_status = 200
        self.models: Reply | None = None
        self.base = "base"
        self.cut_after: int | None = None
        self.ending: str | None = "length"
        self.gate = asyncio.Event()
        self.gate.set()

    async def tokens(self, count: int) -> AsyncIterator[bytes]:
        for at in range(count):
            await self.gate.wait()
            if at == self.cut_after:
                raise Unreachable("cut")
            choice = {
                "index": 0,
                "text": "x",
                "token_ids": [at],
                "finish_reason": self.ending if at == count - 1 else None,
            }
            yield f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
        yield b"data: [DONE]\n\n"


class Reply:
    """An answer of a stub server."""

    def __init__(self, status: int, body: object = None, content: AsyncIterator[bytes] | None = None) -> None:
        self.status = status
        self._body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._content = content

    async def read(self) -> bytes:
        return self._body

    async def pieces(self) -> AsyncIterator[bytes]:
        assert self._content is not None
        async for piece in self._content:
            half = len(piece) // 2  # a network cuts where it likes
            yield piece[:half]
            yield piece[half:]


class Servers:
    """A network of stub servers, by host name; keeps `HttpWire`."""

    def __init__(self, *names: str) -> None:
        self.by_name = {name: StubServer() for name in names}

    def __getitem__(self, name: str) -> StubServer:
        return self.by_name[name]

    @asynccontextmanager
    async def send(self, method: str, url: str, body: bytes | None, *, within_s: float | None) -> AsyncIterator[Reply]:
        server = self.by_name[urlsplit(url).hostname or ""]
        if server.down:
            raise Unreachable("refused")
        yield self._answer(server, urlsplit(url).path, json.loads(body or b"{}"))

    async def close(self) -> None:
        """There is nothing to close."""

    def _answer(self, server: StubServer, path: str, body: dict[str, str]) -> Reply:
        if path == "/v1/models":
            if server.models is not None:
                return server.models
            cards = [{"id": server.base, "max_model_len": 64, "parent": None}]
            cards += [{"id": name, "root": root, "parent": "base"} for name, root in server.adapters.items()]
            return Reply(200, {"data": cards})
        if path == "/version":
            return Reply(200, {"version": "1"})
        if path == "/v1/load_lora_adapter":
            return self._load(server, body)
        if path == "/v1/unload_lora_adapter":
            return Reply(200 if server.adapters.pop(body["lora_name"], None) else 404)
        if path == "/v1/completions":
            return self._complete(server, body)
        return Reply(200)

    def _load(self, server: StubServer, body: dict[str, str]) -> Reply:
        if server.load_status != 200:
            return Reply(server.load_status, {"detail": "Not Found"})
        if server.refuse_load or body["lora_name"] in server.adapters:
            return Reply(400, {"error": {"message": "has already been loaded", "code": 400}})
        server.adapters[body["lora_name"]] = body["lora_path"]
        return Reply(200)

    def _complete(self, server: StubServer, body: dict[str, str]) -> Reply:
        if server.refuse:
            return Reply(server.refuse[0], {"error": {"message": server.refuse[1]}})
        model = str(body["model"])
        if model != "base" and model not in server.adapters:
            return Reply(404, {"error": {"message": f"{model} does not exist"}})
        server.served.append(model)
        return Reply(200, content=server.tokens(int(body["max_tokens"])))


@pytest.fixture
def servers() -> Servers:
    return Servers("one", "two")


@pytest.fixture
async def engine(servers: Servers) -> AsyncIterator[VllmHttpEngine]:
    config = ServeConfig(engine_poll_s=0.01, engine_start_timeout_s=1.0, max_loras=2)
    made = VllmHttpEngine([f"http://{name}/v1" for name in servers.by_name], config, wire=servers)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return tmp_path


def request(adapter: str | None = None, tokens: int = 3) -> GenerationRequest:
    return GenerationRequest((1, 2), Sampling(max_tokens=tokens), "r", adapter)


async def ask(engine: VllmHttpEngine, wanted: GenerationRequest) -> list[int]:
    return [token async for chunk in engine.generate(wanted) for token in chunk.token_ids]


async def until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_requests_go_to_the_least_loaded_server(engine: VllmHttpEngine, servers: Servers) -> None:
    for name in ("one", "two"):
        servers[name].gate.clear()
    running = [asyncio.create_task(ask(engine, request())) for _ in range(4)]
    await until(lambda: len(servers["one"].served) + len(servers["two"].served) == 4)
    assert len(servers["one"].served) == len(servers["two"].served) == 2
    for name in ("one", "two"):
        servers[name].gate.set()
    assert await asyncio.gather(*running) == [[0, 1, 2]] * 4


async def test_a_server_lost_before_the_first_token_is_replaced(engine: VllmHttpEngine, servers: Servers) -> None:
    servers["one"].cut_after = 0
    assert await asyncio.gather(*(ask(engine, request()) for _ in range(4))) == [[0, 1, 2]] * 4


async def test_a_server_lost_in_the_middle_ends_the_stream_with_an_error(
    servers: Servers, engine: VllmHttpEngine
) -> None:
    for name in ("one", "two"):
        servers[name].cut_after = 2
    got: list[int] = []
    with pytest.raises(EngineUnavailable):
        async for chunk in engine.generate(request()):
            got += chunk.token_ids
    assert got == [0, 1]
    assert engine.load().running == 0


@pytest.mark.parametrize("ending", ["abort", "error", "nonsense", None])
async def test_an_answer_that_a_server_breaks_off_is_an_error(
    engine: VllmHttpEngine, servers: Servers, ending: str | None
) -> None:
    for server in servers.by_name.values():
        server.ending = ending
    with pytest.raises(AnswerBroken):
        await ask(engine, request())
    await engine.check_health()
    assert engine.load().running == 0


async def test_what_is_broken_off_before_the_first_token_another_server_answers(
    engine: VllmHttpEngine, servers: Servers
) -> None:
    servers["one"].ending = "error"
    assert await ask(engine, request(tokens=1)) == [0]
    assert servers["two"].served == ["base"]


async def test_no_server_left_is_unavailable_and_unhealthy_until_one_is_back(
    engine: VllmHttpEngine, servers: Servers
) -> None:
    for name in ("one", "two"):
        servers[name].down = True
    with pytest.raises(EngineUnavailable):
        await ask(engine, request())
    with pytest.raises(EngineUnavailable):
        await engine.check_health()
    servers["two"].down = False
    await until(lambda: any(server.up for server in engine._servers))
    assert await ask(engine, request()) == [0, 1, 2]


async def test_an_adapter_is_asked_only_of_servers_that_confirmed_it(
    engine: VllmHttpEngine, servers: Servers, folder: Path
) -> None:
    servers["one"].down = True
    await engine.load_adapter("policy-000001", folder)
    assert set(servers["two"].adapters) == {"policy-000001"}
    for _ in range(3):
        await ask(engine, request("policy-000001"))
    assert servers["one"].served == []
    assert servers["two"].served == ["policy-000001"] * 3


async def test_a_server_that_comes_back_empty_gets_its_adapters_again(
    engine: VllmHttpEngine, servers: Servers, folder: Path
) -> None:
    await engine.load_adapter("policy-000001", folder)
    servers["one"].adapters.clear()
    assert await asyncio.gather(*(ask(engine, request("policy-000001")) for _ in range(2))) == [[0, 1, 2]] * 2
    await until(lambda: "policy-000001" in servers["one"].adapters)


async def test_a_refused_adapter_stays_nowhere(engine: VllmHttpEngine, servers: Servers, folder: Path) -> None:
    servers["two"].refuse_load = True
    with pytest.raises(AdapterLoadFailed):
        await engine.load_adapter("policy-000001", folder)
    assert servers["one"].adapters == {}
    assert engine.adapters() == frozenset()


async def test_an_adapter_that_a_server_holds_already_is_taken_over(
    engine: VllmHttpEngine, servers: Servers, folder: Path
) -> None:
    servers["one"].adapters["policy-000001"] = str(folder)
    await engine.load_adapter("policy-000001", folder)
    assert engine.adapters() == {"policy-000001"}


async def test_another_adapter_under_the_name_is_not_taken_over(
    engine: VllmHttpEngine, servers: Servers, folder: Path
) -> None:
    servers["one"].adapters["policy-000001"] = "elsewhere"
    with pytest.raises(AdapterLoadFailed):
        await engine.load_adapter("policy-000001", folder)
    assert engine.adapters() == frozenset()


async def test_a_server_that_was_away_during_an_unload_frees_the_adapter_later(
    engine: VllmHttpEngine, servers: Servers, folder: Path
) -> None:
    await engine.load_adapter("policy-000001", folder)
    servers["one"].down = True
    await engine.unload_adapter("policy-000001")
    assert servers["one"].adapters
    servers["one"].down = False
    await until(lambda: not servers["one"].adapters)


@pytest.mark.parametrize("body", [b"<html>Down for maintenance</html>", {"data": [{"id": "base"}]}, ["no"], {}])
async def test_a_server_that_answers_nonsense_is_lost_and_found_again(
    engine: VllmHttpEngine, servers: Servers, body: object
) -> None:
    """A proxy's page in its place ended the watch over all of them, and none was ever found again."""
    for name in ("one", "two"):
        servers[name].models = Reply(200, body)
    await until(lambda: not any(server.up for server in engine._servers))
    for name in ("one", "two"):
        servers[name].models = None
    await until(lambda: all(server.up for server in engine._servers))
    assert await ask(engine, request()) == [0, 1, 2]


async def test_a_server_that_comes_back_with_another_model_is_left_alone(
    engine: VllmHttpEngine, servers: Servers
) -> None:
    servers["one"].base = "another"
    await until(lambda: not engine._servers[0].up)
    assert "serves another" in engine._servers[0].trouble
    await asyncio.gather(*(ask(engine, request()) for _ in range(3)))
    assert servers["one"].served == []
    servers["one"].base = "base"
    await until(lambda: engine._servers[0].up)


@pytest.mark.parametrize("status", [401, 404, 503])
async def test_a_server_that_loads_nothing_says_nothing_of_the_adapter(
    engine: VllmHttpEngine, servers: Servers, folder: Path, status: int
) -> None:
    """No route to load by, no sight of the folder: the server's set-up. One that can't is passed over."""
    servers["one"].load_status = status
    await engine.load_adapter("policy-000001", folder)
    assert [await ask(engine, request("policy-000001")) for _ in range(2)] == [[0, 1, 2]] * 2
    await until(lambda: "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in engine._servers[0].trouble)
    assert engine._servers[0].up
    servers["two"].load_status = status
    with pytest.raises(EngineUnavailable, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        await engine.load_adapter("policy-000002", folder)
    servers["one"].load_status = 200
    await until(lambda: "policy-000001" in servers["one"].adapters and not engine._servers[0].trouble)


async def test_a_wrong_key_is_told_at_the_start() -> None:
    network = Servers("one")
    network["one"].models = Reply(401, {"error": "Unauthorized"})
    config = ServeConfig(engine_poll_s=0.01, engine_start_timeout_s=0.05)
    engine = VllmHttpEngine(["http://one"], config, wire=network)
    with pytest.raises(EngineUnavailable, match="HUSTINGS_ENGINE_KEY"):
        await engine.start()
    await engine.close()


async def test_an_engine_whose_watch_has_ended_is_lost(
    engine: VllmHttpEngine, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(server: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(engine, "_look_at", broken)
    await until(lambda: engine._watcher is not None and engine._watcher.done())
    with pytest.raises(EngineLost, match="a defect"):
        await engine.check_health()


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (400, "This model's maximum context length is 64 tokens", PromptTooLong),
        (400, "top_p must be in (0, 1]", InvalidSampling),
        (503, "busy", EngineOverloaded),
        (500, "broken", EngineUnavailable),
    ],
)
async def test_refusals_become_our_errors(
    engine: VllmHttpEngine, servers: Servers, status: int, message: str, expected: type[Exception]
) -> None:
    for name in ("one", "two"):
        servers[name].refuse = (status, message)
    with pytest.raises(expected, match=re.escape(message)):
        await ask(engine, request())
    assert engine.load().running == 0


async def test_a_full_server_passes_its_request_on(engine: VllmHttpEngine, servers: Servers) -> None:
    servers["one"].refuse = (503, "busy")
    assert await asyncio.gather(*(ask(engine, request()) for _ in range(3))) == [[0, 1, 2]] * 3
    assert servers["one"].served == []


async def test_leaving_a_stream_hangs_up(engine: VllmHttpEngine, servers: Servers) -> None:
    async with aclosing(engine.generate(request(tokens=50))) as stream:
        async for _ in stream:
            break
    assert all(server.in_flight == 0 for server in engine._servers)
    assert engine.load().running == 0


async def test_servers_that_never_answer_are_named() -> None:
    network = Servers("one")
    network["one"].down = True
    config = ServeConfig(engine_poll_s=0.01, engine_start_timeout_s=0.05)
    engine = VllmHttpEngine(["http://one"], config, wire=network)
    with pytest.raises(EngineUnavailable, match="http://one"):
        await engine.start()
    await engine.close()


async def test_servers_are_told_what_their_chat_template_is_to_be_told() -> None:
    heard: list[dict[str, object]] = []

    class Listening:
        @asynccontextmanager
        async def send(
            self, method: str, url: str, body: bytes | None, *, within_s: float | None
        ) -> AsyncIterator[Reply]:
            heard.append(json.loads(body or b"{}"))
            yield Reply(200, {"tokens": [1, 2]})

        async def close(self) -> None: ...

    for told in ({"enable_thinking": False}, {}):
        engine = VllmHttpEngine(["http://one"], ServeConfig(chat_template_kwargs=told), wire=Listening())
        (server,) = engine._servers
        assert await server.tokenize([Message(role="user", content="hi")]) == (1, 2)
    assert [body.get("chat_template_kwargs") for body in heard] == [{"enable_thinking": False}, None]
