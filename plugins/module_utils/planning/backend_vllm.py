# SPDX-License-Identifier: Apache-2.0
"""vLLM: what a setting takes, and the arguments and environment that start it (0.33). All sizes are bytes.

Planning values, which no source states, are marked as such.
"""

from __future__ import annotations

from typing import Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.planning import kv_cache, memory_vllm, tensor_engines
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Model
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import (
    Artifact,
    Demand,
    Launch,
    Request,
    Setting,
    Share,
    Situation,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import GIB, MIB, size_text

#: What the user may wish: a share of a unit's memory, and the two limits.
SHARE_OPTION = "gpu_memory_utilization"
REQUESTS_OPTION = "max_num_seqs"
TOKENS_OPTION = "max_num_batched_tokens"

#: Bytes for each request and entry of the vocabulary while tokens are sampled. Fitted to seven published profiles on
#: an H100 with 1024 requests (4.8 to 7.4 GiB for vocabularies of 128256 to 201088): 39, whatever the model's size.
SAMPLING_BYTES = 40
#: Planning value: 16-bit activations for each token of a step, in multiples of the hidden size: those that every unit
#: has, and those that tensor parallelism divides.
WHOLE_ACTIVATIONS, SHARED_ACTIVATIONS = 4, 12
#: Planning value: CUDA graphs of one layer; the same profiles have 0 to 29 MiB.
GRAPH_LAYER = 8 * MIB
#: Planning value: NCCL and the buffers of custom all-reduce; two GPUs have 0.4 GiB more than one in the profiles.
COLLECTIVE_BASE, COLLECTIVE_PER_UNIT = 512 * MIB, 64 * MIB
#: Planning value: encoder of images, its cache and the largest image.
VISION = GIB
#: Planning values: host memory of API server and engine core, and of each GPU's worker (8 GiB with one GPU).
HOST_BASE, HOST_PER_UNIT = 4 * GIB, 4 * GIB
#: Host memory of all processes on a CPU: measured 2 GiB beside weights and KV cache (0.32: API server 0.6, engine core
#: 0.5, worker 0.9), and room for the compiler's own processes at the start (planning value).
CPU_PROGRAM = 5 * GIB // 2
#: Size of /dev/shm: queues between the processes and NCCL. vLLM's documentation gives a CPU 4 GiB.
SHARED_MEMORY_BASE, SHARED_MEMORY_PER_UNIT, SHARED_MEMORY_CPU = GIB, GIB, 4 * GIB
#: Digits of --gpu-memory-utilization; a last step is less than the driver's context on every GPU.
FRACTION_DIGITS = 4
#: Seconds that requests have to finish after SIGTERM; the container's stop timeout must be at least 30 more.
SHUTDOWN_SECONDS = 60
#: So large a cache that what one request takes of it can be computed from the tokens that it holds.
_ENDLESS = 2**100

_EXTRAS = tensor_engines.Extras(
    backend="vllm",
    settings={
        "--dtype": None,
        "--gpu-memory-utilization": SHARE_OPTION,
        "--kv-cache-dtype": "kv_cache_dtype",
        "--kv-cache-memory-bytes": "max_model_len",
        "--max-model-len": "max_model_len",
        "--max-num-batched-tokens": TOKENS_OPTION,
        "--max-num-seqs": REQUESTS_OPTION,
        "--model": "model",
        "--pipeline-parallel-size": "gpus",
        "--port": None,
        "--quantization": "quantization",
        "--revision": None,
        "--served-model-name": None,
        "--shutdown-timeout": None,
        "--tensor-parallel-size": "gpus",
        "-pp": "gpus",
        "-q": "quantization",
        "-tp": "gpus",
    },
    refused={
        "--api-key": "the gateway holds the keys",
        "--config": "a file could set everything that the plan sets",
        "--cpu-offload-gb": "the memory estimate has all weights on the GPU",
        "--data-parallel-size": "every copy takes the memory of a service; list several services",
        "--device-memory-utilization": f"set vllm_{SHARE_OPTION}",
        "--headless": "the gateway needs the API",
        "--host": "the API listens on all addresses of the container",
        "--kv-offloading-size": "the memory estimate does not have it",
        "--nnodes": "a service stays on one node",
        "--num-gpu-blocks-override": "set vllm_max_model_len",
        "--uds": "the gateway needs a port",
        "-dp": "every copy takes the memory of a service; list several services",
        "-n": "a service stays on one node",
    },
    variables={
        "VLLM_CPU_KVCACHE_SPACE": "set vllm_max_model_len or vllm_parallel",
        "VLLM_CPU_OMP_THREADS_BIND": "the node's cores are shared by its services",
        "VLLM_PORT": "vLLM takes it for ports between its own processes",
        "VLLM_USE_MODELSCOPE": "models come from inference_models",
    },
    removed={
        "--device": "leave it out and set inference_tier",
        "--enable-reasoning": "use --reasoning-parser alone",
        "--guided-decoding-backend": "use --structured-outputs-config",
        "--num-scheduler-steps": "leave it out",
        "--swap-space": "leave it out, the KV cache stays where the model is",
        "--use-v2-block-manager": "leave it out",
    },
)


class VllmBackend(tensor_engines.TensorEngine):
    """vLLM as the plan sees it; every function is pure."""

    name = "vllm"
    kv_cache_types: Tuple[str, ...] = ("auto", "bfloat16", "fp8")

    def artifacts(self, model: Model) -> tuple[Artifact, ...]:
        """Return the repositories of safetensors; GGUF needs a plugin that the images do not have."""
        return tensor_engines.artifacts(model)

    def limits(self, request: Request, setting: Setting) -> tensor_engines.Limits:
        """Return ``--max-num-seqs`` and ``--max-num-batched-tokens``."""
        return tensor_engines.limits(request, setting.parallel, REQUESTS_OPTION, TOKENS_OPTION)

    def allowed_bytes(self, request: Request, unit_bytes: int) -> Optional[int]:
        """Return what the user's ``gpu_memory_utilization`` allows of a unit, None when the plan decides."""
        wished = tensor_engines.wished_share(request, SHARE_OPTION)
        return None if wished is None else int(unit_bytes * wished)

    def demand(self, request: Request, setting: Setting) -> Demand:
        """Estimate what a setting takes of each unit, or of the host on a CPU."""
        model, units = request.model, kv_cache.split(request.model, request.units)
        limits = self.limits(request, setting)
        cache = self._request_bytes(request, setting, setting.context_length) * setting.parallel
        cache += self._states_bytes(request, setting)
        sampling = SAMPLING_BYTES * limits.requests * model.vocabulary_size
        activations = WHOLE_ACTIVATIONS + SHARED_ACTIVATIONS / units.tensor
        computing = sampling + int(2 * activations * limits.batch_tokens * model.hidden_size)
        if "vision" in model.capabilities:
            computing += VISION
        weights = tensor_engines.weights_bytes(model, setting.artifact.size_bytes, units)
        if not request.units:
            return Demand(weights, cache, CPU_PROGRAM + computing, shared_memory=SHARED_MEMORY_CPU)
        graphs = GRAPH_LAYER * -(-model.layers // units.pipeline)
        collectives = COLLECTIVE_BASE + COLLECTIVE_PER_UNIT * units.units if units.units > 1 else 0
        return Demand(
            weights,
            cache,
            tensor_engines.CONTEXT_BYTES + computing + graphs + collectives,
            HOST_BASE + HOST_PER_UNIT * units.units,
            SHARED_MEMORY_BASE + SHARED_MEMORY_PER_UNIT * units.units,
        )

    def held_tokens(self, request: Request, setting: Setting, kv_cache_bytes: int) -> int:
        """Return the tokens that vLLM prints as ``KV cache size``: requests of full length that fit, in tokens."""
        each = self._request_bytes(request, setting, setting.context_length)
        return self._room(request, setting, kv_cache_bytes) * setting.context_length // each

    def held_requests(self, request: Request, setting: Setting, kv_cache_bytes: int, length: int) -> int:
        """Return how many requests of a length a KV cache holds at the same time, at most ``--max-num-seqs``.

        Args:
            request: The service.
            setting: How it runs.
            kv_cache_bytes: The cache of one unit, see ``granted_kv_cache``.
            length: Tokens of a request, prompt and answer.
        """
        each = self._request_bytes(request, setting, min(length, setting.context_length))
        return min(self.limits(request, setting).requests, self._room(request, setting, kv_cache_bytes) // each)

    def granted(self, request: Request, setting: Setting, share: Share) -> int:
        """Return what the service may take of each unit: its share, or less where the user wishes so."""
        allowed = self.allowed_bytes(request, share.unit_bytes) if request.units else None
        return share.bytes if allowed is None else min(share.bytes, allowed)

    def launch(self, request: Request, setting: Setting, situation: Situation) -> Launch:
        """Return how vLLM is started.

        Raises:
            PlanError: The wished share is too small, or extra arguments would undo the plan.
        """
        need, limits = self.demand(request, setting), self.limits(request, setting)
        units = kv_cache.split(request.model, request.units)
        source = tensor_engines.weights_source(setting.artifact)
        timeout = tensor_engines.readiness_timeout_seconds(setting.artifact.size_bytes)
        arguments = [
            source.repository,
            *("--revision", source.revision),
            *("--served-model-name", situation.served_name),
            *("--port", str(situation.engine.container_port)),
            *("--dtype", tensor_engines.dtype(situation.units)),
            *("--max-model-len", str(setting.context_length)),
            *("--max-num-seqs", str(limits.requests)),
            *("--max-num-batched-tokens", str(limits.batch_tokens)),
            *("--kv-cache-dtype", request.kv_cache_type or self.kv_cache_types[0]),
            *("--shutdown-timeout", str(SHUTDOWN_SECONDS)),
        ]
        env = {
            **tensor_engines.environment(),
            "VLLM_CACHE_ROOT": f"{tensor_engines.CACHE_MOUNT}/vllm",
            "VLLM_CONFIG_ROOT": f"{tensor_engines.CACHE_MOUNT}/vllm/config",
            "VLLM_ENGINE_READY_TIMEOUT_S": str(timeout),
            "VLLM_NO_USAGE_STATS": "1",
        }
        said = tensor_engines.decisions(request, setting, situation, units)
        if request.units:
            memory, sentence = self._gpu_memory(request, setting, situation, need)
            arguments += ["--tensor-parallel-size", str(units.tensor), "--pipeline-parallel-size", str(units.pipeline)]
        else:
            # Bytes and not VLLM_CPU_KVCACHE_SPACE, which knows whole GiB only.
            memory = ["--kv-cache-memory-bytes", str(need.kv_cache)]
            sentence = f"KV cache {size_text(need.kv_cache)} of host memory: what the requests need"
            if situation.threads is not None:
                env["OMP_NUM_THREADS"] = str(situation.threads)
                # Bound threads of two services would take the same cores.
                env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        arguments += memory
        said.append(sentence)
        said += tensor_engines.limits_decisions(request, limits, REQUESTS_OPTION, TOKENS_OPTION)
        final, variables = tensor_engines.with_extras(situation, _EXTRAS, arguments, env)
        return Launch(
            arguments=final,
            environment=variables,
            shared_memory_bytes=need.shared_memory,
            memory_limit_bytes=tensor_engines.memory_limit(need, not request.units),
            readiness_timeout_seconds=timeout,
            decisions=tuple(said),
        )

    def _gpu_memory(
        self, request: Request, setting: Setting, situation: Situation, need: Demand
    ) -> tuple[list[str], str]:
        """Return the arguments for the memory of a GPU, and the sentence that says why.

        vLLM counts from when its context exists, and starts only when what it asks for is free (request_memory), with
        --kv-cache-memory-bytes too; then it does not look at what its neighbours do while it measures.
        """
        share = situation.share
        option = f"{self.name}_{SHARE_OPTION}"
        tensor_engines.check_share(request, situation.host, option=option, part=need.total, whole=share.unit_bytes)
        granted = self.granted(request, setting, share)
        context = tensor_engines.CONTEXT_BYTES
        if share.alone and not any(unit.unified for unit in situation.units):
            wanted = min(granted, share.unit_bytes - context)
            utilization = tensor_engines.fraction(wanted, share.unit_bytes, FRACTION_DIGITS)
            wished = granted == self.allowed_bytes(request, share.unit_bytes)
            reason = "wished" if wished else "the service is alone on its units"
            return (
                ["--gpu-memory-utilization", str(utilization)],
                f"gpu memory utilization {utilization}: {reason}; what the rest leaves is KV cache",
            )
        utilization = tensor_engines.fraction(granted - context, share.unit_bytes, FRACTION_DIGITS)
        cache = self.granted_kv_cache(request, setting, granted)
        return (
            ["--gpu-memory-utilization", str(utilization), "--kv-cache-memory-bytes", str(cache)],
            f"KV cache {size_text(cache)} of each unit: the rest of its share of {size_text(granted)}; gpu memory "
            f"utilization {utilization} is what must be free at the start",
        )

    def _room(self, request: Request, setting: Setting, kv_cache_bytes: int) -> int:
        """Return what of a KV cache is left for tokens."""
        return max(0, kv_cache_bytes - self._states_bytes(request, setting))

    def _request_bytes(self, request: Request, setting: Setting, length: int) -> int:
        """Return what a request of a length takes of the KV cache of one unit, in vLLM's blocks, without states."""
        model, units = request.model, kv_cache.split(request.model, request.units)
        kinds, where = kv_cache.layer_kinds(model), tensor_engines.place(request)
        tokens = memory_vllm.kv_cache_tokens(
            _ENDLESS,
            layers=kinds.full + kinds.window,
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            kv_dtype=kv_cache.value_type(request.kv_cache_type),
            max_model_len=length,
            block_size=memory_vllm.BLOCK_SIZE[where],
            tensor_parallel=units.tensor,
            latent_dim=kv_cache.latent_dim(model),
            sliding_window=None if model.sliding_window is None else model.sliding_window.window,
            window_layers=kinds.window,
            max_num_batched_tokens=self.limits(request, setting).batch_tokens,
            # Every stage of a pipeline has a batch of its own (VllmConfig.max_concurrent_batches).
            concurrent_batches=memory_vllm.CONCURRENT_BATCHES[where] + units.pipeline - 1,
        )
        return kv_cache.stage_share(model, _ENDLESS * length // tokens, units.pipeline)

    def _states_bytes(self, request: Request, setting: Setting) -> int:
        """Return what layers that keep a state take of the cache: two for each request, as prefix caching needs.

        A block of the other layers is made as large as a state, so each full-length request rounds up by one.
        """
        model, units = request.model, kv_cache.split(request.model, request.units)
        kinds = kv_cache.layer_kinds(model)
        if not kinds.state:
            return 0
        states = 2 * kinds.state * self.limits(request, setting).requests + kinds.full * setting.parallel
        return kv_cache.stage_share(model, states * kv_cache.state_bytes(model, units.tensor), units.pipeline)


BACKEND = VllmBackend()
