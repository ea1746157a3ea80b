# SPDX-License-Identifier: Apache-2.0
"""How vLLM divides memory: the bytes left for its KV cache, and the tokens that it makes of them.

The formulas restate vLLM 0.32 (V1 engine); each names the function. All sizes are bytes of one device: with tensor
parallelism every device has its own cache, and all of them hold the same tokens.
"""

from __future__ import annotations

#: Bytes of one value of the KV cache by ``--kv-cache-dtype``; "auto" takes the model's own type.
KV_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
#: Tokens of a block: vLLM's own choice (CacheConfig.DEFAULT_BLOCK_SIZE, CpuPlatform.check_and_update_config).
BLOCK_SIZE = {"cpu": 128, "gpu": 16}
#: Batches in flight: 2 with asynchronous scheduling, as on a GPU; 1 on a CPU (VllmConfig.max_concurrent_batches).
CONCURRENT_BATCHES = {"cpu": 1, "gpu": 2}


def kv_heads_of_device(kv_heads: int, tensor_parallel: int) -> int:
    """Return the KV heads that one device holds (ModelConfig.get_num_kv_heads).

    Where there are more devices than heads, heads are copied: every device has at least one.
    """
    return max(1, kv_heads // tensor_parallel)


def layer_token_bytes(
    *, kv_heads: int, head_dim: int, kv_dtype: str, tensor_parallel: int = 1, latent_dim: int | None = None
) -> int:
    """Return the bytes of one token in one layer on one device (AttentionSpec.page_size_bytes / block size).

    Args:
        kv_heads: Key and value heads of a layer, before they are divided.
        head_dim: Values of a head.
        kv_dtype: A key of ``KV_VALUE_BYTES``.
        tensor_parallel: ``--tensor-parallel-size``.
        latent_dim: Values of the one latent vector of multi-head latent attention (rank and rotary part), or None.
            It stands for key and value of all heads and is not divided.
    """
    if latent_dim is not None:
        return latent_dim * KV_VALUE_BYTES[kv_dtype]
    return 2 * kv_heads_of_device(kv_heads, tensor_parallel) * head_dim * KV_VALUE_BYTES[kv_dtype]


def _groups(layers: int, window_layers: int) -> tuple[int, int, int]:
    """Layers of a group, groups with full attention, groups with a window (_get_kv_cache_groups_uniform_page_size).

    Groups share one pool of blocks, so all have the same number of layers; the last one may be padded.
    """
    full_layers = layers - window_layers
    if not full_layers or not window_layers:
        return layers, 1 if full_layers else 0, 1 if window_layers else 0
    few, many = sorted((full_layers, window_layers))
    size = many if many < few * 1.5 else few
    return size, -(-full_layers // size), -(-window_layers // size)


def kv_cache_tokens(
    kv_cache_bytes: int,
    *,
    layers: int,
    kv_heads: int,
    head_dim: int,
    kv_dtype: str,
    max_model_len: int,
    block_size: int,
    tensor_parallel: int = 1,
    latent_dim: int | None = None,
    sliding_window: int | None = None,
    window_layers: int = 0,
    max_num_batched_tokens: int = 0,
    concurrent_batches: int = 1,
) -> int:
    """Return the tokens of the line "KV cache size: N tokens" (get_kv_cache_capacity in kv_cache_utils).

    The cache is whole blocks. A request of the full length takes whole blocks of each group; vLLM divides the one by
    the other and multiplies by the length, so a length that is no multiple of the block prints fewer tokens than the
    blocks could hold. A layer with a window needs blocks for the window and for what is being computed, and one more,
    since a window begins anywhere in a block (SlidingWindowSpec.max_admission_blocks_per_request).

    Args:
        kv_cache_bytes: Memory for the cache on one device.
        layers: All layers that have a KV cache.
        kv_heads: Key and value heads of a layer, before they are divided.
        head_dim: Values of a head.
        kv_dtype: A key of ``KV_VALUE_BYTES``.
        max_model_len: ``--max-model-len``.
        block_size: ``--block-size``, see ``BLOCK_SIZE``.
        tensor_parallel: ``--tensor-parallel-size``.
        latent_dim: As for ``layer_token_bytes``.
        sliding_window: Tokens that a layer with a window looks back, or None.
        window_layers: How many of the layers have that window.
        max_num_batched_tokens: ``--max-num-batched-tokens``; matters for layers with a window only.
        concurrent_batches: See ``CONCURRENT_BATCHES``; matters for layers with a window only.
    """
    if sliding_window is None:
        window_layers = 0
    group_layers, full_groups, window_groups = _groups(layers, window_layers)
    token = layer_token_bytes(
        kv_heads=kv_heads,
        head_dim=head_dim,
        kv_dtype=kv_dtype,
        tensor_parallel=tensor_parallel,
        latent_dim=latent_dim,
    )
    blocks = kv_cache_bytes // (token * block_size * group_layers)
    request_blocks = full_groups * -(-max_model_len // block_size)
    if sliding_window is not None and window_groups:
        held = min(sliding_window - 1 + concurrent_batches * max_num_batched_tokens, max_model_len)
        request_blocks += window_groups * (-(-held // block_size) + 1)
    return blocks * max_model_len // request_blocks
