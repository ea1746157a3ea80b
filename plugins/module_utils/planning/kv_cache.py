# SPDX-License-Identifier: Apache-2.0
"""What vLLM and SGLang keep for the tokens of a request, and how a model is spread over units. All sizes are bytes.

The bytes of one token in one layer are those of ``memory_vllm``; SGLang computes the same numbers
(``DefaultPoolConfigurator._compute_cell_size``).
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.fleet.inference.plugins.module_utils.planning import memory_vllm
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Model

#: The engines' names of KV cache types, as ``memory_vllm`` names the type of a value. "auto" is the model's own type,
#: which has 16 bits.
_VALUE_TYPES = {"auto": "bfloat16", "bf16": "bfloat16"}

#: The state of a layer without a KV cache (gated delta rule): for each value of its heads 128 numbers of 32 bits, one
#: for each value of a key, and the inputs of a short convolution. The values of its heads are as many as those of the
#: attention heads in Qwen3.5 and Qwen3.6, which are all such models that the catalog knows.
STATE_BYTES_PER_VALUE = 128 * 4 + 16


@dataclass(frozen=True)
class Split:
    """How a model is spread: ``tensor`` units share every layer, ``pipeline`` groups of them share the layers."""

    tensor: int
    pipeline: int

    @property
    def units(self) -> int:
        """How many units that makes."""
        return self.tensor * self.pipeline


@dataclass(frozen=True)
class LayerKinds:
    """How many layers keep all tokens, how many only those of their window, and how many a state of fixed size."""

    full: int
    window: int
    state: int


def divides_heads(model: Model, tensor: int) -> bool:
    """Tell whether the heads of a model can be shared by so many units.

    Every unit has the same number of attention heads. KV heads are shared too, or each is copied to the same number
    of units (vLLM: ModelConfig.verify_with_parallel_config, get_num_kv_heads).
    """
    if model.attention_heads % tensor:
        return False
    return model.mla is not None or not model.kv_heads % tensor or not tensor % model.kv_heads


def split(model: Model, units: int) -> Split:
    """Return how a model is spread over units: tensor parallelism as far as its heads allow, the rest as a pipeline.

    No units, that is a CPU, count as one. Only powers of two are used for tensor parallelism: the vocabulary is padded
    to a multiple of 64 and must divide.
    """
    tensor, units = 1, max(1, units)
    while units % (2 * tensor) == 0 and divides_heads(model, 2 * tensor):
        tensor *= 2
    return Split(tensor, units // tensor)


def unit_counts(model: Model, most: int) -> tuple[int, ...]:
    """Return over how many units a model can be spread, ascending: the powers of two up to ``most``.

    Of 3, 5, 6 or 7 units fewer are used, unless that number is wished: a pipeline of unlike stages waits for the
    slowest one.
    """
    powers = (2**exponent for exponent in range(most.bit_length()))
    return tuple(count for count in powers if split(model, count).pipeline <= model.layers)


def layer_kinds(model: Model) -> LayerKinds:
    """Return how many layers of each kind a model has."""
    keeping = model.layers if model.attention_layers is None else model.attention_layers
    full = keeping if model.sliding_window is None else min(keeping, model.sliding_window.full_attention_layers)
    return LayerKinds(full, keeping - full, model.layers - keeping)


def latent_dim(model: Model) -> int | None:
    """Return the values of the one latent vector that stands for all heads of a layer, None without such vectors."""
    return None if model.mla is None else model.mla.kv_lora_rank + model.mla.rope_head_dim


def value_type(kv_cache_type: str | None) -> str:
    """Return ``memory_vllm``'s name of the type of a value for an engine's name of it; None is ``auto``."""
    name = kv_cache_type or "auto"
    return _VALUE_TYPES.get(name, name)


def layer_token_bytes(model: Model, kv_cache_type: str | None, tensor: int = 1) -> int:
    """Return one token's bytes in one layer on one unit: latent vectors are not divided, KV heads may be copied."""
    return memory_vllm.layer_token_bytes(
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        kv_dtype=value_type(kv_cache_type),
        tensor_parallel=tensor,
        latent_dim=latent_dim(model),
    )


def state_bytes(model: Model, tensor: int = 1) -> int:
    """Return the bytes of one request's state in one layer that keeps a state, on one unit."""
    return -(-model.attention_heads * model.head_dim * STATE_BYTES_PER_VALUE // tensor)


def stage_share(model: Model, value: int, pipeline: int) -> int:
    """Return the part of something all layers have that the longest stage of a pipeline takes."""
    return -(-value * -(-model.layers // pipeline) // model.layers)
