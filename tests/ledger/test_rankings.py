"""Three and four answers in the ledger: what votes they take, and what those say of two adapters."""

from datetime import UTC, datetime, timedelta

import pytest

from feedback.contracts import GOLD_RULE, VOTE_TOPIC, VoteCast
from feedback.ledger import Ledger, UnfitVote, VoteConflict
from tests.ledger.builders import shown

NEW, OLD = "policy-000002", "policy-000001"
WHEN = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
RANKING = (("c",), ("a", "b"))


def rank(ledger, ranking, pair_id="pair_1", choice="ranking", voter="v_ann"):
    return ledger.record_vote(pair_id=pair_id, voter=voter, choice=choice, ranking=ranking)


def test_a_ranking_comes_back_as_it_went_in_and_goes_on_the_wire_as_version_2(ledger):
    ledger.record_pair(shown(adapters=(NEW, OLD, OLD)))
    outcome = rank(ledger, RANKING)
    assert outcome.created
    vote = ledger.vote("pair_1", "v_ann")
    assert vote == ledger.vote_of_id(outcome.vote_id)
    row = next(row for row in ledger.pending(10) if row.topic == VOTE_TOPIC)
    read = VoteCast.from_bytes(row.value)
    assert (read, read.schema_version, read.ranking) == (vote, 2, RANKING)


def test_the_same_ranking_again_is_the_same_vote_whatever_the_order_within_a_place(ledger):
    ledger.record_pair(shown(adapters=(NEW, OLD, OLD)))
    first = rank(ledger, RANKING)
    again = rank(ledger, (("c",), ("b", "a")))
    assert (again.created, again.vote_id, again.ranking) == (False, first.vote_id, first.ranking)
    with pytest.raises(VoteConflict, match="'c>a=b'"):
        rank(ledger, (("a",), ("b",), ("c",)))


@pytest.mark.parametrize(
    ("answers", "choice", "ranking"),
    [
        (3, "a", None),
        (3, "ranking", (("a",), ("b",))),
        (3, "ranking", (("a",), ("b",), ("c",), ("d",))),
        (3, "ranking", (("a",), ("b", "b"), ("c",))),
        (2, "ranking", (("a",), ("b",))),
    ],
)
def test_a_vote_that_does_not_fit_its_answers_is_refused(ledger, answers, choice, ranking):
    ledger.record_pair(shown(adapters=(NEW, OLD, OLD)[:answers]))
    with pytest.raises(UnfitVote, match="ranking that names a, b, c" if answers == 3 else "takes a choice"):
        rank(ledger, ranking, choice=choice)
    assert ledger.counts().votes == 0


@pytest.mark.parametrize("choice", ["tie", "both_bad"])
def test_of_all_answers_can_be_said_that_they_are_alike(ledger, choice):
    ledger.record_pair(shown(adapters=(NEW, OLD, OLD)))
    rank(ledger, None, choice=choice)
    assert ledger.vote("pair_1", "v_ann").choice == choice


def test_a_ranking_is_one_duel_and_counts_as_the_mean_of_what_it_says(ledger):
    cases = [
        ((NEW, OLD, OLD), (("b",), ("a",), ("c",)), ("tie", 0.5, False)),  # lost one, won one
        ((NEW, OLD, OLD), (("a",), ("b", "c")), ("win", 1.0, True)),
        ((OLD, NEW, NEW, OLD), (("a", "b"), ("c",), ("d",)), ("win", 0.625, None)),  # a-b tie, a-c lost; b-d, c-d won
        ((OLD, NEW, NEW), (("a",), ("c",), ("b",)), ("loss", 0.0, True)),
        ((OLD, NEW, None), (("c",), ("b",), ("a",)), ("win", 1.0, False)),  # the base was there too, and says nothing
    ]
    for number, (adapters, ranking, _) in enumerate(cases):
        when = WHEN + timedelta(minutes=number)
        pair = shown(f"pair_{number}", conversation_id=f"talk_{number}", adapters=adapters, shown_at=when)
        ledger.record_pair(pair)
        rank(ledger, ranking, pair.pair_id)
    found = ledger.duels(NEW, OLD, WHEN)
    assert [(duel.outcome, duel.score, duel.left) for duel in found] == [told for _, _, told in cases]
    assert [1 - duel.score for duel in ledger.duels(OLD, NEW, WHEN)] == [duel.score for duel in found]
    assert [pair.pair_id for pair in ledger.pairs_of(NEW, OLD, WHEN)] == [f"pair_{n}" for n in range(5)]
    (alone,) = ledger.duels(NEW, None, WHEN)
    assert (alone.outcome, alone.score) == ("loss", 0.0)


def test_an_adapter_against_itself_is_only_where_nobody_else_spoke(ledger):
    for number, adapters in enumerate([(OLD, OLD, OLD), (OLD, OLD, NEW)]):
        pair = shown(f"pair_{number}", conversation_id=f"talk_{number}", adapters=adapters, shown_at=WHEN)
        ledger.record_pair(pair)
        rank(ledger, None, pair.pair_id, choice="both_bad")
    assert [duel.outcome for duel in ledger.duels(OLD, OLD, WHEN)] == ["both_bad"]


def test_planted_pairs_are_no_duels(ledger):
    planted = shown(adapters=(OLD, OLD), shown_at=WHEN).model_copy(update={"contenders": GOLD_RULE, "gold": "a"})
    ledger.record_pair(planted)
    ledger.record_vote(pair_id="pair_1", voter="v_ann", choice="both_bad")
    assert ledger.duels(OLD, OLD, WHEN) == []


@pytest.mark.parametrize("at", [0, 2])
def test_pairs_in_which_an_answer_told_who_gives_it_are_no_duels(ledger, at):
    honest = shown("pair_0", adapters=(OLD, NEW, OLD), shown_at=WHEN)
    sides = list(honest.completions)
    sides[at] = sides[at].model_copy(update={"text": "I was made by OpenAI, so believe me."})
    told = honest.model_copy(update={"pair_id": "pair_1", "completions": tuple(sides)})
    for pair in (honest, told):
        ledger.record_pair(pair)
        rank(ledger, None, pair.pair_id, choice="tie")
    assert len(ledger.duels(NEW, OLD, WHEN)) == 1


def test_looking_for_duels_in_sqlite_reads_no_table_whole(tmp_path):
    """Each half of the question has an index; a ledger of a million pairs is looked at after every vote."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    plans = []

    def explained(connection):
        from feedback.ledger import duels

        real = connection.execute

        def execute(query):
            told = query.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
            plans.extend(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {told}").all())
            return real(query)

        connection.execute = execute
        duels.duels(connection, NEW, OLD, WHEN)

    ledger._database.read(explained)
    ledger.close()
    told = " ".join(str(row[-1]) for row in plans)
    assert "SCAN pairs" not in told
    assert "SCAN votes" not in told
    assert "ix_pairs_ranked" in told
