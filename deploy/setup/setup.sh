#!/usr/bin/env bash
# Makes the environment in .venv from the pinned lists in deploy/requirements. `make` calls it:
#   deploy/setup/setup.sh run     what serving, curating and training need
#   deploy/setup/setup.sh test    that and the tools of `make test` and `make check`
# Done already and nothing changed: it returns at once. PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

purpose=${1:-run}
case $purpose in run | test) ;; *)
  echo "setup: the argument is 'run' or 'test', not '$purpose'" >&2
  exit 2
  ;;
esac
venv=${VENV:-.venv}

# 3.11 first: the pinned lists were tested with it.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

if ! python=$(find_python); then
  have=$(python3 --version 2>/dev/null || echo "no Python at all")
  echo "setup: Hustings needs Python 3.11 or newer, and here is ${have}. Install python3.11 (Debian 12 has it, Ubuntu 22.04 in its universe; Debian 13 and Ubuntu 24.04 have newer ones), or set PYTHON=/path/to/python3.11." >&2
  exit 1
fi

if "$python" deploy/setup/environment.py --venv "$venv" --purpose "$purpose" --is-done; then
  exit 0
fi
PYTHON=$python deploy/setup/debian-packages.sh "$purpose"
exec "$python" deploy/setup/environment.py --venv "$venv" --purpose "$purpose"
