"""Which Kafka a command talks to: the one it was told, else that of the `up` which runs here, as that one does."""

from __future__ import annotations

import tomllib
from typing import Any

from deploy import presence
from deploy.beside import RESOLVED
from deploy.config import HustingsConfig
from deploy.errors import ConfigError
from feedback.config import KafkaSecurity
from feedback.kafka_security import SECTION, SecurityUnusable, options


def with_kafka(config: HustingsConfig) -> HustingsConfig:
    """The configuration with `feedback.kafka` set, how it is reached, and how topics that have to be made are; as it
    was where there is none."""
    if config.feedback.kafka:
        return config
    running = presence.read(config.paths)
    if running is None:
        return config
    found = {"kafka": running.kafka, **_of_the_running(config)}
    return config.model_copy(update={"feedback": config.feedback.model_copy(update=found)})


def require_kafka(config: HustingsConfig) -> str:
    """The address that `with_kafka` found.

    Raises:
        ConfigError: none is named.
    """
    if config.feedback.kafka:
        return config.feedback.kafka
    raise ConfigError(
        "no Kafka is named: give --kafka HOST:PORT, or use `hustings up`, which brings a broker of its own"
    )


def require_usable(config: HustingsConfig) -> None:
    """TLS and login are as they must be, for processes that are to be started.

    Raises:
        ConfigError: they aren't.
    """
    security = config.feedback.kafka_security
    if config.feedback.kafka is None and security.protocol != "PLAINTEXT":
        raise ConfigError(
            f"{SECTION}.protocol is {security.protocol}, and no Kafka is named: the embedded broker knows neither TLS "
            "nor logins; name yours with --kafka HOST:PORT, or leave the protocol out"
        )
    try:
        options(security)
    except SecurityUnusable as error:
        raise ConfigError(str(error)) from error


def _of_the_running(config: HustingsConfig) -> dict[str, Any]:
    """What the running `up` was told; of files of an older one, nothing."""
    try:
        told = tomllib.loads((config.paths.run / RESOLVED).read_text(encoding="utf-8")).get("feedback", {})
    except (OSError, tomllib.TOMLDecodeError):
        return {}
    shape = {name: told[name] for name in ("partitions", "replication") if name in told}
    return {"kafka_security": KafkaSecurity.model_validate(told.get("kafka_security", {})), **shape}
