"""The sampled tokens' log-probs without ranks; the rest is asked of the real engine (test_engine_contract)."""

from __future__ import annotations

from collections import namedtuple

import pytest

torch = pytest.importorskip("torch")

from serve.engines.vllm_logprobs import sampled_only  # noqa: E402  # after the check for torch

Tensors = namedtuple("Tensors", "ids logprobs ranks")


def test_the_sampled_tokens_logprob_is_picked_from_each_row() -> None:
    rows = torch.tensor([[-0.1, -2.0, -3.0], [-1.5, -0.5, -4.0]])
    found = sampled_only(pytest.fail, Tensors)(rows, 0, torch.tensor([2, 1]))
    assert found.ids.tolist() == [[2], [1]]
    assert found.ids.dtype == torch.int32
    assert found.logprobs.tolist() == [[-3.0], [-0.5]]
    assert found.ranks.tolist() == [0, 0]


def test_whoever_wants_the_likeliest_gets_vllms_own() -> None:
    gathered = sampled_only(lambda *given: given, pytest.fail)
    assert gathered("logprobs", 3, "ids") == ("logprobs", 3, "ids")
