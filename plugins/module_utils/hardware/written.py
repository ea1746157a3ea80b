# SPDX-License-Identifier: Apache-2.0
"""What this fleet's roles left on the node: their files by hash, the units of GPUs, and what gpu-ready found."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from typing import Any, Dict, List, NamedTuple, Optional

from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Command, Host

UNITS = (
    "nvidia-persistenced.service",
    "nvidia-fabricmanager.service",
    "nvidia-cdi-refresh.path",
    "inference-gpu-settings.service",
    "gpu-ready.service",
)
UNIT_FOLDERS = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system")
# Where /usr is not merged.
OLD_UNIT_FOLDER = "lib/systemd/system"
PROGRAMS = "usr/local/libexec/inference-fleet"
READY = "run/inference-fleet/gpu-ready.json"
EXPECTED_KEYS = ("vendor", "pci_bus_id", "power_limit_watts", "mig")
# Folders of /etc without settings of ours, and with many files.
SKIPPED = ("ssl", "pki", "alternatives", "ssh", "selinux")
SIZE_LIMIT_BYTES = 1 << 20

# A number in front is how drop-in folders are sorted: 52inference-fleet, 70-inference-gpu.rules.
_OURS = re.compile(r"^(?:[0-9]+-?)?inference-(?:fleet|gpu)|^gpu-ready\.")


class Pending(NamedTuple):
    """The units that are there, and the `systemctl` that tells which of them are active."""

    units: Dict[str, Dict[str, Any]]
    command: Optional[Command]


def files(host: Host) -> Dict[str, str]:
    """Return the SHA-256 of each file of ours by its path.

    A file counts by its name or its folder's. One that not everybody may read holds a secret, of which no hash gets
    into a cache.
    """
    found = {}
    for top in ("etc", PROGRAMS):
        for place, folders, names in os.walk(host.path(top)):
            folder = os.path.basename(place)
            if folder == "etc":
                folders[:] = [name for name in folders if name not in SKIPPED]
            for name in names:
                if _OURS.match(name) or _OURS.match(folder):
                    digest = _digest(os.path.join(place, name))
                    if digest is not None:
                        found["/" + os.path.relpath(os.path.join(place, name), host.root)] = digest
    return dict(sorted(found.items()))


def _digest(path: str) -> Optional[str]:
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & stat.S_IROTH or status.st_size > SIZE_LIMIT_BYTES:
            return None
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError:
        return None


def start_units(host: Host) -> Pending:
    """Find the units, and start what tells whether they are active."""
    links = _links(host)
    found: Dict[str, Dict[str, Any]] = {}
    for name in UNITS:
        places = [folder for folder in (*UNIT_FOLDERS, OLD_UNIT_FOLDER) if host.exists(folder, name)]
        if places:
            # A masked unit is a link to /dev/null.
            masked = any(host.link(folder, name) == "null" for folder in places)
            found[name] = {"enabled": name in links and not masked, "active": None}
    command = host.start("systemctl", "show", "--property=Id,ActiveState", *found) if found else None
    return Pending(found, command)


def finish_units(pending: Pending, host: Host) -> Dict[str, Dict[str, Any]]:
    """Return the units by name: `enabled` at boot, `active` now, null where systemd could not be asked."""
    if pending.command is None:
        host.report.probe("systemctl", "absent", "none of the units it would be asked for")
        return pending.units
    outcome = pending.command.finish()
    host.report.probe("systemctl", outcome.status, outcome.message, outcome.ms)
    for block in outcome.stdout.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        unit = pending.units.get(values.get("Id", ""))
        if unit is not None and values.get("ActiveState"):
            unit["active"] = values["ActiveState"] == "active"
    return pending.units


def _links(host: Host) -> List[str]:
    """Return the units that something wants or requires at boot: systemd.unit(5), the folders .wants and .requires."""
    found = []
    for folder in ("etc/systemd/system", "run/systemd/system"):
        for name in host.names(folder):
            if name.endswith((".wants", ".requires")):
                found += host.names(folder, name)
    return found


def gpu_ready(host: Host) -> Optional[Dict[str, Any]]:
    """Return what gpu-ready found since the last boot, None when it has not run."""
    text = host.text(READY)
    if text is None:
        return None
    content = json.loads(text)
    return {
        "ready": bool(content["ready"]),
        "problems": [str(problem) for problem in content["problems"]],
        "configuration_sha256": content.get("configuration_sha256"),
        "boot_id": content.get("boot_id"),
        "expected": [{key: gpu[key] for key in EXPECTED_KEYS} for gpu in content["expected"]],
    }
