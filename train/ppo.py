"""PPO on a LoRA policy (Schulman et al. 2017; for language: Ziegler et al. 2019, Ouyang et al. 2022).

One iteration, numbered as in `PpoTrainer._iterate`:

 1. sample answers from the policy
 2. score them: one adapters-off pass gives the reference's log-probs and the reward model's view
 3. judge the policy that sampled (the governor); past its bounds, stop
 4. old log-probs, and the states that the critic reads
 5. rewards less the KL's price
 6. values and generalised advantages, whitened
 7. minibatches: clipped policy loss, clipped value loss, gradient clipping, early stop on KL
 8. steer the KL coefficient, checkpoint

What to watch (`IterationMetrics`): the score should rise, and KL with it, slowly; entropy falls; the clip fraction
stays below about 0.2; explained variance above 0; distinct bigrams and perplexity near the base's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train import checkpoint, maths
from train.base import CRITIC, POLICY, Base
from train.config import TrainConfig
from train.errors import BaseMismatch, CycleInterrupted
from train.experience import Scored, critic_states, cross_fitted_values, old_policy, score, shaped
from train.governor import Conduct, Judgement, choose, conduct, judge
from train.heads import ValueHead
from train.packing import groups
from train.reward.protocol import TokenRewardModel
from train.rollout import Rollouts, Sample
from train.sampler import LocalRollouts
from train.update import Targets, UpdateFigures, Updater


@dataclass(frozen=True, slots=True)
class IterationMetrics:
    """Figures of one iteration. Those of the answers describe the policy before this iteration's update.

    Attributes:
        iteration: 0 is the policy that training began with.
        episodes: answers sampled.
        score: mean of the reward model.
        score_std: its standard deviation.
        kl: nats an answer to the base (k1 summed over tokens).
        objective: mean score less the KL's price.
        length: tokens an answer.
        eos_share: answers that ended by themselves.
        distinct_within: see `governor.Conduct`; so are the next two.
        distinct_across: of all answers together.
        perplexity: under the base.
        kl_coefficient: in force during the iteration.
        sampler_mismatch: mean |log-prob of the sampler - old log-prob|, nats a token.
        explained_variance: of the values before the update, against the returns.
        entropy: mean over tokens, nats.
        policy_loss: mean over minibatches; so are the next ones.
        value_loss: of the critic.
        approx_kl: between sampling and trained policy, nats a token.
        clip_fraction: share of tokens clipped.
        grad_norm: of the policy before clipping.
        first_ratio_error: largest |ratio - 1| in the first minibatch.
        updates: optimiser steps taken.
        stopped_early: whether the approximate KL ended the updates.
        seconds: of each phase.
    """

    iteration: int
    episodes: int
    score: float
    score_std: float
    kl: float
    objective: float
    length: float
    eos_share: float
    distinct_within: float
    distinct_across: float
    perplexity: float
    kl_coefficient: float
    sampler_mismatch: float = 0.0
    explained_variance: float = 0.0
    entropy: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    approx_kl: float = 0.0
    clip_fraction: float = 0.0
    grad_norm: float = 0.0
    first_ratio_error: float = 0.0
    updates: int = 0
    stopped_early: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PpoResult:
    """What a run ended with; the policy adapter holds the chosen policy.

    Attributes:
        chosen: iteration whose policy was chosen (0: nothing better than the start within the governor's bounds).
        metrics: of every iteration; the last one judges the final policy and has no update.
        judgements: the governor's, as many.
        before: answers of the policy that training began with.
        after: answers of the last policy that was judged.
    """

    chosen: int
    metrics: tuple[IterationMetrics, ...]
    judgements: tuple[Judgement, ...]
    before: tuple[Sample, ...]
    after: tuple[Sample, ...]


class PpoTrainer:
    """A run of PPO. All randomness follows from (seed, iteration): a killed run goes on and ends in the same bits."""

    def __init__(
        self,
        base: Base,
        rollouts: Rollouts,
        reward: TokenRewardModel,
        prompts: Sequence[tuple[int, ...]],
        *,
        config: TrainConfig,
        folder: Path,
        observe: Callable[[IterationMetrics, Judgement], None] = lambda _metrics, _judgement: None,
        progress: Callable[[str, int, int], None] = lambda _phase, _done, _total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args:
        base: with the policy adapter that training begins with.
        rollouts: where answers come from.
        reward: scores them.
        prompts: token ids after the chat template; gone through in a seeded order, again and again.
        config: all settings.
        folder: of the checkpoints; one that holds some is resumed.
        observe: told of every iteration.
        progress: told phase, done and total (episodes).
        should_stop: asked between phases; True ends the run with CycleInterrupted.
        """
        self._base, self._rollouts, self._reward, self._config = base, rollouts, reward, config
        self._prompts = [prompt for prompt in prompts if len(prompt) <= config.rollout.max_prompt_tokens]
        assert self._prompts, "PPO needs at least one prompt"
        self._folder = folder
        self._observe, self._progress, self._should_stop = observe, progress, should_stop
        ppo = config.ppo
        self._head = ValueHead(base.width).to(base.device)
        policy, critic = base.adapters.parameters(POLICY), list(self._head.parameters())
        if ppo.critic == "lora":
            base.adapters.add(CRITIC, config.seed + 1)
            critic += base.adapters.parameters(CRITIC)
        self._policy_optimiser = checkpoint.adamw(policy, ppo.learning_rate, ppo.betas, ppo.weight_decay)
        self._critic_optimiser = checkpoint.adamw(critic, ppo.value_learning_rate, ppo.betas, 0.0)
        self._updater = Updater(
            base, self._head, (policy, self._policy_optimiser), (critic, self._critic_optimiser), config
        )
        self._controller = maths.KlController(ppo.kl_coefficient, ppo.kl_target, ppo.kl_horizon)
        self._baseline: Conduct | None = None
        self._before: tuple[Sample, ...] = ()
        self._metrics: list[IterationMetrics] = []
        self._judgements: list[Judgement] = []
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
            after = self._iterate(iteration)
            if self._metrics[-1].updates == 0:
                break
            iteration += 1
        chosen = choose([metrics.objective for metrics in self._metrics], self._judgements)
        tensors, _ = checkpoint.load(self._folder, chosen)
        self._base.adapters.load_state(POLICY, _below(tensors, POLICY))
        return PpoResult(chosen, tuple(self._metrics), tuple(self._judgements), self._before, after)

    def _iterate(self, iteration: int) -> tuple[Sample, ...]:
        """Sample and judge the policy; update it unless it is the last or out of bounds. Returns the answers."""
        config, self._seconds = self._config, {}
        with self._phase("sample"):  # 1
            samples = self._sample(iteration, self._rollouts)
        with self._phase("score"):  # 2
            scored = score(self._base, samples, self._reward, config)
        metrics, judgement = self._judge(iteration, scored)  # 3
        self._before = self._before or tuple(replace(sample, states=None) for sample in samples)
        if iteration < config.ppo.iterations and judgement.within:
            metrics = self._improve(iteration, scored, metrics)
        self._metrics.append(metrics)
        self._judgements.append(judgement)
        self._observe(metrics, judgement)
        if metrics.updates:
            self._controller = self._controller.updated(metrics.kl, metrics.episodes)  # 8
            self._save(iteration + 1)
            checkpoint.slim(self._folder, iteration, keep=f"{POLICY}/")
        return tuple(samples)

    def _improve(self, iteration: int, scored: Scored, metrics: IterationMetrics) -> IterationMetrics:
        """Steps 4 to 7."""
        config, ppo, mask = self._config, self._config.ppo, scored.mask
        plan = self._plan(iteration, scored.samples)
        from_sampler = self._rollouts.local and ppo.old_logprobs == "sampler"
        with self._phase("old"):  # 4
            micro_batches = [micro for minibatch in plan[0] for micro in minibatch]
            old = old_policy(self._base, scored, micro_batches, config, local=self._rollouts.local)
            states = critic_states(self._base, scored, old, config)
        rewards = shaped(scored, old, self._controller.coefficient, config)  # 5
        values = self._values(iteration, mask, states, rewards)  # 6
        estimate = maths.gae(rewards, values, mask, ppo.gamma, ppo.lam)
        advantages, unit = estimate.advantages, 1.0
        if ppo.whiten_advantages:
            unit = max(float(advantages[mask].std(unbiased=False)), 1e-8)
            advantages = maths.masked_whiten(advantages, mask)
        weights = None
        if not from_sampler:
            weights = maths.truncated_importance_weights(old.logprobs, scored.sampled, mask, ppo.tis_cap)
        with self._phase("update"):  # 7
            targets = Targets(scored, old, states, values, estimate.returns, advantages, weights, unit)
            figures = self._updater.run(
                plan,
                targets,
                exact=not from_sampler,
                coefficient=self._controller.coefficient,
                step_done=lambda done: self._progress("update", done, ppo.epochs * metrics.episodes),
            )
        return replace(
            metrics,
            sampler_mismatch=float(maths.masked_mean((scored.sampled - old.logprobs).abs(), mask)),
            explained_variance=float(maths.explained_variance(values, estimate.returns, mask)),
            seconds=dict(self._seconds),
            **_figures(figures),
        )

    def _sample(self, iteration: int, rollouts: Rollouts) -> list[Sample]:
        ppo, rollout = self._config.ppo, self._config.rollout
        count = ppo.episodes // ppo.answers_per_prompt
        return rollouts.generate(
            [self._prompt(iteration * count + at) for at in range(count)],
            ppo.answers_per_prompt,
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            seed=_seed(self._config.seed, iteration, 0),
        )

    def _prompt(self, position: int) -> tuple[int, ...]:
        """The prompt at a position of the endless, ever reshuffled sequence."""
        epoch, at = divmod(position, len(self._prompts))
        order = torch.randperm(len(self._prompts), generator=_generator(self._config.seed, epoch, 1))
        return self._prompts[int(order[at])]

    def _judge(self, iteration: int, scored: Scored) -> tuple[IterationMetrics, Judgement]:
        mask, samples = scored.mask, scored.samples
        kl = float(torch.where(mask, maths.kl(scored.sampled, scored.reference), 0.0).sum(1).mean())
        rows = [row[keep].tolist() for row, keep in zip(scored.reference, mask, strict=True)]
        seen = conduct([sample.response_ids for sample in samples], rows, kl)
        self._baseline = self._baseline or (seen if self._starts_at_base() else self._measure_base())
        mean = float(scored.scores.mean())
        metrics = IterationMetrics(
            iteration=iteration,
            episodes=len(samples),
            score=mean,
            score_std=float(scored.scores.std(unbiased=False)),
            kl=kl,
            objective=mean - self._controller.coefficient * kl,
            length=float(mask.sum(1).float().mean()),
            eos_share=sum(sample.finish_reason == "stop" for sample in samples) / len(samples),
            distinct_within=seen.distinct_within,
            distinct_across=seen.distinct_across,
            perplexity=seen.perplexity,
            kl_coefficient=self._controller.coefficient,
            seconds=dict(self._seconds),
        )
        return metrics, judge(seen, self._baseline, self._config.governor)

    def _starts_at_base(self) -> bool:
        """Whether the policy adapter changes nothing yet: then its answers are the base's own."""
        return not any(layer.lora_b[POLICY].detach().any() for layer in self._base.adapters.layers.values())

    def _measure_base(self) -> Conduct:
        """The base's own conduct, for a run that goes on from an adapter."""
        samples = self._sample(0, LocalRollouts(self._base, adapter=None, batch=self._config.rollout.batch))
        return conduct([s.response_ids for s in samples], [s.logprobs for s in samples], kl=0.0)

    def _values(self, iteration: int, mask: Tensor, states: Tensor, rewards: Tensor) -> Tensor:
        """The critic's values (B, T), refitted on what was sampled (always, or before the first step)."""
        ppo = self._config.ppo
        self._head.calibrate(states[mask])
        refit = ppo.critic_refit and ppo.critic == "trunk"
        if refit or (iteration == 0 and ppo.critic_warmup):
            returns = maths.gae(rewards, torch.zeros_like(rewards), mask, ppo.gamma, 1.0).returns
            return cross_fitted_values(self._head, states, returns, mask)
        with torch.no_grad():
            return torch.where(mask, self._head(states), 0.0)

    def _plan(self, iteration: int, samples: Sequence[Sample]) -> list[list[list[list[int]]]]:
        """Rows by epoch, minibatch and micro-batch; the answers to one prompt stay together and share its pass."""
        ppo, each = self._config.ppo, self._config.ppo.answers_per_prompt
        generator = _generator(self._config.seed, iteration, 2)
        plan = []
        for _ in range(ppo.epochs):
            order = torch.randperm(len(samples) // each, generator=generator).tolist()
            rows = [group * each + at for group in order for at in range(each)]
            minibatches = [rows[start : start + ppo.minibatch] for start in range(0, len(rows), ppo.minibatch)]
            plan.append([_micro_batches(samples, minibatch, ppo.micro_tokens) for minibatch in minibatches])
        return plan

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        if self._should_stop():
            raise CycleInterrupted("the cycle was asked to stop; start `hustings train` again and it goes on from here")
        self._progress(name, 0, self._config.ppo.episodes)
        started = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - started

    def _save(self, iteration: int) -> None:
        adapters = [POLICY, CRITIC] if self._config.ppo.critic == "lora" else [POLICY]
        tensors = {
            f"{name}/{key}": value for name in adapters for key, value in self._base.adapters.state(name).items()
        }
        tensors |= {f"head/{key}": value for key, value in self._head.state_dict().items()}
        tensors |= checkpoint.optimiser_tensors(self._policy_optimiser, "policy_optimiser")
        tensors |= checkpoint.optimiser_tensors(self._critic_optimiser, "critic_optimiser")
        record = {
            "identity": self._identity(),
            "iteration": iteration,
            "kl_coefficient": self._controller.coefficient,
            "baseline": asdict(self._baseline) if self._baseline else None,
            "metrics": [asdict(metrics) for metrics in self._metrics],
            "judgements": [asdict(judgement) for judgement in self._judgements],
            "before": [
                [sample.prompt_ids, sample.response_ids, sample.logprobs, sample.finish_reason]
                for sample in self._before
            ],
        }
        checkpoint.save(self._folder, iteration, tensors, record)

    def _resume(self) -> int:
        """Load the newest checkpoint, or write the first; the iteration to go on with."""
        self._folder.mkdir(parents=True, exist_ok=True)
        iteration = checkpoint.latest(self._folder)
        if iteration is None:
            self._save(0)
            return 0
        tensors, record = checkpoint.load(self._folder, iteration)
        if record["identity"] != self._identity():
            raise BaseMismatch(
                f"{self._folder} holds a run with another base, reward model or configuration; remove it to start anew"
            )
        self._base.adapters.load_state(POLICY, _below(tensors, POLICY))
        if self._config.ppo.critic == "lora":
            self._base.adapters.load_state(CRITIC, _below(tensors, CRITIC))
        self._head.load_state_dict(_below(tensors, "head"))
        checkpoint.restore_optimiser(self._policy_optimiser, tensors, "policy_optimiser")
        checkpoint.restore_optimiser(self._critic_optimiser, tensors, "critic_optimiser")
        self._controller = replace(self._controller, coefficient=record["kl_coefficient"])
        self._baseline = Conduct(**record["baseline"]) if record["baseline"] else None
        self._metrics = [IterationMetrics(**metrics) for metrics in record["metrics"]]
        self._judgements = [Judgement(j["within"], tuple(j["breaches"])) for j in record["judgements"]]
        self._before = tuple(Sample(tuple(p), tuple(r), tuple(x), reason) for p, r, x, reason in record["before"])
        return iteration

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a run to be the same run."""
        config = self._config.model_dump(mode="json", include={"seed", "reward", "lora", "ppo", "governor", "rollout"})
        return {"base": self._base.fingerprint, "reward_model": self._reward.model_id, "config": config}


def _figures(update: UpdateFigures) -> dict[str, Any]:
    means = ("entropy", "policy_loss", "value_loss", "approx_kl", "clip_fraction", "grad_norm")
    return {name: update.mean(name) for name in means} | {
        "updates": update.updates,
        "stopped_early": update.stopped_early,
        "first_ratio_error": update.first_ratio_error,
    }


def _micro_batches(samples: Sequence[Sample], rows: Sequence[int], budget: int) -> list[list[int]]:
    return [[rows[at] for at in group] for group in groups([samples[row] for row in rows], budget)]


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


def _seed(seed: int, counter: int, purpose: int) -> int:
    """A seed of its own for each use, below 2^53 and far from its neighbours: serving counts prompts up from it."""
    return ((seed % 2**20) * 2**12 + counter % 2**12) * 2**20 + purpose


def _generator(seed: int, counter: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, counter, purpose))
