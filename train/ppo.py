"""PPO on a LoRA policy (Schulman et al. 2017; for language: Ziegler et al. 2019, Ouyang et al. 2022).

One iteration, numbered as in `PpoTrainer._iterate`:

 1. sample answers from the policy
 2. score them: one adapters-off pass gives the reference's log-probs and the reward model's view
 3. judge the policy that sampled (the governor) and set the prices of KL, topic and fluency; past its bounds, go part
    of the way back and judge again
 4. old log-probs, and the states that the critic reads
 5. rewards less the KL's price
 6. advantages: generalised over a critic's values and whitened, or against the other answers to the prompt
 7. minibatches: clipped policy loss, clipped value loss, gradient clipping, early stop on KL
 8. let the KL's own controller follow, checkpoint

What to watch (`IterationMetrics`): the score should rise, and KL with it, slowly; entropy falls; the clip fraction
stays below about 0.2; explained variance above 0; distinct bigrams and perplexity near the base's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train import checkpoint, maths
from train.advantage import advantage_estimator
from train.base import POLICY, Base
from train.config import MEMORY_SETTINGS, TrainConfig
from train.errors import BaseMismatch, CycleInterrupted
from train.experience import Scored, shaped
from train.finals import Final, Finals, hold, ranked, winner
from train.gold import Point, passed
from train.governor import Conduct, Judgement, Prices, conduct, fluency_price, judge, leap, share_kept
from train.iteration import IterationMetrics, PpoResult
from train.memory import give_back
from train.order import SAMPLING, plan, prompt_at, seed_for
from train.packing import Turn
from train.ppo_state import RunState
from train.reward.foresight import Tilt
from train.reward.protocol import TokenRewardModel
from train.rollout import Rollouts, Sample
from train.scaling import RunningScale
from train.team import ALONE, Team
from train.together import SharedRollouts, of_base, old_together, score_together
from train.topic import Topic, joined
from train.update import Targets, Updater

__all__ = ["IterationMetrics", "PpoResult", "PpoTrainer"]


class PpoTrainer:
    """A run of PPO. All randomness follows from (seed, iteration): a killed run goes on and ends in the same bits."""

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
        folder: Path,
        observe: Callable[[IterationMetrics, Judgement], None] = lambda _metrics, _judgement: None,
        progress: Callable[[str, int, int], None] = lambda _phase, _done, _total: None,
        should_stop: Callable[[], bool] = lambda: False,
        team: Team = ALONE,
    ) -> None:
        """Args:
        base: with the policy adapter that training begins with.
        rollouts: where answers come from.
        reward: scores them.
        prompts: token ids after the chat template; gone through in a seeded order, again and again.
        topic: measures how far answers keep to their prompts; None leaves that unwatched.
        witness: a model of votes that `reward` never saw; the run stops where it is predicted to peak.
        config: all settings.
        folder: of the checkpoints; one that holds some is resumed.
        observe: told of every iteration.
        progress: told phase, done and total (episodes; of the finals policies).
        should_stop: asked between phases; True ends the run with CycleInterrupted.
        team: processes that run this together, each with its own `base`; the lead's folder is the others' too.
        """
        self._base, self._reward, self._config, self._team = base, reward, config, team
        self._rollouts = rollouts if team.size == 1 else SharedRollouts(rollouts, team)
        self._prompts = [prompt for prompt in prompts if len(prompt) <= config.rollout.max_prompt_tokens]
        assert self._prompts, "PPO needs at least one prompt"
        self._folder, self._topic, self._witness = folder, topic, witness
        self._observe, self._progress, self._should_stop = observe, progress, should_stop
        ppo = config.ppo
        # only the whole vocabulary's KL has a reference that could be sharpened
        self._governor = config.governor if ppo.exact_kl else config.governor.model_copy(update={"fluency_rate": 0.0})
        base.gradient_checkpointing = ppo.gradient_checkpointing
        self._advantages = advantage_estimator(base, reward, config)
        policy = base.adapters.parameters(POLICY)
        self._optimiser = checkpoint.adamw(policy, config.policy_rate, ppo.betas, ppo.weight_decay)
        self._updater = Updater(base, (policy, self._optimiser), self._advantages.critic, config, team)
        self._foresight = reward.foresight(base.embeddings) if config.foresees else None
        self._state = RunState(
            maths.KlController(ppo.kl_coefficient, ppo.kl_target, ppo.kl_horizon),
            prices=Prices(topic=config.governor.topic_price if topic and config.governor.enabled else 0.0),
        )
        self._seconds: dict[str, float] = {}

    def run(self) -> PpoResult:
        """Train, or go on with a run that was cut off.

        Raises:
            TrainingDiverged: something is not finite.
            CycleInterrupted: `should_stop` said so; run again to go on.
            BaseMismatch: the checkpoint is of another base, reward model or configuration.
        """
        iteration = self._resume()
        while True:
            after, moved = self._iterate(iteration)
            if not moved:
                break
            iteration += 1
        state = self._state
        # past gold's peak the witness says who is best: the reward model can't
        harmed = state.judgements[-1].final
        worth = [m.gold if harmed and m.gold is not None else self._worth(m) for m in state.metrics]
        order = ranked(worth, state.judgements)
        held = self._finals(worth, order, self._witness if harmed else None)
        chosen = winner(held) if held else next(iter(order), 0)
        self._base.adapters.load_state(POLICY, self._policy_of(chosen))
        return PpoResult(chosen, tuple(state.metrics), tuple(state.judgements), state.before, after, held)

    def _finals(
        self, worth: Sequence[float], order: Sequence[int], witness: TokenRewardModel | None
    ) -> tuple[Final, ...]:
        """The best policy once more, on fresh answers. A run that was cut off in here holds its finals again, alike."""
        config, governor = self._config, self._config.governor
        if not (order and governor.enabled and governor.final_answers):
            return ()
        more: dict[str, Any] = {"topic": self._topic, "witness": witness, "config": config, "team": self._team}
        finals, done = Finals(self._base, self._rollouts, self._reward, self._prompts, **more), itertools.count()

        def of(iteration: int) -> Final:
            with self._phase("finals", at := next(done), max(at + 1, governor.finalists)):
                self._base.adapters.load_state(POLICY, self._policy_of(iteration))
                return finals.of(iteration)

        held = hold(worth, order, of, governor.finalists)
        self._base.adapters.load_state(POLICY, self._policy_of(0))
        # a start that isn't the base has been in office, or learnt from people's answers: it must be beaten too
        return held if self._base.adapters.untouched(POLICY) else (*held, of(0))

    def _worth(self, metrics: IterationMetrics) -> float:
        """Who keeps the governor's bounds has paid for its distance; without them the KL's price is all that holds."""
        return metrics.score if self._config.governor.enabled else metrics.objective

    def _iterate(self, iteration: int) -> tuple[tuple[Sample, ...], bool]:
        """Sample and judge the policy, then update it, or take part of the last step back if it is out of bounds.

        What the last update led to is judged without another. Is it out of bounds, it goes part of the way back as any
        other, and that is judged: sampling again costs half of what the step has cost.

        Returns:
            The answers, and whether there is a next policy to judge.
        """
        config, self._seconds = self._config, {}
        with self._phase("sample"):  # 1
            samples = self._sample(iteration, self._rollouts)
        with self._phase("score"):  # 2
            scored = score_together(self._team, self._base, samples, self._reward, config, witness=self._witness)
        metrics, judgement = self._judge(iteration, scored)  # 3
        self._state.before = self._state.before or tuple(replace(sample, states=None) for sample in samples)
        last = config.ppo.iterations
        if iteration < last and judgement.within:
            metrics = self._improve(iteration, scored, metrics)
        self._state.metrics.append(metrics)
        self._state.judgements.append(judgement)
        self._observe(metrics, judgement)
        astray = not (judgement.within or judgement.final)
        moved = metrics.updates > 0 or (astray and iteration <= last and self._back_off(judgement))
        if moved:  # 8
            self._state.controller = self._state.controller.updated(metrics.kl, metrics.episodes)
            self._save(iteration + 1)
        return tuple(samples), moved

    def _steer(self, seen: Conduct, judgement: Judgement) -> None:
        """Set the prices of the update that comes next, from the policy that it begins with; the first are given."""
        state = self._state
        if not state.metrics:
            return
        assert state.baseline is not None, "the base has been measured before any update"
        before, leapt = _conduct_of(state.metrics[-1]), 0.0
        # where `kl_target` is set, the KL's own controller sees to its price
        if state.metrics[-1].updates and self._config.ppo.kl_target is None:
            leapt = leap(before, seen)
        state.prices = state.prices.after(
            seen, before, baseline=state.baseline, leapt=leapt, judged=judgement, config=self._governor
        )

    def _back_off(self, judgement: Judgement) -> bool:
        """Go part of the way back to the last policy within bounds; False if there has been none."""
        state = self._state
        good = [at for at, judged in enumerate(state.judgements) if judged.within]
        if not good:
            return False
        seen, begun = _conduct_of(state.metrics[-1]), _conduct_of(state.metrics[good[-1]])
        share = share_kept(begun, seen, judgement, self._config.governor)
        before, now = self._policy_of(good[-1]), self._base.adapters.state(POLICY)
        between = {name: torch.lerp(before[name].to(tensor.device), tensor, share) for name, tensor in now.items()}
        self._base.adapters.load_state(POLICY, between)
        return True

    def _policy_of(self, iteration: int) -> dict[str, Tensor]:
        tensors, _ = self._team.agree(lambda: checkpoint.load(self._folder, iteration))
        return checkpoint.below(tensors, POLICY)

    def _improve(self, iteration: int, scored: Scored, metrics: IterationMetrics) -> IterationMetrics:
        """Steps 4 to 7."""
        config, ppo, mask, prices = self._config, self._config.ppo, scored.mask, self._state.prices
        order = plan(iteration, scored.samples, ppo, config.seed, self._team)
        from_sampler = self._rollouts.local and ppo.old_logprobs == "sampler" and self._base.dtype == torch.float32
        with self._phase("old"):  # 4
            old = old_together(self._team, self._base, scored, order, config, recompute=not from_sampler)
            divisor = self._divisor(scored)
        rewards = shaped(scored, old, metrics.kl_coefficient, config, divisor)  # 5
        if self._topic is not None:
            rewards = rewards + prices.topic * self._topic.rewards(scored.samples, mask)
        estimate = self._advantages.estimate(scored, old, rewards, first=iteration == 0)  # 6
        weights = None
        if not from_sampler:
            weights = maths.truncated_importance_weights(old.logprobs, scored.sampled, mask, ppo.tis_cap)
        with self._phase("update"):  # 7
            targets = Targets(scored, old, estimate, weights, self._tilt, 1.0 + metrics.fluency_price)
            figures = self._updater.run(
                order,
                targets,
                exact=not from_sampler,
                coefficient=metrics.kl_coefficient,
                step_done=lambda done: self._progress("update", done, ppo.epochs * metrics.episodes),
            )
        capped = torch.zeros_like(scored.sampled) if weights is None else (weights >= ppo.tis_cap).float()
        return replace(
            metrics,
            sampler_mismatch=float(maths.masked_mean((scored.sampled - old.logprobs).abs(), mask)),
            importance_capped=float(maths.masked_mean(capped, mask)),
            reward_divisor=divisor,
            explained_variance=estimate.explained_variance,
            seconds=dict(self._seconds),
            **figures.means(),
        )

    def _divisor(self, scored: Scored) -> float:
        """What `ppo.reward_scaling` divides rewards by."""
        scaling = self._config.ppo.reward_scaling
        if scaling == "none":
            return 1.0
        self._state.scale = (self._state.scale if scaling == "running" else RunningScale()).updated(scored.scores)
        return self._state.scale.deviation

    def _tilt(self, turns: Sequence[Turn]) -> Tilt | None:
        """What every candidate token would earn at the answers' places, as far as it is known."""
        if self._foresight is None:
            return None
        tilt = self._foresight.tilt(turns)
        price = self._state.prices.topic
        if self._topic is None or not price:
            return tilt
        return joined(tilt, self._topic.tilt(turns, price, self._base.device))

    def _sample(self, iteration: int, rollouts: Rollouts) -> list[Sample]:
        ppo, rollout = self._config.ppo, self._config.rollout
        count = ppo.episodes // ppo.answers_per_prompt
        return rollouts.generate(
            [prompt_at(self._prompts, iteration * count + at, self._config.seed) for at in range(count)],
            ppo.answers_per_prompt,
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            seed=seed_for(self._config.seed, iteration, SAMPLING),
        )

    def _judge(self, iteration: int, scored: Scored) -> tuple[IterationMetrics, Judgement]:
        mask, samples = scored.mask, scored.samples
        kl = float(torch.where(mask, maths.kl(scored.sampled, scored.reference), 0.0).sum(1).mean())
        rows = [row[keep].tolist() for row, keep in zip(scored.reference, mask, strict=True)]
        seen = conduct([sample.response_ids for sample in samples], rows, kl, self._kept(samples))
        self._state.baseline = self._state.baseline or (
            seen if self._base.adapters.untouched(POLICY) else self._measure_base()
        )
        judgement = judge(seen, self._state.baseline, self._config.governor)
        self._steer(seen, judgement)
        mean, prices = float(scored.scores.mean()), self._state.prices
        gold = None if scored.gold is None else scored.gold.sum(1)
        metrics = IterationMetrics(
            iteration=iteration,
            episodes=len(samples),
            score=mean,
            score_std=float(scored.scores.std(unbiased=False)),
            kl=kl,
            objective=mean - self._config.ppo.kl_coefficient * kl,
            length=float(mask.sum(1).float().mean()),
            eos_share=sum(sample.finish_reason == "stop" for sample in samples) / len(samples),
            distinct_within=seen.distinct_within,
            distinct_across=seen.distinct_across,
            perplexity=seen.perplexity,
            kl_coefficient=self._state.controller.coefficient * prices.kl,
            topic=seen.topic,
            topic_price=prices.topic,
            fluency_price=fluency_price(seen, self._state.baseline, self._governor),
            gold=None if gold is None else float(gold.mean()),
            gold_error=None if gold is None else float(gold.std()) / len(gold) ** 0.5,
            seconds=dict(self._seconds),
        )
        return metrics, judgement.past(passed(_points([*self._state.metrics, metrics])))

    def _measure_base(self) -> Conduct:
        """The base's own conduct, for a run that goes on from an adapter."""
        samples = self._sample(0, of_base(self._base, self._config.rollout.batch, self._team))
        return conduct([s.response_ids for s in samples], [s.logprobs for s in samples], 0.0, self._kept(samples))

    def _kept(self, samples: Sequence[Sample]) -> float:
        return self._topic.kept(samples) if self._topic else 1.0

    @contextmanager
    def _phase(self, name: str, done: int = 0, total: int | None = None) -> Iterator[None]:
        if self._team.any(self._should_stop()):
            raise CycleInterrupted("the cycle was asked to stop; start `hustings train` again and it goes on from here")
        self._progress(name, done, self._config.ppo.episodes if total is None else total)
        started = time.perf_counter()
        yield
        give_back()
        self._seconds[name] = time.perf_counter() - started

    def _save(self, iteration: int) -> None:
        tensors = {f"{POLICY}/{key}": value for key, value in self._base.adapters.state(POLICY).items()}
        tensors |= checkpoint.optimiser_tensors(self._optimiser, "policy_optimiser")
        if self._advantages.critic is not None:
            tensors |= self._advantages.critic.state()
        record = {"identity": self._identity(), "iteration": iteration, **self._state.record()}
        self._team.agree(lambda: self._write(iteration, tensors, record))

    def _write(self, iteration: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """The lead's part of saving: the checkpoint, after which the last one needs its policy only."""
        if self._team.leads:
            checkpoint.save(self._folder, iteration, tensors, record)
            checkpoint.slim(self._folder, iteration - 1, keep=f"{POLICY}/")

    def _resume(self) -> int:
        """Load the newest checkpoint, or write the first; the iteration to go on with."""
        if self._team.leads:
            self._folder.mkdir(parents=True, exist_ok=True)
        iteration = self._team.lead_found(checkpoint.latest(self._folder) if self._team.leads else None)
        if iteration is None:
            self._save(0)
            return 0
        tensors, record = self._team.agree(lambda: checkpoint.load(self._folder, iteration))
        if other := checkpoint.difference(record["identity"], self._identity(), {"config": _told_apart(TrainConfig())}):
            raise BaseMismatch(
                f"{self._folder} holds a run with another base, reward model or configuration ({other}); remove it to "
                "start anew"
            )
        self._base.adapters.load_state(POLICY, checkpoint.below(tensors, POLICY))
        if self._advantages.critic is not None:
            self._advantages.critic.load_state(tensors)
        checkpoint.restore_optimiser(self._optimiser, tensors, "policy_optimiser")
        try:
            self._state.restore(record)
        except (KeyError, TypeError) as error:
            raise BaseMismatch(
                f"{self._folder} was written by another version of Hustings ({error}), and this one can't "
                "go on with it; the next cycle begins anew, at once with `hustings train --once`"
            ) from error
        return iteration

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a run to be the same run."""
        config = _told_apart(self._config)
        return {"base": self._base.fingerprint, "reward_model": self._reward.model_id, "config": config}


def _told_apart(config: TrainConfig) -> dict[str, Any]:
    """The settings by which runs are told apart."""
    parts = {"seed", "tuning", "reward", "lora", "full", "ppo", "governor", "rollout"}
    return config.model_dump(mode="json", include=parts, exclude=dict(MEMORY_SETTINGS))


def _points(metrics: Sequence[IterationMetrics]) -> list[Point]:
    return [Point(m.kl, m.gold, m.gold_error) for m in metrics if m.gold is not None and m.gold_error is not None]


def _conduct_of(metrics: IterationMetrics) -> Conduct:
    names = ("distinct_within", "distinct_across", "perplexity", "kl", "topic")
    return Conduct(**{name: getattr(metrics, name) for name in names})
