"""`[train.reward]`, `[train.review]` and `[train.schedule]` of hustings.toml. Importable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from feedback.config import Section


class RewardConfig(Section):
    """How votes become a reward."""

    head: Literal["mix", "last"] = "mix"
    """`mix`: pooled layers of the frozen base under a regularised fit that knows ties (tens of votes are enough).
    `last`: the textbook scalar head at the last token, trained with a LoRA (thousands of votes)."""
    credit: Literal["token", "end"] = "token"
    """Where PPO gets the score: split over the tokens that earned it (exact), or in one lump at the end."""
    depths: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = Field(default=(0.0, 0.4, 0.73), min_length=1)
    """Layers that `mix` reads, as shares of the base's depth; 0 is the embedding layer."""
    folds: int = Field(default=5, ge=2)
    """Folds of the cross-validation (over conversations) by which `mix` is judged, and its scores are calibrated."""
    heldout: float = Field(default=0.15, ge=0.0, lt=0.9)
    """Share of conversations that the `last` head never sees, to judge it by (`mix` is cross-validated instead): one
    part of 2 to 20, whichever is nearest."""
    members: int = Field(default=8, ge=0, le=64)
    """Heads of the ensemble (`mix`), fitted on resampled conversations: how far they differ about an answer says how
    little is known of it. 0 for none, 1 is no ensemble either."""
    pessimism: float = Field(default=0.0, ge=0.0)
    """How many of the ensemble's standard deviations are taken off an answer's score before PPO sees it."""
    old_votes: float = Field(default=1.0, gt=0.0, le=1.0)
    """What a vote counts that the last published reward model was fitted on already: under 1 where tastes drift."""
    rankings: Literal["answer", "prompt", "pair"] = "answer"
    """What the pairs count that one voter cast on K answers to one prompt: `answer` 1/(K-1) each, `prompt` 1/C(K,2)
    (InstructGPT's mean a prompt), `pair` 1 each."""
    min_decisive: int = Field(default=16, ge=2)
    """Fewest decisive votes that a reward model is fitted on."""
    max_length_correlation: float = Field(default=0.9, gt=0.0, le=1.0)
    """A model whose score follows the answer's length this closely is refused, unless the votes themselves do."""
    batch_tokens: int = Field(default=2048, ge=64)
    """Tokens of one forward pass of the base while features are read, and of the `last` head's training (a larger batch
    of comparisons accumulates gradients)."""
    last_lora: bool = True
    """Whether the `last` head trains a LoRA (of `train.lora`'s shape) with it, or the scalar head alone."""
    learning_rate: float = Field(default=1e-4, gt=0.0)
    """AdamW's rate for the `last` head."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the votes for the `last` head (several overfit)."""
    batch_pairs: int = Field(default=8, ge=1)
    """Comparisons of one step of the `last` head."""


class ReviewConfig(Section):
    """`[train.review]`: pairs that the trainer prepares after a cycle for people to judge (docs/voting.md)."""

    prompts: int = Field(default=0, ge=0, le=4096)
    """Imported prompts that answers are sampled to, by serving's idle capacity; 0 prepares nothing. It wants
    `train.reward.head = "mix"` and `train.reward.members` of 2 or more, and a trainer that knows of serving."""
    answers: int = Field(default=4, ge=2, le=8)
    """Answers to each; two of them are offered: those that a vote on would tell the reward model most about."""
    pairs: int = Field(default=32, ge=1)
    """Pairs that are offered at most, the most telling ones."""
    floor: float = Field(default=0.1, gt=0, le=1)
    """Probability that a prompt's pair is drawn evenly instead, so that every propensity is known and none is 0."""
    sharpness: float = Field(default=8.0, ge=0)
    """How strictly the most telling pair is preferred otherwise: by its worth to this power."""
    chats: bool = False
    """Also take questions that people asked here. Other people will read them: say so to those who ask."""


class ScheduleConfig(Section):
    """When a cycle starts and what it starts from."""

    new_comparisons: int = Field(default=64, ge=1)
    """Decisive votes since the last cycle's snapshot that start the next one."""
    retry_comparisons: int = Field(default=16, ge=1)
    """The same after a cycle whose reward model was refused, as a coin say: to ask again costs seconds."""
    max_hours: float = Field(default=24.0, gt=0.0)
    """Hours since the last cycle after which the next starts with fewer, if there are any votes; the first waits."""
    poll_s: float = Field(default=2.0, gt=0.0)
    """Seconds between looks at the dataset."""
    start_from: Literal["base", "incumbent"] = "base"
    """What PPO begins with: a fresh adapter on the base, or the adapter in office."""
    min_prompts: int = Field(default=8, ge=1)
    """Fewest distinct prompts that PPO may train on."""
    eval_prompts: int = Field(default=16, ge=1)
    """Prompts that base and policy answer after training: for the report, and to refuse a policy that earns no more."""
    keep_cycles: int = Field(default=5, ge=1)
    """Finished cycles whose checkpoints are kept; reports and metrics stay for ever."""
    keep_snapshots: int = Field(default=10, ge=1)
    """Snapshots whose tables are kept, the newest, besides the last cycle's: each is a copy of all votes. Of older ones
    manifest and ids stay, and the votes in any case."""
    metrics_host: str = "127.0.0.1"
    """Address of the trainer's /metrics: in a container, where Prometheus asks from another, 0.0.0.0."""
    metrics_port: int = Field(default=9102, ge=0, le=65535)
    """Port of the trainer's /metrics; 0 for none."""
    niceness: int = Field(default=10, ge=0, le=19)
    """How far the trainer steps back behind serving."""
