# SPDX-License-Identifier: Apache-2.0
"""A vLLM service on a node: it answers as planned, is locked in, ends in order, and comes back when it is killed."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]

UNIT = "inference-vllm"
PORT = 8003
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
    return {"model": variables["vllm_model"], "messages": question, "max_tokens": 12, "temperature": 0}


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
    assert (model["id"], model["max_model_len"]) == (variables["vllm_model"], variables["vllm_max_model_len"])


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
    counted = [line for line in text.splitlines() if line.startswith("vllm:generation_tokens_total{")]
    assert len(counted) == 1
    assert f'model_name="{variables["vllm_model"]}"' in counted[0]
    assert float(counted[0].split()[-1]) > 0


def test_the_cache_is_what_the_plan_gave_it(host: Any, argument: Callable[[str], str]) -> None:
    journal = host.check_output("journalctl --quiet --no-pager --output cat --unit %s", UNIT)
    [held] = set(re.findall(r"KV cache size: ([\d,]+) tokens", journal))
    wanted = int(argument("--max-model-len")) * 2
    assert wanted <= int(held.replace(",", "")) < wanted + 2 * 128
    assert int(argument("--max-num-seqs")) >= 2


def test_the_server_has_the_plans_arguments(inspect: Any, argument: Callable[[str], str], variables: Any) -> None:
    config = inspect(UNIT)["Config"]
    extra = variables["vllm_extra_args"]
    assert config["Entrypoint"] == ["vllm", "serve"]
    assert config["Cmd"][-len(extra) :] == extra
    assert argument("--served-model-name") == variables["vllm_model"]
    # The container is given half a minute more than requests are given to finish.
    assert (argument("--shutdown-timeout"), config["StopTimeout"]) == ("60", 90)


def test_nothing_is_asked_of_the_hub(host: Any) -> None:
    environment = host.file("/etc/inference-fleet/services/vllm/service.env").content_string.splitlines()
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1"} <= set(environment)


def test_container_is_locked_in(inspect: Any) -> None:
    config = inspect(UNIT)
    limits = config["HostConfig"]
    assert config["Config"]["User"] == "2000:0"
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
    assert (folder.uid, folder.gid) == (2000, 0)
    # What vLLM learned of the model's code: with it, the next start is quicker.
    assert host.check_output("find %s/vllm/modelinfos -type f -user 2000", cache)


def test_port_is_bound_to_the_nodes_address(host: Any, address: str, inspect: Any) -> None:
    assert inspect(UNIT)["HostConfig"]["PortBindings"] == {"8000/tcp": [{"HostIp": address, "HostPort": str(PORT)}]}
    listening = host.check_output("ss --no-header --listening --tcp --numeric sport = :%s", str(PORT))
    assert [line.split()[3] for line in listening.splitlines()] == [f"{address}:{PORT}"]


def test_the_facts_name_its_place(host: Any) -> None:
    facts = host.ansible("fleet.inference.gpu_facts", check=False, become=True)["ansible_facts"]["gpu"]
    assert [(item["name"], item["port"], item["units"]) for item in facts["services"]] == [("vllm", PORT, [])]


def test_stopped_it_finishes_what_it_was_asked(host: Any, url: str, chat: dict[str, Any]) -> None:
    question = [{"role": "user", "content": "Tell me a long story."}]
    body = {**chat, "messages": question, "max_tokens": 120, "min_tokens": 120, "stream": True}
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
