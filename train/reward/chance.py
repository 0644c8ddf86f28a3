"""Do these votes tell anything at all? Would votes cast by coins be fitted as well?

A permutation test (Fisher 1935): the same pairs, the winners of whole ballots turned at random. Where the votes are
coins, the real ones are as likely as any to be the best fitted of them, so that the test's level is exact, with few
votes too; predictions of votes held out share their fits, and pass more often than a bound for independent ones says
(adr/0076).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from train.reward import probe
from train.reward.families import structures
from train.reward.mix import Problem
from train.reward.probe import Rows
from train.reward.scales import mixed, some_of, starting_variance

DRAWS = 39


def by_chance(problem: Problem, ballots: Rows, seed: int, draws: int = DRAWS) -> float:
    """The probability that coins are fitted as well as these votes, at least `1 / (draws + 1)`.

    What is compared is the evidence of the structures with the scales that they begin with, so that a draw costs one
    fit of each.

    Args:
        problem: all votes.
        ballots: label of the ballot of each vote, (votes,): the comparisons of a ranking follow from each other, and
            turn together.
        seed: of the draws.
        draws: how many ways of turning are tried.

    Returns:
        (1 + draws fitted as well or better) / (1 + draws) (Phipson and Smyth 2010).
    """
    rows = some_of(len(problem.vote))
    kernels = {name: values[rows] @ values[rows].T for name, values in problem.families.items()}
    known = [[name for name in names if name in kernels] for names in structures(list(kernels))]
    priors = [mixed(kernels, starting_variance(names)) for names in known if names]
    outcomes = problem.outcomes[rows]
    nu = probe.tie_weight(np.zeros(len(rows)), outcomes)

    def evidence(sign: NDArray[np.float64]) -> float:
        turned = [probe.fit(prior * np.outer(sign, sign), outcomes, nu).evidence for prior in priors]
        return float(np.logaddexp.reduce(turned))

    rng = np.random.default_rng(seed)
    votes = len(ballots)  # rows after the votes' own are both-bads' losses against the average answer: nobody's choice
    real, as_well = evidence(np.ones(len(rows))), 0
    for _ in range(draws):
        side = rng.choice([-1.0, 1.0], size=int(ballots.max()) + 1)[ballots]
        sign = np.concatenate([side, np.ones(len(problem.vote) - votes)])
        as_well += evidence(sign[rows]) >= real - 1e-9
    return (1 + as_well) / (1 + draws)
