"""The real app on the fake engine and a real ledger, behind a real server on a free port of 127.0.0.1."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from feedback.contracts import ReleaseChanged, ReleaseState
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from serve.app import ServeDeps, create_app
from serve.config import ContendersConfig, ServeConfig
from tests.browser.samples import answer
from tests.fakes.engine import FakeEngine

TOKEN = "the-operator-of-the-tests"
ADAPTER = "policy-000002"


@dataclass
class Site:
    """A running site.

    Attributes:
        url: its address, with a slash at the end.
        engine: to be steered through `on_loop`, for it lives on the server's thread.
    """

    url: str
    engine: FakeEngine
    deps: ServeDeps
    loop: asyncio.AbstractEventLoop
    stopped: threading.Event = field(default_factory=threading.Event)

    def on_loop(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call this on the server's event loop and wait for it."""

        async def run() -> Any:
            return call(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def hold(self) -> None:
        """No token leaves the engine any more, until `let_go`."""
        self.on_loop(self.engine.gate.clear)

    def let_go(self) -> None:
        """Tokens leave again."""
        self.on_loop(self.engine.gate.set)

    def votes(self) -> int:
        """Votes in the ledger."""
        return self.deps.ledger.counts().votes


@contextmanager
def serving(folder: Path, *, anchor: bool = True, token_delay_s: float = 0.0, **config: Any) -> Iterator[Site]:
    """Serve until the block ends. With `anchor`, every pair is the adapter in office against the base.

    Args:
        config: more of `[serve]`.
    """
    paths = DataPaths(folder)
    paths.create()
    ledger = Ledger.open(paths.ledger_url)
    engine = FakeEngine(answer=answer, adapters=[ADAPTER], max_model_len=1_000_000, token_delay_s=token_delay_s)
    deps = ServeDeps(
        config=ServeConfig(
            default_max_tokens=4000, contenders=ContendersConfig(anchor_share=1.0 if anchor else 0.0), **config
        ),
        paths=paths,
        engine=engine,
        ledger=ledger,
        secret="the-secret-of-the-tests",
        operator_token=TOKEN,
        base_model="fake",
        base_fingerprint=lambda: "f" * 64,
        rng=random.Random(7),
    )
    if anchor:
        came = ReleaseChanged(name=ADAPTER, before=None, after=ReleaseState.IN_OFFICE, reason="verified", actor="auto")
        ledger.record_release(came)
    deps.office.switch(ADAPTER if anchor else None)
    deps.readiness.set_ready()
    server = uvicorn.Server(uvicorn.Config(create_app(deps), port=0, log_level="warning", ws="none", lifespan="off"))
    site: list[Site] = []
    up = threading.Event()

    async def run() -> None:
        await engine.start()
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            port = server.servers[0].sockets[0].getsockname()[1]
            site.append(Site(f"http://127.0.0.1:{port}/", engine, deps, asyncio.get_running_loop()))
        up.set()
        await task
        await engine.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="site")
    thread.start()
    try:
        up.wait(30)
        yield site[0]
    finally:
        if site:
            site[0].let_go()
        server.should_exit = True
        server.force_exit = True
        thread.join(30)
        ledger.close()
