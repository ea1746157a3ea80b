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
python -m local_nodes images litellm llamacpp llamacpp-vulkan ollama sglang vllm
part "Real nodes: the integration tests' fleet beside the Molecule scenarios"
# Both wait for nodes more than they compute. Each has nodes of its own.
pytest -v tests/integration > >(sed -u 's/^/integration | /') 2>&1 &
integration=$!
trap 'kill "$integration" 2>/dev/null || true' EXIT
status=0
pytest -v tests/molecule || status=$?
wait "$integration" || status=$?
trap - EXIT
((status == 0)) || exit "$status"
echo
echo "== All tests passed in $((SECONDS - start)) s"
