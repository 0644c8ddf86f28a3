"""Configuration of serving."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from feedback.config import Section


class ContendersConfig(Section):
    """`[serve.contenders]`: who meets whom. What the two shares leave goes to the office-holder against itself."""

    candidate_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the pairs in which a candidate (a release in state `canary`), if any, meets the office-holder."""
    anchor_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the pairs in which the bare base meets the office-holder, while an adapter is in office."""
    gold_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the pairs of an adapter with itself in which one answer's words are jumbled, to see who reads. 0.05
    where strangers vote (docs/voting.md); 0 where only people whom you know, or simulated voters, do."""


class ChatConfig(Section):
    """`[serve.chat]`: how the chat page's turns are answered (`/v1/turns`; `/v1/pairs` always answers twice)."""

    mode: Literal["arena", "chat"] = "arena"
    """`arena`: every turn is answered twice. `chat`: some are, by `paired_share`; the rest once, with thumbs."""
    paired_share: float = Field(default=0.2, ge=0, le=1)
    """Probability in chat mode that a turn is answered twice."""

    @property
    def share(self) -> float:
        """Probability that a turn is answered twice."""
        return 1.0 if self.mode == "arena" else self.paired_share


class ReleasesConfig(Section):
    """`[serve.releases]`: what an adapter must show before it speaks."""

    auto_promote: bool = True
    """Put a verified adapter into office at once; False leaves it `verified` until an operator promotes it."""
    probe_tolerance: float = Field(default=0.05, gt=0)
    """Mean absolute difference (nats a token) of serving's and the trainer's log-probs that counts as equal."""
    min_signal_to_noise: float = Field(default=3.0, ge=1)
    """The trainer's distance between adapter and base must be so many times the numeric noise seen on the base."""
    keep_previous: bool = True
    """Keep the previous office-holder loaded, so that a rollback is instant."""
    retry_s: float = Field(default=2.0, gt=0)
    """Seconds between attempts to reach an event log that doesn't answer; doubles up to a minute."""


class RatingsConfig(Section):
    """`[serve.ratings]`: votes that are taken, and what is made of them (docs/voting.md)."""

    votes_per_minute: float = Field(default=60.0, ge=0)
    """Votes that one voter may cast a minute in the long run (429 beyond); 0 sets no limit."""
    vote_burst: int = Field(default=60, ge=1)
    """Votes that one voter may cast at once after a pause."""
    newest: int = Field(default=50_000, ge=1)
    """Votes, the newest, that standings and voters' weights look at."""
    fresh_s: float = Field(default=10.0, ge=0)
    """Seconds for which standings and weights are kept before they are worked out again."""


class ServeConfig(Section):
    """`[serve]` of hustings.toml."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 picks a free one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""

    max_model_len: int = Field(default=2048, ge=16)
    """Context length in tokens, prompt and answer together."""
    max_loras: int = Field(default=4, ge=2)
    """Adapters loaded at once: office-holder, previous one, one on its way in, the trainer's rollout adapter."""
    max_lora_rank: int = Field(default=16, ge=1)
    """Highest adapter rank that is taken."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory of the key-value cache (CPU engine)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that the engine takes (GPU engine)."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences that the engine runs in one step."""
    reserved_seqs: int = Field(default=16, ge=0)
    """Of these, kept free of the trainer's rollouts, so that a person never waits for one to end."""
    max_waiting_seqs: int = Field(default=1024, ge=0)
    """Sequences that may wait for the engine before a request is refused (429)."""
    max_batch_tokens: int | None = Field(default=None, ge=16)
    """Tokens that the engine computes in one step; fewer make long prompts hold up other streams less.
    None is 512 on a CPU and vLLM's own choice on a GPU."""
    engine_seed: int | None = None
    """Seed of the requests that bring none; None draws one at each start."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto is float32 on a CPU and the model's own on a GPU."""
    threads: int = Field(default=0, ge=0)
    """Compute threads of a CPU engine; 0 takes the machine's cores."""
    engine_urls: tuple[str, ...] = ()
    """Roots of vLLM OpenAI servers to use (`http://host:port`); none for vLLM in this process.
    Where they ask for a key, HUSTINGS_ENGINE_KEY holds it."""
    engine_poll_s: float = Field(default=2.0, gt=0)
    """Seconds between looks at each of those servers."""
    engine_start_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds that the engine may take to load the model."""

    default_max_tokens: int = Field(default=256, ge=1)
    """Tokens of an answer when the request doesn't say."""
    max_max_tokens: int = Field(default=4096, ge=1)
    """The most tokens that a request may ask for."""
    default_temperature: float = Field(default=1.0, ge=0, le=2)
    """Temperature when the request doesn't say; 1 is what the trainer's mathematics expect."""
    default_top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus when the request doesn't say."""
    max_n: int = Field(default=8, ge=1)
    """The most answers that one chat completion may ask for."""

    max_in_flight: int = Field(default=64, ge=1)
    """People's requests that are answered or waiting at once; more are told to come back (429)."""
    max_rollouts_in_flight: int = Field(default=4, ge=1)
    """Rollout requests of trainers at once."""
    request_timeout_s: float = Field(default=300.0, gt=0)
    """Deadline of a person's request."""
    stalled_client_s: float = Field(default=30.0, gt=0)
    """Seconds that a streaming client may take nothing of what waits for it before it is hung up on."""
    rollout_timeout_s: float = Field(default=3600.0, gt=0)
    """Deadline of a trainer's request."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    """Largest request body; rollouts may be sixteen times as large."""
    max_messages: int = Field(default=200, ge=1)
    """Turns of a conversation at most."""
    shutdown_grace_s: float = Field(default=10.0, ge=0)
    """Seconds that running streams get to end when serving stops."""

    chat: ChatConfig = ChatConfig()
    contenders: ContendersConfig = ContendersConfig()
    releases: ReleasesConfig = ReleasesConfig()
    ratings: RatingsConfig = RatingsConfig()
