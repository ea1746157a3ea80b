# SPDX-License-Identifier: Apache-2.0
"""The facts of a node as a few lines that a person reads."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from ansible_collections.fleet.inference.plugins.module_utils.text import (
    LABEL_WIDTH,
    after,
    counted,
    gib,
    joined,
    ranges,
    row,
    table,
    widths,
)

VENDOR_NAMES = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}
LINK_NAMES = {"nvlink": "NVLink", "xgmi": "xGMI", "pcie": "PCIe"}
#: The instruction sets that say how fast a processor infers, best first: (name, flag).
BEST_FLAGS = (
    ("AMX", "amx_tile"),
    ("AVX-512", "avx512f"),
    ("AVX-VNNI", "avx_vnni"),
    ("AVX2", "avx2"),
    ("SME", "sme"),
    ("SVE2", "sve2"),
    ("SVE", "sve"),
    ("I8MM", "i8mm"),
    ("BF16", "bf16"),
    ("dot product", "asimddp"),
    ("NEON", "asimd"),
    ("RVV", "rvv"),
)
HEAD = ["", "Name", "Memory used / total", "Arch", "PCI", "NUMA", "State"]


def lines(facts: Dict[str, Any]) -> List[str]:
    """Return the lines of `ansible_facts.gpu`, aligned, without line ends; what is unknown is a dash or left out."""
    devices = facts.get("devices") or []
    found = row("Node", _node(facts))
    found += row("Tier", _tier(facts, devices))
    found += row("Driver", _driver(facts.get("driver") or {}))
    found += row("Reboot", (facts.get("driver") or {}).get("reboot_reason"))
    found += _gpus(devices)
    found += row("Links", _links(facts, devices))
    found += row("CPU", _cpu(facts.get("cpu") or {}))
    found += row("Memory", _memory(facts))
    found += row("Storage", _storage(facts.get("storage") or {}))
    found += row("Runtime", _runtime(facts.get("runtime") or {}))
    for number, service in enumerate(facts.get("services") or []):
        found += row("" if number else "Services", _service(service))
    for number, error in enumerate(facts.get("errors") or []):
        found += row("" if number else "Errors", f"{error.get('source')}: {error.get('message')}")
    return found


def _node(facts: Dict[str, Any]) -> Optional[str]:
    system = facts.get("os") or {}
    name = joined([system.get("id"), system.get("version_id")], " ")
    container = system.get("container")
    return joined(
        [
            system.get("hostname"),
            name,
            after("kernel", system.get("kernel")),
            after("systemd", system.get("systemd_version")),
            f"in a container ({container})" if container else None,
            "in WSL" if system.get("wsl") else None,
        ]
    )


def _tier(facts: Dict[str, Any], devices: List[Dict[str, Any]]) -> Optional[str]:
    count = len(devices)
    switches = facts.get("nvswitch_count")
    return joined(
        [
            facts.get("tier"),
            counted(count, "GPU"),
            after("usable:", facts.get("usable_count")) if count else None,
            counted(switches, "NVSwitch", "NVSwitches") if switches else None,
        ]
    )


def _driver(driver: Dict[str, Any]) -> Optional[str]:
    module = driver.get("kernel_module_version")
    library = driver.get("library_version")
    return joined(
        [
            joined([driver.get("version"), _in_brackets(driver.get("module_flavour"))], " "),
            after("CUDA", driver.get("cuda_version")),
            after("ROCm", driver.get("rocm_version")),
            f"library {library} does not match the loaded module {module}" if driver.get("mismatch") else None,
        ]
    )


def _in_brackets(text: Optional[str]) -> Optional[str]:
    return f"({text})" if text else None


def _labels(devices: List[Dict[str, Any]]) -> List[str]:
    """A GPU's number is its vendor's; where there are several vendors, their names tell the numbers apart."""
    vendors = {device.get("vendor") for device in devices}
    labels = []
    for device in devices:
        index = "-" if device.get("index") is None else str(device["index"])
        vendor = str(device.get("vendor"))
        labels.append(index if len(vendors) == 1 else f"{VENDOR_NAMES.get(vendor, vendor)} {index}")
    return labels


def _gpus(devices: List[Dict[str, Any]]) -> List[str]:
    if not devices:
        return row("GPUs", "none")
    rows = [HEAD]
    below: Dict[int, List[str]] = {}
    labels = _labels(devices)
    for position, device in enumerate(devices):
        used, total = device.get("memory_used_bytes"), device.get("memory_total_bytes")
        rows.append(
            [
                labels[position],
                device.get("name") or "-",
                "-" if used is None and total is None else f"{gib(used)} / {gib(total)} GiB",
                device.get("architecture") or "-",
                device.get("pci_bus_id") or "-",
                "-" if device.get("numa_node") is None else str(device["numa_node"]),
                _state(device),
            ]
        )
        below[len(rows) - 1] = _parts(device)
    first = widths(rows)[0]
    found = []
    for number, line in enumerate(table(rows)):
        found.append(("" if number else "GPUs").ljust(LABEL_WIDTH) + line)
        found += [" " * (LABEL_WIDTH + first + 4) + part for part in below.get(number, [])]
    return found


def _state(device: Dict[str, Any]) -> str:
    ecc = device.get("ecc") or {}
    mig = device.get("mig") or {}
    virtualization = device.get("virtualization")
    words = [] if device.get("usable") else [device.get("unusable_reason") or "not usable"]
    if mig.get("mode"):
        words = ["MIG"] if mig.get("instances") else ["MIG without instances"]
    health = device.get("health")
    return (
        joined(
            [
                *words,
                None if words or health not in ("ok", None) else "ok",
                None if health in ("ok", None) or not device.get("usable") else str(health).replace("_", " "),
                "unified memory" if device.get("unified_memory") else None,
                "asleep" if device.get("usable") and device.get("power_state") == "suspended" else None,
                "vGPU" if virtualization == "vgpu_guest" else None,
                "virtual function" if virtualization == "sriov_vf" else None,
                f"{ecc['uncorrected']} uncorrected ECC errors" if ecc.get("uncorrected") else None,
                "row remapping failed" if ecc.get("remap_failure") else None,
                "row remapping pending" if ecc.get("remap_pending") else None,
            ]
        )
        or "-"
    )


def _parts(device: Dict[str, Any]) -> List[str]:
    """MIG instances differ and get a line each; the partitions of a card are all alike."""
    found = []
    for instance in (device.get("mig") or {}).get("instances") or []:
        shared = " (shared)" if instance.get("memory_shared") else ""
        found.append(
            f"MIG {instance.get('index')}: {instance.get('profile') or '-'}, "
            f"{gib(instance.get('memory_total_bytes'))} GiB{shared}"
        )
    partition = device.get("partition")
    if partition:
        mode = joined([partition.get("compute"), partition.get("memory")], "/")
        sizes = {instance.get("memory_total_bytes") for instance in partition.get("instances") or []} - {None}
        each = f"{gib(sizes.pop())} GiB each" if len(sizes) == 1 else None
        text = joined([counted(partition.get("count"), "partition"), each])
        found += [f"{mode or 'partitioned'}" + (f": {text}" if text else "")]
    return found


def _links(facts: Dict[str, Any], devices: List[Dict[str, Any]]) -> Optional[str]:
    labels = _labels(devices)
    domains = (facts.get("topology") or {}).get("link_domains") or []
    if all(len(domain.get("devices") or []) < 2 for domain in domains):
        return None
    texts = []
    for domain in domains:
        members = [labels[position] for position in domain.get("devices") or [] if position < len(labels)]
        node = domain.get("numa_node")
        texts.append(
            f"{LINK_NAMES.get(str(domain.get('type')), domain.get('type'))} {ranges(members)}"
            + ("" if node is None else f" (NUMA {node})")
        )
    return "; ".join(texts)


def _cpu(cpu: Dict[str, Any]) -> Optional[str]:
    sockets = cpu.get("sockets") or 1
    model = cpu.get("model") or cpu.get("architecture")
    usable, threads = cpu.get("cores"), cpu.get("threads")
    flags = cpu.get("flags") or []
    return joined(
        [
            f"{sockets} x {model}" if model and sockets > 1 else model,
            counted(cpu.get("physical_cores"), "core"),
            counted(threads, "thread"),
            f"{usable} of them usable" if usable is not None and threads is not None and usable < threads else None,
            joined([name for name, flag in BEST_FLAGS if flag in flags], " "),
        ]
    )


def _memory(facts: Dict[str, Any]) -> Optional[str]:
    total, available = facts.get("memory_total_bytes"), facts.get("memory_available_bytes")
    if total is None:
        return None
    nodes = [node for node in facts.get("numa") or [] if node.get("cpus")]
    return joined(
        [
            f"{gib(available)} of {gib(total)} GiB available",
            counted(len(nodes), "NUMA node") if len(nodes) > 1 else None,
        ]
    )


def _storage(storage: Dict[str, Any]) -> Optional[str]:
    if storage.get("free_bytes") is None:
        return None
    return joined(
        [
            f"{gib(storage['free_bytes'])} of {gib(storage.get('total_bytes'))} GiB free for {storage.get('path')}",
            storage.get("filesystem"),
        ]
    )


def _runtime(runtime: Dict[str, Any]) -> Optional[str]:
    docker, toolkit, cdi = runtime.get("docker"), runtime.get("toolkit"), runtime.get("cdi") or {}
    devices = cdi.get("devices") or []
    running = (docker or {}).get("running")
    state = "not answering" if running is None else "running" if running else "stopped"
    specification = counted(len(devices), "CDI device") if devices else None
    if specification and cdi.get("stale"):
        specification += f" for driver {cdi.get('nvidia_driver_version')}, which is not the loaded one"
    return (
        joined(
            [
                f"Docker {docker.get('version')} ({state}, CDI {'on' if docker.get('cdi') else 'off'})"
                if docker
                else None,
                after("podman", (runtime.get("podman") or {}).get("version")),
                after("NVIDIA container toolkit", (toolkit or {}).get("version")),
                specification,
            ]
        )
        or "no container engine"
    )


def _service(service: Dict[str, Any]) -> Optional[str]:
    port = service.get("port")
    address = service.get("address")
    place = joined([address, None if port is None else str(port)], ":")
    models = joined(service.get("models") or [service.get("model")], " + ")
    return joined([service.get("name"), service.get("backend"), models, place])
