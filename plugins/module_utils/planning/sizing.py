# SPDX-License-Identifier: Apache-2.0
"""How much memory a llama.cpp service takes, and the largest setting that fits. All sizes are bytes.

Planning values, not measurements, are marked as such; the formulas are those of llama.cpp's own allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Model, ModelFile
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import GIB, MIB

#: Share of a GPU's memory that all services on it may take together; the rest is for the driver and fragmentation.
GPU_SHARE = 0.92
#: Share of a node's memory that all services may take together; the rest is for the system and the page cache.
HOST_SHARE = 0.8

#: Bytes for 32 values of the KV cache: f16, and ggml's blocks of 32 values with an f16 scale (q8_0, q4_0).
KV_BLOCK_BYTES = {"f16": 64, "q8_0": 34, "q4_0": 18}

#: llama.cpp's default physical batch (--ubatch-size): tokens computed at once.
UBATCH = 512
#: Planning value: float32 activations kept for one token of the batch, in multiples of the hidden size.
ACTIVATIONS_PER_HIDDEN = 16
#: Planning values: program, graph and allocator on the CPU; context and scratch of a GPU driver.
CPU_BASE = 128 * MIB
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


@dataclass(frozen=True)
class Setting:
    """One way to run a model: its file, the context of a slot in tokens, and the number of slots."""

    file: ModelFile
    context_length: int
    parallel: int


@dataclass(frozen=True)
class Demand:
    """Memory of a setting: what the pool holds (host or GPU), and what a GPU's process takes of the host beside it."""

    weights: int
    kv_cache: int
    overhead: int
    host: int

    @property
    def total(self) -> int:
        """Bytes taken from the pool."""
        return self.weights + self.kv_cache + self.overhead


@dataclass(frozen=True)
class Request:
    """What is to be sized. None leaves the choice open; ``gpu_layers`` is None on a CPU."""

    model: Model
    files: tuple[ModelFile, ...]
    context_length: int | None
    parallel: int | None
    kv_cache_type: str
    gpu_layers: int | None

    @property
    def on_gpu(self) -> bool:
        """Whether the service runs on a GPU."""
        return self.gpu_layers is not None

    @property
    def target_context(self) -> int:
        """The context a slot when memory does not limit it."""
        if self.context_length is not None:
            return self.context_length
        return min(self.model.context_length, CONTEXT_CAP["gpu" if self.on_gpu else "cpu"])


def kv_token_bytes(model: Model, kv_cache_type: str) -> int:
    """Bytes of KV cache for one token: a key and a value for each layer and KV head (llama.cpp, llama-kv-cache)."""
    values = 2 * model.layers * model.kv_heads * model.head_dim
    return -(-values * KV_BLOCK_BYTES[kv_cache_type] // 32)


def compute_bytes(model: Model) -> int:
    """Bytes of the compute buffer: float32 logits and activations of one physical batch (planning value)."""
    return UBATCH * (model.vocabulary_size + ACTIVATIONS_PER_HIDDEN * model.hidden_size) * 4


def demand(request: Request, setting: Setting) -> Demand:
    """Estimate the memory of a setting.

    weights = size of the file; KV cache = bytes a token x context x slots; overhead = a base + the compute buffer.
    Layers that stay in host memory take their share of weights and KV cache with them.
    """
    model = request.model
    context = -(-setting.context_length // CONTEXT_STEP) * CONTEXT_STEP
    kv_cache = kv_token_bytes(model, request.kv_cache_type) * context * setting.parallel
    size = setting.file.size_bytes
    if request.gpu_layers is None:
        return Demand(size, kv_cache, CPU_BASE + compute_bytes(model), 0)
    layers = min(request.gpu_layers, model.layers)
    gpu_weights = -(-size * layers // model.layers)
    gpu_kv_cache = -(-kv_cache * layers // model.layers)
    return Demand(
        gpu_weights,
        gpu_kv_cache,
        GPU_BASE + compute_bytes(model),
        GPU_PROCESS + size - gpu_weights + kv_cache - gpu_kv_cache,
    )


def settings(request: Request) -> Iterator[Setting]:
    """Yield the settings to choose from, smallest memory first; one rung means the same for every request.

    The smallest file first: more context on one slot up to a useful one, then more slots, then more context up to
    the target, and only then a better quantization. So more memory never gives a smaller context or fewer slots.
    """
    files = sorted(request.files, key=lambda item: (item.size_bytes, item.file))
    target = request.target_context
    useful = min(USEFUL_CONTEXT, target)

    def at(level: int) -> int:
        return target if request.context_length is not None else min(level, target)

    slots = request.parallel or 1
    for level in CONTEXT_LADDER:
        if level <= USEFUL_CONTEXT:
            yield Setting(files[0], at(level), slots)
    for wider in (2, DEFAULT_PARALLEL):
        slots = request.parallel or wider
        yield Setting(files[0], at(useful), slots)
    for level in CONTEXT_LADDER:
        if level > USEFUL_CONTEXT:
            yield Setting(files[0], at(level), slots)
    yield Setting(files[0], target, slots)
    for file in files[1:]:
        yield Setting(file, target, slots)


def smallest(request: Request) -> Setting:
    """Return the setting that takes the least memory."""
    return next(settings(request))


def best_file(request: Request, setting: Setting) -> bool:
    """Tell whether the setting uses the best of the files that were to choose from."""
    return setting.file == max(request.files, key=lambda item: (item.size_bytes, item.file))


def fill(requests: list[Request], fits: Callable[[list[Setting]], bool]) -> list[Setting]:
    """Choose the settings of services that share memory: all climb together, as far as all of them fit.

    Climbing together makes the choice fair, and no service loses when there is more memory.

    Args:
        requests: The services that share memory; their smallest settings are known to fit together.
        fits: Tells whether these settings, one a request, fit together.
    """
    ladders = [list(settings(request)) for request in requests]
    chosen = [ladder[0] for ladder in ladders]
    for level in range(1, max((len(ladder) for ladder in ladders), default=0)):
        candidate = [ladder[min(level, len(ladder) - 1)] for ladder in ladders]
        if not fits(candidate):
            break
        chosen = candidate
    return chosen


def cache_ram(available: int) -> int:
    """Return the size of the prompt cache in host memory for the bytes that are left, 0 when there is no room."""
    return next((step for step in CACHE_RAM_STEPS if step <= available), 0)


def memory_limit(host_bytes: int) -> int:
    """Return the container's memory limit for an estimate of its host memory, in whole MiB."""
    return -(-host_bytes * (100 + LIMIT_MARGIN_PERCENT) // (100 * MIB)) * MIB


def readiness_timeout_seconds(size_bytes: int) -> int:
    """Return the seconds until the service must answer: 120 and the file read at 100 MB/s (a slow disk)."""
    return 120 + -(-size_bytes // 100_000_000)
