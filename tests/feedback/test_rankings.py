"""A ranking of K answers: K(K-1)/2 comparisons of one vote, from the event to a snapshot's rows and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feedback.comparisons import comparisons, read, told
from feedback.contracts import CompletionRecord, ContractError, PairShown, Ranking, VoteCast
from feedback.dataset import Dataset
from feedback.voters import Ballots, VotersConfig, ballots_of, vote_weights, voter_weights
from feedback.voters.cells import records, repeat_factors
from tests.feedback.events import SAMPLING, pair, vote

CAN, OLD = "policy-000002", "policy-000001"


def more(number: int, adapters: tuple[str | None, ...]) -> PairShown:
    """`pair(number)` with as many answers as adapters; lengths and token ids tell them apart."""
    sides = tuple(
        CompletionRecord(
            position=position,
            text="x" * (at + 1),
            finish_reason="stop",
            adapter=adapter,
            sampling=SAMPLING,
            token_ids=(number, at),
        )
        for at, (position, adapter) in enumerate(zip("abcd", adapters, strict=False))
    )
    return pair(number).model_copy(update={"completions": sides})


def ranked(number: int, ranking: str, adapters: tuple[str | None, ...] = (CAN, OLD, OLD)) -> VoteCast:
    shown = more(number, adapters)
    return VoteCast(
        schema_version=2,
        vote_id=f"w{number}",
        pair=shown,
        voter=shown.voter,
        choice="ranking",
        ranking=read(ranking),
        cast_at=vote(number).cast_at,
    )


def test_a_ranking_in_one_line_is_read_again() -> None:
    ranking: Ranking = (("b",), ("a", "c"), ("d",))
    assert told(ranking) == "b>a=c>d"
    assert read("b>a=c>d") == ranking


def test_a_vote_on_a_pair_is_one_comparison_and_a_ranking_all_of_them() -> None:
    (one,) = comparisons(vote(1))
    assert (one.first.position, one.second.position, one.choice, one.among) == ("a", "b", "b", 1)
    found = comparisons(ranked(0, "c>a=b"))
    assert [(c.first.position, c.second.position, c.choice, c.part, c.among) for c in found] == [
        ("a", "b", "tie", 0, 3),
        ("a", "c", "b", 1, 3),
        ("b", "c", "b", 2, 3),
    ]
    assert len(comparisons(ranked(0, "d>c>b>a", (CAN, OLD, OLD, CAN)))) == 6


def test_what_is_said_of_all_is_said_of_every_two() -> None:
    bad = vote(3).model_copy(update={"pair": more(3, (CAN, OLD, OLD))})
    assert [c.choice for c in comparisons(bad)] == ["both_bad"] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ranking": [["a"], ["b"]]}, "must name each of a, b, c once"),
        ({"ranking": [["a"], ["b"], ["c", "c"]]}, "must name each of a, b, c once"),
        ({"ranking": None}, "belongs to the choice"),
        ({"choice": "a"}, "belongs to the choice"),
        ({"schema_version": 1}, "as schema_version 2"),
        ({"ranking": [["a", "b", "c"]]}, "at least 2"),
    ],
)
def test_a_ranking_is_whole_or_no_record(change: dict[str, object], words: str) -> None:
    broken = ranked(0, "c>a=b").model_dump(mode="json") | change
    with pytest.raises(ContractError, match=words):
        VoteCast.from_bytes(json.dumps(broken).encode())


def test_votes_on_pairs_are_written_as_they_always_were() -> None:
    assert b"ranking" not in vote(1).to_bytes()
    assert vote(1).schema_version == 1


def test_a_snapshot_has_a_row_for_every_two_answers(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(1), ranked(4, "c>a=b"), ranked(8, "b>a>c")])
    manifest = dataset.build_snapshot()
    assert (manifest.votes, manifest.decisive, manifest.ties, manifest.comparisons) == (3, 3, 0, 7)
    snapshot = dataset.load_snapshot(manifest.id)
    rows = [*snapshot.preferences.to_pylist(), *snapshot.ties.to_pylist()]
    assert [
        (row["vote_id"], row["answers"], row["chosen_position"], row["rejected_position"], row["outcome"])
        for row in rows
    ] == [
        ("w1", 2, "b", "a", "decisive"),
        ("w4", 3, "c", "a", "decisive"),
        ("w4", 3, "c", "b", "decisive"),
        ("w8", 3, "b", "a", "decisive"),
        ("w8", 3, "a", "c", "decisive"),
        ("w8", 3, "b", "c", "decisive"),
        ("w4", 3, "a", "b", "tie"),
    ]
    assert [row["chosen_token_ids"] for row in rows if row["vote_id"] == "w4"] == [[4, 2], [4, 2], [4, 0]]
    assert dataset.count_new(None).decisive == 3  # three people's votes, however many comparisons they are
    assert list(dataset.vote_ids(manifest.id)).count("w8") == 3
    assert dataset.snapshots_with("w8") == [manifest.id]


def test_a_ranking_counts_once_among_the_voters() -> None:
    votes = [ranked(number, "a>b>c", (CAN, OLD, None)) for number in range(0, 12, 3)]  # all by v_0
    ballots = Ballots.of_votes(votes)
    assert len(ballots) == 12
    assert ballots.share.sum() == pytest.approx(4.0)
    assert ballots.lead.sum() == 4
    counted = records(ballots, VotersConfig())
    assert (counted.left.sum(), counted.right.sum()) == (4, 0)
    assert counted.cells.wins.sum() + counted.cells.losses.sum() == 4


def test_repeats_are_counted_in_votes() -> None:
    said = [ballot._replace(prompt=7) for n in range(0, 9, 3) for ballot in ballots_of(ranked(n, "a>b>c"))]
    assert repeat_factors(Ballots.of(said), 3).tolist() == [1.0] * 9
    fourth = [ballot._replace(prompt=7) for ballot in ballots_of(ranked(9, "a>b>c"))]
    assert repeat_factors(Ballots.of([*said, *fourth]), 3).tolist() == [0.75] * 12


def test_a_ranking_of_four_has_no_more_leverage_than_a_pair() -> None:
    """Its rows all weigh what its voter does; the trainer knows what they count together (train.reward.rankings)."""

    def by(voter: str, cast: VoteCast) -> VoteCast:
        return cast.model_copy(update={"voter": voter})

    votes = [by(f"v{n}", vote(n, "a")) for n in range(1, 6)]
    ranking = by("v6", ranked(6, "d>c>b>a", (CAN, OLD, OLD, CAN)))
    config = VotersConfig(cap_from_voters=2)  # six voters: nobody may have more than a third
    assert vote_weights(Ballots.of_votes([*votes, ranking]), config).tolist() == [1.0] * 11
    again = [by("v6", ranked(n, "d>c>b>a", (CAN, OLD, OLD, CAN))) for n in range(7, 12)]
    assert voter_weights(Ballots.of_votes([*votes, ranking, *again]), config)["v6"] == pytest.approx(2.5 / 6, abs=1e-4)
