"""`hustings checkpoints`: whole models that full fine-tuning has published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.config import load
from deploy.options import ConfigFile, DataDir, Overrides

app = typer.Typer(
    help="""List and verify whole models, published by a trainer with `train.tuning = "full"`.

    Serving swaps adapters under live requests, never its base. To put a checkpoint into service: verify it, then
    start serving anew with it: `hustings up --model FOLDER` (or `model = "FOLDER"` in hustings.toml). Back again:
    start it with the old model. Adapters of the old base stay with the old base.
    """,
    no_args_is_help=True,
)


@app.command("list")
def list_checkpoints(data_dir: DataDir = None, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Every checkpoint, oldest first, with its figures and its folder.

    Example: hustings checkpoints list
    """
    from feedback.contracts import CheckpointManifest, ContractError
    from train.full_publish import checkpoints
    from train.publish import MANIFEST

    folders = checkpoints(load(config, overrides or (), {"data_dir": data_dir}).paths.checkpoints)
    for folder in folders:
        try:
            manifest = CheckpointManifest.from_bytes((folder / MANIFEST).read_bytes())
        except (OSError, ContractError) as error:
            typer.echo(f"{folder.name}  its {MANIFEST} can't be read: {error}")
            continue
        reward, kl = manifest.metrics.get("policy_reward", 0.0), manifest.metrics.get("policy_kl", 0.0)
        made = f"{manifest.created_at:%Y-%m-%d %H:%M:%S}"
        typer.echo(f"{manifest.name}  {made}  reward {reward:+.2f}  KL {kl:.1f}  of {manifest.base_model}  {folder}")
    if not folders:
        typer.echo("none yet: train with --set train.tuning=full")


@app.command()
def verify(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint's folder.")]) -> None:
    """Compare every file with the manifest's digests; says how to serve it. Exit status 1 where anything differs.

    Example: hustings checkpoints verify ~/.local/share/hustings/checkpoints/full-000001
    """
    from train.full_publish import verify as verified

    manifest = verified(folder)
    typer.echo(f"{manifest.name}: {len(manifest.files)} files are as published (weights {manifest.dtype})")
    typer.echo(f"serve it with: hustings up --model {folder.absolute()}")
