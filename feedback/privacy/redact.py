"""Taking personal data out of pairs and votes before they are stored.

Token ids spell a text out as plainly as its letters do. So where a text was changed its ids and log-probs go too: the
ids of the prompt with any message, an answer's with the answer. The trainer reads such a text through its tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from feedback.contracts import AnswerShown, CompletionRecord, Message, PairShown
from feedback.privacy.config import Action, Kind, PrivacyConfig
from feedback.privacy.finders import find

Field = Literal["prompt", "answers", "comment", "edited"]
DROPPED = "[REMOVED]"


class Redactor:
    """Applies a policy.

    Args:
        policy: what becomes of each field.
        on_found: told the field and the kind of each thing found and taken out; for metrics.
    """

    def __init__(
        self, policy: PrivacyConfig, on_found: Callable[[Field, Kind], None] = lambda field, kind: None
    ) -> None:
        self._policy = policy
        self._on_found = on_found

    def text(self, field: Field, text: str) -> str:
        """The text without personal data; the same object where there are none."""
        action: Action = getattr(self._policy, field)
        if action == "keep":
            return text
        spans = find(text, self._policy.kinds, self._policy.phone_regions)
        if not spans:
            return text
        for span in spans:
            self._on_found(field, span.kind)
        if action == "drop":
            return DROPPED
        pieces, at = [], 0
        for span in spans:
            pieces += [text[at : span.start], f"[{span.kind.upper()}]"]
            at = span.end
        return "".join([*pieces, text[at:]])

    def pair(self, pair: PairShown) -> PairShown:
        """The pair without personal data; the same object where there are none."""
        messages = tuple(self._message(message) for message in pair.messages)
        completions = tuple(self._completion(completion) for completion in pair.completions)
        changed: dict[str, object] = {}
        if messages != pair.messages:
            changed |= {"messages": messages, "prompt_token_ids": ()}
        if completions != pair.completions:
            changed["completions"] = completions
        return pair.model_copy(update=changed) if changed else pair

    def answer(self, answer: AnswerShown) -> AnswerShown:
        """A single answer without personal data; the same object where there are none."""
        messages = tuple(self._message(message) for message in answer.messages)
        changed: dict[str, object] = {}
        if messages != answer.messages:
            changed |= {"messages": messages, "prompt_token_ids": ()}
        completion = self._completion(answer.completion)
        if completion != answer.completion:
            changed["completion"] = completion
        return answer.model_copy(update=changed) if changed else answer

    def comment(self, comment: str | None) -> str | None:
        """A vote's comment; None where it is dropped."""
        return self._optional("comment", comment)

    def reasons(self, reasons: Sequence[str]) -> tuple[str, ...]:
        """A vote's reasons, under the comment's policy."""
        return tuple(self.text("comment", reason) for reason in reasons)

    def edited(self, edited: str | None) -> str | None:
        """A voter's own answer; None where it is dropped."""
        return self._optional("edited", edited)

    def _optional(self, field: Field, text: str | None) -> str | None:
        kept = None if text is None else self.text(field, text)
        return None if kept == DROPPED != text else kept

    def _message(self, message: Message) -> Message:
        kept = self.text("prompt" if message.role != "assistant" else "answers", message.content)
        return message if kept is message.content else message.model_copy(update={"content": kept})

    def _completion(self, completion: CompletionRecord) -> CompletionRecord:
        kept = self.text("answers", completion.text)
        if kept is completion.text:
            return completion
        return completion.model_copy(update={"text": kept, "token_ids": (), "logprobs": ()})
