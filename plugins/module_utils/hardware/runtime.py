# SPDX-License-Identifier: Apache-2.0
"""Container engines, NVIDIA's container toolkit and CDI: what is installed, running and configured."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from ansible_collections.fleet.inference.plugins.module_utils.hardware import packages
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Command, Host

DOCKER_SOCKET = "/run/docker.sock"
DOCKER_CONFIG = "etc/docker/daemon.json"
DOCKER_PACKAGES = ("docker-ce", "docker.io", "moby-engine", "docker-engine")
# From this version on, CDI needs no feature flag.
DOCKER_CDI_DEFAULT = (28, 2)
# Of two specifications of one device that of the later folder counts.
CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")
NO_CDI: Dict[str, Any] = {"specs": [], "devices": [], "nvidia_driver_version": None, "stale": None}
# The driver's version as its libraries carry it: libcuda.so.570.124.06, libnvidia-ml.so.550.54.
DRIVER_LIBRARY = re.compile(r"lib(?:cuda|nvidia-ml)\.so\.([0-9]{3,4}\.[0-9]{1,4}(?:\.[0-9]{1,4})?)\b")
# http://user:password@proxy.example:3128
URL_PASSWORD = re.compile(r"(://[^/@:\s]*:)[^/\s]+@")
SECRET_OPTION = re.compile(r"token|secret|passw|credential|(api|access|account|private)[-_.]?key", re.IGNORECASE)
MASKED = "********"
RESPONSE_LIMIT_BYTES = 1 << 20


class Engines:
    """What dpkg knows of the engines; the programs of those that it does not know run while other facts are read."""

    def __init__(self, host: Host) -> None:
        # Large programs that take longer to print their version than all facts to be read.
        self.dpkg = packages.read(host)
        self.installed, self.held = _installed(self.dpkg)
        self.docker = self._ask(host, "docker", DOCKER_PACKAGES)
        self.podman = self._ask(host, "podman", ("podman",))
        self.toolkit = self._ask(host, "nvidia-ctk", ("nvidia-container-toolkit-base", "nvidia-container-toolkit"))

    def package(self, names: Sequence[str]) -> Optional[str]:
        """Return the first of the packages that is installed."""
        return next((name for name in names if name in self.installed), None)

    def _ask(self, host: Host, program: str, packages: Sequence[str]) -> Union[str, Command]:
        """Return the version of the package that `program` is of, else the running program."""
        package = self.package(packages)
        version = self.installed[package] if package else None
        return version if version and host.exists("usr/bin", program) else host.start(program, "--version")


def collect(host: Host, engines: Engines, nvidia_module_version: Optional[str]) -> Dict[str, Any]:
    """Return the runtime facts; `engines` were asked before.

    `nvidia_module_version` is that of the loaded kernel module, which a CDI specification has to match.
    """
    config = host.report.guard("docker", lambda: _daemon_config(host), None)
    podman = _version(host, "podman", engines.podman, r"podman version ([0-9][^\s,]*)")
    return {
        "docker": host.report.guard("docker", lambda: _docker(host, engines, config), None),
        "podman": None if podman is None else {"version": podman},
        "toolkit": _toolkit(host, engines.toolkit, config),
        "cdi": host.report.guard("cdi", lambda: _cdi(host, nvidia_module_version), NO_CDI),
    }


def _docker(host: Host, engines: Engines, config: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    # podman's docker command says `podman version`, and is no Docker.
    client = _version(host, "docker", engines.docker, r"^Docker version ([0-9][^\s,]*)")
    if client is None:
        return None
    server, message = None, None
    running: Optional[bool] = False
    started = time.monotonic()
    if host.live and _daemon_runs(host):
        server, message = engine_version(DOCKER_SOCKET, max(0.1, host.remaining()))
        # A daemon that may not be asked, or gave no answer in time, is neither running nor not.
        running = None if message else server is not None
    ms = host.report.probes["docker"]["ms"] + int((time.monotonic() - started) * 1000)
    host.report.probe("docker", "error" if message else "ok", message, ms)
    version = server or client
    return {
        "version": version,
        "running": running,
        "cdi": _cdi_enabled(version, config),
        "daemon_config": masked(config),
        "package": engines.package(DOCKER_PACKAGES),
        "held": engines.held,
    }


def _daemon_runs(host: Host) -> bool:
    """Facts must not start the daemon, which connecting to a socket that systemd holds would do."""
    own = host.link("proc/self/ns/pid")
    for name in host.names("proc"):
        if not name.isdigit() or host.text("proc", name, "comm") != "dockerd":
            continue
        # A daemon inside a container has another namespace and is not this node's.
        if host.link("proc", name, "ns/pid") in (own, None):
            return True
    return False


def engine_version(path: str, timeout: float) -> Tuple[Optional[str], Optional[str]]:
    """Ask the Docker Engine at the socket `path` for its version, for at most `timeout` seconds.

    Returns the version and None; None and why there is none; None twice when nothing listens there.
    """
    deadline = time.monotonic() + timeout
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(path)
            connection.sendall(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")
            while len(answer) < RESPONSE_LIMIT_BYTES:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                data = connection.recv(65536)
                if not data:
                    break
                answer += data
        version = json.loads(answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace"))["Version"]
    except socket.timeout:
        return None, f"the Docker Engine did not answer on {path} within {timeout:g} s"
    except (FileNotFoundError, ConnectionRefusedError):
        return None, None
    except PermissionError:
        return None, f"this user may not ask the Docker Engine on {path}; gather the facts with become: true"
    except OSError as problem:
        return None, f"the Docker Engine does not answer on {path}: {problem.strerror or problem}"
    except (ValueError, KeyError, TypeError):
        return None, f"the Docker Engine's answer on {path} is not understood"
    return str(version), None


def _daemon_config(host: Host) -> Optional[Dict[str, Any]]:
    text = host.text(DOCKER_CONFIG)
    if text is None:
        return None
    try:
        config = json.loads(text)
    except ValueError as problem:
        host.report.error("docker", f"/{DOCKER_CONFIG} is not valid JSON: {problem}")
        return None
    if not isinstance(config, dict):
        host.report.error("docker", f"/{DOCKER_CONFIG} holds no JSON object")
        return None
    return config


def _cdi_enabled(version: str, config: Optional[Dict[str, Any]]) -> bool:
    features = (config or {}).get("features")
    flag = features.get("cdi") if isinstance(features, dict) else None
    if isinstance(flag, bool):
        return flag
    numbers = tuple(int(number) for number in re.findall(r"[0-9]{1,6}", version)[:2])
    return numbers >= DOCKER_CDI_DEFAULT


def _installed(known: Optional[Dict[str, packages.Package]]) -> Tuple[Dict[str, Optional[str]], List[str]]:
    """Return the version of each installed package of a runtime, and which are on hold: these keep the engine as it is.

    Versions are the program's: without what Debian puts before and behind them (5:27.5.1-1~debian.13~trixie).
    """
    found = packages.runtime(known)
    installed: Dict[str, Optional[str]] = {}
    for name, package in found.items():
        version = re.match(r"(?:[0-9]+:)?([0-9]+(?:\.[0-9]+)*)", package.version or "")
        installed[name] = version.group(1) if version else None
    return installed, sorted(name for name, package in found.items() if package.held)


def masked(config: Any) -> Any:
    """Return the options without what must not get into a cache or a log: passwords in URLs, tokens of log drivers.

    Everything else stays as it is, so that the options can be compared with those that are wanted.
    """
    if isinstance(config, dict):
        return {
            key: MASKED if isinstance(value, str) and value and SECRET_OPTION.search(key) else masked(value)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [masked(item) for item in config]
    return URL_PASSWORD.sub(rf"\g<1>{MASKED}@", config) if isinstance(config, str) else config


def _version(host: Host, source: str, asked: Union[str, Command], pattern: str) -> Optional[str]:
    """Return the version that is known, or that the program prints, and report the probe `source`."""
    if isinstance(asked, str):
        host.report.probe(source, "ok")
        return asked
    outcome = asked.finish()
    match = re.search(pattern, outcome.stdout) if outcome.status == "ok" else None
    status, message = outcome.status, outcome.message
    if status == "ok" and match is None:
        status, message = "absent", f"{' '.join(asked.argv)} prints no version of it"
    host.report.probe(source, status, message, outcome.ms)
    return match.group(1) if match else None


def _toolkit(host: Host, asked: Union[str, Command], config: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    version = _version(host, "nvidia_ctk", asked, r"version v?([0-9][^\s,]*)")
    if version is None:
        return None
    runtimes = (config or {}).get("runtimes")
    configured: Optional[bool] = isinstance(runtimes, dict) and "nvidia" in runtimes
    if config is None and host.exists(DOCKER_CONFIG):
        configured = None
    return {"version": version, "runtime_configured": configured}


def _cdi(host: Host, nvidia_module_version: Optional[str]) -> Dict[str, Any]:
    specs = []
    drivers: Dict[str, Optional[str]] = {}
    for folder in CDI_FOLDERS:
        for name in host.names(folder):
            if not name.endswith((".json", ".yaml", ".yml")):
                continue
            path = os.path.join(folder, name)
            specs.append(path)
            text = host.text(path)
            if text is None:
                host.report.error("cdi", f"{path} cannot be read")
                continue
            kind, devices = _cdi_content(text)
            if kind is None:
                host.report.error("cdi", f"{path} is no CDI specification")
                continue
            library = DRIVER_LIBRARY.search(text) if re.search(r"(^|\.)nvidia\.com/", kind) else None
            for device in devices:
                drivers[f"{kind}={device}"] = library.group(1) if library else None
    versions = [version for version in drivers.values() if version is not None]
    stale = None
    if versions and nvidia_module_version is not None:
        stale = any(version != nvidia_module_version for version in versions)
    return {
        "specs": specs,
        "devices": sorted(drivers),
        "nvidia_driver_version": versions[-1] if versions else None,
        "stale": stale,
    }


def _cdi_content(text: str) -> Tuple[Optional[str], List[str]]:
    """Return kind and device names of a specification; a kind of None means that it is none."""
    if text.lstrip().startswith("{"):
        try:
            content = json.loads(text)
            kind, devices = content["kind"], content.get("devices") or []
            names = [device["name"] for device in devices]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None, []
        valid = isinstance(kind, str) and all(isinstance(name, (str, int)) for name in names)
        return (kind, [str(name) for name in names]) if valid else (None, [])
    # The standard library has no YAML. nvidia-ctk writes `kind:` and the list `devices:` at the left margin.
    found = re.search(r"^kind:\s*[\"']?([^\s\"']+)", text, re.MULTILINE)
    block = re.search(r"^devices:[^\n]*\n((?:(?:[ \t-][^\n]*)?(?:\n|$))*)", text + "\n", re.MULTILINE)
    if found is None or block is None:
        return None, []
    entry = re.search(r"^[ \t]*- ", block.group(1), re.MULTILINE)
    indent = len(entry.group(0)) if entry else 2
    level = _level(block.group(1), indent)
    return found.group(1), re.findall(r"^(?:[ \t]*- |[ \t]*)name:\s*[\"']?([^\s\"'#]+)", level, re.MULTILINE)


def _level(block: str, indent: int) -> str:
    """Keep the lines whose key starts in column `indent`: those of the devices themselves, not of what they hold."""
    lines = []
    for line in block.splitlines():
        key = line.lstrip(" -")
        if len(line) - len(key) == indent:
            lines.append(line)
    return "\n".join(lines)
