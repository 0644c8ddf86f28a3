"""Configuration of serving."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from feedback.addresses import is_hidden
from feedback.config import ChatTemplateKwargs, Section


class ContendersConfig(Section):
    """`[serve.contenders]`: who meets whom. What the shares leave goes to the office-holder against itself."""

    candidate_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the pairs in which a candidate (a release in state `canary`), if any, meets the office-holder."""
    anchor_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the pairs in which the bare base meets the office-holder, while an adapter is in office."""
    gold_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the pairs of an adapter with itself in which one answer's words are jumbled, to see who reads. 0.05
    where strangers vote (docs/voting.md); 0 where only people whom you know, or simulated voters, do. Three or four
    answers at once are never planted."""
    watch_share: float = Field(default=0.1, ge=0, le=1)
    """With `serve.releases.gate = "votes"`: share of the pairs in which the predecessor meets an office-holder that is
    still being watched (see serve.releases.alarm)."""


class CanaryConfig(Section):
    """`[serve.releases.canary]`: the election of a candidate, with `gate = "votes"`."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability that a candidate that is no better is ever promoted; and that one that is no worse is ever rejected
    for losing."""
    margin: float = Field(default=0.0, ge=0, lt=0.5)
    """A candidate must be shown to win more than half by so much: 0.02 asks for a win rate above 0.52."""
    by_voter: bool = True
    """A ballot is one voter's; False counts every vote as a stranger's, for installations with a handful of users:
    then one busy voter's taste can decide."""
    ballot_votes: int = Field(default=5, ge=1)
    """Votes of a voter that make a full ballot, which counts as their mean; later ones aren't counted."""
    ballot_idle_s: float = Field(default=1800.0, gt=0)
    """Seconds after a voter's last vote at which a ballot that isn't full counts all the same."""
    weigh: bool = True
    """Let a ballot count as far as its voter is trusted (feedback.voters), once at most. Who is new is trusted whole.
    Only votes that were cast before the ballot closed, and in other contests, are looked at."""
    weigh_every_h: float = Field(default=6.0, gt=0)
    """Hours, from the contest's begin, after which the voters' trust is worked out anew."""
    min_votes: int = Field(default=30, ge=0)
    """No promotion before so many votes, so that the guards have seen something."""
    max_votes: int = Field(default=2000, ge=1)
    """A candidate that isn't shown to be better by then is rejected."""
    patience_h: float = Field(default=168.0, gt=0)
    """Hours after which a canary that people didn't decide is retired (an operator can still promote it)."""
    look_s: float = Field(default=5.0, gt=0)
    """Seconds between looks at the votes where no new vote here gives occasion to one."""


class GuardsConfig(Section):
    """`[serve.releases.guards]`: what no vote can make up for, with `gate = "votes"`. Rises are in shares, 0 to 1."""

    max_length_ratio: float = Field(default=2.0, gt=1)
    """Answers so many times as long as the office-holder's, or as short."""
    max_refusal_rise: float = Field(default=0.1, gt=0, lt=1)
    """Refusals above the office-holder's share."""
    max_repetition_rise: float = Field(default=0.1, gt=0, lt=1)
    """Repeated pairs of words above the office-holder's share."""
    max_kl: float = Field(default=15.0, gt=0)
    """Distance from the base, nats an answer, as the manifest tells it (`policy_kl`)."""
    max_error_rate: float = Field(default=0.05, gt=0, lt=1)
    """Share of the candidate's answers that fail."""
    max_both_bad: float = Field(default=0.5, gt=0, lt=1)
    """Share of the canary's votes that call both answers bad; more is let pass where the office-holder, against
    itself, does no better than 0.15 below that."""


class AlarmConfig(Section):
    """`[serve.releases.alarm]`: rolls back by itself when voters like the office-holder less than the one before."""

    on: bool = True
    """Whether it acts. It needs pairs to hear from: `watch_share` (with `gate = "votes"`) or `anchor_share`."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """Probability that it ever sounds against an office-holder that is no worse; shared out among whom it is watched
    against."""
    max_votes: int = Field(default=1000, ge=1)
    """So many votes against its predecessor, and an office-holder isn't watched any longer."""


class ChatConfig(Section):
    """`[serve.chat]`: how the chat page's turns are answered (`/v1/turns`; `/v1/pairs` always answers twice)."""

    mode: Literal["arena", "chat"] = "arena"
    """`arena`: every turn is answered twice. `chat`: some are, by `paired_share`; the rest once, with thumbs."""
    paired_share: float = Field(default=0.2, ge=0, le=1)
    """Probability in chat mode that a turn is answered twice."""
    answers: int = Field(default=2, ge=2, le=4)
    """Answers to a turn that is answered more than once. Two are voted on; three or four are ranked: each vote then
    says more and takes longer to give, and the engine writes as many answers."""

    @property
    def share(self) -> float:
        """Probability that a turn is answered twice."""
        return 1.0 if self.mode == "arena" else self.paired_share


class ReleasesConfig(Section):
    """`[serve.releases]`: what an adapter must show before it speaks."""

    gate: Literal["probes", "votes", "operator"] = "probes"
    """What puts a verified adapter into office. `probes`: its verification, at once. `votes`: people's votes, in a
    canary against the office-holder (some hundred votes of many people). `operator`: `hustings releases promote`."""
    canary: CanaryConfig = CanaryConfig()
    guards: GuardsConfig = GuardsConfig()
    alarm: AlarmConfig = AlarmConfig()
    follow_grace_s: float = Field(default=60.0, ge=0)
    """Seconds that a serving may go on with the former office-holder after another serving has changed it, while it
    can't load the new one; then it is not ready."""
    probe_tolerance: float = Field(default=0.05, gt=0)
    """Mean absolute difference (nats a token) of serving's and the trainer's log-probs that counts as equal."""
    min_signal_to_noise: float = Field(default=3.0, ge=1)
    """The trainer's distance between adapter and base must be so many times the numeric noise seen on the base."""
    keep_previous: bool = True
    """Keep the previous office-holder loaded, so that a rollback is instant."""
    retry_s: float = Field(default=2.0, gt=0)
    """Seconds between attempts to reach an event log that doesn't answer; doubles up to a minute. And before what
    trouble with an adapter, the engine or the ledger has put off is tried again."""


class RatingsConfig(Section):
    """`[serve.ratings]`: votes that are taken, and what is made of them (docs/voting.md)."""

    votes_per_minute: float = Field(default=60.0, ge=0)
    """Votes that one voter may cast a minute in the long run (429 beyond); 0 sets no limit."""
    vote_burst: int = Field(default=60, ge=1)
    """Votes that one voter may cast at once after a pause."""
    reviews_per_minute: float = Field(default=600.0, ge=0)
    """Prepared pairs that all voters together may take a minute in the long run, and so many at once after a pause;
    one voter as many as they may vote. 0 sets no limit: then who comes under ever new names fills the ledger."""
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
    trusted_hosts: tuple[str, ...] = ()
    """Names under which serving may be asked for (a request's Host header), without scheme and port; `"*"` is any.
    Addresses, `localhost` and `host` always are. None given: on a loopback address only those, else any name. Where one
    is given, name also what a trainer, a proxy and Prometheus ask for."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""

    max_model_len: int = Field(default=2048, ge=16)
    """Context length in tokens, prompt and answer together."""
    chat_template_kwargs: ChatTemplateKwargs = Field(default_factory=dict)
    """What the model's chat template is told besides the messages: `{ enable_thinking = false }` makes Qwen 3 and
    SmolLM3 answer at once. The trainer tells it the same."""
    max_loras: int = Field(default=4, ge=2)
    """Adapters loaded at once: office-holder, previous one, one on its way in, the trainer's rollout adapter."""
    max_lora_rank: int = Field(default=16, ge=1, le=512)
    """Highest adapter rank that is taken; at least `train.lora.rank` where nothing else is said."""
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
    """Seconds that a client may take nothing of a stream that waits for it, or send nothing of a body that has begun,
    before it is hung up on."""
    rollout_timeout_s: float = Field(default=3600.0, gt=0)
    """Deadline of a trainer's request."""
    rollout_idle_s: float = Field(default=900.0, gt=0)
    """Seconds after which a trainer's adapter that nobody samples from is unloaded; who asks again gets it again."""
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

    @field_validator("trusted_hosts")
    @classmethod
    def _are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        odd = [host for host in hosts if host != "*" and re.fullmatch(r"[A-Za-z0-9._-]+", host) is None]
        if odd:
            raise ValueError(f"{odd[0]!r} is no host's name; write it as chat.example.org, without scheme and port")
        return hosts

    @field_validator("engine_urls")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        odd = [url for url in urls if not url.startswith(("http://", "https://"))]
        if odd:
            raise ValueError(f"{odd[0]} is no address of a server; write it as http://host:port")
        if any(is_hidden(url) for url in urls):
            raise ValueError("a password was hidden when it was shown; write the password")
        return urls
