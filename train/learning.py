"""Step 4 of a cycle: the policy learns, first from people's own answers, then by PPO. A team runs it together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from train.base import POLICY
from train.checkpoint import latest
from train.chronicle import Chronicle, rounded
from train.config import TrainConfig
from train.data import TrainingData
from train.demonstrations import Demonstration, encode
from train.errors import BaseMismatch
from train.files import write_json
from train.gold import load_witness
from train.ppo import PpoResult, PpoTrainer
from train.publish import MANIFEST
from train.reward.protocol import TokenRewardModel
from train.rollout import Rollouts
from train.sampler import LocalRollouts
from train.sft import Epoch, WarmStarter
from train.texts import turn_end
from train.together import HeardRollouts
from train.tools import Tools
from train.topic import Topic

log = structlog.get_logger()


def _unheard(_share: float, _last: Epoch | None) -> None:
    """Nobody is told."""


class Learning:
    """The step under way. Only the lead writes anything but checkpoints' shards of work: files, status, state."""

    def __init__(
        self,
        tools: Tools,
        config: TrainConfig,
        folder: Path,
        number: int,
        *,
        advance: Callable[..., None] = lambda **_changes: None,
        told: Chronicle | None = None,
    ) -> None:
        """Args:
        tools: what the cycle works with.
        config: the cycle's own.
        folder: the cycle's.
        number: the cycle's.
        advance: notes changes of the cycle's state; the lead's.
        told: tells people how it goes; the lead's.
        """
        self._tools, self._config, self._folder, self._number = tools, config, folder, number
        self._advance, self._told = advance, told
        self._log = log.bind(cycle=number)

    def run(self, head: TokenRewardModel, data: TrainingData) -> PpoResult:
        """The lead's call: tell the others where to begin, then learn with them."""
        begins = latest(self._folder / "ppo") is None
        incumbent = None
        # A warm start that was cut off goes on with its own policy, whoever has come into office since.
        warmed = latest(self._folder / "sft") is not None
        if begins and not warmed and self._config.schedule.start_from == "incumbent":
            incumbent = self._tools.incumbent()
        start = {"begins": begins, "incumbent": str(incumbent) if incumbent else None}
        config = self._config.model_dump(mode="json")
        self._tools.team.tell({"do": "learn", "cycle": self._number, "config": config, **start})
        self._tools.team.agree(lambda: None)  # the others have read what they need
        result = self.learn(head, data, begins=begins, incumbent=incumbent)
        self._tools.base.adapters.settle()
        return result

    def learn(self, head: TokenRewardModel, data: TrainingData, *, begins: bool, incumbent: Path | None) -> PpoResult:
        """Warm start (if training `begins`) and PPO.

        Args:
            head: the reward model.
            data: the snapshot.
            begins: no checkpoint of PPO is there yet.
            incumbent: adapter to go on from; None for the base.
        """
        tools, config = self._tools, self._config
        tools.base.adapters.add(POLICY, config.seed)
        if begins:
            self._begin(data, incumbent)
        tools.status.phase("ppo", step=0, steps=config.ppo.iterations, message="first answers")
        rollouts = self._rollouts()
        watched: dict[str, Any] = {}
        if self._told is not None:
            watched = {"observe": self._told.iteration, "progress": self._told.progressed}
        try:
            return PpoTrainer(
                tools.base,
                rollouts,
                head,
                data.prompts.distinct,
                topic=Topic.of(tools.tokenizer, tools.base.head.shape[0], data.prompts.all),
                witness=load_witness(self._folder / "witness"),
                config=config,
                folder=self._folder / "ppo",
                should_stop=tools.should_stop,
                team=tools.team,
                **watched,
            ).run()
        finally:
            rollouts.close()

    def _begin(self, data: TrainingData, incumbent: Path | None) -> None:
        """The policy that PPO begins with: fresh or the incumbent's, warmed up on people's answers."""
        tools, config = self._tools, self._config
        if incumbent is not None:
            tools.team.agree(lambda: self._load(incumbent))
            self._advance(parent=incumbent.name)
        demonstrations = self._demonstrations(data)
        least = config.sft.min_demonstrations
        if least is None or len(demonstrations) < least:
            self._say("no_warm_start", demonstrations=len(demonstrations), needed=least)
            return
        tools.status.phase("sft", message=f"learning from {len(demonstrations)} edited answers")
        warm = WarmStarter(
            tools.base,
            demonstrations,
            config=config,
            folder=self._folder / "sft",
            progress=self._told.warmed if self._told is not None else _unheard,
            should_stop=tools.should_stop,
            team=tools.team,
        ).run()
        if tools.team.leads:
            write_json(self._folder / "sft.json", asdict(warm))
        self._advance(warm_start=warm.metrics())
        self._say("warm_start", **rounded(warm.metrics()))

    def _load(self, incumbent: Path) -> None:
        """Go on from an adapter that was published for this base; one of the same shape may be for another."""
        adapters, manifest = self._tools.base.adapters, incumbent / MANIFEST
        try:
            made_for = json.loads(manifest.read_text())["base_fingerprint"] if manifest.exists() else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BaseMismatch(
                f"{incumbent.name} is in office and its manifest can't be read ({error}): put the folder right, reject "
                'it (hustings releases), or set train.schedule.start_from = "base"'
            ) from error
        if made_for not in {None, self._tools.base.fingerprint}:
            raise BaseMismatch(
                f"{incumbent.name} is in office and was made for another base: reject it (hustings releases), or set "
                'train.schedule.start_from = "base"'
            )
        adapters.load(POLICY, incumbent)

    def _demonstrations(self, data: TrainingData) -> tuple[Demonstration, ...]:
        tools, tokenizer = self._tools, self._tools.tokenizer
        return encode(
            data.edits,
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            end=turn_end(tokenizer, tools.base.eos_ids),
            special=frozenset(tokenizer.all_special_ids),
            longest=self._config.sft.max_answer_tokens,
            longest_prompt=self._config.rollout.max_prompt_tokens,
        )

    def _rollouts(self) -> Rollouts:
        rollout, tools = self._config.rollout, self._tools
        if rollout.source == "local":
            return LocalRollouts(tools.base, batch=rollout.batch, dtype=rollout.dtype)
        if not tools.team.leads:
            return HeardRollouts()
        assert tools.rollouts is not None, "a cycle that samples from serving begins with one"
        return tools.rollouts(tools.base, f"c{self._number}")

    def _say(self, event: str, **figures: Any) -> None:
        if self._tools.team.leads:
            self._log.info(event, **figures)
