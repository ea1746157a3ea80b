# SPDX-License-Identifier: Apache-2.0
"""Ollama services on a node, one of GGUF files and one of the library: they answer as Ollama does, and come back.

Gemma 3 270M is the base model, so what it says is not looked at, only its form.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]

#: Service → its port and its models.
SERVICES = {
    "files": (11434, ["gemma-3-270m", "gemma-3-270m-draft"]),
    "library": (11435, ["gemma3-270m"]),
}
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "boolean"}, "size": {"type": "string", "enum": ["small", "large"]}},
    "required": ["capital", "size"],
}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    """Name of one of the services."""
    return str(request.param)


@pytest.fixture
def models(service: str) -> list[str]:
    """Public names of the service's models, its own first."""
    return SERVICES[service][1]


@pytest.fixture
def unit(service: str) -> str:
    """Name of the service's unit and container."""
    return f"inference-{service}"


@pytest.fixture
def url(address: str, service: str) -> str:
    """Where the service answers."""
    return f"http://{address}:{SERVICES[service][0]}"


@pytest.fixture
def call(ask: Any, url: str) -> Callable[..., Any]:
    """What the service answers to a request, which succeeds."""

    def send(path: str, body: Any = None) -> Any:
        status, text = ask(f"{url}{path}", body=body)
        assert status == 200, text
        return json.loads(text)

    return send


def question(model: str, **further: Any) -> dict[str, Any]:
    """A chat request of a few tokens, answered alike each time."""
    content = "Is Paris a capital, and how large is it?"
    return {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, **further}


def plain(names: list[str]) -> set[str]:
    """Names of models without the tag that Ollama adds."""
    return {name.removesuffix(":latest") for name in names}


def loaded(call: Callable[..., Any]) -> set[str]:
    """Models that are in memory."""
    return plain([model["name"] for model in call("/api/ps")["models"]])


def test_unit_runs_and_starts_at_boot(host: Any, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled


def test_models_have_their_public_names(call: Callable[..., Any], service: str, models: list[str]) -> None:
    # The library's name is there besides.
    wanted = {*models, *(["gemma3:270m"] if service == "library" else [])}
    tags = call("/api/tags")["models"]
    assert plain([model["name"] for model in tags]) == wanted
    assert {model["details"]["quantization_level"] for model in tags} == {"Q4_K_M"}
    assert plain([model["id"] for model in call("/v1/models")["data"]]) == wanted


def test_every_model_answers(call: Callable[..., Any], models: list[str]) -> None:
    for model in models:
        answer = call("/v1/chat/completions", question(model, max_tokens=8))
        assert answer["model"] == model
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert 0 < answer["usage"]["completion_tokens"] <= 8


def test_it_streams(ask: Any, url: str, models: list[str]) -> None:
    body = question(models[0], max_tokens=8, stream=True, stream_options={"include_usage": True})
    status, text = ask(f"{url}/v1/chat/completions", body=body)
    assert status == 200
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    parts = [json.loads(line) for line in lines[:-1]]
    assert sum(bool(part["choices"]) for part in parts) > 1
    assert 0 < parts[-1]["usage"]["completion_tokens"] <= 8


def test_ollamas_own_chat_streams(ask: Any, url: str, models: list[str]) -> None:
    status, text = ask(f"{url}/api/chat", body={**question(models[0]), "options": {"num_predict": 8}})
    assert status == 200
    parts = [json.loads(line) for line in text.splitlines()]
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert 0 < parts[-1]["eval_count"] <= 8


@pytest.mark.parametrize("way", ["/v1/chat/completions", "/api/chat"])
def test_answers_keep_to_a_schema(call: Callable[..., Any], models: list[str], way: str) -> None:
    if way == "/api/chat":
        limits = {"temperature": 0, "num_predict": 80}
        answer = call(way, question(models[0], stream=False, format=SCHEMA, options=limits))["message"]
    else:
        wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
        answer = call(way, question(models[0], max_tokens=80, response_format=wanted))["choices"][0]["message"]
    city = json.loads(answer["content"])
    assert isinstance(city["capital"], bool)
    assert city["size"] in ("small", "large")


def test_a_model_that_there_is_not(ask: Any, url: str) -> None:
    status, text = ask(f"{url}/v1/chat/completions", body=question("nothing"))
    assert status == 404
    assert "not found" in text


def test_slots_and_tokens_are_the_plans(host: Any, unit: str, inspect: Any, call: Callable[..., Any]) -> None:
    environment = dict(item.split("=", 1) for item in inspect(unit)["Config"]["Env"])
    assert environment["OLLAMA_CONTEXT_LENGTH"] == "2048"
    assert environment["OLLAMA_NUM_PARALLEL"] == "2"
    # What Ollama made of it: the tokens of both slots. Old versions write the options out, and /api/ps has no tokens.
    journal = host.check_output("journalctl --quiet --no-pager --output cat --unit %s", unit)
    runners = [line for line in journal.splitlines() if "starting llama" in line]
    assert runners
    for line in runners:
        assert re.search(r" (?:--ctx-size|-c) 4096 ", line), line
        assert re.search(r" (?:--parallel|-np) 2 ", line), line
    for model in call("/api/ps")["models"]:
        assert model.get("context_length", 2048) == 2048


def test_container_is_locked_in(inspect: Any, unit: str) -> None:
    config = inspect(unit)
    limits = config["HostConfig"]
    assert config["Config"]["User"] == "10001:10001"
    assert limits["Privileged"] is False
    assert limits["CapDrop"] == ["ALL"]
    assert not limits["CapAdd"]
    assert limits["ReadonlyRootfs"] is True
    assert "no-new-privileges:true" in limits["SecurityOpt"]
    assert limits["NetworkMode"] != "host"
    assert limits["RestartPolicy"]["Name"] == "no"
    assert limits["LogConfig"]["Type"] == "none"
    assert config["Mounts"]
    for mount in config["Mounts"]:
        assert mount["Destination"].startswith("/models/ollama")
        assert mount["RW"] is False


def test_container_can_write_nowhere_but_tmp(host: Any, unit: str) -> None:
    assert host.run("docker exec %s sh -c 'echo >/tmp/file && rm /tmp/file'", unit).rc == 0
    # Docker makes /models/ollama for the files that it mounts there, in the container's own root.
    for path in ("/usr/file", "/models/ollama/file", "/models/ollama/manifests/file", "/etc/file"):
        tried = host.run("docker exec --user 0 %s sh -c %s", unit, f"echo >{path}")
        assert tried.rc != 0, path
        assert "Read-only file system" in tried.stderr


def test_clients_can_not_delete_a_model(ask: Any, url: str, host: Any, unit: str, models: list[str]) -> None:
    command = "docker exec %s /bin/ollama rm %s"
    assert host.run(command, unit, models[0]).rc != 0
    assert ask(f"{url}/api/show", body={"model": models[0]})[0] == 200


def test_port_is_bound_to_the_nodes_address(host: Any, address: str, inspect: Any, service: str, unit: str) -> None:
    port = SERVICES[service][0]
    assert inspect(unit)["HostConfig"]["PortBindings"] == {"11434/tcp": [{"HostIp": address, "HostPort": str(port)}]}
    listening = host.check_output("ss --no-header --listening --tcp --numeric sport = :%s", str(port))
    assert [line.split()[3] for line in listening.splitlines()] == [f"{address}:{port}"]


def test_the_facts_name_its_place(host: Any) -> None:
    facts = host.ansible("fleet.inference.gpu_facts", check=False, become=True)["ansible_facts"]["gpu"]
    found = {item["name"]: (item["backend"], item["port"], item["model"]) for item in facts["services"]}
    assert found == {name: ("ollama", port, names[0]) for name, (port, names) in SERVICES.items()}


def test_stopped_at_once_and_started_it_has_loaded_its_model(
    host: Any, unit: str, call: Callable[..., Any], models: list[str]
) -> None:
    began = time.monotonic()
    host.check_output("systemctl stop %s", unit)
    # A server that does not heed the signal is killed after its 30 seconds.
    assert time.monotonic() - began < 20
    host.check_output("systemctl start %s", unit)
    assert models[0] in loaded(call)


def test_killed_it_comes_back(host: Any, unit: str, call: Callable[..., Any], inspect: Any, eventually: Any) -> None:
    before = inspect(unit)["Id"]
    host.check_output("docker kill %s", unit)
    eventually(lambda: host.service(unit).is_running and inspect(unit)["Id"] != before, "the unit is active again")
    # The unit is active only when the model has answered, so there is nothing to wait for now.
    assert loaded(call)
