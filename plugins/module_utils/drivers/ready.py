# SPDX-License-Identifier: Apache-2.0
"""What gpu-ready has to look for on a node, with which settings of its GPUs, and what of that is missing there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import (
    HEAD,
    Facts,
    Refusals,
    file_agrees,
    file_entry,
    module_of,
    next_kernel,
    require_facts,
)

VARIABLES = (
    "gpu_ready_deadline_seconds",
    "gpu_ready_expected",
    "gpu_ready_mig",
    "gpu_ready_power_limits",
    "nvidia_driver_state",
    "rocm_state",
)
#: What runs on the node.
PROGRAM = Path(__file__).resolve().parents[3] / "roles/gpu_ready/files/gpu_ready.py"
PROGRAM_PATH = "/usr/local/libexec/inference-fleet/gpu-ready"
CONFIGURATION_PATH = "/etc/inference-fleet/gpu-ready.json"
REPORT_PATH = "/run/inference-fleet/gpu-ready.json"
READY_UNIT = "gpu-ready.service"
SETTINGS_UNIT = "inference-gpu-settings.service"
UNIT_FOLDER = "/etc/systemd/system"
#: Drivers that leave a GPU to NVIDIA's own once that is there; any other one has the GPU on purpose (vfio-pci).
_FREE_DRIVERS = (None, "nouveau", "nova_core")
#: systemd ends the program this long after its own deadline.
_MARGIN_SECONDS = 60
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
#: 3g.40gb, 1c.3g.40gb, 1g.10gb+me: NVIDIA's MIG user guide, "Device names".
_PROFILE = re.compile(r"(?:[0-9]+c\.)?[0-9]+g\.[0-9]+gb(?:[+-][a-z0-9.+-]+)?")

_READY_TEXT = """\
# {head}
[Unit]
Description=Wait until this node's GPUs can be used
# After nvidia-cdi-refresh it can't be: that one comes after multi-user.target.
Wants={wants}
After=nvidia-persistenced.service nvidia-fabricmanager.service {settings}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -I {program} check
# A restart would take the services along that require this unit.
ExecReload=/usr/bin/python3 -I {program} check
TimeoutStartSec={timeout}

[Install]
WantedBy=multi-user.target
"""
_SETTINGS_TEXT = """\
# {head}
[Unit]
Description=Apply the MIG layouts and power limits of this node's GPUs
Wants=nvidia-persistenced.service
After=nvidia-persistenced.service
Before={ready}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -I {program} settings
ExecReload=/usr/bin/python3 -I {program} settings
TimeoutStartSec={timeout}

[Install]
WantedBy=multi-user.target
"""


def plan(host: str, facts: Facts, variables: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the role has to do on a node, or raise DriverError with every reason why it can't.

    Args:
        host: Name of the host for sentences.
        facts: The node's facts.
        variables: Values of ``VARIABLES``.
        table: Not used; every driver's decision is called alike.

    Returns:
        ``needed``, ``gpus`` (what is looked for), ``settings`` (there are any), ``files`` to write, ``remove`` (paths
        that are there and should not be), ``waiting`` (the restart without which looking is in vain, or None) and
        ``steps``: ``files``, ``remove``, ``enable``, ``settings`` and ``check`` are true where something is to be done.
    """
    require_facts(facts, host, "gpu_ready_facts")
    refusals = Refusals(host)
    deadline = _deadline(variables, refusals)
    gpus = [{**gpu, "power_limit_watts": None, "mig": None} for gpu in _expected(facts, variables, refusals)]
    if gpus and all(_device(facts, gpu["pci_bus_id"]) for gpu in gpus):
        _set_power_limits(gpus, facts, variables.get("gpu_ready_power_limits") or {}, refusals)
        _set_mig(gpus, facts, variables.get("gpu_ready_mig") or {}, refusals)
    else:
        # While one is missing the others have other indexes, and nobody knows which UUID is the missing one's.
        remembered = {gpu["pci_bus_id"]: gpu for gpu in (facts.get("gpu_ready") or {}).get("expected") or []}
        gpus = [{**gpu, **remembered.get(gpu["pci_bus_id"], {})} for gpu in gpus]
    refusals.tell()
    settings = any(gpu["mig"] is not None or gpu["power_limit_watts"] is not None for gpu in gpus)
    files = _files(facts, gpus, deadline, settings) if gpus else []
    kept = {entry["path"] for entry in files}
    ours = {PROGRAM_PATH, CONFIGURATION_PATH, f"{UNIT_FOLDER}/{READY_UNIT}", f"{UNIT_FOLDER}/{SETTINGS_UNIT}"}
    remove = sorted((ours - kept) & set(facts["files"]))
    if not gpus and facts.get("gpu_ready"):
        remove.append(REPORT_PATH)
    driver = facts.get("driver") or {}
    waiting = (driver.get("reboot_reason") or "its driver was changed") if driver.get("reboot_required") else None
    return {
        "needed": bool(gpus),
        "gpus": gpus,
        "settings": settings,
        "files": files,
        "remove": remove,
        "waiting": waiting if gpus else None,
        "steps": _steps(facts, gpus, files, remove, waiting),
    }


def _steps(
    facts: Facts, gpus: list[dict[str, Any]], files: list[dict[str, str]], remove: list[str], waiting: str | None
) -> dict[str, bool]:
    settings = any(entry["path"].endswith(SETTINGS_UNIT) for entry in files)
    units = [facts["units"].get(unit) or {} for unit in [READY_UNIT, *([SETTINGS_UNIT] if settings else [])]]
    report = facts.get("gpu_ready") or {}
    write = any(not file_agrees(facts, entry) for entry in files)
    configuration = next((entry["content"] for entry in files if entry["path"] == CONFIGURATION_PATH), "")
    current = report.get("configuration_sha256") == hashlib.sha256(configuration.encode()).hexdigest()
    active = all(unit.get("active") for unit in units)
    apply = settings and not all(_settings_agree(gpu, facts) for gpu in gpus)
    stale = bool(((facts.get("runtime") or {}).get("cdi") or {}).get("stale"))
    works = bool(active and current and report.get("ready") and all(_works(gpu, facts) for gpu in gpus))
    possible = bool(gpus) and waiting is None
    return {
        "files": write,
        "remove": bool(remove),
        # The files of an interrupted run may lie there unread by systemd: the report then tells of older ones.
        "enable": bool(gpus)
        and (write or not all(unit.get("enabled") for unit in units) or (possible and not current)),
        "settings": possible and settings and (apply or not active or not current),
        "check": possible and (not works or apply or stale),
    }


def _deadline(variables: Mapping[str, Any], refusals: Refusals) -> int:
    value = variables.get("gpu_ready_deadline_seconds")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 3600:
        refusals.add(f"gpu_ready_deadline_seconds is {value!r}; give a whole number of seconds from 1 to 3600")
        return 1
    return value


def _device(facts: Facts, address: str) -> dict[str, Any]:
    devices = facts.get("devices") or []
    return next((device for device in devices if device.get("pci_bus_id") == address), {})


def _elsewhere(device: Mapping[str, Any]) -> bool:
    """Tell whether a GPU on the bus is not for this node's services, by what somebody set up on purpose."""
    bound = device.get("driver_bound")
    own = {"nvidia": "nvidia", "amd": "amdgpu"}.get(str(device.get("vendor")))
    return (
        (bound != own and bound not in (*_FREE_DRIVERS, "radeon"))
        or device.get("virtualization") == "vgpu_host"
        or str(device.get("unusable_reason") or "").startswith("the driver is told to leave it out")
    )


def _wanted_vendors(variables: Mapping[str, Any]) -> set[str]:
    states = {"nvidia": variables.get("nvidia_driver_state"), "amd": variables.get("rocm_state")}
    return {vendor for vendor, state in states.items() if state != "absent"}


def _expected(facts: Facts, variables: Mapping[str, Any], refusals: Refusals) -> list[dict[str, Any]]:
    """Return the GPUs to look for: those that are named, else those that are there or were at the last look.

    A GPU that was there stays expected: one that fell off the bus would be forgotten otherwise.
    """
    named = variables.get("gpu_ready_expected")
    vendors = _wanted_vendors(variables)
    found = [device for device in facts.get("devices") or [] if _is_for_compute(device, facts)]
    remembered = (facts.get("gpu_ready") or {}).get("expected") or []
    by_address = {gpu["pci_bus_id"]: gpu["vendor"] for gpu in [*remembered, *found]}
    if named is None:
        addresses = [
            address
            for address, vendor in by_address.items()
            if vendor in vendors and not _elsewhere(_device(facts, address) or {"driver_bound": None})
        ]
    else:
        if not isinstance(named, list) or not all(
            isinstance(item, str) and _PCI_ADDRESS.fullmatch(item) for item in named
        ):
            refusals.add(
                f"gpu_ready_expected is {named!r}; give a list of PCI addresses as the facts have them, such as "
                "0000:01:00.0, or null"
            )
            return []
        addresses = named
    rows = []
    for address in sorted(set(addresses)):
        vendor = by_address.get(address) or _device(facts, address).get("vendor") or facts.get("vendor") or "nvidia"
        if vendor in ("nvidia", "amd"):
            rows.append({"vendor": vendor, "pci_bus_id": address})
        else:
            refusals.add(
                f"gpu_ready_expected has {address}, which is a GPU of {vendor}; name GPUs of NVIDIA or AMD, others are "
                "used through Vulkan without it"
            )
    return rows


def _is_for_compute(device: Mapping[str, Any], facts: Facts) -> bool:
    """Tell whether the GPU is one that CUDA or ROCm will use; what Vulkan uses needs nothing of gpu-ready."""
    if not device.get("pci_bus_id"):
        return False
    bound = device.get("driver_bound")
    if device.get("vendor") == "nvidia":
        installed = module_of(facts, next_kernel(facts), "nvidia") is not None
        return bound == "nvidia" or (bound in _FREE_DRIVERS and installed)
    if device.get("vendor") == "amd":
        return bool(facts.get("tier") == "rocm" and bound == "amdgpu" and device.get("usable"))
    return False


def _works(gpu: Mapping[str, Any], facts: Facts) -> bool:
    """Tell whether the facts see nothing wrong with a GPU that is looked for."""
    device = _device(facts, gpu["pci_bus_id"])
    if gpu["vendor"] == "nvidia":
        return device.get("driver_bound") == "nvidia" and device.get("health") in (None, "ok")
    return device.get("driver_bound") == "amdgpu"


def _targets(
    option: str, wishes: Any, gpus: list[dict[str, Any]], facts: Facts, refusals: Refusals
) -> dict[str, tuple[Any, bool]]:
    """Return wish and whether it was for all, by PCI address; a wish for one GPU wins over that for ``all``."""
    if not isinstance(wishes, Mapping):
        refusals.add(f"{option} is {wishes!r}; give a dictionary from all, a UUID or an index to what it gets")
        return {}
    nvidia = [gpu["pci_bus_id"] for gpu in gpus if gpu["vendor"] == "nvidia"]
    targets = {address: (wishes["all"], True) for address in nvidia if "all" in wishes}
    devices = [device for device in facts.get("devices") or [] if device.get("vendor") == "nvidia"]
    for key, wish in wishes.items():
        if key == "all":
            continue
        # Tools count GPUs differently; the facts' index is NVML's, and from here on the address stands for it.
        names = {
            device["pci_bus_id"]: (device.get("uuid"), str(device.get("index")), device["pci_bus_id"])
            for device in devices
        }
        found = [address for address, known in names.items() if str(key) in known]
        if set(found) & set(nvidia):
            targets[found[0]] = (wish, False)
        elif found:
            # Of a GPU that is not looked for, such as one of a virtual machine.
            continue
        elif not str(key).startswith("GPU-") or all(device.get("uuid") for device in devices):
            known = ", ".join(str(device.get("uuid") or device.get("pci_bus_id")) for device in devices)
            refusals.add(f"{option} names {key!r}, which is none of the node's NVIDIA GPUs; known: {known or 'none'}")
    return targets


def _set_power_limits(gpus: list[dict[str, Any]], facts: Facts, wishes: Any, refusals: Refusals) -> None:
    for address, (watts, _) in _targets("nvidia_driver_power_limits", wishes, gpus, facts, refusals).items():
        limits = _device(facts, address).get("power") or {}
        low, high = limits.get("min_limit_watts") or 1, limits.get("max_limit_watts")
        valid = isinstance(watts, int | float) and not isinstance(watts, bool)
        if not valid or watts < low or (high is not None and watts > high):
            span = f"from {low:g}" + (f" to {high:g}" if high is not None else " up")
            refusals.add(f"nvidia_driver_power_limits is {watts!r} for GPU {address}; give watts {span}")
            continue
        next(gpu for gpu in gpus if gpu["pci_bus_id"] == address)["power_limit_watts"] = watts


def _set_mig(gpus: list[dict[str, Any]], facts: Facts, wishes: Any, refusals: Refusals) -> None:
    for address, (profiles, for_all) in _targets("nvidia_driver_mig", wishes, gpus, facts, refusals).items():
        device = _device(facts, address)
        if not isinstance(profiles, list) or not all(
            isinstance(item, str) and _PROFILE.fullmatch(item) for item in profiles
        ):
            refusals.add(
                f"nvidia_driver_mig is {profiles!r} for GPU {address}; give a list of profiles such as 3g.40gb, or [] "
                "for a GPU that is not divided"
            )
            continue
        if device.get("health") == "ok" and (device.get("mig") or {}).get("mode") is None:
            if not for_all:
                refusals.add(
                    f"nvidia_driver_mig names GPU {address} ({device.get('name')}), which has no MIG; leave it out"
                )
            continue
        next(gpu for gpu in gpus if gpu["pci_bus_id"] == address)["mig"] = sorted(profiles)


def _settings_agree(gpu: Mapping[str, Any], facts: Facts) -> bool:
    device = _device(facts, gpu["pci_bus_id"])
    watts, limit = gpu["power_limit_watts"], (device.get("power") or {}).get("limit_watts")
    if watts is not None and (limit is None or abs(limit - watts) >= 1):
        return False
    if gpu["mig"] is None:
        return True
    mig = device.get("mig") or {}
    profiles = sorted(instance["profile"] for instance in mig.get("instances") or [])
    return bool(mig.get("mode")) == bool(gpu["mig"]) and profiles == gpu["mig"]


def _files(facts: Facts, gpus: list[dict[str, Any]], deadline: int, settings: bool) -> list[dict[str, str]]:
    program = PROGRAM.read_text(encoding="utf-8")
    timeout = deadline + _MARGIN_SECONDS
    wants = ["nvidia-persistenced.service"] if any(gpu["vendor"] == "nvidia" for gpu in gpus) else []
    wants += [SETTINGS_UNIT] if settings else []
    ready = _READY_TEXT.format(
        head=HEAD, wants=" ".join(wants), settings=SETTINGS_UNIT, program=PROGRAM_PATH, timeout=timeout
    )
    units = {READY_UNIT: ready}
    if settings:
        units[SETTINGS_UNIT] = _SETTINGS_TEXT.format(head=HEAD, ready=READY_UNIT, program=PROGRAM_PATH, timeout=timeout)
    made_of = hashlib.sha256("\0".join([program, *units.values()]).encode()).hexdigest()
    configuration = {
        "schema_version": 1,
        "deadline_seconds": deadline,
        "gpus": gpus,
        "fabric": bool(facts.get("nvswitch_count")) and any(gpu["vendor"] == "nvidia" for gpu in gpus),
        # By this the report also tells whether the program and the units are those that ran.
        "made_of": made_of,
    }
    return [
        file_entry(PROGRAM_PATH, program, "0755"),
        file_entry(CONFIGURATION_PATH, json.dumps(configuration, indent=2) + "\n"),
        *(file_entry(f"{UNIT_FOLDER}/{name}", text) for name, text in units.items()),
    ]
