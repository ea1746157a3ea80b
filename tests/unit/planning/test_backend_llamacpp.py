# SPDX-License-Identifier: Apache-2.0
"""The backend llama.cpp: the settings and the environment of a plan for one unit, and models over several units."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node, sizing
from ansible_collections.fleet.inference.plugins.module_utils.planning.backend_llamacpp import (
    BACKEND,
    PIPELINE_COPIES,
    checkpoints,
    feed_forward_size,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import SlidingWindow
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB, MACHINES, MIB, catalog, device, facts, gpu_facts
from planning_requests import chosen, first, model, models, request, situation, units

LOADABLE = [item.name for item in models(BACKEND)]
TWO_3090 = gpu_facts("cuda", [device("NVIDIA GeForce RTX 3090", 24576, "8.6", index=index) for index in range(2)])

requests = st.builds(
    lambda name, spread, context, parallel, kv_type: request(
        BACKEND, name, spread, context_length=context, parallel=parallel, kv_cache_type=kv_type
    ),
    st.sampled_from(LOADABLE),
    st.integers(0, 8),
    st.none() | st.integers(1, 32768),
    st.none() | st.integers(1, 8),
    st.sampled_from([None, "f16", "q8_0", "q4_0"]),
)

SAME_WISHES = [
    ("cpu", {"llamacpp_model": "smollm2-135m-instruct"}),
    ("cpu", {"llamacpp_model": "qwen3-8b", "llamacpp_ctx_size": 3000, "llamacpp_parallel": 2}),
    ("rtx3090", {"llamacpp_model": "qwen3-8b"}),
    ("rtx3090", {"llamacpp_model": "qwen3-32b", "llamacpp_gpu_layers": 40, "llamacpp_kv_cache_type": "q8_0"}),
    ("t4", {"llamacpp_model": "qwen3-8b"}),
    ("gb10", {"llamacpp_model": "qwen3-32b"}),
    ("rx7900", {"llamacpp_model": "qwen3-8b", "llamacpp_env": {"LLAMA_ARG_TIMEOUT": "900"}}),
    ("arc", {"llamacpp_model": "qwen3-8b"}),
]


@pytest.mark.parametrize(("machine", "wishes"), SAME_WISHES)
def test_a_plan_of_one_unit_starts_the_same_server(machine, wishes):
    planned = plan_node(MACHINES[machine], {"host": "gpu-01", **wishes}, catalog())["services"][0]
    asked = request(
        BACKEND,
        planned["model"],
        len(planned["devices"]),
        context_length=wishes.get("llamacpp_ctx_size"),
        parallel=wishes.get("llamacpp_parallel"),
        kv_cache_type=wishes.get("llamacpp_kv_cache_type"),
        options={"gpu_layers": wishes.get("llamacpp_gpu_layers")},
    )
    (artifact,) = (item for item in asked.artifacts if item.name == planned["model_file"]["quantization"])
    setting = first(asked, planned["context_length"], planned["parallel"], artifact)
    cache = int(planned["env"]["LLAMA_ARG_CACHE_RAM"]) * MIB
    launch = BACKEND.launch(
        asked,
        setting,
        situation(
            BACKEND,
            MACHINES[machine],
            served_name=planned["model"],
            prompt_cache_bytes=cache,
            extra_environment=wishes.get("llamacpp_env", {}),
        ),
    )
    assert launch.environment == planned["env"]
    assert launch.readiness_timeout_seconds == planned["readiness_timeout_seconds"]
    assert launch.arguments == ()
    assert launch.shared_memory_bytes == 0
    need, memory = BACKEND.demand(asked, setting), planned["memory"]
    assert (need.weights, need.kv_cache) == (memory["weights_bytes"], memory["kv_cache_bytes"])
    if memory["pool"] == "host":
        # A measured overhead is less than the one that was planned for before.
        assert need.total + need.host + cache < launch.memory_limit_bytes <= planned["memory_limit_bytes"]
    else:
        assert launch.memory_limit_bytes == planned["memory_limit_bytes"]
    assert setting in BACKEND.settings(asked)
    for decision in planned["decisions"]:
        if decision.startswith(("context", "prompt cache", "4 slots", "2 slots")):
            assert decision in launch.decisions


# machine, model; context a slot and slots: what the plan for one unit gives, but for the last line, where the overhead
# that is measured now leaves more room than the one that was planned for
CHOICES = [
    ("cpu", "smollm2-135m-instruct", 8192, 4),
    ("cpu", "qwen3-8b", 8192, 4),
    ("rtx3090", "qwen3-8b", 24576, 4),
    ("rtx3090", "qwen3-32b", 2048, 4),
    ("t4", "qwen3-8b", 12288, 4),
    ("h100", "qwen3-32b", 32768, 4),
    ("v100", "qwen3-32b", 8192, 4),
    ("gb10", "qwen3-32b", 32768, 4),
    ("mi300x", "qwen3-32b", 32768, 4),
    ("rx7900", "qwen3-8b", 24576, 4),
    ("arc", "qwen3-8b", 16384, 4),
    ("cpu", "qwen3-32b", 1536, 1),
]


@pytest.mark.parametrize(("machine", "name", "context", "slots"), CHOICES)
def test_choice(machine, name, context, slots):
    here = situation(BACKEND, MACHINES[machine])
    setting = chosen(BACKEND, request(BACKEND, name, len(here.units)), here.share.bytes)
    assert (setting.context_length, setting.parallel) == (context, slots)


# Context a slot, slots and type of the cache; MiB that llama-server took (benchmarks/memory, build 11669, on a CPU).
TAKEN = [
    (2048, 1, "f16", 194.0),
    (8192, 1, "f16", 336.0),
    (2048, 4, "f16", 329.9),
    (2048, 1, "q8_0", 170.9),
    (8192, 4, "f16", 870.9),
    (32768, 1, "f16", 867.8),
    (32768, 4, "f16", 3036.0),
]


@pytest.mark.parametrize(("context", "slots", "kv_type", "taken"), TAKEN)
def test_the_catalogs_numbers_give_what_a_server_takes(context, slots, kv_type, taken):
    """Within a tenth and 10 MiB of work buffers for more threads than were measured."""
    asked = request(BACKEND, "smollm2-135m-instruct", 0, kv_cache_type=kv_type)
    need = BACKEND.demand(asked, first(asked, context, slots))
    assert 0.9 * taken <= need.total / MIB <= 1.1 * taken + 10


def test_a_model_with_windows_takes_what_a_server_takes_and_its_checkpoints():
    """Gemma 3 270M in a file of 241 MiB, 8192 tokens on one slot: 386.5 MiB with 2 checkpoints of 7.5 MiB."""
    what = replace(model("gemma-3-270m-it"), gguf=(replace(model("qwen3-8b").gguf[0], size_bytes=253113024),))
    asked = Request("llamacpp", what, BACKEND.artifacts(what), 0)
    assert checkpoints(what, "f16") == 17
    settled = BACKEND.demand(asked, first(asked, 8192, 1)).total / MIB - (17 - 2) * 7.5
    # The catalog does not know that the tokenizer has no merges, which would take 36 MiB.
    assert 386.5 * 0.9 <= settled <= 386.5 * 1.1 + 36 + 10


@settings(max_examples=300, deadline=None)
@given(requests)
def test_every_rung_takes_at_least_as_much_as_the_one_before(asked):
    before = None
    for setting in BACKEND.settings(asked):
        need = BACKEND.demand(asked, setting)
        now = (need.weights, need.kv_cache, need.overhead, need.host)
        assert before is None or all(new >= old for new, old in zip(now, before, strict=True))
        assert 1 <= setting.context_length <= (asked.context_length or asked.model.context_length)
        before = now


@settings(max_examples=300, deadline=None)
@given(requests, st.sampled_from([512, 8192, 32768]), st.integers(1, 8))
def test_units_together_hold_the_whole_model(asked, context, parallel):
    setting = first(asked, context, parallel)
    whole = BACKEND.demand(replace(asked, units=1), setting)
    counts = BACKEND.unit_counts(asked.model, 16)
    assert counts == tuple(range(1, min(16, asked.model.layers) + 1))
    before = None
    for count in counts:
        need = BACKEND.demand(replace(asked, units=count), setting)
        assert count * need.weights >= whole.weights
        assert count * need.kv_cache >= whole.kv_cache
        assert need.overhead >= whole.overhead
        assert need.host == whole.host
        if before is not None:
            assert need.weights <= before.weights
            assert need.kv_cache <= before.kv_cache
            # Copies of a batch's inputs are the price of the second unit, once.
            assert need.total <= before.total or count == 2
        before = need


@settings(max_examples=200, deadline=None)
@given(requests, st.integers(0, 120))
def test_layers_that_are_not_on_a_gpu_are_in_host_memory(asked, layers):
    asked = replace(asked, units=max(1, asked.units), options={"gpu_layers": layers})
    full = BACKEND.demand(replace(asked, options={}), first(asked))
    need = BACKEND.demand(asked, first(asked))
    assert need.weights <= full.weights
    assert need.host >= full.host
    whole = BACKEND.demand(replace(asked, units=1, options={}), first(asked))
    held = asked.units * (need.weights + need.kv_cache) + need.host - full.host
    assert held >= whole.weights + whole.kv_cache
    if layers >= asked.model.layers:
        assert need == full


def test_two_gpus_share_a_model_that_one_does_not_hold():
    asked = request(BACKEND, "qwen3-32b", 2)
    budget = units(TWO_3090)[0].budget
    setting = chosen(BACKEND, asked, budget)
    assert (setting.context_length, setting.parallel) == (16384, 4)
    assert chosen(BACKEND, replace(asked, units=1), budget).context_length == 2048
    launch = BACKEND.launch(asked, setting, situation(BACKEND, TWO_3090, served_name="qwen3-32b"))
    assert launch.environment == {
        "LLAMA_ARG_ALIAS": "qwen3-32b",
        "LLAMA_ARG_CACHE_RAM": "1024",
        "LLAMA_ARG_CACHE_TYPE_K": "f16",
        "LLAMA_ARG_CACHE_TYPE_V": "f16",
        "LLAMA_ARG_CTX_SIZE": str(setting.context_length * 4),
        "LLAMA_ARG_DEVICE": "CUDA0,CUDA1",
        "LLAMA_ARG_ENDPOINT_METRICS": "1",
        "LLAMA_ARG_ENDPOINT_SLOTS": "0",
        "LLAMA_ARG_FIT": "off",
        "LLAMA_ARG_HOST": "0.0.0.0",
        "LLAMA_ARG_MODEL": f"/models/{setting.artifact.source.file}",
        "LLAMA_ARG_N_GPU_LAYERS": "all",
        "LLAMA_ARG_N_PARALLEL": "4",
        "LLAMA_ARG_PORT": "8080",
        "LLAMA_ARG_SPLIT_MODE": "layer",
        "LLAMA_ARG_TENSOR_SPLIT": "1,1",
        "LLAMA_ARG_UI": "0",
    }
    assert "64 layers over 2 GPUs: each gets the same number" in launch.decisions


def test_the_second_unit_costs_the_copies_of_a_batchs_inputs():
    asked = request(BACKEND, "qwen3-8b", 2)
    one = BACKEND.demand(replace(asked, units=1), first(asked, 4096))
    two = BACKEND.demand(asked, first(asked, 4096))
    assert two.overhead - one.overhead == (PIPELINE_COPIES - 1) * 512 * (2 * 4096 + 4 * 4096)


def test_layers_with_a_window_keep_only_the_window_and_a_batch():
    what = model("gemma-3-4b-it")
    assert what.sliding_window == SlidingWindow(1024, 5)
    asked = request(BACKEND, what.name, 1)
    token = 2 * what.kv_heads * what.head_dim * 2
    need = BACKEND.demand(asked, first(asked, 32768, 2))
    assert need.kv_cache == 2 * token * (5 * 32768 + (what.layers - 5) * 1536)
    # A slot's checkpoints are copies of the windows, in host memory.
    assert need.host == sizing.GPU_PROCESS + 2 * 2 * token * (what.layers - 5) * 1024
    launch = BACKEND.launch(asked, first(asked), situation(BACKEND, MACHINES["rtx3090"]))
    assert launch.environment["LLAMA_ARG_CTX_CHECKPOINTS"] == "2"


def test_latent_attention_keeps_one_row_a_token():
    what = replace(model("deepseek-v2-lite-chat"), gguf=model("qwen3-8b").gguf)
    asked = Request("llamacpp", what, BACKEND.artifacts(what), 1)
    assert BACKEND.demand(asked, first(asked, 1024, 1)).kv_cache == 27 * 576 * 2 * 1024


def test_recurrent_layers_keep_a_state_and_no_tokens():
    asked = request(BACKEND, "qwen3.5-4b", 1)
    short, long = (BACKEND.demand(asked, first(asked, context, 1)) for context in (1024, 2048))
    what = asked.model
    assert what.attention_layers == 8
    assert long.kv_cache - short.kv_cache == 2 * 8 * what.kv_heads * what.head_dim * 2 * 1024
    state = 2 * short.kv_cache - long.kv_cache
    assert state == (what.layers - 8) * 4 * 256 * what.hidden_size


@pytest.mark.parametrize(
    ("name", "width"),
    [("llama-3.1-8b-instruct", 14336), ("qwen3-8b", 12288), ("qwen3-32b", 25600), ("smollm2-135m-instruct", 1536)],
)
def test_the_feed_forward_width_follows_from_the_parameters(name, width):
    """Never too small: a model may have its vocabulary's matrix twice."""
    assert width <= feed_forward_size(model(name)) <= width * 1.12


def test_the_width_of_experts_is_that_of_one_token():
    assert 8 * 768 <= feed_forward_size(model("qwen3-30b-a3b")) <= 8 * 768 * 1.2


def test_models_that_forget_nothing_need_no_checkpoints():
    assert checkpoints(model("qwen3-8b"), "f16") is None
    assert checkpoints(model("gemma-3-27b-it"), "f16") == 2
    assert checkpoints(model("gpt-oss-20b"), "f16") == 32


def test_a_small_cpu_node():
    machine = facts(memory_total_bytes=8 * GIB)
    asked = request(BACKEND, "qwen3-4b", 0)
    setting = chosen(BACKEND, asked, int(8 * GIB * 0.8))
    assert setting.parallel == 4
    assert 4096 <= setting.context_length < 8192
    environment = BACKEND.launch(asked, setting, situation(BACKEND, machine)).environment
    assert environment["LLAMA_ARG_N_GPU_LAYERS"] == "0"
    assert environment["LLAMA_ARG_THREADS"] == "2"
    assert "LLAMA_ARG_SPLIT_MODE" not in environment


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"LLAMA_ARG_CTX_SIZE": "1"}, "which the plan sets; leave it out and set llamacpp_ctx_size"),
        ({"LLAMA_ARG_TENSOR_SPLIT": "3,1"}, "would undo the plan; leave it out: the plan gives every GPU the same"),
        ({"LLAMA_ARG_NO_KV_OFFLOAD": "1"}, "sets LLAMA_ARG_NO_KV_OFFLOAD, which would undo the plan"),
        ({"LLAMA_ARG_SWA_FULL": "1"}, "would undo the plan"),
        ({"LLAMA_ARG_UBATCH": "4096"}, "would undo the plan"),
    ],
)
def test_variables_that_undo_the_plan_are_refused(extra, text):
    asked = request(BACKEND, "qwen3-8b", 1)
    with pytest.raises(PlanError, match=r"^gpu-01: llamacpp_env sets ") as error:
        BACKEND.launch(asked, first(asked), situation(BACKEND, MACHINES["rtx3090"], extra_environment=extra))
    assert text in str(error.value)


@pytest.mark.parametrize(
    "argument",
    [
        "-c",
        "--ctx-size",
        "-hfrd",
        "--model",
        "-ngl",
        "--n-gpu-layers",
        "--no-kv-offload",
        "-ub",
        "--no-webui",
        "-np",
        "--tensor-split",
    ],
)
def test_arguments_that_undo_the_plan_are_refused(argument):
    asked = request(BACKEND, "qwen3-8b", 1)
    here = situation(BACKEND, MACHINES["rtx3090"], extra_arguments=(argument, "1"))
    with pytest.raises(PlanError, match=rf"^gpu-01: llamacpp_extra_args has {argument}, .*; leave it out$"):
        BACKEND.launch(asked, first(asked), here)


@pytest.mark.parametrize(
    ("argument", "newer"),
    [
        ("--mlock", "--load-mode mlock"),
        ("--no-mmap", "--load-mode"),
        ("-ndio", "--load-mode dio"),
        ("--draft-max", "--spec-draft-n-max"),
        ("--draft-min=1", "--spec-draft-n-min"),
    ],
)
def test_arguments_that_are_gone_are_refused_with_the_new_ones(argument, newer):
    """By the bash completion and the messages of b11669: such a server ends at its start."""
    asked = request(BACKEND, "qwen3-8b", 1)
    here = situation(BACKEND, MACHINES["rtx3090"], extra_arguments=(argument,))
    sentence = f"gpu-01: llamacpp_extra_args has {argument}, which llama.cpp does not have any more; use {newer}"
    with pytest.raises(PlanError) as error:
        BACKEND.launch(asked, first(asked), here)
    assert str(error.value) == sentence


@pytest.mark.parametrize("name", ["LLAMA_ARG_MLOCK", "LLAMA_ARG_NO_MMAP", "LLAMA_ARG_DRAFT_MAX"])
def test_variables_that_are_gone_are_refused(name):
    """They would have no effect, and nobody would be told."""
    asked = request(BACKEND, "qwen3-8b", 1)
    here = situation(BACKEND, MACHINES["rtx3090"], extra_environment={name: "1"})
    with pytest.raises(PlanError, match=rf"^gpu-01: llamacpp_env sets {name}, which llama.cpp does not have any"):
        BACKEND.launch(asked, first(asked), here)


@pytest.mark.parametrize(
    ("machine", "count", "devices"),
    [("rtx3090", 1, "CUDA0"), ("rx7900", 1, "ROCm0"), ("arc", 1, "Vulkan0"), ("cpu", 0, None)],
)
def test_a_server_on_gpus_names_them(machine, count, devices):
    asked = request(BACKEND, "qwen3-8b", count)
    launch = BACKEND.launch(asked, first(asked), situation(BACKEND, MACHINES[machine]))
    assert launch.environment.get("LLAMA_ARG_DEVICE") == devices


def test_other_arguments_are_passed_on():
    asked = request(BACKEND, "qwen3-8b", 1)
    here = situation(BACKEND, MACHINES["rtx3090"], extra_arguments=("--timeout", "900", "-n", "-1"))
    assert BACKEND.launch(asked, first(asked), here).arguments == ("--timeout", "900", "-n", "-1")
