# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import GatewayError
from ansible_collections.fleet.inference.plugins.module_utils.gateway.haproxy import render_haproxy
from ansible_collections.fleet.inference.plugins.module_utils.gateway.pools import pools
from gateway_samples import TWO_NODES, fragment, service

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")


def test_every_part_is_there_for_two_nodes() -> None:
    text = render_haproxy({}, pools(TWO_NODES))
    for line in (
        "bind *:4000",
        "monitor fail if { nbsrv(litellm) lt 1 }",
        "bind *:4001",
        "tcp-request connection reject unless { src 127.0.0.0/8 ::1 172.16.0.0/12 }",
        "use_backend pool_%[path,field(3,/)] if { path_beg /pool/ }",
        "retry-on conn-failure empty-response response-timeout 500 502 503 504",
        "stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners",
        "bind 127.0.0.1:8404",
        "timeout server 600s",
    ):
        assert f"    {line}\n" in text, line
    assert "server litellm-2 127.0.0.1:4012 check" in text
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_a_drained_node_has_weight_0_and_no_other() -> None:
    servers = [line.split() for line in render_haproxy({}, pools(TWO_NODES)).splitlines() if "-llamacpp " in line]
    assert {line[1]: line[-2:] == ["weight", "0"] for line in servers} == {
        "gpu-01-llamacpp": False,
        "gpu-02-llamacpp": True,
    }


def test_the_same_fragments_in_any_order_give_the_same_text() -> None:
    assert render_haproxy({}, pools(TWO_NODES)) == render_haproxy({}, pools(TWO_NODES[::-1]))


def test_settings_are_used() -> None:
    text = render_haproxy(
        {
            "address": "fd00::1",
            "port": 443,
            "tls_certificate": "/etc/ssl/gateway.pem",
            "metrics_port": 0,
            "pool_sources": ["172.17.0.0/16"],
            "request_timeout_seconds": 60,
            "litellm_replicas": 3,
        },
        [],
    )
    assert "bind [fd00::1]:443 ssl crt /etc/ssl/gateway.pem alpn h2,http/1.1\n" in text
    assert "ssl-min-ver TLSv1.2" in text
    assert "frontend metrics" not in text
    assert "{ src 172.17.0.0/16 }" in text
    assert "hard-stop-after 120s" in text
    assert "server litellm-3 127.0.0.1:4013 " in text


@pytest.mark.parametrize("sources", [[], ["everybody"]])
def test_bad_pool_sources_are_refused(sources: list[str]) -> None:
    with pytest.raises(GatewayError, match=r"^gw-01: gateway_pool_sources .*\.$"):
        render_haproxy({"host": "gw-01", "pool_sources": sources}, [])


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed here")
@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({}, []),
        ({}, TWO_NODES),
        ({"address": "::1", "metrics_port": 0}, TWO_NODES),
        ({}, [fragment("a", "fd00::3", service("v", backend="vllm", model="Qwen/Qwen3-0.6B")), *TWO_NODES]),
        ({}, [fragment("a", "no-such-host.invalid")]),
    ],
)
def test_haproxy_takes_it(tmp_path: Path, settings: dict[str, Any], fragments: list[dict[str, Any]]) -> None:
    config = tmp_path / "haproxy.cfg"
    text = render_haproxy(settings, pools(fragments))
    # Who runs the tests may lack the package's user.
    config.write_text(
        "".join(f"{line}\n" for line in text.splitlines() if line.split()[:1] not in (["user"], ["group"]))
    )
    done = subprocess.run([str(HAPROXY), "-c", "-f", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line and "could not resolve" not in line]
    assert warnings == []
