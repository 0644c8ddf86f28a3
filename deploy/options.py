"""The options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from deploy.config import HustingsConfig, load

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file; hustings.toml here is read by itself."),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Ledger, votes, adapters and logs lie here.")
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="PATH_OR_ID", help="Base model: a Hugging Face folder or a hub id.")
]
Kafka = Annotated[
    str | None,
    typer.Option("--kafka", metavar="HOST:PORT", help="Use this Kafka in place of the embedded broker."),
]
Port = Annotated[int | None, typer.Option("--port", metavar="N", help="Port of the page and the API; 0 for any.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any configuration key, e.g. train.ppo.iterations=3; repeatable."),
]


def serving_flags(verb: Callable[[HustingsConfig], None]) -> Callable[..., None]:
    """Give a verb the flags of what serves; it gets the configuration that they, the file and `--set` add up to."""

    def flagged(
        *,
        port: Port = None,
        data_dir: DataDir = None,
        model: Model = None,
        kafka: Kafka = None,
        config: ConfigFile = None,
        overrides: Overrides = None,
    ) -> None:
        direct = {"serve.port": port, "data_dir": data_dir, "model": model, "feedback.kafka": kafka}
        verb(load(config, overrides or (), direct))

    flagged.__name__, flagged.__doc__ = verb.__name__, verb.__doc__
    return flagged
