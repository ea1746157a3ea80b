# SPDX-License-Identifier: Apache-2.0
"""vLLM: what it takes, the ladder, and how it is started."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.backend_vllm import BACKEND
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import Concurrency, Share
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB, MIB
from tensor_engine_cases import MODELS, artifact, best, model, options, request, setting, situation, unit

#: vLLM's own limits on a small GPU, for which published examples hold.
OWN_LIMITS = {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
#: Arguments of vllm serve 0.33 that the plan uses, and whether a number follows.
KNOWN = {
    "--dtype": str,
    "--gpu-memory-utilization": float,
    "--kv-cache-dtype": str,
    "--kv-cache-memory-bytes": int,
    "--max-model-len": int,
    "--max-num-batched-tokens": int,
    "--max-num-seqs": int,
    "--pipeline-parallel-size": int,
    "--port": int,
    "--revision": str,
    "--served-model-name": str,
    "--shutdown-timeout": int,
    "--tensor-parallel-size": int,
}


def tokens_left(form: str, memory: int) -> int:
    """Return the tokens of full length that a GPU has room for beside the weights of Llama 3.1 8B."""
    wanted = request(BACKEND, "llama-3.1-8b-instruct", form, options=OWN_LIMITS)
    budget = unit(memory).budget
    return BACKEND.granted_kv_cache(wanted, setting(wanted, 32768), budget) // (128 * 1024)


def test_llama_8b_on_24_gib():
    assert tokens_left("bf16", 24 * GIB) == pytest.approx(41_000, rel=0.05)
    assert tokens_left("awq", 24 * GIB) == pytest.approx(119_000, rel=0.05)


def test_llama_8b_with_bf16_keeps_one_request_of_32768_tokens_on_24_gib():
    wanted = request(BACKEND, "llama-3.1-8b-instruct", "bf16")
    chosen = best(BACKEND, wanted, unit(24 * GIB).budget)
    assert (chosen.context_length, chosen.parallel) == (32768, 1)
    need = BACKEND.demand(wanted, chosen)
    assert need.weights == wanted.artifacts[0].size_bytes
    assert need.kv_cache == 4 * GIB


def test_a_t4_computes_in_float16():
    wanted = request(BACKEND, "qwen2.5-coder-7b-instruct", "awq")
    t4 = unit(15 * GIB, "7.5")
    chosen = best(BACKEND, wanted, t4.budget)
    assert (chosen.context_length, chosen.parallel) == (32768, 2)
    started = BACKEND.launch(wanted, chosen, situation(BACKEND, 15 * GIB, units=(t4,)))
    assert options(started.arguments)["--dtype"] == "float16"
    assert any("float16" in line for line in started.decisions)
    newer = BACKEND.launch(wanted, chosen, situation(BACKEND, 15 * GIB, units=(unit(15 * GIB, "8.0"),)))
    assert options(newer.arguments)["--dtype"] == "auto"
    amd = BACKEND.launch(wanted, chosen, situation(BACKEND, 15 * GIB, units=(unit(15 * GIB, "gfx942", "amd"),)))
    assert options(amd.arguments)["--dtype"] == "auto"


def test_llama_70b_on_eight_h100():
    wanted = request(BACKEND, "llama-3.3-70b-instruct", "bf16", units=8)
    chosen = best(BACKEND, wanted, unit(80 * GIB).budget)
    assert (chosen.context_length, chosen.parallel) == (32768, 32)
    need = BACKEND.demand(wanted, chosen)
    # 8 KV heads over 8 GPUs: one each, 40 KiB a token.
    assert need.kv_cache == 32 * 32768 * 40 * 1024
    assert need.weights == -(-wanted.artifacts[0].size_bytes // 8)
    started = BACKEND.launch(wanted, chosen, situation(BACKEND, 80 * GIB, count=8))
    assert options(started.arguments)["--tensor-parallel-size"] == "8"
    assert started.shared_memory_bytes == 9 * GIB


def test_latent_attention_is_not_divided():
    one, eight = (request(BACKEND, "deepseek-v3.1", "fp8", units=units) for units in (1, 8))
    assert BACKEND.demand(one, setting(one, 4096)).kv_cache == 4096 * 61 * 576 * 2
    assert BACKEND.demand(eight, setting(eight, 4096)).kv_cache == 4096 * 61 * 576 * 2


def test_sliding_windows_are_counted_in_blocks_of_groups():
    gemma = request(BACKEND, "gemma-3-27b-it", "bf16")
    # One group of 10 layers with full attention and six with windows; a layer's token has 8 KiB. A window holds 1023
    # tokens, two steps of 2048, and a block that begins anywhere.
    blocks = 32768 // 16 + 6 * (-(-(1023 + 2 * 2048) // 16) + 1)
    assert BACKEND.demand(gemma, setting(gemma, 32768)).kv_cache == blocks * 16 * 10 * 8192
    oss = request(BACKEND, "gpt-oss-20b")
    blocks = 32768 // 16 + -(-(127 + 2 * 2048) // 16) + 1
    assert BACKEND.demand(oss, setting(oss, 32768)).kv_cache == blocks * 16 * 12 * 2048


def test_every_stage_of_a_pipeline_has_a_step_in_flight():
    gemma = request(BACKEND, "gemma-3-1b-it", "bf16", units=3)
    # Groups of 4 layers, one with full attention and six with windows; a stage has 9 of 26 layers.
    blocks = 32768 // 16 + 6 * (-(-(511 + 4 * 2048) // 16) + 1)
    assert BACKEND.demand(gemma, setting(gemma, 32768)).kv_cache == -(-blocks * 16 * 4 * 1024 * 9 // 26)


@pytest.mark.parametrize(
    ("name", "units", "weights", "cache"),
    [
        ("gpt-oss-20b", 1, 13.47, 50.28),
        ("llama-3.1-8b-instruct", 1, 14.99, 51.38),
        ("llama-3.3-70b-instruct", 2, 33.88, 32.00),
        ("qwen3-0.6b", 1, 1.12, 64.45),
        ("qwen3-32b", 2, 30.59, 34.49),
    ],
)
def test_published_profiles_on_an_h100(name, units, weights, cache):
    # vLLM with 0.9 of 79.18 GiB and its own limits for such a GPU. What is left for the cache, context not counted.
    own = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192}
    wanted = request(BACKEND, name, units=units, options=own)
    overhead = BACKEND.demand(wanted, setting(wanted, 16000)).overhead - 512 * MIB
    left = 0.9 * 79.18 - weights - overhead / GIB
    assert 0.9 * cache < left < cache


def test_states_of_hybrid_models_count_for_every_request():
    qwen = request(BACKEND, "qwen3.5-27b", "bf16")
    state = 48 * 128 * (128 * 4 + 16)
    need = BACKEND.demand(qwen, setting(qwen, 1024))
    assert need.kv_cache == 1024 * 16 * 4096 + (2 * 48 * 4 + 16) * state
    assert BACKEND.limits(qwen, setting(qwen, 1024)).requests == 4


def test_whole_blocks():
    wanted = request(BACKEND, "llama-3.1-8b-instruct", "bf16")
    assert BACKEND.demand(wanted, setting(wanted, 1001)).kv_cache == 1008 * 128 * 1024


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
    rungs = list(BACKEND.settings(wanted))
    if context is not None:
        assert {item.context_length for item in rungs} == {context}
    if parallel is not None:
        assert {item.parallel for item in rungs} == {parallel}


@given(st.sampled_from(MODELS), st.integers(256, 30000), st.integers(1, 2000), st.integers(1, 16))
def test_demand_grows_with_context_requests_and_weights(name, context, longer, parallel):
    wanted = request(BACKEND, name)
    base = setting(wanted, context, parallel)
    need = BACKEND.demand(wanted, base).total
    assert BACKEND.demand(wanted, dataclasses.replace(base, context_length=context + longer)).total >= need
    assert BACKEND.demand(wanted, dataclasses.replace(base, parallel=parallel + 1)).total > need
    larger = artifact("larger", base.artifact.size_bytes + GIB, base.artifact)
    assert BACKEND.demand(wanted, dataclasses.replace(base, artifact=larger)).total == need + GIB


def test_of_one_size_only_the_best_form_is_used():
    wanted = request(BACKEND, "qwen2.5-coder-7b-instruct")
    assert {item.artifact.name for item in BACKEND.settings(wanted)} == {"bf16", "awq"}


@settings(max_examples=60, deadline=None)
@given(st.integers(8 * 1024, 288 * 1024), st.integers(0, 10**6), st.floats(0, 1), st.booleans())
def test_memory_arguments_stay_in_the_share(mib, odd, part, alone):
    wanted = request(BACKEND, "qwen3-0.6b")
    memory = mib * MIB + odd
    need = BACKEND.demand(wanted, setting(wanted, 512))
    budget = unit(memory).budget
    share = int(need.total + part * (budget - need.total))
    place = situation(BACKEND, memory, share=Share(share, memory, budget - share, alone))
    values = options(BACKEND.launch(wanted, setting(wanted, 512), place).arguments)
    requested = math.ceil(memory * float(values["--gpu-memory-utilization"]))
    # vLLM's own context is not part of what it asks for, and must be free beside it.
    context = 512 * MIB
    assert requested - 1 <= share
    assert requested - 1 <= memory - context
    if alone:
        assert requested >= need.total - context
        assert "--kv-cache-memory-bytes" not in values
    else:
        cache = int(values["--kv-cache-memory-bytes"])
        assert need.kv_cache <= cache == share - need.weights - need.overhead
        assert requested - 1 <= share - context


def test_alone_a_service_gets_the_whole_budget():
    wanted = request(BACKEND, "qwen3-0.6b")
    started = BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND, 24 * GIB))
    assert options(started.arguments)["--gpu-memory-utilization"] == "0.9199"
    small = BACKEND.launch(wanted, setting(wanted, 512), situation(BACKEND, 5 * GIB))
    # The driver's context does not leave 92 % of 5 GiB free.
    assert options(small.arguments)["--gpu-memory-utilization"] == "0.9"


def test_unified_memory_is_never_taken_whole():
    wanted = request(BACKEND, "qwen3-0.6b")
    place = situation(
        BACKEND, 120 * GIB, units=(unit(None, "12.1", unified=True),), share=Share(8 * GIB, 120 * GIB, 0, True)
    )
    values = options(BACKEND.launch(wanted, setting(wanted, 4096), place).arguments)
    assert float(values["--gpu-memory-utilization"]) < 8 / 120
    assert int(values["--kv-cache-memory-bytes"]) < 8 * GIB


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MODELS), st.sampled_from([0, 1, 2, 8]), st.booleans())
def test_every_argument_is_known(name, units, alone):
    wanted = request(BACKEND, name, units=units)
    chosen = next(iter(BACKEND.settings(wanted)))
    total = BACKEND.demand(wanted, chosen).total
    place = situation(BACKEND, 2 * total, units, share=Share(total, 2 * total, 0, alone))
    started = BACKEND.launch(wanted, chosen, place)
    first, *rest = started.arguments
    assert first == chosen.artifact.source.repository
    assert len(rest) % 2 == 0
    for flag, value in zip(rest[::2], rest[1::2], strict=True):
        KNOWN[flag](value)
    assert len(set(rest[::2])) == len(rest) // 2
    assert "VLLM_PORT" not in started.environment


def test_environment_and_timeouts():
    wanted = request(BACKEND, "llama-3.3-70b-instruct", "bf16", units=8)
    started = BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND, 80 * GIB, 8))
    env = started.environment
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"], env["DO_NOT_TRACK"]) == ("1", "1", "1")
    assert int(env["VLLM_ENGINE_READY_TIMEOUT_S"]) == started.readiness_timeout_seconds
    assert started.readiness_timeout_seconds == 600 + -(-wanted.artifacts[0].size_bytes // 100_000_000)
    assert list(env) == sorted(env)
    assert started.memory_limit_bytes == int(36 * 1024 * 1.1 + 1) * MIB + 9 * GIB


def test_on_a_cpu_the_cache_is_in_host_memory():
    wanted = request(BACKEND, "qwen3-0.6b", "bf16", units=0)
    chosen = best(BACKEND, wanted, 20 * GIB)
    assert (chosen.context_length, chosen.parallel) == (8192, 4)
    need = BACKEND.demand(wanted, chosen)
    # Blocks have 128 tokens on a CPU.
    odd = BACKEND.demand(wanted, setting(wanted, 1001))
    assert odd.kv_cache == 1024 * 112 * 1024
    started = BACKEND.launch(wanted, chosen, situation(BACKEND, 32 * GIB, 0, threads=6))
    values = options(started.arguments)
    assert values["--kv-cache-memory-bytes"] == str(4 * 8192 * 112 * 1024)
    assert "--gpu-memory-utilization" not in values
    assert (started.environment["OMP_NUM_THREADS"], started.environment["VLLM_CPU_OMP_THREADS_BIND"]) == ("6", "nobind")
    assert started.memory_limit_bytes > need.total + need.shared_memory


def test_concurrency_counts_blocks_and_is_limited():
    wanted = request(BACKEND, "llama-3.1-8b-instruct", "bf16")
    chosen = setting(wanted, 32768)
    assert BACKEND.held_requests(wanted, chosen, 4 * GIB, 32768) == 1
    assert BACKEND.held_requests(wanted, chosen, 4 * GIB, 4096) == 8
    assert BACKEND.held_requests(wanted, chosen, 4 * GIB, 10) == 64
    assert BACKEND.held_requests(wanted, chosen, 0, 4096) == 0
    assert BACKEND.held_tokens(wanted, chosen, 4 * GIB) == 32768


def test_concurrency_is_of_what_the_service_may_take():
    wanted = request(BACKEND, "llama-3.1-8b-instruct", "bf16")
    chosen = setting(wanted, 32768)
    need = BACKEND.demand(wanted, chosen)
    planned = Share(need.total, 80 * GIB, 0, False)
    assert BACKEND.concurrency(wanted, chosen, planned) == Concurrency(1, 8, 32768)
    # 32768 tokens are 4 GiB.
    more = dataclasses.replace(planned, bytes=need.total + 20 * GIB)
    assert BACKEND.concurrency(wanted, chosen, more) == Concurrency(6, 48, 6 * 32768)
    half = dataclasses.replace(wanted, options={"gpu_memory_utilization": (need.total + 4 * GIB) / (80 * GIB)})
    assert BACKEND.concurrency(half, chosen, more).requests == 2
    short = setting(wanted, 4096)
    assert BACKEND.concurrency(wanted, short, more).short_requests is None


def test_wishes_fix_limits_and_share():
    wanted = request(
        BACKEND,
        "qwen3-0.6b",
        options={"max_num_seqs": 8, "max_num_batched_tokens": 4096, "gpu_memory_utilization": 0.5},
    )
    values = options(BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND)).arguments)
    assert (values["--max-num-seqs"], values["--max-num-batched-tokens"]) == ("8", "4096")
    assert values["--gpu-memory-utilization"] == "0.5"
    assert BACKEND.allowed_bytes(wanted, 24 * GIB) == 12 * GIB


def test_a_wished_share_that_is_too_small_is_refused_with_one_that_is_not():
    low = request(BACKEND, "qwen3-8b", "bf16", options={"gpu_memory_utilization": 0.3})
    with pytest.raises(
        PlanError, match=r"^gpu-01: vllm_gpu_memory_utilization of service chat is 0\.3, which is 7\.2 GiB"
    ) as found:
        BACKEND.launch(low, setting(low, 4096), situation(BACKEND))
    least = float(str(found.value).rpartition(" ")[2])
    enough = dataclasses.replace(low, options={"gpu_memory_utilization": least})
    BACKEND.launch(enough, setting(enough, 4096), situation(BACKEND))


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("--max-num-seqs", "which the plan sets; leave it out and set vllm_max_num_seqs"),
        ("--max_model_len=4096", "which the plan sets; leave it out and set vllm_max_model_len"),
        ("--gpu-memory-util", "which the plan sets; leave it out and set vllm_gpu_memory_utilization"),
        ("-tp", "which the plan sets; leave it out and set vllm_gpus"),
        ("--port", "which the plan sets; leave it out"),
        ("--api-key=secret", "which would undo the plan; leave it out: the gateway holds the keys"),
        ("--data-parallel-size", "which would undo the plan; leave it out: every copy takes the memory"),
        ("--swap-space=4", "which vllm does not have any more; leave it out, the KV cache stays where the model is"),
        ("--device", "which vllm does not have any more; leave it out and set inference_tier"),
        ("--guided_decoding_backend", "which vllm does not have any more; use --structured-outputs-config"),
    ],
)
def test_extra_arguments_that_undo_the_plan_are_refused(argument, remedy):
    wanted = request(BACKEND, "qwen3-0.6b")
    place = situation(BACKEND, extra_arguments=("--seed", "1", argument))
    with pytest.raises(PlanError) as found:
        BACKEND.launch(wanted, setting(wanted, 4096), place)
    assert str(found.value).startswith("gpu-01: vllm_extra_args has ")
    assert remedy in str(found.value)
    assert "\n" not in str(found.value)


def test_a_secret_in_a_refused_argument_is_not_shown():
    wanted = request(BACKEND, "qwen3-0.6b")
    with pytest.raises(PlanError) as found:
        BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND, extra_arguments=("--api-key=secret",)))
    assert "secret" not in str(found.value)


def test_extra_arguments_must_be_arguments():
    wanted = request(BACKEND, "qwen3-0.6b")
    with pytest.raises(PlanError, match="begins with 'other/model'"):
        BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND, extra_arguments=("other/model",)))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("VLLM_PORT", "ports between its own processes"),
        ("VLLM_CPU_KVCACHE_SPACE", "set vllm_max_model_len or vllm_parallel"),
        ("CUDA_VISIBLE_DEVICES", "set vllm_gpus"),
        ("VLLM_CACHE_ROOT", "which the plan sets; leave it out"),
    ],
)
def test_extra_variables_that_undo_the_plan_are_refused(name, remedy):
    wanted = request(BACKEND, "qwen3-0.6b")
    with pytest.raises(PlanError, match=remedy):
        BACKEND.launch(wanted, setting(wanted, 4096), situation(BACKEND, extra_environment={name: "1"}))


def test_other_extras_are_passed_on():
    wanted = request(BACKEND, "qwen3-0.6b")
    extra = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--max-num-queued-reqs", "64")
    place = situation(BACKEND, extra_arguments=extra, extra_environment={"VLLM_LOGGING_LEVEL": "DEBUG"})
    started = BACKEND.launch(wanted, setting(wanted, 4096), place)
    assert started.arguments[-5:] == extra
    assert started.environment["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_decisions_say_what_is_copied_and_why_a_pipeline():
    qwen = request(BACKEND, "qwen3-235b-a22b-instruct-2507", "fp8", units=8)
    said = BACKEND.launch(qwen, setting(qwen, 4096), situation(BACKEND, 80 * GIB, 8)).decisions
    assert "8 units: tensor parallel 8; each of the 4 KV heads is copied to 2 units" in said
    phi = request(BACKEND, "phi-4", "bf16", units=4)
    said = BACKEND.launch(phi, setting(phi, 4096), situation(BACKEND, 24 * GIB, 4)).decisions
    assert any(
        "tensor parallel 2, pipeline parallel 2, because 40 attention heads and 10 KV heads" in line for line in said
    )


def test_every_catalogued_form_is_offered_in_order():
    assert [item.name for item in BACKEND.artifacts(model("llama-3.1-8b-instruct"))] == ["bf16", "fp8", "int8", "awq"]
    assert BACKEND.unit_counts(model("phi-4"), 8) == (1, 2, 4, 8)
