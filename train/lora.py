"""LoRA adapters by hand: several on one frozen linear layer, switched without copying, stored in PEFT's format.

y = x W^T + (alpha / r) (x A^T) B^T with A (r, in) and B (out, r); B starts at zero, so a fresh adapter changes nothing.
(Hu et al. 2021.)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.config import LoraSettings
from train.errors import BaseMismatch, ModelUnusable
from train.kernels import adapted_gated, adapted_linear, frozen_linear, gated, laid_out

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


class LoraLinear(nn.Module):
    """A frozen linear layer with named low-rank updates, of which at most one is active.

    Attributes:
        active: name of the adapter in use, None for the bare layer.
        merged: W + (alpha / r) B A while a sampler works with it; then the adapter costs nothing.
    """

    def __init__(self, base: nn.Linear, settings: LoraSettings) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        self.scale = settings.alpha / settings.rank
        self.rank = settings.rank
        self.lora_a = nn.ParameterDict()
        self.lora_b = nn.ParameterDict()
        self.active: str | None = None
        self.merged: Tensor | None = None

    def add(self, name: str, generator: torch.Generator) -> None:
        """Make a fresh adapter: A uniform (Kaiming, as PEFT has it), B zero; both float32."""
        outputs, inputs = self.weight.shape
        bound = 1 / math.sqrt(inputs)
        a = torch.rand((self.rank, inputs), generator=generator) * (2 * bound) - bound
        self.lora_a[name] = nn.Parameter(a.to(self.weight.device))
        self.lora_b[name] = nn.Parameter(torch.zeros(outputs, self.rank, device=self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        if self.merged is not None:
            return frozen_linear(x.to(self.merged.dtype), self.merged, self.bias).to(x.dtype)
        if self.active is None:
            return frozen_linear(x, self.weight, self.bias)
        a, b = self.lora_a[self.active], self.lora_b[self.active]
        return adapted_linear(x, self.weight, self.bias, a, b, self.scale)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """What `forward` makes of silu(gate) * up, both (..., in), keeping less for the way back."""
        if self.merged is not None or self.active is None:
            return self.forward(gated(gate, up))
        a, b = self.lora_a[self.active], self.lora_b[self.active]
        return adapted_gated(gate, up, self.weight, self.bias, a, b, self.scale)

    def merge(self, dtype: torch.dtype) -> None:
        """Make the merged weight of the active adapter (of the bare layer if there is none)."""
        with torch.no_grad():
            weight = self.weight.detach()
            if self.active is not None:
                a, b = self.lora_a[self.active], self.lora_b[self.active]
                weight = torch.addmm(weight.float(), b, a, alpha=self.scale)
            # detached: a module won't hold a Parameter here
            self.merged = laid_out(weight.detach().to(dtype))

    def unmerge(self) -> None:
        """Drop the merged weight."""
        self.merged = None


class AdapterSet:
    """All LoRA layers of a model, by their path in it.

    Attributes:
        replacement: a whole model that answers in the base's place while its role is active (`train.full`); None here.
    """

    replacement: Any = None

    def __init__(self, model: nn.Module, settings: LoraSettings) -> None:
        self.settings = settings
        self.layers: dict[str, LoraLinear] = {}
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and path.rsplit(".", 1)[-1] in settings.targets:
                layer = LoraLinear(module, settings)
                parent, _, leaf = path.rpartition(".")
                setattr(model.get_submodule(parent), leaf, layer)
                self.layers[path] = layer
        if not self.layers:
            raise ModelUnusable(
                f"the base model has none of the layers {', '.join(settings.targets)}; set train.lora.targets"
            )

    def add(self, name: str, seed: int) -> None:
        """Make a fresh adapter in every layer; equal seeds give equal bits."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            layer.add(name, generator)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The adapter's trainable weights, in a fixed order."""
        return [weight for layer in self.layers.values() for weight in (layer.lora_a[name], layer.lora_b[name])]

    def untouched(self, name: str) -> bool:
        """Whether the adapter changes nothing yet."""
        return not any(layer.lora_b[name].detach().any() for layer in self.layers.values())

    def within(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Run work that reads the active adapter's weights."""
        return work()

    def settle(self) -> None:
        """From here on this process needs no other for the policy (of a sharded one, see `train.full`)."""

    @property
    def active(self) -> str | None:
        """The adapter in use, None for the bare base."""
        return next(iter(self.layers.values())).active

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Switch every layer to the adapter (None: bare) and back."""
        before = self.active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    @contextmanager
    def merged(self, name: str | None, dtype: torch.dtype) -> Iterator[None]:
        """Work with merged weights of the adapter: a second copy of the linear layers, gone afterwards."""
        with self.using(name):
            for layer in self.layers.values():
                layer.merge(dtype)
            try:
                yield
            finally:
                for layer in self.layers.values():
                    layer.unmerge()

    def state(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors under PEFT's names."""
        tensors = {}
        for path, layer in self.layers.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = layer.lora_a[name].detach()
            tensors[f"base_model.model.{path}.lora_B.weight"] = layer.lora_b[name].detach()
        return tensors

    def load_state(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Overwrite the adapter with tensors under PEFT's names.

        Raises:
            BaseMismatch: names or shapes are not those of this base and these settings.
        """
        mine = self.state(name)
        if mine.keys() != tensors.keys():
            odd = sorted(mine.keys() ^ tensors.keys())[:2]
            raise BaseMismatch(f"the adapter does not fit the base model or train.lora.targets: {', '.join(odd)}")
        for key, target in mine.items():
            if target.shape != tensors[key].shape:
                raise BaseMismatch(
                    f"the adapter does not fit: {key} is {tuple(tensors[key].shape)}, here {tuple(target.shape)};"
                    " train.lora.rank or the base model differs"
                )
            target.copy_(tensors[key])

    def save(self, name: str, folder: Path, base_model: str) -> None:
        """Write the adapter as a PEFT folder, loadable by plain PEFT and plain vLLM; files are fsynced."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor.contiguous().cpu() for key, tensor in self.state(name).items()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(self._peft_config(base_model), indent=2, sort_keys=True) + "\n")
        for file in (folder / WEIGHTS_FILE, folder / CONFIG_FILE):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())

    def load(self, name: str, folder: Path) -> None:
        """Read a PEFT folder into the adapter (which must exist).

        Raises:
            BaseMismatch: it is for another base, other layers or another rank.
        """
        try:
            config = json.loads((folder / CONFIG_FILE).read_text())
        except FileNotFoundError as error:
            raise BaseMismatch(f'{folder} is gone: bring it back, or set train.schedule.start_from = "base"') from error
        scale = config["lora_alpha"] / config["r"]
        if config["r"] != self.settings.rank or not math.isclose(scale, self.settings.alpha / self.settings.rank):
            raise BaseMismatch(
                f"{folder.name} has rank {config['r']} and alpha {config['lora_alpha']}, train.lora says"
                f" {self.settings.rank} and {self.settings.alpha}"
            )
        self.load_state(name, load_file(folder / WEIGHTS_FILE))

    def _activate(self, name: str | None) -> None:
        for layer in self.layers.values():
            layer.active = name

    def _peft_config(self, base_model: str) -> dict[str, object]:
        return {
            "base_model_name_or_path": base_model,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": self.settings.alpha if self.settings.alpha % 1 else int(self.settings.alpha),
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": self.settings.rank,
            "target_modules": sorted({path.rsplit(".", 1)[-1] for path in self.layers}),
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        }


def digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes, to compare states bit by bit."""
    total = hashlib.sha256()
    for key in sorted(tensors):
        total.update(f"{key}{tuple(tensors[key].shape)}".encode())
        total.update(tensors[key].detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
