# SPDX-License-Identifier: Apache-2.0
"""The memory of llama.cpp against what a real llama-server printed and took (build 11669, x86_64, two threads).

``benchmarks/memory`` measures again.
"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import memory_llamacpp as memory

MIB = 1024**2

SMOL = {
    "layers": 30,
    "hidden_size": 576,
    "feed_forward_size": 1536,
    "attention_heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "vocabulary_size": 49152,
    "merges": 48900,
    "weights": 98362432,
}
GEMMA = {
    "layers": 18,
    "hidden_size": 640,
    "feed_forward_size": 2048,
    "attention_heads": 4,
    "kv_heads": 1,
    "head_dim": 256,
    "vocabulary_size": 262144,
    "sliding_window": 512,
    "window_layers": 15,
    "merges": 0,
    "weights": 253113024,
}
MODELS: dict[str, dict[str, Any]] = {"smollm2-135m": SMOL, "gemma-3-270m": GEMMA}


def kv_cache(model: dict[str, Any], **setting: Any) -> int:
    keys = ("layers", "kv_heads", "head_dim", "sliding_window", "window_layers")
    return memory.kv_cache_bytes(**{key: model[key] for key in keys if key in model}, **setting)


def compute_buffer(model: dict[str, Any], **setting: Any) -> int:
    keys = ("hidden_size", "feed_forward_size", "attention_heads", "kv_heads", "head_dim", "vocabulary_size")
    more = ("experts_used", "sliding_window")
    return memory.compute_buffer_bytes(**{key: model[key] for key in (*keys, *more) if key in model}, **setting)


def needed(model: dict[str, Any], checkpoints: int, **setting: Any) -> int:
    parallel = setting["parallel"]
    size = memory.checkpoint_bytes(
        kv_heads=model["kv_heads"],
        head_dim=model["head_dim"],
        sliding_window=model.get("sliding_window"),
        window_layers=model.get("window_layers", 0),
        kv_type=setting.get("kv_type", "f16"),
    )
    return memory.host_bytes(
        weights=model["weights"],
        kv_cache=kv_cache(model, **setting),
        compute_buffer=compute_buffer(model, context=setting["context"], parallel=parallel),
        output_buffer=memory.output_buffer_bytes(vocabulary_size=model["vocabulary_size"], parallel=parallel),
        process=memory.process_bytes(
            vocabulary_size=model["vocabulary_size"],
            feed_forward_size=model["feed_forward_size"],
            head_dim=model["head_dim"],
            merges=model["merges"],
            threads=2,
        ),
        checkpoints=checkpoints * size,
    )


# model, context, slots, type of the cache → MiB of the KV buffers and of the compute buffer, as the server prints them
PRINTED: list[tuple[str, int, int, str, float, float]] = [
    ("smollm2-135m", 2048, 1, "f16", 45.00, 16.64),
    ("smollm2-135m", 2048, 4, "f16", 180.00, 16.64),
    ("smollm2-135m", 2048, 1, "q8_0", 23.91, 16.67),
    ("smollm2-135m", 2048, 4, "q8_0", 95.62, 16.67),
    ("smollm2-135m", 8192, 1, "f16", 180.00, 22.64),
    ("smollm2-135m", 8192, 4, "f16", 720.00, 22.64),
    ("smollm2-135m", 8192, 1, "q8_0", 95.62, 22.67),
    ("smollm2-135m", 32768, 1, "f16", 720.00, 46.64),
    ("smollm2-135m", 32768, 4, "f16", 2880.00, 46.64),
    ("gemma-3-270m", 2048, 1, "f16", 21.00, 21.28),
    ("gemma-3-270m", 2048, 4, "f16", 84.00, 21.28),
    ("gemma-3-270m", 2048, 1, "q8_0", 11.16, 21.81),
    ("gemma-3-270m", 2048, 4, "q8_0", 44.63, 21.81),
    ("gemma-3-270m", 8192, 1, "f16", 39.00, 27.28),
    ("gemma-3-270m", 8192, 4, "f16", 156.00, 27.28),
    ("gemma-3-270m", 8192, 1, "q8_0", 20.72, 27.81),
    ("gemma-3-270m", 32768, 1, "f16", 111.00, 51.28),
    ("gemma-3-270m", 32768, 4, "f16", 444.00, 51.28),
]


@pytest.mark.parametrize("row", PRINTED)
def test_the_buffers_are_what_the_server_prints(row: tuple[str, int, int, str, float, float]) -> None:
    model, context, parallel, kv_type, kv_mib, compute_mib = row
    cache = kv_cache(MODELS[model], context=context, parallel=parallel, kv_type=kv_type)
    assert cache / MIB == pytest.approx(kv_mib, abs=0.02)
    assert compute_buffer(MODELS[model], context=context, parallel=parallel) / MIB == pytest.approx(
        compute_mib, rel=0.03
    )


def test_a_smaller_batch_takes_less() -> None:
    assert compute_buffer(SMOL, context=2048, parallel=1, ubatch=256) / MIB == pytest.approx(8.32, rel=0.01)
    assert compute_buffer(GEMMA, context=2048, parallel=1, ubatch=256) / MIB == pytest.approx(10.51, rel=0.02)
    assert kv_cache(GEMMA, context=2048, parallel=1, ubatch=256) / MIB == pytest.approx(17.25)


def shape(*sizes: int, **more: int) -> dict[str, Any]:
    keys = ("hidden_size", "feed_forward_size", "attention_heads", "kv_heads", "head_dim", "vocabulary_size")
    return {**dict(zip(keys, sizes, strict=True)), **more}


LLAMA_8B = shape(4096, 14336, 32, 8, 128, 128256)
QWEN3_8B = shape(4096, 12288, 32, 8, 128, 151936)
GPT_OSS_20B = shape(2880, 2880, 64, 8, 64, 201088, experts_used=4, sliding_window=128)

# Files with the dimensions of these models, two or six layers and empty weights; 4096 tokens a slot.
SHAPES = {
    "llama-3.1-8b": (LLAMA_8B, True, 128.02),
    "llama-3.1-8b, no flash attention": (LLAMA_8B, False, 316.01),
    "qwen3-0.6b": (shape(1024, 3072, 16, 8, 128, 151936), True, 32.02),
    "qwen3-8b": (QWEN3_8B, True, 116.02),
    "qwen3-8b, no flash attention": (QWEN3_8B, False, 316.01),
    "qwen3-30b-a3b": (shape(2048, 768, 32, 4, 128, 151936, experts_used=8), True, 92.02),
    "gemma-3-12b": (shape(3840, 15360, 16, 8, 256, 262144, sliding_window=1024), True, 133.03),
    "gpt-oss-20b": (GPT_OSS_20B, True, 100.40),
    "gpt-oss-20b, no flash attention": (GPT_OSS_20B, False, 569.64),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("parallel", [1, 4])
def test_the_compute_buffer_of_large_models(name: str, parallel: int) -> None:
    model, flash_attention, printed_mib = SHAPES[name]
    size = compute_buffer(model, context=4096, parallel=parallel, flash_attention=flash_attention)
    assert size / MIB == pytest.approx(printed_mib, rel=0.01)


def test_many_slots_of_a_large_vocabulary_make_logits_the_peak() -> None:
    small, large = (compute_buffer(GEMMA, context=512, parallel=parallel) for parallel in (4, 64))
    assert large - small > 40 * GEMMA["vocabulary_size"] * 2


# model, context, slots, type of the cache, checkpoints by then → MiB of resident size less repacked weights.
# The first five read prompts that filled a slot (the last of them 20,000 tokens), the others 600 tokens a slot.
TAKEN: list[tuple[str, int, int, str, int, float]] = [
    ("smollm2-135m", 2048, 1, "f16", 0, 194.0),
    ("smollm2-135m", 8192, 1, "f16", 0, 336.0),
    ("gemma-3-270m", 2048, 4, "f16", 8, 496.3 - 12.7),
    ("gemma-3-270m", 8192, 1, "f16", 2, 399.2 - 12.7),
    ("gemma-3-270m", 32768, 1, "f16", 2, 486.5 - 12.7),
    ("smollm2-135m", 2048, 4, "f16", 0, 329.9),
    ("smollm2-135m", 2048, 1, "q8_0", 0, 170.9),
    ("smollm2-135m", 8192, 4, "f16", 0, 870.9),
    ("smollm2-135m", 32768, 1, "f16", 0, 867.8),
    ("smollm2-135m", 32768, 4, "f16", 0, 3036.0),
    ("gemma-3-270m", 2048, 1, "q8_0", 1, 353.8 - 12.7),
    ("gemma-3-270m", 32768, 4, "f16", 4, 833.9 - 12.7),
]


@pytest.mark.parametrize("row", TAKEN)
def test_the_estimate_is_within_a_tenth_of_what_the_server_takes(row: tuple[str, int, int, str, int, float]) -> None:
    model, context, parallel, kv_type, checkpoints, taken_mib = row
    estimate = needed(MODELS[model], checkpoints, context=context, parallel=parallel, kv_type=kv_type)
    assert estimate / MIB == pytest.approx(taken_mib, rel=0.1)


def test_a_tokenizer_of_unknown_kind_counts_as_one_with_merges() -> None:
    known, unknown = (
        memory.process_bytes(vocabulary_size=49152, feed_forward_size=1536, head_dim=64, merges=merges)
        for merges in (48900, None)
    )
    assert known <= unknown < known * 1.01


def test_a_checkpoint_is_the_window_of_a_slot() -> None:
    numbers = {"kv_heads": 1, "head_dim": 256, "sliding_window": 512, "window_layers": 15}
    assert memory.checkpoint_bytes(**numbers) / MIB == pytest.approx(7.506, rel=0.01)
    assert memory.checkpoint_bytes(kv_heads=3, head_dim=64, sliding_window=None, window_layers=0) == 0


def test_contexts_are_padded_and_a_window_is_never_larger_than_the_context() -> None:
    assert kv_cache(SMOL, context=1000, parallel=2) == kv_cache(SMOL, context=1024, parallel=2)
    assert memory.window_cells(512, 4096) == 512
    assert kv_cache(GEMMA, context=512, parallel=1) == kv_cache({**GEMMA, "window_layers": 0}, context=512, parallel=1)
