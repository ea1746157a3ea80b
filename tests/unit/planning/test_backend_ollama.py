# SPDX-License-Identifier: Apache-2.0
"""The backend Ollama: the environment of its server, and services of several models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, backend_llamacpp
from ansible_collections.fleet.inference.plugins.module_utils.planning.backend_ollama import (
    BACKEND,
    Companion,
    batch_tokens,
    is_serial,
    runners,
    together,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import Concurrency, Share
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB, MACHINES, MIB, device, facts, gpu_facts
from planning_requests import chosen, first, model, models, request, situation

LOADABLE = [item.name for item in models(BACKEND)]
TWO_3090 = gpu_facts("cuda", [device("NVIDIA GeForce RTX 3090", 24576, "8.6", index=index) for index in range(2)])
CPU_8 = facts(memory_total_bytes=8 * GIB)


def companions(names: list[str]) -> tuple[Companion, ...]:
    """Return further models, each in its best form."""
    return tuple(Companion(model(name), BACKEND.artifacts(model(name))[0]) for name in names)


requests = st.builds(
    lambda name, spread, context, parallel, others, loaded: request(
        BACKEND,
        name,
        spread,
        context_length=context,
        parallel=parallel,
        options={"models": companions(others), **({"max_loaded_models": loaded} if loaded else {})},
    ),
    st.sampled_from(LOADABLE),
    st.integers(0, 8),
    st.none() | st.integers(1, 32768),
    st.none() | st.integers(1, 8),
    st.lists(st.sampled_from(LOADABLE), max_size=3),
    st.none() | st.integers(1, 5),
)

COMMON = {
    "LLAMA_ARG_CACHE_RAM": "1024",
    "LLAMA_ARG_FIT": "off",
    "OLLAMA_FLASH_ATTENTION": "1",
    "OLLAMA_HOST": "0.0.0.0:11434",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_KV_CACHE_TYPE": "f16",
    "OLLAMA_MAX_LOADED_MODELS": "1",
    "OLLAMA_NO_CLOUD": "1",
    "OLLAMA_NUM_PARALLEL": "4",
    "OLLAMA_VULKAN": "0",
}
RESERVED_3090 = str(24576 * MIB - int(24576 * MIB * 0.92))
#: machine, model; context a slot, and the variables that are not the same everywhere
EXACT = {
    "cpu-8": (CPU_8, "qwen3-4b", 6144, {"LLAMA_ARG_THREADS": "2", "OLLAMA_LOAD_TIMEOUT": "300s"}),
    "rtx3090": (
        MACHINES["rtx3090"],
        "qwen3-8b",
        24576,
        {"OLLAMA_GPU_OVERHEAD": RESERVED_3090, "OLLAMA_LOAD_TIMEOUT": "300s"},
    ),
    "two-rtx3090": (
        TWO_3090,
        "qwen3-32b",
        16384,
        {
            "LLAMA_ARG_SPLIT_MODE": "layer",
            "LLAMA_ARG_TENSOR_SPLIT": "1,1",
            "OLLAMA_GPU_OVERHEAD": RESERVED_3090,
            "OLLAMA_LOAD_TIMEOUT": "320s",
            "OLLAMA_SCHED_SPREAD": "1",
        },
    ),
    "gb10": (MACHINES["gb10"], "qwen3-32b", 32768, {"OLLAMA_LOAD_TIMEOUT": "320s"}),
    "rx7900": (
        MACHINES["rx7900"],
        "qwen3-8b",
        24576,
        {
            "OLLAMA_GPU_OVERHEAD": str(24560 * MIB - int(24560 * MIB * 0.92)),
            "OLLAMA_LOAD_TIMEOUT": "300s",
        },
    ),
    "t4": (
        MACHINES["t4"],
        "qwen3-8b",
        12288,
        {
            "OLLAMA_GPU_OVERHEAD": str(15360 * MIB - int(15360 * MIB * 0.92)),
            "OLLAMA_LOAD_TIMEOUT": "300s",
        },
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_environment(case):
    machine, name, context, own = EXACT[case]
    here = situation(BACKEND, machine)
    asked = request(BACKEND, name, len(here.units), artifacts=BACKEND.artifacts(model(name))[:1])
    setting = chosen(BACKEND, asked, here.share.bytes)
    launch = BACKEND.launch(asked, setting, here)
    assert launch.environment == {**COMMON, "OLLAMA_CONTEXT_LENGTH": str(context), **own}
    assert list(launch.environment) == sorted(launch.environment)
    assert launch.arguments == ()


def test_the_library_comes_before_files_for_offline_nodes():
    kinds = [type(item.source).__name__ for item in BACKEND.artifacts(model("qwen3-8b"))]
    assert kinds[0] == "OllamaModel"
    assert set(kinds[1:]) == {"ModelFile"}
    assert [item.source for item in BACKEND.artifacts(model("mixtral-8x7b-instruct-v0.1"))] == [
        model("mixtral-8x7b-instruct-v0.1").ollama
    ]


@settings(max_examples=200, deadline=None)
@given(requests)
def test_every_rung_takes_at_least_as_much_as_the_one_before(asked):
    before = None
    for setting in BACKEND.settings(asked):
        need = BACKEND.demand(asked, setting)
        assert before is None or (need.total >= before.total and need.host >= before.host)
        before = need


@settings(max_examples=200, deadline=None)
@given(requests, st.sampled_from([512, 8192, 32768]), st.integers(1, 8))
def test_units_together_hold_all_resident_models(asked, context, parallel):
    setting = first(asked, context, parallel)
    whole, before = BACKEND.demand(replace(asked, units=1), setting), None
    for count in BACKEND.unit_counts(asked.model, 8):
        need = BACKEND.demand(replace(asked, units=count), setting)
        assert count * need.total >= whole.weights + whole.kv_cache
        assert need.host == whole.host
        assert before is None or count == 2 or need.total <= before.total
        before = need


@settings(max_examples=200, deadline=None)
@given(requests, st.sampled_from([512, 8192, 32768]))
def test_fewer_loaded_models_need_no_more(asked, context):
    setting = first(asked, context, 2)
    needs = [BACKEND.demand(replace(asked, options={}), setting)]
    for loaded in range(1, len(asked.options["models"]) + 2):
        needs.append(BACKEND.demand(replace(asked, options={**asked.options, "max_loaded_models": loaded}), setting))
    whole = BACKEND.demand(replace(asked, options={"models": asked.options["models"]}), setting)
    assert needs[-1] == whole
    assert [need.total for need in needs] == sorted(need.total for need in needs)
    assert [need.host for need in needs] == sorted(need.host for need in needs)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(LOADABLE), st.integers(0, 4), st.sampled_from([512, 8192, 32768]), st.integers(1, 4))
def test_one_model_takes_what_llamacpp_takes_with_the_batch_of_ollama(name, spread, context, parallel):
    asked = request(BACKEND, name, spread)
    # What a model was not made for Ollama does not give it.
    context = min(context, asked.model.context_length)
    parallel = 1 if is_serial(asked.model) else parallel
    setting = first(asked, context, parallel)
    need, plain = BACKEND.demand(asked, setting), backend_llamacpp.BACKEND.demand(asked, setting)
    assert need.weights == plain.weights
    assert need.host == plain.host
    if batch_tokens(context, parallel) == 512:
        assert need == plain
    else:
        assert need.overhead > plain.overhead


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 23), st.sampled_from([1, 2]))
def test_what_is_not_its_share_stays_free(gibibytes, count):
    machine = TWO_3090 if count == 2 else MACHINES["rtx3090"]
    share = Share(gibibytes * GIB, 24576 * MIB, 0, False)
    asked = request(BACKEND, "qwen3-8b", count)
    launch = BACKEND.launch(asked, first(asked, 512, 1), situation(BACKEND, machine, share=share))
    assert int(launch.environment["OLLAMA_GPU_OVERHEAD"]) + share.bytes == share.unit_bytes
    assert ("OLLAMA_SCHED_SPREAD" in launch.environment) == (count == 2)


def test_vulkan_and_integrated_gpus_are_switched_on():
    apu = gpu_facts("vulkan", [device("AMD Radeon 780M", 8192, None, vendor="amd", integrated=True)])
    asked = request(BACKEND, "llama-3.2-1b-instruct", 1)
    environment = BACKEND.launch(asked, first(asked, 2048, 1), situation(BACKEND, apu)).environment
    assert environment["OLLAMA_VULKAN"] == environment["OLLAMA_IGPU_ENABLE"] == "1"


def test_several_models_stay_in_memory_and_ollama_has_the_room_to_load_each():
    here = situation(BACKEND, MACHINES["h100"])
    others = companions(["llama-3.2-3b-instruct", "gemma-3-4b-it"])
    asked = request(BACKEND, "qwen3-8b", 1, options={"models": others}, kv_cache_type="q8_0")
    setting = first(asked, 8192, 4)
    launch = BACKEND.launch(asked, setting, here)
    assert launch.environment["OLLAMA_MAX_LOADED_MODELS"] == "3"
    assert launch.environment["LLAMA_ARG_CACHE_RAM"] == "341"
    assert "3 models: all stay in memory" in launch.decisions
    sizes = [setting.artifact.size_bytes, *(item.artifact.size_bytes for item in others)]
    need = BACKEND.demand(asked, setting)
    assert need.weights == sum(sizes)
    # Ollama expects an f16 cache, and loads the last model only into 5/4 of what it expects.
    parts = [BACKEND.demand(replace(asked, options={"models": ()}), setting)]
    parts += [
        BACKEND.demand(
            request(BACKEND, item.model.name, 1, kv_cache_type="q8_0"), replace(setting, artifact=item.artifact)
        )
        for item in others
    ]
    f16 = 2 * 2 * 36 * 8 * 128 * 8192 * 4
    expected = setting.artifact.size_bytes + f16 + 768 * MIB
    assert need.total - sum(part.total for part in parts[1:]) >= expected * 5 // 4
    one = BACKEND.launch(replace(asked, options={"models": others, "max_loaded_models": 1}), setting, here)
    assert one.environment["OLLAMA_MAX_LOADED_MODELS"] == "1"
    assert one.environment["LLAMA_ARG_CACHE_RAM"] == "1024"
    assert one.memory_limit_bytes < launch.memory_limit_bytes
    assert "3 models: 1 at a time in memory, as wished" in one.decisions


def test_models_that_ollama_serves_one_request_at_a_time_get_one_slot():
    asked = request(BACKEND, "qwen3.5-9b", 1)
    assert {setting.parallel for setting in BACKEND.settings(asked)} == {1}
    launch = BACKEND.launch(asked, first(asked, 8192, 1), situation(BACKEND, MACHINES["rtx3090"]))
    assert "1 slot: Ollama serves this architecture one request at a time" in launch.decisions
    # Even with a setting of two slots.
    assert BACKEND.concurrency(asked, first(asked, 8192, 2), Share(0, 0, 0, True)) == Concurrency(1, None, 8192)
    with pytest.raises(PlanError, match=r"^gpu-01: parallel of service ollama is 2, .* set 1, or use llamacpp$"):
        BACKEND.launch(replace(asked, parallel=2), first(asked), situation(BACKEND, MACHINES["rtx3090"]))


def test_some_layers_on_the_gpu():
    asked = request(BACKEND, "qwen3-8b", 1, options={"gpu_layers": 18})
    environment = BACKEND.launch(asked, first(asked), situation(BACKEND, MACHINES["t4"])).environment
    assert environment["LLAMA_ARG_N_GPU_LAYERS"] == "18"
    assert environment["LLAMA_ARG_THREADS"] == "16"


def test_layers_of_a_further_model_stay_in_host_memory():
    """Qwen3 8B has 36 layers and goes to the GPU with all of them, the 64 of Qwen3 32B do not."""
    others = companions(["qwen3-32b"])
    asked = request(BACKEND, "qwen3-8b", 1, options={"gpu_layers": 40, "models": others})
    assert BACKEND.launch(asked, first(asked), situation(BACKEND, MACHINES["t4"])).environment.items() >= {
        ("LLAMA_ARG_N_GPU_LAYERS", "40"),
        ("LLAMA_ARG_THREADS", "16"),
    }
    outside = others[0].artifact.size_bytes * 24 // 64
    assert BACKEND.demand(asked, first(asked)).host > 2 * 2 * GIB + outside


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"OLLAMA_CONTEXT_LENGTH": "1"}, "which the plan sets; leave it out and set ollama_context_length"),
        ({"LLAMA_ARG_N_GPU_LAYERS": "3"}, "which the plan sets; leave it out and set ollama_gpu_layers"),
        ({"OLLAMA_KEEP_ALIVE": "5m"}, "which the plan sets; leave it out"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "which would undo the plan; leave it out: set ollama_gpus"),
        ({"LLAMA_ARG_N_CPU_MOE": "4"}, "which would undo the plan; leave it out: set ollama_gpu_layers"),
    ],
)
def test_variables_that_undo_the_plan_are_refused(extra, text):
    asked = request(BACKEND, "qwen3-8b", 1)
    with pytest.raises(PlanError, match=r"^gpu-01: ollama_env sets ") as error:
        BACKEND.launch(asked, first(asked), situation(BACKEND, MACHINES["rtx3090"], extra_environment=extra))
    assert text in str(error.value)


def test_other_variables_are_passed_on():
    asked = request(BACKEND, "qwen3-8b", 1)
    here = situation(BACKEND, MACHINES["rtx3090"], extra_environment={"OLLAMA_MAX_QUEUE": "64"})
    assert BACKEND.launch(asked, first(asked), here).environment["OLLAMA_MAX_QUEUE"] == "64"


def test_arguments_are_refused():
    asked = request(BACKEND, "qwen3-8b", 1)
    here = situation(BACKEND, MACHINES["rtx3090"], extra_arguments=("--verbose",))
    with pytest.raises(PlanError, match=r"^gpu-01: ollama_extra_args has --verbose, .*; leave it out"):
        BACKEND.launch(asked, first(asked), here)


def test_each_model_gets_the_context_and_the_slots_that_it_can_use():
    """SmolLM2 was trained for 8192 tokens, and Qwen3.5 is served one request at a time."""
    others = companions(["qwen3-8b", "qwen3.5-9b"])
    asked = request(BACKEND, "smollm2-135m-instruct", 1, options={"models": others})
    setting = list(BACKEND.settings(asked))[-1]
    assert (setting.context_length, setting.parallel) == (32768, 4)
    found = [(item.model.name, item.slots.context, item.slots.parallel) for item in runners(asked, setting)]
    assert found == [("smollm2-135m-instruct", 8192, 4), ("qwen3-8b", 32768, 4), ("qwen3.5-9b", 32768, 1)]
    launch = BACKEND.launch(replace(asked, parallel=4), setting, situation(BACKEND, MACHINES["h100"]))
    assert "qwen3.5-9b: Q4_K_M, 1 slot of 32768 tokens" in launch.decisions


def test_the_models_of_a_service_are_from_one_store():
    whole, tagged = model("qwen3-8b"), model("mixtral-8x7b-instruct-v0.1")
    file = replace(model("qwen3-4b"), ollama=None)

    def made_of(*models):
        found = together([(item, BACKEND.artifacts(item)) for item in models])
        return found and {type(item.source).__name__ for item in (*found[0], *(other.artifact for other in found[1]))}

    assert made_of(whole, tagged) == {"OllamaModel"}
    assert made_of(whole, file) == made_of(file, whole) == {"ModelFile"}
    assert made_of(tagged, file) is None
