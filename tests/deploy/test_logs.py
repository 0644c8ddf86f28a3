"""Log lines as they leave a process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

BEGIN = """
import logging, structlog
from feedback import logs
logs.configure("serve", json=True)
log = structlog.get_logger()
"""


def lines(program: str) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, "-c", BEGIN + program], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_ours_and_others_lines_are_json_with_process_level_and_time() -> None:
    ours, theirs = lines("log.info('request', status=201)\nlogging.getLogger('other').warning('old %s', 'way')")
    assert (ours["event"], ours["status"], ours["process"], ours["level"]) == ("request", 201, "serve", "info")
    assert (theirs["event"], theirs["process"], theirs["level"]) == ("old way", "serve", "warning")
    assert ours["timestamp"].endswith("Z")
    assert theirs["timestamp"].endswith("Z")


def test_below_the_level_nothing_is_written_and_a_traceback_is_one_line() -> None:
    (line,) = lines("log.debug('no')\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')")
    assert line["event"] == "failed"
    assert "ZeroDivisionError" in line["exception"]


def test_what_json_or_utf8_cannot_hold_is_written_all_the_same() -> None:
    first, second, third = lines(
        "log.info('half', text='\\ud800')\nlog.info('big', number=2**70)\nlog.info('thing', it=object)"
    )
    assert (first["text"], second["number"]) == ("\ud800", 2**70)
    assert "object" in third["it"]


def test_a_process_whose_log_reader_has_gone_works_on() -> None:
    program = (
        BEGIN + "import os, sys\nr, w = os.pipe()\nos.dup2(w, 2)\nos.close(w)\nos.close(r)\n"
        "import signal\nsignal.signal(signal.SIGPIPE, signal.SIG_IGN)\n"
        "for _ in range(3): log.info('nobody reads this')\nprint('done')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
