# SPDX-License-Identifier: Apache-2.0
"""The services that are installed on a node: what each serves, the state it is in, and its last lines."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Mapping, Sequence

from ansible_collections.fleet.inference.plugins.module_utils.services.runner import CommandNotFound, Runner

#: The backend of the gateway's own services, which are the gateway's alone.
GATEWAY_BACKEND = "litellm"
_SHOWN = ("Id", "ActiveState", "SubState")
_WORDS = {"active": "serving", "activating": "starting", "deactivating": "stopping", "inactive": "stopped"}


def read_services(config_root: str) -> List[Dict[str, Any]]:
    """Return what each engine's service.json says: name, backend, models, address and port, None where it is silent.

    A service whose record is broken has its folder's name; so has one whose first start was interrupted.
    """
    folder = os.path.join(config_root, "services")
    found = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if not os.path.isdir(os.path.join(folder, name)):
            continue
        record = _record(os.path.join(folder, name, "service.json"))
        if record.get("backend") == GATEWAY_BACKEND:
            continue
        models = record.get("models") or [record.get("model")]
        found.append(
            {
                "name": name,
                "backend": record.get("backend"),
                "models": [model for model in models if isinstance(model, str)] if isinstance(models, list) else [],
                "address": record.get("address"),
                "port": record.get("port"),
            }
        )
    return found


def _record(path: str) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            content = json.load(stream)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def states(names: Sequence[str], runner: Runner) -> Dict[str, str]:
    """Return each service's state in one word: serving, starting, stopping, stopped, failed, or unknown.

    A unit is active once its model has answered, so an active service serves.
    """
    units = {f"inference-{name}.service": name for name in names}
    if not units:
        return {}
    try:
        done = runner.run(["systemctl", "show", f"--property={','.join(_SHOWN)}", *units])
    except CommandNotFound:
        return dict.fromkeys(names, "unknown")
    found = dict.fromkeys(names, "unknown")
    for block in done.stdout.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        name, active = units.get(values.get("Id", "")), values.get("ActiveState", "")
        if name:
            found[name] = _WORDS.get(active, active or "unknown")
    return found


def last_lines(name: str, lines: int, runner: Runner) -> List[str]:
    """Return a service's last lines of the journal, each with its time, the oldest first."""
    options = [f"--unit=inference-{name}.service", f"--lines={lines}", "--output=short-iso", "--no-hostname"]
    try:
        done = runner.run(["journalctl", *options, "--no-pager", "--quiet"])
    except CommandNotFound:
        return []
    return [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
