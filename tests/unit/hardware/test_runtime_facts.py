# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import runtime
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import given, settings
from hypothesis import strategies as st

DPKG = """Package: docker-ce
Status: hold ok installed
Version: 5:27.5.1

Package: containerd.io
Status: install ok installed

Package: docker.io
Status: deinstall ok config-files

Package: zlib1g
Status: hold ok installed
"""
CDI_YAML = """---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      name: inner
  name: "0"
- name: all
  containerEdits:
    env:
    - A=b
kind: nvidia.com/gpu
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `docker` of our own that prints the given text."""

    def make(text: str) -> None:
        program = tmp_path / "bin" / "docker"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho '{text}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return make


def test_docker_installed_and_not_running(machine: Any, docker: Any) -> None:
    docker("Docker version 27.5.1, build 9f9e405")
    machine.write("etc/docker/daemon.json", '{"features": {"cdi": true}, "log-driver": "journald"}')
    machine.write("var/lib/dpkg/status", DPKG)
    facts = machine.facts(live=True)
    assert facts["runtime"]["docker"] == {
        "version": "27.5.1",
        "running": False,
        "cdi": True,
        "daemon_config": {"features": {"cdi": True}, "log-driver": "journald"},
        "package": "docker-ce",
        "held": ["docker-ce"],
    }
    assert facts["errors"] == []


@pytest.mark.parametrize(
    ("package", "version", "expected"),
    [
        ("docker-ce", "5:27.5.1-1~debian.13~trixie", "27.5.1"),
        ("docker.io", "26.1.5+dfsg1-9+b9", "26.1.5"),
        ("moby-engine", "28.0.4", "28.0.4"),
    ],
)
def test_the_packages_version_saves_running_the_program(
    machine: Any, docker: Any, package: str, version: str, expected: str
) -> None:
    docker("Docker version 1.2.3")
    status = f"Package: zlib1g\nStatus: install ok installed\n\nPackage: {package}\nStatus: install ok installed\n"
    machine.write("var/lib/dpkg/status", f"{status}Version: {version}\n\n")
    # The client is not always in the engine's package.
    assert machine.facts(live=True)["runtime"]["docker"]["version"] == "1.2.3"
    machine.write("usr/bin/docker", "")
    docker = machine.facts(live=True)["runtime"]["docker"]
    assert (docker["version"], docker["package"]) == (expected, package)


def test_an_engine_that_may_not_be_asked_is_not_called_stopped(
    machine: Any, docker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker("Docker version 27.5.1, build 9f9e405")
    monkeypatch.setattr(runtime, "_daemon_runs", lambda host: True)
    monkeypatch.setattr(runtime, "engine_version", lambda path, timeout: (None, "Permission denied"))
    assert machine.facts(live=True)["runtime"]["docker"]["running"] is None


def test_a_socket_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runtime.socket, "socket", type("Refused", (socket.socket,), {"connect": refuse}))
    version, message = runtime.engine_version("/run/docker.sock", 1)
    assert version is None and message is not None and message.endswith("gather the facts with become: true")


@pytest.mark.parametrize(
    ("version", "cdi"), [("26.1.5+dfsg1", False), ("28.1.1", False), ("28.2.2", True), ("29.0.0", True)]
)
def test_cdi_default(version: str, cdi: bool) -> None:
    assert runtime._cdi_enabled(version, None) is cdi
    assert runtime._cdi_enabled(version, {"features": {"cdi": not cdi}}) is not cdi


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_broken_daemon_json(machine: Any, docker: Any, text: str) -> None:
    docker("Docker version 27.5.1, build 9f9e405")
    machine.write("etc/docker/daemon.json", text)
    facts = machine.facts(live=True)
    assert facts["runtime"]["docker"]["daemon_config"] is None
    assert [error["source"] for error in facts["errors"]] == ["docker"]


def test_podmans_docker_is_no_docker(machine: Any, docker: Any) -> None:
    docker("podman version 5.4.2")
    assert machine.facts(live=True)["runtime"]["docker"] is None


def test_cdi_specifications(machine: Any) -> None:
    machine.write("var/run/cdi/nvidia.yaml", CDI_YAML)
    machine.write("etc/cdi/x.json", json.dumps({"kind": "acme.com/dev", "devices": [{"name": "a"}, {"name": "b"}]}))
    machine.write("etc/cdi/broken.json", "{")
    facts = machine.facts()
    assert facts["runtime"]["cdi"] == {
        "specs": ["/etc/cdi/broken.json", "/etc/cdi/x.json", "/var/run/cdi/nvidia.yaml"],
        "devices": ["acme.com/dev=a", "acme.com/dev=b", "nvidia.com/gpu=0", "nvidia.com/gpu=all"],
        "nvidia_driver_version": None,
        "stale": None,
    }
    assert facts["errors"] == [{"source": "cdi", "message": "/etc/cdi/broken.json is no CDI specification"}]


def nvidia_spec(version: str, device: str = "0", kind: str = "nvidia.com/gpu") -> str:
    """A specification as nvidia-ctk writes it, with libraries of a driver and one that has a version of its own."""
    return f"""---
cdiVersion: 0.5.0
containerEdits:
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libnvidia-egl-gbm.so.1.1.2
    hostPath: /usr/lib/x86_64-linux-gnu/libnvidia-egl-gbm.so.1.1.2
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{version}
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{version}
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "{device}"
kind: {kind}
"""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"etc/cdi/nvidia.yaml": nvidia_spec("570.124.06")}, ("570.124.06", False)),
        ({"var/run/cdi/nvidia.yaml": nvidia_spec("550.54.15")}, ("550.54.15", True)),
        ({"etc/cdi/nvidia.yaml": nvidia_spec("570.124")}, ("570.124", True)),
        # What was written by hand long ago is hidden by what the toolkit refreshes.
        (
            {
                "etc/cdi/nvidia.yaml": nvidia_spec("550.54.15"),
                "var/run/cdi/nvidia.yaml": nvidia_spec("570.124.06"),
            },
            ("570.124.06", False),
        ),
        # Another device's is not hidden.
        (
            {
                "etc/cdi/nvidia.yaml": nvidia_spec("550.54.15", "1"),
                "var/run/cdi/nvidia.yaml": nvidia_spec("570.124.06"),
            },
            ("570.124.06", True),
        ),
        ({"etc/cdi/a.yaml": nvidia_spec("550.54.15", kind="acme.com/gpu")}, (None, None)),
        ({"etc/cdi/a.yaml": nvidia_spec("550.54.15", kind="management.nvidia.com/gpu")}, ("550.54.15", True)),
    ],
)
def test_cdi_against_the_loaded_driver(
    machine: Any, files: dict[str, str], expected: tuple[str | None, bool | None]
) -> None:
    for path, text in files.items():
        machine.write(path, text)
    host = Host(str(machine.root))
    found = runtime.collect(host, runtime.Engines(host), "570.124.06")["cdi"]
    assert (found["nvidia_driver_version"], found["stale"]) == expected
    assert runtime.collect(host, runtime.Engines(host), None)["cdi"]["stale"] is None
    assert host.report.errors == []


def test_cdi_in_json(machine: Any) -> None:
    content = {
        "kind": "nvidia.com/gpu",
        "devices": [{"name": "0"}],
        "containerEdits": {"mounts": [{"hostPath": "/usr/lib64/libnvidia-ml.so.570.124.06"}]},
    }
    # YAML takes JSON as well.
    for path in ("etc/cdi/nvidia.json", "var/run/cdi/nvidia.yaml"):
        machine.write(path, json.dumps(content))
    host = Host(str(machine.root))
    found = runtime.collect(host, runtime.Engines(host), "570.124.06")["cdi"]
    assert found == {
        "specs": ["/etc/cdi/nvidia.json", "/var/run/cdi/nvidia.yaml"],
        "devices": ["nvidia.com/gpu=0"],
        "nvidia_driver_version": "570.124.06",
        "stale": False,
    }


SPECIFICATION = nvidia_spec("570.124.06")
PIECES = [
    *SPECIFICATION.splitlines(),
    '{"kind": "a", "devices": [',
    "[]",
    '{"kind": 1}',
    '{"kind": "a", "devices": [1]}',
]


@settings(max_examples=200)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.integers(0, len(SPECIFICATION)).map(lambda end: SPECIFICATION[:end].encode()),
        st.lists(st.sampled_from(PIECES), max_size=12).map(lambda rows: "\n".join(rows).encode()),
    ),
    st.sampled_from(["x.json", "x.yaml"]),
)
def test_no_specification_raises(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "etc/cdi"
        place.mkdir(parents=True)
        (place / name).write_bytes(content)
        host = Host(folder)
        found = runtime.collect(host, runtime.Engines(host), "570.124.06")["cdi"]
        json.dumps(found)
        assert found["specs"] == [f"/etc/cdi/{name}"]
        assert found["devices"] or not found["nvidia_driver_version"]
        assert all(error["message"].endswith("is no CDI specification") for error in host.report.errors)


@pytest.mark.parametrize(
    ("config", "configured"),
    [
        (None, False),
        ('{"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}', True),
        ('{"runtimes": {"kata": {}}}', False),
        ('{"runtimes": []}', False),
        ("{", None),
    ],
)
def test_toolkit(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, configured: bool | None
) -> None:
    stand_in = tmp_path / "bin" / "nvidia-ctk"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\necho 'NVIDIA Container Toolkit CLI version 1.17.5'\necho 'commit: f785e908'\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}")
    if config is not None:
        machine.write("etc/docker/daemon.json", config)
    found = machine.facts(live=True)["runtime"]["toolkit"]
    assert found == {"version": "1.17.5", "runtime_configured": configured}


WANTED = {
    "log-driver": "json-file",
    "log-opts": {"max-size": "10m", "max-file": "3", "labels": "a,b", "tag": "{{.Name}}"},
    "live-restore": True,
    "features": {"cdi": True},
    "registry-mirrors": ["https://mirror.example:5000", "https://user@mirror.example"],
    "insecure-registries": ["10.0.0.1:5000"],
    "proxies": {"http-proxy": "http://proxy.example:3128"},
    "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}},
    "max-concurrent-downloads": 3,
    "tlskey": "/etc/docker/key.pem",
}


def test_what_the_roles_set_stays_as_it_is() -> None:
    assert runtime.masked(WANTED) == WANTED


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"proxies": {"http-proxy": "http://me:p@ss:w0rd@proxy.example:3128"}},
            {"proxies": {"http-proxy": "http://me:********@proxy.example:3128"}},
        ),
        (
            {"registry-mirrors": ["https://u:x@mirror.example/a"]},
            {"registry-mirrors": ["https://u:********@mirror.example/a"]},
        ),
        (
            {"log-opts": {"splunk-token": "17-xyz", "splunk-url": "https://a:8088"}},
            {"log-opts": {"splunk-token": "********", "splunk-url": "https://a:8088"}},
        ),
        (
            {"log-opts": {"x-api-key": "1", "a_password": "2", "client-secret": "3", "token": ""}},
            {"log-opts": {"x-api-key": "********", "a_password": "********", "client-secret": "********", "token": ""}},
        ),
    ],
)
def test_secrets_are_masked(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert runtime.masked(config) == expected


def test_the_facts_hold_no_password(machine: Any, docker: Any) -> None:
    docker("Docker version 27.5.1, build 9f9e405")
    machine.write("etc/docker/daemon.json", '{"proxies": {"https-proxy": "http://me:hunter2@proxy:3128"}}')
    facts = machine.facts(live=True)
    assert facts["runtime"]["docker"]["daemon_config"]["proxies"] == {"https-proxy": "http://me:********@proxy:3128"}
    assert "hunter2" not in json.dumps(facts)


def serve(path: Path, answer: bytes, hold: float = 0) -> None:
    """Answer one connection at the socket `path`, after `hold` seconds."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        connection, _ = listener.accept()
        connection.recv(1000)
        time.sleep(hold)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(answer)
        connection.close()
        listener.close()

    threading.Thread(target=run, daemon=True).start()


def test_engine_version(tmp_path: Path) -> None:
    assert runtime.engine_version(str(tmp_path / "none.sock"), 1) == (None, None)
    serve(tmp_path / "a.sock", b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"Version": "26.1.5"}\n')
    assert runtime.engine_version(str(tmp_path / "a.sock"), 1) == ("26.1.5", None)
    serve(tmp_path / "b.sock", b"HTTP/1.0 500 Broken\r\n\r\n[]")
    version, message = runtime.engine_version(str(tmp_path / "b.sock"), 1)
    assert version is None and "not understood" in str(message)


def test_engine_that_does_not_answer(tmp_path: Path) -> None:
    serve(tmp_path / "c.sock", b"late", hold=1)
    version, message = runtime.engine_version(str(tmp_path / "c.sock"), 0.2)
    assert version is None and "did not answer" in str(message)
