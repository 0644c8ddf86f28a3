"""Generators of draws that are thrown away; test_engine_contract asks the real engine whether it lives on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

from serve.engines.vllm_cpu_seeds import drawn_back, without_offsets  # noqa: E402  # after the check for torch


def runner(*thrown_away: bool, seeded: tuple[int, ...] = (0, 1)) -> Any:
    """A batch of requests; places beyond it hold what an earlier one left."""
    generators = {index: torch.Generator().manual_seed(index) for index in seeded}
    batch = SimpleNamespace(generators=generators, num_reqs=len(thrown_away))
    return SimpleNamespace(input_batch=batch, discard_request_mask=SimpleNamespace(np=np.array([*thrown_away, True])))


def draw(self: Any, *_: Any) -> list[float]:
    return [torch.rand(1, generator=each).item() for each in self.input_batch.generators.values()]


def test_a_draw_that_is_thrown_away_is_as_if_it_had_not_been() -> None:
    batch = runner(True, False)
    sample = drawn_back(draw)
    first, second, third = (sample(batch, "logits", None) for _ in range(3))
    assert first[0] == second[0] == third[0]
    assert len({first[1], second[1], third[1]}) == 3
    batch.discard_request_mask.np[0] = False
    kept, following = sample(batch), sample(batch)
    assert kept[0] == first[0], "the first draw that counts is the seed's first"
    assert following[0] != kept[0]


def test_vllm_finds_no_generator_to_set_back_and_all_are_there_afterwards() -> None:
    batch = runner(True, False, False)
    before = dict(batch.input_batch.generators)
    seen = without_offsets(lambda self, *_: dict(self.input_batch.generators))(batch)
    assert seen == {1: before[1]}
    assert batch.input_batch.generators == before

    def fails(self: Any) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        without_offsets(fails)(batch)
    assert batch.input_batch.generators == before


def test_a_generator_beyond_the_batch_is_left_alone() -> None:
    batch = runner(False, seeded=(0, 1))
    assert without_offsets(lambda self: set(self.input_batch.generators))(batch) == {0, 1}
