"""Whether the trainer computes a model rightly, found out before anything is trained on it.

The passes of `train.base` go around parts of a transformers model: its attention, its head, the way in. So a model is
asked for the log-probs of a few tokens both ways, by its own code and by ours; what differs is refused, whatever the
reason. A short question can't show every difference: those that only long sequences or large scores bring out are
known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from train.errors import ModelUnusable
from train.memory import no_memory
from train.packing import ATTENTION, Turn, install_attention

Built = TypeVar("Built")
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
FURTHEST = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Nats that an answer's tokens may differ by on average: kernels round differently, other formulas are further off."""
TRAINED = "Llama, Qwen 2 and 3, Mistral, Gemma 3, Phi 3, OLMo 2, SmolLM"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with an answer, in token ids."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def read_model(folder: Path, dtype: str) -> Any:
    """A causal language model of transformers with our attention, on the CPU.

    Raises:
        ModelUnusable: there is none, or the trainer is known to compute its kind wrongly.
    """
    from transformers import AutoModelForCausalLM

    install_attention()
    try:
        with _no_progress_bar():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), attn_implementation=ATTENTION, local_files_only=True
            )
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{folder}: {error}; give a Hugging Face model folder with --model") from error
    except KeyError as error:  # its class looks attentions up in a list of its own
        raise unusable(folder, "does not let the trainer put its own attention in place") from error
    odd = [kind for kind in getattr(model.config, "layer_types", None) or () if kind not in KNOWN_LAYERS]
    odd += [name for name in SOFTCAPS if getattr(model.config, name, None)]
    if odd:
        raise unusable(folder, f"uses {odd[0]}, which the trainer does not know")
    return model


def vetted(
    model: Any, folder: Path, build: Callable[[], Built], ask: Callable[[Built, list[Turn]], list[Tensor]]
) -> Built:
    """What `build` makes of a model, if our passes say of it what its own code says.

    Args:
        model: of transformers, with our attention.
        folder: that it was read from.
        build: takes the model over.
        ask: the answers' log-probs by our passes, (T,) each.

    Raises:
        ModelUnusable: they differ, or one of the two can't be had.
    """
    with _no_other_way(model, folder, "does not run here"), torch.no_grad(), _own_attention(model):
        asked = questions(int(model.config.vocab_size))
        expected = [_plain(model, turn) for turn in asked]
    with _no_other_way(model, folder, "is built in another way"):
        built = build()
        found = ask(built, asked)
    off = max(float((one - other).abs().mean()) for one, other in zip(expected, found, strict=True))
    if not off <= FURTHEST.get(model.dtype, 0.5):
        what = f"({type(model).__name__}) computes log-probs that differ by {off:.2g} nats a token from the trainer's"
        raise unusable(folder, what)
    return built


def questions(vocabulary: int) -> list[Turn]:
    """Three prompts of which two are one, and answers: every part of a packed layout is met."""
    ids = torch.randint(vocabulary, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    begin, first, second = tuple(ids[:4]), tuple(ids[4:7]), tuple(ids[7:12])
    return [
        Question(begin + first, tuple(ids[12:16])),
        Question(begin + second, tuple(ids[16:19])),
        Question(begin + first, tuple(ids[19:24])),
    ]


def unusable(folder: Path, why: str) -> ModelUnusable:
    """The refusal, with the remedy."""
    return ModelUnusable(f"{folder} {why}; give a model of a kind that it trains: {TRAINED}")


def _plain(model: Any, turn: Turn) -> Tensor:
    """Log-probs (T,) of an answer alone, by the model's own code."""
    ids = torch.tensor([turn.prompt_ids + turn.response_ids], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(turn.prompt_ids) - 1 : -1].float()
    said = ids[0, len(turn.prompt_ids) :]
    logprobs: Tensor = logits.log_softmax(-1).gather(1, said[:, None])[:, 0]
    return logprobs


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading takes a second; transformers' bar would only tear our logs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _own_attention(model: Any) -> Iterator[None]:
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION)


@contextmanager
def _no_other_way(model: Any, folder: Path, what: str) -> Iterator[None]:
    """Foreign code fails in as many ways as there are classes of models; whatever it raises is our refusal's reason."""
    try:
        yield
    except ModelUnusable:
        raise
    except Exception as error:
        if no_memory(error):  # that is the machine's, not the model's
            raise
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise unusable(folder, f"({type(model).__name__}) {what}: {line}") from error
