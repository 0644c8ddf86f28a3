"""`hustings forget`, `lineage` and `import`: what becomes of people's data, and where an adapter comes from."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deploy.beside import load_beside
from deploy.config import HustingsConfig, load
from deploy.errors import ConfigError, NobodyThere
from deploy.ledgers import open_ledger
from deploy.options import ConfigFile, DataDir, Overrides
from feedback.identity import PSEUDONYM_PATTERN

if TYPE_CHECKING:
    from feedback.dataset import Dataset
    from feedback.ledger import Ledger

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LONGEST_LABEL = 40
"""Letters of an import's name in ids."""


def forget(
    voter: Annotated[str, typer.Argument(metavar="VOTER", help="A pseudonym (v_…), or the id of a pair or a vote.")],
    *,
    token: Annotated[bool, typer.Option("--token", help="VOTER is the voter's own token (their cookie).")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Forget a voter: their chats, pairs and votes go from the ledger, the dataset and every later snapshot.

    Snapshots that held them lose their tables. Adapters that were trained on them are listed, with the command that
    trains one without them; `hustings lineage ADAPTER` proves of any adapter whom it still remembers.

    Exit status 0 where they were forgotten, now or before; 1 where nothing is known of VOTER (a wrong pseudonym?).

    Examples:

        hustings forget v_0123456789abcdef01234567

        hustings forget vote_6f0c…
    """
    resolved = load(config, overrides or (), {"data_dir": data_dir})
    with _opened(resolved) as (ledger, dataset):
        pseudonym = _pseudonym(resolved, ledger, voter, token=token)
        if not yes and not typer.confirm(f"Forget {pseudonym} for good?"):
            raise typer.Exit(1)
        from feedback.forgetting import Outcome
        from feedback.forgetting import forget as forget_everywhere

        report = forget_everywhere(ledger, dataset, resolved.paths.adapters, pseudonym)
    known = report.outcome is not Outcome.UNKNOWN
    if known and not as_json:
        typer.echo(report.verdict())
    if known or as_json:
        _tell(asdict(report), as_json=as_json)
    if not known:
        raise NobodyThere(report.verdict())


def lineage(
    wanted: Annotated[str, typer.Argument(metavar="ID", help="An adapter, snapshot, pair, vote or forgotten voter.")],
    *,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Where something comes from and where it went: answer, adapter, reward model, snapshot, votes, and back.

    Examples:

        hustings lineage policy-000002

        hustings lineage vote_6f0c…
    """
    resolved = load(config, overrides or (), {"data_dir": data_dir})
    from feedback.lineage import Lineage, UnknownId

    with _opened(resolved) as (ledger, dataset):
        try:
            told = Lineage(ledger, dataset, resolved.paths.adapters).told(wanted)
        except UnknownId as error:
            raise ConfigError(str(error)) from error
    _tell(told, as_json=as_json)


class ImportKind(StrEnum):
    """What `import` can read."""

    PREFERENCES = "preferences"
    PROMPTS = "prompts"


_KINDS: dict[ImportKind, Literal["preferences", "prompts"]] = {
    ImportKind.PREFERENCES: "preferences",
    ImportKind.PROMPTS: "prompts",
}


def import_(
    file: Annotated[Path | None, typer.Argument(help="A .jsonl or .parquet file.")] = None,
    *,
    kind: Annotated[ImportKind, typer.Option(help="What the rows are.")] = ImportKind.PREFERENCES,
    name: Annotated[str | None, typer.Option(help="Of the data set; by default the file's.")] = None,
    prompt: Annotated[str, typer.Option(help="The column of the prompt.")] = "prompt",
    chosen: Annotated[str, typer.Option(help="The column of the better answer.")] = "chosen",
    rejected: Annotated[str, typer.Option(help="The column of the other answer.")] = "rejected",
    undo: Annotated[str | None, typer.Option(metavar="NAME", help="Take an import back, by its name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before taking back.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Start warm: read preferences (prompt, chosen, rejected; plain or conversational) or prompts into the dataset.

    They count in training as votes do, and nowhere else: not for releases, not on the leaderboard. Importing a file
    twice adds nothing. `--undo NAME` takes an import out of the dataset and of every later snapshot; snapshots that
    held it lose their tables, and the adapters trained on it are listed.

    Examples:

        hustings import preferences.jsonl

        hustings import questions.parquet --kind prompts --prompt question

        hustings import --undo preferences
    """
    resolved = load_beside(config, overrides or (), {"data_dir": data_dir}, "privacy")
    if (file is None) == (undo is None):
        raise ConfigError("hustings import: name a FILE to import, or an import to take back with --undo NAME")
    if file is None:
        if not yes and not typer.confirm(f"Take the import {undo} back for good?"):
            raise typer.Exit(1)
        _take_back(resolved, undo or "", as_json=as_json)
        return
    from feedback.dataset import Dataset
    from feedback.dataset.importing import Columns, import_file
    from feedback.privacy import Redactor

    label = _label(name or file.name.split(".")[0])
    done = import_file(
        Dataset(resolved.paths.dataset),
        file,
        _KINDS[kind],
        name=label,
        columns=Columns(prompt, chosen, rejected),
        redactor=Redactor(resolved.feedback.privacy),
    )
    same = f"; {done.same} left out, whose two answers are the same" if done.same else ""
    typer.echo(f"{done.read} rows read, {done.new} of them new{same}; --undo {label} takes them back")


def _label(name: str) -> str:
    """What an import is called in ids, of letters that ids may hold; names that differ in other letters stay apart."""
    label = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    if len(label) <= LONGEST_LABEL and name.isascii() and label.strip("-"):
        return label
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{label[: LONGEST_LABEL - 9]}-{digest}".lstrip("-")


def _take_back(config: HustingsConfig, name: str, *, as_json: bool) -> None:
    from feedback.forgetting import UnknownImport, take_back

    with _opened(config) as (ledger, dataset):
        try:
            _tell(asdict(take_back(ledger, dataset, config.paths.adapters, name)), as_json=as_json)
        except UnknownImport as error:
            raise ConfigError(str(error)) from error


@contextmanager
def _opened(config: HustingsConfig) -> Iterator[tuple[Ledger, Dataset]]:
    from feedback.dataset import Dataset

    ledger = open_ledger(config)
    try:
        yield ledger, Dataset(config.paths.dataset)
    finally:
        ledger.close()


def _pseudonym(config: HustingsConfig, ledger: Ledger, voter: str, *, token: bool) -> str:
    if token:
        from feedback.identity import load_or_make_secret, pseudonym

        key = config.paths.secrets / "voter_key"
        if "HUSTINGS_SECRET" not in os.environ and not key.exists():  # one that is made now is nobody's
            raise ConfigError(f"the voters' key is not in {key}: set HUSTINGS_SECRET as serving has it")
        return pseudonym(load_or_make_secret(key, "HUSTINGS_SECRET"), voter)
    if re.fullmatch(PSEUDONYM_PATTERN, voter):
        return voter
    found = ledger.pair(voter) or ledger.vote_of_id(voter)
    if found is None:
        raise ConfigError(
            f"{voter!r} is no pair or vote here, and no pseudonym (v_…); --token takes the voter's own token"
        )
    return found.voter


def _tell(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=1, default=str))
        return
    for line in _lines(facts, ""):
        typer.echo(line)


def _lines(facts: Any, margin: str) -> Iterator[str]:
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield f"{margin}{key}:"
            yield from _lines(value, margin + "  ")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            for one in value:
                yield f"{margin}{key}:"
                yield from _lines(one, margin + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple | dict) else value
            yield f"{margin}{key}: {'none' if shown in (None, '') else shown}"
