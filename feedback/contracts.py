"""Every type that crosses a process boundary.

Events are named in the past tense and are immutable. Each carries `schema_version`; a reader meets a version that it
does not know with `UnknownSchemaVersion`, never with a guess. Adding an optional field keeps the version; anything else
raises it, and a sample of the old one stays in tests/samples.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

ADAPTER_NAME_PATTERN = r"^policy-[0-9]{6}$"
"""Names of published adapters: immutable, never used twice (a reused name can serve stale prefix-cache blocks)."""

CHECKPOINT_NAME_PATTERN = r"^full-[0-9]{6}$"
"""Names of published whole models (`train.tuning = "full"`), likewise immutable."""

PAIR_TOPIC = "hustings.pairs"
VOTE_TOPIC = "hustings.votes"
THUMB_TOPIC = "hustings.thumbs"
DEAD_LETTER_TOPIC = "hustings.votes.dlq"
RECEIPT_TOPIC = "hustings.receipts"
ADAPTER_TOPIC = "hustings.adapters"
RELEASE_TOPIC = "hustings.releases"
FORGOTTEN_TOPIC = "hustings.forgotten"
GATE_KEY = "gate"
"""Key of `GateChanged` among the releases, whose keys are adapters' names."""
TOPICS = (
    PAIR_TOPIC,
    VOTE_TOPIC,
    THUMB_TOPIC,
    DEAD_LETTER_TOPIC,
    RECEIPT_TOPIC,
    ADAPTER_TOPIC,
    RELEASE_TOPIC,
    FORGOTTEN_TOPIC,
)

Position = Literal["a", "b", "c", "d"]
PairChoice = Literal["a", "b", "tie", "both_bad"]
"""What can be said of two answers."""
Choice = Literal["a", "b", "tie", "both_bad", "ranking"]
"""What a vote says: `ranking` where three or four answers were put in order, `VoteCast.ranking` telling how. `tie` and
`both_bad` are said of all answers, however many they are."""
Ranking = Annotated[
    tuple[Annotated[tuple[Position, ...], Field(min_length=1, max_length=4)], ...], Field(min_length=2, max_length=4)
]
"""Positions in order, the best first; those in one place are as good as each other."""
GOLD_RULE = "gold"
"""`PairShown.contenders` of planted pairs."""
REVIEW_RULE = "review"
"""`PairShown.contenders` of prepared pairs."""
Thumb = Literal["up", "down"]
FinishReason = Literal["stop", "length", "abort", "error"]
AdapterName = Annotated[str, Field(pattern=ADAPTER_NAME_PATTERN)]

# Bounds of what a record may hold: far above what serving lets in, and low enough that no record of a stranger can
# stop a table that is built of it, or fill the memory.
Name = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(max_length=1_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
LogProb = Annotated[float, Field(allow_inf_nan=False)]
TokenIds = Annotated[tuple[TokenId, ...], Field(max_length=1_000_000)]
LogProbs = Annotated[tuple[LogProb, ...], Field(max_length=1_000_000)]
Reason = Annotated[str, Field(max_length=256)]
Moment = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(3000, 1, 1, tzinfo=UTC))]
"""A time with its zone; one at the ends of the calendar can't be told in another zone."""
MAX_COMMENT = 10_000
MAX_EDITED = 100_000


class ContractError(ValueError):
    """A record does not keep its contract; the message says which part."""


class UnknownSchemaVersion(ContractError):
    """A record was written by a newer Hustings than this one."""


def utc_now() -> datetime:
    """The time now, with its zone."""
    return datetime.now(UTC)


class Contract(BaseModel):
    """Base of all contracts: frozen, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Event(Contract):
    """Base of what is written to a topic."""

    schema_version: Literal[1] = 1

    def to_bytes(self) -> bytes:
        """The record's value on the wire: compact UTF-8 JSON, nulls too (a field may be required and yet null)."""
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read a record's value.

        Raises:
            UnknownSchemaVersion: the record is of a version that this code does not know.
            ContractError: the record is not valid; the message lists the first faults.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False)
            if any(fault["loc"][-1:] == ("schema_version",) for fault in faults):
                raise UnknownSchemaVersion(
                    f"{cls.__name__}: this schema_version isn't known here; upgrade the reader before the writer"
                ) from error
            listed = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'record'}: {f['msg']}" for f in faults[:3])
            raise ContractError(f"{cls.__name__}: {listed}") from error


class Message(Contract):
    """One turn of a conversation, in the conversational format of TRL and OpenAI."""

    role: Literal["system", "user", "assistant"]
    content: Text


class SamplingRecord(Contract):
    """How a completion was sampled. `seed` is None where the engine chose."""

    temperature: float = Field(ge=0, allow_inf_nan=False)
    top_p: float = Field(gt=0, le=1)
    max_tokens: int = Field(ge=1)
    seed: int | None = None


class CompletionRecord(Contract):
    """One side of a pair as it was generated.

    Attributes:
        adapter: the adapter that spoke, or None for the base model.
        token_ids: the sampler's own ids, the ones to train on; never re-tokenised text.
        logprobs: natural-log probability of each id under the sampler, same length; or none at all.
    """

    position: Position
    text: Text
    finish_reason: FinishReason
    adapter: Name | None
    sampling: SamplingRecord
    token_ids: TokenIds = ()
    logprobs: LogProbs = ()

    @model_validator(mode="after")
    def _one_logprob_a_token(self) -> Self:
        if self.logprobs and len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.logprobs)} logprobs for {len(self.token_ids)} token_ids; one each is needed")
        return self


class PairShown(Event):
    """Two (or up to four) answers were shown to a voter, who was not told which adapter gave which.

    Attributes:
        voter: keyed pseudonym, never the raw identity.
        contenders: name of the rule that chose the adapters ("self-play", "candidate", "anchor", ...).
        propensity: probability with which that rule chose just these adapters in just these positions.
        prompt_token_ids: the prompt after the chat template, as the engine saw it.
        gold: position of the answer that is known to be the better one, where the pair was planted to see how a voter
            judges (docs/voting.md); such a pair compares no adapters and trains nothing.
        source: `review` where the answers lay prepared, to a question that the voter didn't ask (docs/voting.md,
            "Review pairs"); else `chat`.
    """

    pair_id: Name
    conversation_id: Name
    voter: Name
    messages: tuple[Message, ...] = Field(min_length=1, max_length=10_000)
    completions: tuple[CompletionRecord, ...] = Field(min_length=2, max_length=4)
    contenders: Name
    propensity: float = Field(gt=0, le=1)
    base_model: Name
    prompt_token_ids: TokenIds = ()
    gold: Position | None = None
    source: Literal["chat", "review"] = Field(default="chat", exclude_if=lambda source: source == "chat")
    shown_at: Moment = Field(default_factory=utc_now)


class VoteCast(Event):
    """A voter chose. The pair travels inside, so that a vote can be understood alone and needs no join.

    Attributes:
        schema_version: 2 for a ranking, which readers of version 1 would not understand; votes on pairs are written as
            they always were.
        ranking: where each answer came, in a vote that ranks them; None in any other.
    """

    schema_version: Literal[1, 2] = 1  # type: ignore[assignment]  # the one event of which there are two
    vote_id: Name
    pair: PairShown
    voter: Name
    choice: Choice
    ranking: Ranking | None = Field(default=None, exclude_if=lambda ranking: ranking is None)
    reasons: tuple[Reason, ...] = Field(default=(), max_length=100)
    comment: str | None = Field(default=None, max_length=MAX_COMMENT)
    edited: str | None = Field(default=None, max_length=MAX_EDITED)
    dwell_ms: int | None = Field(default=None, ge=0)
    cast_at: Moment = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _ranked_whole(self) -> Self:
        if (self.ranking is None) == (self.choice == "ranking"):
            raise ValueError("ranking belongs to the choice `ranking`, and to no other")
        if (self.schema_version == 2) != (self.ranking is not None):
            raise ValueError("a ranking is written as schema_version 2, any other vote as 1")
        if self.ranking is not None:
            shown = sorted(completion.position for completion in self.pair.completions)
            if len(shown) < 3 or sorted(position for place in self.ranking for position in place) != shown:
                raise ValueError(
                    f"ranking must name each of {', '.join(shown)} once; two answers take a choice instead"
                )
        return self


class VoterForgotten(Event):
    """The tombstone of a voter: whoever keeps events drops theirs, up to `until`, and never takes them again.

    Attributes:
        voter: the pseudonym; key of the record.
        until: events of a later time are somebody's who came back, and are kept.
    """

    event_id: Name
    voter: Name
    until: Moment
    forgotten_at: Moment = Field(default_factory=utc_now)

    def covers(self, voter: str, at: datetime) -> bool:
        """Whether an event of this voter and time is to be dropped."""
        return voter == self.voter and at <= self.until


class AnswerShown(Event):
    """One answer was shown, alone (chat mode), to a person who may give it a thumb.

    Attributes:
        voter: keyed pseudonym, never the raw identity.
        completion: the answer; its position is "a".
        propensity: probability with which a turn is answered once, not twice, as it was then configured.
        prompt_token_ids: the prompt after the chat template, as the engine saw it.
    """

    answer_id: Name
    conversation_id: Name
    voter: Name
    messages: tuple[Message, ...] = Field(min_length=1, max_length=10_000)
    completion: CompletionRecord
    propensity: float = Field(gt=0, le=1)
    base_model: Name
    prompt_token_ids: TokenIds = ()
    shown_at: Moment = Field(default_factory=utc_now)


class ThumbGiven(Event):
    """A thumb up or down for a single answer, which travels inside."""

    thumb_id: Name
    answer: AnswerShown
    voter: Name
    thumb: Thumb
    reasons: tuple[Reason, ...] = Field(default=(), max_length=100)
    comment: str | None = Field(default=None, max_length=MAX_COMMENT)
    given_at: Moment = Field(default_factory=utc_now)


class RecordsCurated(Event):
    """The curator's receipt: these events are durably in the dataset (or the dead-letter topic); stop sending them."""

    event_ids: tuple[str, ...]
    curated_at: Moment = Field(default_factory=utc_now)


class DeadLetter(Event):
    """A record that could not be read, kept whole. `value` and `key` are base64."""

    topic: str
    partition: int
    offset: int
    key: str | None
    value: str | None
    error: str
    rejected_at: Moment = Field(default_factory=utc_now)


class ReviewItem(Contract):
    """Two prepared answers that a vote on would tell the reward model much.

    Attributes:
        completions: in no order that means anything; whoever shows them draws the sides.
        propensity: probability with which just these two were drawn among the prompt's answers.
        information: nats that a vote on them is expected to tell about the reward model's heads.
    """

    item_id: Name
    messages: tuple[Message, ...] = Field(min_length=1, max_length=10_000)
    prompt_token_ids: TokenIds
    completions: tuple[CompletionRecord, CompletionRecord]
    propensity: float = Field(gt=0, le=1)
    information: float = Field(ge=0, allow_inf_nan=False)


class ReviewPool(Contract):
    """`train/review/pool.json`: the pairs that a trainer has prepared; the newest pool replaces the one before.

    Attributes:
        reward_model: whose heads chose them.
        base_model, base_fingerprint: of the base that the answers are from.
        adapter: who answered (None: the base).
    """

    schema_version: Literal[1] = 1
    reward_model: Name
    base_model: Name
    base_fingerprint: Name
    adapter: Name | None
    items: tuple[ReviewItem, ...]
    made_at: Moment = Field(default_factory=utc_now)


class AdapterPublished(Event):
    """A trainer has put an adapter into the store. Key of the record: the name."""

    name: AdapterName
    uri: str
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    base_model: str
    published_at: Moment = Field(default_factory=utc_now)


class ReleaseState(StrEnum):
    """Where an adapter stands on its way into office."""

    CANDIDATE = "candidate"
    VERIFIED = "verified"
    CANARY = "canary"
    IN_OFFICE = "in_office"
    RETIRED = "retired"
    REJECTED = "rejected"


class ReleaseChanged(Event):
    """An adapter went from one state to another. Key of the record: the name.

    Attributes:
        actor: "auto", or the operator who did it.
        figures: what the decision rests on (votes, win rate and its bounds, guards), where it rests on figures.
    """

    name: str
    before: ReleaseState | None
    after: ReleaseState
    reason: str
    actor: str
    figures: dict[str, float] = {}
    changed_at: Moment = Field(default_factory=utc_now)


class GateChanged(Event):
    """An operator has paused releases, or lets them go on. Key of the record: `GATE_KEY`, in the releases' topic."""

    paused: bool
    reason: str
    actor: str
    changed_at: Moment = Field(default_factory=utc_now)


class ProbeRecord(Contract):
    """What the trainer saw its adapter say: serving must see the same before it trusts a load.

    Attributes:
        policy_logprobs: log-probs of `response_token_ids` after `prompt_token_ids` under the adapter.
        base_logprobs: the same under the bare base.
    """

    prompt_token_ids: tuple[int, ...] = Field(min_length=1)
    response_token_ids: tuple[int, ...] = Field(min_length=1)
    policy_logprobs: tuple[float, ...] = Field(min_length=1)
    base_logprobs: tuple[float, ...] = Field(min_length=1)


class AdapterManifest(Contract):
    """`manifest.json` beside an adapter's weights: its whole lineage.

    Attributes:
        files: sha256 of each file of the folder but this one, by name.
        snapshot: id of the dataset snapshot that it was trained on.
        reward_model: id of the reward model that scored it.
        config: the trainer's resolved configuration.
        metrics: the cycle's figures (reward, KL, held-out accuracy, ...).
    """

    schema_version: Literal[1] = 1
    name: AdapterName
    parent: str | None
    base_model: str
    base_fingerprint: str
    lora_rank: int
    reward_model: str
    snapshot: str
    files: dict[str, str]
    probes: tuple[ProbeRecord, ...] = Field(min_length=1)
    config: dict[str, Any]
    metrics: dict[str, float]
    created_at: Moment = Field(default_factory=utc_now)


class CheckpointManifest(Contract):
    """`manifest.json` beside the weights of a whole model that full fine-tuning made: a base to start serving with.

    Attributes:
        fingerprint: of this model, as serving and trainer compute it of a base.
        base_model, base_fingerprint: what it was trained from, and measured against.
        dtype: of the weights in the files.
        files: sha256 of each file of the folder but this one, by name.
        probes: log-probs of a few answers under this model (`policy_logprobs`) and under its base.
        reward_model, snapshot, config, metrics: as in `AdapterManifest`.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=CHECKPOINT_NAME_PATTERN)]
    fingerprint: str
    base_model: str
    base_fingerprint: str
    dtype: str
    reward_model: str
    snapshot: str
    files: dict[str, str]
    probes: tuple[ProbeRecord, ...] = Field(min_length=1)
    config: dict[str, Any]
    metrics: dict[str, float]
    created_at: Moment = Field(default_factory=utc_now)
