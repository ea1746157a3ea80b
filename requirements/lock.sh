#!/usr/bin/env bash
# Resolve the requirements anew. One file serves Python 3.11 to 3.13; it carries hashes and no addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "lock: uv is not on PATH; install it first (pip install uv)" >&2; exit 1; }
options=(--quiet --upgrade --generate-hashes --no-emit-index-url --custom-compile-command "make lock")
for name in runtime dev; do
  uv pip compile "${options[@]}" --universal --python-version 3.11 -o "requirements/$name.txt" "requirements/$name.in"
done
# The wheel of torch for the CPU may lie in a folder that pip's configuration names.
links=${PIP_FIND_LINKS:-$(pip config get global.find-links 2>/dev/null || true)}
export UV_FIND_LINKS="${UV_FIND_LINKS:-${links// /,}}"
# Image and its Python.
for image in litellm:3.13 sglang:3.11 vllm:3.11; do
  folder=molecule/shared/images/${image%:*}
  uv pip compile "${options[@]}" --python-version "${image#*:}" --python-platform x86_64-manylinux_2_36 \
    --override "$folder/overrides.txt" -o "$folder/requirements.txt" "$folder/requirements.in"
done
