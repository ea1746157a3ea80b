# SPDX-License-Identifier: Apache-2.0
"""Fragments that the tests of the gateway share."""

from __future__ import annotations

from typing import Any


def service(name: str = "llamacpp", **changes: Any) -> dict[str, Any]:
    """Return a service of a fragment."""
    return {
        "name": name,
        "backend": "llamacpp",
        "model": "smollm2-135m-instruct",
        "port": 8005,
        "context_length": 2048,
        "parallel": 4,
        "health_path": "/health",
        "stopped": False,
        **changes,
    }


def fragment(
    node: str, address: str, *services: dict[str, Any], drained: bool = False, restarting: bool = False
) -> dict[str, Any]:
    """Return a fragment; one llama.cpp service when none is given."""
    return {
        "schema_version": 1,
        "node": node,
        "address": address,
        "drained": drained,
        "restarting": restarting,
        "services": list(services or (service(),)),
    }


TWO_NODES = [fragment("gpu-02", "10.0.0.12", drained=True), fragment("gpu-01", "10.0.0.11")]
