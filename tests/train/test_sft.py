"""The warm start: what counts as a demonstration, what is learnt from it, when it stops, and that it resumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from feedback.paths import DataPaths
from train import checkpoint, sft
from train.base import POLICY, Base, policy_pass
from train.config import TrainConfig
from train.data import DatasetVotes
from train.demonstrations import Demonstration, Edit, encode, read_edits
from train.errors import BaseMismatch, CycleInterrupted
from train.launch import make_tools
from train.lora import digest
from train.sft import Epoch, WarmStart, WarmStarter, evaluate_demonstrations, split
from train.team import ALONE


def row(edited: str | None, chosen: str = "left", **more: Any) -> dict[str, Any]:
    return {
        "prompt_token_ids": [1, 2],
        "conversation_id": "c1",
        "edited": edited,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": "right"}],
        "weight": 1.0,
        **more,
    }


def test_edits_that_say_something_are_read_once_each() -> None:
    rows = [row("better", weight=0.5), row(None), row("  "), row("right"), row(" left "), row("better")]
    assert read_edits([*rows, row("x", prompt_token_ids=None)]) == (Edit((1, 2), "better", "c1", 0.5),)


def test_a_demonstration_ends_its_turn_and_never_forges_one() -> None:
    edits = [Edit((1,), text, "c") for text in ("abc", "a|b", "abcdef", "")]
    edits += [Edit((1,) * 9, "abc", "c"), Edit((1,), "xyz", "c", weight=0.0)]
    made = encode(
        edits,
        lambda text: [ord(letter) for letter in text],
        end=7,
        special=frozenset({ord("|")}),
        longest=5,
        longest_prompt=4,
    )
    assert made == (Demonstration((1,), (97, 98, 99, 7), "c"),)


def demonstrations(count: int = 24) -> list[Demonstration]:
    """One same answer to many prompts."""
    return [Demonstration((1, 20, 30 + at), (70, 80, 90, 2), f"c{at // 2}") for at in range(count)]


def config(**changes: Any) -> TrainConfig:
    settings = {"learning_rate": 0.01, "epochs": 3, "max_kl": 100.0, "heldout": 0.2, **changes}
    lora = {"rank": 4, "alpha": 8}
    return TrainConfig.model_validate({"sft": settings, "lora": lora, "ppo": {"micro_tokens": 64}})


def run(base: Base, folder: Path, settings: TrainConfig, turns: Sequence[Demonstration], **more: Any) -> WarmStart:
    return WarmStarter(base, turns, config=settings, folder=folder, **more).run()


def test_held_out_conversations_share_nothing_with_the_others() -> None:
    learn, held = split(demonstrations(), 0.2, seed=3)
    assert len(learn) + len(held) == 24
    assert 2 <= len(held) <= 8
    assert not {one.conversation for one in learn} & {one.conversation for one in held}
    assert split(demonstrations(8), 0.2, seed=3)[1] == []  # four conversations


def test_a_warm_start_teaches_the_answer_and_tells_how_far_it_went(base: Base, tmp_path: Path) -> None:
    seen: list[tuple[float, Epoch | None]] = []
    result = run(base, tmp_path, config(), demonstrations(), progress=lambda share, last: seen.append((share, last)))
    first, best = result.epochs[0], result.epochs[result.chosen]
    assert first.kl == pytest.approx(0.0, abs=1e-5)
    assert first.held_out is not None
    assert best.held_out is not None
    assert best.held_out < 0.5 * first.held_out
    assert best.kl > 1.0
    assert seen[-1] == (1.0, result.epochs[-1])
    figures = result.metrics()
    assert figures["sft_demonstrations"] == 24
    assert figures["sft_loss_after"] == best.held_out


def test_only_the_answers_tokens_are_learnt_and_weights_count(stirred: Base) -> None:
    turns = [
        Demonstration((1, 20, 30), (70, 80, 2), "a", weight=2.0),
        Demonstration((1, 20), (71, 2), "b", weight=1.0),
    ]
    with torch.no_grad():
        alone = [-float(policy_pass(stirred, [turn]).logprobs.sum()) for turn in turns]
        summed = float(sft._summed_loss(stirred, turns))
    assert summed == pytest.approx(2.0 * alone[0] + alone[1], rel=1e-5)
    found = evaluate_demonstrations(stirred, turns, config())
    assert found is not None
    assert found[0] == pytest.approx(summed / (2 * 3 + 2), rel=1e-5)


def test_the_kl_of_a_warm_start_is_the_sum_over_the_vocabulary_by_hand(stirred: Base) -> None:
    from transformers import AutoModelForCausalLM

    turn = Demonstration((1, 20, 30), (70, 80, 2), "a")
    whole = torch.tensor([turn.prompt_ids + turn.response_ids])
    plain = AutoModelForCausalLM.from_pretrained(stirred.path, dtype=torch.float32)
    with torch.no_grad():
        q = plain(whole).logits[0, 2:5].log_softmax(-1)
        for path, layer in stirred.adapters.layers.items():
            update = layer.scale * layer.lora_b[POLICY] @ layer.lora_a[POLICY]
            plain.get_submodule(path).weight.add_(update)
        p = plain(whole).logits[0, 2:5].log_softmax(-1)
    found = evaluate_demonstrations(stirred, [turn], config())
    assert found is not None
    assert found[1] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
    # of an answer longer than any that is sampled, as much as the governor would see
    short = config().model_copy(update={"rollout": config().rollout.model_copy(update={"max_tokens": 2})})
    found = evaluate_demonstrations(stirred, [turn], short)
    assert found is not None
    assert found[1] == pytest.approx(float((p.exp() * (p - q))[:2].sum()), rel=1e-4)


def test_what_held_out_people_would_not_have_written_is_not_kept(base: Base, tmp_path: Path) -> None:
    turns = demonstrations()
    _, held = split(turns, 0.2, config().seed)
    contrary = [
        Demonstration(one.prompt_ids, (100, 110, 120, 130), one.conversation) if one in held else one for one in turns
    ]
    before = digest(base.adapters.state(POLICY))
    result = run(base, tmp_path, config(), contrary)
    assert result.chosen == 0
    assert len(result.epochs) == 2  # it stopped after one
    assert digest(base.adapters.state(POLICY)) == before


def test_a_warm_start_ends_where_its_share_of_the_kl_is_used_up(base: Base, tmp_path: Path) -> None:
    before = digest(base.adapters.state(POLICY))
    result = run(base, tmp_path, config(max_kl=1e-3), demonstrations())
    assert (result.chosen, len(result.epochs)) == (0, 2)
    assert digest(base.adapters.state(POLICY)) == before


def test_an_interrupted_warm_start_resumes_to_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    def fresh() -> Base:
        base = Base.load(tiny_model, config().lora)
        base.adapters.add(POLICY, 0)
        return base

    whole_base, cut_base = fresh(), fresh()
    whole = run(whole_base, tmp_path / "whole", config(), demonstrations())
    asked = 0

    def stop_in_the_second_epoch() -> bool:
        nonlocal asked
        asked += 1
        return asked == 5

    with pytest.raises(CycleInterrupted):
        run(cut_base, tmp_path / "cut", config(), demonstrations(), should_stop=stop_in_the_second_epoch)
    assert checkpoint.latest(tmp_path / "cut") == 1
    resumed_base = fresh()
    assert run(resumed_base, tmp_path / "cut", config(), demonstrations()) == whole
    assert digest(resumed_base.adapters.state(POLICY)) == digest(whole_base.adapters.state(POLICY))


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_warm_start_keeps_less_too_where_that_is_asked_for_and_ends_in_the_same_bits(
    tiny_model: Path, tmp_path: Path, tuning: str
) -> None:
    found = []
    for sparing in (False, True):
        settings = config(epochs=1).model_dump() | {"tuning": tuning, "ppo": {"gradient_checkpointing": sparing}}
        base = make_tools(
            TrainConfig.model_validate(settings),
            DataPaths(tmp_path),
            tiny_model,
            ALONE,
            votes=lambda texts: DatasetVotes(tmp_path, None, texts),
            status=None,
            should_stop=lambda: False,
        ).base
        assert base.gradient_checkpointing == sparing
        base.adapters.add(POLICY, 0)
        run(base, tmp_path / str(sparing), TrainConfig.model_validate(settings), demonstrations())
        found.append(digest(base.adapters.state(POLICY)))
    assert found[0] == found[1]


def test_a_warm_start_of_other_demonstrations_is_refused(base: Base, tmp_path: Path) -> None:
    run(base, tmp_path, config(epochs=1), demonstrations())
    with pytest.raises(BaseMismatch, match="remove it"):
        run(base, tmp_path, config(epochs=1), demonstrations(22))
