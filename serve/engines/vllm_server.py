"""One vLLM OpenAI server: its HTTP, its errors, and what is known of it. `vllm_http` makes an engine of several."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import orjson

from feedback.config import TemplateValue
from feedback.contracts import Message
from serve.engines.base import (
    AdapterLoadFailed,
    AdapterNotLoaded,
    EngineError,
    EngineOverloaded,
    EngineUnavailable,
    InvalidSampling,
    PromptTooLong,
)
from serve.engines.http_wire import Answer, HttpWire, Unreachable
from serve.engines.vllm_translate import first_line

HEALTH_S = 5.0
"""Seconds for asking after a server's health."""
ANSWER_S = 30.0
"""Seconds for the other short calls; generations have the caller's deadline."""
LOAD_S = 300.0
"""Seconds that a server may take to load or free an adapter."""


NOT_THE_ADAPTERS_FAULT = frozenset({401, 403, 404, 405, 429, 502, 503, 504})
"""Statuses of a refused load that tell of the server: its key, its routes, what it sees of the folder, its load."""


class ServerLost(EngineUnavailable):
    """The server could not be reached, or went away in the middle; another may do."""


class CantLoad(EngineUnavailable):
    """The server takes no adapters as it is set up, or can't see this one's folder; nothing is wrong with it."""


class VllmServer:
    """A client of one server.

    Attributes:
        url: its root, without /v1.
        up: it answered when last asked.
        in_flight: sequences that we have given it.
        confirmed: adapters that it has told us it holds.
        leftover: adapters that it should have freed but couldn't be told to.
        base: the name under which it serves the base model.
        trouble: what was last logged of it; "" when all is well.
    """

    def __init__(self, url: str, wire: HttpWire, template: Mapping[str, TemplateValue] | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.up = False
        self.in_flight = 0
        self.confirmed: set[str] = set()
        self.leftover: set[str] = set()
        self.base = ""
        self.max_model_len = 0
        self.trouble = ""
        self._wire = wire
        self._template = dict(template or {})

    async def check(self) -> None:
        """Ask whether it is well.

        Raises:
            ServerLost: it is not, or it can't be reached.
        """
        async with self._answer("GET", "/health", deadline_s=HEALTH_S) as response:
            if response.status >= 400:
                raise ServerLost(f"{self.url} is unwell: {response.status}")

    async def models(self) -> dict[str, str]:
        """Path of each adapter that it holds, by name; learns the base's name and context length on the way."""
        adapters: dict[str, str] = {}
        told_of = await self._json("GET", "/v1/models", deadline_s=HEALTH_S)
        try:
            for card in told_of["data"]:
                if card.get("parent") is None:
                    self.base, self.max_model_len = card["id"], int(card["max_model_len"])
                else:
                    adapters[card["id"]] = str(card.get("root"))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ServerLost(f"{self.url}/v1/models doesn't answer as a vLLM server's does") from error
        return adapters

    async def version(self) -> str:
        """The server's vLLM version."""
        return str((await self._json("GET", "/version"))["version"])

    async def tokenize(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the prompt with the chat template applied."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        body = {"model": self.base, "messages": turns, "add_generation_prompt": True}
        if self._template:
            body["chat_template_kwargs"] = self._template
        return tuple((await self._json("POST", "/tokenize", body))["tokens"])

    async def token_text(self, token_id: int) -> str:
        """Text of one token."""
        return str((await self._json("POST", "/detokenize", {"model": self.base, "tokens": [token_id]}))["prompt"])

    async def load(self, name: str, path: str) -> None:
        """Load an adapter; returns when the server holds just this one under the name.

        Raises:
            AdapterLoadFailed: it refused, or holds another one under the name.
            CantLoad: it would refuse any, or doesn't see the folder.
            ServerLost: it went away.
        """
        try:
            async with self._answer(
                "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, LOAD_S
            ) as response:
                if response.status in NOT_THE_ADAPTERS_FAULT:
                    why = f"{response.status}: {told(await response.read())}"
                    raise CantLoad(
                        f"{self.url} can't load {name} ({why}); start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and"
                        f" let it see {path}"
                    )
                if response.status >= 400:
                    raise AdapterLoadFailed(f"{name}: a vLLM server refused it: {told(await response.read())}")
        except AdapterLoadFailed:
            if (await self.models()).get(name) != path:
                raise
        self.confirmed.add(name)

    async def unload(self, name: str) -> None:
        """Free an adapter; one that isn't there passes."""
        self.confirmed.discard(name)
        async with self._answer("POST", "/v1/unload_lora_adapter", {"lora_name": name}, LOAD_S) as response:
            if response.status != 404:
                await raise_for(response, self.url)

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A whole completion.

        Raises:
            EngineError: one of the tree.
        """
        return await self._json("POST", "/v1/completions", body, deadline_s=None)

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed completion. Closing it makes the server abort.

        Raises:
            EngineError: one of the tree; `ServerLost` also where the stream ends before its time.
        """
        async with self._answer("POST", "/v1/completions", {**body, "stream": True}, None) as response:
            await raise_for(response, self.url)
            done = False
            async for data in events(response.pieces()):  # to its end: then the connection can be kept
                if data == b"[DONE]":
                    done = True
                    continue
                event = orjson.loads(data)
                if "error" in event:
                    raise refusal(int(event["error"].get("code") or 500), data, self.url)
                yield event
            if done:
                return
        self.up = False
        raise ServerLost(f"{self.url} ended a stream in the middle")

    @contextmanager
    def busy(self, sequences: int) -> Iterator[None]:
        """Count a request's sequences while it runs."""
        self.in_flight += sequences
        try:
            yield
        finally:
            self.in_flight -= sequences

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, deadline_s: float | None = ANSWER_S
    ) -> dict[str, Any]:
        async with self._answer(method, path, body, deadline_s) as response:
            await raise_for(response, self.url)
            content = await response.read()
        try:
            found: dict[str, Any] = orjson.loads(content)
        except orjson.JSONDecodeError as error:  # a proxy's page, say
            raise ServerLost(f"{self.url}{path} answers what is no JSON") from error
        return found

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, deadline_s: float | None = ANSWER_S
    ) -> AsyncIterator[Answer]:
        content = None if body is None else orjson.dumps(body)
        with self._reached():
            async with self._wire.send(method, self.url + path, content, within_s=deadline_s) as response:
                yield response

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except Unreachable as error:
            self.up = False
            raise ServerLost(f"{self.url} can't be reached: {first_line(error)}") from error


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events, one line each, from a body cut anywhere."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


async def raise_for(response: Answer, url: str) -> None:
    """Raise what a refusing status means.

    Raises:
        EngineError: one of the tree.
    """
    if response.status >= 400:
        raise refusal(response.status, await response.read(), url)


def refusal(status: int, content: bytes, url: str) -> EngineError:
    """A status and its body as one of our errors."""
    text = told(content)
    if status == 404:
        return AdapterNotLoaded(f"{url}: {text}")
    if status in {429, 503}:
        return EngineOverloaded(f"{url}: {text}")
    if status in {401, 403}:
        return ServerLost(f"{url} wants another key ({status}); give it in HUSTINGS_ENGINE_KEY")
    if status >= 500:
        return ServerLost(f"{url} failed: {text}")
    too_long = "maximum context length" in text or "maximum model length" in text or "max_model_len" in text
    return (PromptTooLong if too_long else InvalidSampling)(text)


def told(content: bytes) -> str:
    """The message in an error's body."""
    try:
        body = orjson.loads(content)
        error = body.get("error", body)
        return str(error.get("message", error))[:400]
    except (orjson.JSONDecodeError, AttributeError):
        return content.decode(errors="replace")[:400]
