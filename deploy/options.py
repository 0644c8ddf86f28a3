"""The options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
