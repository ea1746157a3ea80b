# SPDX-License-Identifier: Apache-2.0
"""What a plan looks like to people and to programs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.inference.plugins.filter.explain import FilterModule
from ansible_collections.fleet.inference.plugins.module_utils.planning import explain, plan_node
from hypothesis import given
from hypothesis import strategies as st
from planning_machines import GIB, MACHINES, MIB, catalog, cuda, device, facts, gpu_facts

H100S = gpu_facts(
    "cuda",
    [device("NVIDIA H100 80GB HBM3", 81920, "9.0", index=index) for index in range(8)],
    memory_total_bytes=1024 * GIB,
)


def concurrency(requests: int, tokens: int, short: int | None = None) -> dict[str, Any]:
    """Return the concurrency of a service as the plan has it."""
    return {
        "requests": requests,
        "short_requests": short,
        "short_request_tokens": 4096,
        "kv_cache_tokens": tokens,
    }


def service(**changes: Any) -> dict[str, Any]:
    """Return one service of a plan, written by hand."""
    return {
        "name": "llamacpp",
        "backend": "llamacpp",
        "model": "qwen3-8b",
        "image": "ghcr.io/ggml-org/llama.cpp:server-b11669",
        "port": 8005,
        "units": [],
        "format": "gguf",
        "quantization": "Q4_K_M",
        "tensor_parallel_size": 1,
        "context_length": 8192,
        "parallel": 4,
        "concurrency": concurrency(4, 32768),
        "memory": {
            "pool": "host",
            "weights_bytes": 5 * GIB,
            "kv_cache_bytes": 4 * GIB,
            "overhead_bytes": GIB,
            "budget_bytes": 20 * GIB,
        },
        "decisions": ["context 8192 tokens a slot: the cap on a CPU unless wished", "4 slots: the default"],
        **changes,
    }


def plan(*services: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a plan with services."""
    base = {"schema_version": 1, "node": "gpu-07", "address": "192.0.2.17", "tier": "cpu", "warnings": []}
    return {**base, "services": list(services), **changes}


def memory(weights: float, kv_cache: float, overhead: float, budget: float, **more: Any) -> dict[str, Any]:
    return {
        "weights_bytes": int(weights * GIB),
        "kv_cache_bytes": int(kv_cache * GIB),
        "overhead_bytes": int(overhead * GIB),
        "budget_bytes": int(budget * GIB),
        **more,
    }


def units(facts_: dict[str, Any], *indexes: int) -> list[dict[str, Any]]:
    found = [facts_["devices"][index] for index in indexes]
    return [{"identity": item["uuid"], "title": f"GPU {item['index']} ({item['name']})"} for item in found]


CPU_FACTS = facts(memory_total_bytes=25 * GIB)
CPU_PLAN = plan(service(), warnings=["service llamacpp gets only 8192 tokens of context a slot"])
CPU = """\
Node         gpu-07, tier cpu, 192.0.2.17
Services     Name      Backend   Model     Weights      Runs on  TP  Context  Requests  Port
             llamacpp  llamacpp  qwen3-8b  gguf Q4_K_M  CPU       1     8192         4  8005
Memory       host memory: llamacpp
             [##########========++....................----------]
             weights 5.0 + KV cache 4.0 + overhead 1.0 = 10.0 of 20.0 GiB, 10.0 free
             # weights   = KV cache   + overhead   . free   - not for services
Requests     llamacpp: 4 at once of up to 8192 tokens; the KV cache holds 32768 tokens
Why          llamacpp, llamacpp, qwen3-8b, gguf Q4_K_M, CPU
             - context 8192 tokens a slot: the cap on a CPU unless wished
             - 4 slots: the default
Warnings     - service llamacpp gets only 8192 tokens of context a slot
"""

GPU_FACTS = cuda("NVIDIA GeForce RTX 3090", 24576, "8.6")
GPU_PLAN = plan(
    service(
        units=units(GPU_FACTS, 0),
        memory=memory(5, 4, 1, 22, pool=GPU_FACTS["devices"][0]["uuid"], host_bytes=2 * GIB),
        context_length=32768,
        concurrency=concurrency(4, 131072),
        decisions=["port 8005: wished"],
    ),
    tier="cuda",
)
GPU = """\
Node         gpu-07, tier cuda, 192.0.2.17
Services     Name      Backend   Model     Weights      Runs on  TP  Context  Requests  Port
             llamacpp  llamacpp  qwen3-8b  gguf Q4_K_M  GPU 0     1    32768         4  8005
Memory       GPU 0 (NVIDIA GeForce RTX 3090): llamacpp
             [##########========++..........................----]
             weights 5.0 + KV cache 4.0 + overhead 1.0 = 10.0 of 22.1 GiB, 12.1 free
             host memory: llamacpp
             [h.......................................----------]
             host memory of GPU services 2.0 = 2.0 of 51.2 GiB, 49.2 free
             # weights   = KV cache   + overhead   h host memory of GPU services   . free   - not for services
Requests     llamacpp: 4 at once of up to 32768 tokens; the KV cache holds 131072 tokens
Why          llamacpp, llamacpp, qwen3-8b, gguf Q4_K_M, GPU 0
             - port 8005: wished
"""

LONG = "vllm-for-the-agents-of-the-support-team"
H100S_PLAN = plan(
    service(
        name=LONG,
        backend="vllm",
        model="qwen3-235b-a22b-instruct-2507",
        format="fp8",
        quantization="fp8",
        units=units(H100S, 0, 1, 2, 3),
        tensor_parallel_size=4,
        context_length=131072,
        parallel=4,
        concurrency=concurrency(6, 800000, 195),
        port=8003,
        # The share is more than what the setting needs.
        memory=memory(55, 6, 5, 73.6, share_bytes=70 * GIB),
        decisions=["tensor parallel 4: the fewest GPUs that hold the weights, all of one NVLink domain " * 2],
    ),
    service(
        name="sglang",
        backend="sglang",
        model="qwen3-8b",
        format="bf16",
        quantization="bf16",
        units=units(H100S, 4),
        context_length=32768,
        parallel=8,
        concurrency=concurrency(8, 262144, 64),
        port=8004,
        memory=memory(16, 20, 4, 73.6),
        decisions=["GPU 4: shared with ollama"],
    ),
    service(
        name="ollama",
        backend="ollama",
        model="smollm3-3b",
        units=units(H100S, 4),
        port=11434,
        memory=memory(2, 2, 1, 73.6),
        decisions=[],
    ),
    tier="cuda",
    start_order=["sglang", "ollama", LONG],
    recommendation={
        "workload": "chat",
        "why": ["many chat users need continuous batching", "there are no measured results of this node"],
        "better": ["a larger model needs more GPUs"],
    },
)
EIGHT = """\
Node         gpu-07, tier cuda, 192.0.2.17
Recommended  for the workload chat
             - many chat users need continuous batching
             - there are no measured results of this node
Better       - a larger model needs more GPUs
Services     Name                  Backend  Model                 Weights      Runs on  TP  Context  Requests   Port
             vllm-for-the-agen...  vllm     qwen3-235b-a22b-i...  fp8          GPU 0-3   4   131072         6   8003
             sglang                sglang   qwen3-8b              bf16         GPU 4     1    32768         8   8004
             ollama                ollama   smollm3-3b            gguf Q4_K_M  GPU 4     1     8192         4  11434
Memory       GPU 0-3 (NVIDIA H100 80GB HBM3), each: vllm-for-the-agents-of-the-support-team
             [###################################======+++..----]
             weights 55.0 + KV cache 10.0 + overhead 5.0 = 70.0 of 73.6 GiB, 3.6 free
             GPU 4 (NVIDIA H100 80GB HBM3): sglang, ollama
             [###########=============+++...................----]
             weights 18.0 + KV cache 22.0 + overhead 5.0 = 45.0 of 73.6 GiB, 28.6 free
             # weights   = KV cache   + overhead   . free   - not for services
Unused       GPU 5-7 (NVIDIA H100 80GB HBM3)
Requests     vllm-for-the-agents-of-the-support-team: 6 at once of up to 131072 tokens, or about 195 of 4096; the KV
               cache holds 800000 tokens
             sglang: 8 at once of up to 32768 tokens, or about 64 of 4096; the KV cache holds 262144 tokens
             ollama: 4 at once of up to 8192 tokens; the KV cache holds 32768 tokens
Start        sglang, then ollama, then vllm-for-the-agents-of-the-support-team
Why          vllm-for-the-agents-of-the-support-team, vllm, qwen3-235b-a22b-instruct-2507, fp8, GPU 0-3
             - tensor parallel 4: the fewest GPUs that hold the weights, all of one NVLink domain tensor parallel 4:
               the fewest GPUs that hold the weights, all of one NVLink domain
             sglang, sglang, qwen3-8b, bf16, GPU 4
             - GPU 4: shared with ollama
             ollama, ollama, smollm3-3b, gguf Q4_K_M, GPU 4
"""


def text(plan_: dict[str, Any], facts_: dict[str, Any]) -> str:
    return "".join(f"{line}\n" for line in explain.lines(plan_, facts_))


@pytest.mark.parametrize(
    ("given_plan", "node", "expected"),
    [(CPU_PLAN, CPU_FACTS, CPU), (GPU_PLAN, GPU_FACTS, GPU), (H100S_PLAN, H100S, EIGHT)],
    ids=["cpu", "one GPU", "eight GPUs"],
)
def test_text(given_plan, node, expected):
    assert text(given_plan, node) == expected


@pytest.mark.parametrize(
    ("given_plan", "node"), [(CPU_PLAN, CPU_FACTS), (GPU_PLAN, GPU_FACTS), (H100S_PLAN, H100S)], ids=["cpu", "1", "8"]
)
def test_the_document_is_plain_json(given_plan, node):
    found = explain.document(given_plan, node)
    assert json.loads(json.dumps(found)) == found
    assert [item["name"] for item in found["services"]] == [item["name"] for item in given_plan["services"]]


def test_the_document_adds_up_what_shares_a_gpu():
    pools = {pool["title"]: pool for pool in explain.document(H100S_PLAN, H100S)["memory"]}
    shared = pools["GPU 4 (NVIDIA H100 80GB HBM3)"]
    assert (shared["services"], shared["weights_bytes"], shared["used_bytes"]) == (
        ["sglang", "ollama"],
        18 * GIB,
        45 * GIB,
    )
    assert shared["used_bytes"] + shared["free_bytes"] == shared["budget_bytes"]
    assert shared["budget_bytes"] + shared["reserved_bytes"] == shared["total_bytes"] == 80 * GIB
    assert len(pools) == 5


def test_the_plan_s_concurrency_is_told():
    found = {item["name"]: item["concurrency"] for item in explain.document(H100S_PLAN, H100S)["services"]}
    assert found[LONG] == concurrency(6, 800000, 195)
    assert found["ollama"] == concurrency(4, 32768)


def test_what_a_paged_cache_takes_beyond_the_plan_is_cache():
    (pool,) = [item for item in explain.document(H100S_PLAN, H100S)["memory"] if item["index"] == 3]
    assert (pool["kv_cache_bytes"], pool["used_bytes"]) == (10 * GIB, 70 * GIB)


def test_gpus_without_a_service_are_told():
    assert [item["index"] for item in explain.document(H100S_PLAN, H100S)["unused"]] == [5, 6, 7]
    assert "Unused       GPU 5-7 (NVIDIA H100 80GB HBM3)" in explain.lines(H100S_PLAN, H100S)


def test_gpus_that_cannot_be_used_are_told_with_the_reason():
    broken = device("NVIDIA L4", 23034, "8.9", index=1, usable=False, unusable_reason="bound to vfio-pci")
    node = gpu_facts("cuda", [device("NVIDIA L4", 23034, "8.9"), broken])
    assert explain.document(plan(tier="cuda"), node)["unusable"] == ["GPU 1 (NVIDIA L4): bound to vfio-pci"]
    assert "Not usable   - GPU 1 (NVIDIA L4): bound to vfio-pci" in explain.lines(plan(tier="cuda"), node)


def test_unified_memory_is_the_hosts():
    node = MACHINES["gb10"]
    given_plan = plan(service(units=units(node, 0), memory=memory(5, 4, 1, 96, pool="host")), tier="cuda")
    (pool,) = explain.document(given_plan, node)["memory"]
    assert (pool["identity"], pool["used_bytes"], pool["total_bytes"]) == ("host", 10 * GIB, 120 * GIB)


def planned(machine: str, *services: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of a machine with services."""
    return plan_node(MACHINES[machine], {"host": machine, "inference_services": list(services)}, catalog())


def test_mig_instances_have_their_own_memory_and_order():
    mig, whole = "MIG {} of GPU 0 (NVIDIA H100 80GB HBM3)", "GPU 1 (NVIDIA H100 80GB HBM3)"
    made = planned(
        "h100-mig",
        {"name": "a", "backend": "llamacpp", "model": "qwen3-8b", "gpus": [1]},
        {"name": "b", "backend": "llamacpp", "model": "qwen3-4b", "gpus": ["MIG-00000003"]},
        {"name": "c", "backend": "vllm", "model": "qwen3-8b", "gpus": ["MIG-00000000"]},
    )
    found = explain.document(made, MACHINES["h100-mig"])
    assert [(pool["title"], pool["total_bytes"]) for pool in found["memory"]] == [
        (mig.format("3g.40gb 0"), 40448 * MIB),
        (mig.format("1g.10gb 3"), 9856 * MIB),
        (whole, 81559 * MIB),
        ("host memory", 512 * GIB),
    ]
    assert all(pool["used_bytes"] <= pool["budget_bytes"] < pool["total_bytes"] for pool in found["memory"])
    assert [item["identity"] for item in found["unused"]] == ["MIG-00000001", "MIG-00000002", "MIG-00000004"]
    shown = text(made, MACHINES["h100-mig"])
    assert f"Unused       {mig.format('1g.10gb 1-2, 4')}\n" in shown
    assert f"Memory       {mig.format('3g.40gb 0')}: c\n" in shown
    assert "  MIG 1g.10gb 3 of GPU 0  " in shown


def test_partitions_of_a_card_have_their_own_memory_and_order():
    made = planned(
        "mi300x-cpx",
        {"name": "a", "backend": "llamacpp", "model": "qwen3-8b", "gpus": ["0000:c2:00.0#5"]},
        {"name": "b", "backend": "llamacpp", "model": "qwen3-8b", "gpus": ["0000:c1:00.0#7"]},
    )
    found = explain.document(made, MACHINES["mi300x-cpx"])
    assert [(pool["identity"], pool["total_bytes"]) for pool in found["memory"]] == [
        ("0000:c1:00.0#7", 24 * GIB),
        ("0000:c2:00.0#5", 24 * GIB),
        ("host", 1024 * GIB),
    ]
    assert len(found["unused"]) == 14
    shown = text(made, MACHINES["mi300x-cpx"]).replace("\n" + " " * 15, " ")
    product = "(AMD Instinct MI300X)"
    assert f"CPX partition 0-6 of GPU 1 {product}, CPX partition 0-4, 6-7 of GPU 2 {product}\n" in shown


def test_the_same_parts_of_several_gpus_are_told_together():
    node = MACHINES["mi300x-cpx"]
    assert "Unused       CPX partition 0-7 of GPU 1-2 (AMD Instinct MI300X)" in explain.lines(plan(tier="rocm"), node)


def test_more_than_there_is_is_told():
    found = text(plan(service(memory=memory(20, 4, 1, 20, pool="host"))), CPU_FACTS)
    assert "= 25.0 of 20.0 GiB, 5.0 too much\n" in found
    assert "[########################################========++]" in found


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_real_plans_are_explained(machine):
    node = MACHINES[machine]
    wishes = {"host": machine, "inference_services": [{"backend": "llamacpp", "model": "qwen3-0.6b"}] * 2}
    given_plan = plan_node(node, wishes, catalog())
    found = text(given_plan, node)
    assert max(map(len, found.splitlines())) <= explain.WIDTH
    why = " ".join(line.strip() for line in found.partition("\nWhy")[2].splitlines())
    for item in given_plan["services"]:
        for decision in item["decisions"]:
            assert f"- {decision}" in why


@pytest.mark.parametrize("nothing", [{}, plan(), plan(None), plan({}), plan({"memory": None, "units": [None]})])
@pytest.mark.parametrize("node", [{}, {"devices": None, "memory_total_bytes": None}, H100S])
def test_what_is_unknown_is_a_dash(nothing, node):
    json.dumps(explain.document(nothing, node))
    found = explain.lines(nothing, node)
    assert "None" not in "\n".join(found)
    assert any(line.startswith("Services  ") for line in found)


sizes = st.integers(0, 2**42)


@given(st.fixed_dictionaries({key: sizes for key, _character, _words in explain.BAR}))
def test_a_bar_is_as_wide_as_all_and_shows_all_there_is(pool):
    drawn = explain.bar(pool)
    assert len(drawn) == explain.BAR_WIDTH + 2
    assert {character for key, character, _words in explain.BAR if pool[key]} == set(drawn[1:-1]) - {" "}


names = st.text("abcdefgh-", min_size=1, max_size=80)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "name": names,
                "backend": st.sampled_from(["vllm", "llamacpp", None]),
                "model": names,
                "context_length": st.one_of(st.none(), st.integers(1, 10**7)),
                "parallel": st.one_of(st.none(), st.integers(1, 4096)),
                "port": st.integers(1, 65535),
                "concurrency": st.fixed_dictionaries(
                    {}, optional={"requests": st.integers(1, 4096), "kv_cache_tokens": sizes}
                ),
                "units": st.just(units(H100S, 0)),
                "decisions": st.lists(st.text("abc ", max_size=300), max_size=3),
                "memory": st.fixed_dictionaries({}, optional={"weights_bytes": sizes, "budget_bytes": sizes}),
            },
        ),
        max_size=4,
    )
)
def test_every_line_fits_and_every_document_is_json(services):
    given_plan = plan(*services)
    assert max(map(len, explain.lines(given_plan, H100S))) <= explain.WIDTH
    found = explain.document(given_plan, H100S)
    assert json.loads(json.dumps(found)) == found


def test_the_filter_returns_either_and_refuses_the_rest():
    explained = FilterModule().filters()["explain"]
    assert explained(CPU_PLAN, CPU_FACTS) == explain.lines(CPU_PLAN, CPU_FACTS)
    assert explained(CPU_PLAN, CPU_FACTS, "json") == explain.document(CPU_PLAN, CPU_FACTS)
    for arguments, words in {
        (None, "facts"): "the input of the filter fleet.inference.explain is not a dictionary; give one",
        ("plan", None): "facts of the filter fleet.inference.explain is not a dictionary; give one",
        ("plan", "facts", "xml"): "format of the filter fleet.inference.explain is 'xml'; give one of text, json",
    }.items():
        values = [{"plan": CPU_PLAN, "facts": CPU_FACTS}.get(str(item), item) for item in arguments]
        with pytest.raises(AnsibleFilterError) as caught:
            explained(*values)
        assert str(caught.value) == words
