# SPDX-License-Identifier: Apache-2.0
"""SGLang: what it takes, the ladder, and how it is started."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.backend_sglang import BACKEND
from ansible_collections.fleet.inference.plugins.module_utils.planning.backend_vllm import BACKEND as VLLM
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import Concurrency, Share
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB, MIB
from tensor_engine_cases import MODELS, artifact, best, model, options, request, setting, situation, unit

COMMAND = ("python3", "-m", "sglang.launch_server")
#: Arguments of sglang.launch_server 0.5.23 that the plan uses and that have a value, and what kind.
KNOWN = {
    "--chunked-prefill-size": int,
    "--context-length": int,
    "--device": str,
    "--dtype": str,
    "--host": str,
    "--kv-cache-dtype": str,
    "--max-mamba-cache-size": int,
    "--max-running-requests": int,
    "--max-total-tokens": int,
    "--mem-fraction-static": float,
    "--model-path": str,
    "--port": int,
    "--pp-size": int,
    "--revision": str,
    "--served-model-name": str,
    "--swa-full-tokens-ratio": float,
    "--tp-size": int,
}
CONTEXT = 512 * MIB


def test_llama_8b_on_24_gib():
    wanted = request(BACKEND, "llama-3.1-8b-instruct", "bf16")
    need = BACKEND.demand(wanted, setting(wanted, 16384))
    assert need.kv_cache == 2 * GIB
    # Context, constant reserve, 1.5 MiB for each of 2048 tokens, an eighth of a GiB, graphs, rounding.
    assert need.overhead == (512 + 512 + 3072 + 128 + 2 * 64 + 512 + 4) * MIB
    assert best(BACKEND, wanted, unit(24 * GIB).budget).context_length == 16384
    small = request(BACKEND, "llama-3.1-8b-instruct", "awq")
    chosen = best(BACKEND, small, unit(24 * GIB).budget)
    assert (chosen.context_length, chosen.parallel) == (32768, 2)


def test_llama_70b_on_eight_h100():
    wanted = request(BACKEND, "llama-3.3-70b-instruct", "bf16", units=8)
    chosen = best(BACKEND, wanted, unit(80 * GIB).budget)
    assert (chosen.context_length, chosen.parallel) == (32768, 32)
    assert BACKEND.demand(wanted, chosen).kv_cache == 32 * 32768 * 40 * 1024
    assert options(BACKEND.launch(wanted, chosen, situation(BACKEND, 80 * GIB, 8)).arguments)["--tp-size"] == "8"


def test_latent_attention_is_not_divided_and_reserves_more_for_graphs():
    eight = request(BACKEND, "deepseek-v3.1", "fp8", units=8)
    need = BACKEND.demand(eight, setting(eight, 4096))
    assert need.kv_cache == 4096 * 61 * 576 * 2
    assert need.overhead == (512 + 512 + 3072 + 1024 + 2 * 64 + 1536 + 4) * MIB


def test_only_some_families_have_a_pool_for_windows():
    gemma = request(BACKEND, "gemma-3-27b-it", "bf16")
    assert BACKEND.demand(gemma, setting(gemma, 32768)).kv_cache == 32768 * 496 * 1024
    assert (
        "--swa-full-tokens-ratio"
        not in BACKEND.launch(gemma, setting(gemma, 512), situation(BACKEND, 80 * GIB)).arguments
    )
    oss = request(BACKEND, "gpt-oss-20b")
    # 128 + 256 tokens of one request and two steps of 2048, in thousandths of 32768.
    assert BACKEND.demand(oss, setting(oss, 32768)).kv_cache == -(-32768 * 24576 * 1137 // 1000)
    started = BACKEND.launch(oss, setting(oss, 32768), situation(BACKEND, 24 * GIB))
    assert options(started.arguments)["--swa-full-tokens-ratio"] == "0.137"


def test_a_short_context_still_has_room_for_the_window():
    oss = request(BACKEND, "gpt-oss-20b")
    started = BACKEND.launch(oss, setting(oss, 512), situation(BACKEND, 24 * GIB))
    assert options(started.arguments)["--swa-full-tokens-ratio"] == "1.0"
    assert BACKEND.demand(oss, setting(oss, 512)).kv_cache == (128 + 256 + 4096) * 48 * 1024


def test_states_are_counted_one_by_one():
    qwen = request(BACKEND, "qwen3.5-27b", "fp8")
    state = 48 * 128 * (128 * 4 + 16) * 48
    assert BACKEND.demand(qwen, setting(qwen, 1024)).kv_cache == 1024 * 16 * 4096 + 21 * state
    values = options(BACKEND.launch(qwen, setting(qwen, 1024), situation(BACKEND, 80 * GIB)).arguments)
    assert (values["--max-mamba-cache-size"], values["--max-running-requests"]) == ("20", "4")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.sampled_from([0, 1, 2, 4, 8]),
    st.sampled_from([None, 700, 4096, 40000]),
    st.sampled_from([None, 1, 5]),
    st.sampled_from(BACKEND.kv_cache_types),
)
def test_the_ladder_climbs(name, units, context, parallel, kv_cache_type):
    wanted = request(BACKEND, name, units=units, context_length=context, parallel=parallel, kv_cache_type=kv_cache_type)
    for before, after in itertools.pairwise(BACKEND.settings(wanted)):
        less, more = BACKEND.demand(wanted, before), BACKEND.demand(wanted, after)
        assert less.total <= more.total
        assert less.host <= more.host
        assert before.context_length <= after.context_length
        assert before.parallel <= after.parallel
        assert before.artifact.size_bytes <= after.artifact.size_bytes


@given(st.sampled_from(MODELS), st.integers(512, 30000), st.integers(1, 16))
def test_demand_grows_with_context_requests_and_weights(name, context, parallel):
    wanted = request(BACKEND, name)
    base = setting(wanted, context, parallel)
    need = BACKEND.demand(wanted, base).total
    assert BACKEND.demand(wanted, dataclasses.replace(base, context_length=context * 4 // 3)).total >= need
    assert BACKEND.demand(wanted, dataclasses.replace(base, parallel=2 * parallel)).total > need
    larger = artifact("larger", base.artifact.size_bytes + GIB, base.artifact)
    larger = dataclasses.replace(larger, source=base.artifact.source)
    assert BACKEND.demand(wanted, dataclasses.replace(base, artifact=larger)).total == need + GIB


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["qwen3-0.6b", "gpt-oss-20b", "qwen3.5-4b"]),
    st.integers(32 * 1024, 288 * 1024),
    st.integers(0, 10**6),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.booleans(),
)
def test_the_fraction_is_of_what_is_free_and_stays_in_the_share(name, mib, odd, parts, alone):
    part, before = parts
    wanted = request(BACKEND, name)
    chosen = setting(wanted, 1024)
    memory = mib * MIB + odd
    need, budget = BACKEND.demand(wanted, chosen), unit(memory).budget
    share = int(need.total + part * (budget - need.total))
    taken = 0 if alone else int(before * (budget - share))
    place = situation(BACKEND, memory, share=Share(share, memory, taken, alone))
    values = options(BACKEND.launch(wanted, chosen, place).arguments)
    static = float(values["--mem-fraction-static"]) * (memory - taken - CONTEXT)
    # Context, activations and graphs come beside it.
    assert need.weights + need.kv_cache - 1 <= static <= share - need.overhead + 4 * MIB + 1
    assert ("--max-total-tokens" in values) is not alone
    if not alone:
        assert int(values["--max-total-tokens"]) >= chosen.context_length


def test_a_fraction_of_what_a_neighbour_leaves():
    wanted = request(BACKEND, "qwen3-0.6b", "bf16")
    need = BACKEND.demand(wanted, setting(wanted, 4096))
    share = need.total + 2 * GIB
    place = situation(BACKEND, 24 * GIB, share=Share(share, 24 * GIB, 12 * GIB, False))
    started = BACKEND.launch(wanted, setting(wanted, 4096), place)
    free = 24 * GIB - 12 * GIB - CONTEXT
    expected = int((share - need.overhead + 4 * MIB) * 100_000 / free) / 100_000
    assert float(options(started.arguments)["--mem-fraction-static"]) == expected
    assert any("beside 12.0 GiB of other services" in line for line in started.decisions)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MODELS), st.sampled_from([0, 1, 2, 8]), st.booleans())
def test_every_argument_is_known(name, units, alone):
    wanted = request(BACKEND, name, units=units)
    chosen = next(iter(BACKEND.settings(wanted)))
    total = BACKEND.demand(wanted, chosen).total
    place = situation(BACKEND, 2 * total, units, share=Share(total, 2 * total, 0, alone))
    started = BACKEND.launch(wanted, chosen, place)
    assert started.arguments[:3] == COMMAND
    rest = [item for item in started.arguments[3:] if item != "--enable-metrics"]
    assert len(started.arguments) == len(rest) + 4
    for flag, value in zip(rest[::2], rest[1::2], strict=True):
        KNOWN[flag](value)
    assert len(set(rest[::2])) == len(rest) // 2
    assert options(started.arguments)["--host"] == "0.0.0.0"
    assert options(started.arguments)["--port"] == "30000"


def test_a_t4_computes_in_float16():
    wanted = request(BACKEND, "qwen2.5-coder-7b-instruct", "gptq")
    place = situation(BACKEND, 15 * GIB, units=(unit(15 * GIB, "7.5"),))
    assert options(BACKEND.launch(wanted, setting(wanted, 4096), place).arguments)["--dtype"] == "float16"


def test_environment_and_sizes():
    wanted = request(BACKEND, "llama-3.3-70b-instruct", "bf16", units=8)
    started = BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND, 80 * GIB, 8))
    assert started.environment["HF_HUB_OFFLINE"] == "1"
    assert started.environment["SGLANG_ENABLE_POST_CAPTURE_KV_SIZING"] == "0"
    assert list(started.environment) == sorted(started.environment)
    assert started.shared_memory_bytes == 34 * GIB
    assert started.memory_limit_bytes == int(36 * 1024 * 1.1 + 1) * MIB + 34 * GIB


def test_on_a_cpu_the_tokens_are_limited():
    wanted = request(BACKEND, "qwen3-0.6b", "bf16", units=0)
    chosen = best(BACKEND, wanted, 20 * GIB)
    started = BACKEND.launch(wanted, chosen, situation(BACKEND, 64 * GIB, 0, threads=6))
    values = options(started.arguments)
    assert (values["--device"], values["--max-total-tokens"]) == ("cpu", str(4 * 8192))
    # Room for what others take of the host meanwhile, which is measured as this server's own.
    assert float(values["--mem-fraction-static"]) * int(64 * GIB * 0.8) > 0.99 * BACKEND.demand(wanted, chosen).total
    assert float(values["--mem-fraction-static"]) <= 0.9
    assert started.environment["SGLANG_USE_CPU_ENGINE"] == "1"
    assert started.environment["OMP_NUM_THREADS"] == "6"


def test_unified_memory_is_the_host_s_and_its_tokens_are_limited():
    wanted = request(BACKEND, "qwen3-0.6b", "bf16")
    chosen = best(BACKEND, wanted, 20 * GIB)
    need = BACKEND.demand(wanted, chosen)
    place = situation(
        BACKEND, units=(unit(None, "12.1", unified=True),), share=Share(need.total, 120 * GIB, 30 * GIB, True)
    )
    values = options(BACKEND.launch(wanted, chosen, place).arguments)
    # What the plan gives to services, less what earlier ones hold and the context: never more than is free.
    free = int(120 * GIB * 0.8) - 30 * GIB - CONTEXT
    assert float(values["--mem-fraction-static"]) * free > 0.99 * need.total
    assert int(values["--max-total-tokens"]) >= chosen.parallel * chosen.context_length
    wish = dataclasses.replace(wanted, options={"mem_fraction_static": 0.01})
    with pytest.raises(PlanError, match=r"sglang_mem_fraction_static of service chat is 0\.01"):
        BACKEND.launch(wish, chosen, place)


def test_concurrency_is_limited_by_tokens_by_windows_and_by_requests():
    wanted = request(BACKEND, "llama-3.1-8b-instruct", "bf16")
    chosen = setting(wanted, 32768)
    assert BACKEND.held_requests(wanted, chosen, 4 * GIB, 32768) == 1
    assert BACKEND.held_requests(wanted, chosen, 4 * GIB, 4096) == 8
    assert BACKEND.held_requests(wanted, chosen, 4 * GIB, 10) == 64
    oss = request(BACKEND, "gpt-oss-20b")
    cache = BACKEND.demand(oss, setting(oss, 32768)).kv_cache
    assert BACKEND.held_requests(oss, setting(oss, 32768), cache, 32768) == 1
    # 4489 tokens of windows hold eleven requests of 384.
    assert BACKEND.held_requests(oss, setting(oss, 32768), cache, 400) == 11


def test_concurrency_is_of_what_the_service_may_take():
    wanted = request(BACKEND, "llama-3.1-8b-instruct", "bf16")
    chosen = setting(wanted, 32768)
    need = BACKEND.demand(wanted, chosen)
    planned = Share(need.total, 80 * GIB, 40 * GIB, False)
    assert BACKEND.concurrency(wanted, chosen, planned) == Concurrency(1, 8, 32768)
    more = dataclasses.replace(planned, bytes=need.total + 20 * GIB)
    assert BACKEND.concurrency(wanted, chosen, more) == Concurrency(6, 48, 6 * 32768)
    # A wish is a share of the 39.5 GiB that are free: 0.6 of them hold 15 GiB of weights and two requests.
    wish = dataclasses.replace(wanted, options={"mem_fraction_static": 0.6})
    assert BACKEND.concurrency(wish, chosen, more).requests == 2


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODELS), st.sampled_from(["sglang", "vllm"]), st.sampled_from([0, 1, 2]), st.integers(0, 9))
def test_concurrency_is_never_less_than_the_setting_has(name, backend, units, rung):
    engine = {"sglang": BACKEND, "vllm": VLLM}[backend]
    wanted = request(engine, name, units=units)
    chosen = list(engine.settings(wanted))[rung]
    need = engine.demand(wanted, chosen)
    found = engine.concurrency(wanted, chosen, Share(need.total, 2 * need.total, 0, False))
    assert found.requests >= chosen.parallel
    assert found.kv_cache_tokens >= chosen.parallel * chosen.context_length
    assert found.short_requests is None or found.short_requests >= found.requests


def test_a_wished_fraction_is_kept_or_refused():
    wanted = request(BACKEND, "qwen3-0.6b", "bf16", options={"mem_fraction_static": 0.5})
    values = options(BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND)).arguments)
    assert float(values["--mem-fraction-static"]) == pytest.approx(0.5, abs=1e-4)
    low = dataclasses.replace(wanted, options={"mem_fraction_static": 0.05})
    with pytest.raises(PlanError, match=r"^gpu-01: sglang_mem_fraction_static of service chat is 0\.05") as found:
        BACKEND.launch(low, setting(low, 4096), situation(BACKEND))
    least = float(str(found.value).rpartition(" ")[2])
    enough = dataclasses.replace(low, options={"mem_fraction_static": least})
    BACKEND.launch(enough, setting(enough, 4096), situation(BACKEND))


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("--mem-fraction-static=0.95", "leave it out and set sglang_mem_fraction_static"),
        ("--tp", "leave it out and set sglang_gpus"),
        ("--model", "leave it out and set sglang_model"),
        ("--host", "which the plan sets; leave it out"),
        ("--dp-size", "every copy takes the memory of a service"),
        ("--admin-api-key", "the gateway holds the keys"),
    ],
)
def test_extra_arguments_that_undo_the_plan_are_refused(argument, remedy):
    wanted = request(BACKEND, "qwen3-0.6b")
    with pytest.raises(PlanError) as found:
        BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND, extra_arguments=(argument, "1")))
    assert str(found.value).startswith("gpu-01: sglang_extra_args has ")
    assert remedy in str(found.value)


def test_extra_variables():
    wanted = request(BACKEND, "qwen3-0.6b")
    for name in ("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING", "NVIDIA_VISIBLE_DEVICES", "SGLANG_USE_MODELSCOPE"):
        with pytest.raises(PlanError, match=f"sglang_env sets {name}, which"):
            BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND, extra_environment={name: "1"}))
    place = situation(BACKEND, extra_arguments=("--tool-call-parser", "auto"), extra_environment={"NCCL_DEBUG": "INFO"})
    started = BACKEND.launch(wanted, setting(wanted, 4096), place)
    assert started.arguments[-2:] == ("--tool-call-parser", "auto")
    assert started.environment["NCCL_DEBUG"] == "INFO"


def test_forms_and_units():
    assert [item.name for item in BACKEND.artifacts(model("llama-3.1-8b-instruct"))] == ["bf16", "fp8", "int8", "awq"]
    assert BACKEND.unit_counts(model("llama-3.3-70b-instruct"), 7) == (1, 2, 4)
