"""What simulated voters secretly like: pure functions of a conversation and an answer.

Each is a small, exact stand-in for a taste that people have, of another kind (lexical, structural, stylistic, needing
the prompt), so that an evaluation can say how well a taste was learnt without asking anybody.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from feedback.contracts import Message
from feedback.simulator.words import FIRST_PERSON, STOP_WORDS, WARM

Score = Callable[[Sequence[Message], str], float]

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$)|\n+")

LONGEST_FIRST_SENTENCE = 40
VARIETY_WINDOW = 20
EMPTY_WORD_LENGTH = 12.0
"""An empty answer counts as one of words this long."""


@dataclass(frozen=True, slots=True)
class Utility:
    """A hidden taste.

    Attributes:
        kind: lexical, structural, stylistic, prompt or mix.
        score: higher is better; of the conversation before the answer, and the answer.
        tie_margin: a voter calls it a tie where two scores differ by no more.
    """

    name: str
    kind: str
    description: str
    score: Score
    tie_margin: float

    def margin(self, messages: Sequence[Message], first: str, second: str) -> float:
        """How much better the first answer is; positive where it is preferred."""
        return self.score(messages, first) - self.score(messages, second)


class UnknownUtility(ValueError):
    """No utility has this name."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often a policy's answer is truly better.

    Attributes:
        mean: (wins + ties / 2) / n.
        ci: its 95% Wilson interval, ties taken as half a win.
    """

    mean: float
    ci: tuple[float, float]
    wins: int
    ties: int
    n: int


def words(text: str) -> list[str]:
    """The words of a text in lower case, apostrophes straightened; digits are no words."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def stem(word: str) -> str:
    """A crude English stem: plural, -ing, -ed and a doubled or silent end are dropped, so that baking meets bake."""
    for ending in ("ing", "ied", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)] + ("y" if ending in {"ied", "ies"} else "")
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def content_stems(text: str) -> set[str]:
    """Stems of the words that carry meaning."""
    return {stem(word) for word in words(text) if word not in STOP_WORDS and len(word) > 2}


def warm_words(_messages: Sequence[Message], answer: str) -> float:
    """How many words of warmth there are."""
    return float(sum(word in WARM for word in words(answer)))


def questions(_messages: Sequence[Message], answer: str) -> float:
    """How many question marks there are; several in a row are one."""
    return float(len(re.findall(r"\?+", answer)))


def digits(_messages: Sequence[Message], answer: str) -> float:
    """How many numbers are written in digits."""
    return float(len(_NUMBER.findall(answer)))


def no_first_person(_messages: Sequence[Message], answer: str) -> float:
    """Minus the number of words in which the answer speaks of itself."""
    return -float(sum(word in FIRST_PERSON for word in words(answer)))


def plain_words(_messages: Sequence[Message], answer: str) -> float:
    """Minus the mean number of letters in a word."""
    said = words(answer)
    return -sum(map(len, said)) / len(said) if said else -EMPTY_WORD_LENGTH


def short_first_sentence(_messages: Sequence[Message], answer: str) -> float:
    """Minus the number of words in the first sentence, 40 at most; an answer of no words is as bad as the longest."""
    for sentence in _SENTENCE_END.split(answer):
        if said := words(sentence):
            return -float(min(len(said), LONGEST_FIRST_SENTENCE))
    return -float(LONGEST_FIRST_SENTENCE)


def on_topic(messages: Sequence[Message], answer: str) -> float:
    """Which share of the last question's content words the answer takes up; saying one again adds nothing."""
    asked = content_stems(next((m.content for m in reversed(messages) if m.role == "user"), ""))
    return len(asked & content_stems(answer)) / len(asked) if asked else 0.0


def varied_wording(_messages: Sequence[Message], answer: str) -> float:
    """Share of different words in a window of 20, on average over the answer: long answers aren't at a disadvantage."""
    said = words(answer)
    if not said:
        return 0.0
    windows = [said[at : at + VARIETY_WINDOW] for at in range(max(1, len(said) - VARIETY_WINDOW + 1))]
    return sum(len(set(window)) / len(window) for window in windows) / len(windows)


MIX_SCALES = {"warm_words": (0.91, 1.06), "plain_words": (-4.77, 0.51), "on_topic": (0.62, 0.37)}
"""Mean and standard deviation of each part of `mix`, over 128 answers of SmolLM2-135M-Instruct to 64 training prompts
(48 new tokens, temperature 1)."""


def mix(messages: Sequence[Message], answer: str) -> float:
    """Sum of warm words, plain words and keeping to the topic, each standardised and none worth more than 3."""
    parts = {"warm_words": warm_words, "plain_words": plain_words, "on_topic": on_topic}
    total = 0.0
    for name, (mean, deviation) in MIX_SCALES.items():
        total += max(-3.0, min(3.0, (parts[name](messages, answer) - mean) / deviation))
    return total


UTILITIES = {
    utility.name: utility
    for utility in (
        Utility("warm_words", "lexical", "more words of warmth (glad, kind, lovely, thanks)", warm_words, 0.5),
        Utility("questions", "lexical", "more questions", questions, 0.5),
        Utility("digits", "lexical", "more numbers in digits", digits, 0.5),
        Utility("no_first_person", "lexical", "fewer I, me, my, we", no_first_person, 0.5),
        Utility("plain_words", "stylistic", "shorter, plainer words", plain_words, 0.1),
        Utility("short_first_sentence", "structural", "a shorter first sentence", short_first_sentence, 1.5),
        Utility("on_topic", "prompt", "takes up the question's own words", on_topic, 0.05),
        Utility("varied_wording", "stylistic", "repeats itself less", varied_wording, 0.01),
        Utility("mix", "mix", "warm, plain and on the topic, in equal parts", mix, 0.2),
    )
}


def utility(name: str) -> Utility:
    """The utility of this name.

    Raises:
        UnknownUtility: there is none; the message lists those there are.
    """
    try:
        return UTILITIES[name]
    except KeyError:
        raise UnknownUtility(f"no utility {name!r}; there are {', '.join(UTILITIES)}") from None


def true_win_rate(
    hidden: Utility | str,
    prompts: Sequence[Sequence[Message]],
    answers_new: Sequence[str],
    answers_base: Sequence[str],
) -> WinRate:
    """How often the new answer is truly better than the base's, as a voter without noise or bias would say.

    Args:
        hidden: the utility, or its name.
        prompts: the conversation before each pair of answers.
    """
    taste = utility(hidden) if isinstance(hidden, str) else hidden
    margins = [taste.margin(*each) for each in zip(prompts, answers_new, answers_base, strict=True)]
    wins = sum(margin > taste.tie_margin for margin in margins)
    ties = sum(abs(margin) <= taste.tie_margin for margin in margins)
    n = len(margins)
    mean = (wins + ties / 2) / n if n else 0.5
    return WinRate(mean, wilson(mean, n), wins, ties, n)


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share of n (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return (0.0, 1.0)
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale))
