"""Every type that crosses a process boundary.

Events are named in the past tense and are immutable. Each carries `schema_version`; a reader meets a version that it
does not know with `UnknownSchemaVersion`, never with a guess. Adding an optional field keeps the version; anything else
raises it, and a sample of the old one stays in tests/samples.
"""

from feedback.contracts.base import (
    Contract,
    ContractError,
    Event,
    UnknownSchemaVersion,
    utc_now,
)
from feedback.contracts.curation import (
    DeadLetter,
    RecordsCurated,
)
from feedback.contracts.releases import (
    ADAPTER_NAME_PATTERN,
    CHECKPOINT_NAME_PATTERN,
    GATE_KEY,
    AdapterManifest,
    AdapterPublished,
    CheckpointManifest,
    GateChanged,
    ProbeRecord,
    ReleaseChanged,
    ReleaseState,
)
from feedback.contracts.review import (
    ReviewItem,
    ReviewPool,
)
from feedback.contracts.topics import (
    ADAPTER_TOPIC,
    DEAD_LETTER_TOPIC,
    FORGOTTEN_TOPIC,
    PAIR_TOPIC,
    RECEIPT_TOPIC,
    RELEASE_TOPIC,
    THUMB_TOPIC,
    TOPICS,
    VOTE_TOPIC,
)
from feedback.contracts.voting import (
    GOLD_RULE,
    MAX_COMMENT,
    MAX_EDITED,
    REVIEW_RULE,
    AnswerShown,
    Choice,
    CompletionRecord,
    FinishReason,
    Message,
    PairChoice,
    PairShown,
    Position,
    Ranking,
    SamplingRecord,
    Thumb,
    ThumbGiven,
    VoteCast,
    VoterForgotten,
)

__all__ = [
    "ADAPTER_NAME_PATTERN",
    "ADAPTER_TOPIC",
    "CHECKPOINT_NAME_PATTERN",
    "DEAD_LETTER_TOPIC",
    "FORGOTTEN_TOPIC",
    "GATE_KEY",
    "GOLD_RULE",
    "MAX_COMMENT",
    "MAX_EDITED",
    "PAIR_TOPIC",
    "RECEIPT_TOPIC",
    "RELEASE_TOPIC",
    "REVIEW_RULE",
    "THUMB_TOPIC",
    "TOPICS",
    "VOTE_TOPIC",
    "AdapterManifest",
    "AdapterPublished",
    "AnswerShown",
    "CheckpointManifest",
    "Choice",
    "CompletionRecord",
    "Contract",
    "ContractError",
    "DeadLetter",
    "Event",
    "FinishReason",
    "GateChanged",
    "Message",
    "PairChoice",
    "PairShown",
    "Position",
    "ProbeRecord",
    "Ranking",
    "RecordsCurated",
    "ReleaseChanged",
    "ReleaseState",
    "ReviewItem",
    "ReviewPool",
    "SamplingRecord",
    "Thumb",
    "ThumbGiven",
    "UnknownSchemaVersion",
    "VoteCast",
    "VoterForgotten",
    "utc_now",
]
