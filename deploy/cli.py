"""The `hustings` command. Heavy parts are imported inside their verb, so that `--help` answers at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.beside import load_beside
from deploy.checkpoints import app as checkpoints_app
from deploy.config import HustingsConfig, for_show, load, to_toml
from deploy.data import forget, import_, lineage
from deploy.errors import ConfigError, DeployError, ModelError
from deploy.kafka import require_kafka, with_kafka
from deploy.ledgers import open_ledger
from deploy.options import ConfigFile, DataDir, Kafka, Model, Overrides, serving_flags
from deploy.releases import app as releases_app
from deploy.simulating import simulate

app = typer.Typer(
    name="hustings",
    help="""Serve a chat model, let people vote on paired answers, and retrain it on their votes while it serves.

    Start with `hustings up`, open the page that it names, chat and vote. Every 64 votes that name a winner, a training
    cycle runs and its adapter goes into service while the old one still answers.

    Every verb that reads the configuration takes `--config FILE` and `--set key=value`; `hustings config --explain`
    lists all keys.
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class ReplaySource(StrEnum):
    """What `replay` can read."""

    LEDGER = "ledger"
    DATASET = "dataset"


class ExportFormat(StrEnum):
    """What `export` can write."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    HF = "hf"


_FORMATS: dict[ExportFormat, Literal["parquet", "jsonl", "hf"]] = {
    ExportFormat.PARQUET: "parquet",
    ExportFormat.JSONL: "jsonl",
    ExportFormat.HF: "hf",
}


@app.command()
@serving_flags
def up(config: HustingsConfig) -> None:
    """Run everything on this machine: broker, serving, curator and trainer, until Ctrl-C.

    Examples:

        hustings up

        hustings up --port 8001 --data-dir /srv/hustings

        hustings up --model Qwen/Qwen3-0.6B --kafka kafka-1:9092,kafka-2:9092

        hustings up --set train.schedule.new_comparisons=32 --set serve.max_model_len=4096
    """
    from deploy import up as everything

    everything.run(config)


@app.command()
@serving_flags
def serve(config: HustingsConfig) -> None:
    """Run serving alone: the chat API, the pages, the engine, the relay of votes to Kafka.

    Example: hustings serve --kafka kafka-1:9092 --set feedback.ledger_url=postgresql+psycopg://hustings@db/hustings
    """
    _prepare("serve", config)
    from deploy.default_model import resolve
    from serve.main import run

    config = with_kafka(config)
    bootstrap = require_kafka(config)
    raise typer.Exit(run(config.serve, config.feedback, config.paths, resolve(config), bootstrap))


@app.command()
def curate(
    data_dir: DataDir = None, kafka: Kafka = None, config: ConfigFile = None, overrides: Overrides = None
) -> None:
    """Run the curator alone: votes from Kafka into the preference dataset. Several share the work.

    Example: hustings curate --kafka kafka-1:9092 --data-dir /srv/hustings
    """
    loaded = load(config, overrides or (), {"data_dir": data_dir, "feedback.kafka": kafka})
    resolved = with_kafka(_prepare("curate", loaded))
    from feedback.curator import main as run

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        # In a thread: setting an event inside a handler can wait for ever on the lock that the interrupted wait holds.
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
    run(resolved.feedback, resolved.paths, require_kafka(resolved), stop)


@app.command()
def train(
    *,
    once: Annotated[bool, typer.Option("--once", help="Run one cycle now and end.")] = False,
    serve_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Serving, for rollouts; found by itself beside a running `up`.")
    ] = None,
    data_dir: DataDir = None,
    model: Model = None,
    kafka: Kafka = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Run the trainer alone: watch for new votes and start a cycle when there are enough.

    Examples:

        hustings train --once

        hustings train --kafka kafka-1:9092 --set train.schedule.max_hours=6

        hustings train --once --set train.processes=4 (one a GPU, on this machine)

        torchrun --nnodes 2 --nproc-per-node 8 ... -m deploy train --once (several machines, one data folder)

        hustings train --once --set train.tuning=full (all weights; see `hustings checkpoints --help`)
    """
    direct: dict[str, object] = {"data_dir": data_dir, "model": model, "feedback.kafka": kafka}
    resolved = with_kafka(_prepare("train", load(config, overrides or (), direct)))
    from deploy import presence
    from deploy.default_model import resolve
    from deploy.up import make_secrets
    from train.main import run

    running = presence.read(resolved.paths)
    status = run(
        resolved.train,
        resolved.feedback,
        resolved.paths,
        resolve(resolved),
        resolved.feedback.kafka,
        once,
        serve_url or (running.serve_url if running else None),
        make_secrets(resolved)[1],
    )
    raise typer.Exit(status)


app.command()(simulate)
app.command()(forget)
app.command()(lineage)
app.command("import")(import_)
app.add_typer(releases_app, name="releases")
app.add_typer(checkpoints_app, name="checkpoints")


@app.command()
def export(
    *,
    dest: Annotated[Path, typer.Argument(help="File (parquet, jsonl) or folder (hf) to write.")],
    file_format: Annotated[ExportFormat, typer.Option("--format", help="What to write.")] = ExportFormat.PARQUET,
    snapshot: Annotated[str | None, typer.Option(metavar="ID", help="A snapshot; by default one made now.")] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Write the votes as a preference dataset that TRL and Hugging Face `datasets` read (prompt, chosen, rejected).

    Examples:

        hustings export votes.parquet

        hustings export votes.jsonl --format jsonl
    """
    resolved = load_beside(config, overrides or (), {"data_dir": data_dir}, "voters")
    from feedback.dataset import Dataset
    from feedback.voters import weigher

    dataset = Dataset(resolved.paths.dataset, weigher(resolved.feedback.voters))
    loaded = dataset.load_snapshot(snapshot or dataset.build_snapshot().id)
    dataset.export(loaded, dest, format=_FORMATS[file_format])
    typer.echo(f"{loaded.rows('preferences')} comparisons of snapshot {loaded.manifest.id} are in {dest}")


@app.command()
def replay(
    *,
    source: Annotated[ReplaySource, typer.Option("--from", help="The record to read.")] = ReplaySource.LEDGER,
    topic: Annotated[
        list[str] | None, typer.Option(help="Only this one, such as hustings.votes; repeatable. By default all.")
    ] = None,
    data_dir: DataDir = None,
    kafka: Kafka = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Send the record to Kafka again, in the bytes it first had: for a topic that was lost, or a new reader.

    Readers drop by id what they have already, so a replay doubles nothing.

    Examples:

        hustings replay --topic hustings.votes

        hustings replay --from dataset --kafka kafka-1:9092
    """
    resolved = with_kafka(load(config, overrides or (), {"data_dir": data_dir, "feedback.kafka": kafka}))
    from feedback.dataset import Dataset
    from feedback.kafka_log import KafkaEventLog
    from feedback.replay import LEDGER_TOPICS, replay_dataset, replay_ledger

    log = KafkaEventLog.configured(require_kafka(resolved), resolved.feedback)
    if source is ReplaySource.DATASET:
        if topic:
            raise ConfigError("--topic goes with --from ledger; the dataset's pairs and votes are sent whole")
        sent = replay_dataset(Dataset(resolved.paths.dataset), log)
    else:
        ledger = open_ledger(resolved)
        try:
            sent = replay_ledger(ledger, log, tuple(topic or LEDGER_TOPICS))
        finally:
            ledger.close()
    typer.echo("sent again: " + (", ".join(f"{count} to {name}" for name, count in sent.items()) or "nothing"))


@app.command()
def doctor(data_dir: DataDir = None, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Check this machine and this installation: one line each, with the remedy where something is wrong."""
    from deploy.doctor import examine

    raise typer.Exit(examine(load(config, overrides or (), {"data_dir": data_dir})))


@app.command("config")
def show_config(
    explain: Annotated[bool, typer.Option("--explain", help="Say above each key what it means.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Print the resolved configuration in the form of hustings.toml; a password in an address is shown as ***.

    Example: hustings config --explain > hustings.toml
    """
    typer.echo(to_toml(for_show(load(config, overrides or ())), explain=explain), nl=False)


def main() -> None:
    """Entry point of `hustings`: one line for what can go wrong, a traceback only for a fault of ours."""
    try:
        app(prog_name="hustings")
    except (KeyboardInterrupt, BrokenPipeError):
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get("HUSTINGS_DEBUG") or not _expected(error):
            raise
        sys.stderr.write(f"hustings: {error}\n")
        raise SystemExit(2 if isinstance(error, ConfigError | ModelError) else 1) from None


def _expected(error: Exception) -> bool:
    """Whether its message is for a person: the packages' own exception trees, and a full disk."""
    import errno

    from feedback.event_log import EventLogError
    from feedback.identity import SecretError
    from feedback.ledger import LedgerError

    roots: list[type[Exception]] = [DeployError, EventLogError, SecretError, LedgerError]
    # Only trees whose module was imported can have raised.
    for module, name in (
        ("train.errors", "TrainError"),
        ("serve.engines.base", "EngineError"),
        ("serve.errors", "ServeError"),
        ("feedback.dataset.errors", "DatasetError"),
        ("feedback.curator", "CuratorError"),
        ("feedback.replay", "ReplayError"),
        ("feedback.simulator.client", "SimulateError"),
        ("feedback.simulator.utilities", "UnknownUtility"),
    ):
        root = getattr(sys.modules.get(module), name, None)
        if root is not None:
            roots.append(root)
    return isinstance(error, tuple(roots)) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS)
    )


def _prepare(process: str, config: HustingsConfig) -> HustingsConfig:
    from feedback.logs import configure

    configure(process, level=config.serve.log_level)
    try:
        config.paths.create()
    except OSError as error:
        raise ConfigError(f"the data folder {config.data_dir} can't be made: {error.strerror or error}") from error
    return config
