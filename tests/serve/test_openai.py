"""The official client against the app: what its users do must work unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from serve.app import ServeDeps
from serve.engines.base import AnswerBroken, GenerationRequest
from tests.fakes.engine import FakeEngine

ASK: Any = [{"role": "user", "content": "Hello?"}]


def says(text: str) -> Any:
    def answer(request: GenerationRequest, index: int) -> str:
        return text

    return answer


@pytest.fixture
def engine_answer() -> Any:
    return says("One two three.")


@pytest.fixture
async def engine(engine_answer: Any) -> FakeEngine:
    made = FakeEngine(answer=engine_answer, adapters=("policy-000003",))
    await made.start()
    return made


@pytest.fixture
async def ai(app: FastAPI) -> AsyncIterator[openai.AsyncOpenAI]:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
    async with openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="-", http_client=http, max_retries=0) as made:
        yield made


async def test_a_whole_completion_with_usage(ai: openai.AsyncOpenAI) -> None:
    answer = await ai.chat.completions.create(model="hustings", messages=ASK)
    assert answer.choices[0].message.content == "One two three."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    prompt = len(b"<user>Hello?\n<assistant>")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, len("One two three.") + 1)
    assert answer.usage.total_tokens == prompt + len("One two three.") + 1


async def test_a_streamed_completion_with_usage(ai: openai.AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(
        model="hustings", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "One two three."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len("One two three.") + 1
    assert all(c.usage is None for c in chunks[:-1])


async def test_several_answers_whole_and_streamed(ai: openai.AsyncOpenAI) -> None:
    answer = await ai.chat.completions.create(model="base", messages=ASK, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    stream = await ai.chat.completions.create(model="base", messages=ASK, n=2, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "One two three.", 1: "One two three."}


async def test_stop_ends_the_answer(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    answer = await ai.chat.completions.create(model="hustings", messages=ASK, stop=" three")
    assert answer.choices[0].message.content == "One two"
    assert engine.requests[-1].sampling.stop == (" three",)
    await ai.chat.completions.create(model="hustings", messages=ASK, stop=["x", "y"])
    assert engine.requests[-1].sampling.stop == ("x", "y")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_token_limit_is_kept_under_both_names(ai: openai.AsyncOpenAI, name: str) -> None:
    limit: Any = {name: 3}
    answer = await ai.chat.completions.create(model="hustings", messages=ASK, **limit)
    assert answer.choices[0].message.content == "One"
    assert answer.choices[0].finish_reason == "length"


async def test_logprobs_with_the_likeliest(ai: openai.AsyncOpenAI) -> None:
    answer = await ai.chat.completions.create(model="hustings", messages=ASK, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [item.token for item in logprobs.content[:3]] == ["O", "n", "e"]
    assert logprobs.content[0].bytes == [79]
    assert all(len(item.top_logprobs) == 2 for item in logprobs.content)
    stream = await ai.chat.completions.create(model="hustings", messages=ASK, logprobs=True, stream=True)
    streamed = [logprob async for chunk in stream for logprob in streamed_logprobs(chunk)]
    assert streamed == [item.logprob for item in logprobs.content]


def streamed_logprobs(chunk: Any) -> list[float]:
    return [item.logprob for choice in chunk.choices for item in ((choice.logprobs and choice.logprobs.content) or [])]


async def test_every_sampling_parameter_reaches_the_engine(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    await ai.chat.completions.create(
        model="hustings",
        messages=ASK,
        temperature=0.5,
        top_p=0.9,
        seed=11,
        n=2,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
    )
    sampling = engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.n) == (0.5, 0.9, 11, 2)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.25, -0.5)
    assert sampling.logprobs is None


async def test_system_prompts_turns_and_parts_reach_the_prompt(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Who?"},
    ]
    await ai.chat.completions.create(model="hustings", messages=messages)
    told = bytes(engine.requests[-1].prompt_token_ids)
    assert told == b"<system>Be brief.\n<user>Hello\n<assistant>Yes?\n<user>Who?\n<assistant>"


async def test_models_are_the_office_the_base_and_the_adapters(
    ai: openai.AsyncOpenAI, deps: ServeDeps, engine: FakeEngine
) -> None:
    assert [model.id async for model in ai.models.list()] == ["hustings", "base", "policy-000003"]
    assert (await ai.models.retrieve("policy-000003")).id == "policy-000003"
    deps.office.switch("policy-000003")
    for model, adapter in (("hustings", "policy-000003"), ("base", None), ("policy-000003", "policy-000003")):
        await ai.chat.completions.create(model=model, messages=ASK)
        assert engine.requests[-1].adapter == adapter


async def test_an_unknown_model_is_not_found(ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await ai.chat.completions.create(model="gpt-9", messages=ASK)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await ai.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"beam_width": 4}, "beam_width", "unknown_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"top_logprobs": 2}, None, "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None, None),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_value"),
        ({"stream_options": {"verbose": 1}, "stream": True}, "stream_options.verbose", "unknown_parameter"),
        ({"seed": 2**63}, "seed", "invalid_value"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    ai: openai.AsyncOpenAI, extra: dict[str, Any], param: str | None, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.chat.completions.create(model="hustings", messages=ASK, extra_body=extra)
    assert caught.value.type == "invalid_request_error"
    assert not any(inner in caught.value.message for inner in ("function", "0x", "[", "Value error"))
    if param is not None:
        assert caught.value.param == param
    if code is not None:
        assert caught.value.code == code


async def test_parameters_that_ask_for_nothing_are_taken(ai: openai.AsyncOpenAI) -> None:
    await ai.chat.completions.create(
        model="hustings", messages=ASK, response_format={"type": "text"}, tools=[], user="me", store=False
    )


async def test_an_answer_goes_back_into_the_next_turn_as_it_came(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    """The client's own idiom for several turns: its message object has fields beside role and content."""
    said = (await ai.chat.completions.create(model="hustings", messages=ASK)).choices[0].message
    for turn in (said, said.model_dump()):
        more: Any = [*ASK, turn, {"role": "user", "content": "And then?"}]
        await ai.chat.completions.create(model="hustings", messages=more)
        prompt = bytes(engine.requests[-1].prompt_token_ids).decode()
        assert prompt == "<user>Hello?\n<assistant>One two three.\n<user>And then?\n<assistant>"


async def test_a_message_that_asks_for_tools_is_refused_by_name(ai: openai.AsyncOpenAI) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns: Any = [*ASK, {"role": "assistant", "content": "", "tool_calls": [call]}, *ASK]
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.chat.completions.create(model="hustings", messages=turns)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tool_calls")


@pytest.mark.parametrize(
    "extra", [{"stream": None}, {"logprobs": False, "top_logprobs": 0}, {"prompt_cache_retention": "in_memory"}]
)
async def test_what_openai_takes_as_nothing_is_nothing_here(ai: openai.AsyncOpenAI, extra: dict[str, Any]) -> None:
    answer = await ai.chat.completions.create(model="hustings", messages=ASK, extra_body=extra)
    assert answer.choices[0].message.content == "One two three."


async def test_the_clients_stream_helper_gathers_the_answers(ai: openai.AsyncOpenAI) -> None:
    async with ai.chat.completions.stream(model="hustings", messages=ASK, n=2) as stream:
        found = await stream.get_final_completion()
    assert [choice.message.content for choice in found.choices] == ["One two three."] * 2


async def test_routes_of_openais_that_are_not_here_say_so_in_the_clients_words(ai: openai.AsyncOpenAI) -> None:
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: ai.responses.create(model="hustings", input="Hello?"),
        lambda: ai.completions.create(model="hustings", prompt="Hello?"),
        lambda: ai.embeddings.create(model="hustings", input="Hello?"),
        lambda: ai.moderations.create(input="Hello?"),
        lambda: ai.files.retrieve("file-1"),
        lambda: ai.images.generate(prompt="a river"),
        lambda: ai.batches.retrieve("batch-1"),
    )
    for call in calls:
        with pytest.raises(openai.NotFoundError, match="chat completions and models"):
            await call()


async def test_a_prompt_that_is_too_long_says_so(ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.chat.completions.create(model="hustings", messages=[{"role": "user", "content": "x" * 3000}])
    assert caught.value.code == "context_length_exceeded"


async def test_an_engine_that_dies_in_a_stream_raises_in_the_client(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.fail_after = 2
    stream = await ai.chat.completions.create(model="hustings", messages=ASK, stream=True)
    with pytest.raises(openai.APIError, match="died"):
        _ = [chunk async for chunk in stream]


async def test_an_engine_that_is_gone_is_unavailable(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.die("the engine stopped")
    with pytest.raises(openai.InternalServerError) as caught:
        await ai.chat.completions.create(model="hustings", messages=ASK)
    assert caught.value.status_code == 503


async def test_the_trainers_rollout_adapters_are_not_for_people(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine._weights["rollout-1"] = "x"
    engine._usable.add("rollout-1")
    assert "rollout-1" in engine.adapters()
    listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    body = {"model": "rollout-1", "messages": [{"role": "user", "content": "Hello?"}]}
    assert "rollout-1" not in listed
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 404


async def test_an_answer_that_is_broken_off_is_a_server_error_and_never_a_shorter_answer(
    ai: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.fail_after, engine.failure = 3, AnswerBroken("the engine broke the answer off (abort); ask again")
    with pytest.raises(openai.InternalServerError) as whole:
        await ai.chat.completions.create(model="hustings", messages=ASK)
    assert (whole.value.status_code, whole.value.type) == (503, "server_error")
    assert whole.value.response.headers["retry-after"] == "5"
    endings = []
    stream = await ai.chat.completions.create(model="hustings", messages=ASK, stream=True)
    with pytest.raises(openai.APIError, match="broke the answer off") as streamed:
        async for chunk in stream:
            endings.append(chunk.choices[0].finish_reason)
    assert streamed.value.type == "server_error"
    assert set(endings) == {None}


@pytest.mark.parametrize("seed", [0, -1, 2**62, -(2**63), 2**63 - 1])
async def test_every_seed_of_openais_range_makes_an_answer_repeat(
    ai: openai.AsyncOpenAI, engine: FakeEngine, seed: int
) -> None:
    for _ in range(2):
        await ai.chat.completions.create(model="hustings", messages=ASK, seed=seed, n=2)
    first, again = (request.sampling.seed for request in engine.requests)
    assert first == again
    assert first is not None
    assert 0 <= first < first + 1 <= 2**53, "an engine adds each answer's number to it"
