"""A snapshot's comparisons as arrays: unique answers, and who beat whom."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.errors import NotEnoughVotes


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that somebody voted on, as the sampler's own token ids."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def key(self) -> str:
        """Content address: sha256 of prompt and response ids."""
        parts = [np.asarray(ids, dtype="<i4").tobytes() for ids in (self.prompt_ids, self.response_ids)]
        return hashlib.sha256(len(parts[0]).to_bytes(8, "little") + b"".join(parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class Votes:
    """Comparisons, one row each.

    Attributes:
        answers: every voted answer once.
        first, second: rows of `answers`; the first won unless tied.
        tied: True for tie and both_bad.
        both_bad: True where the voter liked neither.
        weight, margin: per vote; margin 0 where none was given.
        conversation, voter: group labels, small integers.
        reasons: reasons that the voter ticked.
        vote_ids: the votes' own.
        turns: messages before the answer; () where unknown.
        scripts: writing system of the question (`Latin`, `Cyrillic`, `Han`, ...): a stand-in for its language that
            needs no model; () where unknown.
    """

    answers: tuple[Answer, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    tied: NDArray[np.bool_]
    both_bad: NDArray[np.bool_]
    weight: NDArray[np.float64]
    margin: NDArray[np.float64]
    conversation: NDArray[np.int64]
    voter: NDArray[np.int64]
    reasons: tuple[tuple[str, ...], ...]
    vote_ids: tuple[str, ...] = ()
    turns: tuple[int, ...] = ()
    scripts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.first)

    @property
    def decisive(self) -> int:
        """Votes that preferred one answer."""
        return int((~self.tied).sum())


def read_votes(preferences: Sequence[Mapping[str, Any]], ties: Sequence[Mapping[str, Any]]) -> Votes:
    """Votes of a snapshot's rows (dictionaries with the columns of preferences.parquet and ties.parquet).

    Rows without token ids, or whose two answers are the same tokens, say nothing and are left out.

    Raises:
        NotEnoughVotes: nothing usable is left.
    """
    index: dict[Answer, int] = {}
    rows: list[tuple[int, int, Mapping[str, Any]]] = []
    for row in (*preferences, *ties):
        prompt = tuple(row["prompt_token_ids"] or ())
        sides = [Answer(prompt, tuple(row[f"{side}_token_ids"] or ())) for side in ("chosen", "rejected")]
        if prompt and all(side.response_ids for side in sides) and sides[0] != sides[1]:
            first, second = (index.setdefault(side, len(index)) for side in sides)
            rows.append((first, second, row))
    if not rows:
        raise NotEnoughVotes(
            "the snapshot holds no comparison of two different answers with token ids; cast more votes"
        )
    outcomes = [str(row["outcome"]) for _, _, row in rows]
    return Votes(
        answers=tuple(index),
        first=np.array([first for first, _, _ in rows]),
        second=np.array([second for _, second, _ in rows]),
        tied=np.array([outcome != "decisive" for outcome in outcomes]),
        both_bad=np.array([outcome == "both_bad" for outcome in outcomes]),
        weight=np.array([_number(row, "weight", 1.0) for _, _, row in rows]),
        margin=np.array([0.0 if row["outcome"] != "decisive" else _number(row, "margin", 0.0) for _, _, row in rows]),
        conversation=_labels([str(row["conversation_id"]) for _, _, row in rows]),
        voter=_labels([str(row["voter"]) for _, _, row in rows]),
        reasons=tuple(tuple(row.get("reasons") or ()) for _, _, row in rows),
        vote_ids=tuple(str(row.get("vote_id") or "") for _, _, row in rows),
        turns=tuple(len(row.get("prompt") or ()) for _, _, row in rows),
        scripts=tuple(script(_question(row)) for _, _, row in rows),
    )


def script(text: str) -> str:
    """The writing system of most letters, from their Unicode names; `none` without letters."""
    found = Counter(
        unicodedata.name(letter, "none").split(" ")[0].split("-")[0].capitalize() for letter in text if letter.isalpha()
    )
    names = {"Cjk": "Han"}
    return names.get(found.most_common(1)[0][0], found.most_common(1)[0][0]) if found else "none"


def clear_of(votes: Votes, held: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `rows` that share neither a conversation nor an answer with any vote in `held`.

    A fold by conversation or by voter alone would let an answer through that several people were shown.
    """
    talks = np.unique(votes.conversation[held])
    answers = np.unique(np.concatenate([votes.first[held], votes.second[held]]))
    known = np.isin(votes.conversation[rows], talks)
    known |= np.isin(votes.first[rows], answers) | np.isin(votes.second[rows], answers)
    return rows[~known]


def ranking_weights(votes: Votes, how: str) -> NDArray[np.float64]:
    """Factors of the votes' weights for votes that are the pairs of a ranking, (n,).

    A voter who compares K answers to one prompt casts up to C(K, 2) votes that follow from each other. `answer` lets
    each answer count once, shared by its pairs (1/(K-1) a pair where all were cast), `prompt` the whole ranking once
    (1/C(K,2), Ouyang et al. 2022), `pair` changes nothing. A pair by itself counts 1 in any case.

    Args:
        votes: the snapshot's.
        how: `answer`, `prompt` or `pair`.
    """
    factors = np.ones(len(votes))
    if how == "answer":
        ends = [list(zip(votes.voter, side, strict=True)) for side in (votes.first, votes.second)]
        degree = Counter(ends[0] + ends[1])
        factors = np.array([(1 / degree[a] + 1 / degree[b]) / 2 for a, b in zip(*ends, strict=True)])
    elif how == "prompt":
        for rows in _rankings(votes):
            factors[rows] = 1 / len(rows)
    return factors


def ballots(votes: Votes) -> NDArray[np.int64]:
    """Label of each vote's ballot, (n,): the pairs of a ranking have one, every other vote its own."""
    label = np.zeros(len(votes), dtype=np.int64)
    for number, rows in enumerate(_rankings(votes)):
        label[rows] = number
    return label


def _rankings(votes: Votes) -> list[list[int]]:
    by_voter: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row in range(len(votes)):
        key = (int(votes.voter[row]), votes.answers[votes.first[row]].prompt_ids)
        by_voter.setdefault(key, []).append(row)
    return [component for rows in by_voter.values() for component in _connected(votes, rows)]


def _connected(votes: Votes, rows: Sequence[int]) -> list[list[int]]:
    """The rows in groups that share answers: two separate pairs of one prompt are no ranking."""
    groups: list[tuple[set[int], list[int]]] = []
    for row in rows:
        ends = {int(votes.first[row]), int(votes.second[row])}
        touching = [group for group in groups if group[0] & ends]
        groups = [group for group in groups if not group[0] & ends]
        merged = set().union(ends, *(group[0] for group in touching))
        groups.append((merged, [r for group in touching for r in group[1]] + [row]))
    return [members for _, members in groups]


def folds(groups: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """A fold for each row; rows of a group share one, folds are of nearly equal size."""
    labels, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(count, dtype=np.int64)
    fold_of: dict[int, int] = {}
    for group in order:
        smallest = int(filled.argmin())
        fold_of[int(labels[group])] = smallest
        filled[smallest] += sizes[group]
    return np.array([fold_of[int(group)] for group in groups])


def _question(row: Mapping[str, Any]) -> str:
    prompt = row.get("prompt") or ()
    return str(prompt[-1]["content"]) if prompt else ""


def _number(row: Mapping[str, Any], column: str, default: float) -> float:
    value = row.get(column)
    return default if value is None else float(value)


def _labels(names: Sequence[str]) -> NDArray[np.int64]:
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)
