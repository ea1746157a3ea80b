# SPDX-License-Identifier: Apache-2.0
"""A service of Ollama that serves several models: from the variables to the container, the registry and the gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import fragment_from_plan
from ansible_collections.fleet.inference.plugins.module_utils.gateway.litellm import render_litellm
from ansible_collections.fleet.inference.plugins.module_utils.gateway.pools import pools
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, explain, plan_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.engine_service import service_options
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import ServiceSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB, MACHINES, MIB, catalog, device, gpu_facts

CATALOG = catalog()
WANTED = ["qwen3-8b", "smollm2-135m-instruct", "qwen3.5-4b"]
H100 = MACHINES["h100"]


def wishes(**variables: Any) -> dict[str, Any]:
    return {"host": "gpu-01", "inference_backends": ["ollama"], **variables}


def planned(machine: dict[str, Any] = H100, book: dict[str, Any] = CATALOG, **variables: Any) -> dict[str, Any]:
    return plan_node(machine, wishes(**variables), book)


def without_library(*names: str) -> dict[str, Any]:
    """The catalog with models that are not in the Ollama library."""
    book = catalog()
    for name in names:
        del book["models"][name]["ollama"]
    return book


def options(plan: dict[str, Any], facts: dict[str, Any] = H100) -> dict[str, Any]:
    where = {"user": "10001:10001", "models_path": "/srv/models", "state_root": "/srv/state"}
    return service_options(plan["services"][0]["name"], plan, facts, **where)


def test_one_service_serves_all() -> None:
    plan = planned(ollama_models=WANTED)
    (service,) = plan["services"]
    assert service["model"] == "qwen3-8b"
    served = {item["name"]: (item["context_length"], item["parallel"]) for item in service["models"]}
    # What each was trained for; Ollama serves Qwen3.5 one request at a time.
    assert served == {"qwen3-8b": (32768, 4), "smollm2-135m-instruct": (8192, 4), "qwen3.5-4b": (32768, 1)}
    assert list(served) == WANTED
    assert service["env"]["OLLAMA_MAX_LOADED_MODELS"] == "3"
    assert service["memory"]["weights_bytes"] == sum(item["model_source"]["size_bytes"] for item in service["models"])
    assert sorted(entry["model"] for entry in plan["models"]) == sorted(WANTED)
    assert all(entry["path"] == "/var/lib/inference-fleet/models/ollama" for entry in plan["models"])


def test_fewer_loaded_models_take_less_memory() -> None:
    whole, one = (
        planned(ollama_models=WANTED, **changes)["services"][0] for changes in ({}, {"ollama_max_loaded_models": 1})
    )
    assert one["env"]["OLLAMA_MAX_LOADED_MODELS"] == "1"
    assert one["memory"]["total_bytes"] < whole["memory"]["total_bytes"]
    alone = planned(ollama_model="qwen3-8b")["services"][0]
    # The largest decides: here it is the service's own.
    assert one["memory"]["total_bytes"] == alone["memory"]["total_bytes"]


def test_one_model_in_a_list_is_one_model() -> None:
    assert planned(ollama_models=["qwen3-8b"]) == planned(ollama_model="qwen3-8b")
    given = options(planned(ollama_models=["qwen3-8b"]))
    assert given["models"] == [] and "further_models" not in given["readiness"]


def test_an_entry_comes_before_the_variables() -> None:
    listed = [
        {"name": "one", "backend": "ollama", "model": "qwen3-0.6b"},
        {"name": "two", "backend": "ollama", "models": ["qwen3-1.7b", "qwen3-0.6b"]},
        {"name": "three", "backend": "ollama"},
    ]
    plan = planned(MACHINES["mi300x"], inference_services=listed, ollama_models=WANTED)
    served = {service["name"]: [item["name"] for item in service["models"]] for service in plan["services"]}
    assert served == {"one": ["qwen3-0.6b"], "two": ["qwen3-1.7b", "qwen3-0.6b"], "three": WANTED}
    plan = planned(MACHINES["mi300x"], inference_services=listed[1:2], ollama_model="qwen3-8b")
    assert [item["name"] for item in plan["services"][0]["models"]] == ["qwen3-1.7b", "qwen3-0.6b"]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"ollama_models": []}, "ollama_models is []; give a list of names of models in inference_models"),
        ({"ollama_models": "qwen3-8b"}, "ollama_models is 'qwen3-8b'; give a list of names of models in inference_mod"),
        ({"ollama_models": ["qwen3-8b", 3]}, "; give a list of names of models in inference_models"),
        ({"ollama_models": ["qwen3-8b", "qwen3-8b"]}, "ollama_models names qwen3-8b twice; leave one of them out"),
        ({"ollama_models": WANTED, "ollama_model": "qwen3-8b"}, "ollama_model and ollama_models are both set; leave"),
        ({"ollama_models": ["qwen3-8b", "qwen3-9b"]}, "ollama_models is 'qwen3-9b', which is not in inference_models"),
        (
            {"ollama_models": ["qwen3-8b", "glm-5.1"]},
            "ollama_models names glm-5.1, which has no Ollama tag and no GGUF",
        ),
        (
            {"ollama_models": WANTED, "ollama_max_loaded_models": 0},
            "ollama_max_loaded_models is 0; give a whole number",
        ),
        (
            {"ollama_models": ["smollm2-135m-instruct", "qwen3-8b"], "ollama_context_length": 40000},
            "ollama_context_length is 40000, above the 32768 tokens of qwen3-8b; set ollama_context_length: 32768",
        ),
        (
            {"inference_services": [{"backend": "vllm", "models": ["qwen3-8b"]}]},
            "models of service vllm in inference_services is no setting of vllm; leave it out, it is one of ollama",
        ),
        (
            {"inference_services": [{"backend": "ollama", "model": "qwen3-8b", "models": WANTED}]},
            "model of service ollama in inference_services and models of service ollama in inference_services are both",
        ),
    ],
)
def test_wrong_wishes_are_told_in_one_sentence(variables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError) as refused:
        planned(**variables)
    assert str(refused.value).startswith("gpu-01: ") and sentence in str(refused.value)
    assert len(refused.value.problems) == 1


def test_what_does_not_fit_is_refused_with_what_fits() -> None:
    wanted = ["qwen3-32b", "qwen2.5-coder-32b-instruct"]
    with pytest.raises(PlanError) as refused:
        planned(MACHINES["rtx3090"], ollama_models=wanted)
    text = str(refused.value)
    assert "for qwen3-32b (Q4_K_M, 1 slot of 512 tokens) and 1 more of its models and" in text
    assert text.endswith("; set ollama_max_loaded_models: 1 (Ollama then unloads one model to load another)")
    assert planned(MACHINES["rtx3090"], ollama_models=wanted, ollama_max_loaded_models=1)["services"]


def test_models_of_two_stores_are_refused() -> None:
    book = without_library("qwen3-8b")
    with pytest.raises(PlanError) as refused:
        planned(H100, book, ollama_models=["qwen3-8b", "mixtral-8x7b-instruct-v0.1"])
    assert str(refused.value) == (
        "gpu-01: ollama_models names mixtral-8x7b-instruct-v0.1, which is only in the Ollama library, and qwen3-8b, "
        "which is only a GGUF file; serve them with two services"
    )


def test_the_container_of_models_from_the_library() -> None:
    given = options(planned(ollama_models=WANTED))
    assert given["description"] == "Ollama serving qwen3-8b, smollm2-135m-instruct, qwen3.5-4b"
    assert (given["model"], given["models"]) == ("qwen3-8b", WANTED)
    assert given["mounts"][0]["source"] == "/srv/models/ollama" and given["files"] == []
    readiness = given["readiness"]
    assert (readiness["model"], readiness["further_models"], readiness["further_answer"]) == (
        "qwen3-8b",
        WANTED[1:],
        True,
    )
    some = options(planned(ollama_models=WANTED, ollama_max_loaded_models=2))
    assert some["readiness"]["further_answer"] is False
    assert json.loads(ServiceSpec.from_params(given).to_json(None))["models"] == WANTED
    assert json.loads(ServiceSpec.from_params(given).readiness_json())["further_models"] == WANTED[1:]


def test_the_container_of_models_on_the_cpu() -> None:
    """Where nothing is planned on a GPU, all models are asked for too."""
    facts = MACHINES["cpu"]
    readiness = options(planned(facts, ollama_models=["qwen3-0.6b", "qwen3-1.7b"]), facts)["readiness"]
    assert readiness["further_models"] == ["qwen3-1.7b"] and readiness["further_answer"] is True
    assert "gpu_path" not in readiness


def test_the_container_of_models_from_files() -> None:
    names = ["qwen3-8b", "qwen3-4b", "same-as-qwen3-4b"]
    book = without_library("qwen3-8b", "qwen3-4b")
    book["models"]["same-as-qwen3-4b"] = book["models"]["qwen3-4b"]
    plan = planned(H100, book, ollama_models=names)
    files = {item["name"]: item["model_file"] for item in plan["services"][0]["models"]}
    given = options(plan)
    blobs = [mount for mount in given["mounts"] if mount["target"].startswith("/models")]
    assert [(mount["source"], mount["target"].rpartition("-")[2]) for mount in blobs] == [
        (files[name]["path"], files[name]["sha256"]) for name in names[:2]
    ]
    manifests = {
        item["target"].split("/")[-2]: json.loads(item["content"])
        for item in given["files"]
        if "manifests" in item["target"]
    }
    assert list(manifests) == names
    for name in names:
        assert manifests[name]["layers"][0]["digest"] == f"sha256:{files[name]['sha256']}"
    # Every blob that a manifest names is there, and the module takes the whole.
    there = {item["target"] for item in given["files"]} | {mount["target"] for mount in blobs}
    for manifest in manifests.values():
        for layer in (manifest["config"], *manifest["layers"]):
            assert f"/models/ollama/blobs/{layer['digest'].replace(':', '-')}" in there
    ServiceSpec.from_params(given)


def test_each_model_is_published_by_itself() -> None:
    plans = [
        planned(ollama_models=WANTED),
        {**planned(ollama_model="qwen3-8b"), "node": "gpu-02", "address": "192.0.2.12"},
    ]
    fragments = [fragment_from_plan(plan) for plan in plans]
    assert [(item["name"], item["model"], item["port"]) for item in fragments[0]["services"]] == [
        ("ollama", name, 11434) for name in sorted(WANTED)
    ]
    found = {pool["model"]: pool for pool in pools(fragments)}
    assert set(found) == set(WANTED)
    assert [server["name"] for server in found["qwen3-8b"]["servers"]] == ["gpu-01-ollama", "gpu-02-ollama"]
    assert [server["name"] for server in found["qwen3.5-4b"]["servers"]] == ["gpu-01-ollama"]
    assert (found["qwen3-8b"]["parallel"], found["qwen3.5-4b"]["parallel"]) == (8, 1)
    assert found["smollm2-135m-instruct"]["context_length"] == 8192
    deployments = yaml.safe_load(render_litellm({}, pools(fragments)))["model_list"]
    assert {item["model_name"]: item["litellm_params"]["model"] for item in deployments} == {
        name: f"openai/{name}" for name in WANTED
    }


def test_the_explanation_tells_what_each_model_gets() -> None:
    plan = planned(ollama_models=WANTED)
    text = "\n".join(explain.lines(plan, H100))
    assert "ollama, qwen3-8b: 4 at once of up to 32768 tokens" in text
    assert "ollama, qwen3.5-4b: 1 at once of up to 32768 tokens" in text
    assert "3 models: all stay in memory" in text
    (service,) = explain.document(plan, H100)["services"]
    assert [item["name"] for item in service["models"]] == WANTED


def test_the_order_of_the_list_changes_only_whose_answer_is_waited_for() -> None:
    one, other = (planned(ollama_models=names)["services"][0] for names in (WANTED, WANTED[::-1]))
    assert one["memory"] == other["memory"] and one["env"] == other["env"]
    assert one["readiness_timeout_seconds"] == other["readiness_timeout_seconds"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*WANTED, "qwen3-32b", "gemma-3-4b-it"]), min_size=1, max_size=4, unique=True),
    st.none() | st.integers(1, 5),
    st.sampled_from([12288, 24576, 81559]),
    st.integers(1, 2),
)
def test_what_is_loaded_together_fits(names: list[str], loaded: int | None, mib: int, gpus: int) -> None:
    devices = [device(f"GPU {index}", mib, "8.6", index=index) for index in range(gpus)]
    machine = gpu_facts("cuda", devices, memory_total_bytes=128 * GIB)
    try:
        (service,) = planned(machine, ollama_models=names, ollama_max_loaded_models=loaded)["services"]
    except PlanError as refused:
        assert len(refused.problems) == 1
        return
    assert service["memory"]["total_bytes"] <= 0.92 * mib * MIB
    together = min(len(names), loaded or len(names))
    assert service["env"]["OLLAMA_MAX_LOADED_MODELS"] == str(together)
    sizes = sorted((item["model_source"]["size_bytes"] for item in service["models"]), reverse=True)
    assert max(1, len(service["units"])) * service["memory"]["total_bytes"] >= sum(sizes[:together])
    for item in service["models"]:
        assert 0 < item["context_length"] <= CATALOG["models"][item["name"]]["context_length"]


def test_a_wished_quantization_is_that_of_every_model() -> None:
    plan = planned(ollama_models=["qwen3-8b", "qwen3-4b"], ollama_quantization="Q4_K_M")
    assert {item["quantization"] for item in plan["services"][0]["models"]} == {"Q4_K_M"}
    with pytest.raises(
        PlanError, match=r"^gpu-01: ollama_quantization is Q4_1, which qwen3-8b does not have for ollama"
    ):
        planned(ollama_models=["smollm2-135m-instruct", "qwen3-8b"], ollama_quantization="Q4_1")
