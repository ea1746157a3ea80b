#!/usr/bin/env bash
# Make a virtual environment from a lock file: setup.sh VENV LOCKFILE
set -euo pipefail
venv=$1 lock=$2

python=
for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
  if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "setup: no Python 3.11 to 3.13 with venv found; install python3 and python3-venv, or name one: make setup PYTHON=/path/to/python3.12" >&2
  exit 1
fi

echo "  .. $venv with $("$python" --version) and the tools of $lock"
start=$SECONDS
"$python" -m venv --clear "$venv"
# The lock file is complete, so nothing is resolved; every archive is checked against its hash.
if ! "$venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes -r "$lock" 2>"$venv/pip.log"; then
  grep -v '^WARNING: Location' "$venv/pip.log" >&2
  exit 1
fi
# Byte code for what every run imports; the collections of `ansible` are compiled when they are used.
"$venv/bin/python" -m compileall -q -j 0 -x 'ansible_collections|ansible_test' "$venv/lib" >/dev/null || true
echo "  ok $venv ($((SECONDS - start)) s)"
