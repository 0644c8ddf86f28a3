"""What a chat completion may ask for. Anything else is refused by name, never ignored in silence."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from feedback.contracts import MAX_MESSAGES, Message
from serve.text import Text

MAX_TEXT = 100_000
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""OpenAI parameters that do nothing here, with the values that ask for nothing."""
_NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
}
"""The same of a message: an answer comes back in the next turn with every field that its object has."""


class Unsupported(ValueError):
    """A parameter of OpenAI's that Hustings doesn't have."""

    code = "unsupported_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"'{param}' is not supported by Hustings; leave it out")
        self.param = param


def _without(data: Any, neutral: dict[str, tuple[Any, ...]]) -> Any:
    """Take away what asks for nothing.

    Raises:
        Unsupported: something is asked for that isn't here.
    """
    if not isinstance(data, dict):
        return data
    for name, values in neutral.items():
        if name in data and data[name] not in values:
            raise Unsupported(name)
    return {name: value for name, value in data.items() if name not in neutral}


Content = Annotated[Text, Field(max_length=MAX_TEXT)]


class TextPart(BaseModel):
    """A part of a message's content; only text is taken."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Content


class ChatMessage(BaseModel):
    """One turn; `developer` is taken as `system`."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | Annotated[list[TextPart], Field(min_length=1, max_length=100)]
    name: str | None = Field(default=None, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        return _without(data, _NEUTRAL_IN_MESSAGE)

    def to_message(self) -> Message:
        """As the chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(BaseModel):
    """What a stream carries beside its text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool | None = None


Stop = Annotated[Text, Field(min_length=1, max_length=256)]


class ChatCompletionRequest(BaseModel):
    """Body of `POST /v1/chat/completions`. What only names the caller or a cache is taken and has no effect."""

    model_config = ConfigDict(extra="forbid")

    model: Text = Field(min_length=1, max_length=128)
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)  # serve.max_messages is what people meet
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    n: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    ignore_eos: bool = False
    user: str | None = Field(default=None, max_length=256)
    safety_identifier: str | None = Field(default=None, max_length=256)
    prompt_cache_key: str | None = Field(default=None, max_length=256)
    prompt_cache_retention: str | None = Field(default=None, max_length=64)
    metadata: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        return _without(data, _NEUTRAL)

    @model_validator(mode="after")
    def _consistent(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def wanted_tokens(self) -> int | None:
        """The limit that was given under either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def engine_seed(self) -> int | None:
        """A seed that an engine takes; several answers are drawn with this and the next ones."""
        return None if self.seed is None else self.seed % 2**53

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop sequences as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def engine_logprobs(self) -> int | None:
        """As `Sampling.logprobs` has it."""
        return (self.top_logprobs or 0) if self.logprobs else None
