"""The kill harness's own judgement: each breach of the promise is found, and a kept promise is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.durability.verdict import Evidence, SnapshotVote, findings
from benchmarks.durability.voters import Acknowledged

TOLD = [
    Acknowledged(f"vote_{n}", f"pair_{n}", f"conv_{n % 2}", "a", f"said {n}", at=float(n), waited_s=0.1, attempts=1)
    for n in range(4)
]
PAIRS = [vote.pair_id for vote in TOLD]
ROWS = tuple(
    SnapshotVote(vote.vote_id, vote.pair_id, vote.conversation_id, "a", vote.comment, at_us=1_000 + number)
    for number, vote in enumerate(TOLD)
)
IDS = tuple(vote.vote_id for vote in TOLD)
KEPT = Evidence(
    votes=ROWS,
    prompts=(*PAIRS, "pair_unanswered"),
    passing={"s1": IDS[:2], "s2": IDS},
    ledger=frozenset(IDS),
    topic=("vote_0", "vote_1", "vote_0", "vote_2", "vote_3"),
    topic_forgets=False,
    dead_letters=0,
    parked=0,
    snapshot="s2",
    rebuilt="s2",
)


def test_a_kept_promise_is_no_finding() -> None:
    """Repeats on the topic are for readers to drop, and a pair whose answer got lost may be there."""
    assert findings(TOLD, PAIRS, KEPT) == []


def test_a_broker_that_forgets_need_not_hold_everything() -> None:
    assert findings(TOLD, PAIRS, replace(KEPT, topic=("vote_3",), topic_forgets=True)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"votes": ROWS[:3]}, "acknowledged and not in the snapshot: vote_3"),
        ({"votes": (*ROWS, ROWS[1])}, "in the snapshot more than once: vote_1"),
        ({"votes": (*ROWS, replace(ROWS[0], vote_id="vote_9"))}, "in the snapshot and never cast: vote_9"),
        ({"votes": (*ROWS[:3], replace(ROWS[3], choice="b"))}, "not what was voted: vote_3"),
        ({"votes": (*ROWS[:3], replace(ROWS[3], comment=None))}, "not what was voted: vote_3"),
        ({"votes": (*ROWS[:3], replace(ROWS[3], at_us=1))}, "out of order in the snapshot: conv_1"),
        ({"ledger": frozenset(IDS[1:])}, "acknowledged and not in the ledger: vote_0"),
        ({"topic": IDS[:3]}, "acknowledged and not on the topic: vote_3"),
        ({"topic": ("vote_2", "vote_0", "vote_1", "vote_3")}, "out of order on the topic: conv_0"),
        ({"prompts": PAIRS[1:]}, "pairs shown and not in the snapshot: pair_0"),
        ({"prompts": (*PAIRS, "pair_2")}, "pairs in the snapshot more than once: pair_2"),
        ({"passing": {"s1": ("vote_0", "vote_0")}}, "double or invent: s1"),
        ({"passing": {"s1": ("vote_9",)}}, "double or invent: s1"),
        ({"dead_letters": 1}, "1 dead letters"),
        ({"parked": 2}, "2 events parked"),
        ({"rebuilt": "s3"}, "a replay of the ledger makes snapshot s3, not s2"),
    ],
)
def test_each_breach_is_found(change: dict[str, object], words: str) -> None:
    found = findings(TOLD, PAIRS, replace(KEPT, **change))  # type: ignore[arg-type]
    assert len(found) == 1
    assert words in found[0]


def test_many_ids_are_counted_and_few_are_named() -> None:
    told = [replace(TOLD[0], vote_id=f"vote_{n}", pair_id=f"pair_{n}", conversation_id=f"conv_{n}") for n in range(9)]
    empty = replace(KEPT, votes=(), ledger=frozenset(v.vote_id for v in told), topic=[v.vote_id for v in told])
    (lost, *_) = findings(told, [], replace(empty, passing={}, rebuilt=None))
    assert lost == "acknowledged and not in the snapshot: vote_0, vote_1, vote_2, vote_3, vote_4 and 4 more"
