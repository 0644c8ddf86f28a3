"""The command line's failures. Each is shown as its one message, without a traceback."""

from __future__ import annotations

# DeployError
# ├── ConfigError        the configuration can't be used: file, key or value and the fix
# ├── AlreadyRunning     another `hustings up` holds the data folder
# ├── PortInUse          somebody else listens there
# ├── ModelError         the default model could not be made
# ├── ChildFailed        a process that everything needs would not stay up
# ├── NobodyThere        nothing is known of the voter who was to be forgotten
# └── NotReachable       a running Hustings was asked for something and did not answer as hoped


class DeployError(Exception):
    """Base: the message is one line that says what to do."""


class ConfigError(DeployError):
    """The configuration can't be used."""


class AlreadyRunning(DeployError):
    """Another `hustings up` runs on this data folder."""


class PortInUse(DeployError):
    """A port that is needed is taken."""


class ModelError(DeployError):
    """The model could not be made ready."""


class ChildFailed(DeployError):
    """A process that everything needs would not stay up."""


class NobodyThere(DeployError):
    """Nothing is known of a voter who was to be forgotten."""


class NotReachable(DeployError):
    """A running Hustings did not answer, or refused."""
