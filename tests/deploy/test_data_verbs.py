"""`hustings forget`, `lineage` and `import` from the command line."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from deploy import presence
from deploy.cli import app
from deploy.config import load, to_toml
from deploy.doctor import check_ledger, check_ports
from deploy.errors import ConfigError, NobodyThere
from feedback.contracts import ReleaseChanged, ReleaseState
from feedback.dataset import Dataset
from feedback.identity import load_or_make_secret, pseudonym
from feedback.ledger import Ledger
from feedback.paths import DataPaths
from tests.feedback.events import pair, vote


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    made = DataPaths(tmp_path)
    made.create()
    return made


def fill(paths: DataPaths, voter: str) -> str:
    ledger, dataset = Ledger.open(paths.ledger_url), Dataset(paths.dataset)
    shown = pair(1).model_copy(update={"voter": voter})
    ledger.record_pair(shown)
    ledger.record_vote(pair_id=shown.pair_id, voter=voter, choice="a")
    vote = ledger.vote(shown.pair_id, voter)
    assert vote is not None
    dataset.append_pairs([shown])
    dataset.append_votes([vote])
    dataset.build_snapshot()
    ledger.close()
    return vote.vote_id


def run(paths: DataPaths, *arguments: str, answer: str = "") -> str:
    done = CliRunner().invoke(app, [*arguments, "--data-dir", str(paths.root)], input=answer)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_lineage_tells_where_a_vote_went(paths: DataPaths) -> None:
    vote_id = fill(paths, "v_ann")
    told = json.loads(run(paths, "lineage", vote_id, "--json"))
    assert (told["pair"], told["choice"], len(told["snapshots"]), told["adapters"]) == ("p1", "a", 1, [])
    assert f"vote: {vote_id}" in run(paths, "lineage", "p1")


def test_commands_beside_a_running_up_work_on_its_ledger(paths: DataPaths, tmp_path: Path) -> None:
    """`up --set feedback.ledger_url=...` told its own processes alone: `forget` said all was well and forgot nobody."""
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.sqlite3'}"
    ledger = Ledger.open(elsewhere)
    shown = pair(1).model_copy(update={"voter": "v_ann"})
    ledger.record_pair(shown)
    told = load(None, [f"feedback.ledger_url={elsewhere}"], {"data_dir": paths.root}, environment={})
    with presence.hold(paths):
        presence.write(paths, presence.Presence(os.getpid(), "http://127.0.0.1:1", "127.0.0.1:2", {}))
        (paths.run / "resolved.toml").write_text(to_toml(told), encoding="utf-8")
        assert "pair: p1" in run(paths, "lineage", "p1")
        with pytest.raises(ConfigError, match="'p1'"):
            run(paths, "lineage", "p1", "--set", f"feedback.ledger_url={paths.ledger_url}")
        assert "pairs: 1" in run(paths, "forget", "v_ann", "--yes")
        assert ledger.pair("p1") is None
    ledger.close()
    with pytest.raises(ConfigError, match="'p1'"):
        run(paths, "lineage", "p1")


def test_forgetting_asks_first_and_takes_the_id_of_a_vote(paths: DataPaths) -> None:
    vote_id = fill(paths, "v_ann")
    assert "Forget v_ann for good?" in run(paths, "forget", vote_id, answer="n\n")
    assert json.loads(run(paths, "lineage", "p1", "--json"))["votes"]
    told = run(paths, "forget", vote_id, answer="y\n")
    assert "votes: 1" in told
    assert "remedy: none" in told
    assert json.loads(run(paths, "lineage", "v_ann", "--json"))["votes"] == 1
    assert list(Dataset(paths.dataset).votes()) == []


def test_forgetting_nobody_fails_and_says_so(paths: DataPaths) -> None:
    fill(paths, "v_ann")
    with pytest.raises(NobodyThere, match=r"No conversation, pair or vote of v_anna was found.* right pseudonym"):
        run(paths, "forget", "v_anna", "--yes")
    assert len(list(Dataset(paths.dataset).votes())) == 1
    done = CliRunner().invoke(app, ["forget", "v_bob", "--yes", "--json", "--data-dir", str(paths.root)])
    assert isinstance(done.exception, NobodyThere)
    assert json.loads(done.output)["outcome"] == "unknown"


def test_forgetting_again_says_that_it_was_done(paths: DataPaths) -> None:
    fill(paths, "v_ann")
    assert "v_ann is forgotten." in run(paths, "forget", "v_ann", "--yes")
    assert "v_ann was forgotten already (" in run(paths, "forget", "v_ann", "--yes")


@pytest.mark.parametrize("voter", ["v_", "v_an n", "v_ann\n", "v_" + "n" * 65, "v_\u200bann"])
def test_what_is_no_pseudonym_is_forgotten_nowhere(paths: DataPaths, voter: str) -> None:
    with pytest.raises(ConfigError, match="no pseudonym"):
        run(paths, "forget", voter, "--yes")
    ledger = Ledger.open(paths.ledger_url)
    assert ledger.forgotten() == []
    ledger.close()


def test_a_damaged_manifest_keeps_no_command_from_the_rest(paths: DataPaths) -> None:
    vote_id = fill(paths, "v_ann")
    (paths.adapters / "policy-000001").mkdir(parents=True)
    (paths.adapters / "policy-000001" / "manifest.json").write_text("{")
    told = run(paths, "lineage", vote_id)
    assert "unreadable:\n  policy-000001: " in told
    assert "unreadable: none" not in told
    (paths.adapters / "policy-000001" / "manifest.json").unlink()
    (paths.adapters / "policy-000001").rmdir()
    assert "unreadable: none" in run(paths, "lineage", vote_id)


def test_doctor_names_a_damaged_manifest(paths: DataPaths) -> None:
    Ledger.open(paths.ledger_url).close()
    (paths.adapters / "policy-000001").mkdir(parents=True)
    (paths.adapters / "policy-000001" / "manifest.json").write_text("{")
    config = load(None, [], {"data_dir": paths.root}, environment={})
    (found,) = [one for one in check_ledger(config) if one.subject == "adapters"]
    assert (found.verdict, found.text.startswith("policy-000001: ")) == ("not ok", True)


def test_doctor_names_a_taken_port_of_the_embedded_broker(paths: DataPaths) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        keys = ["serve.port=0", "feedback.curator_metrics_port=0", "train.schedule.metrics_port=0"]
        config = load(None, [*keys, f"feedback.broker_port={port}"], {"data_dir": paths.root}, environment={})
        (found,) = check_ports(config)
        assert (found.verdict, f"--set feedback.broker_port={port + 1}" in found.remedy) == ("not ok", True)
        outside = load(None, [*keys, f"feedback.broker_port={port}", "feedback.kafka=k:9092"], {}, environment={})
        assert list(check_ports(outside)) == []


@pytest.mark.parametrize("section", ["feedback.curator_", "train.schedule."])
def test_doctor_looks_where_metrics_are_listened_on(paths: DataPaths, section: str) -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        keys = ["serve.port=0", "feedback.curator_metrics_port=0", "train.schedule.metrics_port=0"]
        keys += [f"{section}metrics_host=127.0.0.2", f"{section}metrics_port={port}"]
        (found,) = check_ports(load(None, keys, {"data_dir": paths.root}, environment={}))
        assert (found.verdict, f"port {port} on 127.0.0.2 is in use" in found.text) == ("not ok", True)


def test_releases_with_a_damaged_manifest_are_listed(paths: DataPaths) -> None:
    ledger = Ledger.open(paths.ledger_url)
    for name in ("policy-000001", "policy-000002"):
        ledger.record_release(
            ReleaseChanged(name=name, before=None, after=ReleaseState.RETIRED, reason="a test", actor="auto")
        )
    ledger._database.write(
        lambda connection: connection.execute(text("UPDATE releases SET manifest = '{' WHERE name = 'policy-000001'"))
    )
    ledger.close()
    one, two = run(paths, "releases", "list").splitlines()[1:]
    assert "its manifest can't be read: the ledger's copy: AdapterManifest: record: Invalid JSON" in one
    assert two.endswith("a test")


def test_releases_are_listed_with_the_gate_of_the_up_that_runs(paths: DataPaths) -> None:
    told = load(None, ["serve.releases.gate=votes"], {"data_dir": paths.root}, environment={})
    with presence.hold(paths):
        presence.write(paths, presence.Presence(os.getpid(), "http://127.0.0.1:1", "127.0.0.1:2", {}))
        (paths.run / "resolved.toml").write_text(to_toml(told))
        assert run(paths, "releases", "list") == "in office: base (no adapter); gate: votes\n"
    assert run(paths, "releases", "list") == "in office: base (no adapter); gate: probes\n"


def test_checkpoints_with_a_damaged_manifest_are_listed(paths: DataPaths) -> None:
    (paths.checkpoints / "full-000001").mkdir(parents=True)
    (paths.checkpoints / "full-000001" / "manifest.json").write_text("{}")
    assert "full-000001  its manifest.json can't be read: CheckpointManifest: " in run(paths, "checkpoints", "list")


def test_forgetting_takes_a_voters_own_token(paths: DataPaths) -> None:
    secret = load_or_make_secret(paths.secrets / "voter_key", "HUSTINGS_SECRET_OF_NOBODY")
    fill(paths, pseudonym(secret, "my-cookie"))
    told = json.loads(run(paths, "forget", "my-cookie", "--token", "--yes", "--json"))
    assert (told["voter"], told["pairs"]) == (pseudonym(secret, "my-cookie"), 1)


def test_what_is_nobodys_is_refused(paths: DataPaths) -> None:
    with pytest.raises(ConfigError, match="--token"):
        run(paths, "forget", "somebody", "--yes")
    with pytest.raises(ConfigError, match="somebody"):
        run(paths, "lineage", "somebody")


@contextmanager
def beside_an_up(paths: DataPaths, *told: str) -> Iterator[None]:
    """An `up` runs on this folder that was told so by --set."""
    with presence.hold(paths):
        presence.write(paths, presence.Presence(os.getpid(), "http://127.0.0.1:1", "127.0.0.1:2", {}))
        resolved = load(None, told, {"data_dir": paths.root}, environment={})
        (paths.run / "resolved.toml").write_text(to_toml(resolved))
        yield


def asks_ann(folder: Path, name: str) -> str:
    file = folder / f"{name}.jsonl"
    file.write_text(json.dumps({"prompt": f"Ask ann@example.org {name}", "chosen": "Yes", "rejected": "No"}) + "\n")
    return str(file)


def prompts(paths: DataPaths) -> set[str]:
    return {vote.pair.messages[-1].content for vote in Dataset(paths.dataset).votes()}


def test_an_import_beside_an_up_goes_by_its_privacy(
    paths: DataPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up --set feedback.privacy...` told its own processes alone: what was imported kept what serving took out."""
    monkeypatch.chdir(tmp_path)
    key = "feedback.privacy.prompt"
    with beside_an_up(paths, f"{key}=drop", 'feedback.privacy.kinds=["email"]'):
        assert run(paths, "import", asks_ann(tmp_path, "one")).startswith("1 rows read")  # it was told nothing itself
        assert prompts(paths) == {"[REMOVED]"}
        Path("hustings.toml").write_text('[feedback.privacy]\nprompt = "keep"\nkinds = ["email"]\n')
        said = run(paths, "import", asks_ann(tmp_path, "two")).splitlines()
        assert said[0] == (
            f"hustings: {key} is 'drop', as the `hustings up` that runs here was told, and not 'keep', as this "
            "configuration says; start `up` again to have that, or give --set"
        )
        assert (len(said), prompts(paths)) == (2, {"[REMOVED]"})
        said = run(paths, "import", asks_ann(tmp_path, "three"), "--set", f"{key}=redact").splitlines()
        assert (
            said[0] == f"hustings: {key} is 'redact' for this command; the `hustings up` that runs here goes by 'drop'"
        )
        assert (len(said), prompts(paths)) == (2, {"[REMOVED]", "Ask [EMAIL] three"})
    assert run(paths, "import", asks_ann(tmp_path, "four")).startswith("1 rows read")
    assert "Ask ann@example.org four" in prompts(paths)


def test_an_export_beside_an_up_weighs_votes_as_it_does(paths: DataPaths, tmp_path: Path) -> None:
    """Of six votes on one prompt by one voter three count whole, and each a half: 1 where nothing is weighed."""
    dataset = Dataset(paths.dataset)
    shown = [pair(1).model_copy(update={"pair_id": f"p{at}", "conversation_id": f"c{at}"}) for at in range(6)]
    dataset.append_votes(
        [vote(1).model_copy(update={"vote_id": f"w{at}", "pair": one}) for at, one in enumerate(shown)]
    )

    def weights() -> set[float]:
        run(paths, "export", str(tmp_path / "votes.jsonl"), "--format", "jsonl")
        return {json.loads(line)["weight"] for line in (tmp_path / "votes.jsonl").read_text().splitlines()}

    with beside_an_up(paths, "feedback.voters.weigh=false"):
        assert weights() == {1.0}
    assert weights() == {0.5}


def test_settings_of_an_up_that_cant_be_read_are_not_passed_over_in_silence(paths: DataPaths, tmp_path: Path) -> None:
    with beside_an_up(paths):
        (paths.run / "resolved.toml").unlink()
        said = run(paths, "import", asks_ann(tmp_path, "one")).splitlines()
    assert said[0].endswith("was told can't be read; [feedback.privacy] is this command's own")
    assert prompts(paths) == {"Ask [EMAIL] one"}


def test_a_voters_token_without_the_voters_key_forgets_nobody_and_makes_no_key(
    paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The `up` had HUSTINGS_SECRET, this shell has not: a new key was made, and said to be of the installation."""
    monkeypatch.delenv("HUSTINGS_SECRET", raising=False)
    fill(paths, pseudonym("sixteen letters or more", "my-cookie"))
    with pytest.raises(ConfigError, match="set HUSTINGS_SECRET as serving has it"):
        run(paths, "forget", "my-cookie", "--token", "--yes")
    assert not (paths.secrets / "voter_key").exists()
    monkeypatch.setenv("HUSTINGS_SECRET", "sixteen letters or more")
    assert "is forgotten" in run(paths, "forget", "my-cookie", "--token", "--yes")


def test_importing_says_what_was_new(paths: DataPaths, tmp_path: Path) -> None:
    file = tmp_path / "some prefs.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}) + "\n")
    hint = "; --undo some-prefs takes them back\n"
    assert run(paths, "import", str(file)) == f"1 rows read, 1 of them new{hint}"
    assert run(paths, "import", str(file)) == f"1 rows read, 0 of them new{hint}"
    (vote,) = Dataset(paths.dataset).votes()
    assert vote.pair.conversation_id.startswith("import_some-prefs_")


def test_imports_whose_names_have_no_letter_for_ids_stay_apart(paths: DataPaths, tmp_path: Path) -> None:
    said = {"голоса": "Yes", "письма": "Maybe", "a" * 50 + "1": "Perhaps", "a" * 50 + "2": "Surely"}
    hints = []
    for name, chosen in said.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps({"prompt": "Hi", "chosen": chosen, "rejected": "No"}) + "\n")
        hints.append(run(paths, "import", str(file)))
    labels = [hint.split("--undo ")[1].split()[0] for hint in hints]
    assert len(set(labels)) == 4
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", label) for label in labels)
    told = json.loads(run(paths, "import", "--undo", labels[1], "--yes", "--json"))
    assert told["votes"] == 1
    left = {vote.pair.conversation_id.split("_")[1] for vote in Dataset(paths.dataset).votes()}
    assert left == set(labels) - {labels[1]}


def test_an_import_is_taken_back_by_its_name(paths: DataPaths, tmp_path: Path) -> None:
    file = tmp_path / "prefs.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}) + "\n")
    run(paths, "import", str(file))
    assert "Take the import prefs back for good?" in run(paths, "import", "--undo", "prefs", answer="n\n")
    assert len(list(Dataset(paths.dataset).votes())) == 1
    told = json.loads(run(paths, "import", "--undo", "prefs", "--yes", "--json"))
    assert (told["imported"], told["pairs"], told["votes"], told["remedy"]) == ("prefs", 1, 1, None)
    assert list(Dataset(paths.dataset).votes()) == []
    assert json.loads(run(paths, "lineage", "import_prefs", "--json"))["votes"] == 1


def test_importing_names_what_is_missing_or_unknown(paths: DataPaths, tmp_path: Path) -> None:
    file = tmp_path / "prefs.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}) + "\n")
    run(paths, "import", str(file))
    with pytest.raises(ConfigError, match="imports of this dataset: prefs"):
        run(paths, "import", "--undo", "other", "--yes")
    with pytest.raises(ConfigError, match="name a FILE"):
        run(paths, "import")
    with pytest.raises(ConfigError, match="name a FILE"):
        run(paths, "import", str(file), "--undo", "prefs")
