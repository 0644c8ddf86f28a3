"""`hustings`, which `python -m deploy` is too."""

import os
import signal
from types import FrameType

FIRST_PROCESS = 1
"""The id of a container's only command, to whom Linux gives no signal that it has no handler for."""


def main() -> None:
    """Entry point: Ctrl-C while the command is still being loaded ends it as quietly as later.

    As a container's first process it ends on SIGTERM from its first moment, also while it fetches a model: without a
    handler the signal would be dropped, and the container killed ten seconds later. Long commands set their own.
    """
    if os.getpid() == FIRST_PROCESS:
        signal.signal(signal.SIGTERM, _end)
    try:
        from deploy.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)  # at once, as the signal ends any other process: threads may still be fetching


if __name__ == "__main__":
    main()
