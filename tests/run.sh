#!/usr/bin/env bash
# All tests, quick ones first. pytest prints its closing line for each part.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS

part() {
  echo
  echo "== $1 (after $((SECONDS - start)) s)"
}

part "Packages of this machine"
python -m local_nodes host-setup
part "Lint"
tests/lint.sh
part "Unit tests"
pytest -q tests/unit
part "Engine images"
python -m local_nodes images
part "Integration and Molecule: real nodes"
pytest -v tests/integration tests/molecule
echo
echo "== All tests passed in $((SECONDS - start)) s"
