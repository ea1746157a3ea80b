# SPDX-License-Identifier: Apache-2.0
"""The whole: clients ask the gateway, and the nodes answer."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

testinfra_hosts = ["gateways"]

NODES = ["gpu-01", "gpu-02"]
KEY_FILE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory" / ".secrets" / "gateway_master_key"
REGISTRY = "/var/lib/inference-fleet/registry"
ANSWERED = re.compile(
    r'^haproxy_server_http_responses_total\{proxy="pool_[^"]*",server="([^"]*)",code="2xx"\} (\d+)', re.M
)


@pytest.fixture
def key() -> str:
    """The key that clients use."""
    return KEY_FILE.read_text().strip()


@pytest.fixture
def model(host: Any) -> str:
    """The public name of what the nodes serve."""
    node = host.get_host(f"ansible://{NODES[0]}", ansible_inventory=host.backend.ansible_inventory)
    return str(node.ansible.get_variables()["llamacpp_model"])


def answered(host: Any) -> dict[str, int]:
    """Server → successful answers so far, as HAProxy counts them."""
    metrics = host.check_output(
        "python3 -c %s", "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8404/metrics').read().decode())"
    )
    return {server: int(count) for server, count in ANSWERED.findall(metrics)}


def test_registry_has_both_nodes(host: Any, model: str) -> None:
    files = host.check_output("find %s -name '*.json' -printf '%%f '", REGISTRY).split()
    assert sorted(files) == [f"{node}.json" for node in NODES]
    for node in NODES:
        fragment = json.loads(host.file(f"{REGISTRY}/{node}.json").content_string)
        assert fragment["node"] == node
        assert fragment["drained"] is False
        assert [(service["backend"], service["model"], service["port"]) for service in fragment["services"]] == [
            ("llamacpp", model, 8005)
        ]


def test_the_gateway_lists_the_model(ask: Any, address: str, key: str, model: str) -> None:
    status, text = ask(f"http://{address}:4000/v1/models", key=key)
    assert status == 200
    assert [entry["id"] for entry in json.loads(text)["data"]] == [model]


def test_both_nodes_answer_through_the_gateway(host: Any, ask: Any, address: str, key: str, model: str) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": model, "messages": question, "max_tokens": 8}
    before = answered(host)
    assert len(before) == len(NODES)

    def send(_: int) -> tuple[int, str]:
        return ask(f"http://{address}:4000/v1/chat/completions", key=key, body=body)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, range(8)))
    for status, text in answers:
        assert status == 200, text
        assert json.loads(text)["choices"][0]["message"]["content"].strip()
    after = answered(host)
    assert sum(after.values()) - sum(before.values()) >= len(answers)
    assert all(after[server] > before[server] for server in after), f"{before} → {after}"


def test_a_stream_arrives_in_parts(ask: Any, address: str, key: str, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "stream": True}
    status, text = ask(f"http://{address}:4000/v1/chat/completions", key=key, body=body)
    assert status == 200
    parts = [line for line in text.splitlines() if line.startswith("data: ")]
    assert len(parts) > 3
    assert parts[-1] == "data: [DONE]"


def test_unknown_model_is_refused(ask: Any, address: str, key: str) -> None:
    body = {"model": "unknown", "messages": [{"role": "user", "content": "Hello"}]}
    status, text = ask(f"http://{address}:4000/v1/chat/completions", key=key, body=body)
    assert 400 <= status < 500, text
