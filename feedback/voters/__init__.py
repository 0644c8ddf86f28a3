"""How far a voter can be trusted, and what a vote counts for it (docs/voting.md)."""

from __future__ import annotations

from feedback.config import VotersConfig
from feedback.leaks import names_itself
from feedback.voters.ballots import Ballot, BallotBox, Ballots, ballots_of
from feedback.voters.weights import Weights, vote_weights, voter_trust, voter_weights, weigher, weights_of

__all__ = [
    "Ballot",
    "BallotBox",
    "Ballots",
    "VotersConfig",
    "Weights",
    "ballots_of",
    "names_itself",
    "vote_weights",
    "voter_trust",
    "voter_weights",
    "weigher",
    "weights_of",
]
