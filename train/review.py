"""Pairs prepared for people to judge: answers of the office-holder, and of each prompt's the two worth asking about.

Done between cycles. The file is the interface: serving offers what the newest pool holds (`feedback.contracts`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from feedback.comparisons import POSITIONS
from feedback.contracts import CompletionRecord, Message, ReviewItem, ReviewPool, SamplingRecord
from feedback.dataset import Dataset
from train.base import Base
from train.config import TrainConfig
from train.cycle_state import CycleState, cycles_folder
from train.errors import NotEnoughVotes
from train.files import write_text
from train.reward.acquisition import chances, information, leads_of
from train.reward.config import ReviewConfig
from train.reward.extract import FeatureReader
from train.reward.mix import MixHead
from train.reward.probe import Array
from train.reward.votes import Answer
from train.rollout import Sample, ServingRollouts

IMPORTED = "import_"
"""What the conversations of imported prompts begin with."""
Question = tuple[tuple[Message, ...], tuple[int, ...]]
"""Messages and token ids."""
Sampler = Callable[[Sequence[tuple[int, ...]], int], list[Sample]]
"""Answers to prompts, so many each, the first prompt's first."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Two answers of one prompt (rows of its answers), drawn with this probability, and what a vote would tell."""

    first: int
    second: int
    propensity: float
    information: float


def questions(rows: Iterable[Mapping[str, Any]], config: ReviewConfig, longest: int, seed: int) -> list[Question]:
    """`config.prompts` different questions, drawn from a snapshot's prompts (with token ids)."""
    found: dict[tuple[int, ...], tuple[Message, ...]] = {}
    for row in rows:
        ids = tuple(row["prompt_token_ids"] or ())
        allowed = config.chats or str(row["conversation_id"]).startswith(IMPORTED)
        if allowed and 0 < len(ids) <= longest:
            found.setdefault(ids, tuple(Message(**turn) for turn in row["prompt"]))
    known = [(messages, ids) for ids, messages in found.items()]
    order = np.random.default_rng(seed).permutation(len(known))[: config.prompts]
    return [known[at] for at in order]


def draw(leads: Array, pairs: Sequence[tuple[int, int]], config: ReviewConfig, rng: np.random.Generator) -> Drawn:
    """One pair of a prompt's answers, likelier the more a vote on it would tell.

    Args:
        leads: of the first over the second by each head, logits, (members, pairs).
        pairs: rows of the prompt's answers.
    """
    worth = information(leads)
    chance = chances(worth, floor=config.floor, sharpness=config.sharpness)
    at = int(rng.choice(len(pairs), p=chance))
    return Drawn(*pairs[at], propensity=float(chance[at]), information=max(0.0, float(worth[at])))


def choose(
    head: MixHead,
    pooled: Mapping[str, Array],
    groups: Sequence[Sequence[int]],
    config: ReviewConfig,
    rng: np.random.Generator,
) -> list[Drawn]:
    """A pair of each group of answers (rows of `pooled`), the most telling first, `config.pairs` at most.

    Raises:
        ValueError: the head has no ensemble.
    """
    scores, members = head.scores(pooled), head.member_scores(pooled)
    drawn = []
    for group in groups:
        pairs = list(combinations(group, 2))
        if pairs:
            first, second = (np.array(side) for side in zip(*pairs, strict=True))
            drawn.append(draw(leads_of(scores, members, head.scale, first, second), pairs, config, rng))
    return sorted(drawn, key=lambda one: -one.information)[: config.pairs]


def prepare(  # noqa: PLR0917  what is asked, of whom, judged by what
    base: Base,
    base_model: str,
    head: MixHead,
    asked: Sequence[Question],
    sample: Sampler,
    adapter: str | None,
    decode: Callable[[Sequence[int]], str],
    config: TrainConfig,
    folder: Path,
    seed: int,
) -> ReviewPool:
    """Sample answers, judge them and choose.

    Args:
        folder: keeps the features of what was read, apart from those of voted answers.
    """
    samples = sample([ids for _, ids in asked], config.review.answers)
    answers = [Answer(one.prompt_ids, one.response_ids) for one in samples]
    reader = FeatureReader(base, head.layers, head.vocabulary, folder, config.reward.batch_tokens)
    pooled = reader.read(answers)
    reader.path.unlink(missing_ok=True)  # each answer is judged once
    texts = [decode(one.response_ids) for one in samples]
    size = config.review.answers
    groups = [_different(texts, range(at * size, (at + 1) * size)) for at in range(len(asked))]
    chosen = choose(head, pooled, groups, config.review, np.random.default_rng(seed))
    return ReviewPool(
        reward_model=head.model_id,
        base_model=base_model,
        base_fingerprint=base.fingerprint,
        adapter=adapter,
        items=tuple(_item(one, asked[one.first // size], samples, texts, adapter, config) for one in chosen),
    )


def write(pool: ReviewPool, file: Path) -> None:
    """Put the pool in place of the one before; a reader sees one or the other, whole."""
    write_text(file, pool.model_dump_json())


def _different(texts: Sequence[str], rows: range) -> list[int]:
    """The first of each text; an empty answer says nothing."""
    return sorted({texts[row]: row for row in reversed(rows) if texts[row].strip()}.values())


def _item(  # noqa: PLR0917  all that an item holds
    one: Drawn,
    question: Question,
    samples: Sequence[Sample],
    texts: Sequence[str],
    adapter: str | None,
    config: TrainConfig,
) -> ReviewItem:
    sampling = SamplingRecord(temperature=config.rollout.temperature, top_p=1.0, max_tokens=config.rollout.max_tokens)
    a, b = (
        CompletionRecord(
            position=position,
            text=texts[row],
            finish_reason=samples[row].finish_reason,
            adapter=adapter,
            sampling=sampling,
            token_ids=samples[row].response_ids,
            logprobs=samples[row].logprobs,
        )
        for position, row in zip(POSITIONS, (one.first, one.second), strict=False)
    )
    messages, ids = question
    return ReviewItem(
        item_id=f"review_{secrets.token_hex(8)}",
        messages=messages,
        prompt_token_ids=ids,
        completions=(a, b),
        propensity=one.propensity,
        information=one.information,
    )


def prepare_pool(  # noqa: PLR0917  what a cycle left, and where answers come from
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
    head = MixHead.load(cycles_folder(tools.paths) / f"{last.number:06d}" / "reward").fitted_on(tools.base.fingerprint)
    if not head.members:
        raise NotEnoughVotes("the reward model has no ensemble to disagree: set train.reward.members")
    seed = int.from_bytes(hashlib.sha256(last.reward_model.encode()).digest()[:4], "big")
    columns = ["conversation_id", "prompt", "prompt_token_ids"]
    rows = (
        tools.texts.prompt(row)
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
