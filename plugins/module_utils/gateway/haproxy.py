# SPDX-License-Identifier: Apache-2.0
"""HAProxy's configuration, a pure function of the gateway's settings and the pools (syntax of HAProxy 2.4 to 3.x)."""

from __future__ import annotations

import ipaddress
import json
from typing import Any, Dict, List, Mapping, Sequence

from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import GatewayError

_DEFAULTS: Dict[str, Any] = {
    "host": "The gateway",
    "address": "*",
    "port": 4000,
    "tls_certificate": None,
    "pool_port": 4001,
    "pool_sources": ["127.0.0.0/8", "::1", "172.16.0.0/12"],
    "metrics_port": 8404,
    "request_timeout_seconds": 600,
    "buffer_size_bytes": 1048576,
    "max_connections": 4000,
    "litellm_replicas": 2,
    "litellm_port": 4011,
}
# What every server is watched by: a check twice a second, and two refused connections in a row count as down at once,
# so that a killed engine leaves the rotation before its next check. One good check brings it back.
_WATCH = "check inter 500ms fall 2 rise 1 observe layer4 error-limit 2 on-error mark-down"


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _error(status: int, message: str) -> str:
    body = json.dumps({"error": {"message": message, "type": "gateway_error", "param": None, "code": str(status)}})
    return f"status {status} content-type application/json string '{body}'"


def _sources(settings: Mapping[str, Any]) -> str:
    sources = settings["pool_sources"]
    for source in sources:
        try:
            ipaddress.ip_network(source, strict=False)
        except ValueError as error:
            raise GatewayError(
                f"{settings['host']}: gateway_pool_sources has {source!r}; use networks such as 172.17.0.0/16."
            ) from error
    if not sources:
        raise GatewayError(f"{settings['host']}: gateway_pool_sources is empty; name LiteLLM's network, 172.16.0.0/12.")
    return " ".join(sources)


def render_haproxy(settings: Mapping[str, Any], pools: Sequence[Mapping[str, Any]]) -> str:
    """Return ``haproxy.cfg``; the same input gives the same text.

    :param settings: any of address, port, tls_certificate (path on the gateway or None), pool_port, pool_sources
        (list of networks), metrics_port (0: no metrics), request_timeout_seconds, buffer_size_bytes,
        max_connections, litellm_replicas, litellm_port (of the first replica), host (for messages).
    :param pools: what :func:`pools.pools` returns.
    :raises GatewayError: one sentence for a setting that would not work.
    """
    given: Dict[str, Any] = {**_DEFAULTS, **settings}
    timeout = int(given["request_timeout_seconds"])
    blocks = [
        _global(given, timeout),
        _defaults(timeout),
        _clients(given),
        _litellm(given, timeout),
        _pool_frontend(given),
        ["backend no_pool", "http-request return " + _error(404, "no such pool")],
        *(_pool(pool, timeout) for pool in pools),
    ]
    if given["metrics_port"]:
        blocks.append(_metrics(int(given["metrics_port"])))
    head = "# Written by Ansible (fleet.inference.gateway) from the service registry; changes made here are lost."
    return "\n\n".join([head, *("\n    ".join(block) for block in blocks)]) + "\n"


def _global(given: Mapping[str, Any], timeout: int) -> List[str]:
    lines = [
        "global",
        "log stdout format raw local0 info",
        "user haproxy",
        "group haproxy",
        "chroot /var/lib/haproxy",
        "stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners",
        "stats timeout 30s",
        f"maxconn {int(given['max_connections'])}",
        "# A request is repeated on another server only while its whole body fits into one buffer.",
        f"tune.bufsize {int(given['buffer_size_bytes'])}",
        "# After a reload the old process lives until its last answer is out, but not for ever.",
        f"hard-stop-after {timeout + 60}s",
    ]
    if given["tls_certificate"]:
        lines.append("ssl-default-bind-options ssl-min-ver TLSv1.2")
    return lines


def _defaults(timeout: int) -> List[str]:
    return [
        "defaults",
        "mode http",
        "option dontlognull",
        "option http-buffer-request",
        "# A client that leaves frees its slot in the engine.",
        "option abortonclose",
        "option redispatch 1",
        "retries 3",
        "balance leastconn",
        "timeout connect 2s",
        "timeout check 5s",
        "timeout queue 30s",
        "timeout http-request 60s",
        "timeout http-keep-alive 60s",
        f"timeout client {timeout + 30}s",
        f"timeout server {timeout + 30}s",
        "# An address that can not be resolved takes one server out, not the gateway.",
        "default-server init-addr last,libc,none",
    ]


def _clients(given: Mapping[str, Any]) -> List[str]:
    bind = f"bind {_endpoint(given['address'], int(given['port']))}"
    if given["tls_certificate"]:
        bind += f" ssl crt {given['tls_certificate']} alpn h2,http/1.1"
    return [
        "frontend clients",
        bind,
        "log global",
        "option httplog",
        "option forwardfor",
        "monitor-uri /healthz",
        "monitor fail if { nbsrv(litellm) lt 1 }",
        "default_backend litellm",
    ]


def _litellm(given: Mapping[str, Any], timeout: int) -> List[str]:
    replicas = int(given["litellm_replicas"])
    first = int(given["litellm_port"])
    return [
        "backend litellm",
        "option httpchk GET /health/readiness",
        "http-check expect status 200",
        "# LiteLLM repeats what engines fail; here only what never reached a replica is repeated.",
        "retry-on conn-failure empty-response",
        "http-error " + _error(503, "no LiteLLM replica is up on this gateway"),
        "http-error " + _error(504, f"no answer within {timeout + 30} seconds"),
        *(f"server litellm-{n} 127.0.0.1:{first + n - 1} {_WATCH}" for n in range(1, replicas + 1)),
    ]


def _pool_frontend(given: Mapping[str, Any]) -> List[str]:
    return [
        "frontend pools",
        f"bind *:{int(given['pool_port'])}",
        "log global",
        "option httplog",
        "# Engines have no keys: only LiteLLM and this machine come in here.",
        f"tcp-request connection reject unless {{ src {_sources(given)} }}",
        "use_backend pool_%[path,field(3,/)] if { path_beg /pool/ }",
        "default_backend no_pool",
    ]


def _pool(pool: Mapping[str, Any], timeout: int) -> List[str]:
    lines = [
        f"backend pool_{pool['name']}",
        f"option httpchk GET {pool['health_path']}",
        "http-check expect status 200",
        "retry-on conn-failure empty-response response-timeout 500 502 503 504",
        f"timeout server {timeout}s",
        "http-request replace-path /pool/[^/]+/?(.*) /\\1",
        "http-response set-header x-inference-server %s",
        "http-error " + _error(503, f"no healthy server in the pool {pool['name']}"),
    ]
    for server in pool["servers"]:
        # Weight 0 is HAProxy's drain: running requests finish, the checks go on, no new request comes.
        drained = " weight 0" if server["drained"] else ""
        endpoint = _endpoint(server["address"], server["port"])
        lines.append(f"server {server['name']} {endpoint} {_WATCH}{drained}")
    return lines


def _metrics(port: int) -> List[str]:
    return [
        "frontend metrics",
        f"bind 127.0.0.1:{port}",
        "http-request use-service prometheus-exporter if { path /metrics }",
        "http-request return " + _error(404, "the metrics are at /metrics"),
    ]
