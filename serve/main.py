"""The serving process: engine, ledger, relay, releases and the HTTP server, started and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from uvicorn.loops.auto import auto_loop_factory
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from feedback import logs
from feedback.config import FeedbackConfig
from feedback.event_log import EventLog, EventLogError
from feedback.fingerprint import base_fingerprint, model_folder
from feedback.identity import SecretError, load_or_make_secret
from feedback.kafka_log import KafkaApart, KafkaEventLog
from feedback.ledger import Ledger, LedgerError, LedgerUnavailable
from feedback.paths import DataPaths
from feedback.privacy import Redactor
from feedback.relay import Relay, RelayMetrics
from serve.app import create_app
from serve.config import ServeConfig
from serve.deps import ServeDeps
from serve.direct import Direct
from serve.door import Door
from serve.engines.base import Engine, EngineError, EngineLost, EngineUnavailable
from serve.metrics import Metrics
from serve.open_files import allow_open_files
from serve.releases.follower import ReleaseFollower

WATCH_S = 2.0
STOP_S = 2.0
"""Seconds that a thread which may be waiting for a broker gets to end; what it has in hand is repeatable."""
KEEP_ALIVE_S = 75
"""Seconds that an idle connection is kept: longer than proxies keep theirs, or they use one that is being closed."""
LEDGER_PATIENCE_S = 60.0
"""Seconds that the start waits for a PostgreSQL that is being started too, or again."""
LEDGER_RETRY_S = 1.0
EXIT_FAILED = 1
EXIT_CANNOT_START = 2
log = structlog.get_logger(__name__)


class CannotStart(Exception):
    """Serving can't start; the message is one line that says what to do."""


def run(config: ServeConfig, feedback: FeedbackConfig, paths: DataPaths, model: str, bootstrap: str) -> int:
    """Serve until SIGTERM or SIGINT. Returns the process's exit code.

    0: stopped as asked; 1: the engine was lost, or the ledger is away (a supervisor starts serving again); 2: it can't
    start as configured.
    """
    logs.configure("serve", level=config.log_level)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    allow_open_files()
    try:
        paths.create()
        with (
            contextlib.closing(listen(config.host, config.port)) as sock,
            asyncio.Runner(loop_factory=auto_loop_factory()) as runner,
        ):
            return runner.run(_Server(config, feedback, paths, model, bootstrap).serve(sock))
    except LedgerUnavailable as error:
        log.error("serving can't start yet", reason=str(error))
        return EXIT_FAILED
    except (CannotStart, LedgerError, SecretError, EventLogError) as error:
        log.error("serving can't start", reason=str(error))
        return EXIT_CANNOT_START
    except OSError as error:
        log.error("serving can't start", reason=f"{error.filename or ''}: {error.strerror or error}".lstrip(": "))
        return EXIT_CANNOT_START


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        CannotStart: the address is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio would leave Nagle's algorithm on: 40 ms for every answer on a connection that is kept.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(1024)  # binding alone lets another process that waits for the port take it first
    except OSError as error:
        sock.close()
        raise CannotStart(
            f"can't listen on {host}:{port}: {error.strerror}; stop the other process or give another --port"
        ) from error
    sock.set_inheritable(False)
    return sock


def uvicorn_config(app: FastAPI, config: ServeConfig) -> uvicorn.Config:
    """How the app of `create_app` is served."""
    made = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(config.shutdown_grace_s)),
    )
    direct: Direct = app.state.direct
    # As uvicorn wraps the app itself: a cookie is told whether the client speaks https.
    around = ProxyHeadersMiddleware(cast(Any, direct), trusted_hosts=made.forwarded_allow_ips)
    made.http = cast(Any, partial(Door, direct=direct, around=cast(Any, around), stalled_s=config.stalled_client_s))
    return made


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its own signal handlers, which raise the signal again after a clean stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `_Server`."""
        yield


class _Server:
    """One run of serving."""

    def __init__(
        self, config: ServeConfig, feedback: FeedbackConfig, paths: DataPaths, model: str, bootstrap: str
    ) -> None:
        self._config = config
        self._feedback = feedback
        self._paths = paths
        self._model = model
        self._event_log = KafkaEventLog.configured(bootstrap, feedback)
        self._relayed: EventLog = self._event_log
        if feedback.relay_apart:
            self._relayed = KafkaApart.configured(bootstrap, feedback, process="serve")
        self._failed = False
        self._uvicorn: uvicorn.Server | None = None

    async def serve(self, sock: socket.socket) -> int:
        async with AsyncExitStack() as stack:
            metrics = _metrics()
            redactor = Redactor(self._feedback.privacy, lambda field, kind: metrics.redacted.labels(field, kind).inc())
            ledger = await self._open_ledger(redactor)
            stack.callback(ledger.close)
            deps = self._deps(ledger, build_engine(self._model, self._config), metrics)
            app = create_app(deps)
            app.router.lifespan_context = self._lifespan(deps, ledger)
            self._uvicorn = _Uvicorn(uvicorn_config(app, self._config))
            host, port = sock.getsockname()[:2]
            log.info("listening", url=f"http://{host}:{port}", model=deps.base_model)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._uvicorn.handle_exit, number, None)
            await self._uvicorn.serve(sockets=[sock])
        return EXIT_FAILED if self._failed else 0

    async def _open_ledger(self, redactor: Redactor) -> Ledger:
        """The ledger; a PostgreSQL that doesn't answer is waited for, a file's trouble is no passing one.

        Raises:
            LedgerError: it can't be opened.
        """
        url = self._feedback.ledger_url or self._paths.ledger_url
        patience_ends = time.monotonic() + LEDGER_PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(Ledger.open, url, redactor)
            except LedgerUnavailable as error:
                if url.startswith("sqlite") or time.monotonic() >= patience_ends:
                    raise
                log.warning("serving waits for the ledger", reason=str(error))
                await asyncio.sleep(LEDGER_RETRY_S)

    def _deps(self, ledger: Ledger, engine: Engine, metrics: Metrics) -> ServeDeps:
        return ServeDeps(
            config=self._config,
            paths=self._paths,
            engine=engine,
            ledger=ledger,
            secret=load_or_make_secret(self._paths.secrets / "voter_key", "HUSTINGS_SECRET"),
            operator_token=load_or_make_secret(self._paths.secrets / "operator_token", "HUSTINGS_OPERATOR_TOKEN"),
            base_model=model_name(self._model),
            base_fingerprint=cache(lambda: base_fingerprint(model_folder(self._model))),
            metrics=metrics,
            voters=self._feedback.voters,
        )

    def _lifespan(self, deps: ServeDeps, ledger: Ledger) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            starting = asyncio.create_task(self._bring_up(app, deps, self._event_log), name="bring-up")
            relayed = self._relayed
            relay = Relay(ledger, relayed, self._feedback, metrics=RelayMetrics(deps.metrics.registry))
            relay.start()
            try:
                yield
            finally:
                deps.readiness.set_unready("serving is stopping")
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await app.state.releases.close()
                await asyncio.to_thread(relay.stop, STOP_S)
                if isinstance(relayed, KafkaApart):
                    await asyncio.to_thread(relayed.close)
                await deps.engine.close()
                log.info("stopped")

        return lifespan

    async def _bring_up(self, app: FastAPI, deps: ServeDeps, event_log: EventLog) -> None:
        """Start the engine, restore the office, follow the releases, then watch the engine until cancelled."""
        follower = ReleaseFollower(
            event_log,
            hear=app.state.releases.hear,
            heed=app.state.releases.stir,
            look=app.state.releases.look,
            metrics=deps.metrics,
            retry_s=self._config.releases.retry_s,
        )
        looking_after: asyncio.Task[None] | None = None
        try:
            await deps.engine.start()
            deps.readiness.set_unready("the adapter in office is being loaded")
            await app.state.releases.start()
            follower.start()
            looking_after = asyncio.create_task(app.state.rollout_adapters.watch(), name="rollout-adapters")
            freeze_heap()
            deps.readiness.set_ready()
            log.info("ready", office=deps.office.holder or "base")
            await self._watch(deps)
        except (EngineError, LedgerError) as error:
            self._stop_failed(deps, str(error))
        except Exception:  # a defect: its trace is logged, and the process ends instead of never getting ready
            log.exception("bring-up failed")
            self._stop_failed(deps, "bring-up failed")
        finally:
            if looking_after is not None:
                looking_after.cancel()
            await asyncio.to_thread(follower.stop, STOP_S)

    async def _watch(self, deps: ServeDeps) -> None:
        """Look after the engine. Servers that are away may come back: people are told to wait, and may still vote.

        Raises:
            EngineLost: it won't come back.
        """
        away = False
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await deps.engine.check_health()
            except EngineLost:
                raise
            except EngineUnavailable as error:
                if not away:
                    log.warning("the engine is away", reason=str(error))
                deps.readiness.set_unready(str(error))
                away = True
            else:
                if away:
                    deps.readiness.set_ready()
                    log.info("the engine is back")
                away = False

    def _stop_failed(self, deps: ServeDeps, reason: str) -> None:
        log.error("serving stops", reason=reason)
        deps.readiness.set_unready(reason)
        self._failed = True
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True


def _metrics() -> Metrics:
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return Metrics(registry)


def build_engine(model: str, config: ServeConfig) -> Engine:
    """The vLLM servers of `serve.engine_urls`, or vLLM in this process.

    Raises:
        CannotStart: vLLM is to run here and isn't installed.
    """
    if config.engine_urls:
        from serve.engines.vllm_http import VllmHttpEngine

        return VllmHttpEngine(config.engine_urls, config, api_key=os.environ.get("HUSTINGS_ENGINE_KEY"))
    try:
        from serve.engines.vllm_inprocess import VllmEngine
    except ImportError as error:
        raise CannotStart(f"vLLM can't be imported ({error}); run `make setup`") from error
    return VllmEngine(model, config)


def freeze_heap() -> None:
    """Take what lives now, some million objects of vLLM's and torch's, out of later garbage collections.

    Each full collection would look at all of them while every stream stands still. vLLM's own server does the same.
    """
    gc.collect()
    gc.freeze()


def model_name(model: str) -> str:
    """A model's name without its place on this machine."""
    return Path(model).resolve().name if os.path.isdir(model) else model  # noqa: PTH112
