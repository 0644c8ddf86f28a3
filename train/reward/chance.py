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
from train.reward.scales import mixed, starting_variance

DRAWS = 19


def by_chance(problem: Problem, ballots: Rows, seed: int, draws: int = DRAWS) -> float:
    """The probability that coins are fitted as well as these votes, at least `1 / (draws + 1)`.

    What is compared is the summed evidence of the structures and of every family by itself, with the scales that they
    begin with: a draw costs one fit of each. Alone, a family of few features tells at once what voters want who want
    just that; beside all hidden states it is drowned.

    Args:
        problem: all votes.
        ballots: label of the ballot of each vote, (votes,): the comparisons of a ranking follow from each other, and
            turn together.
        seed: of the draws.
        draws: how many ways of turning are tried.

    Returns:
        (1 + draws fitted as well or better) / (1 + draws) (Phipson and Smyth 2010).
    """
    kernels = {name: values @ values.T for name, values in problem.families.items()}
    alone = ((name,) for name in kernels)
    speaking = dict.fromkeys((*structures(list(kernels)), *alone))  # the states are alone in both
    priors = [mixed(kernels, starting_variance(list(names))) for names in speaking if names]
    nu = probe.tie_weight(np.zeros(len(problem.vote)), problem.outcomes)

    def evidence(sign: NDArray[np.float64]) -> float:
        turned = [probe.fit(prior * np.outer(sign, sign), problem.outcomes, nu).evidence for prior in priors]
        return float(np.logaddexp.reduce(turned))

    rng = np.random.default_rng(seed)
    votes = len(ballots)  # rows after the votes' own are both-bads' losses against the average answer: nobody's choice
    real, as_well = evidence(np.ones(len(problem.vote))), 0
    for _ in range(draws):
        side = rng.choice([-1.0, 1.0], size=int(ballots.max()) + 1)[ballots]
        sign = np.concatenate([side, np.ones(len(problem.vote) - votes)])
        as_well += evidence(sign) >= real - 1e-9
    return (1 + as_well) / (1 + draws)
