"""The governor against over-optimisation: past some distance from the base, reward still rises while answers get worse.

(Gao et al. 2022: the true reward follows d (alpha - beta log d), d = sqrt(KL).) The governor watches what the reward
model can't see: repetition, how strange the answers are to the base, whether they keep to the question, and the
distance itself. Near a bound, what breaks it is priced; of a step that went past one, a part is taken back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from train.config import GovernorConfig

TOPIC_NOISE = 0.05
"""A smaller shortfall of the topic's share is no breach: an iteration's answers tell it to about 0.04, and where the
base itself hardly takes up a prompt's wording a ratio of two such shares says nothing."""
DEAREST_TOPIC = 3.0
"""Highest price of the topic, in standard deviations of the score."""
DEAREST_FLUENCY = 1.0
"""Furthest that the reference is sharpened: to half its temperature."""

AIMED_KL = 0.9
"""Share of the KL's bound that is aimed at, and to which a step that went too far is taken back: the KL is known to
half a nat."""
CHEAPEST_KL = 0.25
"""Least factor on the KL's coefficient: who hardly moves at that has little to gain, and would leap once it did."""
HALF, LEAST_KEPT, MOST_KEPT = 0.5, 0.25, 0.9
"""Shares of a step: kept for want of a better rule, at least, and at most."""


@dataclass(frozen=True, slots=True)
class Conduct:
    """How answers of one policy look, whatever their reward.

    Attributes:
        distinct_within: mean over answers of the share of distinct bigrams within the answer.
        distinct_across: share of distinct bigrams in all answers together (depends on how many there are).
        perplexity: exp of the mean negative log-prob of their tokens under the base.
        kl: nats an answer between policy and base.
        topic: share of the prompt's own wording that answers take up (`topic.Topic.kept`).
    """

    distinct_within: float
    distinct_across: float
    perplexity: float
    kl: float
    topic: float = 1.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a policy keeps the bounds, and if not, which it breaks (one readable line each); `final` ends the run."""

    within: bool
    breaches: tuple[str, ...] = ()
    final: bool = False

    def past(self, peak: float | None) -> Judgement:
        """The same of a policy that stands past gold's predicted peak in nats; None for not."""
        if peak is None:
            return self
        line = (
            f"votes kept from the reward model predict the best policy at {peak:.1f} nats: further training would harm"
        )
        return Judgement(False, (*self.breaches, line), final=True)


def conduct(
    responses: Sequence[Sequence[int]], reference_logprobs: Sequence[Sequence[float]], kl: float, topic: float = 1.0
) -> Conduct:
    """Measure answers.

    Args:
        responses: token ids of each answer.
        reference_logprobs: log-prob of each of these tokens under the base, at the temperature of sampling.
        kl: nats an answer.
        topic: see `Conduct`.
    """
    bigrams = [list(pairwise(ids)) for ids in responses]
    shares = [len(set(pairs)) / len(pairs) for pairs in bigrams if pairs]
    everything = [pair for pairs in bigrams for pair in pairs]
    tokens = [x for row in reference_logprobs for x in row]
    return Conduct(
        distinct_within=sum(shares) / len(shares) if shares else 1.0,
        distinct_across=len(set(everything)) / len(everything) if everything else 1.0,
        perplexity=math.exp(-sum(tokens) / max(len(tokens), 1)),
        kl=kl,
        topic=topic,
    )


def judge(seen: Conduct, baseline: Conduct, config: GovernorConfig) -> Judgement:
    """Compare a policy's conduct with the base's own (of equally many answers)."""
    if not config.enabled:
        return Judgement(True)
    breaches = []
    for name in ("distinct_within", "distinct_across"):
        ratio = getattr(seen, name) / max(getattr(baseline, name), 1e-9)
        if ratio < config.min_distinct_ratio:
            breaches.append(
                f"{name.replace('_', ' ')} bigrams {ratio:.2f} of the base's (least {config.min_distinct_ratio})"
            )
    if _strays(seen, baseline, config):
        ratio = seen.topic / max(baseline.topic, 1e-9)
        breaches.append(f"wording taken up from the prompt {ratio:.2f} of the base's (least {config.min_topic_ratio})")
    if _strange(seen, baseline, config):
        ratio = seen.perplexity / baseline.perplexity
        breaches.append(f"perplexity under the base {ratio:.2f} times its own (most {config.max_perplexity_ratio})")
    if seen.kl > config.max_kl:
        breaches.append(f"KL {seen.kl:.1f} nats an answer (most {config.max_kl})")
    return Judgement(not breaches, tuple(breaches))


def _strays(seen: Conduct, baseline: Conduct, config: GovernorConfig) -> bool:
    """Whether answers leave their prompts; this has a price of its own (`Prices.topic`)."""
    less = seen.topic / max(baseline.topic, 1e-9) < config.min_topic_ratio
    return less and baseline.topic - seen.topic > TOPIC_NOISE


def _strange(seen: Conduct, baseline: Conduct, config: GovernorConfig) -> bool:
    """Whether answers are strange to the base; this has a price of its own (`fluency_price`)."""
    return seen.perplexity / baseline.perplexity > config.max_perplexity_ratio


@dataclass(frozen=True, slots=True)
class Prices:
    """What PPO pays and charges beside the score; they follow how the policy fares against the bounds.

    Attributes:
        topic: reward for taking up all of a prompt's wording, in standard deviations of the score.
        kl: factor on the KL's coefficient.
    """

    topic: float = 0.0
    kl: float = 1.0

    def after(
        self,
        seen: Conduct,
        before: Conduct,
        *,
        baseline: Conduct,
        leapt: float,
        judged: Judgement,
        config: GovernorConfig,
    ) -> Prices:
        """The prices of the update that comes next: Lagrange multipliers, which rise with a shortfall and fall without.

        Both look one update ahead. The topic's takes its trend to go on, else it would go on rising while the topic
        comes back by itself. The KL's takes the next update to go as far as the last one, in roots of nats: where that
        ends before `AIMED_KL` of the bound it falls by as much, so that distance that is allowed gets spent; where it
        ends beyond, what has fallen rises again. Above 1 only a broken bound brings it: of distance, or of repetition,
        which has no price of its own as topic and fluency have (fluency unless `fluency_rate` is 0).

        Args:
            seen: conduct of the policy just judged.
            before: of the one judged before it.
            baseline: the base's own.
            leapt: how far the update that led here went (`leap`); 0 where none did: after going back.
            judged: of `seen`.
            config: rates and bounds.
        """
        if not config.enabled:
            return self
        shortfall = config.topic_aim * baseline.topic - (2 * seen.topic - before.topic)
        most, kl = config.breach_factor, self.kl
        priced = _strays(seen, baseline, config) + (config.fluency_rate > 0 and _strange(seen, baseline, config))
        if len(judged.breaches) > priced:
            kl *= most
        elif leapt:
            ahead = (_root(seen.kl) + leapt) / math.sqrt(AIMED_KL * config.max_kl)
            kl = min(kl * min(max(ahead, 1 / most), most), max(kl, 1.0))
        return Prices(
            topic=min(max(self.topic + config.topic_rate * shortfall, config.topic_price), DEAREST_TOPIC),
            kl=max(kl, CHEAPEST_KL),
        )


def fluency_price(seen: Conduct, baseline: Conduct, config: GovernorConfig) -> float:
    """How far an update sharpens the reference of the KL: its logits are multiplied by 1 + this.

    It follows the perplexity of the policy about to be updated and remembers nothing. An update under it moves the
    perplexity by a step, not to a level, so a price that adds up what was amiss, or that comes an update late, goes on
    pushing when all is well again, and swings (docs/adr/0103).

    Args:
        seen: conduct of that policy.
        baseline: the base's own.
        config: aim and rate.
    """
    if not config.enabled:
        return 0.0
    strangeness = math.log(seen.perplexity / baseline.perplexity / config.perplexity_aim)
    return min(max(config.fluency_rate * strangeness, 0.0), DEAREST_FLUENCY)


def share_kept(before: Conduct, seen: Conduct, judgement: Judgement, config: GovernorConfig) -> float:
    """Which share of a step that broke a bound stays, 0 to 1.

    A half; where the distance was the only bound broken, as much as is foreseen to end at `AIMED_KL` of it. The square
    root of the KL grows about linearly along a step (the d of Gao et al.), so that
    share = (sqrt(aim) - sqrt(KL before)) / (sqrt(KL seen) - sqrt(KL before)).

    Args:
        before: conduct of the policy that the step began at, within all bounds.
        seen: of the one that it led to.
        judgement: of `seen`.
        config: bounds.
    """
    begun, ended = _root(before.kl), _root(seen.kl)
    if seen.kl <= config.max_kl or ended <= begun:
        return HALF
    share = (math.sqrt(AIMED_KL * config.max_kl) - begun) / (ended - begun)
    share = min(max(share, LEAST_KEPT), MOST_KEPT)
    return share if len(judgement.breaches) == 1 else min(share, HALF)


def leap(before: Conduct, after: Conduct) -> float:
    """How far an update went, in roots of nats, from the policy that it began with to the one that it led to."""
    return _root(after.kl) - _root(before.kl)


def _root(kl: float) -> float:
    """Of a KL that sampling may have made negative."""
    return math.sqrt(max(kl, 0.0))
