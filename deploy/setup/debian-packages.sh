#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that Hustings uses. As root (or with sudo that asks for no password) it runs
# apt-get; otherwise it prints the command and says what works without. `make` calls it on the first set-up:
#   deploy/setup/debian-packages.sh run      to serve, curate and train
#   deploy/setup/debian-packages.sh test     that, and what `make test` exercises
#   deploy/setup/debian-packages.sh list     prints each package and its reason, installs nothing
set -euo pipefail

python=${PYTHON:-python3}

# python3, or python3.12 where that is the one in use and python3 is another: Debian packages each by itself.
python_package() {
  local own default
  own=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])' 2>/dev/null) || own=
  default=$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])' 2>/dev/null) || default=
  if [ -z "$own" ] || [ "$own" = "$default" ]; then echo python3; else echo "$own"; fi
}
package_of_python=$(python_package)

# The CUDA build's kernels (Triton) are bound to Python by a C compiler when the engine starts.
wants_compiler() {
  case ${HUSTINGS_FLAVOUR:-} in
  cuda) true ;;
  cpu) false ;;
  *) [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]] ;;
  esac
}

# package | why | what is lost without it
runtime_packages() {
  cat <<EOF
$package_of_python-venv|the environment in .venv|nothing can be set up
libnuma1|the engine on a CPU is linked with it|the engine doesn't start on a CPU
libtcmalloc-minimal4|a faster memory allocator for the engine and the trainer|up to a third more time in training
ca-certificates|fetching packages over TLS|downloads fail
EOF
  if wants_compiler; then
    cat <<EOF
gcc|the engine on a GPU compiles the start of its kernels|the engine doesn't start on a GPU
$package_of_python-dev|C headers for that|the engine doesn't start on a GPU
EOF
  fi
}

test_packages() {
  cat <<'EOF'
chromium|browser tests of the chat page|they fail
fonts-dejavu-core|text in the browser tests' screenshots|boxes in place of letters
fonts-noto-color-emoji|reasons and reactions in screenshots|boxes in place of pictures
postgresql|the ledger's contract suite on PostgreSQL|that half of it fails
default-jre-headless|Apache Kafka, where its jars are at hand|the event log's contract suite runs on the embedded broker alone
prometheus|promtool, which checks the alert rules|the rule tests fail
shellcheck|the lint of these scripts|that test fails
EOF
}

purpose=${1:-run}
case $purpose in
run) table=$(runtime_packages) ;;
test) table=$(runtime_packages && test_packages) ;;
list)
  echo "To run:" && runtime_packages | awk -F'|' '{printf "  %-24s %s (without: %s)\n", $1, $2, $3}'
  echo "To test:" && test_packages | awk -F'|' '{printf "  %-24s %s (without: %s)\n", $1, $2, $3}'
  exit 0
  ;;
*)
  echo "debian-packages: the argument is 'run', 'test' or 'list', not '$purpose'" >&2
  exit 2
  ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "setup: this is no Debian or Ubuntu; going on without its packages. What they are for: deploy/setup/debian-packages.sh list" >&2
  exit 0
fi

# Debian 13 and Ubuntu 24.04 call some libraries …t64, which apt-get finds by the old name and dpkg doesn't.
installed() {
  local name
  for name in "$1" "$1t64"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] && return 0
  done
  return 1
}

# An interpreter that is not Debian's own (built from source, in a container image) brings its venv and headers with it.
provided() {
  case $1 in
  python3*-venv) "$python" -c 'import ensurepip, venv' 2>/dev/null ;;
  python3*-dev) "$python" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null ;;
  gcc) command -v "${CC:-gcc}" >/dev/null || command -v clang >/dev/null ;;
  *) return 1 ;;
  esac
}

missing=() && lines=()
while IFS='|' read -r package why without; do
  if ! installed "$package" && ! provided "$package"; then
    missing+=("$package")
    lines+=("$(printf '  %-24s %s (without: %s)' "$package" "$why" "$without")")
  fi
done <<<"$table"
[ ${#missing[@]} -gt 0 ] || exit 0

run_as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if sudo -n true 2>/dev/null; then
    run_as_root=(sudo -n)
  else
    {
      echo "setup: these Debian packages are not installed, and only root may install them:"
      printf '%s\n' "${lines[@]}"
      echo "setup: run this, then make again (going on without them now):"
      echo "  sudo apt-get update && sudo apt-get install --yes --no-install-recommends ${missing[*]}"
    } >&2
    exit 0
  fi
fi

echo "setup: installing the Debian packages ${missing[*]}"
log=$(mktemp)
# Debian starts a package's server as soon as it is installed, some on every interface. Tests start their own, on
# 127.0.0.1; so none is started here, unless this machine has a policy of its own.
policy=${POLICY_RC_D:-/usr/sbin/policy-rc.d}
made_policy=
as_root() { "${run_as_root[@]}" "$@"; }
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null 2>&1 && as_root chmod 755 "$policy" && made_policy=yes
fi
finish() {
  rm -f "$log"
  if [ -n "$made_policy" ]; then as_root rm -f "$policy"; fi
}
trap finish EXIT
apt() { "${run_as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1; }
# The lists may be fresh already (and the network away), so they are fetched only when an install fails.
if ! apt install --yes --no-install-recommends "${missing[@]}"; then
  if ! { apt update && apt install --yes --no-install-recommends "${missing[@]}"; }; then
    # One that this release has not (Ubuntu: chromium) must not keep the others away.
    left=() && left_lines=()
    for n in "${!missing[@]}"; do
      if ! apt install --yes --no-install-recommends "${missing[n]}"; then
        left+=("${missing[n]}")
        left_lines+=("${lines[n]}")
      fi
    done
    if [ ${#left[@]} -gt 0 ]; then
      tail -n 5 "$log" >&2
      echo "setup: apt-get could not install ${left[*]} (its last lines are above); going on without:" >&2
      printf '%s\n' "${left_lines[@]}" >&2
    fi
  fi
fi
