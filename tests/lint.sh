#!/usr/bin/env bash
# Every static check. Each says what it is; the first that fails ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."

check() {
  local title=$1 start=$SECONDS
  shift
  if "$@" >.cache/lint.log 2>&1; then
    echo "  ok $title ($((SECONDS - start)) s)"
  else
    echo "  FAILED $title: $*"
    cat .cache/lint.log
    exit 1
  fi
}

syntax() {
  local playbook
  for playbook in site.yml playbooks/*.yml; do
    ansible-playbook -i inventory/demo/hosts.yml --syntax-check "$playbook" || return 1
  done
}

documented() {
  local kind path names
  for kind in module filter lookup; do
    case $kind in module) path=plugins/modules ;; *) path=plugins/$kind ;; esac
    names=$(grep -lE '^DOCUMENTATION' "$path"/*.py | xargs -n1 basename | sed 's/\.py$//')
    # A file of filters may hold several; each must be documented under its own name.
    if [ "$kind" = filter ]; then
      names=$(python tests/filter_names.py)
    fi
    for name in $names; do
      ansible-doc -t "$kind" "fleet.inference.$name" >/dev/null || return 1
    done
  done
  for name in roles/*/; do
    ansible-doc -t role "fleet.inference.$(basename "$name")" | grep -q . || return 1
  done
}

collection() {
  local out
  out=$(mktemp -d)
  ansible-galaxy collection build --force --output-path "$out" . || return 1
  # The artifact holds the collection and nothing of the project around it.
  if tar tzf "$out"/*.tar.gz | grep -E '^(\.|tests/|molecule/|inventory/|benchmarks/)'; then
    echo "the files above do not belong in the collection's archive"
    rm -rf "$out"
    return 1
  fi
  rm -rf "$out"
}

mkdir -p .cache
check "ruff" ruff check .
check "ruff format" ruff format --check .
check "yamllint" yamllint --strict .
check "mypy" mypy
check "playbooks' syntax" syntax
check "plugins' and roles' documentation" documented
check "collection archive" collection
check "ansible-lint, production profile" ansible-lint --offline --profile production --strict
