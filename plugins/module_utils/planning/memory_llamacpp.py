# SPDX-License-Identifier: Apache-2.0
"""What a llama.cpp server takes of memory, from the numbers of a model and of a setting. All sizes are bytes.

The formulas follow llama.cpp's own allocation; each names the function that it restates (build 11434, and the same
figures measured with build 11669). Only the sizes of the program itself are measured; ``benchmarks/memory`` measures
them, and all the rest, again.

Weights are mapped from their file: they are pages that the kernel can drop and read again, but a server without them
in memory reads its disk for each token. So they count in full, once. Where llama.cpp repacks weights for the
processor it reads them from the file and keeps a copy; the pages of the file are then not needed any more and do not
count again, although the process shows them until the kernel wants them back.
"""

from __future__ import annotations

MIB = 1024**2

#: Bytes of a block of 32 values in ggml: f16, and blocks with one f16 scale (q8_0, q4_0).
KV_BLOCK_BYTES = {"f16": 64, "q8_0": 34, "q4_0": 18}
KV_BLOCK_VALUES = 32

#: ``--batch-size`` and ``--ubatch-size`` when nothing else is set.
BATCH = 2048
UBATCH = 512
#: Contexts and KV caches are padded to this many tokens (llama_context, llama_kv_cache_iswa).
CELL_STEP = 256
#: Checkpoints that a slot keeps when ``--ctx-checkpoints`` is not set.
CHECKPOINTS = 32

#: Measured: pages of the program and its libraries; its heap and stacks before a model is loaded.
PROGRAM_FILES = 17 * MIB
PROGRAM_HEAP = 10 * MIB
#: Measured: heap for one token of the vocabulary and for one merge of a BPE tokenizer.
TOKEN_BYTES = 160
MERGE_BYTES = 144
#: Bytes of one value of the activations that a matrix product converts for quantized weights (q8_1: 36 for 32).
CONVERTED_VALUE_BYTES = 36 / 32
#: Queries and keys of a tile in ggml's flash attention on the CPU (GGML_FA_TILE_Q, GGML_FA_TILE_KV).
TILE = 64


def _padded(tokens: int) -> int:
    return -(-tokens // CELL_STEP) * CELL_STEP


def _ubatch(context: int, parallel: int, ubatch: int) -> int:
    """Tokens computed at once: never more than the context of all slots (llama_context::llama_context)."""
    return min(ubatch, BATCH, _padded(context) * parallel)


def window_cells(context: int, sliding_window: int, ubatch: int = UBATCH) -> int:
    """Return the KV cells of a slot in a layer with a sliding window (llama_kv_cache_iswa::llama_kv_cache_iswa).

    A whole physical batch is stored before the oldest tokens leave the window.
    """
    return _padded(min(_padded(context), sliding_window + ubatch))


def _layer_bytes(kv_heads: int, head_dim: int, kv_type: str) -> int:
    """Bytes of one token's key and value in one layer."""
    return 2 * (-(-kv_heads * head_dim // KV_BLOCK_VALUES)) * KV_BLOCK_BYTES[kv_type]


def kv_cache_bytes(
    *,
    layers: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    parallel: int,
    kv_type: str = "f16",
    sliding_window: int | None = None,
    window_layers: int = 0,
    ubatch: int = UBATCH,
) -> int:
    """Return the size of the KV cache, which is written to, and so resident, from the start.

    Args:
        layers: All layers of the model.
        kv_heads: Key and value heads of a layer.
        head_dim: Values of a head.
        context: Tokens of a slot.
        parallel: Slots.
        kv_type: ``--cache-type-k`` and ``--cache-type-v``.
        sliding_window: Tokens that a layer with a window looks back, or None when there is no such layer.
        window_layers: How many of the layers have that window.
        ubatch: ``--ubatch-size``.
    """
    token = _layer_bytes(kv_heads, head_dim, kv_type)
    if sliding_window is None:
        window_layers = 0
    cells = (layers - window_layers) * _padded(context)
    if sliding_window is not None:
        cells += window_layers * window_cells(context, sliding_window, _ubatch(context, parallel, ubatch))
    return token * cells * parallel


def checkpoint_bytes(
    *, kv_heads: int, head_dim: int, sliding_window: int | None, window_layers: int, kv_type: str = "f16"
) -> int:
    """Return the size of one context checkpoint of a slot; 0 for a model without sliding windows.

    Layers with a window forget, so llama-server keeps copies of them to go back to (server_context::create_checkpoint).
    Each turn of a conversation adds two, until a slot has ``--ctx-checkpoints`` of them. They live in host memory.
    """
    if sliding_window is None:
        return 0
    return _layer_bytes(kv_heads, head_dim, kv_type) * window_layers * sliding_window


def compute_buffer_bytes(
    *,
    hidden_size: int,
    feed_forward_size: int,
    attention_heads: int,
    kv_heads: int,
    head_dim: int,
    vocabulary_size: int,
    context: int,
    parallel: int,
    experts_used: int = 0,
    sliding_window: int | None = None,
    ubatch: int = UBATCH,
    flash_attention: bool = True,
) -> int:
    """Return the size of the compute buffer: the tensors of one physical batch that live at the same time.

    llama.cpp reserves it for the worst case (llama_context::sched_reserve) and lays tensors out first fit
    (ggml_gallocr). The peak is in the feed-forward part (llm_graph_context::build_ffn): gate, up and their product,
    beside five rows of the hidden size (residual, normed input and what the attention left between them). With
    experts (build_moe_ffn) every expert in use has its three, and its output needs a place of its own when it is
    larger than gate and up together.

    The attention mask covers the whole context for each token of the batch (build_attn_inp_kq_mask): f16 with flash
    attention, else f32. Without flash attention the scores of all heads are a tensor as well, and are the peak.
    Logits are made for one token a slot only (n_outputs_max), not for the batch.

    Args:
        hidden_size: Values of a token between layers.
        feed_forward_size: Values inside the feed-forward part; of one expert where there are experts.
        attention_heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer.
        head_dim: Values of a head.
        vocabulary_size: Tokens that the model knows.
        context: Tokens of a slot.
        parallel: Slots.
        experts_used: Experts that compute a token; 0 for a dense model.
        sliding_window: Tokens that a layer with a window looks back, or None.
        ubatch: ``--ubatch-size``.
        flash_attention: Whether flash attention is on, as it is by itself on a CPU.
    """
    tokens = _ubatch(context, parallel, ubatch)
    inner = feed_forward_size * max(1, experts_used)
    output = hidden_size * max(1, experts_used)
    feed_forward = 5 * hidden_size + 3 * inner + (output if output > 2 * inner else 0)
    query = attention_heads * head_dim
    attention = hidden_size + 5 * query + 2 * kv_heads * head_dim
    cells = _padded(context)
    mask_cells = cells
    if sliding_window is not None:
        mask_cells += window_cells(context, sliding_window, tokens)
    if flash_attention:
        mask_value = 2
    else:
        mask_value = 4
        attention += attention_heads * cells
    logits = parallel * (vocabulary_size + hidden_size)
    # Ids, positions and places in the cache of each token are 64 bytes at most.
    return max(4 * tokens * max(feed_forward, attention), 4 * logits) + tokens * (mask_value * mask_cells + 64)


def output_buffer_bytes(*, vocabulary_size: int, parallel: int) -> int:
    """Return the size of the buffer that logits are copied to: one token a slot (llama_context::output_reserve)."""
    return 4 * vocabulary_size * parallel


def process_bytes(
    *,
    vocabulary_size: int,
    feed_forward_size: int,
    head_dim: int,
    experts_used: int = 0,
    merges: int | None = None,
    threads: int = 1,
    ubatch: int = UBATCH,
) -> int:
    """Return what the process takes beside weights and buffers: program, tokenizer, and the threads' work buffers.

    The work buffer (ggml_graph_plan) holds the converted input of the widest matrix product, and for each thread the
    tiles of flash attention.

    Args:
        vocabulary_size: Tokens that the model knows.
        feed_forward_size: Values inside the feed-forward part; of one expert where there are experts.
        head_dim: Values of a head.
        experts_used: Experts that compute a token; 0 for a dense model.
        merges: Merges of a BPE tokenizer, 0 for other kinds; None counts as many as there are tokens.
        threads: ``--threads``.
        ubatch: ``--ubatch-size``.
    """
    merges = vocabulary_size if merges is None else merges
    tokenizer = TOKEN_BYTES * vocabulary_size + MERGE_BYTES * merges
    converted = int(ubatch * feed_forward_size * max(1, experts_used) * CONVERTED_VALUE_BYTES)
    tiles = 4 * threads * (4 * TILE * head_dim + 2 * TILE * TILE)
    return PROGRAM_FILES + PROGRAM_HEAP + tokenizer + converted + tiles


def host_bytes(
    *,
    weights: int,
    kv_cache: int,
    compute_buffer: int,
    output_buffer: int,
    process: int,
    checkpoints: int = 0,
    cache_ram: int = 0,
) -> int:
    """Return the memory that a server on the CPU needs in the end, when its slots and its prompt cache are full.

    Args:
        weights: Size of the model's file.
        kv_cache: From ``kv_cache_bytes``.
        compute_buffer: From ``compute_buffer_bytes``.
        output_buffer: From ``output_buffer_bytes``.
        process: From ``process_bytes``.
        checkpoints: Checkpoints of all slots: ``checkpoint_bytes`` x ``--ctx-checkpoints`` x slots.
        cache_ram: ``--cache-ram``, which llama-server keeps to (server_prompt_cache::alloc makes room first).
    """
    return weights + kv_cache + compute_buffer + output_buffer + process + checkpoints + cache_ram
