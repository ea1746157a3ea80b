# SPDX-License-Identifier: Apache-2.0
"""Pools: all services of the fleet that serve one model with one backend. A pure function of the fragments."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import FLAGS, validate_fragments


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def pool_name(model: str, backend: str) -> str:
    """Return ``<model>--<backend>`` in the letters that a URL path and an HAProxy name share."""
    return f"{re.sub(r'[^a-z0-9.-]', '-', model.lower())}--{backend}"


def _unique(names: Mapping[Any, str]) -> Dict[Any, str]:
    """Give keys that would share a name a suffix made from the key, whatever else there is."""
    counts: Dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {key: name if counts[name] == 1 else f"{name}-{_short_hash(repr(key))}" for key, name in names.items()}


def pools(fragments: Sequence[Any]) -> List[Dict[str, Any]]:
    """Group the services of all fragments into pools, sorted by name; a service is in the pool of each of its models.

    :return: ``[{name, model, backend, health_path, context_length (the smallest, tokens, or None), parallel (the sum of
        slots, or None), servers: [{name, node, service, address, port, drained}]}]``
    :raises GatewayError: for a bad fragment.
    """
    members: Dict[Tuple[str, str], List[Tuple[Dict[str, Any], Dict[str, Any]]]] = {}
    for fragment in validate_fragments(fragments):
        for service in fragment["services"]:
            members.setdefault((service["model"], service["backend"]), []).append((fragment, service))

    names = _unique({key: pool_name(*key) for key in members})
    found = []
    for key, group in members.items():
        servers = _unique({(f["node"], s["name"]): f"{f['node']}-{s['name']}" for f, s in group})
        contexts = [s["context_length"] for _, s in group if s["context_length"]]
        slots = [s["parallel"] for _, s in group if s["parallel"]]
        found.append(
            {
                "name": names[key],
                "model": key[0],
                "backend": key[1],
                # One check serves the whole pool; its members run the same engine.
                "health_path": group[0][1]["health_path"],
                "context_length": min(contexts) if contexts else None,
                "parallel": sum(slots) if slots else None,
                "servers": [
                    {
                        "name": servers[(f["node"], s["name"])],
                        "node": f["node"],
                        "service": s["name"],
                        "address": f["address"],
                        "port": s["port"],
                        "drained": s["stopped"] or any(f[flag] for flag in FLAGS),
                    }
                    for f, s in group
                ],
            }
        )
    return sorted(found, key=lambda pool: str(pool["name"]))
