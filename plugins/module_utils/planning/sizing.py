# SPDX-License-Identifier: Apache-2.0
"""Constants and steps that all backends are sized with. All sizes are bytes.

Planning values, not measurements, are marked as such.
"""

from __future__ import annotations

from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import GIB, MIB

#: Bytes for 32 values of the KV cache: f16, and ggml's blocks of 32 values with an f16 scale (q8_0, q4_0).
KV_BLOCK_BYTES = {"f16": 64, "q8_0": 34, "q4_0": 18}

#: llama.cpp's default physical batch (--ubatch-size): tokens computed at once.
UBATCH = 512
#: Planning value: context and scratch of a GPU driver.
GPU_BASE = 512 * MIB
#: Planning value: host memory of a process that works on a GPU (driver mappings, staging buffers, tokenizer).
GPU_PROCESS = 2 * GIB

#: llama.cpp allots the context of a slot in steps of 256 tokens.
CONTEXT_STEP = 256
#: Contexts a slot that the plan chooses from. Coarse, so that a small change of memory changes no service.
CONTEXT_LADDER = (
    512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768,
)  # fmt: skip
#: Below this context a chosen setting gives up slots before it gives up context.
USEFUL_CONTEXT = 2048
#: Largest context a slot that is chosen without being wished. On a CPU a longer prompt takes minutes to read.
CONTEXT_CAP = {"cpu": 8192, "gpu": 32768}
DEFAULT_PARALLEL = 4

#: Sizes of llama.cpp's prompt cache in host memory (--cache-ram); the largest is llama.cpp's own default.
CACHE_RAM_STEPS = tuple(step * MIB for step in (8192, 4096, 2048, 1024, 512, 256))

#: Room between the estimate and the container's memory limit, at which the kernel ends the process.
LIMIT_MARGIN_PERCENT = 10


def cache_ram(available: int) -> int:
    """Return the size of the prompt cache in host memory for the bytes that are left, 0 when there is no room."""
    return next((step for step in CACHE_RAM_STEPS if step <= available), 0)


def memory_limit(host_bytes: int) -> int:
    """Return the container's memory limit for an estimate of its host memory, in whole MiB."""
    return -(-host_bytes * (100 + LIMIT_MARGIN_PERCENT) // (100 * MIB)) * MIB


def readiness_timeout_seconds(size_bytes: int) -> int:
    """Return the seconds until the service must answer: 120 and the file read at 100 MB/s (a slow disk)."""
    return 120 + -(-size_bytes // 100_000_000)
