# SPDX-License-Identifier: Apache-2.0
"""Golden plans: what every backend is given on 21 machines, written down after reading each row."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from planning_machines import GIB, MACHINES, MIB, ROOT, catalog, device, facts, gpu_facts

CATALOG = catalog()


def several(name: str, mib: int, architecture: str, count: int, ram: int, **changes: Any) -> dict[str, Any]:
    """A node with equal GPUs; ``ram`` is its memory in GiB."""
    tier = "rocm" if changes.get("vendor") == "amd" else "cuda"
    devices = [device(name, mib, architecture, index=index, **changes) for index in range(count)]
    driver = {"version": "580.95.05", "cuda_version": "13.0", "reboot_required": False}
    return gpu_facts(tier, devices, memory_total_bytes=ram * GIB, driver=driver)


def divided(*profiles: tuple[str, int]) -> dict[str, Any]:
    """A node with one H100 in MIG mode; profiles with their memory in MiB."""
    instances = [
        {
            "index": index,
            "uuid": f"MIG-{index}",
            "profile": profile,
            "gpu_instance_id": index + 1,
            "compute_instance_id": 0,
            "memory_total_bytes": mib * MIB,
            "memory_shared": False,
            "multiprocessors": 16,
        }
        for index, (profile, mib) in enumerate(profiles)
    ]
    mig = {"mode": True, "pending_mode": True, "instances": instances}
    reason = "MIG is enabled, its instances are used in its place"
    name = "NVIDIA H100 80GB HBM3"
    gpu = device(name, 81559, "9.0", usable=False, unusable_reason=reason, health="ok", mig=mig)
    return gpu_facts("cuda", [gpu], memory_total_bytes=256 * GIB)


APU = device("Radeon 8060S", 98304, "gfx1151", vendor="amd", uuid=None, unified_memory=True, integrated=True)
AMX = {"architecture": "x86_64", "cores": 64, "flags": ["avx2", "avx512f", "amx_bf16"]}
NODES = {
    "cpu-16g": facts(memory_total_bytes=16 * GIB),
    "cpu-256g": facts(memory_total_bytes=256 * GIB, cpu=AMX),
    "rtx3090": MACHINES["rtx3090"],
    "2xrtx3090": several("NVIDIA GeForce RTX 3090", 24576, "8.6", 2, 128),
    "rtx4090": several("NVIDIA GeForce RTX 4090", 24564, "8.9", 1, 64),
    "rtx5090": several("NVIDIA GeForce RTX 5090", 32607, "12.0", 1, 96),
    "t4": MACHINES["t4"],
    "v100": MACHINES["v100"],
    "a100-40": several("NVIDIA A100-SXM4-40GB", 40960, "8.0", 1, 256),
    "l40s-4": several("NVIDIA L40S", 46068, "8.9", 4, 512),
    "h100": MACHINES["h100"],
    "8xh100": several("NVIDIA H100 80GB HBM3", 81559, "9.0", 8, 2000),
    "8xb200": several("NVIDIA B200", 183359, "10.0", 8, 2000),
    "h100-mig": divided(("3g.40gb", 40448), ("2g.20gb", 20096), ("1g.10gb", 9984), ("1g.10gb", 9984)),
    "gb10": MACHINES["gb10"],
    "mi300x": MACHINES["mi300x"],
    "8xmi300x": several("AMD Instinct MI300X", 196592, "gfx942", 8, 2000, vendor="amd"),
    "rx7900": MACHINES["rx7900"],
    "strix-halo": gpu_facts("rocm", [APU], memory_total_bytes=125 * GIB),
    "arc": MACHINES["arc"],
    "mixed": gpu_facts(
        "cuda",
        [
            device("NVIDIA GeForce RTX 4090", 24564, "8.9", index=0),
            device("Tesla T4", 15360, "7.5", index=1),
        ],
        memory_total_bytes=64 * GIB,
        driver={"version": "580.95.05", "cuda_version": "13.0", "reboot_required": False},
    ),
}

# node, backend, model; image variant, quantization, units, context, requests at once, GiB of each unit, or why not
# fmt: off
GOLDEN: list[tuple[str, str, str, Any]] = [
    ("cpu-16g", "llamacpp", "qwen3-8b", ("cpu", "Q4_K_M", 1, 8192, 4, 9.4)),
    ("cpu-16g", "llamacpp", "qwen3-32b", "needs 18.8 GiB of host memory"),
    ("cpu-16g", "ollama", "qwen3-8b", ("cpu", "Q4_K_M", 1, 8192, 4, 9.7)),
    ("cpu-16g", "ollama", "qwen3-32b", "needs 18.8 GiB of host memory"),
    ("cpu-16g", "vllm", "qwen3-8b", "nearest that works: llamacpp with gguf"),
    ("cpu-16g", "vllm", "llama-3.3-70b-instruct", "nearest that works: ollama with gguf"),
    ("cpu-16g", "sglang", "qwen3-8b", "nearest that works: llamacpp with gguf"),
    ("cpu-16g", "sglang", "llama-3.3-70b-instruct", "nearest that works: ollama with gguf"),
    ("cpu-256g", "llamacpp", "qwen3-8b", ("cpu", "Q4_K_M", 1, 8192, 4, 9.4)),
    ("cpu-256g", "llamacpp", "qwen3-32b", ("cpu", "Q4_K_M", 1, 8192, 4, 26.7)),
    ("cpu-256g", "ollama", "qwen3-8b", ("cpu", "Q4_K_M", 1, 8192, 4, 9.7)),
    ("cpu-256g", "ollama", "qwen3-32b", ("cpu", "Q4_K_M", 1, 8192, 4, 27.2)),
    ("cpu-256g", "vllm", "qwen3-8b", ("cpu", "bf16", 1, 8192, 4, 22.9)),
    ("cpu-256g", "vllm", "llama-3.3-70b-instruct", ("cpu", "bf16", 1, 8192, 4, 144.7)),
    ("cpu-256g", "sglang", "qwen3-8b", ("cpu", "bf16", 1, 8192, 4, 27.3)),
    ("cpu-256g", "sglang", "llama-3.3-70b-instruct", ("cpu", "bf16", 1, 8192, 4, 148.9)),
    ("rtx3090", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 24576, 4, 18.8)),
    ("rtx3090", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 2048, 4, 21.1)),
    ("rtx3090", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 24576, 4, 19.2)),
    ("rtx3090", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 2048, 4, 21.3)),
    ("rtx3090", "vllm", "qwen3-8b", ("cuda", "awq", 1, 32768, 2, 16.5)),
    ("rtx3090", "vllm", "llama-3.3-70b-instruct", "needs 39.9 GiB of memory on GPU 0 (NVIDIA GeForce RTX 3090)"),
    ("rtx3090", "sglang", "qwen3-8b", ("cuda", "awq", 1, 32768, 2, 19.6)),
    ("rtx3090", "sglang", "llama-3.3-70b-instruct", "needs 42.7 GiB of memory on GPU 0 (NVIDIA GeForce RTX 3090)"),
    ("2xrtx3090", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 24576, 4, 18.8)),
    ("2xrtx3090", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 2048, 4, 21.1)),
    ("2xrtx3090", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 24576, 4, 19.2)),
    ("2xrtx3090", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 2048, 4, 21.3)),
    ("2xrtx3090", "vllm", "qwen3-8b", ("cuda", "bf16", 2, 32768, 4, 19.6)),
    ("2xrtx3090", "vllm", "llama-3.3-70b-instruct", ("cuda", "awq", 2, 4096, 1, 21.9)),
    ("2xrtx3090", "sglang", "qwen3-8b", ("cuda", "bf16", 2, 32768, 4, 21.9)),
    ("2xrtx3090", "sglang", "llama-3.3-70b-instruct", "needs 23.8 GiB of memory on each of 2 GPUs"),
    ("rtx4090", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 24576, 4, 18.8)),
    ("rtx4090", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 2048, 4, 21.1)),
    ("rtx4090", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 24576, 4, 19.2)),
    ("rtx4090", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 2048, 4, 21.3)),
    ("rtx4090", "vllm", "qwen3-8b", ("cuda", "awq", 1, 32768, 2, 16.5)),
    ("rtx4090", "vllm", "llama-3.3-70b-instruct", "needs 39.9 GiB of memory on GPU 0 (NVIDIA GeForce RTX 4090)"),
    ("rtx4090", "sglang", "qwen3-8b", ("cuda", "awq", 1, 32768, 2, 19.6)),
    ("rtx4090", "sglang", "llama-3.3-70b-instruct", "needs 42.7 GiB of memory on GPU 0 (NVIDIA GeForce RTX 4090)"),
    ("rtx5090", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("rtx5090", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 8192, 4, 27.1)),
    ("rtx5090", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("rtx5090", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 8192, 4, 27.3)),
    ("rtx5090", "vllm", "qwen3-8b", ("cuda", "fp8", 1, 32768, 4, 29.3)),
    ("rtx5090", "vllm", "llama-3.3-70b-instruct", "needs 39.9 GiB of memory on GPU 0 (NVIDIA GeForce RTX 5090)"),
    ("rtx5090", "sglang", "qwen3-8b", ("cuda", "awq", 1, 32768, 4, 28.9)),
    ("rtx5090", "sglang", "llama-3.3-70b-instruct", "needs 42.7 GiB of memory on GPU 0 (NVIDIA GeForce RTX 5090)"),
    ("t4", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 12288, 4, 12.1)),
    ("t4", "llamacpp", "qwen3-32b", "needs 19.2 GiB of memory on GPU 0 (Tesla T4)"),
    ("t4", "ollama", "qwen3-8b", ("cuda12", "Q4_K_M", 1, 12288, 4, 12.4)),
    ("t4", "ollama", "qwen3-32b", "needs 19.2 GiB of memory on GPU 0 (Tesla T4)"),
    ("t4", "vllm", "qwen3-8b", ("cuda12", "awq", 1, 32768, 1, 11.6)),
    ("t4", "vllm", "llama-3.3-70b-instruct", "needs 39.9 GiB of memory on GPU 0 (Tesla T4)"),
    ("t4", "sglang", "qwen3-8b", "needs 20.1 GiB of memory on GPU 0 (Tesla T4)"),
    ("t4", "sglang", "llama-3.3-70b-instruct", "needs 136.3 GiB of memory on GPU 0 (Tesla T4)"),
    ("v100", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("v100", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 8192, 4, 27.1)),
    ("v100", "ollama", "qwen3-8b", ("cuda12", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("v100", "ollama", "qwen3-32b", ("cuda12", "Q4_K_M", 1, 8192, 4, 27.3)),
    ("v100", "vllm", "qwen3-8b", "nearest that works: llamacpp with gguf"),
    ("v100", "vllm", "llama-3.3-70b-instruct", "nearest that works: ollama with gguf"),
    ("v100", "sglang", "qwen3-8b", "nearest that works: llamacpp with gguf"),
    ("v100", "sglang", "llama-3.3-70b-instruct", "nearest that works: ollama with gguf"),
    ("a100-40", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("a100-40", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 16384, 4, 35.1)),
    ("a100-40", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("a100-40", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 16384, 4, 35.8)),
    ("a100-40", "vllm", "qwen3-8b", ("cuda", "bf16", 1, 32768, 4, 35.7)),
    ("a100-40", "vllm", "llama-3.3-70b-instruct", "needs 39.9 GiB of memory on GPU 0 (NVIDIA A100-SXM4-40GB)"),
    ("a100-40", "sglang", "qwen3-8b", ("cuda", "fp8", 1, 32768, 4, 31.9)),
    ("a100-40", "sglang", "llama-3.3-70b-instruct", "needs 42.7 GiB of memory on GPU 0 (NVIDIA A100-SXM4-40GB)"),
    ("l40s-4", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("l40s-4", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 16384, 4, 35.1)),
    ("l40s-4", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("l40s-4", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 16384, 4, 35.8)),
    ("l40s-4", "vllm", "qwen3-8b", ("cuda", "bf16", 1, 32768, 4, 35.7)),
    ("l40s-4", "vllm", "llama-3.3-70b-instruct", ("cuda", "fp8", 4, 32768, 4, 30.2)),
    ("l40s-4", "sglang", "qwen3-8b", ("cuda", "bf16", 1, 32768, 4, 38.4)),
    ("l40s-4", "sglang", "llama-3.3-70b-instruct", ("cuda", "fp8", 4, 32768, 4, 32.4)),
    ("h100", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("h100", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 32768, 4, 51.1)),
    ("h100", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("h100", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 32768, 4, 52.1)),
    ("h100", "vllm", "qwen3-8b", ("cuda", "bf16", 1, 32768, 8, 55.4)),
    ("h100", "vllm", "llama-3.3-70b-instruct", ("cuda", "awq", 1, 32768, 2, 60.0)),
    ("h100", "sglang", "qwen3-8b", ("cuda", "bf16", 1, 32768, 8, 59.9)),
    ("h100", "sglang", "llama-3.3-70b-instruct", ("cuda", "awq", 1, 32768, 2, 62.7)),
    ("8xh100", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("8xh100", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 32768, 4, 51.1)),
    ("8xh100", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("8xh100", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 32768, 4, 52.1)),
    ("8xh100", "vllm", "qwen3-8b", ("cuda", "bf16", 1, 32768, 8, 55.4)),
    ("8xh100", "vllm", "llama-3.3-70b-instruct", ("cuda", "fp8", 2, 32768, 4, 57.1)),
    ("8xh100", "sglang", "qwen3-8b", ("cuda", "bf16", 1, 32768, 8, 59.9)),
    ("8xh100", "sglang", "llama-3.3-70b-instruct", ("cuda", "fp8", 2, 32768, 4, 59.1)),
    ("8xb200", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("8xb200", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 32768, 4, 51.1)),
    ("8xb200", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("8xb200", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 32768, 4, 52.1)),
    ("8xb200", "vllm", "qwen3-8b", ("cuda", "bf16", 1, 32768, 16, 94.8)),
    ("8xb200", "vllm", "llama-3.3-70b-instruct", ("cuda", "fp8", 1, 32768, 4, 110.5)),
    ("8xb200", "sglang", "qwen3-8b", ("cuda", "bf16", 1, 32768, 16, 101.9)),
    ("8xb200", "sglang", "llama-3.3-70b-instruct", ("cuda", "fp8", 1, 32768, 4, 112.8)),
    ("h100-mig", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("h100-mig", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 16384, 4, 35.1)),
    ("h100-mig", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("h100-mig", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 16384, 4, 35.8)),
    ("h100-mig", "vllm", "qwen3-8b", ("cuda", "bf16", 1, 32768, 4, 35.7)),
    ("h100-mig", "vllm", "llama-3.3-70b-instruct", "needs 39.9 GiB of memory on MIG 3g.40gb 0"),
    ("h100-mig", "sglang", "qwen3-8b", ("cuda", "fp8", 1, 32768, 4, 31.9)),
    ("h100-mig", "sglang", "llama-3.3-70b-instruct", "needs 42.7 GiB of memory on MIG 3g.40gb 0"),
    ("gb10", "llamacpp", "qwen3-8b", ("cuda13", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("gb10", "llamacpp", "qwen3-32b", ("cuda13", "Q4_K_M", 1, 32768, 4, 51.1)),
    ("gb10", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("gb10", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 32768, 4, 52.1)),
    ("gb10", "vllm", "qwen3-8b", ("cuda", "bf16", 1, 32768, 8, 55.4)),
    ("gb10", "vllm", "llama-3.3-70b-instruct", ("cuda", "nvfp4", 1, 32768, 4, 82.6)),
    ("gb10", "sglang", "qwen3-8b", ("cuda", "bf16", 1, 32768, 8, 59.9)),
    ("gb10", "sglang", "llama-3.3-70b-instruct", ("cuda", "nvfp4", 1, 32768, 4, 84.9)),
    ("mi300x", "llamacpp", "qwen3-8b", ("rocm", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("mi300x", "llamacpp", "qwen3-32b", ("rocm", "Q4_K_M", 1, 32768, 4, 51.1)),
    ("mi300x", "ollama", "qwen3-8b", ("rocm", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("mi300x", "ollama", "qwen3-32b", ("rocm", "Q4_K_M", 1, 32768, 4, 52.1)),
    ("mi300x", "vllm", "qwen3-8b", ("rocm", "bf16", 1, 32768, 32, 166.8)),
    ("mi300x", "vllm", "llama-3.3-70b-instruct", ("rocm", "bf16", 1, 32768, 4, 174.3)),
    ("mi300x", "sglang", "qwen3-8b", ("rocm-mi30x", "bf16", 1, 32768, 32, 173.9)),
    ("mi300x", "sglang", "llama-3.3-70b-instruct", ("rocm-mi30x", "bf16", 1, 32768, 4, 176.5)),
    ("8xmi300x", "llamacpp", "qwen3-8b", ("rocm", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("8xmi300x", "llamacpp", "qwen3-32b", ("rocm", "Q4_K_M", 1, 32768, 4, 51.1)),
    ("8xmi300x", "ollama", "qwen3-8b", ("rocm", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("8xmi300x", "ollama", "qwen3-32b", ("rocm", "Q4_K_M", 1, 32768, 4, 52.1)),
    ("8xmi300x", "vllm", "qwen3-8b", ("rocm", "bf16", 1, 32768, 32, 166.8)),
    ("8xmi300x", "vllm", "llama-3.3-70b-instruct", ("rocm", "bf16", 1, 32768, 4, 174.3)),
    ("8xmi300x", "sglang", "qwen3-8b", ("rocm-mi30x", "bf16", 1, 32768, 32, 173.9)),
    ("8xmi300x", "sglang", "llama-3.3-70b-instruct", ("rocm-mi30x", "bf16", 1, 32768, 4, 176.5)),
    ("rx7900", "llamacpp", "qwen3-8b", ("rocm", "Q4_K_M", 1, 24576, 4, 18.8)),
    ("rx7900", "llamacpp", "qwen3-32b", ("rocm", "Q4_K_M", 1, 2048, 4, 21.1)),
    ("rx7900", "ollama", "qwen3-8b", ("rocm", "Q4_K_M", 1, 24576, 4, 19.2)),
    ("rx7900", "ollama", "qwen3-32b", ("rocm", "Q4_K_M", 1, 2048, 4, 21.3)),
    ("rx7900", "vllm", "qwen3-8b", ("rocm", "bf16", 1, 32768, 1, 21.1)),
    ("rx7900", "vllm", "llama-3.3-70b-instruct", "needs 133.5 GiB of memory on GPU 0 (AMD Radeon RX 7900 XTX)"),
    ("rx7900", "sglang", "qwen3-8b", "nearest that works: vllm with bf16"),
    ("rx7900", "sglang", "llama-3.3-70b-instruct", "nearest that works: vllm with bf16"),
    ("strix-halo", "llamacpp", "qwen3-8b", ("rocm", "Q4_K_M", 1, 32768, 4, 23.3)),
    ("strix-halo", "llamacpp", "qwen3-32b", ("rocm", "Q4_K_M", 1, 32768, 4, 51.1)),
    ("strix-halo", "ollama", "qwen3-8b", ("rocm", "Q4_K_M", 1, 32768, 4, 24.0)),
    ("strix-halo", "ollama", "qwen3-32b", ("rocm", "Q4_K_M", 1, 32768, 4, 52.1)),
    ("strix-halo", "vllm", "qwen3-8b", ("rocm", "bf16", 1, 32768, 8, 55.4)),
    ("strix-halo", "vllm", "llama-3.3-70b-instruct", "needs 141.5 GiB of host memory"),
    ("strix-halo", "sglang", "qwen3-8b", "nearest that works: vllm with bf16"),
    ("strix-halo", "sglang", "llama-3.3-70b-instruct", "nearest that works: vllm with bf16"),
    ("arc", "llamacpp", "qwen3-8b", ("vulkan", "Q4_K_M", 1, 16384, 4, 14.3)),
    ("arc", "llamacpp", "qwen3-32b", "needs 19.2 GiB of memory on GPU 0 (Intel Arc A770)"),
    ("arc", "ollama", "qwen3-8b", ("vulkan", "Q4_K_M", 1, 12288, 4, 12.4)),
    ("arc", "ollama", "qwen3-32b", "needs 19.2 GiB of memory on GPU 0 (Intel Arc A770)"),
    ("arc", "vllm", "qwen3-8b", "has no image for tier vulkan"),
    ("arc", "vllm", "llama-3.3-70b-instruct", "has no image for tier vulkan"),
    ("arc", "sglang", "qwen3-8b", "has no image for tier vulkan"),
    ("arc", "sglang", "llama-3.3-70b-instruct", "has no image for tier vulkan"),
    ("mixed", "llamacpp", "qwen3-8b", ("cuda", "Q4_K_M", 1, 24576, 4, 18.8)),
    ("mixed", "llamacpp", "qwen3-32b", ("cuda", "Q4_K_M", 1, 2048, 4, 21.1)),
    ("mixed", "ollama", "qwen3-8b", ("cuda", "Q4_K_M", 1, 24576, 4, 19.2)),
    ("mixed", "ollama", "qwen3-32b", ("cuda", "Q4_K_M", 1, 2048, 4, 21.3)),
    ("mixed", "vllm", "qwen3-8b", ("cuda", "awq", 1, 32768, 2, 16.5)),
    ("mixed", "vllm", "llama-3.3-70b-instruct", "needs 39.9 GiB of memory on GPU 0 (NVIDIA GeForce RTX 4090)"),
    ("mixed", "sglang", "qwen3-8b", ("cuda", "awq", 1, 32768, 2, 19.6)),
    ("mixed", "sglang", "llama-3.3-70b-instruct", "needs 42.7 GiB of memory on GPU 0 (NVIDIA GeForce RTX 4090)"),
]
# fmt: on


def test_the_plan_is_documented() -> None:
    text = (ROOT / "plugins/modules/plan.py").read_text().partition('RETURN = r"""')[2].partition('"""')[0]
    fields = yaml.safe_load(text)["plan"]["contains"]
    plan = plan_node(
        NODES["8xh100"], {"host": "gpu-01", "vllm_model": "qwen3-8b", "inference_backends": ["vllm"]}, CATALOG
    )
    assert set(plan) == set(fields)
    assert set(plan["services"][0]) == set(fields["services"]["contains"])


@pytest.mark.parametrize(("node", "backend", "model", "expected"), GOLDEN, ids=["-".join(row[:3]) for row in GOLDEN])
def test_golden(node: str, backend: str, model: str, expected: Any) -> None:
    wishes = {"host": "gpu-01", "inference_services": [{"backend": backend, "model": model}]}
    if isinstance(expected, str):
        with pytest.raises(PlanError) as refused:
            plan_node(NODES[node], wishes, CATALOG)
        assert expected in str(refused.value)
        return
    (service,) = plan_node(NODES[node], wishes, CATALOG)["services"]
    found = (
        service["variant"],
        service["quantization"],
        max(1, len(service["units"])),
        service["context_length"],
        service["parallel"],
        round(service["memory"]["total_bytes"] / GIB, 1),
    )
    assert found == expected
