"""The finals: bounds and order by hand; on the tiny model, whose fresh answers decide and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.tiny_ppo import PROMPTS, WantsTokens, config, train
from train import checkpoint, ppo
from train.base import POLICY, Base, policy_pass
from train.config import GovernorConfig, TrainConfig
from train.errors import CycleInterrupted
from train.finals import Final, Finals, Side, hold, judge_final, ranked, winner
from train.governor import Conduct, Judgement
from train.lora import digest
from train.ppo import PpoTrainer
from train.rollout import Sample
from train.sampler import LocalRollouts

BASE = Conduct(distinct_within=1.0, distinct_across=0.9, perplexity=8.0, kl=0.0, topic=0.5)
WITHIN, ASTRAY = Judgement(True), Judgement(False, ("x",))


def final(iteration: int, score: float, *breaches: str) -> Final:
    return Final(iteration, score, 1.0, 1.0, 0.5, 0.5, breaches)


def side(conduct: Conduct = BASE, *, shares: Sequence[float | None] = (), surprise: Sequence[float] = ()) -> Side:
    """Answers of one token each."""
    shares, surprise = shares or [0.5] * 4, surprise or [1.0] * 4
    return Side(conduct, tuple(surprise), (1,) * len(surprise), tuple(shares))


@pytest.mark.parametrize(
    ("shares", "within"),
    [
        # gaps -0.4, 0, 0, 0: mean -0.1, deviation 0.2, standard error 0.2 / sqrt(4) = 0.1: just within one
        ([0.1, 0.5, 0.5, 0.5], True),
        # gaps -0.4, -0.4, 0, 0: mean -0.2, deviation sqrt(0.16 / 3) = 0.231, standard error 0.115
        ([0.1, 0.1, 0.5, 0.5], False),
        # the prompt without a word that counts tells nothing: gaps -0.2, 0, 0 with mean -0.067 and error 0.067
        ([0.3, None, 0.5, 0.5], True),
        ([0.9, 0.9, 0.5, 0.5], True),
        # gaps 0.4, -0.4, -0.4, -0.4: mean -0.2, error 0.2; but below 0.8 of the base's share nobody may be
        ([0.9, 0.1, 0.1, 0.1], False),
        # of one prompt nothing is known but that bound: 0.4
        ([0.39, None, None, None], False),
        ([0.41, None, None, None], True),
    ],
)
def test_less_of_the_topic_than_the_base_takes_up_is_out(shares: list[float | None], within: bool) -> None:
    known = [share for share in shares if share is not None]
    seen = replace(BASE, topic=sum(known) / len(known) + 1e-12)
    bases = [0.5 if share is not None else None for share in shares]
    found = judge_final(side(seen, shares=shares), side(shares=bases), GovernorConfig())
    assert found.within is within
    assert all("wording taken up from the prompt" in line and "by the base 0.500" in line for line in found.breaches)


def test_a_topic_that_binds_nobody_binds_nobody_here() -> None:
    free = GovernorConfig(min_topic_ratio=0.0)
    assert judge_final(side(replace(BASE, topic=0.0), shares=[0.0] * 4), side(), free).within
    assert judge_final(side(shares=[None] * 4), side(shares=[None] * 4), GovernorConfig()).within


def test_perplexity_may_be_a_standard_error_worse_than_it_looks() -> None:
    # nats a token 2 and 1; residuals -1, 1 against none: deviation sqrt(2), standard error 1
    seen = side(replace(BASE, perplexity=8 * math.e), shares=[0.5] * 2, surprise=[1.0, 3.0])
    base = side(shares=[0.5] * 2, surprise=[1.0, 1.0])
    worst = math.e**2
    assert judge_final(seen, base, GovernorConfig(max_perplexity_ratio=worst + 1e-6)).within
    (line,) = judge_final(seen, base, GovernorConfig(max_perplexity_ratio=worst - 1e-6)).breaches
    assert line.startswith("perplexity under the base 2.72 times its own, or 7.39 by one standard error")
    # both are surprised alike by the same answers: the ratio is known
    alike = side(shares=[0.5] * 2, surprise=[0.5, 1.5])
    assert judge_final(alike, alike, GovernorConfig(max_perplexity_ratio=1.0 + 1e-9)).within


def test_a_long_answer_counts_for_its_tokens() -> None:
    # 5 nats in 4 tokens: 1.25 a token. Residuals (1 - 1.25) / 2 and (4 - 3.75) / 2, -0.125 and 0.125, against none:
    # standard error 0.125
    seen = Side(replace(BASE, perplexity=8 * math.exp(0.25)), (1.0, 4.0), (1, 3), (0.5, 0.5))
    base = Side(BASE, (1.0, 3.0), (1, 3), (0.5, 0.5))
    worst = math.exp(0.25 + 0.125)
    assert judge_final(seen, base, GovernorConfig(max_perplexity_ratio=worst + 1e-6)).within
    assert not judge_final(seen, base, GovernorConfig(max_perplexity_ratio=worst - 1e-6)).within


def test_the_other_bounds_are_the_governors() -> None:
    seen = Conduct(distinct_within=0.7, distinct_across=0.9, perplexity=12.1, kl=9.1, topic=0.3)
    breaches = judge_final(side(seen, shares=[0.1, 0.1, 0.5, 0.5]), side(), GovernorConfig()).breaches
    assert [line.split()[0] for line in breaches] == ["distinct", "KL", "perplexity", "wording"]


def test_a_handful_of_answers_is_refused_as_a_setting() -> None:
    for allowed in (0, 16, 128):
        assert GovernorConfig(final_answers=allowed).final_answers == allowed
    with pytest.raises(ValueError, match="at least 16, better 128; or 0"):
        GovernorConfig(final_answers=15)


def test_who_enters_is_within_all_bounds_and_above_the_start() -> None:
    judged = [WITHIN, WITHIN, ASTRAY, WITHIN, WITHIN]
    assert ranked([0.2, 0.9, 5.0, 0.1, 1.4], judged) == [4, 1]
    assert ranked([2.0, 0.9, 5.0, 0.1, 1.4], judged) == []
    assert ranked([0.2, 0.9, 5.0, 0.9, 0.9], judged) == [1, 3, 4]  # of equals the earliest first
    assert ranked([0.2, 0.9], [ASTRAY, WITHIN]) == [1]


def asked(worth: Sequence[float], order: Sequence[int], finalists: int, broken: set[int]) -> list[int]:
    held = hold(worth, order, lambda at: final(at, 1.0, *(["x"] if at in broken else [])), finalists)
    return [one.iteration for one in held]


def test_the_best_few_are_asked_and_more_while_none_may_be_published() -> None:
    worth = [0.0, 1.0, 0.9, 0.5, 0.45]
    order = [1, 2, 3, 4]
    assert asked(worth, order, 2, set()) == [1, 2]
    assert asked(worth, order, 1, set()) == [1]
    assert asked(worth, order, 9, set()) == [1, 2, 3]  # 4 is more than half a deviation behind, 3 just that
    assert asked(worth, order, 2, {1}) == [1, 2]
    assert asked(worth, order, 2, {1, 2, 3}) == [1, 2, 3, 4]
    assert asked(worth, order, 1, {1, 2, 3, 4}) == [1, 2, 3, 4]
    assert asked(worth, [], 2, set()) == []


def test_the_best_score_on_fresh_answers_wins_unless_it_broke_a_bound() -> None:
    assert winner([final(4, 0.7), final(2, 0.9)]) == 2
    assert winner([final(4, 0.7), final(2, 0.9, "KL")]) == 4
    assert winner([final(4, 0.7), final(2, 0.7)]) == 2
    assert winner([final(4, 0.7, "KL")]) == winner([]) == 0


def governed(**governor: object) -> TrainConfig:
    """Bounds that nothing breaks, and finals of two policies by 48 answers."""
    loose = {"max_kl": 1e9, "min_distinct_ratio": 0, "max_perplexity_ratio": 1e9, "fluency_rate": 0, "topic_price": 0}
    settings = config(iterations=3, kl_coefficient=0.01)
    bounds = GovernorConfig.model_validate({**loose, "final_answers": 48, "finalists": 2, **governor})
    return settings.model_copy(update={"governor": bounds})


def stir(base: Base) -> None:
    """A policy that differs from the base."""
    generator = torch.Generator().manual_seed(1)
    for weight in base.adapters.parameters(POLICY):
        torch.nn.init.normal_(weight, std=0.2, generator=generator)


class Watched(LocalRollouts):
    """Keeps what was asked and what came back."""

    def __init__(self, base: Base, adapter: str | None = POLICY) -> None:
        super().__init__(base, adapter=adapter)
        self.asked: list[tuple[list[tuple[int, ...]], int, dict[str, Any]]] = []
        self.drawn: list[list[Sample]] = []

    def generate(self, prompts: Sequence[tuple[int, ...]], n: int, **more: Any) -> list[Sample]:  # type: ignore[override]
        self.asked.append((list(prompts), n, more))
        self.drawn.append(super().generate(prompts, n, **more))
        return self.drawn[-1]


def test_a_policy_that_is_the_base_equals_it(base: Base) -> None:
    untrained = Finals(base, LocalRollouts(base), WantsTokens(), PROMPTS, config=governed()).of(0)
    assert untrained.kl == pytest.approx(0.0, abs=1e-4)
    assert untrained.perplexity == pytest.approx(1.0, abs=1e-5)
    assert untrained.breaches == ()


def test_the_figures_are_those_of_the_answers_that_were_drawn(base: Base) -> None:
    stir(base)
    settings = governed()
    settings = settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"temperature": 0.7})})
    watched = Watched(base)
    found = Finals(base, watched, WantsTokens(), PROMPTS, config=settings).of(3)
    ((prompts, n, more),), (samples,) = watched.asked, watched.drawn
    assert (len(prompts), n, more["temperature"], more["max_tokens"]) == (48, 1, 0.7, 4)
    # every round of 4 asks each of the 4 prompts once
    assert all(sorted(prompts[at : at + 4]) == sorted(PROMPTS) for at in range(0, 48, 4))
    assert found.iteration == 3
    wanted = [sum(token % 8 == 5 for token in sample.response_ids) for sample in samples]
    assert found.score == pytest.approx(sum(wanted) / 48)
    bare = LocalRollouts(base, adapter=None).generate(prompts, 1, **more)

    def surprise(drawn: list[Sample]) -> list[list[float]]:
        """Log-probs under the base by a pass without any adapter."""
        with torch.no_grad():
            seen = policy_pass(base, drawn, adapter=None, temperature=0.7)
        return [row[mask].tolist() for row, mask in zip(seen.logprobs, seen.mask, strict=True)]

    def nats(rows: list[list[float]]) -> float:
        return -sum(map(sum, rows)) / sum(map(len, rows))

    reference = surprise(samples)
    assert found.perplexity == pytest.approx(math.exp(nats(reference) - nats(surprise(bare))), rel=1e-3)
    assert abs(found.perplexity - 1) > 0.01
    gone = [sum(sample.logprobs) - sum(row) for sample, row in zip(samples, reference, strict=True)]
    assert found.kl == pytest.approx(sum(gone) / 48, rel=1e-3)
    assert found.kl > 0.01


@pytest.mark.parametrize(("bound", "word"), [({"max_kl": 1e-6}, "KL"), ({"max_perplexity_ratio": 1e-6}, "perplexity")])
def test_a_bound_that_is_broken_on_fresh_answers_is_told(base: Base, bound: dict[str, float], word: str) -> None:
    stir(base)
    (line,) = Finals(base, LocalRollouts(base), WantsTokens(), PROMPTS, config=governed(**bound)).of(1).breaches
    assert line.startswith(word)


def test_the_topic_is_the_mean_of_prompts_that_have_one(base: Base) -> None:
    told = Told([[0.5] * 48, [0.4, 0.6, None] * 16])
    found = Finals(base, LocalRollouts(base), WantsTokens(), PROMPTS, topic=told, config=governed()).of(1)  # type: ignore[arg-type]
    assert (found.base_topic, found.topic) == (0.5, pytest.approx(0.5))
    told = Told([[0.5] * 48, [0.3] * 48])
    found = Finals(base, LocalRollouts(base), WantsTokens(), PROMPTS, topic=told, config=governed()).of(1)  # type: ignore[arg-type]
    assert (found.base_topic, found.topic) == pytest.approx((0.5, 0.3))


def test_nothing_that_the_run_was_judged_by_is_asked_again(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what a step that was taken back at the very end is judged by."""
    monkeypatch.setattr(ppo, "ranked", lambda *_: [2])
    many = [(1, 20 + at % 40, 60 + at // 40) for at in range(400)]
    settings = governed(max_kl=0.02)
    settings = settings.model_copy(update={"ppo": settings.ppo.model_copy(update={"iterations": 1})})
    watched = Watched(base)
    result = PpoTrainer(base, watched, WantsTokens(), many, config=settings, folder=tmp_path).run()
    assert [judged.within for judged in result.judgements][:2] == [True, False]
    assert len(result.metrics) == 3
    before, asked = watched.asked[:3], watched.asked[3:]
    assert asked
    seen = {prompt for prompts, _, _ in before for prompt in prompts}
    assert len(seen) == 3 * 16
    for prompts, _, more in asked:
        assert not seen & set(prompts)
        assert more["seed"] not in {earlier["seed"] for _, _, earlier in before}


@dataclass
class Told:
    """Says what share of the wording each policy keeps, and pays nothing for it; of the finals', the base's first."""

    shares_told: list[Any]
    asked: list[int] = field(default_factory=list)

    def kept(self, _turns: object) -> float:
        return 0.5

    def shares(self, turns: Sequence[object]) -> list[float | None]:
        self.asked.append(len(turns))
        told = self.shares_told.pop(0)
        return told if isinstance(told, list) else [told] * len(turns)

    def rewards(self, _turns: object, mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape)


def test_a_policy_that_strays_on_fresh_answers_gives_way_to_the_next(base: Base, tmp_path: Path) -> None:
    whole = train(base, tmp_path / "a", governed(), topic=Told([0.5, 0.5, 0.5]))
    order = ranked([metrics.score for metrics in whole.metrics], whole.judgements)
    assert len(order) >= 2
    assert [one.iteration for one in whole.finals] == order[:2]
    best = max(whole.finals, key=lambda one: one.score).iteration
    assert whole.chosen == best
    base.adapters.add(POLICY, 0)
    # the base takes up half; the first finalist less, the second as much
    told = Told([0.5, 0.4, 0.5])
    result = train(base, tmp_path / "b", governed(), topic=told)
    assert told.asked == [48, 48, 48]
    assert [bool(one.breaches) for one in result.finals] == [True, False]
    assert result.chosen == order[1]
    tensors, _ = checkpoint.load(tmp_path / "b", result.chosen)
    kept = {k.removeprefix(f"{POLICY}/"): v for k, v in tensors.items() if k.startswith(f"{POLICY}/")}
    assert digest(kept) == digest(base.adapters.state(POLICY))
    # none may be published: the start it is
    base.adapters.add(POLICY, 0)
    result = train(base, tmp_path / "c", governed(), topic=Told([0.5, *[0.4] * len(order)]))
    assert (result.chosen, len(result.finals)) == (0, len(order))
    tensors, _ = checkpoint.load(tmp_path / "c", 0)
    kept = {k.removeprefix(f"{POLICY}/"): v for k, v in tensors.items() if k.startswith(f"{POLICY}/")}
    assert digest(kept) == digest(base.adapters.state(POLICY))


@pytest.mark.parametrize(("topics", "asked"), [([0.5, 0.5], 1), ([0.5, 0.4, 0.5], 2)])
def test_by_default_one_policy_is_asked_and_the_next_only_where_it_breaks_a_bound(
    base: Base, tmp_path: Path, topics: list[Any], asked: int
) -> None:
    assert (GovernorConfig().final_answers, GovernorConfig().finalists) == (128, 1)  # decision record 0104
    told: list[Any] = []
    settings = governed(finalists=1)
    result = train(base, tmp_path, settings, topic=Told(topics[:]), progress=lambda *step: told.append(step))
    order = ranked([metrics.score for metrics in result.metrics], result.judgements)
    assert len(order) >= 2
    assert [one.iteration for one in result.finals] == order[:asked]
    assert result.chosen == order[asked - 1]
    assert [step[1:] for step in told if step[0] == "finals"] == [(0, 1), (1, 2)][:asked]


def test_a_run_that_ended_holds_its_finals_again_alike(base: Base, tmp_path: Path) -> None:
    first = train(base, tmp_path, governed())
    chosen = digest(base.adapters.state(POLICY))
    again = train(base, tmp_path, governed())
    assert [replace(one, seconds=0.0) for one in again.finals] == [replace(one, seconds=0.0) for one in first.finals]
    assert first.finals
    assert again.chosen == first.chosen
    assert digest(base.adapters.state(POLICY)) == chosen


@pytest.mark.parametrize("off", [{"final_answers": 0}, {"enabled": False}])
def test_without_finals_the_iterations_own_answers_decide(base: Base, tmp_path: Path, off: dict[str, object]) -> None:
    result = train(base, tmp_path, governed(**off))
    assert result.finals == ()
    assert result.chosen == max(range(4), key=lambda at: result.metrics[at].score)


@dataclass(frozen=True)
class Other(WantsTokens):
    """A witness of another opinion."""

    model_id: str = "other"
    price: float = -2.0


@pytest.mark.parametrize("harmed", [False, True])
def test_past_golds_peak_the_witness_decides_here_too(
    base: Base, tmp_path: Path, harmed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if harmed:
        monkeypatch.setattr(ppo, "passed", lambda points: 1.0 if len(points) == 4 else None)
        # by its own answers the witness would keep the start: who enters is not what is asked here
        monkeypatch.setattr(ppo, "ranked", lambda *_: [2, 1])
    result = train(base, tmp_path, governed(), witness=Other())
    assert result.judgements[-1].final is harmed
    assert result.finals
    for one in result.finals:
        assert one.score * (-2 if harmed else 1) > 0


class ToldFinals:
    """Gives each policy a score that is known."""

    scores: dict[int, float]

    def __init__(self, *_: object, **__: object) -> None:
        """Needs nothing."""

    def of(self, iteration: int) -> Final:
        return final(iteration, self.scores[iteration])


@pytest.mark.parametrize(("start", "chosen"), [(0.9, 0), (0.1, 2)])
def test_a_start_that_is_not_the_base_must_be_beaten_too(
    base: Base, tmp_path: Path, start: float, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "Finals", ToldFinals)
    monkeypatch.setattr(ppo, "ranked", lambda *_: [1, 2])
    monkeypatch.setattr(ToldFinals, "scores", {0: start, 1: 0.5, 2: 0.6}, raising=False)
    result = train(base, tmp_path / "base", governed())
    assert [one.iteration for one in result.finals] == [1, 2]
    assert result.chosen == 2
    stir(base)
    result = train(base, tmp_path / "incumbent", governed())
    assert [one.iteration for one in result.finals] == [1, 2, 0]
    assert result.chosen == chosen
    tensors, _ = checkpoint.load(tmp_path / "incumbent", chosen)
    kept = {k.removeprefix(f"{POLICY}/"): v for k, v in tensors.items() if k.startswith(f"{POLICY}/")}
    assert digest(kept) == digest(base.adapters.state(POLICY))


def test_a_run_stopped_in_its_finals_goes_on_and_ends_alike(base: Base, tmp_path: Path) -> None:
    whole = train(base, tmp_path / "whole", governed())
    expected = digest(base.adapters.state(POLICY))
    base.adapters.add(POLICY, 0)
    reached: list[str] = []
    with pytest.raises(CycleInterrupted):
        train(
            base,
            tmp_path / "cut",
            governed(),
            progress=lambda phase, _done, _total: reached.append(phase),
            should_stop=lambda: "finals" in reached,  # before the second policy is asked
        )
    assert "finals" in reached
    again = train(base, tmp_path / "cut", governed())
    assert len(whole.finals) == 2
    assert [replace(one, seconds=0.0) for one in again.finals] == [replace(one, seconds=0.0) for one in whole.finals]
    assert digest(base.adapters.state(POLICY)) == expected
