"""What a record may hold: a stranger's record can break no table and fill no memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from feedback.contracts import ContractError, VoteCast
from feedback.curator import sort_out
from feedback.event_log import StoredRecord
from tests.feedback.events import vote


def changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    record = json.loads(vote(1).to_bytes())
    change(record)
    return json.dumps(record).encode()


def side(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["pair"]["completions"][0]
    return found


TROUBLE: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda r: side(r).update(token_ids=[1, 2**31]), "token_ids"),
    (lambda r: side(r).update(token_ids=[1, -1]), "token_ids"),
    (lambda r: r["pair"].update(prompt_token_ids=[2**63]), "prompt_token_ids"),
    (lambda r: side(r).update(logprobs=[-0.5, float("-inf")]), "JSON|logprobs"),
    (lambda r: side(r).update(logprobs=[-0.5]), "one each is needed"),
    (lambda r: r.update(comment="x" * 10_001), "comment"),
    (lambda r: r.update(edited="x" * 100_001), "edited"),
    (lambda r: r.update(reasons=["x" * 257]), "reasons"),
    (lambda r: r.update(reasons=["x"] * 101), "reasons"),
    (lambda r: r.update(vote_id=""), "vote_id"),
    (lambda r: r.update(vote_id="x" * 257), "vote_id"),
    (lambda r: r["pair"].update(conversation_id="x" * 257), "conversation_id"),
    (lambda r: r.update(cast_at="0001-01-01T00:00:00+14:00"), "cast_at"),
    (lambda r: r.update(cast_at="9999-12-31T23:59:59-14:00"), "cast_at"),
    (lambda r: r["pair"].update(shown_at="1969-12-31T23:59:59Z"), "shown_at"),
]


@pytest.mark.parametrize(("change", "words"), TROUBLE)
def test_a_record_out_of_bounds_is_refused_with_the_place(change: Callable[[dict[str, Any]], None], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        VoteCast.from_bytes(changed(change))


def test_a_record_out_of_bounds_is_a_dead_letter_and_the_next_one_is_read() -> None:
    values = [changed(TROUBLE[0][0]), changed(TROUBLE[5][0]), vote(2).to_bytes()]
    batch = sort_out([StoredRecord("hustings.votes", 0, n, b"k", value, 0) for n, value in enumerate(values)])
    assert [one.vote_id for one in batch.votes] == ["w2"]
    assert [letter.offset for letter in batch.dead] == [0, 1]
    assert batch.event_ids == ["w1", "w1", "w2"]


def test_answers_without_logprobs_are_welcome() -> None:
    assert VoteCast.from_bytes(changed(lambda r: side(r).update(logprobs=[]))).pair.completions[0].logprobs == ()
