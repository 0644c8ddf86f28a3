"""Fetch the vendored files again: `python serve/web/vendor/fetch.py` (needs npm; `--check` only compares checksums).

To move to a new version, change it in pins.json, empty its checksums, run this, read the diff.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PINS = HERE / "pins.json"


def packed_file(package: str, version: str, name: str, into: Path) -> bytes:
    """One file of a published npm package."""
    done = subprocess.run(
        ["npm", "pack", "--silent", f"{package}@{version}"], cwd=into, check=True, capture_output=True, text=True
    )
    with tarfile.open(into / done.stdout.split()[-1]) as archive:
        member = archive.extractfile(f"package/{name}")
        if member is None:
            raise SystemExit(f"{package}@{version} holds no {name}")
        return member.read()


def faults(pins: list[dict[str, str]]) -> list[str]:
    """Files whose checksum is not the pinned one."""
    return [pin["as"] for pin in pins if hashlib.sha256((HERE / pin["as"]).read_bytes()).hexdigest() != pin["sha256"]]


def main() -> int:
    """Fetch or check; returns the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="compare the files here with pins.json, fetch nothing")
    pins: list[dict[str, str]] = json.loads(PINS.read_text())
    if not arguments.parse_args().check:
        with tempfile.TemporaryDirectory() as folder:
            for pin in pins:
                content = packed_file(pin["package"], pin["version"], pin["file"], Path(folder))
                (HERE / pin["as"]).write_bytes(content)
                pin["sha256"] = pin["sha256"] or hashlib.sha256(content).hexdigest()
        PINS.write_text("[\n" + ",\n".join(f"  {json.dumps(pin)}" for pin in pins) + "\n]\n")
    wrong = faults(pins)
    if wrong:
        sys.stderr.write(f"checksum differs from pins.json: {', '.join(wrong)}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
