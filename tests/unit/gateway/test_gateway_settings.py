# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.gateway.settings import problem

IMAGE = {"repository": "ghcr.io/berriai/litellm", "tag": "v1.109.1", "digest": None}
SETTINGS: dict[str, Any] = {
    "host": "gateway-01",
    "address": "*",
    "port": 4000,
    "tls_certificate": None,
    "pool_port": 4001,
    "pool_sources": ["127.0.0.0/8"],
    "metrics_port": 8404,
    "request_timeout_seconds": 600,
    "buffer_size_bytes": 1048576,
    "max_connections": 4000,
    "litellm_replicas": 2,
    "litellm_port": 4011,
}


def listening(port: int, process: str | None) -> dict[str, Any]:
    return {"os": {"family": "debian"}, "listening": [{"address": "0.0.0.0", "port": port, "process": process}]}


@pytest.mark.parametrize(
    "facts",
    [
        None,
        {},
        listening(4000, "haproxy"),
        listening(4011, "docker-proxy"),
        listening(4000, None),
        listening(80, "nginx"),
        {"os": {"family": "debian"}},
    ],
)
def test_good_settings_have_no_problem(facts: dict[str, Any] | None) -> None:
    assert problem(SETTINGS, IMAGE, facts) is None
    assert problem({**SETTINGS, "metrics_port": 0}, IMAGE, facts) is None


@pytest.mark.parametrize(
    ("change", "image", "facts", "words"),
    [
        ({"port": "4000"}, IMAGE, None, ["gateway_port is '4000'", "65535"]),
        ({"litellm_replicas": 0}, IMAGE, None, ["gateway_litellm_replicas", "from 1 to 32"]),
        ({"buffer_size_bytes": 100}, IMAGE, None, ["gateway_buffer_size_bytes", "16384"]),
        ({"metrics_port": "x"}, IMAGE, None, ["gateway_metrics_port", "from 0 to 65535"]),
        ({"pool_port": 4000}, IMAGE, None, ["gateway_port and gateway_pool_port both need port 4000"]),
        ({"litellm_port": 4000}, IMAGE, None, ["gateway_port and gateway_litellm_port both need port 4000"]),
        ({"pool_sources": ["x"]}, IMAGE, None, ["gateway_pool_sources"]),
        ({}, {**IMAGE, "tag": "v1.107.0"}, None, ["inference_engines.litellm", "credential stealer"]),
        ({}, IMAGE, listening(4000, "nginx"), ["gateway_port needs port 4000, but nginx listens there"]),
        ({}, IMAGE, listening(4012, "python3"), ["gateway_litellm_port needs port 4012, but python3"]),
        ({}, IMAGE, {"os": {"family": "redhat"}}, ["Debian or Ubuntu", "redhat"]),
    ],
)
def test_a_problem_is_one_sentence_that_begins_with_the_host(
    change: dict[str, Any], image: dict[str, Any], facts: dict[str, Any] | None, words: list[str]
) -> None:
    message = problem({**SETTINGS, **change}, image, facts)
    assert message is not None
    assert message.startswith("gateway-01: ") and message.endswith(".") and "\n" not in message
    assert all(word in message for word in words), message
