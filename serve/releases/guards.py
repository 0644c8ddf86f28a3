"""Guards: what may not happen, however many voters like it. Each is a sequential test of its own on the canary's pairs.

Both answers of a pair are to one question, so a guard looks at the difference between the candidate's and the
office-holder's. A guard vetoes once the evidence that a mean lies beyond its limit is beyond doubt (`ALPHA` over all
times together); a few odd answers don't make a veto.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

from feedback.contracts import CompletionRecord, PairShown
from serve.config import GuardsConfig
from serve.releases.sequential import Evidence

ALPHA = 0.01
"""Probability that a guard ever vetoes a candidate that keeps within its limit."""
MIN_TOKENS = 16
"""Shorter answers hardly can repeat themselves."""
_REFUSAL = re.compile(
    r"\s*(?:i(?:['’]| a)m (?:really |very |so )?sorry|sorry,|i apologi[sz]e|unfortunately,? i\b"
    r"|as an? (?:ai|language model)"
    r"|i (?:can(?:no|['’])t|am unable|am not able|won['’]t|will not|must decline)|i['’]m (?:unable|not able)"
    r"|(?:it|this) (?:is|would be) (?:not |in)appropriate)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How a guard stands. `value` is None before anything was seen; `limit` is in the same unit."""

    guard: str
    value: float | None
    limit: float
    vetoes: bool


def refuses(text: str) -> bool:
    """Whether an answer begins as refusals in English do. Crude, but equally so on both sides of a pair."""
    return _REFUSAL.match(text) is not None


def repetition(completion: CompletionRecord) -> float:
    """Share of an answer's pairs of neighbouring words that it has said before, 0 to 1; 0 for short answers."""
    words = completion.text.casefold().split()
    if len(words) < MIN_TOKENS:
        return 0.0
    neighbours = list(pairwise(words))
    return 1.0 - len(set(neighbours)) / len(neighbours)


class Guards:
    """Readings of one candidate against one office-holder, pair by pair.

    Args:
        metrics: the candidate's manifest's.
    """

    def __init__(self, config: GuardsConfig, candidate: str, metrics: Mapping[str, float]) -> None:
        self._config = config
        self._candidate = candidate
        self._kl = metrics.get("policy_kl")
        drift = _drift_of(config.max_length_ratio)
        self._longer = Evidence(_share(drift))
        self._shorter = Evidence(_share(drift))
        self._refusals = Evidence(_share(config.max_refusal_rise))
        self._repetition = Evidence(_share(config.max_repetition_rise))

    def add(self, pair: PairShown) -> None:
        """Take in a pair in which the candidate met another."""
        mine = [side for side in pair.completions if side.adapter == self._candidate]
        others = [side for side in pair.completions if side.adapter != self._candidate]
        met = list(product(mine, others))  # one observation a pair, however many answers it has

        def mean(difference: Callable[[CompletionRecord, CompletionRecord], float]) -> float:
            return sum(difference(one, other) for one, other in met) / len(met)

        drift = mean(lambda one, other: _drift(len(one.token_ids), len(other.token_ids)))
        self._longer.add(_share(drift))
        self._shorter.add(_share(-drift))
        self._refusals.add(_share(mean(lambda one, other: refuses(one.text) - refuses(other.text))))
        self._repetition.add(_share(mean(lambda one, other: repetition(one) - repetition(other))))

    def readings(self, both_bad: Evidence, errors: Evidence) -> tuple[Reading, ...]:
        """How every guard stands.

        Args:
            both_bad: of the votes, 1 where both answers were bad; its null is the limit.
            errors: of the candidate's requests, 1 where it failed; its null is the limit.
        """
        config = self._config
        too_far = self._kl is not None and self._kl > config.max_kl
        return (
            Reading("length", self._ratio(), config.max_length_ratio, _veto(self._longer) or _veto(self._shorter)),
            Reading("refusals", _rise(self._refusals), config.max_refusal_rise, _veto(self._refusals)),
            Reading("repetition", _rise(self._repetition), config.max_repetition_rise, _veto(self._repetition)),
            Reading("kl", self._kl, config.max_kl, too_far),
            Reading("errors", errors.mean, errors.null, _veto(errors)),
            Reading("both_bad", both_bad.mean, both_bad.null, _veto(both_bad)),
        )

    def _ratio(self) -> float | None:
        drift = _rise(self._longer)
        return None if drift is None or drift >= 1.0 else (1.0 + drift) / (1.0 - drift)


def told(reading: Reading) -> str:
    """A veto in words."""
    words = {
        "length": "answers {value:.2g} times as long as the office-holder's (within {limit:g} times)",
        "refusals": "refuses {value:+.0%} more often than the office-holder (at most {limit:+.0%})",
        "repetition": "repeats itself {value:+.0%} more than the office-holder (at most {limit:+.0%})",
        "kl": "{value:.1f} nats an answer from the base (at most {limit:g})",
        "errors": "{value:.0%} of its answers failed (at most {limit:.0%})",
        "both_bad": "both answers were bad in {value:.0%} of the votes (at most {limit:.0%})",
    }
    return words[reading.guard].format(value=reading.value, limit=reading.limit)


def _drift(mine: int, other: int) -> float:
    """-1 to 1: 0 for equal lengths, a third for twice the other's."""
    return (mine - other) / (mine + other) if mine + other else 0.0


def _drift_of(ratio: float) -> float:
    return (ratio - 1.0) / (ratio + 1.0)


def _share(difference: float) -> float:
    """A difference in [-1, 1] as an observation in [0, 1]."""
    return (difference + 1.0) / 2.0


def _rise(evidence: Evidence) -> float | None:
    return None if evidence.mean is None else 2.0 * evidence.mean - 1.0


def _veto(evidence: Evidence) -> bool:
    return evidence.refutes(ALPHA)
