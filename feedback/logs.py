"""Logging for every process: structlog, JSON off a terminal, coloured on one."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from json import dumps as json_dumps
from typing import Any

import orjson
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
    if json:
        _write_lines(shared, level)
    else:
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


def _write_lines(processors: list[structlog.typing.Processor], level: str) -> None:
    """Our own lines go straight to stderr: by way of `logging` each costs five times as much, and serving writes one a
    request."""
    render = structlog.processors.JSONRenderer(serializer=_line)
    structlog.configure(
        processors=[*processors, structlog.processors.format_exc_info, render],
        logger_factory=lambda *_: _Stderr(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )


def _line(event: structlog.typing.EventDict, default: Callable[[Any], Any]) -> bytes:
    try:
        return orjson.dumps(event, default=default)
    except TypeError:  # half a surrogate pair, or a number above 64 bits
        return json_dumps(event, default=default).encode()


class _Stderr:
    """Writes lines to stderr, each whole. When its reader has gone the process works on, as with `logging`."""

    def __init__(self) -> None:
        self._stream = sys.stderr.buffer

    def msg(self, line: bytes) -> None:
        """Write a line."""
        with _writing, contextlib.suppress(OSError, ValueError):
            self._stream.write(line + b"\n")
            self._stream.flush()

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


_writing = threading.Lock()
os.register_at_fork(after_in_child=_writing._at_fork_reinit)  # type: ignore[attr-defined]  # as `logging` does with its own


def _colours_wanted() -> bool:
    return "NO_COLOR" not in os.environ and (sys.stderr.isatty() or "FORCE_COLOR" in os.environ)
