"""A backend that answers at once: OpenAI's chat completions, and what Hustings asks of a vLLM server.

    python -m benchmarks.serving.instant PORT

Written on asyncio's protocols with answers encoded beforehand, so that its own share of a measured latency is small:
the answer has `max_tokens` tokens (16 by default), streamed in one event each or whole.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import cache
from typing import Any

import orjson

MODEL = "instant"
WORD = " word"
TOKENS = 16


def head(content_type: bytes, length: int) -> bytes:
    """Status line and headers of a 200."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (content_type, length)


def whole(body: Any) -> bytes:
    """A JSON answer."""
    content = orjson.dumps(body)
    return head(b"application/json", len(content)) + content


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(body: Any) -> bytes:
    """A server-sent event as an HTTP chunk of its own."""
    data = b"data: " + (body if isinstance(body, bytes) else orjson.dumps(body)) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


END = event(b"[DONE]") + b"0\r\n\r\n"


@cache
def chat(tokens: int, stream: bool) -> bytes:
    """An answer of `/v1/chat/completions`."""
    shared = {"id": "chatcmpl-1", "created": 1, "model": MODEL}
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    if not stream:
        message = {"role": "assistant", "content": WORD * tokens}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        return whole({**shared, "object": "chat.completion", "choices": [choice], "usage": usage})

    def piece(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event({**shared, "object": "chat.completion.chunk", "choices": [choice]})

    first = piece({"role": "assistant", "content": ""})
    words = [piece({"content": WORD}) for _ in range(tokens - 1)]
    return STREAM_HEAD + first + b"".join(words) + piece({"content": WORD}, "length") + END


@cache
def completion(tokens: int, answers: int, logprobs: bool) -> bytes:
    """A streamed answer of `/v1/completions` as vLLM gives it, `answers` side by side."""
    told = {"token_logprobs": [-1.0], "top_logprobs": [{"token_id:7": -1.0}]} if logprobs else None
    steps = [
        event(
            {
                "id": "cmpl-1",
                "created": 1,
                "model": MODEL,
                "object": "text_completion",
                "choices": [
                    {
                        "index": index,
                        "text": WORD,
                        "token_ids": [7],
                        "logprobs": told,
                        "finish_reason": "length" if step == tokens - 1 else None,
                    }
                ],
            }
        )
        for step in range(tokens)
        for index in range(answers)
    ]
    return STREAM_HEAD + b"".join(steps) + END


def answer(path: str, body: bytes) -> bytes:
    """The bytes that answer a request."""
    asked = json.loads(body) if body else {}
    tokens = asked.get("max_tokens") or TOKENS
    if path == "/v1/chat/completions":
        return chat(tokens, bool(asked.get("stream")))
    if path == "/v1/completions":
        return completion(tokens, asked.get("n") or 1, asked.get("logprobs") is not None)
    fixed = {
        "/tokenize": {"tokens": list(range(8)), "count": 8, "max_model_len": 4096},
        "/detokenize": {"prompt": WORD},
        "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]},
        "/version": {"version": "0"},
        "/health": {},
    }
    return whole(fixed.get(path, {}))


class Instant(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._held = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._held += data
        while (at := self._held.find(b"\r\n\r\n")) >= 0:
            lines = self._held[:at]
            length = int(lines.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._held) < at + 4 + length:
                return
            body, self._held = self._held[at + 4 : at + 4 + length], self._held[at + 4 + length :]
            assert self._transport is not None
            self._transport.write(answer(lines.split(b" ", 2)[1].decode(), body))


async def main(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
