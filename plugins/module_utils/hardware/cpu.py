# SPDX-License-Identifier: Apache-2.0
"""The processor: model, usable threads and instruction set flags."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Optional

from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host

MODEL_KEYS = ("model name", "Model", "cpu model", "Hardware", "cpu")


#: Instruction sets that inference engines have code paths for: x86-64 SSE4.2 to AMX, Arm NEON and SVE, RISC-V vectors.
ENGINE_FLAGS = re.compile(r"sse4_2|avx\w*|amx_\w+|fma|f16c|bmi2|asimd\w*|neon|sve\w*|i8mm|bf16|fphp|v")

UNKNOWN: Dict[str, Any] = {"model": None, "architecture": None, "cores": None, "flags": []}


def collect(host: Host) -> Dict[str, Any]:
    """Return `model`, `architecture` (as `uname -m` prints it), `cores` (threads this node may use) and `flags`."""
    rows = [line.split(":", 1) for line in (host.text("proc/cpuinfo") or "").splitlines() if ":" in line]
    pairs = [(key.strip(), value.strip()) for key, value in rows]
    first: Dict[str, str] = {}
    for key, value in pairs:
        first.setdefault(key, value)
    flags = first.get("flags") or first.get("Features") or ""
    cores: Optional[int] = sum(1 for key, _ in pairs if key == "processor") or None
    if host.live:
        cores = len(os.sched_getaffinity(0))
    return {
        "model": next((first[key] for key in MODEL_KEYS if first.get(key)), None),
        "architecture": _architecture(host, flags.split()),
        "cores": cores,
        "flags": sorted(flag for flag in set(flags.lower().split()) if ENGINE_FLAGS.fullmatch(flag)),
    }


def _architecture(host: Host, flags: List[str]) -> Optional[str]:
    if host.live:
        return os.uname().machine
    recorded = host.text("proc/sys/kernel/arch")
    if recorded:
        return recorded
    if "lm" in flags:
        return "x86_64"
    return "aarch64" if "asimd" in flags else None
