#!/usr/bin/env bash
# Every static check. Each says what it is; the first that fails ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
trap 'kill "${slow:-}" 2>/dev/null || true; rm -rf "$logs"' EXIT

failed() {
  echo "  FAILED $1"
  cat "$2"
  exit 1
}

check() {
  local title=$1 start=$SECONDS
  shift
  "$@" >"$logs/check" 2>&1 || failed "$title: $*" "$logs/check"
  echo "  ok $title ($((SECONDS - start)) s)"
}

syntax() {
  # -P: a playbook takes a second, nearly all of it starting up.
  printf '%s\0' site.yml playbooks/*.yml | xargs -0 -n1 -P2 ansible-playbook -i inventory/demo/hosts.yml --syntax-check
}

collection() {
  local other
  ansible-galaxy collection build --force --output-path "$logs" . || return 1
  # The archive holds the collection and nothing of the project around it.
  other=$(tar tzf "$logs"/*.tar.gz \
    | grep -vE '^(CHANGELOG\.md|FILES\.json|LICENSE|MANIFEST\.json|README\.md|(group_vars|meta|playbooks|plugins|roles)/.*)$' || true)
  if [ -n "$other" ]; then
    printf '%s\n' "$other" "galaxy.yml: the files above do not belong in the collection's archive; add them to build_ignore"
    return 1
  fi
}

# Ansible-lint takes longer than all the others together, so it starts first and is waited for last.
# It follows links: .collections leads back to this folder.
ansible-lint --offline --profile production --strict --exclude .collections >"$logs/ansible-lint" 2>&1 &
slow=$!
check "ruff" ruff check .
check "ruff format" ruff format --check .
check "yamllint" yamllint --strict .
check "mypy" mypy
check "playbooks' syntax" syntax
check "plugins' and roles' documentation" python tests/documented.py
check "collection archive" collection
wait "$slow" || failed "ansible-lint" "$logs/ansible-lint"
echo "  ok ansible-lint, production profile ($SECONDS s since the start)"
