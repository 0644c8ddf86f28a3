"""Rewards of candidate tokens: what is foreseen equals what is paid, and its gradient is that of the expectation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tests.train.test_reward_mix import LAYERS, VOCABULARY, WIDTH, tables, token_rewards
from train.heads import TokenScores, score_tokens
from train.reward import tokens
from train.reward.features import Sequences
from train.reward.foresight import Foresight, Tilt
from train.reward.mix import MixHead


@dataclass(frozen=True)
class Turn:
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def seeing_head() -> MixHead:
    """A head that reads only what can be foreseen: embeddings, token classes, exact matches with the prompt."""
    rng = np.random.default_rng(5)
    shape = np.zeros(len(tokens.COLUMNS) + 4)
    shape[: len(tokens.COLUMNS)] = rng.normal(size=len(tokens.COLUMNS))
    meet = np.zeros(2 * len(LAYERS) + 2)
    meet[-2:] = 1.5, 2.5
    weights = {
        "state:0": rng.normal(size=WIDTH),
        "state:2": np.zeros(WIDTH),
        "surface": shape,
        "opening": shape[::-1].copy() * (shape != 0),
        "meet": meet,
    }
    tensors = {name: torch.from_numpy(w).float() for name, w in weights.items()}
    means = {name: torch.zeros_like(w) for name, w in tensors.items()}
    return MixHead(LAYERS, tensors, means, 1.0, tables(), "b" * 64, {})


def sequences(turns: list[Turn], embeddings: torch.Tensor) -> Sequences:
    prompt, longest = len(turns[0].prompt_ids), max(len(t.response_ids) for t in turns)
    ids = torch.tensor([[*t.prompt_ids, *t.response_ids, *[0] * (longest - len(t.response_ids))] for t in turns])
    place = torch.arange(prompt + longest)[None]
    lengths = torch.tensor([len(t.response_ids) for t in turns])[:, None]
    hidden = {0: embeddings[ids], 2: torch.zeros((*ids.shape, WIDTH))}
    return Sequences(
        hidden, ids, (place < prompt).expand(len(turns), -1), (place >= prompt) & (place < prompt + lengths)
    )


def test_what_is_foreseen_of_a_token_is_what_it_is_paid() -> None:
    embeddings = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(1))
    head = seeing_head()
    foresight = head.foresight(embeddings)
    prompt, said = (3, 7, 7, 12), (7, 20, 3, 31)
    tilt = foresight.tilt([Turn(prompt, said)]).rows(0, len(said))
    for at in range(len(said)):
        # every candidate at this place, the answer else the same; only this place's own reward is looked at
        answers = [Turn(prompt, (*said[:at], other, *said[at + 1 :])) for other in range(VOCABULARY)]
        paid = token_rewards(head, sequences(answers, embeddings))[:, len(prompt) + at]
        torch.testing.assert_close(tilt[at] - tilt[at, 0], paid - paid[0], atol=1e-5, rtol=1e-4)


def test_places_of_several_answers_follow_one_another() -> None:
    foresight = Foresight(torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]]), torch.ones(3), torch.ones(3) * 3)
    tilt = foresight.tilt([Turn((1,), (0, 1, 1)), Turn((0, 2), (2,))])
    rows = tilt.rows(0, 4)
    # the second answer is one token long: weights 1 and 1; 0 and 2 are in its prompt and unsaid
    assert rows[3].tolist() == [1 + 4, 2, 4 + 8 + 4]
    # third place of the first answer: even weight 1/3, token 1 has been said, so only the match is paid
    early = float(np.exp(-2 / 8) / np.exp([0, -1 / 8, -2 / 8]).sum())
    torch.testing.assert_close(rows[2], torch.tensor([1 / 3, 2 / 3 + 1 / 3, 4 / 3 + 8 * early]))
    assert torch.equal(tilt.rows(1, 3), rows[1:3])


def test_the_expectation_and_its_gradient_are_those_of_a_plain_softmax() -> None:
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(300, 5, generator=generator, requires_grad=True)  # more rows than one chunk
    weight = torch.randn(11, 5, generator=generator)
    ids = torch.randint(11, (300,), generator=generator)
    tilt = Tilt(
        torch.rand(300, 2, generator=generator),
        torch.randn(2, 11, generator=generator),
        torch.randint(11, (300, 3), generator=generator),
        torch.randn(300, 3, generator=generator),
    )
    found = score_tokens(states, weight, ids, 0.7, tilt=tilt)
    pull = torch.randn(300, generator=generator)
    (got,) = torch.autograd.grad((found.expected * pull).sum(), states)

    gains = tilt.pools @ tilt.tables
    for row in range(300):
        for place in range(3):
            gains[row, tilt.ids[row, place]] += tilt.extra[row, place]
    expected = ((states @ weight.T / 0.7).softmax(-1) * gains).sum(-1)
    (wanted,) = torch.autograd.grad((expected * pull).sum(), states)
    torch.testing.assert_close(found.expected, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.foreseen, gains.gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_without_a_tilt_nothing_is_foreseen() -> None:
    found = score_tokens(torch.randn(4, 5), torch.randn(11, 5), torch.tensor([1, 2, 3, 4]), 1.0)
    assert not found.expected.any()
    assert not found.foreseen.any()


def test_a_loss_known_on_the_way_forward_pulls_as_one_taken_from_the_scores() -> None:
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(300, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    reference = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(11, (300,), generator=generator)
    pulls = torch.randn(4, 300, generator=generator, dtype=torch.float64)
    tilt = Tilt(
        torch.rand(300, 2, generator=generator, dtype=torch.float64),
        torch.randn(2, 11, generator=generator, dtype=torch.float64),
        torch.zeros((300, 1), dtype=torch.long),
        torch.zeros((300, 1), dtype=torch.float64),
    )

    def loss(at: slice, scores: TokenScores) -> torch.Tensor:
        terms = (scores.logprobs.exp(), scores.entropy, scores.kl.square(), scores.foreseen * scores.expected)
        return torch.stack([pull[at] @ term for pull, term in zip(pulls, terms, strict=True)]).sum()

    fused = score_tokens(states, weight, ids, 0.7, reference=reference, tilt=tilt, loss=loss)
    (got,) = torch.autograd.grad(3 * fused.loss, states)
    apart = score_tokens(states, weight, ids, 0.7, entropy_grad=True, reference=reference, tilt=tilt)
    (wanted,) = torch.autograd.grad(3 * loss(slice(0, 300), apart), states)
    torch.testing.assert_close(fused.loss, loss(slice(0, 300), apart).detach())
    torch.testing.assert_close(got, wanted)
    for name in ("logprobs", "entropy", "kl", "foreseen", "expected"):
        torch.testing.assert_close(getattr(fused, name), getattr(apart, name).detach())
        assert not getattr(fused, name).requires_grad
