# SPDX-License-Identifier: Apache-2.0
"""What can be known to be wrong with a gateway's settings before anything is changed."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import GatewayError
from ansible_collections.fleet.inference.plugins.module_utils.gateway.haproxy import render_haproxy
from ansible_collections.fleet.inference.plugins.module_utils.gateway.litellm import image_problem

_HAPROXY = ("haproxy",)
_LITELLM = ("docker-proxy", "dockerd", "conmon")


def _wanted_ports(settings: Mapping[str, Any]) -> List[Tuple[str, int, Tuple[str, ...]]]:
    """Return (variable, port, names of the processes that may hold it already)."""
    ports: List[Tuple[str, int, Tuple[str, ...]]] = [
        ("gateway_port", settings["port"], _HAPROXY),
        ("gateway_pool_port", settings["pool_port"], _HAPROXY),
    ]
    if settings["metrics_port"]:
        ports.append(("gateway_metrics_port", settings["metrics_port"], _HAPROXY))
    first = settings["litellm_port"]
    ports += [("gateway_litellm_port", first + n, _LITELLM) for n in range(settings["litellm_replicas"])]
    return ports


def problem(
    settings: Mapping[str, Any], image: Mapping[str, Any], facts: Optional[Mapping[str, Any]] = None
) -> Optional[str]:
    """Say in one sentence why a gateway can not be set up like this, or return None.

    :param settings: the settings of :func:`haproxy.render_haproxy`, with host.
    :param image: LiteLLM's entry of the version table.
    :param facts: the gateway's facts, when they are known: its listening ports and its operating system.
    """
    host = settings["host"]
    for variable, key, low, high in (
        ("gateway_port", "port", 1, 65535),
        ("gateway_pool_port", "pool_port", 1, 65535),
        ("gateway_metrics_port", "metrics_port", 0, 65535),
        ("gateway_litellm_port", "litellm_port", 1, 65500),
        ("gateway_litellm_replicas", "litellm_replicas", 1, 32),
        ("gateway_request_timeout_seconds", "request_timeout_seconds", 1, 86400),
        ("gateway_buffer_size_bytes", "buffer_size_bytes", 16384, 64 * 1024**2),
        ("gateway_max_connections", "max_connections", 10, 1000000),
    ):
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            return f"{host}: {variable} is {value!r}; use a whole number from {low} to {high}."
    ports = _wanted_ports(settings)
    owners: Dict[int, str] = {}
    for variable, port, _ in ports:
        if port in owners:
            return f"{host}: {owners[port]} and {variable} both need port {port}; give each its own."
        owners[port] = variable

    told = image_problem(image)
    if told:
        return f"{host}: {told}"
    try:
        render_haproxy(settings, [])
    except GatewayError as error:
        return str(error)
    return _conflict(host, ports, facts) if facts else None


def _conflict(host: str, ports: List[Tuple[str, int, Tuple[str, ...]]], facts: Mapping[str, Any]) -> Optional[str]:
    family = (facts.get("os") or {}).get("family")
    if family not in (None, "debian"):
        return f"{host}: the gateway needs Debian or Ubuntu, and this host is of the {family} family; use another host."
    for listener in facts.get("listening") or []:
        for variable, port, allowed in ports:
            process = listener.get("process")
            if listener.get("port") == port and process and process not in allowed:
                return f"{host}: {variable} needs port {port}, but {process} listens there; stop it or change that."
    return None
