"""The finals of a PPO run: which policy is published is settled on fresh answers.

An iteration judges its policy by the few answers that it learns from (two each to 32 prompts, other prompts every
time), so the best of several such figures is partly luck: its score is too high, its conduct too good. The best
policy is therefore asked once more, for answers to fresh prompts, and the base beside it, with the same noise where the
trainer samples itself. If it breaks a bound there the next one is asked, and so on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from train import maths
from train.base import Base
from train.config import GovernorConfig, TrainConfig
from train.governor import TOPIC_NOISE, Conduct, Judgement, conduct, judge
from train.order import SAMPLING, prompt_at, seed_for
from train.reward.protocol import TokenRewardModel
from train.rollout import Rollouts, Sample
from train.team import ALONE, Team
from train.together import of_base, score_together
from train.topic import Topic

BEHIND = 0.5
"""Who is further behind by the iterations' own answers, in standard deviations of the voted answers' scores, is no
rival any more: with the default 64 answers a mean is known to about an eighth of one."""


@dataclass(frozen=True, slots=True)
class Final:
    """How one policy did in the finals.

    Attributes:
        iteration: whose policy it is; 0 is the start, which enters where that isn't the base.
        score: mean of the reward model over its fresh answers; of the witness where that decides (`train.gold`).
        kl: nats an answer.
        perplexity: of the answers under the base, as a multiple of that of the base's own.
        topic: share of the prompts' wording that they take up.
        base_topic: the same of the base's answers to these prompts.
        breaches: of the governor's bounds, one readable line each; none where it may be published.
        seconds: that it took; the first one's with the base's answers.
    """

    iteration: int
    score: float
    kl: float
    perplexity: float
    topic: float
    base_topic: float
    breaches: tuple[str, ...] = ()
    seconds: float = 0.0

    def metrics(self) -> dict[str, float]:
        """By name, for manifests."""
        names = ("score", "kl", "perplexity", "topic", "base_topic")
        return {f"final_{name}": float(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class Side:
    """One policy's answers to the prompts of the finals, in their order.

    Attributes:
        conduct: of all answers.
        surprise: nats that the base is surprised by each answer, summed over its tokens.
        lengths: tokens of each.
        shares: of each prompt's wording that its answer takes up; None where there is nothing to take up.
    """

    conduct: Conduct
    surprise: tuple[float, ...]
    lengths: tuple[int, ...]
    shares: tuple[float | None, ...]


class Finals:
    """Fresh answers of every policy that is asked for, and of the base, once."""

    def __init__(
        self,
        base: Base,
        rollouts: Rollouts,
        reward: TokenRewardModel,
        prompts: Sequence[tuple[int, ...]],
        *,
        topic: Topic | None = None,
        witness: TokenRewardModel | None = None,
        config: TrainConfig,
        team: Team = ALONE,
    ) -> None:
        """Args:
        base: with the policy adapter in place.
        rollouts: draws the policies' answers.
        reward: scores them.
        prompts: of the run; those that it would ask next are asked here.
        topic: measures how far answers keep to their prompts; None leaves that unwatched.
        witness: scores in the reward model's place; None for the reward model.
        config: all settings.
        team: processes that hold the finals together.
        """
        self._base, self._rollouts, self._reward, self._witness = base, rollouts, reward, witness
        self._topic, self._config, self._team = topic, config, team
        ppo = config.ppo
        # after the updates' iterations come one that judges the last policy, and one more if that is taken back
        self._counter = ppo.iterations + 2
        begin = self._counter * (ppo.episodes // ppo.answers_per_prompt)
        self._prompts = [prompt_at(prompts, begin + at, config.seed) for at in range(config.governor.final_answers)]
        self._bases: Side | None = None

    def of(self, iteration: int) -> Final:
        """The policy in place, which is that of this iteration."""
        began = time.perf_counter()
        bases = self._bases = self._bases or self._of_base()
        # one answer a prompt, and no state of the base is kept: nothing is learnt from these
        alone = {"answers_per_prompt": 1, "kl_estimator": "k1", "kl_in": "reward"}
        config = self._config.model_copy(update={"ppo": self._config.ppo.model_copy(update=alone)})
        samples = self._drawn(self._rollouts)
        scored = score_together(self._team, self._base, samples, self._reward, config, witness=self._witness)
        mask = scored.mask
        kl = float(torch.where(mask, maths.kl(scored.sampled, scored.reference), 0.0).sum(1).mean())
        side = self._side(samples, [row[keep].tolist() for row, keep in zip(scored.reference, mask, strict=True)], kl)
        worth = scored.scores if scored.gold is None else scored.gold.sum(1)
        return Final(
            iteration=iteration,
            score=float(worth.mean()),
            kl=kl,
            perplexity=side.conduct.perplexity / bases.conduct.perplexity,
            topic=side.conduct.topic,
            base_topic=bases.conduct.topic,
            breaches=judge_final(side, bases, self._config.governor).breaches,
            seconds=round(time.perf_counter() - began, 3),
        )

    def _of_base(self) -> Side:
        samples = self._drawn(of_base(self._base, self._config.rollout.batch, self._team))
        return self._side(samples, [sample.logprobs for sample in samples], 0.0)

    def _drawn(self, rollouts: Rollouts) -> list[Sample]:
        rollout, seed = self._config.rollout, self._config.seed
        samples = rollouts.generate(
            self._prompts,
            1,
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            seed=seed_for(seed, self._counter, SAMPLING),
        )
        return [replace(sample, states=None) for sample in samples]

    def _side(self, samples: Sequence[Sample], reference: Sequence[Sequence[float]], kl: float) -> Side:
        shares = [None] * len(samples) if self._topic is None else self._topic.shares(samples)
        known = [share for share in shares if share is not None]
        topic = sum(known) / len(known) if known else 1.0
        return Side(
            conduct([sample.response_ids for sample in samples], reference, kl, topic),
            tuple(-sum(row) for row in reference),
            tuple(len(row) for row in reference),
            tuple(shares),
        )


def judge_final(seen: Side, base: Side, config: GovernorConfig) -> Judgement:
    """The governor's bounds on fresh answers, where both sides have answered the same prompts.

    Two are stricter than while PPO runs, which has fewer answers to tell by. Perplexity may be one standard error worse
    than it looks and must keep its bound all the same. Of the topic no less than by the base may be taken up, one
    standard error left to chance (a `min_topic_ratio` of 0 still frees it). Errors are of the paired difference.

    Args:
        seen: the policy.
        base: the bare base.
        config: bounds.
    """
    found = judge(seen.conduct, base.conduct, config.model_copy(update={"max_perplexity_ratio": math.inf}))
    lines = [line for line in found.breaches if not line.startswith("wording")]
    ratio = seen.conduct.perplexity / base.conduct.perplexity
    stranger = [a - b for a, b in zip(_strangeness(seen), _strangeness(base), strict=True)]
    worst = ratio * math.exp(_error(stranger))
    if worst > config.max_perplexity_ratio:
        lines.append(
            f"perplexity under the base {ratio:.2f} times its own, or {worst:.2f} by one standard error (most "
            f"{config.max_perplexity_ratio})"
        )
    gaps = [a - b for a, b in zip(seen.shares, base.shares, strict=True) if a is not None and b is not None]
    own, by_base = seen.conduct.topic, base.conduct.topic
    loosest = min(config.min_topic_ratio * by_base, by_base - TOPIC_NOISE)
    least = max(by_base - _error(gaps), loosest)
    if config.min_topic_ratio and own < least:
        lines.append(f"wording taken up from the prompt {own:.3f}, by the base {by_base:.3f} (least {least:.3f})")
    return Judgement(not lines, tuple(lines))


def _strangeness(side: Side) -> list[float]:
    """What each answer adds to the nats a token of all answers: residuals of a ratio of means, linearised."""
    mean = sum(side.lengths) / len(side.lengths)
    ratio = sum(side.surprise) / sum(side.lengths)
    return [(nats - ratio * length) / mean for nats, length in zip(side.surprise, side.lengths, strict=True)]


def _error(differences: Sequence[float]) -> float:
    """Standard error of their mean; infinite for fewer than two."""
    n = len(differences)
    if n < 2:
        return math.inf
    mean = sum(differences) / n
    return math.sqrt(sum((x - mean) ** 2 for x in differences) / (n - 1) / n)


def ranked(worth: Sequence[float], judgements: Sequence[Judgement]) -> list[int]:
    """Policies within all bounds that are worth more than the start (0), the best first, of equals the earliest."""
    within = [index for index, judged in enumerate(judgements) if judged.within]
    order = sorted(within, key=lambda index: -worth[index])
    return order[: order.index(0)] if 0 in order else order


def hold(worth: Sequence[float], order: Sequence[int], of: Callable[[int], Final], finalists: int) -> tuple[Final, ...]:
    """Ask the best `finalists` that may yet be the best, and on down the order until one may be published.

    Args:
        worth: of every policy by its iteration's own answers.
        order: those that enter, the best first.
        of: asks one.
        finalists: how many.
    """
    held: list[Final] = []
    for index in order:
        settled = len(held) >= finalists or worth[order[0]] - worth[index] > BEHIND
        if settled and any(not final.breaches for final in held):
            break
        held.append(of(index))
    return tuple(held)


def winner(held: Sequence[Final]) -> int:
    """Iteration of the best score that broke no bound, of equals the earliest; 0 (the start) if there is none."""
    fit = [final for final in held if not final.breaches]
    return max(fit, key=lambda final: (final.score, -final.iteration)).iteration if fit else 0
