"""`hustings releases`: look at the adapters on their way into office, and move them."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer

from deploy import presence
from deploy.config import HustingsConfig, load
from deploy.errors import NotReachable
from deploy.launch import serve_url
from deploy.ledgers import gate, open_ledger
from deploy.options import ConfigFile, DataDir, Overrides

if TYPE_CHECKING:
    from feedback.contracts import ReleaseChanged

app = typer.Typer(
    help="Adapters on their way into office: list, history, promote, reject, rollback, pause, resume.\n\n"
    "What takes them there by itself is serve.releases.gate: probes (at once, the default), votes, or operator.",
    no_args_is_help=True,
)
Url = Annotated[str | None, typer.Option("--url", metavar="URL", help="Serving; found by itself beside `up`.")]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Why; kept in the audit trail.")]
By = Annotated[str | None, typer.Option(metavar="WHO", help="Who does it; by default your login name.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="An adapter, such as policy-000003.")]


@app.command("list")
def list_releases(data_dir: DataDir = None, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Every adapter and where it stands. Reads the ledger, so serving need not run.

    Example: hustings releases list
    """
    resolved = load(config, overrides or (), {"data_dir": data_dir})
    ledger = open_ledger(resolved)
    try:
        releases, office, pauses = ledger.releases(), ledger.office(), ledger.gate_history()
    finally:
        ledger.close()
    paused = f", paused by {pauses[-1].actor}: {pauses[-1].reason}" if pauses and pauses[-1].paused else ""
    typer.echo(f"in office: {office or 'base (no adapter)'}; gate: {gate(resolved)}{paused}")
    for release in releases:
        when = f"{release.updated_at:%Y-%m-%d %H:%M:%S}"
        but = f" (its manifest can't be read: {release.unreadable})" if release.unreadable else ""
        typer.echo(f"{release.name:<16} {release.state.value:<10} {when}  {release.actor:<10} {release.reason}{but}")


@app.command()
def history(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One adapter; by default all, and pauses.")
    ] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """The audit trail: who changed what, when, why and on which figures. Reads the ledger, so serving need not run.

    Example: hustings releases history policy-000003
    """
    resolved = load(config, overrides or (), {"data_dir": data_dir})
    ledger = open_ledger(resolved)
    try:
        changes, pauses = ledger.release_history(name), ledger.gate_history() if name is None else []
    finally:
        ledger.close()
    rows = [
        (change.changed_at, change.name, f"{change.before or '-'} to {change.after}", change.actor, _why(change))
        for change in changes
    ]
    rows += [(p.changed_at, "releases", "paused" if p.paused else "resumed", p.actor, p.reason) for p in pauses]
    for when, subject, what, actor, why in sorted(rows, key=lambda row: row[0]):
        typer.echo(f"{when:%Y-%m-%d %H:%M:%S}  {subject:<16} {what:<24} {actor:<10} {why}")


@app.command()
def promote(
    *,
    name: Name,
    reason: Reason = None,
    by: By = None,
    url: Url = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Put an adapter into office, whatever the voters have said so far. It is verified and probed again first.

    Example: hustings releases promote policy-000003 --reason "reads well"
    """
    _post(load(config, overrides or (), {"data_dir": data_dir}), url, f"/v1/releases/{name}/promote", reason, by)


@app.command()
def reject(
    *,
    name: Name,
    reason: Reason = None,
    by: By = None,
    url: Url = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Take an adapter out of the race for good; if it is in office, the one before takes over.

    Example: hustings releases reject policy-000003 --reason "rambles"
    """
    _post(load(config, overrides or (), {"data_dir": data_dir}), url, f"/v1/releases/{name}/reject", reason, by)


@app.command()
def rollback(
    *,
    reason: Reason = None,
    by: By = None,
    url: Url = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Put the previous office-holder back (or the base, when there was none).

    Example: hustings releases rollback
    """
    _post(load(config, overrides or (), {"data_dir": data_dir}), url, "/v1/releases/rollback", reason, by)


@app.command()
def pause(
    *,
    reason: Reason = None,
    by: By = None,
    url: Url = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Let no adapter into canary or office by itself until `resume`. Your own commands and the alarm still act.

    Example: hustings releases pause --reason "a wave of odd votes"
    """
    _post(load(config, overrides or (), {"data_dir": data_dir}), url, "/v1/releases/pause", reason, by)


@app.command()
def resume(
    *,
    reason: Reason = None,
    by: By = None,
    url: Url = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """End a pause: a canary that waited goes on with the votes that it has.

    Example: hustings releases resume
    """
    _post(load(config, overrides or (), {"data_dir": data_dir}), url, "/v1/releases/resume", reason, by)


def _why(change: ReleaseChanged) -> str:
    figures = change.figures
    if "win_rate" not in figures:
        return change.reason
    return (
        f"{change.reason} (win rate {figures['win_rate']:.3f} in [{figures['lower']:.3f}, {figures['upper']:.3f}],"
        f" {figures['votes']:.0f} votes)"
    )


def _post(config: HustingsConfig, url: str | None, path: str, reason: str | None, by: str | None) -> None:
    from deploy.up import make_secrets

    running = presence.read(config.paths)
    base = url or (running.serve_url if running else serve_url(config))
    headers = {"Authorization": f"Bearer {make_secrets(config)[1]}"}
    why = {key: value for key, value in (("reason", reason), ("by", by or _login())) if value}
    try:
        answer = httpx.post(f"{base}{path}", headers=headers, json=why, timeout=120, trust_env=False)
    except httpx.HTTPError as error:
        raise NotReachable(
            f"serving does not answer at {base} ({error}); is `hustings up` running? --url names another"
        ) from error
    if answer.is_error:
        raise NotReachable(f"serving refused ({answer.status_code}): {_detail(answer)}")
    typer.echo(_told(answer.json()))


def _login() -> str | None:
    """The name on this machine, for the audit trail; None where it has none."""
    try:
        return getpass.getuser()[:64]
    except (OSError, KeyError):
        return None


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
