#!/usr/bin/env bash
# All tests, quick ones first. pytest prints its closing line for each part.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
# The slow tests are run when the others took no longer than this many seconds.
slow_until=${SLOW_UNTIL:-2700}

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
python -m local_nodes images litellm llamacpp llamacpp-vulkan ollama sglang vllm
part "Integration and Molecule: real nodes"
pytest -v tests/integration tests/molecule
if ((SECONDS - start < slow_until)); then
  part "Slow tests"
  pytest -v -m slow tests/integration tests/molecule
else
  part "Slow tests are left to make test-slow: the others took more than $slow_until s"
fi
echo
echo "== All tests passed in $((SECONDS - start)) s"
