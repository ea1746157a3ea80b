# SPDX-License-Identifier: Apache-2.0
"""Sets of local nodes: bring up, take down, list."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import yaml

from .host import ensure_network, network_options, podman
from .model_hub import stop_model_hub
from .node_images import node_image
from .registry import stop_registry
from .settings import PREFIX, SET_LABEL, cache_dir, known_hosts, ssh_key
from .shell import LocalNodesError, alone, run, say, step
from .vendor_repository import stop_vendor_repository


@dataclasses.dataclass(frozen=True)
class Node:
    """One wanted node: its inventory name, IPv4 address, image layer and Debian release."""

    name: str
    address: str
    layer: str = "bare"
    release: str = "trixie"


def nodes_of_inventory(file: Path) -> list[Node]:
    """Nodes of an Ansible YAML inventory: every host with ``ansible_host``, and ``local_node_layer`` and
    ``local_node_release`` as host variables or as variables of its group."""
    found: dict[str, dict[str, Any]] = {}

    def visit(group: dict[str, Any] | None, inherited: dict[str, Any]) -> None:
        variables = {**inherited, **((group or {}).get("vars") or {})}
        for name, own in ((group or {}).get("hosts") or {}).items():
            found[name] = {**variables, **found.get(name, {}), **(own or {})}
        for child in ((group or {}).get("children") or {}).values():
            visit(child, variables)

    for group in (yaml.safe_load(file.read_text()) or {}).values():
        visit(group, {})
    nodes = [
        Node(
            name,
            str(variables["ansible_host"]),
            str(variables.get("local_node_layer", "bare")),
            str(variables.get("local_node_release", "trixie")),
        )
        for name, variables in sorted(found.items())
        if "ansible_host" in variables
    ]
    if not nodes:
        raise LocalNodesError(f"{file}: no host has ansible_host; give each node an address of the nodes' network")
    return nodes


def _container(set_name: str, node: str) -> str:
    return f"{PREFIX}-{set_name}-{node}"


def _ensure_key() -> str:
    """The public key that nodes accept; the pair is made once."""
    key = ssh_key()
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        key.parent.chmod(0o700)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "inference-fleet local nodes", "-f", key])
    (cache_dir() / "cp").mkdir(mode=0o700, exist_ok=True)
    return key.with_suffix(".pub").read_text().strip()


def _inspect(container: str) -> dict[str, Any] | None:
    shown = podman("container", "inspect", container, check=False)
    return dict(json.loads(shown.stdout)[0]) if shown.returncode == 0 else None


def _answers(container: str) -> bool:
    return podman("exec", container, "true", check=False).returncode == 0


def _start(set_name: str, node: Node, image: str) -> bool:
    """Have the node's container running; true when it was created or started now."""
    name = _container(set_name, node.name)
    wanted_id = podman("image", "inspect", "--format", "{{.Id}}", image).stdout.strip()
    current = _inspect(name)
    if current and str(current["Image"]) == wanted_id:
        # Asked, not looked up: after a crash of this machine podman may call a container running that is not.
        if _answers(name):
            return False
        podman("start", name, check=False)
        if _answers(name):
            return True
    _remove(name)
    # Docker's storage needs a volume: an overlay on the node's own overlay is refused by the kernel.
    volume = f"{name}-docker"
    options = ["--systemd=always", "--privileged", "--hostname", node.name, *network_options(node.address)]
    options += ["--label", f"{SET_LABEL}={set_name}", "--volume", f"{volume}:/var/lib/docker"]
    started = podman("run", "--detach", "--name", name, *options, image, "/sbin/init", check=False)
    if started.returncode != 0:
        _remove(name)
        raise LocalNodesError(f"{node.name}: could not be started at {node.address}: {started.stderr.strip()}")
    return True


def _remove(container: str) -> None:
    podman("kill", container, check=False)
    podman("rm", "--force", "--ignore", container)
    podman("volume", "rm", "--force", f"{container}-docker", check=False)


def _wait(set_name: str, node: Node, public_key: str, deadline_seconds: float = 90) -> str:
    """Wait until systemd is up and SSH answers; return the node's host key line."""
    name = _container(set_name, node.name)
    script = (
        "set -eu; install -d -m 0700 -o fleet -g fleet /home/fleet/.ssh; "
        "cat >/home/fleet/.ssh/authorized_keys; chown fleet:fleet /home/fleet/.ssh/authorized_keys; "
        "cat /etc/ssh/ssh_host_ed25519_key.pub"
    )
    deadline = time.monotonic() + deadline_seconds
    state = "no answer"
    while time.monotonic() < deadline:
        state = podman("exec", name, "systemctl", "is-system-running", check=False).stdout.strip()
        if state in ("running", "degraded"):
            break
        time.sleep(0.5)
    else:
        raise LocalNodesError(f"{node.name}: systemd did not come up within {deadline_seconds:.0f} s ({state})")
    host_key = podman("exec", "-i", name, "sh", "-c", script, text_input=public_key + "\n").stdout.split()
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((node.address, 22), timeout=2):
                return f"{node.address} {host_key[0]} {host_key[1]}"
        except OSError:
            time.sleep(0.3)
    raise LocalNodesError(f"{node.name}: no SSH on {node.address}:22 within {deadline_seconds:.0f} s")


def _remember(lines: list[str]) -> None:
    """Replace the host keys of these addresses."""
    file = known_hosts()
    addresses = {line.split()[0] for line in lines}
    kept = [line for line in file.read_text().splitlines() if line.split()[0] not in addresses] if file.exists() else []
    file.write_text("\n".join([*kept, *lines]) + "\n")


def up(set_name: str, nodes: list[Node]) -> bool:
    """Have all nodes of a set running and reachable by SSH; true when anything had to be done."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", set_name):
        raise LocalNodesError(f"{set_name!r} can't name a set of nodes; use lower-case letters, digits and hyphens")
    with alone(cache_dir()):
        return _up(set_name, nodes)


def _up(set_name: str, nodes: list[Node]) -> bool:
    ensure_network()
    public_key = _ensure_key()
    images = {(node.layer, node.release): node_image(node.layer, node.release) for node in nodes}
    started = [node for node in nodes if _start(set_name, node, images[node.layer, node.release])]
    if not started:
        say(f"  ok nodes {', '.join(node.name for node in nodes)} are running")
        return False
    with step(f"nodes {', '.join(node.name for node in started)}"):
        _remember([_wait(set_name, node, public_key) for node in started])
    return True


def _containers(set_name: str | None = None) -> list[str]:
    label = f"label={SET_LABEL}={set_name}" if set_name else f"label={SET_LABEL}"
    return podman("ps", "--all", "--filter", label, "--format", "{{.Names}}").stdout.split()


def down(set_name: str | None) -> None:
    """Remove the nodes of a set (None: of every set) with their volumes; with the last one the network goes too."""
    there = _containers(set_name)
    for container in there:
        _remove(container)
    # Where there was nothing to remove, somebody else may be about to bring up the first nodes.
    if (there or set_name is None) and not _containers():
        stop_registry()
        stop_vendor_repository()
        stop_model_hub()
        podman("network", "rm", "--force", PREFIX, check=False)


def status() -> list[dict[str, str]]:
    """What is there: set, node, address and state of every local node."""
    rows = []
    for container in _containers():
        shown = _inspect(container) or {}
        settings = shown["NetworkSettings"]["Networks"].get(PREFIX, {})
        rows.append(
            {
                "set": shown["Config"]["Labels"][SET_LABEL],
                "node": shown["Config"]["Hostname"],
                "address": settings.get("IPAddress", ""),
                "state": shown["State"]["Status"],
            }
        )
    return rows
