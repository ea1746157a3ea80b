# SPDX-License-Identifier: Apache-2.0
"""LiteLLM's configuration: one public name a model, one deployment a pool, one stable URL each through HAProxy.

A node that comes, goes or is drained changes HAProxy's servers, never this file.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

import yaml
from ansible_collections.fleet.inference.plugins.module_utils.planning.images import is_denied
from ansible_collections.fleet.inference.plugins.module_utils.planning.versions import is_below

#: Which backend a model prefers when several serve it; the rest follow by name.
BACKEND_PREFERENCE = ("vllm", "sglang", "llamacpp", "ollama")
#: How a replica's container reaches HAProxy on its host.
GATEWAY_HOST = "fleet-gateway"
#: Releases with a credential stealer: PyPI 1.82.7 and 1.82.8 (March 2026); 1.107.0 everywhere (October 2026).
DENIED_VERSIONS = ("1.82.7", "1.82.8", "1.107.0")
DENIED_DIGESTS = ("sha256:1bbcb1443bc962e45f5aad53fe3d2c30600e0379715fb6c664cdd3ac126c339e",)


def image_problem(entry: Mapping[str, Any]) -> Optional[str]:
    """Say in one sentence why this LiteLLM image must not run, or return None.

    :param entry: repository, tag, digest and further denied versions of the version table.
    """
    tag = str(entry.get("tag") or "")
    if is_denied(tag, (*DENIED_VERSIONS, *(entry.get("denied") or ()))) or entry.get("digest") in DENIED_DIGESTS:
        return (
            f"inference_engines.litellm names LiteLLM {tag or entry.get('digest')}, which must not run "
            "(some releases carry a credential stealer); use another version, for example v1.109.1."
        )
    floor = str(entry.get("minimum_version") or "")
    if floor and is_below(tag, floor):
        return f"inference_engines.litellm names LiteLLM {tag}, which is below {floor}; use v1.109.1, for example."
    if not entry.get("digest") and not tag.removeprefix("v")[:1].isdigit():
        return f"inference_engines.litellm has the tag {tag!r}, which moves; use a version such as v1.109.1."
    return None


def _preference(pool: Mapping[str, Any]) -> tuple[int, str]:
    backend = str(pool["backend"])
    known = backend in BACKEND_PREFERENCE
    return (BACKEND_PREFERENCE.index(backend) if known else len(BACKEND_PREFERENCE), backend)


def litellm_settings(settings: Mapping[str, Any], pools: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """Return LiteLLM's configuration as data.

    :param settings: pool_port and request_timeout_seconds.
    :param pools: what :func:`pools.pools` returns.
    """
    timeout = int(settings.get("request_timeout_seconds", 600))
    port = int(settings.get("pool_port", 4001))
    models: Dict[str, List[Mapping[str, Any]]] = {}
    for pool in pools:
        models.setdefault(pool["model"], []).append(pool)

    deployments = []
    for model in sorted(models):
        for order, pool in enumerate(sorted(models[model], key=_preference), start=1):
            params: Dict[str, Any] = {
                "model": f"openai/{model}",
                "api_base": f"http://{GATEWAY_HOST}:{port}/pool/{pool['name']}/v1",
                # The openai provider wants some key; engines have none and are reached through HAProxy only.
                "api_key": "none",
            }
            if len(models[model]) > 1:
                params["order"] = order
            info: Dict[str, Any] = {"id": pool["name"], "mode": "chat"}
            if pool.get("context_length"):
                info["max_input_tokens"] = pool["context_length"]
            deployments.append({"model_name": model, "litellm_params": params, "model_info": info})

    return {
        "model_list": deployments,
        "router_settings": {
            "routing_strategy": "simple-shuffle",
            "num_retries": 2,
            "allowed_fails": 1,
            "cooldown_time": 15,
            "timeout": timeout,
        },
        "litellm_settings": {"drop_params": True, "request_timeout": timeout},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY", "cancel_on_disconnect": True},
    }


def render_litellm(settings: Mapping[str, Any], pools: Sequence[Mapping[str, Any]]) -> str:
    """Return LiteLLM's ``config.yaml``; the same input gives the same text."""
    head = "# Written by Ansible (fleet.inference.gateway) from the service registry; changes made here are lost.\n"
    return head + str(yaml.safe_dump(litellm_settings(settings, pools), sort_keys=False, width=200))
