"""Log-probs of the sampled tokens as plain numbers, all the way from vLLM's sampler to our chunks.

The loop needs one number a token. For it vLLM counts how many tokens of the vocabulary are likelier (the rank), decodes
the token to text a second time, and wraps all three in a dictionary. Here the sampler leaves out the rank where nobody
asked for the likeliest tokens, and vLLM's front keeps the bare number of requests that set `flat_logprobs`, as those
without `Sampling.spelled` do. Decision record 0083.

Importing this costs nothing: vLLM is imported by the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

Tensor = Any


def sampled_only(gather: Callable[..., Any], tensors: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's `Sampler.gather_logprobs`, but without ranks (they are 0) where no likeliest tokens are wanted.

    Args:
        gather: vLLM's own, for all other cases.
        tensors: makes what it returns, of token ids (T, 1), their log-probs (T, 1) and ranks (T,).
    """

    def gathered(logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> Any:
        if num_logprobs != 0:
            return gather(logprobs, num_logprobs, token_ids)
        column = token_ids.unsqueeze(-1)
        return tensors(column.int(), logprobs.gather(-1, column), token_ids.new_zeros(token_ids.shape))

    return gathered


def install_in_worker() -> None:
    """In the process that samples. Twice does no harm."""
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.sample.sampler import Sampler

    Sampler.gather_logprobs = staticmethod(sampled_only(Sampler.gather_logprobs, LogprobsTensors))


def install_in_front() -> None:
    """In the process of `AsyncLLM`, before its first request. Twice does no harm."""
    from vllm.v1.engine import output_processor
    from vllm.v1.engine.logprobs import LogprobsProcessor

    theirs = output_processor.LogprobsProcessor

    class Bare(cast("type[Any]", LogprobsProcessor)):  # type: ignore[misc]  # vLLM is untyped here
        """Keeps a float a token in place of a dictionary."""

        def _update_sample_logprobs(self, logprobs_lists: Any) -> None:
            self.logprobs.extend(row[0] for row in logprobs_lists.logprobs.tolist())

    class Chosen:
        """What vLLM makes a request's processor by."""

        @staticmethod
        def from_new_request(tokenizer: Any, request: Any) -> Any:
            made = theirs.from_new_request(tokenizer, request)
            bare = request.sampling_params.flat_logprobs
            return Bare(**{**vars(made), "logprobs": []}) if bare else made

    output_processor.LogprobsProcessor = Chosen
