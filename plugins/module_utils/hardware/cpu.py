# SPDX-License-Identifier: Apache-2.0
"""The processor: model, sockets, cores, usable threads and instruction set flags."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Optional, Set, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host, to_int

CPUS = "sys/devices/system/cpu"
# Of several processor kinds (big and little cores) at most so many are named.
MODELS_NAMED = 3
#: Instruction sets that inference engines have code paths for: x86-64 SSE4.2 to AMX, Arm NEON to SME.
ENGINE_FLAGS = re.compile(r"sse4_2|avx\w*|amx_\w+|fma|f16c|bmi2|asimd\w*|neon|sve\w*|sme2?|i8mm|bf16|fphp")
#: RISC-V extensions beside V that they have code paths for.
RISCV_EXTENSIONS = ("zfh", "zvfh", "zvfbfwma")
#: Arm prints numbers and no name. From Linux, arch/arm64/include/asm/cputype.h: (implementer, part).
ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD85): "Cortex-X925",
    (0x41, 0xD87): "Cortex-A725",
    (0x41, 0xD8E): "Neoverse-N3",
    (0x46, 0x001): "A64FX",
    (0x48, 0xD01): "Kunpeng-920",
    (0x4E, 0x003): "Denver",
    (0x4E, 0x004): "Carmel",
    (0x4E, 0x010): "Olympus",
    (0x51, 0x001): "Oryon",
    (0x6D, 0xD49): "Azure-Cobalt-100",
    (0xC0, 0xAC3): "Ampere-1",
    (0xC0, 0xAC4): "Ampere-1A",
}

UNKNOWN: Dict[str, Any] = {
    "model": None,
    "architecture": None,
    "sockets": None,
    "physical_cores": None,
    "threads": None,
    "cores": None,
    "flags": [],
}


def collect(host: Host) -> Dict[str, Any]:
    """Return the facts of the processor.

    `architecture` is what `uname -m` prints, `threads` are all that are online, `cores` the threads this node may use
    (a container or a CPU set may have fewer), `physical_cores` and `sockets` what they belong to. `flags` are the
    instruction sets that engines have code for, lower-case, sorted; `rvv` is RISC-V's V.
    """
    text = host.text("proc/cpuinfo") or ""
    words = set((_value(text, "flags") or _value(text, "Features") or "").lower().split())
    listed = len(re.findall(r"^processor\s*:", text, re.MULTILINE)) or None
    sockets, physical = _from_cpuinfo(text) or _from_sysfs(host)
    return {
        "model": _model(text),
        "architecture": _architecture(host, words, text),
        "sockets": sockets,
        "physical_cores": physical,
        "threads": count(host.text(CPUS, "online")) or listed,
        "cores": len(os.sched_getaffinity(0)) if host.live else listed,
        "flags": sorted({flag for flag in words if ENGINE_FLAGS.fullmatch(flag)} | _riscv(text)),
    }


def count(text: Optional[str]) -> Optional[int]:
    """Return how many processors a list such as "0-15,32-47" names, None when it is no such list."""
    total = 0
    for part in (text or "").split(","):
        first, found, last = part.partition("-")
        low, high = to_int(first), to_int(last if found else first)
        if low is None or high is None or not 0 <= low <= high:
            return None
        total += high - low + 1
    return total


def _value(text: str, key: str) -> Optional[str]:
    found = re.search(rf"^{key}[ \t]*:[ \t]*(\S[^\n]*?)[ \t]*$", text, re.MULTILINE)
    return found.group(1) if found else None


def _numbers(text: str, key: str) -> List[str]:
    return re.findall(rf"^{key}[ \t]*:[ \t]*(0x[0-9a-fA-F]{{1,4}}|[0-9]{{1,9}})$", text, re.MULTILINE)


def _model(text: str) -> Optional[str]:
    named = _value(text, "model name") or _value(text, "cpu model")
    # A kernel without a name says so; 32-bit Arm names the instruction set.
    if named and not named.startswith(("ARMv", "unknown")):
        return named
    parts = list(map(_arm_name, _numbers(text, "CPU implementer"), _numbers(text, "CPU part")))
    # The kernel lists the little cores first.
    names = list(dict.fromkeys(name for name in reversed(parts) if name))[:MODELS_NAMED]
    # "Model" and "Hardware" name an Arm board, "cpu" is POWER's.
    return " + ".join(names) or named or _value(text, "Model") or _value(text, "Hardware") or _value(text, "cpu")


def _arm_name(implementer: str, part: str) -> Optional[str]:
    return ARM_PARTS.get((int(implementer, 16), int(part, 16)))


def _from_cpuinfo(text: str) -> Optional[Tuple[Optional[int], Optional[int]]]:
    """x86-64 says of every thread which core of which socket it is."""
    packages, cores = _numbers(text, "physical id"), _numbers(text, "core id")
    if not packages or len(packages) != len(cores):
        return None
    return len(set(packages)), len({(package, cores[thread]) for thread, package in enumerate(packages)})


def _from_sysfs(host: Host) -> Tuple[Optional[int], Optional[int]]:
    """Core numbers repeat on Arm, in each cluster or socket; the list of a core's threads does not."""
    packages, cores = set(), set()
    for name in host.names(CPUS):
        if not re.fullmatch(r"cpu[0-9]+", name):
            continue
        # Before Linux 5.1 the file was called thread_siblings_list.
        threads = host.text(CPUS, name, "topology/core_cpus_list") or host.text(
            CPUS, name, "topology/thread_siblings_list"
        )
        package = host.integer(CPUS, name, "topology/physical_package_id")
        if count(threads):
            cores.add(threads)
        if package is not None and package >= 0:
            packages.add(package)
    return len(packages) or None, len(cores) or None


def _riscv(text: str) -> Set[str]:
    isa = (_value(text, "isa") or "").lower()
    if not isa.startswith(("rv32", "rv64")):
        return set()
    letters, *extensions = isa.split("_")
    found = {name for name in RISCV_EXTENSIONS if name in extensions}
    return found | {"rvv"} if "v" in letters[4:] else found


def _architecture(host: Host, words: Set[str], text: str) -> Optional[str]:
    if host.live:
        return os.uname().machine
    recorded = host.text("proc/sys/kernel/arch")
    if recorded:
        return recorded
    if "lm" in words:
        return "x86_64"
    if (_value(text, "isa") or "").startswith("rv64"):
        return "riscv64"
    return "aarch64" if "asimd" in words else None
