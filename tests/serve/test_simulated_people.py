"""The simulator against the app itself, over HTTP in memory: fake engine, real routes, real ledger."""

from feedback.simulator import SimulateConfig, simulate
from tests.serve.conftest import client_of


async def test_simulated_people_chat_and_vote_through_the_public_routes(app, deps):
    settings = SimulateConfig(votes=12, voters=4, utility="plain_words", max_tokens=8, progress=False)
    report = await simulate(settings, client_of(app))
    assert (report.votes, report.errors, report.retries, report.reached) == (12, 0, 0, True)
    counts = deps.ledger.counts()
    assert (counts.pairs, counts.votes) == (12, 12)
    assert 1 < len({vote.voter for vote in deps.ledger.votes_between()}) <= 4
