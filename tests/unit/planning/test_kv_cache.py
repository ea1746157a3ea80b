# SPDX-License-Identifier: Apache-2.0
"""What vLLM and SGLang keep of a token, and how models are spread over units."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import kv_cache, tensor_engines
from hypothesis import given
from hypothesis import strategies as st
from tensor_engine_cases import MODELS, model

KIB = 1024

# KiB a token at 16 bits when no window limits it, as the models' cards have it.
KIB_PER_TOKEN = {
    "gemma-3-12b-it": 384,
    "gemma-3-1b-it": 26,
    "gemma-3-27b-it": 496,
    "gemma-3-4b-it": 136,
    "gpt-oss-120b": 72,
    "gpt-oss-20b": 48,
    "llama-3.1-405b-instruct": 504,
    "llama-3.1-8b-instruct": 128,
    "llama-3.2-1b-instruct": 32,
    "llama-3.2-3b-instruct": 112,
    "llama-3.3-70b-instruct": 320,
    "mistral-7b-instruct-v0.3": 128,
    "mistral-nemo-instruct-2407": 160,
    "mistral-small-3.2-24b-instruct-2506": 160,
    "mixtral-8x7b-instruct-v0.1": 128,
    "phi-4": 200,
    "phi-4-mini-instruct": 128,
    "qwen2.5-coder-1.5b-instruct": 28,
    "qwen2.5-coder-14b-instruct": 192,
    "qwen2.5-coder-32b-instruct": 256,
    "qwen2.5-coder-7b-instruct": 56,
    "qwen3-0.6b": 112,
    "qwen3-1.7b": 112,
    "qwen3-14b": 160,
    "qwen3-235b-a22b-instruct-2507": 188,
    "qwen3-30b-a3b": 96,
    "qwen3-32b": 256,
    "qwen3-4b": 144,
    "qwen3-8b": 144,
}


def token_bytes(model_, kv_cache_type=None, tensor=1):
    """Bytes of one token in all layers that keep it."""
    kinds = kv_cache.layer_kinds(model_)
    return (kinds.full + kinds.window) * kv_cache.layer_token_bytes(model_, kv_cache_type, tensor)


@pytest.mark.parametrize(("name", "kib"), sorted(KIB_PER_TOKEN.items()))
def test_bytes_of_a_token(name, kib):
    assert token_bytes(model(name)) == kib * KIB
    assert token_bytes(model(name), "fp8") == kib * KIB // 2


def test_a_latent_vector_is_neither_doubled_nor_divided():
    deepseek = model("deepseek-v3.1")
    assert token_bytes(deepseek) == 61 * 576 * 2
    assert token_bytes(deepseek, tensor=8) == 61 * 576 * 2


def test_layers_with_a_state_keep_no_tokens():
    qwen = model("qwen3.5-27b")
    assert kv_cache.layer_kinds(qwen) == kv_cache.LayerKinds(16, 0, 48)
    assert token_bytes(qwen) == 16 * 2 * 4 * 256 * 2
    # 48 value heads of 128 with 128 numbers of 32 bits for each value, and the convolution's inputs.
    assert kv_cache.state_bytes(qwen) == 48 * 128 * (128 * 4 + 16)


def test_layers_with_a_window():
    assert kv_cache.layer_kinds(model("gemma-3-27b-it")) == kv_cache.LayerKinds(10, 52, 0)
    assert kv_cache.layer_kinds(model("gpt-oss-20b")) == kv_cache.LayerKinds(12, 12, 0)


def test_heads_are_divided_and_then_copied():
    qwen = model("qwen3-235b-a22b-instruct-2507")
    whole = token_bytes(qwen)
    assert [whole // token_bytes(qwen, tensor=tensor) for tensor in (1, 2, 4, 8)] == [1, 2, 4, 4]


@pytest.mark.parametrize(
    ("name", "units", "tensor", "pipeline"),
    [
        ("llama-3.1-8b-instruct", 1, 1, 1),
        ("llama-3.3-70b-instruct", 8, 8, 1),
        ("llama-3.3-70b-instruct", 16, 16, 1),
        ("llama-3.3-70b-instruct", 3, 1, 3),
        ("llama-3.3-70b-instruct", 6, 2, 3),
        # 40 heads and 10 KV heads: neither divides by 4 and 4 is no multiple of 10.
        ("phi-4", 4, 2, 2),
        ("phi-4", 8, 2, 4),
        # 28 heads do not divide by 8.
        ("qwen2.5-coder-7b-instruct", 8, 4, 2),
        ("smollm2-135m-instruct", 2, 1, 2),
        ("deepseek-v3.1", 8, 8, 1),
    ],
)
def test_split(name, units, tensor, pipeline):
    assert kv_cache.split(model(name), units) == kv_cache.Split(tensor, pipeline)


def test_unit_counts_are_powers_of_two_up_to_the_layers():
    assert kv_cache.unit_counts(model("llama-3.1-8b-instruct"), 7) == (1, 2, 4)
    assert kv_cache.unit_counts(model("llama-3.1-8b-instruct"), 8) == (1, 2, 4, 8)
    assert kv_cache.unit_counts(model("llama-3.1-8b-instruct"), 0) == ()
    flat = dataclasses.replace(model("smollm2-135m-instruct"), layers=3)
    assert kv_cache.unit_counts(flat, 8) == (1, 2)


@given(st.sampled_from(MODELS), st.integers(1, 64))
def test_a_split_uses_all_units_and_divides_the_heads(name, units):
    found, split = model(name), kv_cache.split(model(name), units)
    assert split.units == units
    assert found.attention_heads % split.tensor == 0
    heads = max(found.kv_heads, split.tensor), min(found.kv_heads, split.tensor)
    assert found.mla is not None or heads[0] % heads[1] == 0


@given(st.sampled_from(MODELS), st.sampled_from([1, 2, 4, 8, 16]))
def test_units_together_hold_at_least_the_weights(name, units):
    found, split = model(name), kv_cache.split(model(name), units)
    size = found.safetensors[0].size_bytes
    each = tensor_engines.weights_bytes(found, size, split)
    assert each * units >= size
    assert each <= size


def test_weights_of_copied_heads_and_of_stages():
    qwen, phi = model("qwen3-235b-a22b-instruct-2507"), model("phi-4")
    size = qwen.safetensors[0].size_bytes
    copied = 2 * 2 * 94 * 4096 * 128 * 4 // 8
    assert tensor_engines.weights_bytes(qwen, size, kv_cache.Split(8, 1)) == -(-size // 8) + copied
    embeddings, size = 2 * phi.vocabulary_size * phi.hidden_size, phi.safetensors[0].size_bytes
    half = embeddings + -(-(size - embeddings) * 20 // 40)
    assert tensor_engines.weights_bytes(phi, size, kv_cache.Split(2, 2)) == -(-half // 2)
