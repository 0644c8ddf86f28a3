"""`hustings simulate`."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import typer
from pydantic import ValidationError

from deploy import presence
from deploy.config import load
from deploy.errors import ConfigError
from deploy.launch import serve_url
from deploy.options import ConfigFile, DataDir, Overrides


def simulate(
    *,
    votes: Annotated[int | None, typer.Option(metavar="N", help="Votes to cast.")] = None,
    n: Annotated[int | None, typer.Option(metavar="N", help="Answers to each question: 3 or 4 are ranked.")] = None,
    utility: Annotated[str | None, typer.Option(metavar="NAME", help="The hidden taste, e.g. warm_words.")] = None,
    decisive: Annotated[bool, typer.Option("--decisive", help="Count only votes that name a winner.")] = False,
    voters: Annotated[int | None, typer.Option(metavar="N", help="How many people.")] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="N", help="How many chat at the same time.")] = None,
    reviews: Annotated[float | None, typer.Option(metavar="P", help="Share of votes on prepared pairs.")] = None,
    noise: Annotated[float | None, typer.Option(metavar="P", help="Share of votes for the worse answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer.")] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Topics: train or held_out.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Decides prompts, people and their errors.")] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Serving; found by itself beside `up`.")] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Let simulated people with a hidden taste chat and vote, over HTTP like everybody else.

    Examples:

        hustings simulate --votes 64

        hustings simulate --votes 128 --decisive --utility short_first_sentence --noise 0.15

        hustings simulate --votes 64 --n 3
    """
    from feedback.simulator import SimulateConfig, run

    given: dict[str, Any] = {
        "votes": votes,
        "n": n,
        "utility": utility,
        "decisive": decisive,
        "voters": voters,
        "concurrency": concurrency,
        "reviews": reviews,
        "noise": noise,
        "max_tokens": max_tokens,
        "split": split,
        "seed": seed,
    }
    resolved = load(config, overrides or (), {"data_dir": data_dir})
    running = presence.read(resolved.paths)
    given["url"] = url or (running.serve_url if running else serve_url(resolved))
    try:
        wanted = SimulateConfig(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ConfigError(f"--{str(fault['loc'][0]).replace('_', '-')}: {fault['msg']}") from error
    _say_if_away(wanted.url, wanted.patience_s)
    report = run(wanted)
    agreement = "-" if report.agreement is None else f"{report.agreement:.2f}"
    typer.echo(
        f"{report.votes} votes in {report.seconds:.0f} s ({report.votes_per_minute:.1f} a minute): {report.decisive} "
        f"name a winner, {report.ties} ties, {report.both_bad} both bad; agreement with the hidden taste {agreement}; "
        f"{report.errors} errors, {report.retries} retries"
    )
    if not report.reached:
        raise typer.Exit(1)


def _say_if_away(url: str, patience_s: float) -> None:
    """The simulated people wait for serving without a word; the person who started them is told what for."""
    try:
        ready = httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        ready = False
    if not ready:
        typer.echo(
            f"serving isn't ready at {url}; waiting {patience_s:.0f} s for it (`hustings up` starts it)", err=True
        )
