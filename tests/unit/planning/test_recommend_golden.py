# SPDX-License-Identifier: Apache-2.0
"""Golden recommendations: what every workload is given on 21 machines, written down after reading each row."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import AUTO
from ansible_collections.fleet.inference.plugins.module_utils.planning.workloads import WORKLOADS
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import MACHINES, catalog, cuda, facts
from test_plan_golden import NODES

CATALOG = catalog()


def plan(node: Mapping[str, Any], workload: str, book: Mapping[str, Any] = CATALOG, **wishes: Any) -> dict[str, Any]:
    wishes = {"host": "h", "inference_services": AUTO, "inference_workload": workload, **wishes}
    return plan_node(node, wishes, book)


def told(planned: Mapping[str, Any]) -> list[str]:
    """Backend, model, quantization, units of each copy, context and requests at once; equal services as one."""
    rows = [
        f"{item['backend']} {item['model']} {item['quantization']}, {len(item['units'])} units, "
        f"{item['context_length']} x {item['parallel']}"
        for item in planned["services"]
    ]
    return [f"{rows.count(row)} {row}" for row in dict.fromkeys(rows)]


# node, workload: services. A CPU has no units.
GOLDEN: dict[str, dict[str, list[str]]] = {
    "cpu-16g": {
        "experimentation": ["1 llamacpp qwen3-0.6b Q8_0, 0 units, 8192 x 4"],
        "chat": ["1 llamacpp qwen3-0.6b Q8_0, 0 units, 8192 x 8"],
        "agents": ["1 llamacpp qwen3-0.6b Q8_0, 0 units, 16384 x 2"],
        "coding": ["1 ollama qwen2.5-coder-1.5b-instruct Q4_K_M, 0 units, 8192 x 4"],
        "edge": ["1 llamacpp qwen3-0.6b Q8_0, 0 units, 8192 x 4"],
        "mixed": ["1 llamacpp qwen3-0.6b Q8_0, 0 units, 8192 x 4"],
    },
    "cpu-256g": {
        "experimentation": ["1 llamacpp gpt-oss-120b MXFP4, 0 units, 8192 x 4"],
        "chat": ["1 llamacpp gpt-oss-120b MXFP4, 0 units, 8192 x 8"],
        "agents": ["1 llamacpp gpt-oss-120b MXFP4, 0 units, 32768 x 4"],
        "coding": ["1 llamacpp qwen3-coder-30b-a3b-instruct Q4_K_M, 0 units, 32768 x 1"],
        "edge": ["1 llamacpp gpt-oss-120b MXFP4, 0 units, 8192 x 4"],
        "mixed": ["1 llamacpp gpt-oss-120b MXFP4, 0 units, 8192 x 4"],
    },
    "rtx3090": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 1 units, 8192 x 1"],
        "chat": ["1 vllm gpt-oss-20b mxfp4, 1 units, 8192 x 8"],
        "agents": ["1 sglang gpt-oss-20b mxfp4, 1 units, 32768 x 4"],
        "coding": ["1 ollama devstral-small-2507 Q4_K_M, 1 units, 32768 x 1"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 8192 x 1"],
        "mixed": ["1 vllm qwen3-14b awq, 1 units, 8192 x 4", "1 ollama qwen3.5-4b Q4_K_M, 1 units, 32768 x 1"],
    },
    "2xrtx3090": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 2 units, 12288 x 4"],
        "chat": ["1 vllm qwen3.6-27b nvfp4, 2 units, 8192 x 8"],
        "agents": ["1 vllm qwen3.6-27b nvfp4, 2 units, 32768 x 4"],
        "coding": ["1 sglang qwen2.5-coder-32b-instruct awq, 2 units, 32768 x 1"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 2 units, 16384 x 4"],
        "mixed": ["1 vllm qwen3.6-27b nvfp4, 2 units, 32768 x 4", "1 ollama qwen3.5-4b Q4_K_M, 2 units, 8192 x 1"],
    },
    "rtx4090": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 1 units, 8192 x 1"],
        "chat": ["1 vllm gpt-oss-20b mxfp4, 1 units, 8192 x 8"],
        "agents": ["1 sglang gpt-oss-20b mxfp4, 1 units, 32768 x 4"],
        "coding": ["1 ollama devstral-small-2507 Q4_K_M, 1 units, 32768 x 1"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 8192 x 1"],
        "mixed": ["1 vllm qwen3-14b awq, 1 units, 8192 x 4", "1 ollama qwen3.5-4b Q4_K_M, 1 units, 32768 x 1"],
    },
    "rtx5090": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 1 units, 8192 x 4"],
        "chat": ["1 vllm qwen3.6-35b-a3b nvfp4, 1 units, 8192 x 8"],
        "agents": ["1 vllm qwen3.6-35b-a3b nvfp4, 1 units, 32768 x 4"],
        "coding": ["1 vllm qwen2.5-coder-32b-instruct awq, 1 units, 32768 x 1"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 8192 x 4"],
        "mixed": ["1 sglang qwen3-14b awq, 1 units, 8192 x 4", "1 ollama qwen3.5-9b Q4_K_M, 1 units, 32768 x 1"],
    },
    "t4": {
        "experimentation": ["1 ollama qwen3.5-9b Q4_K_M, 1 units, 32768 x 1"],
        "chat": ["1 llamacpp qwen3.5-9b Q4_K_M, 1 units, 8192 x 8"],
        "agents": ["1 llamacpp qwen3.5-9b Q4_K_M, 1 units, 32768 x 4"],
        "coding": ["1 sglang qwen2.5-coder-7b-instruct gptq, 1 units, 32768 x 2"],
        "edge": ["1 llamacpp qwen3.5-9b Q4_K_M, 1 units, 32768 x 4"],
        "mixed": ["1 llamacpp qwen3.5-9b Q4_K_M, 1 units, 24576 x 4", "1 ollama qwen3.5-4b Q4_K_M, 1 units, 24576 x 1"],
    },
    "v100": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 1 units, 8192 x 4"],
        "chat": ["1 llamacpp gemma-4-26b-a4b-it Q4_0, 1 units, 8192 x 8"],
        "agents": ["1 llamacpp gemma-4-26b-a4b-it Q4_0, 1 units, 32768 x 4"],
        "coding": ["1 ollama devstral-small-2507 Q4_K_M, 1 units, 32768 x 1"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 12288 x 4"],
        "mixed": [
            "1 llamacpp gemma-4-26b-a4b-it Q4_0, 1 units, 32768 x 4",
            "1 ollama qwen3.5-9b Q4_K_M, 1 units, 32768 x 1",
        ],
    },
    "a100-40": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 1 units, 12288 x 4"],
        "chat": ["1 vllm qwen3.6-27b nvfp4, 1 units, 8192 x 8"],
        "agents": ["1 vllm qwen3.6-27b nvfp4, 1 units, 32768 x 4"],
        "coding": ["1 sglang qwen2.5-coder-32b-instruct awq, 1 units, 32768 x 1"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 16384 x 4"],
        "mixed": ["1 vllm qwen3.5-27b gptq, 1 units, 32768 x 4", "1 ollama qwen3.5-4b Q4_K_M, 1 units, 8192 x 1"],
    },
    "l40s-4": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 1 units, 16384 x 4"],
        "chat": ["4 vllm qwen3.6-27b nvfp4, 1 units, 8192 x 8"],
        "agents": ["1 sglang gemma-4-31b-it nvfp4, 2 units, 32768 x 4"],
        "coding": ["1 sglang minimax-m2.5 nvfp4, 4 units, 32768 x 2"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 24576 x 4"],
        "mixed": [
            "1 sglang gemma-4-31b-it nvfp4, 2 units, 32768 x 4",
            "1 ollama qwen3.6-27b Q4_K_M, 1 units, 32768 x 1",
        ],
    },
    "h100": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_K_M, 1 units, 32768 x 4"],
        "chat": ["1 vllm qwen3.6-27b bf16, 1 units, 8192 x 8"],
        "agents": ["1 sglang gemma-4-31b-it nvfp4, 1 units, 32768 x 4"],
        "coding": ["1 sglang devstral-small-2507 bf16, 1 units, 32768 x 4"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 32768 x 4"],
        "mixed": ["1 sglang qwen3.6-27b nvfp4, 1 units, 32768 x 4", "1 ollama gemma-4-31b-it Q4_0, 1 units, 8192 x 1"],
    },
    "8xh100": {
        "experimentation": ["1 ollama deepseek-v3.1 Q4_K_M, 6 units, 32768 x 4"],
        "chat": ["1 vllm glm-5.1 nvfp4, 8 units, 8192 x 8"],
        "agents": ["1 sglang glm-5.1 nvfp4, 8 units, 32768 x 4"],
        "coding": ["1 sglang qwen3-coder-480b-a35b-instruct fp8, 8 units, 32768 x 4"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 32768 x 4"],
        "mixed": ["1 sglang glm-5.1 nvfp4, 8 units, 32768 x 4", "1 ollama gemma-4-31b-it Q4_0, 5 units, 8192 x 1"],
    },
    "8xb200": {
        "experimentation": ["1 ollama deepseek-v3.1 Q4_K_M, 3 units, 32768 x 4"],
        "chat": ["2 vllm glm-5.1 nvfp4, 4 units, 8192 x 8"],
        "agents": ["1 sglang glm-5.1 nvfp4, 4 units, 32768 x 4"],
        "coding": ["1 sglang qwen3-coder-480b-a35b-instruct fp8, 4 units, 32768 x 4"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 32768 x 4"],
        "mixed": ["1 sglang glm-5.1 nvfp4, 4 units, 32768 x 4", "1 ollama deepseek-v3.1 Q4_K_M, 3 units, 32768 x 4"],
    },
    "h100-mig": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 1 units, 12288 x 4"],
        "chat": ["1 vllm qwen3.6-27b nvfp4, 1 units, 8192 x 8"],
        "agents": ["1 vllm qwen3.6-27b nvfp4, 1 units, 32768 x 4"],
        "coding": ["1 sglang qwen2.5-coder-32b-instruct awq, 1 units, 32768 x 1"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 16384 x 4"],
        "mixed": ["1 vllm qwen3.6-27b nvfp4, 1 units, 32768 x 4", "1 ollama qwen3.5-27b Q4_K_M, 1 units, 16384 x 1"],
    },
    "gb10": {
        "experimentation": ["1 ollama qwen3.6-27b Q4_K_M, 1 units, 32768 x 1"],
        "chat": ["1 vllm gpt-oss-120b mxfp4, 1 units, 32768 x 8"],
        "agents": ["1 sglang gpt-oss-120b mxfp4, 1 units, 32768 x 8"],
        "coding": ["1 sglang qwen3-coder-30b-a3b-instruct bf16, 1 units, 32768 x 4"],
        "edge": ["1 llamacpp gpt-oss-120b MXFP4, 1 units, 32768 x 4"],
        "mixed": [
            "1 sglang gpt-oss-120b mxfp4, 1 units, 32768 x 4",
            "1 ollama gemma-4-26b-a4b-it Q4_0, 1 units, 8192 x 1",
        ],
    },
    "mi300x": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_K_M, 1 units, 32768 x 4"],
        "chat": ["1 vllm gemma-4-31b-it bf16, 1 units, 32768 x 8"],
        "agents": ["1 sglang gemma-4-31b-it bf16, 1 units, 32768 x 8"],
        "coding": ["1 sglang devstral-small-2507 bf16, 1 units, 32768 x 16"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 32768 x 4"],
        "mixed": [
            "1 sglang gemma-4-31b-it bf16, 1 units, 32768 x 4",
            "1 ollama qwen3.6-27b Q4_K_M, 1 units, 32768 x 1",
        ],
    },
    "8xmi300x": {
        "experimentation": ["1 ollama deepseek-v3.1 Q4_K_M, 3 units, 32768 x 4"],
        "chat": ["2 vllm deepseek-v3.2 fp8, 4 units, 8192 x 8"],
        "agents": ["1 sglang glm-5.1 fp8, 8 units, 32768 x 4"],
        "coding": ["1 sglang qwen3-coder-480b-a35b-instruct fp8, 4 units, 32768 x 4"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 32768 x 4"],
        "mixed": ["1 sglang glm-5.1 fp8, 8 units, 32768 x 4", "1 ollama deepseek-v3.1 Q4_K_M, 6 units, 8192 x 1"],
    },
    "rx7900": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 1 units, 8192 x 1"],
        "chat": ["1 llamacpp gemma-4-26b-a4b-it Q4_0, 1 units, 8192 x 8"],
        "agents": ["1 llamacpp gemma-4-26b-a4b-it Q4_0, 1 units, 32768 x 4"],
        "coding": ["1 ollama devstral-small-2507 Q4_K_M, 1 units, 32768 x 1"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 8192 x 1"],
        "mixed": [
            "1 llamacpp gemma-4-26b-a4b-it Q4_0, 1 units, 16384 x 4",
            "1 ollama qwen3.5-4b Q4_K_M, 1 units, 16384 x 1",
        ],
    },
    "strix-halo": {
        "experimentation": ["1 ollama qwen3.6-27b Q4_K_M, 1 units, 32768 x 1"],
        "chat": ["1 vllm qwen3.6-35b-a3b bf16, 1 units, 32768 x 16"],
        "agents": ["1 vllm qwen3.6-35b-a3b bf16, 1 units, 32768 x 16"],
        "coding": ["1 vllm qwen3-coder-30b-a3b-instruct bf16, 1 units, 32768 x 8"],
        "edge": ["1 llamacpp gpt-oss-120b MXFP4, 1 units, 32768 x 4"],
        "mixed": [
            "1 vllm qwen3.6-35b-a3b bf16, 1 units, 32768 x 4",
            "1 ollama gemma-4-26b-a4b-it Q4_0, 1 units, 8192 x 1",
        ],
    },
    "arc": {
        "experimentation": ["1 ollama qwen3.5-9b Q4_K_M, 1 units, 32768 x 1"],
        "chat": ["1 llamacpp qwen3.5-9b Q4_K_M, 1 units, 8192 x 8"],
        "agents": ["1 llamacpp qwen3.5-9b Q4_K_M, 1 units, 32768 x 4"],
        "coding": ["1 llamacpp qwen2.5-coder-7b-instruct Q4_K_M, 1 units, 32768 x 4"],
        "edge": ["1 llamacpp qwen3.5-9b Q4_K_M, 1 units, 32768 x 4"],
        "mixed": ["1 llamacpp qwen3.5-9b Q4_K_M, 1 units, 12288 x 4", "1 ollama qwen3-8b Q4_K_M, 1 units, 8192 x 1"],
    },
    "mixed": {
        "experimentation": ["1 ollama gemma-4-31b-it Q4_0, 1 units, 8192 x 1"],
        "chat": ["2 llamacpp qwen3.5-9b Q4_K_M, 1 units, 8192 x 8"],
        "agents": ["1 sglang gpt-oss-20b mxfp4, 1 units, 32768 x 4"],
        "coding": ["1 ollama devstral-small-2507 Q4_K_M, 1 units, 32768 x 1"],
        "edge": ["1 llamacpp gemma-4-31b-it Q4_0, 1 units, 8192 x 1"],
        "mixed": ["1 sglang qwen3-14b awq, 1 units, 8192 x 4", "1 ollama qwen3.5-9b Q4_K_M, 1 units, 32768 x 1"],
    },
}


def test_every_machine_and_workload_has_a_row():
    assert set(GOLDEN) == set(NODES)
    assert len(GOLDEN) >= 20
    assert all(set(rows) == set(WORKLOADS) for rows in GOLDEN.values())


@pytest.mark.parametrize("workload", sorted(WORKLOADS))
@pytest.mark.parametrize("node", sorted(NODES))
def test_recommended(node, workload):
    assert told(plan(NODES[node], workload)) == GOLDEN[node][workload]


@settings(max_examples=10, deadline=None)
@given(
    memory=st.integers(6144, 196608),
    architecture=st.sampled_from(["7.0", "7.5", "8.0", "8.9", "9.0", "12.0"]),
    workload=st.sampled_from(sorted(WORKLOADS)),
    seed=st.integers(0, 10**6),
)
def test_what_is_recommended_has_a_plan_whatever_the_catalogs_order(memory, architecture, workload, seed):
    node = cuda("NVIDIA GPU", memory, architecture)
    found = plan(node, workload)
    assert found["services"]
    assert found["recommendation"]["workload"] == workload
    mix = random.Random(seed)
    book = {key: dict(mix.sample(sorted(entries.items()), len(entries))) for key, entries in CATALOG.items()}
    assert plan(node, workload, book) == found


def test_a_users_services_are_not_recommended():
    wishes = {"host": "h", "llamacpp_model": "qwen3-0.6b"}
    assert plan_node(MACHINES["cpu"], wishes, CATALOG)["recommendation"] is None


def test_chat_is_the_workload_when_none_is_named():
    found = plan_node(MACHINES["h100"], {"host": "h", "inference_services": AUTO}, CATALOG)
    assert found["recommendation"]["workload"] == "chat"
    assert found == plan(MACHINES["h100"], "chat")


def test_only_these_backends_are_recommended():
    found = plan(MACHINES["h100"], "chat", inference_backends=["llamacpp"])
    assert {item["backend"] for item in found["services"]} == {"llamacpp"}
    assert "vllm may not be recommended here" in found["recommendation"]["why"]


def test_gated_models_are_recommended_when_they_are_allowed():
    llama = "llama-3.1-8b-instruct"
    book = {**CATALOG, "models": {name: CATALOG["models"][name] for name in (llama, "smollm2-135m-instruct")}}
    closed, opened = (plan(MACHINES["h100"], "chat", book, inference_gated_models=value) for value in (None, "true"))
    assert closed["services"][0]["model"] == "smollm2-135m-instruct"
    assert (
        f"{llama} is better and gated: accept its licence and set inference_gated_models: true"
        in (closed["recommendation"]["better"])
    )
    assert opened["services"][0]["model"] == llama


def test_wishes_for_a_whole_backend_apply():
    found = plan(MACHINES["h100"], "agents", sglang_context_length=4096, sglang_mem_fraction_static=0.7)
    (service,) = found["services"]
    assert (service["backend"], service["context_length"]) == ("sglang", 4096)
    share = float(service["arguments"][service["arguments"].index("--mem-fraction-static") + 1])
    assert share == pytest.approx(0.7, abs=0.001)


def test_a_wish_that_no_service_can_have_is_told():
    found = plan(MACHINES["h100"], "chat", vllm_gpus=[7])
    assert found["services"][0]["backend"] != "vllm"
    assert any(
        text.startswith("vllm cannot serve any model here: gpus of service vllm names 7")
        for text in found["recommendation"]["why"]
    )
    with pytest.raises(
        PlanError,
        match=r"^h: no model of the catalog can be served for the workload chat; gpus of service vllm names 7",
    ):
        plan(MACHINES["h100"], "chat", vllm_gpus=[7], inference_backends=["vllm"])


def test_measurements_of_the_facts_come_before_the_rules():
    results = [
        {"backend": backend, "model": "qwen3-8b", "concurrency": 16, "tokens_per_second": speed, "measured_at": "now"}
        for backend, speed in (("vllm", 900), ("sglang", 1100))
    ]
    assert plan(MACHINES["h100"], "chat")["services"][0]["backend"] == "vllm"
    assert plan({**MACHINES["h100"], "measurements": results}, "chat")["services"][0]["backend"] == "sglang"


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        (
            {"inference_services": "atuo"},
            "h: inference_services is 'atuo'; give a list of services, each with backend and model, or the word auto",
        ),
        (
            {"inference_workload": "chta"},
            "h: inference_workload is 'chta', which is no workload; did you mean chat? "
            "known: agents, chat, coding, edge, experimentation, mixed",
        ),
        ({"inference_workload": 3}, "h: inference_workload is 3; give a text"),
        ({"inference_gated_models": "perhaps"}, "h: inference_gated_models is 'perhaps'; give true or false"),
        (
            {"inference_backends": []},
            "h: inference_backends is '[]'; give at least one of llamacpp, ollama, sglang, vllm, or leave it out",
        ),
        (
            {"inference_backends": ["vlm"]},
            "h: inference_backends is 'vlm', which is no backend; did you mean vllm? "
            "available: llamacpp, ollama, sglang, vllm",
        ),
        ({"vllm_max_model_len": "long"}, "h: vllm_max_model_len is 'long'; give a whole number of at least 1"),
    ],
)
def test_wrong_wishes_are_refused_in_one_sentence(wishes, sentence):
    with pytest.raises(PlanError) as caught:
        plan_node(facts(), {"host": "h", "inference_services": AUTO, **wishes}, CATALOG)
    assert str(caught.value) == sentence
