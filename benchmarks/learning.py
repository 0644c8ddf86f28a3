"""The figure above all others: the true win rate of the policy after one cycle, from about a hundred noisy votes.

    python -m benchmarks.learning sample --model FOLDER --cache FOLDER
    python -m benchmarks.learning run --model FOLDER --cache FOLDER [--utility NAME …] [--set train.ppo.lam=0.9 …]

`sample` draws the base's own answers once: two to each training prompt, one to each held-out prompt (48 tokens,
temperature 1). `run` lets simulated voters with a hidden utility vote on those pairs (15% of decisive votes flipped),
fits the reward model, runs PPO and publishes nothing, with the very functions of `train.cycle`; then it asks the
utility, noise-free, whether the policy's answers beat the base's on topics that neither votes nor PPO ever saw. The
clock of a cycle starts at the last vote and ends with the chosen policy.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import given
from benchmarks.peer.theirs import usage
from benchmarks.reward_curve import TASTES
from train.files import write_text

Pairs = Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]]
"""Two answers to the training prompt of a number."""
FLIPPED = 0.15
ANSWER_TOKENS = 48
TRAIN_PROMPTS, HELD_OUT_PROMPTS = 360, 200
CHUNK = 60


@dataclass(frozen=True)
class Result:
    """One cycle's outcome.

    Attributes:
        cycle: how many, this one included, have learnt from the votes so far.
        win_rate: against the base's answers to the same held-out prompts, ties half; with its 95% interval.
        utility: mean of the hidden utility, base and policy.
        kl: nats an answer, on held-out prompts.
        distinct_within: share of distinct bigrams within an answer, policy over base; `distinct_across` in all of them.
        perplexity: of the answers under the base, policy over base.
        topic: share of answers' words that take up the question's, base and policy.
        seconds: by phase; `cycle` is the whole from the last vote.
    """

    utility_name: str
    cycle: int
    votes: int
    decisive: int
    reward_accuracy: float
    win_rate: float
    interval: tuple[float, float]
    utility: tuple[float, float]
    kl: float
    length: tuple[float, float]
    distinct_within: float
    distinct_across: float
    perplexity: float
    topic: tuple[float, float]
    chosen: int
    seconds: dict[str, float]
    peak_gib: float
    samples: list[tuple[str, str, str]]


class Bench:
    """The base, its cached answers and what was asked."""

    def __init__(self, model: Path, cache: Path) -> None:
        from transformers import AutoTokenizer

        from feedback.simulator.topics import prompts
        from train.base import Base

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model, self.cache = model, cache
        self.base = Base.load(model)
        given.same_base(cache, self.base.fingerprint)
        self.train = prompts("train", TRAIN_PROMPTS, seed=1)
        self.held_out = prompts("held_out", HELD_OUT_PROMPTS, seed=2)

    def ids(self, prompt: Any) -> tuple[int, ...]:
        """The prompt's tokens after the chat template."""
        messages = [message.model_dump() for message in prompt.messages]
        return tuple(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])

    def text(self, response: Sequence[int]) -> str:
        """An answer as a person reads it."""
        return str(self.tokenizer.decode(response, skip_special_tokens=True))

    def answers(self, name: str, prompts: Sequence[Any], n: int, seed: int) -> list[tuple[int, ...]]:
        """The base's answers, from the cache or sampled now."""
        from train.sampler import LocalRollouts

        found: list[tuple[int, ...]] = []
        for start in range(0, len(prompts), CHUNK):
            path = self.cache / f"{name}-{start:04d}.json"
            if not path.exists():
                rollouts = LocalRollouts(self.base, adapter=None, batch=64)
                samples = rollouts.generate(
                    [self.ids(p) for p in prompts[start : start + CHUNK]],
                    n,
                    max_tokens=ANSWER_TOKENS,
                    temperature=1.0,
                    seed=seed + start,
                )
                rollouts.close()
                write_text(path, json.dumps([list(sample.response_ids) for sample in samples]))
                print(f"{name}: {min(start + CHUNK, len(prompts))} of {len(prompts)} prompts", flush=True)
            found += [tuple(row) for row in json.loads(path.read_text())]
        return found


@dataclass
class Ballots:
    """What voters have said so far: (preferred answer, the other one, whether it was a tie) of each pair."""

    rows: list[tuple[Any, Any, bool]] = field(default_factory=list)

    def votes(self) -> Any:
        """As the reward model's fit takes them; every pair is a conversation of its own, twenty voters take turns."""
        from train.reward.votes import Votes

        index: dict[Any, int] = {}
        n = len(self.rows)
        first, second = (np.array([index.setdefault(row[at], len(index)) for row in self.rows]) for at in (0, 1))
        return Votes(
            answers=tuple(index),
            first=first,
            second=second,
            tied=np.array([row[2] for row in self.rows], dtype=bool),
            both_bad=np.zeros(n, dtype=bool),
            weight=np.ones(n),
            margin=np.zeros(n),
            conversation=np.arange(n),
            voter=np.arange(n) % 20,
            reasons=tuple(() for _ in range(n)),
        )


def cast(bench: Bench, ballots: Ballots, hidden: Any, pairs: Pairs, decisive: int, seed: int) -> None:
    """Noisy votes on a policy's pairs until so many more are decisive; ties are cast beside them."""
    from train.reward.votes import Answer

    rng, found = random.Random(seed), 0
    for at in rng.sample(range(len(bench.train)), len(bench.train)):
        prompt = bench.train[at]
        a, b = (Answer(bench.ids(prompt), response) for response in pairs(at))
        if a == b:
            continue
        margin = hidden.margin(prompt.messages, bench.text(a.response_ids), bench.text(b.response_ids))
        tied = abs(margin) <= hidden.tie_margin
        if (margin < 0) != (not tied and rng.random() < FLIPPED):
            a, b = b, a
        ballots.rows.append((a, b, tied))
        found += not tied
        if found == decisive:
            break


def pairs_of_base(bench: Bench) -> Pairs:
    """The base's cached answers."""
    answers = bench.answers("train", bench.train, 2, seed=11)
    return lambda at: (answers[2 * at], answers[2 * at + 1])


def pairs_of_policy(bench: Bench, seed: int) -> Pairs:
    """Two answers of the policy in place, drawn a batch of prompts at a time, as the voters come to them."""
    from train.sampler import LocalRollouts

    rollouts = LocalRollouts(bench.base, batch=64)
    drawn: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    order = random.Random(seed).sample(range(len(bench.train)), len(bench.train))  # the voters' own

    def pair(at: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if at not in drawn:
            begin = order.index(at)
            batch = [i for i in order[begin : begin + 32] if i not in drawn]
            samples = rollouts.generate(
                [bench.ids(bench.train[i]) for i in batch],
                2,
                max_tokens=ANSWER_TOKENS,
                temperature=1.0,
                seed=seed + begin,
            )
            for place, i in enumerate(batch):
                drawn[i] = samples[2 * place].response_ids, samples[2 * place + 1].response_ids
        return drawn[at]

    return pair


def campaign(
    bench: Bench, name: str, decisive: int, cycles: int, settings: Mapping[str, Any], seed: int
) -> Iterator[Result]:
    """Cycle after cycle: votes on the pairs of the policy in office, then a new policy from all votes so far."""
    from feedback.simulator.utilities import utility

    ballots, hidden = Ballots(), utility(name)
    with tempfile.TemporaryDirectory() as folder:
        for cycle in range(cycles):
            pairs = pairs_of_policy(bench, seed + 1000 * cycle) if cycle else pairs_of_base(bench)
            cast(bench, ballots, hidden, pairs, decisive, seed + 1000 * cycle)
            yield one(bench, name, cycle + 1, ballots.votes(), settings, Path(folder))


def tried(results: Iterator[Result]) -> Iterator[Result | str]:
    """The same; where votes make no reward model that may be used, why not: that is an outcome too."""
    from train.errors import NotEnoughVotes, RewardRefused

    try:
        yield from results
    except (RewardRefused, NotEnoughVotes) as error:
        yield str(error)


def one(bench: Bench, name: str, cycle: int, votes: Any, settings: Mapping[str, Any], work: Path) -> Result:
    """Reward model, PPO and the true verdict; the chosen policy stays in place."""
    from feedback.simulator.utilities import true_win_rate, utility
    from train.base import POLICY
    from train.config import TrainConfig
    from train.ppo import PpoTrainer
    from train.reward.extract import FeatureReader, layers_of, vocabulary_for
    from train.reward.refresh import refresh
    from train.sampler import LocalRollouts
    from train.topic import Topic

    config = TrainConfig.model_validate(settings)
    hidden = utility(name)
    answered = bench.answers("held_out", bench.held_out, 1, seed=12)
    print(f"  cycle {cycle}: {len(votes)} votes, {votes.decisive} decisive", flush=True)
    began = time.perf_counter()
    layers = layers_of(bench.base.depth, config.reward.depths)
    prompt_ids = [bench.ids(prompt) for prompt in bench.train]
    vocabulary = vocabulary_for(work, bench.tokenizer, bench.base.head.shape[0], prompt_ids)
    reader = FeatureReader(bench.base, layers, vocabulary, work, config.reward.batch_tokens)
    pooled = reader.read(votes.answers)
    read = time.perf_counter()
    made = refresh(
        pooled,
        votes,
        config.reward,
        layers=layers,
        vocabulary=vocabulary,
        base_fingerprint=bench.base.fingerprint,
        spread=reader.token_covariance(),
    )
    fitted = time.perf_counter()
    print(f"  reward model: {made.judgement.metrics()}", flush=True)
    bench.base.adapters.add(POLICY, config.seed)
    rollouts = LocalRollouts(bench.base, batch=config.rollout.batch, dtype=config.rollout.dtype)
    result = PpoTrainer(
        bench.base,
        rollouts,
        made.head,
        prompt_ids,
        topic=Topic.of(bench.tokenizer, bench.base.head.shape[0], prompt_ids),
        config=config,
        folder=work / f"ppo-{cycle}",
        observe=_say,
    ).run()
    rollouts.close()
    ended = time.perf_counter()
    for final in result.finals:
        print(f"  final {final}", flush=True)
    seconds = {"features": read - began, "reward": fitted - read, "ppo": ended - fitted, "cycle": ended - began}
    for phase in ("sample", "score", "old", "update"):
        seconds[phase] = sum(metrics.seconds.get(phase, 0.0) for metrics in result.metrics)
    after = LocalRollouts(bench.base, batch=64).generate(
        [bench.ids(p) for p in bench.held_out], 1, max_tokens=ANSWER_TOKENS, temperature=1.0, seed=77
    )
    new, old = [bench.text(s.response_ids) for s in after], [bench.text(row) for row in answered]
    asked = [prompt.messages for prompt in bench.held_out]
    verdict = true_win_rate(hidden, asked, new, old)
    conduct, baseline = _conduct(bench, [s.response_ids for s in after]), _conduct(bench, answered)
    topic = utility("on_topic")
    return Result(
        utility_name=name,
        cycle=cycle,
        votes=len(votes),
        decisive=votes.decisive,
        reward_accuracy=made.judgement.accuracy,
        win_rate=verdict.mean,
        interval=verdict.ci,
        utility=_means(hidden, asked, old, new),
        kl=_kl(after, conduct[1]),
        length=(float(np.mean([len(row) for row in answered])), float(np.mean([len(s.response_ids) for s in after]))),
        distinct_within=conduct[0].distinct_within / baseline[0].distinct_within,
        distinct_across=conduct[0].distinct_across / baseline[0].distinct_across,
        perplexity=conduct[0].perplexity / baseline[0].perplexity,
        topic=_means(topic, asked, old, new),
        chosen=result.chosen,
        seconds={key: round(value, 1) for key, value in seconds.items()},
        peak_gib=usage.peak_gib(),
        samples=[(p.text, o, n) for p, o, n in zip(bench.held_out[:6], old, new, strict=False)],
    )


def _means(hidden: Any, asked: Any, old: Sequence[str], new: Sequence[str]) -> tuple[float, float]:
    means = [
        sum(hidden.score(messages, answer) for messages, answer in zip(asked, answers, strict=True)) / len(asked)
        for answers in (old, new)
    ]
    return means[0], means[1]


def _conduct(bench: Bench, responses: Sequence[Sequence[int]]) -> tuple[Any, list[list[float]]]:
    from train.base import reference_pass
    from train.governor import conduct
    from train.rollout import Sample

    turns = [Sample(bench.ids(p), tuple(r), (), "length") for p, r in zip(bench.held_out, responses, strict=True)]
    rows: list[list[float]] = [[] for _ in turns]
    for chunk in reference_pass(bench.base, turns):
        for at, row in zip(chunk.rows, chunk.logprobs, strict=True):
            rows[at] = row[: len(turns[at].response_ids)].tolist()
    return conduct(responses, rows, 0.0), rows


def _kl(samples: Sequence[Any], reference: Sequence[Sequence[float]]) -> float:
    return float(np.mean([sum(s.logprobs) - sum(r) for s, r in zip(samples, reference, strict=True)]))


def _say(metrics: Any, judgement: Any) -> None:
    print(
        f"  it {metrics.iteration} score {metrics.score:+.2f} kl {metrics.kl:.1f} len {metrics.length:.0f} "
        f"within {metrics.distinct_within:.2f} across {metrics.distinct_across:.2f} ppl {metrics.perplexity:.1f} "
        f"topic {metrics.topic:.2f} at {metrics.topic_price:.2f} "
        f"fluency {metrics.fluency_price:.2f} "
        f"ev {metrics.explained_variance:+.2f} ent {metrics.entropy:.2f} clip {metrics.clip_fraction:.2f} "
        f"akl {metrics.approx_kl:.3f} grad {metrics.grad_norm:.2f} beta {metrics.kl_coefficient:.3f} "
        f"{'; '.join(judgement.breaches)} { {k: round(v, 1) for k, v in metrics.seconds.items()} }",
        flush=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sample", "run"))
    parser.add_argument("--model", type=given.model_folder, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument(
        "--utility", action="append", type=given.taste, help="may be repeated (default the six published)"
    )
    parser.add_argument("--decisive", type=int, default=128)
    parser.add_argument(
        "--cycles", type=int, default=1, help="each with as many votes, on the pairs of the last policy"
    )
    parser.add_argument("--seed", type=int, default=6, help="of the voters: whom they misjudge, which pairs they see")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--out", type=given.writable, help="append one JSON line a utility")
    arguments = parser.parse_args()
    settings = given.settings(arguments.settings)
    bench = Bench(arguments.model, arguments.cache)
    bench.answers("train", bench.train, 2, seed=11)
    bench.answers("held_out", bench.held_out, 1, seed=12)
    if arguments.what == "sample":
        return
    for name in arguments.utility or TASTES:
        print(f"{name}: {arguments.decisive} decisive votes, {settings or 'defaults'}", flush=True)
        for result in tried(campaign(bench, name, arguments.decisive, arguments.cycles, settings, arguments.seed)):
            row = {"seed": arguments.seed, "settings": settings}
            if isinstance(result, str):
                print(f"{name}: refused, nothing is learnt: {result}", flush=True)
                _append(arguments.out, row | {"utility_name": name, "refused": result})
                continue
            for question, old, new in result.samples:
                print(f"  Q: {question}\n    base:   {old[:150]!r}\n    policy: {new[:150]!r}")
            print(
                f"{name}: cycle {result.cycle}: win {result.win_rate:.3f} "
                f"[{result.interval[0]:.2f}, {result.interval[1]:.2f}] "
                f"utility {result.utility[0]:.2f} to {result.utility[1]:.2f}, "
                f"reward model {result.reward_accuracy:.2f}, "
                f"KL {result.kl:.1f}, distinct {result.distinct_within:.2f}/{result.distinct_across:.2f}, "
                f"perplexity x{result.perplexity:.2f}, topic {result.topic[0]:.2f} to {result.topic[1]:.2f}, "
                f"length {result.length[0]:.0f} to {result.length[1]:.0f}, chosen {result.chosen}, {result.seconds}, "
                f"{result.peak_gib} GiB",
                flush=True,
            )
            _append(arguments.out, asdict(result) | row)


def _append(path: Path | None, row: Mapping[str, Any]) -> None:
    if path:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
