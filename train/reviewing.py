"""The trainer's call of `train.review`: which cycle's reward model, which prompts, which sampler."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

from feedback.dataset import Dataset
from train.config import TrainConfig
from train.cycle_state import CycleState, cycles_folder
from train.errors import NotEnoughVotes
from train.review import prepare, questions, write
from train.reward.mix import MixHead
from train.rollout import ServingRollouts
from train.texts import TextReader


def prepare_reviews(  # noqa: PLR0917  what a cycle left, and where answers come from
    tools: Any,
    config: TrainConfig,
    last: CycleState,
    office: str | None,
    served: ServingRollouts,
    dataset: Dataset,
) -> int:
    """Prepare a pool by the reward model of a cycle, from the prompts of its snapshot; returns how many pairs it has.

    Args:
        tools: a cycle's.
        office: adapter in office, which answers.

    Raises:
        NotEnoughVotes: no prompt may be shown, or the reward model has no ensemble.
        RolloutsUnavailable: serving gave no answers.
        DatasetError: the snapshot can't be read.
    """
    assert last.snapshot is not None
    assert last.reward_model is not None
    head = MixHead.load(cycles_folder(tools.paths) / f"{last.number:06d}" / "reward")
    if not head.members:
        raise NotEnoughVotes("the reward model has no ensemble to disagree: set train.reward.members")
    seed = int.from_bytes(hashlib.sha256(last.reward_model.encode()).digest()[:4], "big")
    reader = TextReader.of(tools.tokenizer)
    columns = ["conversation_id", "prompt", "prompt_token_ids"]
    rows = (
        reader.prompt(row)
        for batch in dataset.load_snapshot(last.snapshot).batches("prompts", columns)
        for row in batch.to_pylist()
    )
    asked = questions(rows, config.review, config.rollout.max_prompt_tokens, seed)
    if not asked:
        raise NotEnoughVotes(
            "no prompts for review pairs: import some (hustings import FILE --kind prompts), or set train.review.chats"
        )
    rollout = config.rollout
    sample = partial(
        served.answers_of, office, max_tokens=rollout.max_tokens, temperature=rollout.temperature, seed=seed
    )
    pool = prepare(
        tools.base,
        tools.model.name,
        head,
        asked,
        sample,
        office,
        partial(tools.tokenizer.decode, skip_special_tokens=True),
        config,
        tools.paths.review_pool.parent,
        seed,
    )
    write(pool, tools.paths.review_pool)
    return len(pool.items)
