#!/usr/bin/env bash
# Resolve the requirements anew. One file serves Python 3.11 to 3.13; it carries hashes and no addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "lock: uv is not on PATH; install it first (pip install uv)" >&2; exit 1; }
options=(--quiet --upgrade --generate-hashes --no-emit-index-url --custom-compile-command "make lock")
for name in runtime dev; do
  uv pip compile "${options[@]}" --universal --python-version 3.11 -o "requirements/$name.txt" "requirements/$name.in"
done
litellm=molecule/shared/images/litellm
uv pip compile "${options[@]}" --python-version 3.13 --python-platform x86_64-manylinux_2_36 \
  --override "$litellm/overrides.txt" -o "$litellm/requirements.txt" "$litellm/requirements.in"
ollama=molecule/shared/images/ollama
uv pip compile "${options[@]}" --no-deps --python-version 3.13 --python-platform x86_64-manylinux_2_36 \
  -o "$ollama/requirements.txt" "$ollama/requirements.in"
