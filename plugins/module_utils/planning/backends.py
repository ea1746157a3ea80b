# SPDX-License-Identifier: Apache-2.0
"""The backends that the plan knows, by name."""

from __future__ import annotations

from ansible_collections.fleet.inference.plugins.module_utils.planning import (
    backend_llamacpp,
    backend_ollama,
    backend_sglang,
    backend_vllm,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import Backend

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (backend_llamacpp.BACKEND, backend_ollama.BACKEND, backend_sglang.BACKEND, backend_vllm.BACKEND)
}
