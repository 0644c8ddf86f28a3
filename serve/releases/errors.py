"""Why an adapter is not let in.

ReleaseRefused
├── VerificationFailed   its files are not what the manifest says
│   └── Unsuited         they aren't here, or don't fit the base or the rank that is served here
└── ProbeFailed          the engine doesn't say with it what the trainer saw it say

EngineUnavailable
└── NotHere              it is unsuited here, which decides nothing for the other servings
"""

from __future__ import annotations

from serve.engines.base import EngineUnavailable


class ReleaseRefused(Exception):
    """Base: the message becomes the release's reason in the ledger."""


class VerificationFailed(ReleaseRefused):
    """The adapter's files are not what they should be."""


class Unsuited(VerificationFailed):
    """The adapter and this serving don't fit: that may be the serving's fault."""


class NotHere(EngineUnavailable):
    """One of several servings can't have an adapter: trouble of its own, to be mended there."""


class ProbeFailed(ReleaseRefused):
    """The adapter that answers is not the one that was trained."""
