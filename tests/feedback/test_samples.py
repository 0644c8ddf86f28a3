"""Samples of everything ever written, as it was written: they must be read for ever.

A change of a contract adds a sample (tests/samples/<Contract>.<version><letter>.json, from the code that writes it) and
changes none. Where reading an old one takes more than a default, the version goes up and the reader learns both.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from feedback import contracts
from feedback.contracts import Event, PairShown, UnknownSchemaVersion, VoteCast
from feedback.dataset import Dataset, SnapshotManifest

SAMPLES = Path(__file__).parents[1] / "samples"
FILES = sorted(SAMPLES.glob("*.json"))
TOLD = (*Event.__subclasses__(), contracts.AdapterManifest, SnapshotManifest)


def model_of(path: Path) -> type[BaseModel]:
    return next(model for model in TOLD if model.__name__ == path.name.split(".")[0])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sample_is_read_and_loses_nothing(path: Path) -> None:
    raw = path.read_bytes()
    read = model_of(path).model_validate_json(raw)
    written, now = json.loads(raw), json.loads(read.model_dump_json())
    assert {name: now[name] for name in written if name != "pair"} == {
        name: value for name, value in written.items() if name != "pair"
    }
    for name, value in written.get("pair", {}).items():
        assert now["pair"][name] == value


@pytest.mark.parametrize("model", TOLD, ids=lambda model: model.__name__)
def test_the_newest_sample_has_every_field_of_today(model: type[BaseModel]) -> None:
    """Else a field was added without a sample of how it is written."""
    newest = max(path for path in FILES if path.name.startswith(f"{model.__name__}."))
    assert set(json.loads(newest.read_bytes())) == set(model.model_fields)


@pytest.mark.parametrize("model", Event.__subclasses__(), ids=lambda model: model.__name__)
def test_a_record_of_the_future_says_so(model: type[Event]) -> None:
    newest = max(path for path in FILES if path.name.startswith(f"{model.__name__}."))
    record = {**json.loads(newest.read_bytes()), "schema_version": 99}
    with pytest.raises(UnknownSchemaVersion, match="upgrade the reader"):
        model.from_bytes(json.dumps(record).encode())


def test_old_parts_become_a_snapshot(tmp_path: Path) -> None:
    """Their names promise their bytes, so that they are copied as they are."""
    dataset = Dataset(tmp_path)
    for kind in ("votes", "pairs"):
        (sample,) = SAMPLES.glob(f"{kind}.*.parquet")
        (tmp_path / kind / sample.name.removeprefix(f"{kind}.")).write_bytes(sample.read_bytes())
    manifest = dataset.build_snapshot()
    assert (manifest.votes, manifest.prompts) == (1, 1)
    assert list(dataset.votes()) == [VoteCast.from_bytes((SAMPLES / "VoteCast.1a.json").read_bytes())]
    assert list(dataset.pairs()) == [PairShown.from_bytes((SAMPLES / "PairShown.1a.json").read_bytes())]
