# SPDX-License-Identifier: Apache-2.0
"""All four engines on one node: each answers chat on its own port, whole, in pieces and as JSON of a schema."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]

PORTS = {"llamacpp": 8005, "ollama": 11434, "sglang": 8004, "vllm": 8003}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}


@pytest.fixture(params=sorted(PORTS))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(backend: str, address: str) -> str:
    """Where the backend's service answers chat."""
    return f"http://{address}:{PORTS[backend]}/v1/chat/completions"


@pytest.fixture
def chat(backend: str, variables: dict[str, Any]) -> dict[str, Any]:
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    return {"model": variables[f"{backend}_model"], "messages": question, "max_tokens": 16, "temperature": 0}


def test_the_unit_runs_and_belongs_to_the_fleets_target(host: Any, backend: str) -> None:
    service = host.service(f"inference-{backend}")
    assert service.is_running
    assert service.is_enabled
    wanted = host.check_output("systemctl show --property Wants --value inference-fleet.target").split()
    assert f"inference-{backend}.service" in wanted


def test_it_answers(ask: Any, url: str, chat: dict[str, Any]) -> None:
    status, text = ask(url, body=chat)
    assert status == 200, text
    answer = json.loads(text)
    assert answer["model"].partition(":")[0] == chat["model"]
    assert answer["choices"][0]["message"]["content"].strip()
    assert 0 < answer["usage"]["completion_tokens"] <= 16


def test_it_answers_in_pieces(url: str, chat: dict[str, Any]) -> None:
    body = json.dumps({**chat, "stream": True}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert reply.headers.get_content_type() == "text/event-stream"
        events = [line.decode().removeprefix("data: ").strip() for line in reply if line.startswith(b"data: ")]
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    pieces = [choice["delta"].get("content") for choice in choices]
    assert len([piece for piece in pieces if piece]) > 1
    assert choices[-1]["finish_reason"] in ("length", "stop")


def test_it_answers_with_json_of_a_schema(ask: Any, url: str, chat: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "capital", "schema": SCHEMA, "strict": True}}
    status, text = ask(url, body={**chat, "max_tokens": 100, "response_format": wanted})
    assert status == 200, text
    answer = json.loads(json.loads(text)["choices"][0]["message"]["content"])
    assert set(answer) == {"city", "large"}
    assert isinstance(answer["city"], str)
    assert isinstance(answer["large"], bool)
