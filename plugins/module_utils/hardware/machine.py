# SPDX-License-Identifier: Apache-2.0
"""The machine around the GPUs: processor, memory, operating system, network, storage, container engines, services."""

from __future__ import annotations

from typing import Any, Dict, Optional

from ansible_collections.fleet.inference.plugins.module_utils.hardware import (
    boot,
    cpu,
    numa,
    packages,
    runtime,
    system,
    written,
)
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host


def collect(
    host: Host,
    storage_path: str,
    state_path: str,
    measurements_path: str,
    nvidia_module_version: Optional[str],
) -> Dict[str, Any]:
    """Return these facts; what cannot be read is unknown and in the report's errors.

    `nvidia_module_version` is that of NVIDIA's loaded kernel module.
    """
    report = host.report
    engines = runtime.Engines(host)
    kernels = report.guard("boot", lambda: boot.start(host), None)
    units = report.guard("units", lambda: written.start_units(host), None)
    nodes = report.guard("numa", lambda: numa.collect(host), [])
    memory_total, memory_available = report.guard("memory", lambda: system.memory(host, nodes), (None, None))
    return {
        "cpu": report.guard("cpu", lambda: cpu.collect(host), cpu.UNKNOWN),
        "memory_total_bytes": memory_total,
        "memory_available_bytes": memory_available,
        "numa": nodes,
        "os": report.guard("os", lambda: system.os_release(host), dict.fromkeys(system.OS_KEYS)),
        "cgroup": report.guard("cgroup", lambda: system.cgroup(host), {"version": None, "controllers": []}),
        "network": {"addresses": report.guard("network", lambda: system.addresses(host), [])},
        "listening": report.guard("listening", lambda: system.listening(host), []),
        "groups": report.guard("groups", lambda: system.group_ids(host), {"render": None, "video": None}),
        "storage": report.guard("storage", lambda: system.storage(host, storage_path), system.no_storage(storage_path)),
        "services": report.guard("services", lambda: system.services(host, state_path), []),
        "measurements": report.guard("measurements", lambda: system.measurements(host, measurements_path), []),
        "runtime": runtime.collect(host, engines, nvidia_module_version),
        "packages": packages.drivers(engines.dpkg),
        "files": report.guard("files", lambda: written.files(host), {}),
        "gpu_ready": report.guard("gpu_ready", lambda: written.gpu_ready(host), None),
        "units": report.guard("units", lambda: written.finish_units(units, host), {}) if units else {},
        "boot": report.guard("boot", lambda: boot.finish(kernels, host), boot.UNKNOWN) if kernels else boot.UNKNOWN,
    }
