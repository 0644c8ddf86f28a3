"""Why an adapter is not let in.

ReleaseRefused
├── VerificationFailed   its files are not what the manifest says, or don't fit this base
└── ProbeFailed          the engine doesn't say with it what the trainer saw it say
"""

from __future__ import annotations


class ReleaseRefused(Exception):
    """Base: the message becomes the release's reason in the ledger."""


class VerificationFailed(ReleaseRefused):
    """The adapter's files are not what they should be."""


class ProbeFailed(ReleaseRefused):
    """The adapter that answers is not the one that was trained."""
