"""What is trained and how it comes into office: adapters and whole models with their lineage, and their releases."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from feedback.contracts.base import Contract, Event, Moment, utc_now

ADAPTER_NAME_PATTERN = r"^policy-[0-9]{6}$"
"""Names of published adapters: immutable, never used twice (a reused name can serve stale prefix-cache blocks)."""

CHECKPOINT_NAME_PATTERN = r"^full-[0-9]{6}$"
"""Names of published whole models (`train.tuning = "full"`), likewise immutable."""

GATE_KEY = "gate"
"""Key of `GateChanged` among the releases, whose keys are adapters' names."""
AdapterName = Annotated[str, Field(pattern=ADAPTER_NAME_PATTERN)]


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
    figures: dict[str, float] = Field(default_factory=dict)
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


class Manifest(Contract):
    """What the manifest of every result of training tells: its whole lineage.

    Attributes:
        base_model, base_fingerprint: what it was trained from, and measured against.
        snapshot: id of the dataset snapshot that it was trained on.
        reward_model: id of the reward model that scored it.
        files: sha256 of each file of the folder but this one, by name.
        probes: log-probs of a few answers under the trained model (`policy_logprobs`) and under its base.
        config: the trainer's resolved configuration.
        metrics: the cycle's figures (reward, KL, held-out accuracy, ...).
    """

    schema_version: Literal[1] = 1
    base_model: str
    base_fingerprint: str
    reward_model: str
    snapshot: str
    files: dict[str, str]
    probes: tuple[ProbeRecord, ...] = Field(min_length=1)
    config: dict[str, Any]
    metrics: dict[str, float]
    created_at: Moment = Field(default_factory=utc_now)


class AdapterManifest(Manifest):
    """`manifest.json` beside an adapter's weights."""

    name: AdapterName
    parent: str | None
    lora_rank: int

    def lean(self) -> Self:
        """Without probes and configuration, which are nearly all of it, so that hundreds can be kept."""
        return self.model_copy(update={"probes": (), "config": {}})


class CheckpointManifest(Manifest):
    """`manifest.json` beside the weights of a whole model that full fine-tuning made: a base to start serving with.

    Attributes:
        fingerprint: of this model, as serving and trainer compute it of a base.
        dtype: of the weights in the files.
    """

    name: Annotated[str, Field(pattern=CHECKPOINT_NAME_PATTERN)]
    fingerprint: str
    dtype: str
