"""Other people's preference and prompt data sets, as votes and prompts of ours.

Preference rows have `prompt`, `chosen` and `rejected`, as strings or as lists of messages; where the two answers are
whole conversations, `prompt` may be missing: it is what they begin with in common. Prompt rows have `prompt` or
`messages`. What a row becomes follows from its content alone: reading a file twice adds nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from feedback.contracts import CompletionRecord, ContractError, Message, PairShown, SamplingRecord, VoteCast
from feedback.dataset.dataset import Dataset
from feedback.dataset.errors import DatasetError
from feedback.privacy import Redactor

IMPORTED = "imported"
"""Adapter, base model and rule of imported pairs: they must not be taken for somebody's of this installation."""
ROWS_AT_ONCE = 500
_SAMPLING = SamplingRecord(temperature=1.0, top_p=1.0, max_tokens=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ImportKind = Literal["preferences", "prompts"]
_Row = tuple[PairShown, VoteCast | None]


class ImportRefused(DatasetError):
    """A file or a row of it can't be understood; the message names the row and the fix. Rows before it are imported."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns are called in the file."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


@dataclass(frozen=True, slots=True)
class Imported:
    """How many rows were read, how many of them were new, and how many named the same answer twice (left out)."""

    read: int
    new: int
    same: int


def import_file(
    dataset: Dataset,
    file: Path,
    kind: ImportKind,
    *,
    name: str,
    columns: Columns | None = None,
    redactor: Redactor | None = None,
) -> Imported:
    """Read a .jsonl or .parquet file into the dataset's parts, a batch at a time.

    Args:
        name: of the data set; part of its conversations' ids.
        redactor: takes personal data out.

    Raises:
        ImportRefused: the file can't be read, or a row is not what `kind` says.
        DatasetFull: no room; importing again goes on.
    """
    rows = _rows(file, kind, name, columns or Columns(), redactor)
    read = new = same = 0
    refused: ImportRefused | None = None
    while refused is None:
        batch: list[_Row | None] = []
        try:
            for row in islice(rows, ROWS_AT_ONCE):
                batch.append(row)  # as it comes: what stands before a row that is refused is imported
        except ImportRefused as error:
            refused = error
        if not batch:
            break
        kept = [row for row in batch if row is not None]
        read, same = read + len(batch), same + len(batch) - len(kept)
        votes = [vote for _, vote in kept if vote is not None]
        new += dataset.append_import(name, [pair for pair, _ in kept], votes)
    if refused is not None:
        raise refused
    dataset.merge_parts()
    return Imported(read, new, same)


def _rows(
    file: Path, kind: ImportKind, name: str, columns: Columns, redactor: Redactor | None
) -> Iterator[_Row | None]:
    """Each row as a pair and the vote on it (None of a prompt); None where both answers are the same."""
    for number, row in enumerate(_read(file), start=1):
        try:
            prompt, answers = _understood(row, kind, columns)
            if answers is not None and answers[0] == answers[1]:
                yield None
                continue
            pair = _pair(prompt, answers or ("", " "), name, number)
        except (ContractError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImportRefused(f"{file}, row {number}: {_told(error)}") from error
        pair = pair if redactor is None else redactor.pair(pair)
        yield pair, None if answers is None else _vote(pair, "a" if _winner_is_left(pair.pair_id) else "b")


def _read(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(ROWS_AT_ONCE):
                    yield from batch.to_pylist()
        elif file.suffix == ".jsonl":
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _json(line, file, number)
        else:
            raise ImportRefused(f"{file}: only .jsonl and .parquet are read; convert it to one of them")
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ImportRefused(f"{file} can't be read: {error}") from error


def _json(line: bytes, file: Path, number: int) -> Mapping[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ImportRefused(f"{file}, row {number}: no JSON ({error})") from error
    if not isinstance(row, dict):
        raise ImportRefused(f"{file}, row {number}: an object with named columns is needed")
    return row


def _understood(
    row: Mapping[str, Any], kind: ImportKind, columns: Columns
) -> tuple[tuple[Message, ...], tuple[str, str] | None]:
    """The prompt, and the chosen and the rejected answer where there are any."""
    if kind == "prompts":
        given = row.get(columns.prompt)
        return _turns(row.get("messages") if given is None else given, columns.prompt), None
    chosen, rejected = (_conversation(row, column) for column in (columns.chosen, columns.rejected))
    if row.get(columns.prompt) is not None:
        prompt = _turns(row[columns.prompt], columns.prompt)
    else:
        prompt = chosen[:-1]
        if not prompt or prompt != rejected[:-1]:
            raise ValueError(
                f"there is no column {columns.prompt!r}, and the two answers don't begin with the same conversation; "
                "name the column that holds the prompt"
            )
    return prompt, (_answer(chosen, columns.chosen), _answer(rejected, columns.rejected))


def _conversation(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    value = row.get(column)
    if isinstance(value, str):
        return (Message(role="assistant", content=value),)
    if not isinstance(value, list) or not value:
        raise ValueError(f"column {column!r} must be a text or a list of messages")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in value)


def _answer(turns: tuple[Message, ...], column: str) -> str:
    if turns[-1].role != "assistant":
        raise ValueError(f"column {column!r} must end with the assistant's turn")
    return turns[-1].content


def _turns(value: Any, column: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"column {column!r} must be a text or a list of messages")
    turns = [Message(role=turn["role"], content=turn["content"]) for turn in value]
    while turns and turns[-1].role == "assistant":
        turns.pop()
    if not turns or not turns[-1].content.strip():
        raise ValueError(f"column {column!r} must end with somebody's words to be answered")
    return tuple(turns)


def _pair(prompt: tuple[Message, ...], answers: tuple[str, str], name: str, number: int) -> PairShown:
    asked = orjson.dumps([[turn.role, turn.content] for turn in prompt])
    talk = hashlib.sha256(asked).hexdigest()
    digest = hashlib.sha256(asked + b"\0" + orjson.dumps(answers)).hexdigest()[:32]
    pair_id = f"pair_import_{digest}"
    left, right = answers if _winner_is_left(pair_id) else answers[::-1]
    return PairShown(
        pair_id=pair_id,
        conversation_id=f"import_{name}_{talk[:24]}",
        voter=f"v_import_{digest}",
        messages=prompt,
        completions=(
            CompletionRecord(position="a", text=left, finish_reason="stop", adapter=IMPORTED, sampling=_SAMPLING),
            CompletionRecord(position="b", text=right, finish_reason="stop", adapter=IMPORTED, sampling=_SAMPLING),
        ),
        contenders=IMPORTED,
        propensity=1.0,
        base_model=IMPORTED,
        shown_at=_EPOCH + timedelta(microseconds=number),
    )


def _vote(pair: PairShown, choice: Literal["a", "b"]) -> VoteCast:
    return VoteCast(
        vote_id=pair.pair_id.replace("pair_", "vote_", 1),
        pair=pair,
        voter=pair.voter,
        choice=choice,
        cast_at=pair.shown_at,
    )


def _winner_is_left(pair_id: str) -> bool:
    """Half of the winners stand left, and always the same half: no position is favoured."""
    return int(pair_id[-1], 16) % 2 == 0


def _told(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"a message lacks {error}"
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    return str(error).splitlines()[0]
