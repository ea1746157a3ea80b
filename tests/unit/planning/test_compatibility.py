# SPDX-License-Identifier: Apache-2.0
"""Which image of which backend runs on which machine, what it serves there, and why not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import compatibility
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import BACKENDS, FORMATS, Catalog, Engine
from ansible_collections.fleet.inference.plugins.module_utils.planning.compatibility import Refusal
from planning_machines import GIB, amd, catalog, cuda, device, facts, gpu_facts

BOOK = Catalog("h", catalog())
ENGINES: dict[str, Engine] = {engine.name: engine for engine in BOOK.sound_engines()}

ARM = {"architecture": "aarch64", "cores": 20, "flags": ["asimd"]}
MACHINES: dict[str, dict[str, Any]] = {
    "t4": cuda("Tesla T4", 15360, "7.5"),
    "t4-570": cuda("Tesla T4", 15360, "7.5", driver="570.172.08", version="12.8"),
    "t4-575": cuda("Tesla T4", 15360, "7.5", driver="575.57.08", version="12.9"),
    "t4-13.4": cuda("Tesla T4", 15360, "7.5", driver="620.10", version="13.4"),
    "v100": cuda("Tesla V100-SXM2-32GB", 32768, "7.0"),
    "v100-550": cuda("Tesla V100-SXM2-32GB", 32768, "7.0", driver="550.54.14", version="12.4"),
    "p40": cuda("Tesla P40", 23040, "6.1"),
    "p40-550": cuda("Tesla P40", 23040, "6.1", driver="550.54.14", version="12.4"),
    "a100": cuda("NVIDIA A100-SXM4-80GB", 81920, "8.0"),
    "a100-535": cuda("NVIDIA A100-SXM4-80GB", 81920, "8.0", driver="535.183.01", version="12.2"),
    "h100": cuda("NVIDIA H100 80GB HBM3", 81559, "9.0"),
    "b200": cuda("NVIDIA B200", 183359, "10.0"),
    "rtx3090": cuda("NVIDIA GeForce RTX 3090", 24576, "8.6"),
    "rtx4090": cuda("NVIDIA GeForce RTX 4090", 24564, "8.9"),
    "rtx5090": cuda("NVIDIA GeForce RTX 5090", 32607, "12.0"),
    "gb10": gpu_facts(
        "cuda",
        [device("NVIDIA GB10", None, "12.1", unified_memory=True)],
        cpu=ARM,
        memory_total_bytes=120 * GIB,
    ),
    "h100-no-driver": cuda("NVIDIA H100 80GB HBM3", 81559, "9.0", driver="", version=""),
    "mi210": amd("AMD Instinct MI210", 65520, "gfx90a"),
    "mi300x": amd("AMD Instinct MI300X", 196608, "gfx942"),
    "mi355x": amd("AMD Instinct MI355X", 294896, "gfx950"),
    "rx7900": amd("AMD Radeon RX 7900 XTX", 24560, "gfx1100"),
    "rx6700": amd("AMD Radeon RX 6700 XT", 12272, "gfx1031"),
    "rx6700-vulkan": amd("AMD Radeon RX 6700 XT", 12272, "gfx1031", tier="vulkan"),
    "rx9070": amd("AMD Radeon RX 9070 XT", 16304, "gfx1201"),
    "strix-halo": amd("AMD Radeon 8060S", 98304, "gfx1151"),
    "arc": gpu_facts("vulkan", [device("Intel Arc A770", 16256, None, vendor="intel", uuid=None)]),
    "x86-avx512": facts(cpu={"architecture": "x86_64", "cores": 64, "flags": ["avx2", "avx512f"]}),
    "x86-avx2": facts(),
    "arm": facts(cpu=ARM),
    "riscv": facts(cpu={"architecture": "riscv64", "cores": 4, "flags": ["rvv"]}),
}

# machine, backend: the variant that runs, and the formats that it serves, best first.
# bf16>fp16: converted when it is loaded; fp8~: stored, and computed in 16 bits.
RUNS = [
    ("t4", "llamacpp", "cuda", "gguf"),
    ("t4", "ollama", "cuda", "gguf"),
    ("t4", "vllm", "cuda", "bf16>fp16 fp16 fp8~ int8 nvfp4~ awq gptq"),
    ("t4", "sglang", "cuda", "bf16>fp16 fp16 int8 gptq gguf"),
    ("t4-570", "llamacpp", "cuda", "gguf"),
    ("t4-570", "ollama", "cuda12", "gguf"),
    ("t4-570", "vllm", "cuda12", "bf16>fp16 fp16 fp8~ int8 nvfp4~ awq gptq"),
    ("t4-570", "sglang", "cuda12", "bf16>fp16 fp16 int8 gptq gguf"),
    ("v100", "llamacpp", "cuda", "gguf"),
    ("v100", "ollama", "cuda12", "gguf"),
    ("v100-550", "ollama", "cuda12", "gguf"),
    ("p40", "llamacpp", "cuda", "gguf"),
    ("p40", "ollama", "cuda12-pascal", "gguf"),
    ("a100", "llamacpp", "cuda", "gguf"),
    ("a100", "ollama", "cuda", "gguf"),
    ("a100", "vllm", "cuda", "bf16 fp16 fp8~ int8 nvfp4~ mxfp4 awq gptq"),
    ("a100", "sglang", "cuda", "bf16 fp16 fp8~ int8 nvfp4~ mxfp4 awq gptq gguf"),
    ("a100-535", "vllm", "cuda12", "bf16 fp16 fp8~ int8 nvfp4~ mxfp4 awq gptq"),
    ("a100-535", "sglang", "cuda12", "bf16 fp16 fp8~ int8 mxfp4 awq gptq gguf"),
    ("h100", "llamacpp", "cuda", "gguf"),
    ("h100", "ollama", "cuda", "gguf"),
    ("h100", "vllm", "cuda", "bf16 fp16 fp8 int8 nvfp4~ mxfp4 awq gptq"),
    ("h100", "sglang", "cuda", "bf16 fp16 fp8 int8 nvfp4~ mxfp4 awq gptq gguf"),
    ("b200", "llamacpp", "cuda", "gguf"),
    ("b200", "ollama", "cuda", "gguf"),
    ("b200", "vllm", "cuda", "bf16 fp16 fp8 int8 nvfp4 mxfp4 awq gptq"),
    ("b200", "sglang", "cuda", "bf16 fp16 fp8 int8 nvfp4 mxfp4 awq gptq gguf"),
    ("rtx3090", "llamacpp", "cuda", "gguf"),
    ("rtx3090", "vllm", "cuda", "bf16 fp16 fp8~ int8 nvfp4~ mxfp4 awq gptq"),
    ("rtx3090", "sglang", "cuda", "bf16 fp16 fp8~ int8 nvfp4~ mxfp4 awq gptq gguf"),
    ("rtx4090", "vllm", "cuda", "bf16 fp16 fp8 int8 nvfp4~ mxfp4 awq gptq"),
    ("rtx4090", "sglang", "cuda", "bf16 fp16 fp8 int8 nvfp4~ mxfp4 awq gptq gguf"),
    ("rtx5090", "llamacpp", "cuda", "gguf"),
    ("rtx5090", "ollama", "cuda", "gguf"),
    ("rtx5090", "vllm", "cuda", "bf16 fp16 fp8 int8 nvfp4 mxfp4 awq gptq"),
    ("rtx5090", "sglang", "cuda", "bf16 fp16 fp8 int8 nvfp4 mxfp4 awq gptq gguf"),
    ("gb10", "llamacpp", "cuda13", "gguf"),
    ("gb10", "ollama", "cuda", "gguf"),
    ("gb10", "vllm", "cuda", "bf16 fp16 fp8 int8 nvfp4 mxfp4 awq gptq"),
    ("gb10", "sglang", "cuda", "bf16 fp16 fp8 int8 nvfp4 mxfp4 awq gptq gguf"),
    ("mi210", "llamacpp", "rocm", "gguf"),
    ("mi210", "ollama", "rocm", "gguf"),
    ("mi210", "vllm", "rocm", "bf16 fp16"),
    ("mi300x", "llamacpp", "rocm", "gguf"),
    ("mi300x", "ollama", "rocm", "gguf"),
    ("mi300x", "vllm", "rocm", "bf16 fp16 fp8"),
    ("mi300x", "sglang", "rocm-mi30x", "bf16 fp16 fp8 int8 mxfp4 awq gptq"),
    ("mi355x", "ollama", "rocm", "gguf"),
    ("mi355x", "vllm", "rocm", "bf16 fp16 fp8 mxfp4"),
    ("mi355x", "sglang", "rocm-mi35x", "bf16 fp16 fp8 int8 mxfp4 awq gptq"),
    ("rx7900", "llamacpp", "rocm", "gguf"),
    ("rx7900", "ollama", "rocm", "gguf"),
    ("rx7900", "vllm", "rocm", "bf16 fp16"),
    ("rx9070", "vllm", "rocm", "bf16 fp16 fp8"),
    ("rx6700-vulkan", "llamacpp", "vulkan", "gguf"),
    ("rx6700-vulkan", "ollama", "vulkan", "gguf"),
    ("strix-halo", "llamacpp", "rocm", "gguf"),
    ("strix-halo", "ollama", "rocm", "gguf"),
    ("strix-halo", "vllm", "rocm", "bf16 fp16"),
    ("arc", "llamacpp", "vulkan", "gguf"),
    ("arc", "ollama", "vulkan", "gguf"),
    ("x86-avx512", "llamacpp", "cpu", "gguf"),
    ("x86-avx512", "ollama", "cpu", "gguf"),
    ("x86-avx512", "vllm", "cpu", "bf16 fp16 int8 awq gptq"),
    ("x86-avx512", "sglang", "cpu", "bf16"),
    ("x86-avx2", "llamacpp", "cpu", "gguf"),
    ("x86-avx2", "ollama", "cpu", "gguf"),
    ("arm", "llamacpp", "cpu", "gguf"),
    ("arm", "ollama", "cpu", "gguf"),
    ("arm", "vllm", "cpu-arm", "bf16 fp16 int8"),
]

# machine, backend: why no image runs, and what works in its place
REFUSED = [
    (
        "v100",
        "vllm",
        "GPU 0 (Tesla V100-SXM2-32GB) has compute capability 7.0 and vllm's image v0.33.0 needs 7.5 or newer; "
        "set inference_tier: cpu",
        "llamacpp with gguf",
    ),
    (
        "v100-550",
        "llamacpp",
        "GPU 0 (Tesla V100-SXM2-32GB) has driver 550.54.14 and llamacpp's image server-cuda-b11669 needs 570 or newer; "
        "install driver branch 580, the last one for this GPU",
        "ollama with gguf",
    ),
    (
        "p40",
        "sglang",
        "GPU 0 (Tesla P40) has compute capability 6.1 and sglang's image v0.5.23-runtime needs 7.5 or newer; "
        "set inference_tier: cpu",
        "llamacpp with gguf",
    ),
    (
        "p40-550",
        "ollama",
        "GPU 0 (Tesla P40) has driver 550.54.14 and ollama's image 0.32.15 needs 570 or newer; install driver branch "
        "580, the last one for this GPU",
        "ollama with gguf and inference_tier: cpu",
    ),
    (
        "h100-no-driver",
        "vllm",
        "GPU 0 (NVIDIA H100 80GB HBM3) has no driver and vllm's image v0.33.0 needs 580 or newer; install driver 580 "
        "or newer",
        "vllm with bf16 and inference_tier: cpu",
    ),
    (
        "mi355x",
        "llamacpp",
        "GPU 0 (AMD Instinct MI355X) is gfx950, for which llamacpp's image server-rocm-b11669 has no code; set "
        "inference_tier: vulkan, or use one of gfx908, gfx90a, gfx942, gfx1030, gfx1100, gfx1101, gfx1102, gfx1150, "
        "gfx1151, gfx1200, gfx1201",
        "vllm with bf16",
    ),
    (
        "mi210",
        "sglang",
        "GPU 0 (AMD Instinct MI210) is gfx90a, for which sglang's image v0.5.18-rocm720-mi30x has no code; use one of "
        "gfx942, gfx950",
        "vllm with bf16",
    ),
    (
        "rx7900",
        "sglang",
        "GPU 0 (AMD Radeon RX 7900 XTX) is gfx1100, for which sglang's image v0.5.18-rocm720-mi30x has no code; use "
        "one of gfx942, gfx950",
        "vllm with bf16",
    ),
    (
        "rx6700",
        "vllm",
        "GPU 0 (AMD Radeon RX 6700 XT) is gfx1031, for which vllm's image v0.33.0 has no code; use one of gfx90a, "
        "gfx942, gfx950, gfx1100, gfx1101, gfx1150, gfx1151, gfx1200, gfx1201",
        "llamacpp with gguf and inference_tier: vulkan",
    ),
    (
        "rx6700",
        "ollama",
        "GPU 0 (AMD Radeon RX 6700 XT) is gfx1031, for which ollama's image 0.32.15-rocm has no code; set "
        "inference_tier: vulkan, or use one of gfx908, gfx90a, gfx942, gfx950, gfx1030, gfx1100, gfx1101, gfx1102, "
        "gfx1150, gfx1151, gfx1200, gfx1201",
        "ollama with gguf and inference_tier: vulkan",
    ),
    (
        "arc",
        "vllm",
        "vllm has no image for tier vulkan; set inference_tier to one of cpu, cuda, rocm",
        "llamacpp with gguf",
    ),
    (
        "x86-avx2",
        "vllm",
        "vllm's image v0.33.0-x86_64 needs avx512f, which this node's CPU does not have; use a node with avx512f",
        "llamacpp with gguf",
    ),
    (
        "arm",
        "sglang",
        "sglang's image v0.5.20-xeon is not built for the CPU architecture aarch64; use a node of x86_64",
        "vllm with bf16",
    ),
    (
        "riscv",
        "vllm",
        "vllm's image v0.33.0-x86_64 is not built for the CPU architecture riscv64; use a node of x86_64, aarch64",
        None,
    ),
]

# machine, backend, format: why the image that runs does not serve the format
FORMATS_REFUSED = [
    (
        "t4",
        "vllm",
        "bf16",
        "GPU 0 (Tesla T4) has compute capability 7.5 and vllm's image v0.33.0 serves bf16 from 8.0 on",
    ),
    (
        "t4",
        "vllm",
        "mxfp4",
        "has compute capability 7.5 and vllm's image v0.33.0 serves mxfp4 from 8.0 on; use one of fp16,",
    ),
    ("t4", "sglang", "awq", "serves awq from 8.0 on; use one of fp16, int8, gptq, gguf"),
    ("t4", "sglang", "fp8", "serves fp8 from 8.0 on"),
    ("h100", "vllm", "gguf", "vllm's image v0.33.0 does not serve gguf; use one of bf16, fp16, fp8"),
    ("a100-535", "sglang", "nvfp4", "sglang's image v0.5.19-cu129 serves nvfp4 from 10.0 on"),
    ("h100", "llamacpp", "awq", "llamacpp's image server-cuda-b11669 does not serve awq; use one of gguf"),
    (
        "mi300x",
        "vllm",
        "mxfp4",
        "is gfx942 and vllm's image v0.33.0 serves mxfp4 on gfx950 only; use one of bf16, fp16, fp8",
    ),
    ("mi210", "vllm", "fp8", "is gfx90a and vllm's image v0.33.0 serves fp8 on gfx942, gfx950, gfx1200, gfx1201 only"),
    ("mi300x", "sglang", "gguf", "sglang's image v0.5.18-rocm720-mi30x does not serve gguf"),
    ("rx7900", "vllm", "awq", "vllm's image v0.33.0 does not serve awq; use one of bf16, fp16"),
    (
        "x86-avx512",
        "vllm",
        "fp8",
        "vllm's image v0.33.0-x86_64 does not serve fp8; use one of bf16, fp16, int8, awq, gptq",
    ),
    ("arm", "vllm", "awq", "vllm's image v0.33.0-arm64 does not serve awq; use one of bf16, fp16, int8"),
]


def where(machine: str) -> tuple[str, dict[str, Any] | None, dict[str, Any]]:
    node = MACHINES[machine]
    return node["tier"], (node["devices"] or [None])[0], node


def shown(served: list[compatibility.Served]) -> str:
    return " ".join(
        item.model_format
        + (f">{item.run_as}" if item.run_as != item.model_format else "")
        + ("" if item.native else "~")
        for item in served
    )


def ids(rows: list[tuple[Any, ...]], parts: int = 2) -> list[str]:
    return ["-".join(row[:parts]) for row in rows]


@pytest.mark.parametrize(("machine", "backend", "variant", "formats"), RUNS, ids=ids(RUNS))
def test_runs(machine, backend, variant, formats):
    found = compatibility.first_variant(ENGINES[backend], *where(machine))
    assert not isinstance(found, Refusal), found
    assert found.name == variant
    served = compatibility.served_formats(ENGINES[backend], *where(machine))
    assert shown(served) == formats
    for item in served:
        assert compatibility.first_variant(ENGINES[backend], *where(machine), item.run_as) == item.variant


@pytest.mark.parametrize(("machine", "backend", "sentence", "instead"), REFUSED, ids=ids(REFUSED))
def test_refused(machine, backend, sentence, instead):
    engine, (tier, gpu, node) = ENGINES[backend], where(machine)
    found = compatibility.first_variant(engine, tier, gpu, node)
    assert isinstance(found, Refusal)
    assert found.sentence() == sentence
    assert compatibility.served_formats(engine, tier, gpu, node) == []
    near = compatibility.nearest(BOOK.sound_engines(), backend, tier, gpu, node)
    assert (near.text if near else None) == instead
    hint = f"; nearest that works: {instead}" if instead else ""
    assert found.sentence(near) == f"{sentence}{hint}"


@pytest.mark.parametrize(("machine", "backend", "name", "part"), FORMATS_REFUSED, ids=ids(FORMATS_REFUSED, 3))
def test_format_refused(machine, backend, name, part):
    found = compatibility.first_variant(ENGINES[backend], *where(machine), name)
    assert isinstance(found, Refusal)
    assert part in found.sentence()
    assert "\n" not in found.sentence()


def test_every_refusal_is_one_clause_and_every_advice_works():
    for machine in MACHINES:
        for backend in BACKENDS:
            engine, (tier, gpu, node) = ENGINES[backend], where(machine)
            for name in FORMATS:
                found = compatibility.first_variant(engine, tier, gpu, node, name)
                if isinstance(found, Refusal):
                    assert found.problem
                    assert found.remedy
                    assert ";" not in found.problem
                near = compatibility.nearest(BOOK.sound_engines(), backend, tier, gpu, node, model_formats=[name])
                if near is not None:
                    device_there = None if near.tier == "cpu" else gpu
                    there = compatibility.first_variant(
                        ENGINES[near.backend], near.tier, device_there, node, near.served.run_as
                    )
                    assert there == near.served.variant


def test_the_nearest_keeps_the_backend_then_the_tier():
    engines = BOOK.sound_engines()

    def text(machine: str, backend: str, formats: list[str]) -> str | None:
        near = compatibility.nearest(engines, backend, *where(machine), model_formats=formats)
        return near.text if near else None

    assert text("t4", "vllm", ["mxfp4", "gptq"]) == "vllm with gptq"
    assert text("t4", "vllm", ["mxfp4", "gguf"]) == "sglang with gguf"
    assert text("h100", "llamacpp", ["fp8"]) == "vllm with fp8"
    assert text("rx7900", "vllm", ["awq", "gguf"]) == "llamacpp with gguf"
    assert text("rx6700", "vllm", ["bf16"]) == "vllm with bf16 and inference_tier: cpu"
    assert text("x86-avx2", "vllm", ["bf16"]) is None
    assert text("arc", "vllm", ["gguf", "bf16"]) == "llamacpp with gguf"
    # No Vulkan driver is known for accelerators without graphics.
    assert text("mi355x", "llamacpp", ["gguf"]) == "ollama with gguf"
    assert compatibility.nearest([], "vllm", *where("t4")) is None


@pytest.mark.parametrize(
    ("machine", "backend", "formats"),
    [
        ("t4", "vllm", ""),
        ("t4", "sglang", ""),
        ("a100", "vllm", "bf16 fp16 fp8~ int8 nvfp4~ mxfp4 awq gptq"),
        ("mi210", "vllm", "bf16 fp16"),
        ("x86-avx512", "vllm", "bf16 fp16 int8 awq gptq"),
        ("t4", "llamacpp", "gguf"),
        ("p40", "ollama", "gguf"),
    ],
)
def test_a_model_that_overflows_in_float16_needs_bfloat16(machine, backend, formats):
    served = compatibility.served_formats(ENGINES[backend], *where(machine), float16=False)
    assert shown(served) == formats
    near = compatibility.nearest(BOOK.sound_engines(), backend, *where(machine), float16=False)
    assert near is not None
    assert (near.backend == backend) is bool(formats)


def test_a_format_of_a_model_that_overflows_is_refused_for_the_type_and_not_for_the_format():
    for name in ("bf16", "fp16", "fp8", "awq"):
        found = compatibility.first_variant(ENGINES["vllm"], *where("t4"), name, float16=False)
        assert isinstance(found, Refusal)
        assert found.sentence() == (
            "vllm's image v0.33.0 has no bfloat16 on GPU 0 (Tesla T4) and this model's values overflow in float16; use "
            "a GPU of compute capability 8.0 or newer"
        )
        assert not isinstance(
            compatibility.first_variant(ENGINES["vllm"], *where("h100"), name, float16=False), Refusal
        )


def test_an_image_without_bf16_overflows_everywhere():
    book = copy.deepcopy(catalog())
    book["engines"]["vllm"]["variants"]["cpu"]["formats"] = {"fp16": None, "gguf": None}
    book["engines"]["vllm"]["variants"]["rocm"]["formats"] = {"bf16": ["gfx942"], "fp16": None}
    engine = Catalog("h", book).engine("vllm")
    found = compatibility.first_variant(engine, *where("x86-avx512"), "fp16", float16=False)
    assert isinstance(found, Refusal)
    assert found.sentence() == (
        "vllm's image v0.33.0-x86_64 has no bfloat16 on the CPU and this model's values overflow in float16; use "
        "another backend"
    )
    found = compatibility.first_variant(engine, *where("mi210"), "fp16", float16=False)
    assert isinstance(found, Refusal)
    assert found.remedy == "use one of gfx942"


@pytest.mark.parametrize(
    ("machine", "backend", "types"),
    [
        ("t4", "vllm", ["auto"]),
        ("a100", "vllm", ["auto", "bfloat16"]),
        ("h100", "vllm", ["auto", "bfloat16", "fp8"]),
        ("h100", "sglang", ["auto", "bf16", "fp8_e4m3", "fp8_e5m2"]),
        ("mi300x", "vllm", ["auto", "bfloat16", "fp8"]),
        ("mi210", "vllm", ["auto", "bfloat16"]),
        ("x86-avx512", "vllm", ["auto"]),
        ("p40", "llamacpp", ["f16", "q4_0", "q8_0"]),
        ("arm", "ollama", ["f16", "q4_0", "q8_0"]),
    ],
)
def test_kv_cache_types(machine, backend, types):
    variant = compatibility.first_variant(ENGINES[backend], *where(machine))
    assert not isinstance(variant, Refusal)
    assert compatibility.kv_cache_types(variant, where(machine)[1]) == types


@pytest.mark.parametrize(
    ("machine", "backend", "compiles"),
    [
        ("t4", "llamacpp", True),
        ("h100", "llamacpp", True),
        ("b200", "llamacpp", True),
        ("rtx3090", "llamacpp", False),
        ("rtx5090", "llamacpp", False),
        ("gb10", "llamacpp", False),
        ("h100", "vllm", False),
        ("gb10", "vllm", False),
        ("mi300x", "vllm", False),
        ("x86-avx2", "llamacpp", False),
    ],
)
def test_which_images_are_compiled_at_the_first_start(machine, backend, compiles):
    variant = compatibility.first_variant(ENGINES[backend], *where(machine))
    assert not isinstance(variant, Refusal)
    assert compatibility.compiles_at_start(variant, where(machine)[1]) is compiles


def test_ptx_needs_a_driver_that_knows_the_images_cuda():
    cuda13 = next(item for item in ENGINES["llamacpp"].variants if item.name == "cuda13")
    _, gpu, node = where("t4")
    found = compatibility.refusal(ENGINES["llamacpp"], cuda13, gpu, node)
    assert found is not None
    assert found.sentence() == (
        "GPU 0 (Tesla T4) has a driver for CUDA 13.0 and llamacpp's image server-cuda13-b11669 needs CUDA 13.4 for "
        "compute capability 7.5; install a driver that reports CUDA 13.4 or newer"
    )
    _, gpu, node = where("t4-13.4")
    assert compatibility.refusal(ENGINES["llamacpp"], cuda13, gpu, node) is None


def test_of_a_gpu_of_unknown_architecture_nothing_is_assumed():
    node = cuda("NVIDIA Graphics Device", 24576, "8.6")
    node["devices"][0]["architecture"] = None
    served = compatibility.served_formats(ENGINES["sglang"], "cuda", node["devices"][0], node)
    assert shown(served) == "bf16>fp16 fp16 int8 gptq gguf"
    found = compatibility.first_variant(ENGINES["sglang"], "cuda", node["devices"][0], node, "fp8")
    assert isinstance(found, Refusal)
    assert "has compute capability unknown" in found.sentence()


def test_flags_that_the_facts_do_not_know_refuse_nothing():
    node = facts(cpu={"architecture": "x86_64", "cores": 8, "flags": []})
    assert not isinstance(compatibility.first_variant(ENGINES["vllm"], "cpu", None, node), Refusal)


def test_a_remedy_never_names_a_tier_that_the_engine_has_no_image_for():
    book = copy.deepcopy(catalog())
    del book["engines"]["vllm"]["variants"]["cpu"]
    engine = Catalog("h", book).engine("vllm")
    tier, gpu, node = where("v100")
    found = compatibility.first_variant(engine, tier, gpu, node)
    assert isinstance(found, Refusal)
    assert found.remedy == "use a GPU of compute capability 7.5 or newer"
    # The same when there is one, and the CPU cannot run it.
    node = {**node, "cpu": {"architecture": "x86_64", "cores": 16, "flags": ["avx2"]}}
    found = compatibility.first_variant(ENGINES["vllm"], tier, gpu, node)
    assert isinstance(found, Refusal)
    assert found.remedy == "use a GPU of compute capability 7.5 or newer"
