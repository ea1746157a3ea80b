# SPDX-License-Identifier: Apache-2.0
"""How a service is switched to another backend or model: names, the way, and what the host's variables become."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.switch import SwitchWish, plan_switch
from planning_machines import GIB, catalog, cuda, device, facts, gpu_facts

CATALOG = catalog()
CPU = facts()
H100 = cuda("NVIDIA H100 80GB HBM3", 81559, "9.0")
TWO_GPUS = gpu_facts("cuda", [device(f"GPU {index}", 24576, "8.6", index=index) for index in range(2)])
CHAT = {"name": "chat", "backend": "llamacpp", "model": "qwen3-4b", "context_length": 8192}


def listed(*services: dict[str, Any], **wishes: Any) -> dict[str, Any]:
    return {"host": "gpu-01", "inference_services": list(services), **wishes}


def applied(node: dict[str, Any], wishes: dict[str, Any]) -> dict[str, Any]:
    """Return the node's facts once site.yml has served the wishes."""
    services = [
        {
            **{key: item[key] for key in ("name", "backend", "model", "address", "port")},
            "models": [model["name"] for model in item["models"]],
            "units": [unit["identity"] for unit in item["units"]],
        }
        for item in plan_node(node, wishes, CATALOG)["services"]
    ]
    return {**node, "services": services}


def switch(node: dict[str, Any], wishes: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    """Switch on a node that serves its wishes."""
    return plan_switch(applied(node, wishes), wishes, CATALOG, SwitchWish(**wanted))


def refusal(node: dict[str, Any], wishes: dict[str, Any], **wanted: Any) -> str:
    with pytest.raises(PlanError) as raised:
        switch(node, wishes, **wanted)
    return str(raised.value)


# ways


def test_on_a_gpu_of_its_own_the_new_one_starts_beside_the_old_one() -> None:
    found = switch(TWO_GPUS, listed(CHAT), service="chat", backend="vllm")
    assert (found["way"], found["new"]["name"], found["new"]["port"]) == ("beside", "chat-vllm", 8003)
    (new,) = found["plan"]["services"]
    assert [unit["title"] for unit in new["units"]] == ["GPU 1 (GPU 1)"]
    assert [item["name"] for item in found["beside"]["services"]] == ["chat-vllm", "chat"]
    assert found["before"]["services"][0]["name"] == "chat"


def test_vllm_takes_the_whole_gpu_so_the_old_one_goes_first() -> None:
    found = switch(H100, listed(CHAT), service="chat", backend="vllm")
    assert found["way"] == "window" and found["beside"] is None
    assert found["why"] == "there is not enough memory for chat and chat-vllm at the same time"
    assert "the old one stops first" in found["text"][0]


def test_sglang_does_not_measure_a_gpu_that_the_old_one_still_holds() -> None:
    settings = {"sglang_mem_fraction_static": 0.3, "sglang_context_length": 2048, "sglang_max_running_requests": 1}
    found = switch(H100, listed({**CHAT, "context_length": 2048}, **settings), service="chat", backend="sglang")
    assert found["way"] == "window"
    assert found["why"] == "SGLang takes a share of what is free when it starts, and chat is on its GPU"


def test_where_a_plan_with_both_has_no_room_its_reason_is_told() -> None:
    small = {**CPU, "memory_total_bytes": 14 * GIB, "memory_available_bytes": 12 * GIB}
    found = switch(small, listed({**CHAT, "model": "qwen3-8b"}), model="qwen3-4b")
    assert found["way"] == "window"
    assert "memory" in found["why"]


def test_memory_that_is_not_free_now_counts() -> None:
    found = switch({**CPU, "memory_available_bytes": GIB}, listed(CHAT), model="qwen3-8b")
    assert found["way"] == "window"
    assert "of host memory and 1.0 GiB is available while chat serves" in found["why"]


def test_the_way_can_be_asked_for() -> None:
    assert switch(TWO_GPUS, listed(CHAT), backend="vllm", way="window")["way"] == "window"
    assert switch(TWO_GPUS, listed(CHAT), backend="vllm", way="beside")["way"] == "beside"
    assert refusal(H100, listed(CHAT), backend="vllm", way="beside").startswith(
        "gpu-01: chat can't serve until the new service has answered, because there is not enough memory"
    )
    assert refusal(CPU, listed(CHAT), model="qwen3-8b", way="fast") == (
        "gpu-01: way is 'fast'; give one of auto, beside, window"
    )


def test_a_service_that_is_not_on_the_node_is_started() -> None:
    found = plan_switch(TWO_GPUS, listed(CHAT), CATALOG, SwitchWish(backend="vllm"))
    assert found["way"] == "start" and found["old"]["running"] is False
    assert found["new"]["name"] == "chat"


# what stays


@pytest.mark.parametrize(("node", "way"), [(CPU, "auto"), (CPU, "window"), (TWO_GPUS, "auto"), (H100, "auto")])
@pytest.mark.parametrize("wanted", [{"model": "qwen3-8b"}, {"backend": "ollama", "model": "qwen3-0.6b"}])
def test_site_yml_with_the_new_variables_finds_the_service_as_it_is(
    node: dict[str, Any], way: str, wanted: dict[str, str]
) -> None:
    wishes = listed(CHAT, {"name": "code", "backend": "llamacpp", "model": "smollm2-135m-instruct"})
    found = switch(node, wishes, service="chat", way=way, **wanted)
    after = yaml.safe_load("\n".join(found["host_vars"]))
    assert after["inference_services"] == found["inference_services"]
    new = next(item for item in found["plan"]["services"] if item["name"] == found["new"]["name"])
    there = {
        **{key: new[key] for key in ("name", "backend", "model", "port")},
        "units": [unit["identity"] for unit in new["units"]],
    }
    running = [item for item in applied(node, wishes)["services"] if item["name"] != "chat"]
    again = plan_node({**node, "services": [*running, there]}, {**wishes, **after}, CATALOG)
    planned = next(item for item in again["services"] if item["name"] == new["name"])
    different = {key for key in new if key != "decisions" and planned[key] != new[key]}
    assert different == set()


def test_an_interrupted_or_repeated_switch_goes_on_with_what_is_there() -> None:
    wishes = listed(CHAT)
    first = switch(TWO_GPUS, wishes, service="chat", backend="vllm")
    after = applied(TWO_GPUS, {**wishes, "inference_services": first["inference_services"]})
    again = plan_switch(after, wishes, CATALOG, SwitchWish("chat", "vllm"))
    assert (again["way"], again["new"]["name"], again["new"]["running"]) == ("start", "chat-vllm", True)
    both = {**after, "services": [*after["services"], *applied(TWO_GPUS, wishes)["services"]]}
    on = plan_switch(both, wishes, CATALOG, SwitchWish("chat", "vllm"))
    assert (on["new"]["name"], on["new"]["port"], on["new"]["running"]) == ("chat-vllm", first["new"]["port"], True)


def test_the_new_one_never_takes_the_port_of_the_old_one() -> None:
    wishes = listed({**CHAT, "port": 9000})
    for way in ("auto", "window"):
        found = switch(CPU, wishes, model="qwen3-8b", way=way)
        assert found["new"]["port"] == 8005
        assert found["left_out"] == ["port"]
    assert switch(CPU, listed(CHAT), model="qwen3-8b", way="window")["new"]["port"] == 8006


def test_settings_of_users_stay_and_those_of_an_engine_or_a_model_go() -> None:
    chat = {**CHAT, "context_length": 4096, "parallel": 2, "kv_cache_type": "q8_0", "quantization": "Q4_K_M", "gpus": 1}
    found = switch(TWO_GPUS, listed(chat), backend="vllm")
    (entry,) = found["inference_services"]
    vllm = {"name": "chat-vllm", "backend": "vllm", "model": "qwen3-4b"}
    assert entry == {**vllm, "context_length": 4096, "parallel": 2, "gpus": 1}
    assert found["left_out"] == ["kv_cache_type", "quantization"]
    assert "gpu-01: not taken over from chat: kv_cache_type, quantization" in found["text"]
    (entry,) = switch(TWO_GPUS, listed(chat), model="qwen3-8b")["inference_services"]
    assert entry["kv_cache_type"] == "q8_0" and "quantization" not in entry


def test_other_services_keep_their_names_and_the_word_is_given_when_they_change() -> None:
    wishes = listed({"backend": "llamacpp", "model": "qwen3-4b"}, {"backend": "llamacpp", "model": "qwen3-0.6b"})
    found = switch(H100, wishes, service="llamacpp", backend="vllm", model="qwen3-0.6b", way="window")
    assert [item["name"] for item in found["inference_services"]] == ["vllm", "llamacpp-2"]


def test_a_switch_that_needs_another_service_to_change_is_left_to_site_yml() -> None:
    node = cuda("GPU", 24576, "8.6")
    wishes = listed({**CHAT, "model": "qwen3-0.6b"}, {"name": "code", "backend": "vllm", "model": "qwen3-4b"})
    assert refusal(node, wishes, service="chat", model="qwen3-14b") == (
        "gpu-01: chat-2 has room only when code changes as well; put inference_services: [{name: chat-2, backend: "
        "llamacpp, model: qwen3-14b, context_length: 8192}, {name: code, backend: vllm, model: qwen3-4b}] into "
        "host_vars of gpu-01 and run site.yml"
    )


def test_a_smaller_model_leaves_room_that_site_yml_gives_to_the_others() -> None:
    node = cuda("GPU", 24576, "8.6")
    wishes = listed({**CHAT, "model": "qwen3-14b"}, {"name": "code", "backend": "vllm", "model": "qwen3-0.6b"})
    found = switch(node, wishes, service="chat", model="qwen3-0.6b")
    assert found["others"] == ["code"]
    assert found["text"][-1] == "gpu-01: with this plan, site.yml changes code as well"


def test_variables_of_a_backend_become_a_list() -> None:
    wishes = {
        "host": "gpu-01",
        "inference_backends": ["llamacpp"],
        "llamacpp_model": "qwen3-4b",
        "vllm_max_model_len": 4096,
    }
    found = switch(TWO_GPUS, wishes, backend="vllm")
    assert found["host_vars"] == ["inference_services:", "  - {name: vllm, backend: vllm, model: qwen3-4b}"]


def test_services_that_were_chosen_become_the_users() -> None:
    wishes = {"host": "gpu-01", "inference_services": "auto", "inference_backends": ["llamacpp"]}
    found = switch(CPU, wishes, model="smollm2-135m-instruct")
    (entry,) = found["inference_services"]
    assert (entry["backend"], entry["model"]) == ("llamacpp", "smollm2-135m-instruct")


# names


@pytest.mark.parametrize(
    ("name", "backend", "model", "expected"),
    [
        ("chat", "vllm", None, "chat-vllm"),
        ("chat", None, "qwen3-8b", "chat-2"),
        ("chat-2", None, "qwen3-8b", "chat"),
        ("chat-llamacpp", "vllm", None, "chat"),
        ("llamacpp", "vllm", None, "vllm"),
        ("llamacpp", None, "qwen3-8b", "llamacpp-2"),
        ("llamacpp-2", None, "qwen3-8b", "llamacpp"),
    ],
)
def test_names(name: str, backend: str | None, model: str | None, expected: str) -> None:
    found = switch(TWO_GPUS, listed({**CHAT, "name": name}), backend=backend, model=model)
    assert found["new"]["name"] == expected


def test_names_of_other_services_are_taken() -> None:
    small = {"backend": "llamacpp", "model": "smollm2-135m-instruct"}
    wishes = listed(CHAT, {**small, "name": "chat-vllm"}, {**small, "name": "chat-2"})
    assert switch(TWO_GPUS, wishes, service="chat", backend="vllm", way="window")["new"]["name"] == "chat-3"
    assert switch(TWO_GPUS, listed(CHAT), backend="vllm", new_name="talk")["new"]["name"] == "talk"
    for name in ("chat-2", "chat"):
        assert refusal(TWO_GPUS, wishes, service="chat", backend="vllm", new_name=name) == (
            f"gpu-01: new_name is {name}, which is a service already; give another name"
        )


# refusals


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"service": "chta"}, "gpu-01: service is 'chta', which the node does not serve; did you mean chat?"),
        ({}, "gpu-01: service is not given; give one of chat, code"),
        ({"service": "chat", "backend": "vlm"}, "gpu-01: backend is 'vlm', which is not available; did you mean vllm?"),
        (
            {"service": "chat", "model": "qwen3-4"},
            "gpu-01: model is 'qwen3-4', which is not in inference_models; did you mean qwen3-4b?",
        ),
        (
            {"service": "chat", "backend": "llamacpp"},
            "gpu-01: service chat serves qwen3-4b with llamacpp already; give another backend or model",
        ),
        ({"service": "chat", "backend": "vllm"}, "gpu-01: vllm's image "),
    ],
)
def test_what_is_wrong_is_one_sentence(wanted: dict[str, str], expected: str) -> None:
    small = {"name": "code", "backend": "llamacpp", "model": "smollm2-135m-instruct"}
    text = refusal(CPU, listed(CHAT, small), **wanted)
    assert text.startswith(expected)
    assert "\n" not in text


def test_several_models_need_one_where_a_service_has_one() -> None:
    wishes = listed({"name": "all", "backend": "ollama", "models": ["qwen3-0.6b", "qwen3-4b"]})
    assert refusal(TWO_GPUS, wishes, backend="vllm") == (
        "gpu-01: service all serves qwen3-0.6b, qwen3-4b, and a service of vllm serves one model; give model"
    )
    found = switch(TWO_GPUS, wishes, backend="vllm", model="qwen3-4b")
    assert found["inference_services"] == [{"name": "all-vllm", "backend": "vllm", "model": "qwen3-4b"}]
