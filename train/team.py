"""The processes that train together. Alone, everything here does nothing.

Data parallel, by hand and on purpose (docs/adr/0046): every process holds the base and the adapters, works on its own
rows of each minibatch, and the gradients are summed once a step; a whole policy's weights are sharded besides
(`train.sharding`). One process, the lead, writes files, publishes and talks to the world; the others hear from it what
to do. Nothing is pickled: what travels is tensors, and JSON as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from train.errors import CycleInterrupted, TeamFailed
from train.sharding import is_sharded, whole

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together.

    Attributes:
        rank: of this process; 0 leads.
        size: how many there are.
        device: where tensors travel from; gloo on "cpu", nccl on "cuda:…".
        sharded: whether forward passes of the policy are collective (a whole policy): then all processes must make
            equally many of them.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sharded: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process writes and publishes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` things: contiguous, nearly equal, the same on every run."""
        return self._share(count, self.rank)

    def total(self, value: float) -> float:
        """Sum over processes."""
        return self.figures({"value": value})["value"]

    def figures(self, sums: dict[str, float], largest: str | None = None) -> dict[str, float]:
        """Sums over processes by name; of `largest` the maximum. Every process knows the names."""
        if self.size == 1:
            return sums
        names = sorted(sums)
        table = self._all(torch.tensor([sums[name] for name in names], dtype=torch.float64))
        joined = {name: float(table[:, at].sum()) for at, name in enumerate(names)}
        if largest is not None:
            joined[largest] = float(table[:, names.index(largest)].amax())
        return joined

    def most(self, count: int) -> int:
        """The largest count of all processes."""
        return count if self.size == 1 else int(self._all(torch.tensor([count])).amax())

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.most(int(flag)))

    def rounds(self, count: int) -> int:
        """How many passes of the policy to make for `count` of one's own."""
        return self.most(count) if self.sharded else count

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of weights that every process holds, in one message; sharded ones are summed already."""
        mine = [weight for weight in weights if not is_sharded(weight)]
        if self.size == 1 or not mine:
            return
        flat = torch.cat([(w.grad if w.grad is not None else torch.zeros_like(w)).flatten().float() for w in mine])
        torch.distributed.all_reduce(flat)
        at = 0
        for weight in mine:
            weight.grad = flat[at : at + weight.numel()].view_as(weight).to(weight.dtype)
            at += weight.numel()

    def clip(self, weights: Sequence[nn.Parameter], limit: float) -> float:
        """Clip the norm of all gradients together; the norm before."""
        return float(whole(nn.utils.clip_grad_norm_(weights, limit)))

    def gather(self, part: Tensor, count: int) -> Tensor:
        """Rows of all processes, (count, ...), from each one's `share(count)`."""
        if self.size == 1:
            return part
        shares = [self._share(count, rank) for rank in range(self.size)]
        longest = max(share.stop - share.start for share in shares)
        padded = part.new_zeros((longest, *part.shape[1:]))
        padded[: len(part)] = part
        if not padded.numel():  # rows of no columns: nothing to hand round
            return part.new_zeros((count, *part.shape[1:]))
        table = self._all(padded)
        rows = [table[rank, : share.stop - share.start] for rank, share in enumerate(shares)]
        return torch.cat(rows).to(part.device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of equally shaped tensors of all processes."""
        return tensor if self.size == 1 else self._all(tensor).sum(0).to(tensor.device)

    def tell(self, message: dict[str, Any]) -> None:
        """The lead's word to the others, who `hear` it."""
        if self.size == 1:
            return
        content = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        torch.distributed.broadcast(torch.tensor([len(content)]), src=0)
        torch.distributed.broadcast(content, src=0)

    def hear(self) -> dict[str, Any]:
        """Wait for the lead's word."""
        length = torch.zeros(1, dtype=torch.long)
        torch.distributed.broadcast(length, src=0)
        content = torch.zeros(int(length), dtype=torch.uint8)
        torch.distributed.broadcast(content, src=0)
        message: dict[str, Any] = json.loads(bytes(content.tolist()))
        return message

    def hand_out(self, tensor: Tensor) -> Tensor:
        """The lead's tensor; the others give one of equal shape and type, which is overwritten."""
        if self.size > 1:
            torch.distributed.broadcast(tensor, src=0)
        return tensor

    def lead_says(self, values: Sequence[float]) -> list[float]:
        """The lead's values, on every process: what decides how things go on must be equal to the bit."""
        if self.size == 1:
            return list(values)
        held = torch.tensor(values, dtype=torch.float64)
        torch.distributed.broadcast(held, src=0)
        return [float(value) for value in held]

    def lead_found(self, number: int | None) -> int | None:
        """The number that the lead found (None for none), on every process; the others' is not looked at."""
        found = int(self.lead_says([-1 if number is None else number])[0])
        return None if found < 0 else found

    def agree(self, work: Callable[[], T]) -> T:
        """Do work without talk between processes inside; where it fails for one, it fails for all, and none waits.

        Raises:
            TeamFailed: it failed elsewhere; here it would have gone well.
        """
        if self.size == 1:
            return work()
        failure: Exception | None = None
        found: list[T] = []
        try:
            found.append(work())
        except Exception as error:  # noqa: BLE001 - raised below, when the others know
            failure = error
        kinds = self._all(torch.tensor([0 if failure is None else 2 if isinstance(failure, CycleInterrupted) else 1]))
        if failure is not None:
            raise failure
        if bool((kinds == 2).any()):
            raise CycleInterrupted("another process of this cycle was asked to stop")
        if bool(kinds.any()):
            raise TeamFailed(f"process {int(kinds.flatten().argmax())} of this cycle failed; its own line says why")
        return found[0]

    def _share(self, count: int, rank: int) -> slice:
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def _all(self, tensor: Tensor) -> Tensor:
        """Equal shapes of all processes, stacked."""
        moved = tensor.to(self.device).contiguous()
        table = [torch.empty_like(moved) for _ in range(self.size)]
        torch.distributed.all_gather(table, moved)
        return torch.stack(table)


ALONE = Team()
"""One process."""
