"""One training cycle, from votes to a published adapter. The numbers are those of `Cycle.run`:

 1. snapshot: freeze the votes and prompts that there are
 2. features of the voted answers, from the bare base (cached: once ever)
 3. reward model: judged by cross-validation, refused unless it is fit, refitted on all votes
 4. a warm start on people's edited answers where there are enough, then PPO on the snapshot's prompts, within the
    governor's bounds
 5. evaluate: fresh answers of base and policy to the same prompts
 6. publish the adapter with its manifest, atomically
 7. report; with it the cycle has ended

Every step leaves its result in `DataPaths.train/cycles/<number>/` before the next begins, so that a cycle which was
killed anywhere goes on where it stood, ends in the same bits on a CPU, and publishes once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from train.base import POLICY, Base
from train.chronicle import Chronicle
from train.config import TrainConfig
from train.cycle_state import CycleState, all_cycles, cycles_folder, save_state
from train.data import Prompts, TrainingData
from train.errors import BaseMismatch, NotEnoughVotes, PolicyRefused, RolloutsUnavailable
from train.evaluate import Evaluation, evaluate, make_probes, probe_answers
from train.files import write_json
from train.full import FullPolicy, publish_policy
from train.full_publish import next_checkpoint, stated_dtype
from train.gold import of_rows, withheld, witness
from train.learning import Learning
from train.ppo import PpoResult
from train.publish import next_name, publish
from train.reading import read_features
from train.reward.judge import Judgement
from train.reward.last import LastHead
from train.reward.mix import MixHead
from train.reward.refresh import refresh, refresh_last
from train.reward.votes import Votes
from train.rollout import Sample
from train.tools import Tools

__all__ = ["Cycle", "Tools", "load_head"]

log = structlog.get_logger()

RewardHead = MixHead | LastHead


class Cycle:
    """A cycle under way."""

    def __init__(self, tools: Tools, state: CycleState) -> None:
        self._tools = tools
        self._state = state
        self._config = TrainConfig.model_validate(state.config)
        self._folder = cycles_folder(tools.paths) / f"{state.number:06d}"
        self._log = log.bind(cycle=state.number)
        self._chronicle = Chronicle(
            self._folder,
            tools.status,
            tokenizer=tools.tokenizer,
            config=self._config,
            number=state.number,
            boards=tools.paths.train / "tensorboard",
        )

    def run(self) -> CycleState:
        """Run, or go on, to the end.

        Raises:
            TrainError: it can't be finished; the incumbent stays. `CycleInterrupted` and `RolloutsUnavailable` leave
                the cycle open, to be resumed.
        """
        self._tools.status.begin(self._state.number)
        self._require_serving()
        data = self._snapshot()  # 1
        head = self._reward_model(data)  # 2, 3
        result = self._learning().run(head, data)  # 4
        self._chronicle.finals(result.finals)
        if result.chosen == 0:
            self._report(head, result, None)
            raise PolicyRefused(f"{_no_policy(result)}: the incumbent stays; see {self._folder / 'report.html'}")
        evaluation = self._evaluate(head, data.prompts)  # 5
        if self._config.governor.enabled and evaluation.after.reward <= evaluation.before.reward:
            self._report(head, result, None)
            raise PolicyRefused(
                f"on fresh answers the policy earns {evaluation.after.reward:.2f} where the base earns "
                f"{evaluation.before.reward:.2f}: the incumbent stays; see {self._folder / 'report.html'}"
            )
        adapter = self._publish(head, result, evaluation)  # 6
        self._advance(metrics=self._figures(head, result, evaluation))
        self._report(head, result, evaluation)  # 7
        self._advance(outcome="published")
        self._log.info("adapter_published", adapter=adapter.name, reward=evaluation.after.reward)
        return self._state

    def _require_serving(self) -> None:
        """Before anything is spent: a cycle that is to sample from serving knows of one."""
        if self._config.rollout.source == "serving" and self._tools.rollouts is None:
            raise RolloutsUnavailable(
                'train.rollout.source = "serving" and no serving is known: start it first (hustings up), give '
                '--serve-url URL, or set train.rollout.source = "local"'
            )

    def _snapshot(self) -> TrainingData:
        if self._state.snapshot is None:
            self._tools.status.phase("snapshot", message="freezing the votes")
            self._advance(snapshot=self._tools.votes.freeze())
        assert self._state.snapshot is not None
        data = self._tools.votes.load(self._state.snapshot)
        _check_ids(data, self._tools.base.head.shape[0])
        counts = {"votes": len(data.votes), "decisive": data.votes.decisive, "prompts": len(data.prompts.distinct)}
        self._tools.status.update(dataset={"snapshot": self._state.snapshot, **counts}, force=True)
        self._log.info("snapshot", id=self._state.snapshot, **counts)
        longest, needed = self._config.rollout.max_prompt_tokens, self._config.schedule.min_prompts
        if sum(len(prompt) <= longest for prompt in data.prompts.distinct) < needed:
            raise NotEnoughVotes(
                f"the snapshot has {len(data.prompts.distinct)} distinct prompts, PPO needs {needed} "
                f"(train.schedule.min_prompts) of at most {longest} tokens (train.rollout.max_prompt_tokens): chat more"
            )
        return data

    def _reward_model(self, data: TrainingData) -> RewardHead:
        folder = self._folder / "reward"
        textbook = self._config.reward.head == "last"
        if self._state.reward_model is None:
            head, judgement = self._last(data) if textbook else self._mix(data)
            head.save(folder)
            write_json(folder / "judgement.json", asdict(judgement))
            self._chronicle.reward_model(head.model_id, judgement.metrics())
            self._advance(reward_model=head.model_id)
        # always what the file holds, so that a resumed run has the same bits
        return load_head(folder, self._tools.base, self._config)

    def _last(self, data: TrainingData) -> tuple[LastHead, Judgement]:
        self._tools.status.phase("reward")
        votes, config = data.votes, self._config
        unseen = self._newer_than_predecessor(votes) if self._last_published() else lambda _row: True
        return refresh_last(self._tools.base, votes, config.reward, config.seed, unseen_by_predecessor=unseen)

    def _mix(self, data: TrainingData) -> tuple[MixHead, Judgement]:
        tools, config = self._tools, self._config.reward
        tools.status.phase("features", message="reading the voted answers")
        read = read_features(
            tools, self._config, data, lambda done, total: tools.status.phase("features", done / total)
        )
        tools.status.phase("reward")
        learnt, kept = (
            of_rows(data.votes, rows) for rows in withheld(data.votes, self._config.governor, self._config.seed)
        )
        made = refresh(
            read.pooled,
            learnt,
            config,
            layers=read.layers,
            vocabulary=read.vocabulary,
            base_fingerprint=tools.base.fingerprint,
            spread=read.spread,
            predecessor=self._predecessor(),
            unseen_by_predecessor=self._newer_than_predecessor(learnt),
            seed=self._config.seed,
        )
        if judge := witness(read, kept, tools.base.fingerprint) if len(kept) else None:
            judge.save(self._folder / "witness")
        return made.head, made.judgement

    def _predecessor(self) -> MixHead | None:
        last = self._last_published()
        folder = cycles_folder(self._tools.paths) / f"{last.number:06d}" / "reward" if last else None
        if folder is None or not (folder / "reward.json").is_file():
            return None
        record = json.loads((folder / "reward.json").read_text())
        same = record["head"] == "mix" and record["base_fingerprint"] == self._tools.base.fingerprint
        return MixHead.load(folder) if same else None

    def _newer_than_predecessor(self, votes: Votes) -> Callable[[int], bool]:
        last = self._last_published()
        if last is None or last.snapshot is None:
            return lambda _row: False
        seen = self._tools.votes.vote_ids(last.snapshot)
        return lambda row: votes.vote_ids[row] not in seen

    def _last_published(self) -> CycleState | None:
        earlier = [s for s in all_cycles(self._tools.paths) if s.outcome == "published"]
        return earlier[-1] if earlier else None

    def _learning(self) -> Learning:
        return Learning(
            self._tools, self._config, self._folder, self._state.number, advance=self._advance, told=self._chronicle
        )

    def _evaluate(self, head: RewardHead, prompts: Prompts) -> Evaluation:
        tools, config = self._tools, self._config
        tools.status.phase("evaluate")
        if isinstance(tools.base.adapters, FullPolicy):
            tools.base.adapters.settle_as(stated_dtype(tools.model))
        evaluation = evaluate(
            tools.base,
            head,
            _spread(prompts.distinct, config.schedule.eval_prompts, config.rollout.max_prompt_tokens),
            max_tokens=config.rollout.max_tokens,
            temperature=config.rollout.temperature,
            seed=config.seed + 7_919,
            budget=config.ppo.pass_tokens,
            batch=config.rollout.batch,
        )
        self._chronicle.evaluated(evaluation)
        return evaluation

    def _publish(self, head: RewardHead, result: PpoResult, evaluation: Evaluation) -> Path:
        tools, state = self._tools, self._state
        tools.status.phase("publish")
        if state.adapter is None:
            reserved = [s.adapter for s in all_cycles(tools.paths) if s.adapter]
            if self._config.tuning == "full":
                self._advance(adapter=next_checkpoint(tools.paths.checkpoints, reserved))
            else:
                self._advance(adapter=next_name(tools.paths.adapters, reserved))
        name = self._state.adapter
        assert name is not None
        assert self._state.snapshot is not None
        lineage: dict[str, Any] = {
            "reward_model": head.model_id,
            "snapshot": self._state.snapshot,
            "probes": make_probes(tools.base, self._probe_answers()),
            "config": {**self._state.config, "cycle": state.number},
            "metrics": self._figures(head, result, evaluation),
        }
        policy = tools.base.adapters
        if isinstance(policy, FullPolicy):
            return publish_policy(policy, tools.paths.checkpoints, name, tools.model, tools.base.fingerprint, **lineage)
        return publish(
            tools.paths.adapters,
            name,
            lambda folder: policy.save(POLICY, folder, str(tools.model)),
            parent=self._state.parent,
            base_model=tools.model.name,
            base_fingerprint=tools.base.fingerprint,
            lora_rank=self._config.lora.rank,
            **lineage,
        )

    def _probe_answers(self) -> list[Sample]:
        config = self._config
        return probe_answers(
            self._tools.base, self._tools.texts, temperature=config.rollout.temperature, seed=config.seed
        )

    def _figures(self, head: RewardHead, result: PpoResult, evaluation: Evaluation) -> dict[str, float]:
        held_out = {name: value for name, value in head.metrics.items() if not name.startswith("scale_")}
        ppo = {"iterations": float(result.chosen), "ppo_kl": result.metrics[result.chosen].kl}
        for final in result.finals:
            if final.iteration == result.chosen:
                ppo |= final.metrics()
        warm = self._state.warm_start or {}
        found = {**held_out, **warm, **evaluation.metrics(), **ppo, "reward": evaluation.after.reward}
        return {name: value for name, value in found.items() if math.isfinite(value)}  # JSON has no word for others

    def _report(self, head: RewardHead, result: PpoResult, evaluation: Evaluation | None) -> None:
        figures = self._state.metrics or {**head.metrics, **(self._state.warm_start or {})}
        scales = {name: value for name, value in head.metrics.items() if name.startswith("scale_")}
        self._chronicle.report(
            self._state.finished(), result.chosen, self._tools.model.name, {**figures, **scales}, evaluation
        )

    def _advance(self, **changes: Any) -> None:
        self._state = self._state.model_copy(update=changes)
        if "outcome" in changes:
            self._state = self._state.finished()
        save_state(cycles_folder(self._tools.paths), self._state)


def _no_policy(result: PpoResult) -> str:
    """Why nothing is published."""
    if not result.finals:
        return "PPO found no policy within the governor's bounds that scores above its start"
    best = result.finals[0]
    if all(final.breaches for final in result.finals if final.iteration):
        return (
            "every policy of PPO that scored above its start broke the governor's bounds on fresh answers (iteration "
            f"{best.iteration}: {'; '.join(best.breaches)})"
        )
    return "on fresh answers no policy of PPO scored above its start within the governor's bounds"


def load_head(folder: Path, base: Base, config: TrainConfig) -> RewardHead:
    """A cycle's reward model, as its files hold it."""
    if config.reward.head == "last":
        return LastHead.load(folder, base)
    return MixHead.load(folder).fitted_on(base.fingerprint)


def _check_ids(data: TrainingData, vocabulary: int) -> None:
    said = (a.prompt_ids + a.response_ids for a in data.votes.answers)
    largest = max((max(ids) for ids in (*said, *data.prompts.all)), default=0)
    if largest >= vocabulary:
        raise BaseMismatch(
            f"the votes hold token id {largest} and the base model knows {vocabulary} tokens: they were cast on "
            "another model; train with the model that was served, or start a new data folder"
        )


def _spread(prompts: Sequence[tuple[int, ...]], count: int, longest: int) -> list[tuple[int, ...]]:
    """About `count` prompts, evenly from the whole list."""
    short = [prompt for prompt in prompts if len(prompt) <= longest]
    step = max(1, len(short) // count)
    return short[::step][:count]
