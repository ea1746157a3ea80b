# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import runtime

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


def test_an_engine_that_may_not_be_asked_is_not_called_stopped(
    machine: Any, docker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker("Docker version 27.5.1, build 9f9e405")
    monkeypatch.setattr(runtime, "_daemon_runs", lambda host: True)
    monkeypatch.setattr(runtime, "engine_version", lambda path, timeout: (None, "Permission denied"))
    assert machine.facts(live=True)["runtime"]["docker"]["running"] is None


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
    }
    assert facts["errors"] == [{"source": "cdi", "message": "/etc/cdi/broken.json is no CDI specification"}]


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
