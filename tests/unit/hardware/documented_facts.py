# SPDX-License-Identifier: Apache-2.0
"""The fields that the module documents, and a check that facts have exactly these, with their types."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

MODULE = Path(__file__).resolve().parents[3] / "plugins/modules/gpu_facts.py"
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
}
# Never unknown, by their place: counts, lists, structures, and answers that are yes or no.
CERTAIN = {
    *("schema_version", "tier", "vendors", "physical_count", "usable_count", "topology", "errors", "probes", "numa"),
    *("topology.matrix", "topology.link_domains", "topology.link_domains.type", "topology.link_domains.devices"),
    *("driver", "driver.reboot_required", "driver.mismatch", "devices", "devices.index", "devices.vendor"),
    *("devices.unified_memory", "devices.integrated", "devices.usable", "devices.mig", "devices.mig.instances"),
    *("devices.ecc", "devices.power", "devices.pcie", "devices.links", "cpu", "cpu.flags", "os", "os.wsl", "cgroup"),
    *("cgroup.controllers", "network", "network.addresses", "listening", "groups", "storage", "storage.path"),
    *("runtime", "runtime.cdi", "runtime.cdi.specs", "runtime.cdi.devices", "services", "boot", "boot.kernels"),
    *("boot.kernels.release", "boot.kernels.image", "boot.kernels.headers", "boot.kernels.initramfs"),
    *("boot.kernels.initramfs_stale", "boot.kernels.modules", "boot.command_line", "boot.loaded", "boot.blacklisted"),
    *("boot.free_bytes", "files", "units", "gpu_ready.ready", "gpu_ready.problems", "gpu_ready.expected"),
    *("measurements", "measurements.backend", "measurements.model", "measurements.measured_at"),
}


@functools.lru_cache(maxsize=1)
def documented() -> dict[str, Any]:
    """The documented fields of `ansible_facts.gpu`."""
    text = MODULE.read_text().partition('RETURN = r"""')[2].partition('"""')[0]
    return yaml.safe_load(text)["ansible_facts"]["contains"]["gpu"]["contains"]


def check(facts: dict[str, Any]) -> None:
    """Fail unless `facts` have the documented fields and types, and null in the place of an empty text."""
    _check_fields(facts, documented(), "")
    for probe in facts["probes"].values():
        assert set(probe) == {"status", "message", "ms"} and probe["status"] in ("ok", "absent", "timeout", "error")
    for device in facts["devices"]:
        assert device["usable"] is (device["unusable_reason"] is None), device
    size = len(facts["devices"])
    assert [len(row) for row in facts["topology"]["matrix"]] == [size] * size


def _check_fields(found: dict[str, Any], fields: dict[str, Any], place: str) -> None:
    assert set(found) == set(fields), f"{place or 'gpu'} has {set(found) ^ set(fields)} too much or too little"
    for name, value in found.items():
        _check_value(value, fields[name], f"{place}.{name}".lstrip("."))


def _check_value(value: Any, field: dict[str, Any], place: str) -> None:
    if value is None:
        assert place not in CERTAIN, f"{place} is null"
        return
    kinds = TYPES[field["type"]]
    assert isinstance(value, kinds), f"{place} is {value!r}, it should be {field['type']}"
    assert bool in kinds or not isinstance(value, bool), f"{place} is {value!r}, it should be {field['type']}"
    assert value != "", f"{place} is empty, it should be null"
    if "contains" in field:
        for row in value if isinstance(value, list) else [value]:
            _check_fields(row, field["contains"], place)
    elif field["type"] == "list":
        for item in value:
            assert isinstance(item, TYPES[field["elements"]]), f"{place} holds {item!r}"
