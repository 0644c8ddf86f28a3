"""Texts without token ids get them from the base's tokenizer, here one token a character."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedback.contracts import VoterForgotten
from feedback.dataset import Dataset
from feedback.paths import DataPaths
from tests.feedback.events import pair, vote
from train.config import TrainConfig
from train.data import DatasetVotes
from train.errors import SnapshotGone
from train.launch import make_tools
from train.team import ALONE
from train.texts import DROPPED, TextReader

END = 0
READER = TextReader(
    lambda turns: [ord(letter) for turn in turns for letter in f"<{turn['content']}>"],
    lambda text: [ord(letter) for letter in text],
    END,
)


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def test_only_what_is_lacking_is_read_and_a_finished_answer_gets_its_end() -> None:
    row = {
        "prompt": [{"role": "user", "content": "Why?"}],
        "prompt_token_ids": [],
        "chosen": [{"role": "assistant", "content": "So"}],
        "chosen_token_ids": None,
        "chosen_finish_reason": "stop",
        "rejected": [{"role": "assistant", "content": "No"}],
        "rejected_token_ids": [7, 8],
        "rejected_finish_reason": "length",
    }
    filled = READER.vote(row)
    assert filled["prompt_token_ids"] == ids("<Why?>")
    assert filled["chosen_token_ids"] == (*ids("So"), END)
    assert filled["rejected_token_ids"] == [7, 8]
    cut = READER.vote({**row, "chosen_finish_reason": "length"})
    assert cut["chosen_token_ids"] == ids("So")


@pytest.mark.parametrize(
    ("template", "stops", "end"),
    [
        # As SmolLM2: turns and texts end alike.
        ("<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>", ["<|im_end|>"], "<|im_end|>"),
        # As Gemma and Phi 3: a token of their own closes turns, and generation stops at that and at a text's end.
        ("<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|pad|>", ["<|im_end|>", "<|pad|>"], "<|pad|>"),
        # As GLM: nothing but the next turn's opening.
        ("<|im_start|>{{ m['content'] }}", ["<|im_start|>", "<|im_end|>"], "<|im_start|>"),
        ("{{ m['content'] }} ", ["<|im_end|>", "<|pad|>"], "<|im_end|>"),  # tells nothing: a text's end
        ("{{ m['content'] }} ", ["<|pad|>"], "<|pad|>"),  # at which this base doesn't stop
        ("{{ m['content'] }} ", [], "<|im_end|>"),  # nobody says where it stops
        ("{{ raise_exception('one turn only') }}", ["<|im_end|>", "<|pad|>"], "<|im_end|>"),
    ],
)
def test_an_imported_answer_ends_as_the_bases_own_turns_do(
    tiny_model: Path, template: str, stops: list[str], end: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}" + template + "{% endfor %}"
    reader = TextReader.of(tokenizer, ends=frozenset(tokenizer.convert_tokens_to_ids(stops)))
    row = {
        "prompt": [{"role": "user", "content": "the river"}],
        "prompt_token_ids": [5, 6],
        "chosen": [{"role": "assistant", "content": "the city"}],
        "chosen_token_ids": None,
        "chosen_finish_reason": "stop",
        "rejected": [{"role": "assistant", "content": "the garden"}],
        "rejected_token_ids": [7],
        "rejected_finish_reason": "length",
    }
    if "raise" in template:
        row["prompt"] = None
    assert tokenizer.decode(reader.vote(row)["chosen_token_ids"]) == f"the city{end}"


def test_the_template_is_told_what_the_configuration_says(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    question = [{"role": "user", "content": "Why?"}]
    opening = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(TextReader.of(tokenizer).prompt_ids(question)) == opening
    assert tokenizer.decode(TextReader.of(tokenizer, {"quick": True}).prompt_ids(question)) == f"{opening}at once: "


def test_a_cycle_reads_texts_as_the_configuration_says(tiny_model: Path, tmp_path: Path) -> None:
    read: list[TextReader] = []

    def votes(texts: TextReader) -> DatasetVotes:
        read.append(texts)
        return DatasetVotes(tmp_path, None, texts)

    tools = make_tools(
        TrainConfig(chat_template_kwargs={"quick": True}),
        DataPaths(tmp_path),
        tiny_model,
        ALONE,
        votes=votes,
        status=None,
        should_stop=lambda: False,
    )
    assert read == [tools.texts]
    ids = tools.texts.prompt_ids([{"role": "user", "content": "Why?"}])
    assert tools.tokenizer.decode(ids).endswith("<|im_start|>assistant\nat once: ")


def test_what_was_dropped_whole_stays_without_ids() -> None:
    row = {"prompt": [{"role": "user", "content": DROPPED}], "prompt_token_ids": []}
    assert READER.prompt(row) is row


def test_a_redacted_vote_is_trained_on_as_its_text_reads_now(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    shown = pair(1).model_copy(update={"prompt_token_ids": ()})
    dataset.append_votes([vote(0), vote(1).model_copy(update={"pair": shown})])
    dataset.append_pairs([pair(0), shown])
    plain = DatasetVotes(tmp_path)
    snapshot = plain.freeze()
    assert len(plain.load(snapshot).votes) == 1
    data = DatasetVotes(tmp_path, texts=READER).load(snapshot)
    assert len(data.votes) == 2
    assert data.prompts.all == ((7, 8, 0), ids("<Question 1?>"))
    assert {answer.prompt_ids for answer in data.votes.answers} == {(7, 8, 0), ids("<Question 1?>")}


def test_nothing_is_learnt_from_planted_pairs_whose_jumbled_side_has_a_text_but_no_ids(tmp_path: Path) -> None:
    left, right = pair(1).completions
    jumbled = right.model_copy(update={"text": "1 Right", "token_ids": (), "logprobs": ()})
    planted = pair(1).model_copy(update={"contenders": "gold", "gold": "a", "completions": (left, jumbled)})
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(0), vote(1).model_copy(update={"pair": planted, "edited": "Right one"})])
    source = DatasetVotes(tmp_path, texts=READER)
    data = source.load(source.freeze())
    assert data.votes.vote_ids == ("w0",)
    assert {answer.response_ids for answer in data.votes.answers} == {(0, 1), (0, 2, 3)}
    assert data.edits == ()


def test_a_cycle_whose_snapshot_held_a_forgotten_voter_is_told_to_end(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.append_votes([vote(0), vote(1)])
    source = DatasetVotes(tmp_path)
    snapshot = source.freeze()
    dataset.forget(VoterForgotten(event_id="f", voter="v_0", until=vote(9).cast_at))
    with pytest.raises(SnapshotGone, match="build a new one"):
        source.load(snapshot)
    assert source.vote_ids(snapshot) == {"w0", "w1"}
