"""`hustings releases`: look at the adapters on their way into office, and move them."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import typer

from deploy import presence
from deploy.config import HustingsConfig, load
from deploy.errors import NotReachable
from deploy.launch import serve_url
from deploy.options import ConfigFile, DataDir

app = typer.Typer(help="List, promote, reject and roll back adapters.", no_args_is_help=True)
Url = Annotated[str | None, typer.Option("--url", metavar="URL", help="Serving; found by itself beside `up`.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="An adapter, such as policy-000003.")]


@app.command("list")
def list_releases(data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Every adapter and where it stands. Reads the ledger, so serving need not run.

    Example: hustings releases list
    """
    resolved = load(config, (), {"data_dir": data_dir})
    from feedback.ledger import Ledger

    ledger = Ledger.open(resolved.feedback.ledger_url or resolved.paths.ledger_url)
    try:
        releases, office = ledger.releases(), ledger.office()
    finally:
        ledger.close()
    typer.echo(f"in office: {office or 'base (no adapter)'}")
    for release in releases:
        when = f"{release.updated_at:%Y-%m-%d %H:%M:%S}"
        typer.echo(f"{release.name:<16} {release.state.value:<10} {when}  {release.actor:<10} {release.reason}")


@app.command()
def promote(name: Name, url: Url = None, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Put an adapter into office.

    Example: hustings releases promote policy-000003
    """
    _post(load(config, (), {"data_dir": data_dir}), url, f"/v1/releases/{name}/promote")


@app.command()
def reject(name: Name, url: Url = None, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Take an adapter out of the race.

    Example: hustings releases reject policy-000003
    """
    _post(load(config, (), {"data_dir": data_dir}), url, f"/v1/releases/{name}/reject")


@app.command()
def rollback(url: Url = None, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Put the previous office-holder back (or the base, when there was none).

    Example: hustings releases rollback
    """
    _post(load(config, (), {"data_dir": data_dir}), url, "/v1/releases/rollback")


def _post(config: HustingsConfig, url: str | None, path: str) -> None:
    from deploy.up import make_secrets

    running = presence.read(config.paths)
    base = url or (running.serve_url if running else serve_url(config))
    token = make_secrets(config)[1]
    try:
        answer = httpx.post(f"{base}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=120, trust_env=False)
    except httpx.HTTPError as error:
        raise NotReachable(
            f"serving does not answer at {base} ({error}); is `hustings up` running? --url names another"
        ) from error
    if answer.is_error:
        raise NotReachable(f"serving refused ({answer.status_code}): {_detail(answer)}")
    typer.echo(_told(answer.json()))


def _detail(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return answer.text[:200]
    return str(body.get("detail") or body.get("title") or body) if isinstance(body, dict) else str(body)


def _told(body: Any) -> str:
    if isinstance(body, dict):
        return "  ".join(f"{key}: {value}" for key, value in body.items() if not isinstance(value, dict | list))
    return str(body)
