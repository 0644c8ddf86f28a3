"""Elections weighed by the voters' trust, end to end: real ballots, the real reliability model, the real test.

    python -m benchmarks.weighed_elections [--runs 400] [--out FILE]

People vote on self-play pairs, planted pairs and in an earlier contest; from those votes `feedback.voters` says how far
each is trusted. Then the same people elect: a candidate that is no better, with every kind of odd voter among them. How
often is it promoted (looked at after every ballot), by ballots that all weigh 1, by trust that is blind to the contest
(what serving does), and by trust that has seen the contest's own votes (what it must not do)? And how often is one
promoted that careful people prefer in 60%?
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.releases import log_capital
from feedback.config import VotersConfig
from feedback.voters import Ballot, Ballots, voter_trust
from feedback.voters.ballots import NO_GOLD, A, B
from serve.config import CanaryConfig

Floats = npt.NDArray[np.float64]
OLD, OFFICE, NEW = "policy-000001", "policy-000002", "policy-000003"
VOTERS = 120
BEFORE, IN_CONTEST = 30, 5
"""Votes of each voter elsewhere, and in the election (one full ballot)."""
KINDS = {"careful": 0.6, "coin": 0.15, "left": 0.1, "loyal": 0.1, "strong": 0.05}
"""Shares of the voters: by a coin; always left; always for the office-holder, or always for the candidate, half each;
careful, but of strong taste."""


def people(rng: np.random.Generator) -> list[tuple[str, float]]:
    """Each voter's kind, and their chance to prefer the second of two adapters where they look."""
    kinds = rng.permutation(np.repeat(list(KINDS), [round(share * VOTERS) for share in KINDS.values()]))
    strong = {"careful": 0.05, "strong": 0.3}
    return [(str(kind), float(np.clip(rng.normal(0.5, strong.get(str(kind), 0.0)), 0.02, 0.98))) for kind in kinds]


def choose(kind: str, taste: float, right_is_second: bool, rng: np.random.Generator, side: int) -> int:
    """`A` or `B` in a pair of two adapters; `side` 0 or 1 says for whom a loyal voter is."""
    if kind == "coin":
        return int(rng.integers(2))
    if kind == "left":
        return A
    second = side == 1 if kind == "loyal" else rng.random() < taste
    return B if second == right_is_second else A


def ballot(voter: int, left: str, right: str, choice: int, number: int, gold: int = NO_GOLD) -> Ballot:
    """A vote on plain answers of equal length, twenty seconds after they came."""
    at = 60_000 * number
    return Ballot(
        f"w{number}", f"p{number}", f"v{voter:03}", left, right, choice, gold, False, number, 90, 90, at, at + 20_000
    )


def elsewhere(voters: list[tuple[str, float]], rng: np.random.Generator, planted: float) -> list[Ballot]:
    """Votes of everybody before the election."""
    cast: list[Ballot] = []
    for voter, (kind, taste) in enumerate(voters):
        for _ in range(BEFORE):
            number = len(cast)
            swapped = bool(rng.integers(2))
            if rng.random() < planted:
                gold = B if swapped else A
                truth = gold if rng.random() < 0.95 else 1 - gold
                choice = {"coin": int(rng.integers(2)), "left": A}.get(kind, truth)
                cast.append(ballot(voter, OFFICE, OFFICE, choice, number, gold))
            elif rng.random() < 0.5:
                choice = A if kind == "left" else int(rng.integers(2))
                cast.append(ballot(voter, OFFICE, OFFICE, choice, number))
            else:
                left, right = (OFFICE, OLD) if swapped else (OLD, OFFICE)
                choice = choose(kind, taste, not swapped, rng, side=1)
                cast.append(ballot(voter, left, right, choice, number))
    return cast


def election(
    voters: list[tuple[str, float]], rng: np.random.Generator, lead: float = 0.0
) -> tuple[Floats, list[Ballot]]:
    """Each voter's score for the candidate, the mean of five votes, and the votes.

    Args:
        lead: how much likelier than by their taste people who look prefer the candidate.
    """
    scores = np.zeros(len(voters))
    cast: list[Ballot] = []
    for voter, (kind, taste) in enumerate(voters):
        side = int(rng.integers(2))
        for _ in range(IN_CONTEST):
            swapped = bool(rng.integers(2))
            left, right = (NEW, OFFICE) if swapped else (OFFICE, NEW)
            choice = choose(kind, min(0.98, taste + lead), not swapped, rng, side)
            scores[voter] += ((choice == B) == (right == NEW)) / IN_CONTEST
            cast.append(ballot(voter, left, right, choice, 1_000_000 + len(cast)))
    return scores, cast


def report(runs: int, seed: int, planted: float = 0.05) -> dict[str, object]:
    """Shares of the elections that promote, and what each kind of voter weighs."""
    config, alpha = VotersConfig(), CanaryConfig().alpha
    names = ("every ballot 1", "trust, blind to the contest", "trust that saw the contest")
    promoted, elected = dict.fromkeys(names, 0), dict.fromkeys(names[:2], 0)
    weighs: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for run in range(runs):
        rng = np.random.default_rng((seed, run))
        voters = people(rng)
        before = elsewhere(voters, rng, planted)
        scores, cast = election(voters, rng)
        known = [f"v{voter:03}" for voter in range(len(voters))]
        blind = voter_trust(Ballots.of(before), config)
        saw = voter_trust(Ballots.of([*before, *cast]), config)
        order = rng.permutation(len(voters))
        better, _ = election(voters, rng, lead=0.1)
        for name, found in zip(names, ({}, blind, saw), strict=True):
            weight = np.array([found.get(voter, 1.0) for voter in known])[order]
            for counted, score in ((promoted, scores), (elected, better)):
                if name in counted:
                    capital = log_capital(score[order][None], weight=weight[None])
                    counted[name] += bool((capital >= -math.log(alpha)).any())
        for (kind, _), voter in zip(voters, known, strict=True):
            weighs[kind].append(blind[voter])
    return {
        "runs": runs,
        "seed": seed,
        "promoted": {name: count / runs for name, count in promoted.items()},
        "promoted, better at 60%": {name: count / runs for name, count in elected.items()},
        "mean weight": {kind: round(float(np.mean(found)), 3) for kind, found in weighs.items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = json.dumps(report(arguments.runs, arguments.seed), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
