"""How many files, and so connections, this process may have open."""

from __future__ import annotations

import resource

WANTED = 65_536


def allow_open_files(wanted: int = WANTED) -> int:
    """Raise the soft limit as far as is wanted and the system lets us; returns it.

    A login's is often 1,024: as many people with a kept connection each, and neither can another one be taken nor the
    ledger be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit
