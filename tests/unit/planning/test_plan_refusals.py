# SPDX-License-Identifier: Apache-2.0
"""Every refusal of the plan, with its exact sentence."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from planning_machines import MACHINES, amd, catalog, cuda, device, facts, gpu_facts

CATALOG = catalog()
CPU = MACHINES["cpu"]
SMALL = {"backend": "llamacpp", "model": "qwen3-0.6b"}
NGINX = facts(listening=[{"address": "0.0.0.0", "port": 8005, "process": "nginx"}])
TWO_GPUS = gpu_facts(
    "cuda",
    [
        device("RTX 3090", 24576, "8.6", index=0),
        device("A2", 16384, "8.6", index=1, usable=False, unusable_reason="bound to vfio-pci"),
    ],
)
OTHERS = f"and {len(CATALOG['models']) - 8} more in inference_models"
UUID = "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd"

REFUSALS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # Types
    (CPU, {"llamacpp_parallel": "many"}, "llamacpp_parallel is 'many'; give a whole number of at least 1"),
    (CPU, {"llamacpp_parallel": True}, "llamacpp_parallel is True; give a whole number of at least 1"),
    (CPU, {"llamacpp_parallel": 0}, "llamacpp_parallel is 0; give a whole number of at least 1"),
    (CPU, {"llamacpp_parallel": 1.5}, "llamacpp_parallel is 1.5; give a whole number of at least 1"),
    (CPU, {"llamacpp_ctx_size": [4096]}, "llamacpp_ctx_size is [4096]; give a whole number of at least 1"),
    (CPU, {"llamacpp_port": 70000}, "llamacpp_port is 70000; give a whole number from 1 to 65535"),
    (CPU, {"llamacpp_kv_cache_type": "fp8"}, "llamacpp_kv_cache_type is 'fp8'; give one of f16, q8_0, q4_0"),
    (CPU, {"llamacpp_gpu_layers": "most"}, "llamacpp_gpu_layers is 'most'; give a number of layers, or all"),
    (
        CPU,
        {"llamacpp_gpus": 0},
        "llamacpp_gpus is 0; give a number of GPUs, or a list of GPU indexes or UUIDs, such as [0]",
    ),
    (CPU, {"llamacpp_model": 7}, "llamacpp_model is 7; give the name of a model in inference_models"),
    (CPU, {"llamacpp_model": None}, "llamacpp_model is not set; give the name of a model in inference_models"),
    (CPU, {"llamacpp_env": []}, "llamacpp_env is []; give a dictionary of environment variables"),
    (
        CPU,
        {"llamacpp_env": {"A B": "1"}},
        "llamacpp_env has the name 'A B'; give the name of an environment variable",
    ),
    (
        CPU,
        {"llamacpp_env": {"A": None}},
        "A in llamacpp_env is not text or a number; give one line of text",
    ),
    (
        CPU,
        {"llamacpp_env": {"LLAMA_API_KEY": "s3cret"}},
        "llamacpp_env sets the secret LLAMA_API_KEY; leave it out, the gateway holds the keys and models come "
        "from inference_models",
    ),
    (
        CPU,
        {"llamacpp_env": {"LLAMA_ARG_CTX_SIZE": 1}},
        "llamacpp_env sets LLAMA_ARG_CTX_SIZE, which the plan sets; leave it out and set llamacpp_ctx_size",
    ),
    (
        CPU,
        {"llamacpp_env": {"LLAMA_ARG_NO_UI": 1}},
        "llamacpp_env sets LLAMA_ARG_NO_UI, which the plan sets; leave it out",
    ),
    (
        CPU,
        {"llamacpp_env": {"LLAMA_ARG_HF_REPO": "a/b"}},
        "llamacpp_env sets LLAMA_ARG_HF_REPO, which would undo the plan; leave it out: set llamacpp_model",
    ),
    (
        CPU,
        {"inference_services": {"backend": "llamacpp"}},
        "inference_services is {'backend': 'llamacpp'}; give a list of services, each with backend and model, or the "
        "word auto",
    ),
    (CPU, {"inference_services": ["x"]}, "inference_services[0] is 'x'; give a dictionary with backend and model"),
    (
        CPU,
        {"inference_services": [{"model": "qwen3-8b"}]},
        "backend of inference_services[0] is not set; give one of llamacpp, ollama, sglang, vllm",
    ),
    (
        CPU,
        {"inference_services": [{**SMALL, "parallel": "many"}]},
        "parallel of service llamacpp in inference_services is 'many'; give a whole number of at least 1",
    ),
    (
        CPU,
        {"inference_services": [{**SMALL, "name": "My Service"}]},
        "name of inference_services[0] is 'My Service'; give lower-case letters, digits and hyphens, such as "
        "llamacpp-small",
    ),
    (
        CPU,
        {"inference_services": [{**SMALL, "contxt_length": 1}]},
        "service llamacpp in inference_services has the unknown key 'contxt_length'; did you mean "
        "context_length? known: backend, context_length, gpu_layers, gpus, kv_cache_type, "
        "max_batched_tokens, max_loaded_models, max_requests, memory_share, model, models, name, parallel, port, "
        "quantization, tensor_parallel_size",
    ),
    (
        CPU,
        {"inference_backends": "llamacpp"},
        "inference_backends is 'llamacpp'; give a list of backends, such as [llamacpp]",
    ),
    (CPU, {"inference_tier": "gpu"}, "inference_tier is 'gpu'; give one of cpu, cuda, rocm, vulkan"),
    (CPU, {"inference_models_path": "models"}, "inference_models_path is 'models'; give an absolute path on the node"),
    (
        CPU,
        {"inference_image_registries": {"ghcr.io": "http://10.1.2.3"}},
        "inference_image_registries is {'ghcr.io': 'http://10.1.2.3'}; give a dictionary of image registries, such as "
        "{ghcr.io: registry.example:5000}",
    ),
    # Names
    (
        CPU,
        {"inference_backends": ["lamacpp"]},
        "inference_backends is 'lamacpp', which is no backend; did you mean llamacpp? available: llamacpp, "
        "ollama, sglang, vllm",
    ),
    (
        CPU,
        {"inference_backends": ["llamacpp", "llamacpp"]},
        "inference_backends names llamacpp twice; list two services of one backend in inference_services",
    ),
    (
        CPU,
        {"llamacpp_model": "qwen3-8"},
        "llamacpp_model is 'qwen3-8', which is not in inference_models; did you mean qwen3-8b? known: qwen3-8b, "
        f"qwen3-4b, qwen3-32b, qwen3-14b, qwen3.5-9b, qwen3.5-4b, qwen3-1.7b, qwen3-0.6b {OTHERS}",
    ),
    (
        CPU,
        {"inference_services": [{"backend": "llamacpp", "model": "zzzz"}]},
        "model of service llamacpp is 'zzzz', which is not in inference_models; known: smollm3-3b, "
        "smollm2-135m-instruct, qwen3.6-35b-a3b, qwen3.6-27b, qwen3.5-9b, qwen3.5-4b, qwen3.5-35b-a3b, qwen3.5-27b "
        f"{OTHERS}",
    ),
    (
        CPU,
        {"inference_services": [{**SMALL, "name": "a"}, {**SMALL, "name": "a"}]},
        "inference_services names two services a; give each its own name",
    ),
    (
        CPU,
        {"llamacpp_quantization": "Q2_K"},
        "llamacpp_quantization is Q2_K, which qwen3-8b does not have for llamacpp; give one of Q4_K_M",
    ),
    (
        MACHINES["t4"],
        {"inference_backends": ["vllm"], "vllm_model": "gemma-3-4b-it"},
        "vllm's image v0.31.0-cu129 has no bfloat16 on GPU 0 (Tesla T4) and this model's values overflow in float16; "
        "use a GPU of compute capability 8.0 or newer; nearest that works: llamacpp with gguf",
    ),
    # Ports and addresses
    (
        NGINX,
        {"inference_services": [SMALL]},
        "port 8005 of service llamacpp is taken by nginx; free it or set port: 8006 for that service in "
        "inference_services",
    ),
    (NGINX, {}, "port 8005 of service llamacpp is taken by nginx; free it or set llamacpp_port: 8006"),
    (
        facts(listening=[{"address": "::ffff:192.0.2.11", "port": 8005, "process": None}]),
        {},
        "port 8005 of service llamacpp is taken by another program; free it or set llamacpp_port: 8006",
    ),
    (
        CPU,
        {"inference_services": [{**SMALL, "port": 9000}, {**SMALL, "port": 9000}]},
        "services llamacpp and llamacpp-2 both have port 9000 in inference_services; give each its own port",
    ),
    (
        CPU,
        {"inference_address": "203.0.113.9"},
        "inference_address is 203.0.113.9, which this node does not have; give one of 127.0.0.1, 192.0.2.11, "
        "2001:db8::11",
    ),
    (CPU, {"inference_address": "gpu-01"}, "inference_address is 'gpu-01'; give an IP address of this node"),
    (
        facts(network={"addresses": ["127.0.0.1"]}),
        {},
        "no IPv4 address was found on this node; set inference_address to the address that the gateways reach it by",
    ),
    # Memory
    (
        CPU,
        {"llamacpp_ctx_size": 65536},
        "llamacpp_ctx_size is 65536, above the 32768 tokens of qwen3-8b; set llamacpp_ctx_size: 32768",
    ),
    (
        facts(memory_total_bytes=8 * 1024**3),
        {"llamacpp_ctx_size": 32768, "llamacpp_parallel": 4},
        "service llamacpp needs 22.9 GiB of host memory for qwen3-8b (Q4_K_M, 4 slots of 32768 tokens) and "
        "6.4 GiB can be used; set llamacpp_ctx_size: 2560",
    ),
    (
        facts(memory_total_bytes=8 * 1024**3),
        {"inference_services": [{"backend": "llamacpp", "model": "qwen3-8b", "parallel": 64}]},
        "service llamacpp needs 9.4 GiB of host memory for qwen3-8b (Q4_K_M, 64 slots of 512 tokens) and 6.4 "
        "GiB can be used; set parallel: 21 for that service in inference_services",
    ),
    (
        facts(memory_total_bytes=4 * 1024**3),
        {},
        "service llamacpp needs 5.0 GiB of host memory for qwen3-8b (Q4_K_M, 1 slot of 512 tokens) and 3.2 "
        "GiB can be used; take a smaller model, or a node with more memory",
    ),
    (
        facts(memory_total_bytes=8 * 1024**3),
        {"inference_services": [{"backend": "llamacpp", "model": "qwen3-8b"}] * 2},
        "service llamacpp-2 needs 5.0 GiB of host memory for qwen3-8b (Q4_K_M, 1 slot of 512 tokens) and 1.4 "
        "GiB can be used beside llamacpp; take a smaller model, or a node with more memory",
    ),
    (
        MACHINES["t4"],
        {"llamacpp_model": "qwen3-32b"},
        "service llamacpp needs 19.2 GiB of memory on GPU 0 (Tesla T4) for qwen3-32b (Q4_K_M, 1 slot of 512 "
        "tokens) and 13.8 GiB can be used; set llamacpp_gpu_layers: 45 (slower: the other layers stay in "
        "host memory)",
    ),
    (
        {**MACHINES["t4"], "memory_total_bytes": 2 * 1024**3},
        {},
        "service llamacpp needs 2.0 GiB of host memory for qwen3-8b (Q4_K_M, 1 slot of 512 tokens) and 1.6 GiB can be "
        "used; take a smaller model, or a node with more memory",
    ),
    # GPUs, drivers, images
    (
        cuda("NVIDIA GeForce RTX 3090", 24576, "8.6", driver="535.183.01", version="12.2"),
        {},
        "GPU 0 (NVIDIA GeForce RTX 3090) has driver 535.183.01 and llamacpp's image server-cuda-b11669 needs "
        "570 or newer; install driver 570 or newer; nearest that works: vllm with bf16",
    ),
    (
        cuda("Tesla V100-SXM2-32GB", 32768, "7.0", driver="535.183.01", version="12.2"),
        {},
        "GPU 0 (Tesla V100-SXM2-32GB) has driver 535.183.01 and llamacpp's image server-cuda-b11669 needs "
        "570 or newer; install driver branch 580, the last one for this GPU; nearest that works: llamacpp "
        "with gguf and inference_tier: cpu",
    ),
    (
        {**MACHINES["gb10"], "driver": {"version": "570.10"}},
        {},
        "GPU 0 (NVIDIA GB10) has driver 570.10 and llamacpp's image server-cuda13-b11669 needs 580 or newer; "
        "install driver 580 or newer; nearest that works: vllm with bf16",
    ),
    (
        cuda("Tesla K80", 11441, "3.7"),
        {},
        "GPU 0 (Tesla K80) has compute capability 3.7 and llamacpp's image server-cuda-b11669 needs 5.0 or "
        "newer; set inference_tier: cpu; nearest that works: llamacpp with gguf and inference_tier: cpu",
    ),
    (
        amd("AMD Instinct MI355X", 294896, "gfx950"),
        {},
        "GPU 0 (AMD Instinct MI355X) is gfx950, for which llamacpp's image server-rocm-b11669 has no code; "
        "set inference_tier: vulkan, or use one of gfx908, gfx90a, gfx942, gfx1030, gfx1100, gfx1101, "
        "gfx1102, gfx1150, gfx1151, gfx1200, gfx1201; nearest that works: vllm with bf16",
    ),
    (
        facts(cpu={"architecture": "riscv64", "cores": 4}),
        {},
        "llamacpp's image server-b11669 is not built for the CPU architecture riscv64; use a node of x86_64, aarch64",
    ),
    (
        CPU,
        {"inference_tier": "cuda"},
        "tier is cuda but no NVIDIA GPU is usable; repair it, or set inference_tier: cpu",
    ),
    (
        gpu_facts("cuda", [device("A2", 16384, "8.6", usable=False, unusable_reason="bound to vfio-pci")]),
        {},
        "tier is cuda but no NVIDIA GPU is usable (GPU 0 (A2): bound to vfio-pci); repair it, or set "
        "inference_tier: cpu",
    ),
    (
        gpu_facts("rocm", [device("MI300X", 196608, "gfx942", vendor="amd", partition={"compute": "CPX", "count": 8})]),
        {},
        "tier is rocm but no AMD GPU is usable (GPU 0 (MI300X): it is partitioned (CPX) and its partitions "
        "are unknown; load amdgpu, or set SPX); repair it, or set inference_tier: cpu",
    ),
    (
        gpu_facts("vulkan", [device("Intel Arc A770", None, None, vendor="intel")]),
        {},
        "tier is vulkan but no GPU is usable (GPU 0 (Intel Arc A770): its memory is unknown; install its "
        "driver and gather the facts again); repair it, or set inference_tier: cpu",
    ),
    (
        CPU,
        {"llamacpp_gpus": [0]},
        "llamacpp_gpus names a GPU but the node's tier is cpu; leave it out or use a node with GPUs",
    ),
    (
        TWO_GPUS,
        {"llamacpp_gpus": [0, 1]},
        "llamacpp_gpus names GPU 1 (A2), which is not usable: bound to vfio-pci; use "
        "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd (GPU 0 (RTX 3090))",
    ),
    (
        TWO_GPUS,
        {"llamacpp_gpus": [1]},
        "llamacpp_gpus names GPU 1 (A2), which is not usable: bound to vfio-pci; use "
        "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd (GPU 0 (RTX 3090))",
    ),
    (
        TWO_GPUS,
        {"inference_services": [{**SMALL, "gpus": ["GPU-x"]}]},
        "gpus of service llamacpp names GPU-x, which this node does not have; use "
        "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd (GPU 0 (RTX 3090))",
    ),
    # Facts
    ({}, {}, "ansible_facts.gpu is not set; run fleet.inference.gpu_facts on it before the plan"),
    (
        facts(schema_version=2),
        {},
        "ansible_facts.gpu has schema version 2 and the plan reads 1; gather the facts again with "
        "fleet.inference.gpu_facts",
    ),
    (
        facts(memory_total_bytes=None),
        {},
        "memory_total_bytes of the hardware facts is None; gather them again with fleet.inference.gpu_facts",
    ),
    (
        facts(tier=None),
        {},
        "tier of the hardware facts is None; gather them again with fleet.inference.gpu_facts",
    ),
]


@pytest.mark.parametrize(("machine", "wishes", "sentence"), REFUSALS, ids=[row[2][:60] for row in REFUSALS])
def test_refusal(machine, wishes, sentence):
    with pytest.raises(PlanError) as refused:
        plan_node(machine, {"host": "gpu-02", "llamacpp_model": "qwen3-8b", **wishes}, CATALOG)
    assert str(refused.value) == f"gpu-02: {sentence}"


def _with_model(**changes: Any) -> dict[str, Any]:
    book = copy.deepcopy(CATALOG)
    book["models"]["qwen3-8b"].update(changes)
    return book


def _with_file(**changes: Any) -> dict[str, Any]:
    book = copy.deepcopy(CATALOG)
    book["models"]["qwen3-8b"]["gguf"][0].update(changes)
    return book


def _with_variant(**changes: Any) -> dict[str, Any]:
    book = copy.deepcopy(CATALOG)
    book["engines"]["llamacpp"]["variants"]["cpu"].update(changes)
    return book


SOURCES = "url: https://… or file: /path/on/the/controller or package: {name, version, member}"
FILE = "inference_models['qwen3-8b'].gguf[0]"

BAD_CATALOGS = [
    (_with_model(layers=None), "layers of inference_models['qwen3-8b'] is missing; give a whole number of at least 1"),
    (_with_model(layers="36"), "layers of inference_models['qwen3-8b'] is '36'; give a whole number of at least 1"),
    (_with_model(kv_heads=5), "kv_heads of inference_models['qwen3-8b'] is 5; give a divisor of attention_heads 32"),
    (_with_model(gguf=[]), "llamacpp_model is qwen3-8b, which has no GGUF file in inference_models; add one"),
    (_with_model(gguf="x"), "gguf of inference_models['qwen3-8b'] is 'x'; give a list of files, best quality first"),
    (_with_file(sha256=None), f"sha256 of {FILE} is missing; give the file's 64 lower-case hexadecimal digits"),
    (_with_file(sha256="abc"), f"sha256 of {FILE} is 'abc'; give the file's 64 lower-case hexadecimal digits"),
    (_with_file(file="../x.gguf"), f"file of {FILE} is '../x.gguf'; give a file name without a directory"),
    (_with_file(size_bytes=0), f"size_bytes of {FILE} is 0; give a whole number of at least 1"),
    (_with_file(source=None), f"source of {FILE} is missing; give one of {SOURCES}"),
    (_with_file(source={"url": "ftp://x"}), f"source.url of {FILE} is 'ftp://x'; give https://…"),
    (
        _with_file(source={"package": {"name": "a", "version": "1"}}),
        f"member of {FILE}.source.package is missing; give a text",
    ),
    (
        _with_variant(digest="sha256:1"),
        "digest of inference_engines.llamacpp.variants.cpu is 'sha256:1'; give null, or sha256: and 64 "
        "hexadecimal digits",
    ),
    (
        _with_variant(tier="gpu"),
        "tier of inference_engines.llamacpp.variants.cpu is 'gpu'; give one of cpu, cuda, rocm, vulkan",
    ),
    ({"models": None, "engines": {}}, "inference_models is not set; give a dictionary of names to entries"),
    ({"models": {}, "engines": None}, "inference_engines is not set; give a dictionary of names to entries"),
]


@pytest.mark.parametrize(("book", "sentence"), BAD_CATALOGS, ids=[row[1][:60] for row in BAD_CATALOGS])
def test_bad_catalog(book, sentence):
    with pytest.raises(PlanError) as refused:
        plan_node(CPU, {"host": "gpu-02", "llamacpp_model": "qwen3-8b"}, book)
    assert str(refused.value) == f"gpu-02: {sentence}"


def test_denied_version_is_refused():
    book = copy.deepcopy(CATALOG)
    book["engines"]["llamacpp"]["denied"] = ["server-b11669"]
    with pytest.raises(PlanError, match="give a version that inference_engines does not deny"):
        plan_node(CPU, {"host": "gpu-02", "llamacpp_model": "qwen3-8b"}, book)


def test_a_bad_entry_stops_only_its_users():
    book = _with_model(layers=None)
    assert plan_node(CPU, {"host": "gpu-02", "llamacpp_model": "qwen3-4b"}, book)["services"]


def test_the_suggested_setting_fits():
    suggestions = 0
    for machine, wishes, sentence in REFUSALS:
        found = re.search(r"can be used.*; set (\w+): (\d+)(?! for)\b", sentence)
        if found and "for that service" not in sentence:
            suggestions += 1
            better = {"llamacpp_model": "qwen3-8b", **wishes, found[1]: int(found[2])}
            assert plan_node(machine, {"host": "gpu-02", **better}, CATALOG)["services"]
    assert suggestions >= 2


def test_a_secret_is_not_in_the_sentence():
    with pytest.raises(PlanError) as refused:
        plan_node(CPU, {"host": "g", "llamacpp_model": "qwen3-8b", "llamacpp_env": {"HF_TOKEN": "s3cret"}}, CATALOG)
    assert "s3cret" not in str(refused.value)
