"""Preference and prompt data sets of others become votes and prompts of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedback.contracts import MAX_MESSAGES, VoterForgotten, utc_now
from feedback.dataset import Dataset, NewData, SnapshotPurged
from feedback.dataset.importing import IMPORTED, Columns, Imported, ImportRefused, import_file
from feedback.dataset.parts import PartStore
from feedback.privacy import PrivacyConfig, Redactor
from tests.feedback.events import pair, vote

PLAIN = [
    {"prompt": "Why is the sky blue?", "chosen": "Scattering.", "rejected": "Paint."},
    {"prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five."},
    {"prompt": "Two plus two?", "chosen": "4", "rejected": "Five."},
]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def preferences(dataset: Dataset) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.load_snapshot(dataset.build_snapshot().id).preferences.to_pylist()
    return rows


@pytest.mark.parametrize("name", ["plain.jsonl", "plain.parquet"])
def test_plain_preferences_keep_their_order_and_their_winner(tmp_path: Path, name: str) -> None:
    dataset = Dataset(tmp_path / "data")
    done = import_file(dataset, write(tmp_path / name, PLAIN), "preferences", name="plain")
    assert done == Imported(read=3, new=3, same=0)
    rows = preferences(dataset)
    assert [row["prompt"] for row in rows] == [[said("user", given["prompt"])] for given in PLAIN]
    assert [row["chosen"] for row in rows] == [[said("assistant", given["chosen"])] for given in PLAIN]
    assert [row["rejected"] for row in rows] == [[said("assistant", given["rejected"])] for given in PLAIN]
    assert {row["chosen_adapter"] for row in rows} == {IMPORTED}
    assert rows[1]["conversation_id"] == rows[2]["conversation_id"] != rows[0]["conversation_id"]
    assert len({row["voter"] for row in rows}) == 3
    assert rows[0]["prompt_token_ids"] == []


@pytest.mark.parametrize("explicit", [True, False])
def test_conversational_preferences_with_the_prompt_beside_them_or_within(tmp_path: Path, explicit: bool) -> None:
    talk = [said("system", "Be brief."), said("user", "Hi"), said("assistant", "Hello."), said("user", "Why?")]
    good, bad = said("assistant", "Because."), said("assistant", "No.")
    row: dict[str, Any] = {"chosen": [*talk, good], "rejected": [*talk, bad]}
    if explicit:
        row = {"prompt": talk, "chosen": [good], "rejected": [bad]}
    dataset = Dataset(tmp_path / "data")
    import_file(dataset, write(tmp_path / "talks.jsonl", [row]), "preferences", name="talks")
    assert preferences(dataset)[0]["prompt"] == talk
    assert preferences(dataset)[0]["chosen"] == [good]
    assert preferences(dataset)[0]["rejected"] == [bad]


def test_importing_twice_adds_nothing_and_in_another_place_gives_the_same_snapshot(tmp_path: Path) -> None:
    file = write(tmp_path / "plain.jsonl", PLAIN)
    one, other = Dataset(tmp_path / "one"), Dataset(tmp_path / "other")
    import_file(one, file, "preferences", name="plain")
    assert import_file(one, file, "preferences", name="plain") == Imported(read=3, new=0, same=0)
    import_file(other, file, "preferences", name="plain")
    assert one.build_snapshot() == other.build_snapshot()


def test_an_answer_against_itself_is_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": "Same", "rejected": "Same"}]
    dataset = Dataset(tmp_path / "data")
    done = import_file(dataset, write(tmp_path / "same.jsonl", rows), "preferences", name="same")
    assert done == Imported(read=1, new=0, same=1)


def test_winners_stand_on_both_sides(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(40)]
    dataset = Dataset(tmp_path / "data")
    import_file(dataset, write(tmp_path / "many.jsonl", rows), "preferences", name="many")
    left = sum(row["chosen_position"] == "a" for row in preferences(dataset))
    assert 8 <= left <= 32


def test_prompts_come_plain_or_as_messages_without_a_last_answer(tmp_path: Path) -> None:
    rows = [
        {"question": "Plain?", "messages": None},
        {"question": None, "messages": [said("user", "Talk?"), said("assistant", "An answer.")]},
    ]
    dataset = Dataset(tmp_path / "data")
    file = write(tmp_path / "prompts.jsonl", rows)
    import_file(dataset, file, "prompts", name="prompts", columns=Columns(prompt="question"))
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    assert snapshot.prompts["prompt"].to_pylist() == [[said("user", "Plain?")], [said("user", "Talk?")]]
    assert snapshot.manifest.votes == 0


def test_personal_data_are_taken_out_on_the_way(tmp_path: Path) -> None:
    rows = [{"prompt": "Mail ann@example.com", "chosen": "Done", "rejected": "No"}]
    dataset = Dataset(tmp_path / "data")
    import_file(dataset, write(tmp_path / "p.jsonl", rows), "preferences", name="p", redactor=Redactor(PrivacyConfig()))
    assert preferences(dataset)[0]["prompt"] == [said("user", "Mail [EMAIL]")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "Hi", "chosen": "Yes"}', "row 2: column 'rejected'"),
        ('{"chosen": "Yes", "rejected": "No"}', "row 2: there is no column 'prompt'"),
        ('{"prompt": [{"role": "user"}], "chosen": "Yes", "rejected": "No"}', "row 2: a message lacks 'content'"),
        ('{"prompt": [{"role": "tool", "content": "x"}], "chosen": "Yes", "rejected": "No"}', "row 2: .*role"),
        ("no json", "row 2: no JSON"),
        ("[1]", "row 2: an object"),
        ('{"prompt": "  ", "chosen": "Yes", "rejected": "No"}', "row 2: .*words to be answered"),
    ],
)
def test_a_row_that_cannot_be_understood_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(PLAIN[0]) + "\n" + line + "\n")
    with pytest.raises(ImportRefused, match=words):
        import_file(Dataset(tmp_path / "data"), file, "preferences", name="bad")


@pytest.mark.parametrize("before", [3, 501])
def test_what_stands_before_a_row_that_is_refused_is_imported(tmp_path: Path, before: int) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": "A number.", "rejected": "No."} for n in range(before)]
    file = write(tmp_path / "rows.jsonl", [*rows, {"prompt": "Why?"}])
    dataset = Dataset(tmp_path / "data")
    with pytest.raises(ImportRefused, match=f"row {before + 1}: column 'chosen'"):
        import_file(dataset, file, "preferences", name="rows")
    assert dataset.count_new(None) == NewData(decisive=before, ties=0, prompts=before)


def test_more_turns_than_a_pair_may_have_are_refused_by_their_row(tmp_path: Path) -> None:
    turns = [said("user", "x")] * (MAX_MESSAGES + 1)
    file = write(tmp_path / "rows.jsonl", [{"prompt": turns, "chosen": "a", "rejected": "b"}])
    with pytest.raises(ImportRefused, match="row 1: messages: "):
        import_file(Dataset(tmp_path / "data"), file, "preferences", name="rows")


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    ends = pa.array([0, 2], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(b"\xff\xfe")])
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": broken, "chosen": ["a"], "rejected": ["b"]}), file)
    with pytest.raises(ImportRefused, match=r"rows\.parquet can't be read: 'utf-8'"):
        import_file(Dataset(tmp_path / "data"), file, "preferences", name="rows")


def test_a_file_of_another_kind_or_none_is_refused(tmp_path: Path) -> None:
    for name in ("data.csv", "missing.jsonl"):
        with pytest.raises(ImportRefused, match=name):
            import_file(Dataset(tmp_path / "data"), tmp_path / name, "preferences", name="x")


def test_an_import_taken_back_leaves_the_dataset_as_it_was_without_it(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "data")
    dataset.append_pairs([pair(n) for n in range(4)])
    dataset.append_votes([vote(n) for n in range(4)])
    without = dataset.build_snapshot()
    import_file(dataset, write(tmp_path / "one.jsonl", PLAIN[:2]), "preferences", name="one")
    import_file(dataset, write(tmp_path / "one_more.jsonl", PLAIN[2:]), "preferences", name="one_more")
    import_file(dataset, write(tmp_path / "asked.jsonl", [{"prompt": "Why?"}]), "prompts", name="one")
    held = dataset.build_snapshot()
    assert dataset.imports() == {"one": 3, "one_more": 1}
    stone = dataset.take_back("one")
    assert stone is not None
    assert (stone.votes, stone.pairs, stone.snapshots) == (2, 3, (held.id,))
    assert dataset.imports() == {"one_more": 1}
    with pytest.raises(SnapshotPurged, match="build a new one"):
        dataset.load_snapshot(held.id)
    assert not any(b"sky blue" in path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    dataset.take_back("one_more")
    assert dataset.build_snapshot() == without
    assert dataset.take_back("never") is None


def test_what_was_taken_back_can_be_imported_again(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "data")
    file = write(tmp_path / "plain.jsonl", PLAIN)
    import_file(dataset, file, "preferences", name="plain")
    first = dataset.build_snapshot()
    dataset.take_back("plain")
    assert dataset.count_new(None) == NewData(0, 0, 0)
    assert import_file(dataset, file, "preferences", name="plain").new == 3
    assert dataset.build_snapshot().votes == first.votes == 3


def rows_of(dataset: Dataset) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    snapshot = dataset.load_snapshot(dataset.build_snapshot().id)
    return snapshot.preferences.to_pylist(), snapshot.prompts.to_pylist()


def test_rows_that_two_imports_brought_stay_when_one_is_taken_back(tmp_path: Path) -> None:
    """What is left is what the other import alone would have made."""
    first, second = write(tmp_path / "a.jsonl", PLAIN[:2]), write(tmp_path / "b.jsonl", PLAIN[1:])
    alone = Dataset(tmp_path / "alone")
    import_file(alone, second, "preferences", name="b")
    import_file(alone, write(tmp_path / "asked.jsonl", [{"prompt": "Why?"}]), "prompts", name="b")
    dataset = Dataset(tmp_path / "data")
    import_file(dataset, first, "preferences", name="a")
    import_file(dataset, write(tmp_path / "asked.jsonl", [{"prompt": "Why?"}]), "prompts", name="a")
    for new in (1, 0):
        assert import_file(dataset, second, "preferences", name="b").new == new
    import_file(dataset, write(tmp_path / "asked.jsonl", [{"prompt": "Why?"}]), "prompts", name="b")
    assert dataset.imports() == {"a": 3, "b": 3}
    assert len(rows_of(dataset)[0]) == 3
    dataset.take_back("a")
    assert dataset.imports() == {"b": 3}
    assert rows_of(dataset) == rows_of(alone)
    assert not any(b"sky blue" in path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert dataset.count_new(None) == NewData(2, 0, 3)
    dataset.take_back("b")
    assert rows_of(dataset) == ([], [])


def test_an_import_that_brought_nothing_new_can_be_taken_back_and_takes_nothing_along(tmp_path: Path) -> None:
    file, dataset = write(tmp_path / "rows.jsonl", PLAIN), Dataset(tmp_path / "data")
    import_file(dataset, file, "preferences", name="a")
    before = rows_of(dataset)
    import_file(dataset, file, "preferences", name="b")
    stone = dataset.take_back("b")
    assert stone is not None
    assert (stone.votes, stone.pairs, stone.snapshots) == (0, 0, ())
    assert rows_of(dataset) == before
    dataset.take_back("a")
    assert rows_of(dataset) == ([], [])


def test_of_three_imports_of_one_row_the_last_one_keeps_it(tmp_path: Path) -> None:
    file, dataset = write(tmp_path / "rows.jsonl", PLAIN[:1]), Dataset(tmp_path / "data")
    for name in ("b", "c", "a"):
        import_file(dataset, file, "preferences", name=name)
    dataset.take_back("b")
    assert dataset.imports() == {"a": 1, "c": 1}
    import_file(dataset, file, "preferences", name="b")  # and once more, last in the row now
    dataset.take_back("a")
    dataset.take_back("c")
    assert dataset.imports() == {"b": 1}
    assert [row["conversation_id"][:9] for row in rows_of(dataset)[0]] == ["import_b_"]


@pytest.mark.parametrize("step", ["votes", "pairs", "imports"])
def test_a_crash_while_shared_rows_move_up_is_finished_by_doing_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file, dataset = write(tmp_path / "rows.jsonl", PLAIN), Dataset(tmp_path / "data")
    alone = Dataset(tmp_path / "alone")
    import_file(alone, file, "preferences", name="b")
    for name in ("a", "b"):
        import_file(dataset, file, "preferences", name=name)

    def cut(store: PartStore, *_: object) -> None:
        if store.folder.name == step:
            raise KeyboardInterrupt
        real(store, *_)

    name = "rewrite" if step == "imports" else "append"
    real = getattr(PartStore, name)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PartStore, name, cut)
        dataset.take_back("a")
    again = Dataset(tmp_path / "data")
    again.take_back("a")
    assert rows_of(again) == rows_of(alone)
    again.take_back("b")
    assert rows_of(again) == ([], [])
    assert again.imports() == {}


def test_who_is_forgotten_leaves_shared_rows_too(tmp_path: Path) -> None:
    file, dataset = write(tmp_path / "rows.jsonl", PLAIN[:1]), Dataset(tmp_path / "data")
    for name in ("a", "b"):
        import_file(dataset, file, "preferences", name=name)
    (voter,) = {vote.voter for vote in dataset.votes()}
    dataset.forget(VoterForgotten(event_id="f1", voter=voter, until=utc_now()))
    assert not any(b"sky blue" in path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    dataset.take_back("a")
    assert rows_of(dataset) == ([], [])
