# SPDX-License-Identifier: Apache-2.0
"""Fragments of the service registry: what one node serves, as one JSON document.

Runs on gateways too (Python 3.8, standard library only).
"""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Mapping, Sequence, Tuple

SCHEMA_VERSION = 1

#: Where each engine says "ready": 503 while a model loads, 200 afterwards. Ollama's root answers 200.
HEALTH_PATHS = {"llamacpp": "/health", "vllm": "/health", "sglang": "/health", "ollama": "/"}

#: Why a node gets no new requests: an administrator drained it, or a run restarts it. They are apart, so that the end
#: of a restart brings no node back that an administrator took out.
FLAGS = ("drained", "restarting")

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_ADDRESS = re.compile(r"[A-Za-z0-9._:-]+")
_HEALTH_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")
# A model's name reaches the configurations of HAProxy and LiteLLM: no spaces, quotes or control characters.
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+@-]*")


class GatewayError(ValueError):
    """One sentence that names what is wrong with a fragment or a setting and what would be right."""


def _whole_number(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _text(value: Any, pattern: "re.Pattern[str]") -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def validate_fragment(fragment: Any, origin: str = "") -> Dict[str, Any]:
    """Check a fragment and return it with exactly the known keys, its services sorted by name.

    :param fragment: what was read from a file or built from a plan.
    :param origin: where it came from (a path), for the message; the node's name when empty.
    :raises GatewayError: one sentence naming the origin, the key and what would be right.
    """
    if not isinstance(fragment, Mapping):
        raise GatewayError(f"{origin or 'A fragment'} is not a mapping; a fragment is an object with the key node.")
    node = fragment.get("node")
    where = origin or f"The fragment of {node}"
    if not _text(node, _NODE):
        raise GatewayError(f"{where} has the node name {node!r}; use letters, digits, dots, hyphens and underscores.")
    if fragment.get("schema_version") != SCHEMA_VERSION:
        raise GatewayError(
            f"{where} has schema_version {fragment.get('schema_version')!r}; this version reads {SCHEMA_VERSION}, "
            f"so run site.yml for {node} again."
        )
    if not _text(fragment.get("address"), _ADDRESS):
        raise GatewayError(f"{where} has the address {fragment.get('address')!r}; use an IP address or a host name.")
    for key in FLAGS:
        if not isinstance(fragment.get(key, False), bool):
            raise GatewayError(f"{where} has {key} {fragment[key]!r}; use true or false.")
    services = fragment.get("services")
    if isinstance(services, (str, bytes)) or not isinstance(services, Sequence):
        raise GatewayError(f"{where} has services {services!r}; use a list, empty when the node serves nothing.")
    checked = sorted((_validate_service(service, where) for service in services), key=_entry_key)
    # A service has one entry for each model that it serves.
    keys = [_entry_key(service) for service in checked]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        name, model = twice[0]
        raise GatewayError(
            f"{where} has the service {name} twice with the model {model}; service names are unique on a node."
        )
    servers = {service["name"]: (service["backend"], service["port"]) for service in checked}
    other = [item for item in checked if (item["backend"], item["port"]) != servers[item["name"]]]
    if other:
        raise GatewayError(
            f"{where} has the service {other[0]['name']} with two backends or ports; "
            "service names are unique on a node."
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "node": node,
        "address": fragment["address"],
        **{key: fragment.get(key, False) for key in FLAGS},
        "services": checked,
    }


def _entry_key(service: Mapping[str, Any]) -> Tuple[str, str]:
    return str(service["name"]), str(service["model"])


def _validate_service(service: Any, where: str) -> Dict[str, Any]:
    if not isinstance(service, Mapping):
        raise GatewayError(f"{where} has a service that is not a mapping; a service has name, backend, model and port.")
    name = service.get("name")
    if not _text(name, _NAME):
        raise GatewayError(f"{where} has a service named {name!r}; use small letters, digits and hyphens.")
    whose = f"{where}, service {name},"
    if not _text(service.get("backend"), _NAME):
        raise GatewayError(f"{whose} has the backend {service.get('backend')!r}; use for example llamacpp.")
    if not _text(service.get("model"), _MODEL):
        raise GatewayError(f"{whose} has the model {service.get('model')!r}; use a model's name without spaces.")
    if not _whole_number(service.get("port"), 1, 65535):
        raise GatewayError(f"{whose} has the port {service.get('port')!r}; use a number from 1 to 65535.")
    for key in ("context_length", "parallel"):
        if service.get(key) is not None and not _whole_number(service[key], 1, 2**31):
            raise GatewayError(f"{whose} has {key} {service[key]!r}; use a positive number or null.")
    if not isinstance(service.get("stopped", False), bool):
        raise GatewayError(f"{whose} has stopped {service['stopped']!r}; use true or false.")
    health_path = service.get("health_path") or HEALTH_PATHS.get(str(service["backend"]), "/health")
    if not _text(health_path, _HEALTH_PATH):
        raise GatewayError(f"{whose} has the health_path {health_path!r}; use a path that starts with a slash.")
    return {
        "name": name,
        "backend": service["backend"],
        "model": service["model"],
        "port": service["port"],
        "context_length": service.get("context_length"),
        "parallel": service.get("parallel"),
        "health_path": health_path,
        # It gets no new requests: a run stopped it, or restarts it, and publishing or its start ends that.
        "stopped": service.get("stopped", False),
    }


def fragment_from_plan(plan: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the fragment that publishes a node's plan, neither drained nor restarting: an entry for each model.

    :raises GatewayError: when the plan lacks something that a fragment needs.
    """
    return validate_fragment(
        {
            "schema_version": SCHEMA_VERSION,
            "node": plan.get("node"),
            "address": plan.get("address"),
            "services": [entry for service in plan.get("services") or [] for entry in _entries(service)],
        }
    )


def _entries(service: Any) -> List[Any]:
    """Return a plan's service once for each of its models, with what a request to that model gets."""
    if not isinstance(service, Mapping) or not service.get("models"):
        return [service]
    return [
        {
            **service,
            "model": model.get("name"),
            "context_length": model.get("context_length"),
            "parallel": model.get("parallel"),
        }
        for model in service["models"]
    ]


def validate_fragments(fragments: Sequence[Any]) -> List[Dict[str, Any]]:
    """Check several fragments; return them sorted by node.

    :raises GatewayError: for the first bad fragment, or when a node appears twice.
    """
    checked = sorted((validate_fragment(fragment) for fragment in fragments), key=lambda item: str(item["node"]))
    nodes = [fragment["node"] for fragment in checked]
    for node in nodes:
        if nodes.count(node) > 1:
            raise GatewayError(f"The node {node} has two fragments; pass one for each node.")
    return checked


def dump_fragment(fragment: Mapping[str, Any]) -> str:
    """Return the one text that a fragment has on disk: equal fragments give equal bytes."""
    return json.dumps(fragment, indent=2, sort_keys=True, ensure_ascii=True) + "\n"


def load_fragment(text: str, origin: str) -> Dict[str, Any]:
    """Read a fragment's text.

    :param origin: the file's path, for the message.
    :raises GatewayError: for broken JSON or a bad fragment.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise GatewayError(
            f"{origin} is not valid JSON ({error}); delete it and run site.yml for that node again."
        ) from error
    return validate_fragment(data, origin)
