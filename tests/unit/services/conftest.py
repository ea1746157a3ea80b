# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a node's docker, systemctl and journalctl: it keeps their state in memory and records every call."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.services.engine import DockerEngine
from ansible_collections.fleet.inference.plugins.module_utils.services.manager import Result, ServiceManager
from ansible_collections.fleet.inference.plugins.module_utils.services.runner import CommandNotFound, Completed
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import ServiceSpec
from ansible_collections.fleet.inference.plugins.module_utils.services.systemd import Systemd

IMAGE = "10.1.2.3:5000/ggml-org/llama.cpp:server-b1"
NO_IMAGE = "Error response from daemon: No such image: {}"


class StandInNode:
    """The commands of a node. `healthy` says whether the service, as its files lie there, would become ready."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.docker_installed = True
        self.docker_running = True
        self.registry: Dict[str, str] = {IMAGE: "sha256:one"}
        self.images: Dict[str, str] = {}
        self.containers: List[str] = []
        self.active: Dict[str, str] = {}
        self.loaded: Dict[str, str] = {}
        self.journal = ["llama_model_load: error", "not ready: 127.0.0.1:8005 did not answer as it should within 5 s"]
        self.pull_error: Optional[str] = None
        self.healthy: Callable[[], bool] = lambda: True
        self.systemd_version = 257
        self.calls: List[List[str]] = []

    def run(self, argv: Sequence[str], timeout: Optional[float] = None) -> Completed:
        self.calls.append(list(argv))
        program = Path(argv[0]).name
        if program == "docker":
            return self._docker(list(argv[1:]))
        if program == "systemctl":
            if list(argv[1:]) == ["--version"]:
                return Completed(0, f"systemd {self.systemd_version} ({self.systemd_version}.9-1)\n+PAM +AUDIT\n")
            return self._systemctl([word for word in argv[1:] if not word.startswith("--")])
        return Completed(0, "\n".join(self.journal) + "\n")

    def _docker(self, words: List[str]) -> Completed:
        if not self.docker_installed:
            raise CommandNotFound("docker")
        if not self.docker_running:
            return Completed(1, "", "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
        name = words[-1]
        if words[:2] == ["image", "inspect"]:
            if name in self.images:
                return Completed(0, self.images[name] + "\n")
            return Completed(1, "", NO_IMAGE.format(name))
        if words[0] == "pull":
            if self.pull_error or name not in self.registry:
                return Completed(1, "", self.pull_error or f"manifest for {name} not found: manifest unknown")
            self.images[name] = self.registry[name]
            return Completed(0, name)
        if words[0] == "tag":
            self.images[name] = words[1]
            return Completed(0)
        if words[:2] == ["container", "inspect"]:
            return Completed(0 if name in self.containers else 1)
        if words[0] == "rm":
            self.containers = [entry for entry in self.containers if entry != name]
            return Completed(0)
        raise AssertionError(words)

    def _systemctl(self, words: List[str]) -> Completed:
        verb = words[0]
        if verb == "daemon-reload":
            self.loaded = {path.name: path.read_text() for path in self.units.iterdir() if path.is_file()}
            return Completed(0)
        unit = words[-1]
        path = self.units / unit
        if verb == "show":
            load = "loaded" if path.exists() else "not-found"
            stale = path.exists() and unit in self.loaded and self.loaded[unit] != path.read_text()
            state = self.active.get(unit, "inactive")
            return Completed(0, f"LoadState={load}\nActiveState={state}\nNeedDaemonReload={'yes' if stale else 'no'}\n")
        if verb == "disable":
            for link in self.links(unit):
                link.unlink()
        elif verb == "enable":
            wants = self.units / f"{self.wanted_by(unit)}.wants" / unit
            wants.parent.mkdir(exist_ok=True)
            wants.symlink_to(path)
        elif verb == "stop":
            self.active[unit] = "inactive"
            if unit.endswith(".service"):
                self.containers = []
        elif verb in ("start", "restart"):
            assert self.loaded.get(unit) == path.read_text(), "started without a daemon-reload"
            if unit.endswith(".target"):
                self.active[unit] = "active"
                return Completed(0)
            if not self.healthy():
                self.active[unit] = "activating"
                return Completed(1, "", f"Job for {unit} failed.\nSee systemctl status.")
            self.active[unit] = "active"
            self.containers = [unit[: -len(".service")]]
        return Completed(0)

    def links(self, unit: str) -> List[Path]:
        """The links by which a unit is enabled."""
        return sorted(path for path in self.units.glob("*.wants/*") if path.name == unit)

    def wanted_by(self, unit: str) -> str:
        """The last WantedBy= of a unit and its drop-ins, which reset what came before them."""
        files = [self.units / unit, *sorted((self.units / f"{unit}.d").glob("*.conf"))]
        lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("WantedBy=")]
        return lines[-1][len("WantedBy=") :]

    @property
    def units(self) -> Path:
        return self.root / "units"

    @property
    def directory(self) -> Path:
        return self.root / "etc/services/llamacpp"

    @property
    def unit(self) -> Path:
        return self.units / "inference-llamacpp.service"

    def verbs(self, *wanted: str) -> List[str]:
        """The recorded verbs of `wanted`, in order, but those for the target that groups the services."""
        calls = [call for call in self.calls if not call[-1].endswith(".target")]
        return [word for call in calls for word in call[1:2] if word in wanted]

    def snapshot(self) -> Dict[str, Any]:
        """Every file, with mode and content, but the lock."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and path.suffix != ".lock":
                found[str(path)] = (path.stat().st_mode, path.read_bytes())
        return found

    def apply(self, options: Dict[str, Any], check: bool = False, port: str = "") -> Result:
        """One call of the module's logic on this node; `port` is what the port probe says."""
        self.calls = []
        spec = ServiceSpec.from_params(options)
        engine = DockerEngine(self, frozenset({"memory", "pids"}))  # type: ignore[arg-type]
        systemd = Systemd(self)  # type: ignore[arg-type]
        probe: Callable[[str, int], str] = lambda _address, _port: port  # noqa: E731
        return ServiceManager(spec, engine, systemd, "gpu-01", check_mode=check, port_probe=probe).run()


@pytest.fixture
def node(tmp_path: Path) -> StandInNode:
    (tmp_path / "units").mkdir()
    return StandInNode(tmp_path)


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., Dict[str, Any]]:
    base: Dict[str, Any] = {
        "name": "llamacpp",
        "backend": "llamacpp",
        "model": "smollm2",
        "image": IMAGE,
        "env": {"LLAMA_ARG_CTX_SIZE": "4096"},
        "secret_env": {"LLAMA_API_KEY": "canary-key-0001"},
        "files": [{"name": "extra.json", "content": "{}\n", "target": "/config/extra.json"}],
        "mounts": [{"source": "/var/lib/inference-fleet/models", "target": "/models"}],
        "tmpfs": ["/tmp"],
        "ports": [{"address": "127.0.0.1", "host_port": 8005, "container_port": 8080}],
        "user": "10001:10001",
        "pids_limit": 512,
        "memory_limit_bytes": 2**30,
        "readiness": {
            "host": "127.0.0.1",
            "port": 8005,
            "models_path": "/v1/models",
            "model": "smollm2",
            "bearer_env": "LLAMA_API_KEY",
            "timeout_seconds": 5,
        },
        "config_root": str(tmp_path / "etc"),
        "state_root": str(tmp_path / "var"),
        "unit_dir": str(tmp_path / "units"),
    }

    def build(**changes: Any) -> Dict[str, Any]:
        result = copy.deepcopy(base)
        result.update(changes)
        return result

    return build
