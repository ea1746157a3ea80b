# SPDX-License-Identifier: Apache-2.0
"""Services that share a GPU: their devices, their shares of it, and that only one of them starts at a time."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]

GIB = 1024**3
MIB = 1024**2
SHARED = Path(__file__).resolve().parents[2] / "shared"
#: Ports of the backends, and the metric with which each counts tokens; Ollama has none.
PORTS = {"vllm": 8003, "sglang": 8004, "llamacpp": 8005, "ollama": 11434}
METRICS = {
    "vllm": "vllm:generation_tokens_total",
    "sglang": "sglang:generation_tokens_total",
    "llamacpp": "llamacpp:tokens_predicted_total",
}
GPU_BYTES = {"nvidia": 46068 * MIB, "amd": 206141652992}
UUID = "GPU-5a6b7c8d-0000-4000-8000-00000000001a"
#: systemd's own messages about a unit that starts and has started (systemd.journal-fields(7), sd-messages.h).
STARTING, STARTED = "7d4958e842da4a758f6c1cdc7b36dcc5", "39f53479d3a045ac8e11786248231fbf"


@dataclass
class Start:
    """One start of a service, by the node's clock that never goes back (microseconds).

    Attributes:
        service: Its name.
        starting: When systemd began.
        alone: When it had its GPU's lock.
        started: When systemd called it started.
    """

    service: str
    starting: int
    alone: int = 0
    started: int = 0


@pytest.fixture
def services(variables: dict[str, Any]) -> list[dict[str, Any]]:
    """The node's services in the inventory, in the order in which they start."""
    return list(variables["inference_services"])


@pytest.fixture
def units(services: list[dict[str, Any]]) -> list[str]:
    """Their units."""
    return [f"inference-{service['name']}" for service in services]


def active(host: Any, units: list[str]) -> bool:
    """Whether all services run."""
    return states(host, units) == {"active"}


def states(host: Any, units: list[str]) -> set[str]:
    """The states that the services have."""
    return set(host.run(f"systemctl is-active {' '.join(units)}").stdout.split())


def cursor(host: Any, units: list[str]) -> str:
    """Where the journal ends now; the services may be started as often as if they never had been."""
    host.check_output(f"systemctl reset-failed {' '.join(units)}; journalctl --sync")
    return str(host.check_output("journalctl --lines 0 --show-cursor --quiet").partition("cursor: ")[2].strip())


def starts(host: Any, options: str) -> list[Start]:
    """The complete starts that the journal tells of, in their order."""
    found: dict[str, Start] = {}
    done = []
    text = host.check_output(
        f"journalctl --sync; journalctl --quiet --output json --unit 'inference-*.service' {options}"
    )
    for entry in map(json.loads, text.splitlines()):
        unit = entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or ""
        service = unit.removeprefix("inference-").removesuffix(".service")
        when = int(entry["__MONOTONIC_TIMESTAMP"])
        if entry.get("MESSAGE_ID") == STARTING:
            found[service] = Start(service, when)
        elif str(entry.get("MESSAGE")).startswith("starts alone on its GPUs") and service in found:
            found[service].alone = when
        elif entry.get("MESSAGE_ID") == STARTED and service in found:
            found[service].started = when
            done.append(found.pop(service))
    return sorted(done, key=lambda start: start.alone)


def check_alone(found: list[Start]) -> None:
    """No engine takes memory while another one of the GPU does."""
    for earlier, later in itertools.pairwise(found):
        assert earlier.alone < earlier.started
        assert earlier.started <= later.alone + 300_000, f"{later} began before {earlier} had ended"


def check_order(found: list[Start], services: list[dict[str, Any]]) -> None:
    """systemd starts them one after the other, in the order of the plan."""
    assert [start.service for start in found] == [service["name"] for service in services]
    for earlier, later in itertools.pairwise(found):
        assert earlier.started <= later.starting, f"{later} was begun before {earlier} had ended"


def option(arguments: list[str], name: str) -> str:
    """The value of an option."""
    return arguments[arguments.index(name) + 1]


def test_all_run_and_start_at_boot(host: Any, units: list[str]) -> None:
    for unit in units:
        assert host.service(unit).is_running and host.service(unit).is_enabled, unit
    assert host.service("gpu-ready").is_running


def test_they_answer(ask: Any, address: str, services: list[dict[str, Any]]) -> None:
    for service in services:
        url = f"http://{address}:{PORTS[service['backend']]}"
        body = {"model": "small", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        status, text = ask(f"{url}/v1/chat/completions", body=body)
        assert (status, json.loads(text)["choices"][0]["message"]["content"]) == (200, "Paris"), service
        if service["backend"] in METRICS:
            assert METRICS[service["backend"]] in ask(f"{url}/metrics")[1], service


def test_devices_and_groups(host: Any, inspect: Any, units: list[str], variables: dict[str, Any]) -> None:
    for unit in units:
        limits = inspect(unit)["HostConfig"]
        assert limits["Privileged"] is False and limits["CapDrop"] == ["ALL"] and limits["ReadonlyRootfs"] is True
        if variables["gpu"] == "nvidia":
            asked = [(request["Driver"], request["DeviceIDs"]) for request in limits["DeviceRequests"]]
            assert asked == [("cdi", [f"nvidia.com/gpu={UUID}"])]
            assert not limits["Devices"] and not limits["GroupAdd"]
            assert host.run("docker exec %s test -c /dev/nvidia0", unit).rc == 0
        else:
            nodes = ["/dev/kfd", "/dev/dri/renderD128"]
            assert [device["PathOnHost"] for device in limits["Devices"]] == nodes and not limits["DeviceRequests"]
            assert limits["GroupAdd"] == [str(host.group(name).gid) for name in ("render", "video")]
            # Open to the engine's user by these groups alone.
            assert host.check_output("docker exec %s id -u", unit) != "0"
            assert host.run("docker exec %s test -w /dev/kfd", unit).rc == 0


def test_what_the_engines_are_told(inspect: Any, units: list[str], variables: dict[str, Any]) -> None:
    found = {unit.removeprefix("inference-"): inspect(unit) for unit in units}
    env = {name: dict(each.split("=", 1) for each in item["Config"]["Env"]) for name, item in found.items()}
    command = {name: item["Config"]["Cmd"] or [] for name, item in found.items()}
    shared = {name: item["HostConfig"]["ShmSize"] for name, item in found.items()}
    assert env["code"]["LLAMA_ARG_DEVICE"] == ("CUDA0" if variables["gpu"] == "nvidia" else "ROCm0")
    assert env["code"]["LLAMA_ARG_N_GPU_LAYERS"] == "all"
    assert env["code"]["HOME"] == "/cache" and env["code"].get("LLAMA_ARG_FIT") == "off"
    assert shared["code"] == 64 * MIB
    if variables["gpu"] == "nvidia":
        assert option(command["chat"], "--kv-cache-memory-bytes").isdigit()
        assert option(command["chat"], "--tensor-parallel-size") == "1"
        assert (env["chat"]["HF_HUB_OFFLINE"], shared["chat"]) == ("1", 2 * GIB)
        assert env["code"]["CUDA_CACHE_PATH"] == "/cache/cuda"
        assert (env["home"]["OLLAMA_VULKAN"], env["home"]["OLLAMA_MAX_LOADED_MODELS"]) == ("0", "1")
    else:
        assert option(command["agents"], "--host") == "0.0.0.0"
        assert "--max-total-tokens" in command["agents"] and shared["agents"] == 6 * GIB
        assert "CUDA_CACHE_MAXSIZE" not in env["agents"]


def test_the_shares_leave_room(host: Any, inspect: Any, variables: dict[str, Any]) -> None:
    """What the engines say they take of the GPU, together with llama.cpp's file and cache, is far below the budget."""
    whole = GPU_BYTES[variables["gpu"]]
    taken = 0
    for name in [service["name"] for service in variables["inference_services"]]:
        config = inspect(f"inference-{name}")["Config"]
        command, env = config["Cmd"] or [], dict(each.split("=", 1) for each in config["Env"])
        if "--gpu-memory-utilization" in command:
            taken += int(float(option(command, "--gpu-memory-utilization")) * whole)
            assert int(option(command, "--kv-cache-memory-bytes")) < taken
        if "--mem-fraction-static" in command:
            taken += int(float(option(command, "--mem-fraction-static")) * whole)
        if "OLLAMA_GPU_OVERHEAD" in env:
            taken += whole - int(env["OLLAMA_GPU_OVERHEAD"])
        if "LLAMA_ARG_CTX_SIZE" in env:
            # Keys and values of 8 layers with 4 heads of 64 numbers of 16 bits.
            taken += 3_000_000 + int(env["LLAMA_ARG_CTX_SIZE"]) * 2 * 8 * 4 * 64 * 2
    assert 0 < taken <= 0.92 * whole


def test_the_facts_know_the_gpu(host: Any, variables: dict[str, Any], services: list[dict[str, Any]]) -> None:
    facts = host.ansible("fleet.inference.gpu_facts", check=False, become=True)["ansible_facts"]["gpu"]
    [device] = [device for device in facts["devices"] if device["usable"]]
    tier, architecture = ("cuda", "8.9") if variables["gpu"] == "nvidia" else ("rocm", "gfx942")
    assert (facts["tier"], device["architecture"]) == (tier, architecture)
    assert device["memory_total_bytes"] == GPU_BYTES[variables["gpu"]]
    assert {item["name"]: len(item["units"]) for item in facts["services"]} == {item["name"]: 1 for item in services}


def test_the_first_starts_were_one_after_the_other(host: Any, services: list[dict[str, Any]]) -> None:
    found = starts(host, "--boot")
    assert len(found) >= len(services)
    check_alone(found)


def test_one_after_the_other_when_all_restart(
    host: Any, units: list[str], services: list[dict[str, Any]], eventually: Any
) -> None:
    here = cursor(host, units)
    host.check_output(f"systemctl restart {' '.join(units)}")
    eventually(lambda: active(host, units), "all services run")
    found = starts(host, f"--after-cursor '{here}'")
    check_order(found, services)
    check_alone(found)


def test_one_after_the_other_when_each_restarts_by_itself(
    host: Any, units: list[str], services: list[dict[str, Any]], eventually: Any
) -> None:
    here = cursor(host, units)
    # The last one first, and none waits for another.
    host.check_output("; ".join(f"systemctl restart --no-block {unit}" for unit in reversed(units)))
    eventually(lambda: len(starts(host, f"--after-cursor '{here}'")) == len(units), "all services started")
    check_alone(starts(host, f"--after-cursor '{here}'"))
    assert active(host, units)


def test_one_after_the_other_with_the_target(
    host: Any, units: list[str], services: list[dict[str, Any]], eventually: Any
) -> None:
    here = cursor(host, units)
    host.check_output("systemctl stop inference-fleet.target")
    eventually(lambda: states(host, units) == {"inactive"}, "no service runs")
    host.check_output("systemctl start inference-fleet.target")
    eventually(lambda: active(host, units), "all services run")
    found = starts(host, f"--after-cursor '{here}'")
    check_order(found, services)
    check_alone(found)


def test_one_after_the_other_at_boot(
    host: Any, units: list[str], services: list[dict[str, Any]], eventually: Any
) -> None:
    begun = host.check_output("systemctl show --property UserspaceTimestampMonotonic --value")
    program = "import sys; from local_nodes import host, settings; host.podman(*sys.argv[1:])"
    name = f"inference-fleet-molecule-gpu-services-{host.backend.get_hostname()}"
    argv = [sys.executable, "-c", program, "restart", "--time", "20", name]
    subprocess.run(argv, check=True, timeout=120, env={"PYTHONPATH": str(SHARED), "PATH": "/usr/bin:/usr/sbin"})

    def booted() -> bool:
        try:
            now = host.run("systemctl show --property UserspaceTimestampMonotonic --value")
        except RuntimeError:
            # SSH does not answer yet.
            return False
        return now.rc == 0 and now.stdout.strip() != begun and active(host, units)

    eventually(booted, "all services run after a boot", 90)
    # The boot id is the machine's, so what came before is told by the time at which systemd began.
    since = int(host.check_output("systemctl show --property UserspaceTimestampMonotonic --value"))
    found = [start for start in starts(host, "--boot") if start.starting >= since]
    check_order(found, services)
    check_alone(found)
    ready = int(host.check_output("systemctl show gpu-ready --property ActiveEnterTimestampMonotonic --value"))
    assert since < ready <= found[0].starting
