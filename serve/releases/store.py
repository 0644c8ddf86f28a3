"""The folder of published adapters, and what a folder must be before its weights are touched."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from feedback.contracts import ADAPTER_NAME_PATTERN, AdapterManifest
from serve.releases.errors import Unsuited, VerificationFailed

MANIFEST = "manifest.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ALLOWED_SUFFIXES = frozenset({".safetensors", ".json", ".jsonl", ".toml", ".md", ".txt", ".html"})
"""Anything else (pickles above all) could run code where somebody loads it."""
MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """An adapter whose files are what its manifest says."""

    name: str
    path: Path
    manifest: AdapterManifest


class AdapterStore:
    """Published adapters below one folder; names, never paths, come from outside."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """Adapters that are there, the oldest first."""
        if not self._root.is_dir():
            return []
        return sorted(
            entry.name
            for entry in self._root.iterdir()
            if entry.is_dir() and re.match(ADAPTER_NAME_PATTERN, entry.name)
        )

    def verify(self, name: str, *, manifest_sha256: str | None, base_fingerprint: str, max_rank: int) -> StoredAdapter:
        """Check everything that can be checked without the engine.

        Args:
            manifest_sha256: as announced; None where the folder was found, not announced.

        Raises:
            VerificationFailed: the message says what is wrong.
            Unsuited: nothing is known to be wrong with it, but it doesn't fit here, or this process can't read it.
        """
        try:
            return self._verified(name, manifest_sha256, base_fingerprint, max_rank)
        except FileNotFoundError as error:
            raise VerificationFailed(f"{name} changed while it was read: {error.filename} is gone") from error
        except OSError as error:
            raise Unsuited(f"{error.filename or name} can't be read: {error.strerror or error}") from error

    def _verified(self, name: str, manifest_sha256: str | None, base_fingerprint: str, max_rank: int) -> StoredAdapter:
        folder = self._folder(name)
        manifest = _manifest(folder, manifest_sha256)
        if manifest.name != name:
            raise VerificationFailed(f"the manifest in {name} is of {manifest.name}")
        if manifest.base_fingerprint != base_fingerprint:
            raise Unsuited(
                f"{name} was trained on another base ({manifest.base_model}); serve that one, or train on this one"
            )
        if manifest.lora_rank > max_rank:
            raise Unsuited(f"{name} has rank {manifest.lora_rank}, serving takes {max_rank}; raise serve.max_lora_rank")
        _check_files(folder, manifest)
        _check_weights(folder / WEIGHTS)
        _check_rank(folder / CONFIG, manifest.lora_rank)
        return StoredAdapter(name, folder, manifest)

    def _folder(self, name: str) -> Path:
        if re.match(ADAPTER_NAME_PATTERN, name) is None:
            raise VerificationFailed("an adapter's name is policy- and six digits")
        folder = self._root / name
        if folder.is_symlink() or not folder.is_dir():
            raise Unsuited(f"there is no adapter folder {name}")
        return folder


def _manifest(folder: Path, expected_sha256: str | None) -> AdapterManifest:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise VerificationFailed(f"the manifest of {folder.name} is larger than {MAX_MANIFEST_BYTES} bytes")
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise VerificationFailed(f"{folder.name} has no readable {MANIFEST}: {error.strerror}") from error
    if expected_sha256 is not None and hashlib.sha256(raw).hexdigest() != expected_sha256:
        raise VerificationFailed(f"the manifest of {folder.name} is not the one that was announced (sha256 differs)")
    try:
        manifest = AdapterManifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise VerificationFailed(f"the manifest of {folder.name} is not valid: {where}: {first['msg']}") from error
    # The ledger's copy, JSON, has no word for NaN: it could never be read again, and the canary never be judged.
    odd = next((name for name, figure in manifest.metrics.items() if not math.isfinite(figure)), None)
    if odd is not None:
        raise VerificationFailed(f"the manifest of {folder.name} is not valid: metrics.{odd} is no finite number")
    return manifest


def _check_files(folder: Path, manifest: AdapterManifest) -> None:
    for needed in (CONFIG, WEIGHTS):
        if needed not in manifest.files:
            raise VerificationFailed(f"the manifest of {folder.name} doesn't list {needed}")
    present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    if present != set(manifest.files):
        odd = ", ".join(sorted(present ^ set(manifest.files))[:3])
        raise VerificationFailed(f"{folder.name} holds other files than its manifest lists: {odd}")
    for name, digest in manifest.files.items():
        path = folder / name
        if path.suffix not in ALLOWED_SUFFIXES:
            raise VerificationFailed(f"{folder.name}/{name}: files of this kind are not taken, weights are safetensors")
        if path.is_symlink() or not path.is_file():
            raise VerificationFailed(f"{folder.name}/{name} is no plain file")
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != digest:
            raise VerificationFailed(f"{folder.name}/{name} is damaged or was changed (sha256 differs)")


def _check_weights(path: Path) -> None:
    """The file is safetensors: eight bytes of length, so much JSON, then the tensors that it describes."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= size - 8:
            raise VerificationFailed(f"{path.parent.name}/{path.name} is not a safetensors file")
        try:
            header = json.loads(handle.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise VerificationFailed(f"{path.parent.name}/{path.name} is not a safetensors file") from error
    if not ends or max(ends) != size - 8 - length:
        raise VerificationFailed(f"{path.parent.name}/{path.name} is cut off or holds no tensors")


def _check_rank(path: Path, rank: int) -> None:
    try:
        found = json.loads(path.read_bytes()).get("r")
    except (ValueError, AttributeError) as error:
        raise VerificationFailed(f"{path.parent.name}/{path.name} is not readable") from error
    if found != rank:
        raise VerificationFailed(f"{path.parent.name}: the manifest says rank {rank}, {path.name} says {found}")
