from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from feedback.config import VotersConfig
from feedback.contracts import Choice, VoteCast
from feedback.dataset import Dataset
from feedback.voters import Ballots, vote_weights, weigher
from tests.feedback.events import START, pair, vote

LEFT_ALL_ALONG = "v_left"


def votes(number: int) -> list[VoteCast]:
    """Ten voters who take turns, and one who votes left whatever is shown."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(number):
        voter = LEFT_ALL_ALONG if i % 11 == 10 else f"v_{i % 11}"
        choice: Choice = "a" if voter == LEFT_ALL_ALONG else ("a", "b", "tie")[rng.choice(3, p=[0.4, 0.4, 0.2])]
        shown = pair(i).model_copy(update={"voter": voter, "shown_at": START + timedelta(minutes=i)})
        at = shown.shown_at + timedelta(seconds=20)
        made.append(vote(i, choice).model_copy(update={"pair": shown, "voter": voter, "cast_at": at}))
    return made


def test_a_snapshots_weights_are_those_of_its_votes(tmp_path: Path) -> None:
    cast = votes(440)
    dataset = Dataset(tmp_path, weigher(VotersConfig()))
    dataset.append_votes(cast)
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    expected = dict(zip([v.vote_id for v in cast], vote_weights(Ballots.of_votes(cast), VotersConfig()), strict=True))
    rows = [*snapshot.preferences.to_pylist(), *snapshot.ties.to_pylist()]
    assert len(rows) == len(cast)
    assert {row["vote_id"]: row["weight"] for row in rows} == pytest.approx(expected)
    by_voter = {row["voter"]: row["weight"] for row in rows}
    assert by_voter.pop(LEFT_ALL_ALONG) < 0.01
    assert min(by_voter.values()) > 0.9
    assert snapshot.preferences.schema.equals(Dataset(tmp_path).load_snapshot(snapshot.manifest.id).preferences.schema)


def test_the_same_votes_in_another_order_give_the_same_snapshot(tmp_path: Path) -> None:
    cast = votes(220)
    one, other = (Dataset(tmp_path / name, weigher(VotersConfig())) for name in ("one", "other"))
    one.append_votes(cast)
    other.append_votes(cast[110:])
    other.append_votes(cast[:120])
    assert one.build_snapshot().id == other.build_snapshot().id


def test_votes_that_all_weigh_one_make_the_snapshot_that_nobody_weighed(tmp_path: Path) -> None:
    plain, weighed = Dataset(tmp_path / "plain"), Dataset(tmp_path / "weighed", weigher(VotersConfig()))
    for dataset in (plain, weighed):
        dataset.append_votes([vote(n) for n in range(8)])
    assert plain.build_snapshot().id == weighed.build_snapshot().id


def test_a_planted_pair_trains_nobody(tmp_path: Path) -> None:
    planted = vote(0).model_copy(update={"pair": pair(0).model_copy(update={"gold": "a"})})
    dataset = Dataset(tmp_path, weigher(VotersConfig()))
    dataset.append_votes([planted, vote(1), vote(4)])
    rows = dataset.load_snapshot(dataset.build_snapshot().id).preferences.to_pylist()
    assert [row["weight"] for row in rows] == [0.0, 1.0, 1.0]
