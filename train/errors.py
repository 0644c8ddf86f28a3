"""The trainer's failures, in one tree. Each message is one line that says what to do; the incumbent stays untouched."""

from __future__ import annotations

# TrainError
# ├── ModelUnusable        the base model can't be fetched, converted or read
# ├── BaseMismatch         an adapter, snapshot or checkpoint belongs to another base
# ├── ConfigConflict       the configuration asks for what this machine has not
# ├── CheckpointUnusable   a published whole model is not what its manifest says
# ├── NotEnoughVotes       the snapshot has too few comparisons to learn or judge anything
# │   └── OneSidedVotes    every comparison carries the same feature difference or none
# ├── SnapshotGone         the cycle's snapshot is gone: somebody in it asked to be forgotten
# ├── RewardRefused        the reward model is no better than a coin, a length meter, or worse than the last one
# ├── PolicyRefused        PPO found nothing better than its start within the governor's bounds
# ├── TrainingDiverged     a loss, a gradient or a reward is not finite
# ├── RolloutsUnavailable  serving did not sample for the trainer
# ├── OfficeUnknown        the ledger, which knows the adapter in office, can't be asked now
# ├── PromptRefused        the base's chat template knows no conversation of this kind
# ├── TensorBoardMissing   it is asked for and isn't installed
# ├── TeamFailed           another process of the cycle failed
# └── CycleInterrupted     the cycle was asked to stop; it resumes where it stood


class TrainError(Exception):
    """Base of the trainer's failures; the message is one line fit for an operator."""


class ModelUnusable(TrainError):
    """The base model can't be fetched, converted or read."""


class BaseMismatch(TrainError):
    """An adapter, a snapshot or a checkpoint belongs to another base model."""


class ConfigConflict(TrainError):
    """The configuration asks for what this machine has not."""


class CheckpointUnusable(TrainError):
    """A published whole model is not what its manifest says."""


class NotEnoughVotes(TrainError):
    """The snapshot has too few comparisons to learn from or to judge by."""


class OneSidedVotes(NotEnoughVotes):
    """The comparisons tell nothing apart: identical answers on both sides."""


class SnapshotGone(TrainError):
    """The cycle's snapshot is gone, because somebody in it asked to be forgotten; the next cycle makes another."""


class RewardRefused(TrainError):
    """The reward model did not earn its use; the message says which test it failed.

    Args:
        message: one line.
        test: `coin`, `length` or `predecessor`.
    """

    def __init__(self, message: str, *, test: str) -> None:
        super().__init__(message)
        self.test = test


class PolicyRefused(TrainError):
    """PPO found no policy that is better than its start and within the governor's bounds, or fresh answers disagree."""


class TrainingDiverged(TrainError):
    """A loss, a gradient or a reward is not finite."""


class TensorBoardMissing(TrainError):
    """`train.tensorboard` is true and the package isn't installed."""


class TeamFailed(TrainError):
    """Another process of the cycle failed; its own line says why."""


class CycleInterrupted(TrainError):
    """The cycle was asked to stop; the next start resumes it."""


class RolloutsUnavailable(TrainError):
    """Serving did not sample for the trainer, after all attempts."""


class PromptRefused(TrainError):
    """The base's chat template knows no conversation of this kind."""


class OfficeUnknown(TrainError):
    """The ledger, which knows the adapter in office, can't be asked now."""
