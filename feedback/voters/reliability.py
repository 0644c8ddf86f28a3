"""How reliable each voter is: a latent-class model in the line of Dawid and Skene (1979), fitted by EM.

Dawid and Skene let several people label the same things. Here every pair is made for one voter, so that only planted
(gold) pairs have an answer to be right about; for the rest, voters agree or disagree on *who wins*: each contest of two
adapters has a rate at which careful voters prefer the first. A voter is of one class:

* honest: gold pairs right at the rate `a`; in contest m prefers the first adapter at their own rate, drawn from
  Beta(k p_m, k (1 - p_m)): people differ in taste, k (`taste_spread`) says how little; in pairs of one adapter with
  itself left or right at their own rate, likewise; hasty at the rate that honest voters are.
* random: left or right by a coin. Left, right: always that side, but for 1 in 20.
* promoter of X, detractor of X (for each adapter): honest elsewhere, but votes for (against) X, but for 1 in 20.

All rates are estimated from the votes themselves, also how hasty honest people are: where all vote at once (a
simulation), haste tells nothing. The spread of taste is assumed, not estimated: estimated, it grows until it explains
the promoters as people of strong taste (tried; docs/voting.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from feedback.config import VotersConfig
from feedback.voters.beta_binomial import BetaBinomial
from feedback.voters.cells import Floats, Ints, Records

_SIDE_SPREAD = 24.0
_ONE_SIDED = 0.95
_PRIOR_VOTERS = 10.0
"""Weight, in voters, of the assumed class shares."""
_GOLD_PRIOR = (19.0, 1.0)
_GOLD_BY_CHANCE = 0.45
"""A coin judges a gold pair right so often: sometimes it says tie."""
_HASTE_PRIOR = (0.5, 4.5)
_HASTE_OTHERS = 0.5
"""The other classes are hasty at this rate, or at the honest voters' where that is higher; or, as likely, no more than
these: a script can wait. So patience is never held against anybody."""
_ROUNDS = 200
_CONVERGED = 1e-9
_TINY = 1e-300
HONEST, RANDOM, LEFT, RIGHT = 0, 1, 2, 3
NAMED = ("honest", "random", "left", "right")


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """(V, K) probabilities of each class for each voter, without the many that follow from few.

    Of promoters and detractors of an adapter that never stood before a voter, that voter's votes say nothing: their
    probability is the class's share times a number that is the voter's own. So the memory goes with the votes; voters
    times adapters grow with their square.

    Attributes:
        named: (V, 4) of the classes in `NAMED`.
        voter, adapter: (E,) who met whom.
        met: (E, 2) of promoter and detractor there.
        elsewhere: (V,) what the share of any other class is multiplied by.
    """

    named: Floats
    voter: Ints
    adapter: Ints
    met: Floats
    elsewhere: Floats

    def dense(self, shares: Floats) -> Floats:
        """(V, K), with the shares (K,) that it was computed from; for looking at few voters."""
        size = len(self.named)
        partial = np.outer(self.elsewhere, shares[len(NAMED) :]).reshape(size, -1, 2)
        partial[self.voter, self.adapter] = self.met
        return np.hstack([self.named, partial.reshape(size, -1)])


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """What the model says.

    Attributes:
        classes: names of the K classes: `NAMED`, then `promoter:X` and `detractor:X` for each adapter X.
        shares: (K,) estimated share of each class among the voters.
        rates: (M,) p_m of each contest: how often an honest voter prefers the first adapter.
        gold_rate: a.
        log_likelihood: nats, with the priors.
    """

    classes: tuple[str, ...]
    shares: Floats
    rates: Floats
    gold_rate: float
    log_likelihood: float
    found: Posterior

    @property
    def posterior(self) -> Floats:
        """(V, K) probability of each class for each voter; rows add up to 1. As large as that says."""
        return self.found.dense(self.shares)

    @property
    def honest(self) -> Floats:
        """(V,) probability of being honest."""
        return self.found.named[:, HONEST]


def fit(records: Records, adapters: tuple[str, ...], config: VotersConfig) -> Reliability:
    """Fit the model to the records of V voters; `adapters` names the numbers in the records' cells."""
    return _Em(records, adapters, config).run()


class _Em:
    """The EM. It begins with everybody honest, so that what everybody does is no offence."""

    def __init__(self, records: Records, adapters: tuple[str, ...], config: VotersConfig) -> None:
        self._records = records
        self._spread = config.taste_spread
        self._classes = NAMED + tuple(f"{kind}:{name}" for name in adapters for kind in ("promoter", "detractor"))
        self._size = len(self._classes)
        self._number = len(adapters)
        self._prior = np.full(self._size, config.suspicion / (self._size - 1))
        self._prior[HONEST] = 1 - config.suspicion
        self._fixed = self._coins()
        cells = records.cells
        self._in_contest = BetaBinomial(cells.wins, cells.losses, cells.contest, len(cells.first), self._spread)
        left, right = records.self_left.astype(np.int64), records.self_right.astype(np.int64)
        self._alone = BetaBinomial(left, right, np.zeros(len(left), dtype=np.int64), 1, _SIDE_SPREAD)
        self._meet()

    def _meet(self) -> None:
        """Number the pairs of a voter and an adapter that stood before them: E of them, two a cell at most."""
        cells = self._records.cells
        sides = [cells.voter * self._number + names[cells.contest] for names in (cells.first, cells.second)]
        both, place = np.unique(np.concatenate(sides), return_inverse=True)
        self._first, self._second = place.reshape(2, -1)
        self._voter, self._adapter = np.divmod(both, max(self._number, 1))
        self._met_all = np.bincount(self._voter, minlength=len(self._records)) == self._number
        yes, no = np.log(_ONE_SIDED), np.log(1 - _ONE_SIDED)
        won = self._sum_met(cells.wins, cells.losses)
        lost = self._sum_met(cells.losses, cells.wins)
        self._promoted = np.column_stack([won * yes + lost * no, won * no + lost * yes])

    def _sum_met(self, of_first: Any, of_second: Any) -> Floats:
        """(E,) sum of the cells' values (C,) over the contests of an adapter, as its first side and as its second."""
        size = len(self._voter)
        summed: Floats = np.bincount(self._first, of_first, minlength=size).astype(np.float64)
        return summed + np.bincount(self._second, of_second, minlength=size)

    def run(self) -> Reliability:
        size = len(self._records)
        named = np.zeros((size, len(NAMED)))
        named[:, HONEST] = 1.0
        now = Posterior(named, self._voter, self._adapter, np.zeros((len(self._voter), 2)), np.zeros(size))
        shares = np.zeros(self._size)
        before = -np.inf
        for _ in range(_ROUNDS):
            shares = self._shares(now, shares)
            rates, gold, haste, side = self._estimates(now)
            now, evidence = self._expected(shares, rates, gold, haste, side)
            total = float(evidence.sum()) + self._log_prior(shares, rates, gold)
            if abs(total - before) < _CONVERGED * (1 + abs(total)):
                break
            before = total
        return Reliability(self._classes, shares, rates, gold, total, now)

    def _shares(self, now: Posterior, before: Floats) -> Floats:
        """(K,) from the voters; `before` are the shares that their probabilities were computed from."""
        counted = _PRIOR_VOTERS * self._prior
        counted[: len(NAMED)] += now.named.sum(axis=0)
        for kind in (0, 1):
            met = np.bincount(self._adapter, now.met[:, kind], minlength=self._number)
            elsewhere = now.elsewhere.sum() - np.bincount(
                self._adapter, now.elsewhere[self._voter], minlength=self._number
            )
            counted[len(NAMED) + kind :: 2] += met + before[len(NAMED) + kind :: 2] * np.maximum(elsewhere, 0)
        shares: Floats = counted / counted.sum()
        return shares

    def _estimates(self, now: Posterior) -> tuple[Floats, float, float, float]:
        """Rates of the contests; gold pairs right, votes hasty and votes left, of honest voters."""
        found, sane = self._records, 1 - now.named[:, RANDOM:].sum(axis=1)
        gold = _rate(sane @ found.gold_right, sane @ found.gold_wrong, _GOLD_PRIOR)
        honest: Floats = now.named[:, HONEST]
        haste = _rate(honest @ found.hasty, honest @ found.unhurried, _HASTE_PRIOR)
        side = _rate(sane @ found.self_left, sane @ found.self_right, (5.0, 5.0))
        return self._contest_rates(now, sane), gold, haste, side

    def _contest_rates(self, now: Posterior, sane: Floats) -> Floats:
        """Mean over voters that are honest in the contest; a voter's n votes count n k / (n + k), as they agree."""
        cells = self._records.cells
        partial = now.met.sum(axis=1)
        trusted = sane[cells.voter] - partial[self._first] - partial[self._second]
        weight = np.clip(trusted, 0, 1) * self._spread / (self._spread + cells.wins + cells.losses)
        size = len(cells.first)
        wins = np.bincount(cells.contest, weight * cells.wins, minlength=size)
        losses = np.bincount(cells.contest, weight * cells.losses, minlength=size)
        rates: Floats = (wins + 1.0) / (wins + losses + 2.0)
        return rates

    def _expected(
        self, shares: Floats, rates: Floats, gold: float, haste: float, side: float
    ) -> tuple[Posterior, Floats]:
        """The posterior, and (V,) log-probability of each voter's record."""
        found, cells = self._records, self._records.cells
        in_contest = self._in_contest.log_probability(self._spread * rates)
        alone = self._alone.log_probability(np.array([_SIDE_SPREAD * side]))
        judged = found.gold_right * np.log(gold) + found.gold_wrong * np.log(1 - gold)
        careful = np.bincount(cells.voter, in_contest, minlength=len(found)) + alone + judged
        hurried = found.hasty * np.log(haste) + found.unhurried * np.log(1 - haste)
        rate = max(haste, _HASTE_OTHERS)
        scripted = found.hasty * np.log(rate) + found.unhurried * np.log(1 - rate)
        others = np.logaddexp(hurried, scripted) - np.log(2)

        named = np.column_stack([careful + hurried, self._fixed + others[:, None]]) + np.log(shares[: len(NAMED)])
        partial = shares[len(NAMED) :].reshape(-1, 2)
        instead = self._promoted - self._sum_met(in_contest, in_contest)[:, None]
        met = (careful + others)[self._voter][:, None] + instead + np.log(partial[self._adapter])
        share_met = np.bincount(self._voter, partial.sum(axis=1)[self._adapter], minlength=len(found))
        rest = np.where(self._met_all, _TINY, np.maximum(partial.sum() - share_met, _TINY))
        elsewhere = careful + others + np.log(rest)
        top = np.maximum(named.max(axis=1), elsewhere)
        np.maximum.at(top, self._voter, met.max(axis=1))
        sums = np.exp(named - top[:, None]).sum(axis=1) + np.exp(elsewhere - top)
        sums += np.bincount(self._voter, np.exp(met - top[self._voter][:, None]).sum(axis=1), minlength=len(found))
        evidence = top + np.log(sums)
        now = Posterior(
            named=np.exp(named - evidence[:, None]),
            voter=self._voter,
            adapter=self._adapter,
            met=np.exp(met - evidence[self._voter][:, None]),
            elsewhere=np.where(self._met_all, 0, np.exp(np.where(self._met_all, 0, careful + others - evidence))),
        )
        return now, evidence

    def _coins(self) -> Floats:
        """(V, 3) log-probability of the record under random, left and right."""
        found = self._records
        planted = found.gold_right + found.gold_wrong
        left, right = found.left + found.gold_left, found.right + planted - found.gold_left
        rarely, mostly = np.log(1 - _ONE_SIDED), np.log(_ONE_SIDED)
        by_coin = (found.left + found.right) * np.log(0.5)
        by_coin += found.gold_right * np.log(_GOLD_BY_CHANCE) + found.gold_wrong * np.log1p(-_GOLD_BY_CHANCE)
        return np.column_stack([by_coin, left * mostly + right * rarely, right * mostly + left * rarely])

    def _log_prior(self, shares: Floats, rates: Floats, gold: float) -> float:
        right, wrong = _GOLD_PRIOR
        classes = _PRIOR_VOTERS * (self._prior @ np.log(shares))
        contests = np.log(rates).sum() + np.log(1 - rates).sum()
        return float(classes + contests + right * np.log(gold) + wrong * np.log(1 - gold))


def _rate(hits: Any, misses: Any, prior: tuple[float, float]) -> float:
    # numpy types the product of two vectors as an array, though it is a number.
    return float((hits + prior[0]) / (hits + misses + prior[0] + prior[1]))
