"""Full fine-tuning: the policy is a whole model of its own, trained in all its weights.

Every other role stays as it is: reference, reward features and critic read the frozen base, adapters off. So there are
two models in memory, where LoRA has one: the base (2 bytes a weight in bfloat16, 4 in float32) and the policy with
float32 weights, gradients and AdamW's two moments (16 bytes a weight). With several processes the latter is sharded
over them (FSDP2, `train.sharding`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feedback.contracts import ProbeRecord
from train.config import LoraSettings
from train.errors import BaseMismatch
from train.full_publish import publish_checkpoint, stated_dtype
from train.lora import AdapterSet
from train.sharding import assign, replicas, shard, whole

POLICY = "policy"


class WholeModel(nn.Module):
    """A model under which any work can run: with its hooks, so that sharded weights are there while it does."""

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Do the work."""
        return work()


class FullPolicy(AdapterSet):
    """The roles of a base, of which `policy` is a whole model; all others are LoRA adapters on the frozen base."""

    def __init__(self, model: Any, settings: LoraSettings, *, sharded: bool = False) -> None:
        """Args:
        model: the frozen base, as transformers loads it; the policy begins as a float32 copy of it.
        settings: of the other roles' adapters.
        sharded: spread the policy over the processes of the team; every process must make it.
        """
        self._frozen = model
        self._original = dict(model.named_parameters())
        causal = copy.deepcopy(model).float()
        causal.requires_grad_(True)
        causal.eval()
        super().__init__(model.model, settings)
        half = None if model.dtype == torch.float32 else model.dtype
        self._half: torch.dtype | None = half
        self._whole = shard(WholeModel(causal), half) if sharded else WholeModel(causal)
        self._sharded = sharded

    def add(self, name: str, seed: int) -> None:
        """Make a fresh adapter; the policy begins anew as the base."""
        if name != POLICY:
            super().add(name, seed)
            return
        with torch.no_grad():
            for key, weight in self._named():
                assign(weight, self._original[key].detach().float())

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The role's trainable weights, in a fixed order."""
        return super().parameters(name) if name != POLICY else [weight for _, weight in self._named()]

    def untouched(self, name: str) -> bool:
        """Whether the role changes nothing yet."""
        if name != POLICY:
            return super().untouched(name)
        return all(torch.equal(whole(weight), self._original[key].float()) for key, weight in self._named())

    def within(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Run work that reads the active role's weights: under the policy's hooks, and in half precision where the
        base is in half precision."""
        if self.replacement is not self._whole.causal:
            return work()
        with self._autocast():
            found: tuple[Tensor, ...] = self._whole(work)
        if not torch.is_grad_enabled():
            self._let_go()
        return found

    @contextmanager
    def merged(self, name: str | None, dtype: torch.dtype) -> Iterator[None]:
        """Work with weights that cost a sampler nothing. A policy that is sharded, or whose weights are of another
        type, is copied for as long (every process of the team must ask at once)."""
        if name != POLICY:
            with super().merged(name, dtype):
                yield
            return
        wanted = self._half or torch.float32
        plain = self._whole.causal
        if self._sharded or wanted != torch.float32:
            plain = self._copy(wanted)
        before, self.replacement = self.replacement, plain
        try:
            yield
        finally:
            self.replacement = before

    def settle(self) -> None:
        """Give up sharding: from here on each process has a policy of its own and need not ask with the others."""
        if self._sharded:
            self._whole = WholeModel(self._copy(torch.float32).requires_grad_(True))
            self._sharded = False

    def state(self, name: str) -> dict[str, Tensor]:
        """The role's tensors: the policy's under the base's own names (every process of a sharded team must ask)."""
        if name != POLICY:
            return super().state(name)
        return {key: whole(weight.detach()).cpu() for key, weight in self._named()}

    def load_state(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Overwrite the role with tensors as `state` gives them.

        Raises:
            BaseMismatch: names or shapes are not those of this base.
        """
        if name != POLICY:
            super().load_state(name, tensors)
            return
        mine = dict(self._named())
        odd = sorted(mine.keys() ^ tensors.keys())
        odd += [key for key in mine.keys() & tensors.keys() if mine[key].shape != tensors[key].shape]
        if odd:
            raise BaseMismatch(f"the checkpoint does not fit the base model: {', '.join(odd[:2])} differ")
        self._let_go()
        with torch.no_grad():
            for key, weight in mine.items():
                assign(weight, tensors[key])

    def settle_as(self, dtype: str) -> None:
        """Round the policy to the type that it is published in, so that what is measured is what is published."""
        self.settle()
        rounded: torch.dtype = getattr(torch, dtype)
        with torch.no_grad():
            for _, weight in self._named():
                weight.copy_(weight.to(rounded).to(weight.dtype))

    def save_model(self, folder: Path, dtype: str) -> None:
        """Write the policy's weights as transformers and vLLM read them (safetensors, parts of at most 5 GB)."""
        from huggingface_hub import save_torch_state_dict

        self.settle()
        kind: torch.dtype = getattr(torch, dtype)
        weights = {key: weight.detach().to(device="cpu", dtype=kind) for key, weight in self._named()}
        save_torch_state_dict(weights, folder, max_shard_size="5GB")

    def save(self, name: str, folder: Path, base_model: str) -> None:
        """Write a role's adapter; the policy is no adapter, see `train.full_publish`."""
        assert name != POLICY, "a whole policy is published as a checkpoint"
        super().save(name, folder, base_model)

    def _activate(self, name: str | None) -> None:
        self._role = name
        self.replacement = self._whole.causal if name == POLICY else None
        super()._activate(None if name == POLICY else name)

    @property
    def active(self) -> str | None:
        """The role in use."""
        return self._role

    _role: str | None = None

    def _let_go(self) -> None:
        """Drop gathered weights that no backward pass will drop: they would outlive a change of the shards."""
        if self._sharded:
            gathered: Any = self._whole
            gathered.reshard()

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(key.removeprefix("causal."), weight) for key, weight in self._whole.named_parameters()]

    def _autocast(self) -> Any:
        if self._half is None or self._sharded:  # FSDP2 casts by itself
            return nullcontext()
        return torch.autocast(self._frozen.device.type, dtype=self._half)

    def _copy(self, dtype: torch.dtype) -> Any:
        """The policy as a plain model of its own."""
        return replicas(self._whole.causal, self._named(), self._frozen.device, dtype)


def publish_policy(
    policy: FullPolicy,
    folder: Path,
    name: str,
    base: Path,
    base_fingerprint: str,
    *,
    reward_model: str,
    snapshot: str,
    probes: Sequence[ProbeRecord],
    config: dict[str, Any],
    metrics: dict[str, float],
) -> Path:
    """Publish a whole policy below `folder`, in the type of weights that the base's own folder states."""
    dtype = stated_dtype(base)
    return publish_checkpoint(
        folder,
        name,
        lambda work: policy.save_model(work, dtype),
        base=base,
        base_fingerprint_=base_fingerprint,
        dtype=dtype,
        reward_model=reward_model,
        snapshot=snapshot,
        probes=probes,
        config=config,
        metrics=metrics,
    )
