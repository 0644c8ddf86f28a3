"""Logging for every process: structlog, JSON off a terminal, coloured on one."""

from __future__ import annotations

import logging
import os
import sys

import structlog


def configure(process: str, *, level: str = "info", json: bool | None = None) -> None:
    """Set up structlog and route the standard library's loggers through it.

    Args:
        process: stands in every JSON line as `process`.
        json: force JSON lines (True) or the console form (False); by default JSON when stderr is no terminal,
            unless HUSTINGS_LOG_FORMAT says "console" or "json".
    """
    wanted = os.environ.get("HUSTINGS_LOG_FORMAT")
    if json is None:
        json = wanted == "json" if wanted in {"json", "console"} else not sys.stderr.isatty()

    def name_process(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        line.setdefault("process", process)  # a context variable would be missing in other threads
        return line

    # A person at a terminal sees the clock; `hustings up` puts the process in front of each line.
    form: list[structlog.typing.Processor] = (
        [name_process, structlog.processors.TimeStamper(fmt="iso", utc=True)]
        if json
        else [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)]
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        *form,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=_colours_wanted(),
            exception_formatter=structlog.dev.plain_traceback,  # rich would print local variables: texts and secrets
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([structlog.processors.format_exc_info] if json else []),
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _colours_wanted() -> bool:
    return "NO_COLOR" not in os.environ and (sys.stderr.isatty() or "FORCE_COLOR" in os.environ)
