"""What must hold after the kills, checked against what the voters were told. Pure functions of what was read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.durability.naming import named, repeated
from benchmarks.durability.training_verdict import Training, training_findings
from benchmarks.durability.voters import Acknowledged


@dataclass(frozen=True, slots=True)
class SnapshotVote:
    """A row of a snapshot, as far as it can be compared."""

    vote_id: str
    pair_id: str
    conversation_id: str
    choice: str
    comment: str | None
    at_us: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found when everything had come to rest.

    Attributes:
        votes: rows of the last snapshot, ties too.
        prompts: pair ids of the last snapshot.
        passing: vote ids of each snapshot that was built on the way.
        ledger: vote ids in the ledger.
        topic: vote ids on the topic, as (partition, offset) has them; what a volatile broker forgot is missing.
        topic_forgets: whether the broker forgets when killed.
        dead_letters, parked: how many.
        rebuilt: id of the snapshot made anew from a replay of the ledger; None where none was.
        snapshot: id of the last snapshot.
        training: what the trainer left behind; None where none ran.
    """

    votes: Sequence[SnapshotVote]
    prompts: Sequence[str]
    passing: Mapping[str, Sequence[str]]
    ledger: frozenset[str]
    topic: Sequence[str]
    topic_forgets: bool
    dead_letters: int
    parked: int
    snapshot: str
    rebuilt: str | None
    training: Training | None = None


def findings(acknowledged: Sequence[Acknowledged], pairs: Iterable[str], evidence: Evidence) -> list[str]:
    """Every breach of the promise, in words; empty where it was kept."""
    told = {vote.vote_id: vote for vote in acknowledged}
    found = Counter(vote.vote_id for vote in evidence.votes)
    prompts = Counter(evidence.prompts)
    breaches = [
        named(
            "two acknowledgements of different votes have one id", repeated(Counter(v.vote_id for v in acknowledged))
        ),
        named("acknowledged and not in the ledger", told.keys() - evidence.ledger),
        named("acknowledged and not in the snapshot", told.keys() - found.keys()),
        named("in the snapshot more than once", repeated(found)),
        named("in the snapshot and never cast", found.keys() - told.keys()),
        named("not what was voted", _altered(told, evidence.votes)),
        named("pairs shown and not in the snapshot", set(pairs) - prompts.keys()),
        named("pairs in the snapshot more than once", repeated(prompts)),
        named("out of order in the snapshot", _disordered(acknowledged, _by_time(evidence.votes))),
        named("out of order on the topic", _disordered(acknowledged, _first_seen(evidence.topic))),
        named("snapshots on the way that double or invent", _wrong_on_the_way(told.keys(), evidence.passing)),
    ]
    if not evidence.topic_forgets:
        breaches.append(named("acknowledged and not on the topic", told.keys() - set(evidence.topic)))
    if evidence.dead_letters:
        breaches.append(f"{evidence.dead_letters} dead letters, though every record was good")
    if evidence.parked:
        breaches.append(f"{evidence.parked} events parked, though none was too large")
    if evidence.rebuilt is not None and evidence.rebuilt != evidence.snapshot:
        breaches.append(f"a replay of the ledger makes snapshot {evidence.rebuilt}, not {evidence.snapshot}")
    if evidence.training is not None:
        breaches += training_findings(evidence.training)
    return [breach for breach in breaches if breach]


def _altered(told: Mapping[str, Acknowledged], votes: Sequence[SnapshotVote]) -> set[str]:
    altered = set()
    for vote in votes:
        said = told.get(vote.vote_id)
        if said is not None and (said.pair_id, said.conversation_id, said.choice, said.comment) != (
            vote.pair_id,
            vote.conversation_id,
            vote.choice,
            vote.comment,
        ):
            altered.add(vote.vote_id)
    return altered


def _disordered(acknowledged: Sequence[Acknowledged], order: Sequence[str]) -> set[str]:
    """Conversations whose votes stand in another order than that of their acknowledgements."""
    place = {vote_id: number for number, vote_id in enumerate(order)}
    places: dict[str, list[int]] = defaultdict(list)
    for vote in sorted(acknowledged, key=lambda vote: vote.at):
        if vote.vote_id in place:
            places[vote.conversation_id].append(place[vote.vote_id])
    return {conversation for conversation, found in places.items() if found != sorted(found)}


def _by_time(votes: Sequence[SnapshotVote]) -> list[str]:
    return [vote.vote_id for vote in sorted(votes, key=lambda vote: vote.at_us)]


def _first_seen(vote_ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(vote_ids))


def _wrong_on_the_way(told: Iterable[str], passing: Mapping[str, Sequence[str]]) -> set[str]:
    known = set(told)
    return {name for name, ids in passing.items() if len(set(ids)) != len(ids) or not known.issuperset(ids)}
