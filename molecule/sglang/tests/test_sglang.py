# SPDX-License-Identifier: Apache-2.0
"""An SGLang service on a node: it answers as planned, is locked in, ends in order, and comes back when it is killed."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]

UNIT = "inference-sglang"
PORT = 8004
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def url(address: str) -> str:
    """Where the service answers."""
    return f"http://{address}:{PORT}"


@pytest.fixture
def chat(variables: dict[str, Any]) -> dict[str, Any]:
    """A question whose answer is the same each time."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    return {"model": variables["sglang_model"], "messages": question, "max_tokens": 12, "temperature": 0}


@pytest.fixture
def answers(ask: Any, url: str, chat: dict[str, Any]) -> Callable[[], bool]:
    """Whether a question is answered."""
    return lambda: ask(f"{url}/v1/chat/completions", body=chat)[0] == 200


@pytest.fixture
def argument(inspect: Any) -> Callable[[str], str]:
    """The value of an argument of the server."""

    def of(name: str) -> str:
        command = inspect(UNIT)["Config"]["Cmd"]
        return str(command[command.index(name) + 1])

    return of


def events(text: str) -> list[str]:
    """What the events of a stream carry."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def said(text: str) -> str:
    """The answer that a whole stream carries."""
    *parts, last = events(text)
    assert last == "[DONE]", text[-500:]
    choices = [choice for part in parts for choice in json.loads(part)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_unit_runs_and_starts_at_boot(host: Any) -> None:
    service = host.service(UNIT)
    assert service.is_running
    assert service.is_enabled


def test_the_model_has_its_public_name(ask: Any, url: str, variables: dict[str, Any]) -> None:
    status, text = ask(f"{url}/v1/models")
    assert status == 200
    [model] = json.loads(text)["data"]
    assert (model["id"], model["max_model_len"]) == (variables["sglang_model"], variables["sglang_context_length"])


def test_it_answers(ask: Any, url: str, chat: dict[str, Any]) -> None:
    status, text = ask(f"{url}/v1/chat/completions", body=chat)
    assert status == 200, text
    answer = json.loads(text)
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert 0 < answer["usage"]["completion_tokens"] <= 12


def test_it_streams(ask: Any, url: str, chat: dict[str, Any]) -> None:
    body = {**chat, "stream": True, "stream_options": {"include_usage": True}}
    status, text = ask(f"{url}/v1/chat/completions", body=body)
    assert status == 200, text
    assert "Paris" in said(text)
    assert json.loads(events(text)[-2])["usage"]["completion_tokens"] > 0


def test_answers_keep_to_a_schema(ask: Any, url: str, chat: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    question = [{"role": "user", "content": "Invent a person."}]
    body = {**chat, "messages": question, "max_tokens": 200, "response_format": form}
    status, text = ask(f"{url}/v1/chat/completions", body=body)
    assert status == 200, text
    person = json.loads(json.loads(text)["choices"][0]["message"]["content"])
    assert set(person) == {"name", "age"}
    assert isinstance(person["name"], str)
    assert 1 <= person["age"] <= 99


def test_metrics(ask: Any, url: str, chat: dict[str, Any], variables: dict[str, Any]) -> None:
    ask(f"{url}/v1/chat/completions", body=chat)
    status, text = ask(f"{url}/metrics")
    assert status == 200
    counted = [line for line in text.splitlines() if line.startswith("sglang:generation_tokens_total{")]
    assert counted
    assert all(f'model_name="{variables["sglang_model"]}"' in line for line in counted)
    assert sum(float(line.split()[-1]) for line in counted) > 0


def test_health_generates_nothing(ask: Any, url: str, variables: dict[str, Any]) -> None:
    def generated() -> list[str]:
        lines = ask(f"{url}/metrics")[1].splitlines()
        return [line for line in lines if line.startswith("sglang:generation_tokens_total{")]

    before = generated()
    start = time.monotonic()
    assert ask(f"{url}/health")[0] == 200
    # Unless told otherwise it sleeps for a second at least.
    assert time.monotonic() - start < 1
    assert generated() == before


def test_the_cache_is_what_the_plan_gave_it(ask: Any, url: str, argument: Callable[[str], str]) -> None:
    status, text = ask(f"{url}/get_server_info")
    assert status == 200
    served = json.loads(text)
    assert served["max_total_num_tokens"] == int(argument("--max-total-tokens")) == 2 * 2048
    assert served["context_length"] == 2048


def test_the_server_has_the_plans_arguments(inspect: Any, argument: Callable[[str], str], variables: Any) -> None:
    config = inspect(UNIT)["Config"]
    extra = variables["sglang_extra_args"]
    assert config["Cmd"][:3] == ["python3", "-m", "sglang.launch_server"]
    assert config["Cmd"][-len(extra) :] == extra
    assert argument("--served-model-name") == variables["sglang_model"]
    # It finishes all requests, however long they take; this is their limit.
    assert config["StopTimeout"] == 120


def test_nothing_is_asked_of_the_hub(host: Any) -> None:
    environment = host.file("/etc/inference-fleet/services/sglang/service.env").content_string.splitlines()
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1"} <= set(environment)


def test_container_is_locked_in(inspect: Any) -> None:
    config = inspect(UNIT)
    limits = config["HostConfig"]
    assert config["Config"]["User"] == "10001:10001"
    assert limits["Privileged"] is False
    assert limits["CapDrop"] == ["ALL"]
    assert not limits["CapAdd"]
    assert limits["ReadonlyRootfs"] is True
    assert "no-new-privileges:true" in limits["SecurityOpt"]
    assert limits["NetworkMode"] != "host"
    assert limits["IpcMode"] != "host"
    assert limits["RestartPolicy"]["Name"] == "no"
    mounts = {mount["Destination"]: mount["RW"] for mount in config["Mounts"]}
    assert mounts == {"/models/huggingface": False, "/cache": True}


def test_caches_are_on_the_node_and_the_users(host: Any, inspect: Any) -> None:
    [cache] = [mount["Source"] for mount in inspect(UNIT)["Mounts"] if mount["RW"]]
    folder = host.file(cache)
    assert (folder.uid, folder.gid) == (10001, 10001)


def test_port_is_bound_to_the_nodes_address(host: Any, address: str, inspect: Any) -> None:
    assert inspect(UNIT)["HostConfig"]["PortBindings"] == {"30000/tcp": [{"HostIp": address, "HostPort": str(PORT)}]}
    listening = host.check_output("ss --no-header --listening --tcp --numeric sport = :%s", str(PORT))
    assert [line.split()[3] for line in listening.splitlines()] == [f"{address}:{PORT}"]


def test_the_facts_name_its_place(host: Any) -> None:
    facts = host.ansible("fleet.inference.gpu_facts", check=False, become=True)["ansible_facts"]["gpu"]
    assert [(item["name"], item["port"], item["units"]) for item in facts["services"]] == [("sglang", PORT, [])]


def test_stopped_it_finishes_what_it_was_asked(host: Any, url: str, chat: dict[str, Any]) -> None:
    question = [{"role": "user", "content": "Tell me a long story."}]
    body = {**chat, "messages": question, "max_tokens": 120, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    stopping = threading.Thread(target=host.check_output, args=("systemctl stop %s", UNIT))
    with urllib.request.urlopen(request, timeout=60) as reply:
        first = reply.readline().decode()
        stopping.start()
        text = first + reply.read().decode()
    assert len(events(text)) > 100
    assert said(text)
    stopping.join(timeout=100)
    assert not stopping.is_alive()
    assert not host.service(UNIT).is_running
    host.check_output("systemctl start %s", UNIT)


def test_killed_it_comes_back(host: Any, answers: Callable[[], bool], eventually: Any) -> None:
    def container() -> str:
        # For a moment there is none.
        return str(host.check_output("docker ps --quiet --no-trunc --filter name=^%s$", UNIT))

    before = container()
    host.check_output("docker kill %s", UNIT)
    again = "the unit is active again"
    eventually(lambda: container() not in ("", before) and host.service(UNIT).is_running, again, seconds=180)
    # The unit is active only when the model answers, so there is nothing to wait for now.
    assert answers()
