"""What a redacted pair and vote hold, in the ledger and behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from feedback.contracts import CompletionRecord, Message, PairShown
from feedback.ledger import Ledger
from feedback.privacy import PrivacyConfig, Redactor
from feedback.privacy.config import Action
from tests.feedback.events import pair

MAIL = "ann@example.com"


def asked(text: str, answer: str = "Left 1") -> PairShown:
    plain = pair(1)
    first: CompletionRecord = plain.completions[0].model_copy(update={"text": answer})
    messages = (Message(role="user", content=text),)
    return plain.model_copy(update={"messages": messages, "completions": (first, plain.completions[1])})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", Redactor(PrivacyConfig()))
    yield opened
    opened.close()


@pytest.mark.parametrize("region", ["UK", "de", ""])
def test_a_country_whose_numbers_nobody_knows_is_refused(region: str) -> None:
    with pytest.raises(ValidationError, match="is no country whose phone numbers are known"):
        PrivacyConfig(phone_regions=("FR", region))


def test_a_prompt_loses_its_token_ids_with_its_personal_data() -> None:
    kept = Redactor(PrivacyConfig()).pair(asked(f"Write to {MAIL}, or {MAIL}!"))
    assert kept.messages[0].content == "Write to [EMAIL], or [EMAIL]!"
    assert kept.prompt_token_ids == ()
    assert kept.completions == pair(1).completions


def test_an_answer_loses_its_token_ids_and_logprobs_with_its_personal_data() -> None:
    kept = Redactor(PrivacyConfig()).pair(asked("Who?", f"Ask {MAIL}."))
    assert (kept.completions[0].text, kept.completions[0].token_ids, kept.completions[0].logprobs) == (
        "Ask [EMAIL].",
        (),
        (),
    )
    assert kept.completions[1] == pair(1).completions[1]
    assert kept.prompt_token_ids == pair(1).prompt_token_ids


def test_a_pair_without_personal_data_is_the_same_pair() -> None:
    plain = pair(1)
    assert Redactor(PrivacyConfig()).pair(plain) is plain


@pytest.mark.parametrize(
    ("action", "prompt", "comment"),
    [
        ("redact", "Write to [EMAIL]", "from [EMAIL]"),
        ("drop", "[REMOVED]", None),
        ("keep", f"Write to {MAIL}", f"from {MAIL}"),
    ],
)
def test_each_field_has_its_policy(action: Action, prompt: str, comment: str | None) -> None:
    found: list[tuple[str, str]] = []
    redactor = Redactor(PrivacyConfig(prompt=action, comment=action), lambda field, kind: found.append((field, kind)))
    assert redactor.pair(asked(f"Write to {MAIL}")).messages[0].content == prompt
    assert redactor.comment(f"from {MAIL}") == comment
    assert redactor.edited(f"it is {MAIL}") == "it is [EMAIL]"
    told = (
        [("edited", "email")] if action == "keep" else [("prompt", "email"), ("comment", "email"), ("edited", "email")]
    )
    assert found == told


def test_nothing_personal_reaches_ledger_or_outbox(ledger: Ledger, tmp_path: Path) -> None:
    shown = asked(f"I am {MAIL}", f"Hello {MAIL}")
    ledger.record_pair(shown)
    ledger.record_pair(shown)
    ledger.record_vote(
        pair_id="p1", voter=shown.voter, choice="a", comment=MAIL, edited=f"Dear {MAIL}", reasons=[f"knows {MAIL}"]
    )
    vote = ledger.vote("p1", shown.voter)
    assert vote is not None
    assert (vote.comment, vote.edited, vote.reasons) == ("[EMAIL]", "Dear [EMAIL]", ("knows [EMAIL]",))
    assert vote.pair.prompt_token_ids == ()
    assert all(b"example.com" not in row.value for row in ledger.pending(10))
    ledger.close()
    assert all(MAIL.encode() not in path.read_bytes() for path in tmp_path.iterdir())
