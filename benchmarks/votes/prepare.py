"""What the load needs beforehand: a data folder whose ledger holds pairs that nobody has voted on yet."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, update

from benchmarks.feedback import synthetic_pair
from feedback.contracts import PairShown, VoteCast
from feedback.identity import pseudonym
from feedback.ledger import Ledger, ballots
from feedback.ledger.database import Database
from feedback.ledger.tables import outbox

SECRET = "the secret of the benchmark"
VOTES_A_VOTER = 3
"""Votes of one voter, in one conversation; far within the rate limit."""
AT_ONCE = 1_000
REASONS = ["clearer", "shorter", "more helpful"]
COMMENT = "The second one talks around the question, the first one says what to do with the crust and for how long."


def _record(shown: Sequence[PairShown], connection: Connection) -> None:
    for pair in shown:
        ballots.record_pair(connection, pair)


def fill(url: str, pairs: int) -> None:
    """Record so many pairs, told to the event log and confirmed long ago."""
    Ledger.open(url).close()
    database = Database(url)
    for start in range(0, pairs, AT_ONCE):
        shown = [_shown(number) for number in range(start, min(start + AT_ONCE, pairs))]
        database.write(partial(_record, shown))
    database.write(lambda connection: connection.execute(update(outbox).values(state="confirmed", value=None)))
    database.empty_write_ahead_log()
    database.close()


def vote_events(count: int) -> list[bytes]:
    """Votes as they go on the wire: what the raw producer sends."""
    return [vote(number).to_bytes() for number in range(count)]


def write_requests(path: Path, numbers: Sequence[int]) -> None:
    """The load client's requests, one a line: the voter's token and the body."""
    path.write_text("".join(f"{token}\t{body}\n" for token, body in map(request, numbers)))


def request(number: int) -> tuple[str, str]:
    """Token and body of a vote on a pair. Every fifth has reasons, every tenth a comment: both are looked through."""
    body: dict[str, object] = {"pair_id": _shown(number).pair_id, "choice": random.Random(number).choice("ab")}
    if number % 5 == 0:
        body["reasons"] = REASONS[:2]
    if number % 10 == 0:
        body["comment"] = COMMENT
    return _token(number), json.dumps(body)


def _shown(number: int) -> PairShown:
    return synthetic_pair(number).model_copy(update={"voter": pseudonym(SECRET, _token(number))})


def vote(number: int) -> VoteCast:
    """A vote on the pair of this number."""
    shown = _shown(number)
    return VoteCast(vote_id=f"vote_{number:032x}", pair=shown, voter=shown.voter, choice="a")


def _token(number: int) -> str:
    return f"voter-{number // VOTES_A_VOTER}"
