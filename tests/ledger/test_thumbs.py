"""Single answers and thumbs: one transaction with the outbox, the first stands, nobody else's, forgotten whole."""

from __future__ import annotations

import pytest

from feedback.contracts import THUMB_TOPIC, AnswerShown, CompletionRecord, Message, ThumbGiven
from feedback.ledger import Ledger, NotYourConversation, NotYourPair, UnknownPair, VoteConflict
from feedback.privacy import PrivacyConfig, Redactor
from tests.ledger.builders import SAMPLING, shown

ANN, BOB = "v_ann", "v_bob"


def answer(answer_id: str = "answer_1", *, text: str = "Tea.", voter: str = ANN, talk: str = "talk_1") -> AnswerShown:
    return AnswerShown(
        answer_id=answer_id,
        conversation_id=talk,
        voter=voter,
        messages=(Message(role="user", content="Grüße? ☕"),),
        completion=CompletionRecord(
            position="a",
            text=text,
            finish_reason="stop",
            adapter="policy-000001",
            sampling=SAMPLING,
            token_ids=(1, 2),
            logprobs=(-0.5, -0.25),
        ),
        propensity=0.8,
        base_model="tiny",
        prompt_token_ids=(5, 6),
    )


def test_a_thumb_is_recorded_with_its_outbox_row_and_carries_its_answer(ledger: Ledger) -> None:
    shown_answer = answer()
    ledger.record_answer(shown_answer)
    assert ledger.pending(10) == []  # an answer alone is nobody's event
    outcome = ledger.record_thumb(answer_id="answer_1", voter=ANN, thumb="up", reasons=["clear"], comment="nice")
    assert outcome.created
    (row,) = ledger.pending(10)
    assert (row.topic, row.key, row.event_id) == (THUMB_TOPIC, "talk_1", outcome.event.thumb_id)
    assert ThumbGiven.from_bytes(row.value) == outcome.event
    assert outcome.event.answer == shown_answer
    counts = ledger.thumb_counts()
    assert (counts.answers, counts.up, counts.down) == (1, 1, 0)


def test_the_first_thumb_stands(ledger: Ledger) -> None:
    ledger.record_answer(answer())
    first = ledger.record_thumb(answer_id="answer_1", voter=ANN, thumb="down")
    again = ledger.record_thumb(answer_id="answer_1", voter=ANN, thumb="down")
    assert (again.created, again.event.thumb_id) == (False, first.event.thumb_id)
    with pytest.raises(VoteConflict, match="answer 'answer_1' already has your vote 'down'"):
        ledger.record_thumb(answer_id="answer_1", voter=ANN, thumb="up")
    assert len(ledger.pending(10)) == 1


def test_only_who_saw_an_answer_may_judge_it(ledger: Ledger) -> None:
    ledger.record_answer(answer())
    with pytest.raises(NotYourPair, match="answer"):
        ledger.record_thumb(answer_id="answer_1", voter=BOB, thumb="up")
    with pytest.raises(UnknownPair, match="no answer 'answer_9'"):
        ledger.record_thumb(answer_id="answer_9", voter=ANN, thumb="up")
    with pytest.raises(NotYourConversation):
        ledger.record_answer(answer("answer_2", voter=BOB))


def test_a_confirmed_thumb_can_be_sent_again_in_the_same_bytes(ledger: Ledger) -> None:
    ledger.record_answer(answer())
    ledger.record_thumb(answer_id="answer_1", voter=ANN, thumb="up")
    (row,) = ledger.pending(10)
    ledger.mark_sent([row.seq])
    assert ledger.mark_confirmed([row.event_id]) == 1
    assert ledger.replay([THUMB_TOPIC]) == 1
    assert ledger.pending(10)[0].value == row.value


def test_a_forgotten_voters_answers_and_thumbs_go(ledger: Ledger) -> None:
    ledger.record_answer(answer())
    ledger.record_answer(answer("answer_2", voter=BOB, talk="talk_2"))
    ledger.record_pair(shown("pair_1"))  # in the same conversation
    for answer_id, voter in (("answer_1", ANN), ("answer_2", BOB)):
        ledger.record_thumb(answer_id=answer_id, voter=voter, thumb="up")
    ledger.forget(ANN)
    counts = ledger.thumb_counts()
    assert (counts.answers, counts.up) == (1, 1)
    assert [row.key for row in ledger.pending(10) if row.topic == THUMB_TOPIC] == ["talk_2"]


def test_personal_data_do_not_reach_the_ledger(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", Redactor(PrivacyConfig()))
    try:
        ledger.record_answer(answer(text="Write to ann@example.com."))
        event = ledger.record_thumb(answer_id="answer_1", voter=ANN, thumb="up", comment="I am ann@example.com").event
        assert "ann@example.com" not in event.to_bytes().decode()
        assert event.answer.completion.token_ids == ()
    finally:
        ledger.close()
