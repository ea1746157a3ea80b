# SPDX-License-Identifier: Apache-2.0
"""SGLang: what a setting takes, and the arguments and environment that start it (0.5.23). All sizes are bytes.

The overhead is SGLang's own reserve (memory_hook.handle_gpu_memory_settings) without its minimum of 10 GiB on large
GPUs; planning values, which no source states, are marked as such.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.planning import kv_cache, tensor_engines
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Model
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import (
    HOST_SHARE,
    Artifact,
    Demand,
    Launch,
    Request,
    Setting,
    Share,
    Situation,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import GIB, MIB, size_text

#: What the user may wish: a share of the memory that is free at the start, and the two limits.
SHARE_OPTION = "mem_fraction_static"
REQUESTS_OPTION = "max_running_requests"
TOKENS_OPTION = "chunked_prefill_size"

#: SGLang's reserve: constant, for each token of a step (2048 at least), and for each unit of a split.
RESERVE_BASE, RESERVE_TOKEN, RESERVE_TOKENS, RESERVE_UNIT = 512 * MIB, 3 * MIB // 2, 2048, GIB // 8
#: SGLang's reserve for CUDA graphs: each request up to 512 that is decoded at once; prompts (8 MiB for each of up to
#: 58 sizes, or 1.5 GiB with latent attention).
GRAPH_REQUEST, GRAPH_REQUESTS, GRAPH_PREFILL, GRAPH_PREFILL_LATENT = 2 * MIB, 512, 512 * MIB, 3 * GIB // 2
#: Planning value: encoder of images; with it what SGLang takes off the KV cache for it (mm_runtime_reservation_gb).
VISION = 3 * GIB
#: Planning values: host memory of tokenizer, detokenizer and scheduler, and of each GPU's worker.
HOST_BASE, HOST_PER_UNIT = 4 * GIB, 4 * GIB
#: Planning value: all processes on a CPU.
CPU_PROGRAM = 4 * GIB
#: Planning values: size of /dev/shm, for queues and NCCL; the documentation gives 32 GiB to eight GPUs.
SHARED_MEMORY_BASE, SHARED_MEMORY_PER_UNIT, SHARED_MEMORY_CPU = 2 * GIB, 4 * GIB, 4 * GIB
#: Digits of --mem-fraction-static, and the room for what rounding down takes of the largest units.
FRACTION_DIGITS, ROUNDING = 5, 4 * MIB
#: Above this share of the host's free memory a CPU, or a GPU with unified memory, has no room to compute.
HOST_MOST_FRACTION = 0.9

#: States for each request of a model with such layers: three, and two while steps overlap and prefixes are kept
#: (KVCacheConfigurator._calculate_mamba_ratio).
STATES_PER_REQUEST = 5
#: Families for which SGLang gives layers with a window a pool of their own (is_hybrid_swa_model); the layers of other
#: models, Gemma 3 for one, keep all tokens.
WINDOW_POOL_FAMILIES = ("gemma-4", "gpt-oss", "llama-4")
#: Tokens that a request holds beyond its window (compute_swa_request_cap: 128 until it is trimmed, and pages).
WINDOW_SLACK = 256
#: A pool for windows must also do for short requests; this many tokens have all layers' keys within a window.
SHORT_REQUEST = 4096

_EXTRAS = tensor_engines.Extras(
    backend="sglang",
    settings={
        "--chunked-prefill-size": TOKENS_OPTION,
        "--context-length": "context_length",
        "--device": None,
        "--dtype": None,
        "--enable-metrics": None,
        "--host": None,
        "--kv-cache-dtype": "kv_cache_dtype",
        "--max-mamba-cache-size": REQUESTS_OPTION,
        "--max-running-requests": REQUESTS_OPTION,
        "--max-total-tokens": "context_length",
        "--mem-fraction-static": SHARE_OPTION,
        "--model-path": "model",
        "--pipeline-parallel-size": "gpus",
        "--port": None,
        "--pp-size": "gpus",
        "--quantization": "quantization",
        "--revision": None,
        "--served-model-name": None,
        "--swa-full-tokens-ratio": None,
        "--tensor-parallel-size": "gpus",
        "--tp-size": "gpus",
    },
    refused={
        "--admin-api-key": "the gateway holds the keys",
        "--api-key": "the gateway holds the keys",
        "--attn-dp-size": "every copy takes the memory of a service",
        "--base-gpu-id": "set sglang_gpus",
        "--config": "a file could set everything that the plan sets",
        "--cpu-offload-gb": "the memory estimate has all weights on the GPU",
        "--data-parallel-size": "every copy takes the memory of a service; list several services",
        "--dp-size": "every copy takes the memory of a service; list several services",
        "--enable-hierarchical-cache": "the memory estimate does not have it",
        "--enable-hicache": "the memory estimate does not have it",
        "--gpu-id-step": "set sglang_gpus",
        "--mamba-full-memory-ratio": f"set sglang_{REQUESTS_OPTION}",
        "--nnodes": "a service stays on one node",
    },
    variables={
        "SGLANG_CPU_OMP_THREADS_BIND": "the node's cores are shared by its services",
        "SGLANG_USE_MODELSCOPE": "models come from inference_models",
    },
)


class SglangBackend(tensor_engines.TensorEngine):
    """SGLang as the plan sees it; every function is pure."""

    name = "sglang"
    kv_cache_types: Tuple[str, ...] = ("auto", "bf16", "fp8_e4m3", "fp8_e5m2")

    def artifacts(self, model: Model) -> tuple[Artifact, ...]:
        """Return the repositories of safetensors; a GGUF file alone has no tokenizer that SGLang reads."""
        return tensor_engines.artifacts(model)

    def limits(self, request: Request, setting: Setting) -> tensor_engines.Limits:
        """Return ``--max-running-requests`` and ``--chunked-prefill-size``."""
        return tensor_engines.limits(request, setting.parallel, REQUESTS_OPTION, TOKENS_OPTION)

    def allowed_bytes(self, request: Request, setting: Setting, free: int) -> Optional[int]:
        """Return what the user's ``mem_fraction_static`` allows of a unit, None when the plan decides.

        It is a share of the memory that is free when SGLang starts, for weights and KV cache; the overhead is beside.
        """
        wished = tensor_engines.wished_share(request, SHARE_OPTION)
        beside = self.demand(request, setting).overhead - ROUNDING
        return None if wished is None else int((free - tensor_engines.CONTEXT_BYTES) * wished) + beside

    def demand(self, request: Request, setting: Setting) -> Demand:
        """Estimate what a setting takes of each unit, or of the host on a CPU."""
        model, units = request.model, kv_cache.split(request.model, request.units)
        limits = self.limits(request, setting)
        cache = self._tokens_bytes(request, setting, self._pool_tokens(request, setting))
        cache += self._states_bytes(request, setting)
        reserve = RESERVE_BASE + RESERVE_TOKEN * max(limits.batch_tokens, RESERVE_TOKENS)
        if "vision" in model.capabilities:
            reserve += VISION
        weights = tensor_engines.weights_bytes(model, setting.artifact.size_bytes, units)
        if not request.units:
            return Demand(weights, cache, CPU_PROGRAM + reserve, shared_memory=SHARED_MEMORY_CPU)
        graphs = GRAPH_REQUEST * min(limits.requests, GRAPH_REQUESTS)
        graphs += GRAPH_PREFILL if model.mla is None else GRAPH_PREFILL_LATENT
        return Demand(
            weights,
            cache,
            tensor_engines.CONTEXT_BYTES + reserve + RESERVE_UNIT * units.units + graphs + ROUNDING,
            HOST_BASE + HOST_PER_UNIT * units.units,
            SHARED_MEMORY_BASE + SHARED_MEMORY_PER_UNIT * units.units,
        )

    def held_requests(self, request: Request, setting: Setting, kv_cache_bytes: int, length: int) -> int:
        """Return how many requests of a length a KV cache holds at once, at most ``--max-running-requests``.

        Args:
            request: The service.
            setting: How it runs.
            kv_cache_bytes: The cache of one unit, see ``granted_kv_cache``.
            length: Tokens of a request, prompt and answer.
        """
        tokens = self.held_tokens(request, setting, kv_cache_bytes)
        held = tokens // min(length, setting.context_length)
        window = request.model.sliding_window
        if window is not None and self._has_window_pool(setting):
            each = min(length, window.window + WINDOW_SLACK)
            held = min(held, int(tokens * self._window_ratio(request, setting)) // each)
        return min(self.limits(request, setting).requests, held)

    def held_tokens(self, request: Request, setting: Setting, kv_cache_bytes: int) -> int:
        """Return how many tokens a KV cache of one unit holds (``--max-total-tokens``)."""
        room = max(0, kv_cache_bytes - self._states_bytes(request, setting))
        return int(room / self._cell_bytes(request, setting))

    def granted(self, request: Request, setting: Setting, share: Share) -> int:
        """Return what the service may take of each unit: its share, or less where the user wishes so."""
        free = share.unit_bytes - share.taken_before
        allowed = self.allowed_bytes(request, setting, free) if request.units else None
        return share.bytes if allowed is None else min(share.bytes, allowed)

    def launch(self, request: Request, setting: Setting, situation: Situation) -> Launch:
        """Return how SGLang is started; the image has no entry point of its own.

        Raises:
            PlanError: The wished share is too small, or extra arguments would undo the plan.
        """
        need, limits = self.demand(request, setting), self.limits(request, setting)
        units = kv_cache.split(request.model, request.units)
        source = tensor_engines.weights_source(setting.artifact)
        memory, sentence = self._memory(request, setting, situation, need)
        arguments = [
            *("python3", "-m", "sglang.launch_server"),
            *("--model-path", source.repository),
            *("--revision", source.revision),
            *("--served-model-name", situation.served_name),
            # Without this only the container itself reaches the API.
            *("--host", "0.0.0.0"),  # noqa: S104 - inside the container; the port is published on one address
            *("--port", str(situation.engine.container_port)),
            *("--dtype", tensor_engines.dtype(situation.units)),
            *("--context-length", str(setting.context_length)),
            *("--max-running-requests", str(limits.requests)),
            *("--chunked-prefill-size", str(limits.batch_tokens)),
            *("--kv-cache-dtype", request.kv_cache_type or self.kv_cache_types[0]),
            *("--tp-size", str(units.tensor)),
            *("--pp-size", str(units.pipeline)),
            *memory,
            "--enable-metrics",
        ]
        # With this on, graphs would be taken off the KV cache and not off what is left beside it.
        env = {**tensor_engines.environment(), "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING": "0"}
        if not request.units:
            arguments += ["--device", "cpu"]
            env["SGLANG_USE_CPU_ENGINE"] = "1"
            if situation.threads is not None:
                env["OMP_NUM_THREADS"] = str(situation.threads)
        said = tensor_engines.decisions(request, setting, situation, units)
        said.append(sentence)
        said += tensor_engines.limits_decisions(request, limits, REQUESTS_OPTION, TOKENS_OPTION)
        final, variables = tensor_engines.with_extras(situation, _EXTRAS, arguments, env)
        return Launch(
            arguments=final,
            environment=variables,
            shared_memory_bytes=need.shared_memory,
            memory_limit_bytes=tensor_engines.memory_limit(need, not request.units),
            readiness_timeout_seconds=tensor_engines.readiness_timeout_seconds(setting.artifact.size_bytes),
            decisions=tuple(said),
        )

    def _memory(self, request: Request, setting: Setting, situation: Situation, need: Demand) -> tuple[list[str], str]:
        """Return the arguments for memory, and the sentence that says why.

        Weights and KV cache get a share of what is free when the process begins (_profile_available_bytes); graphs and
        activations come out of the rest. Its own context is not free any more then.
        """
        share, cache, reason = situation.share, need.kv_cache, "weights and KV cache"
        on_host = not request.units or any(unit.unified for unit in situation.units)
        # The plan leaves a part of the host to the system; how much of it is free at the start nobody knows.
        free = (int(share.unit_bytes * HOST_SHARE) if on_host else share.unit_bytes) - share.taken_before
        if request.units:
            allowed = self.allowed_bytes(request, setting, free)
            free -= tensor_engines.CONTEXT_BYTES
            static = need.weights + need.kv_cache + ROUNDING
            option = f"{self.name}_{SHARE_OPTION}"
            tensor_engines.check_share(request, situation.host, option=option, part=static, whole=free)
            granted = self.granted(request, setting, share)
            cache = self.granted_kv_cache(request, setting, granted)
            reason = "wished" if granted == allowed else reason
        # What others take of the host while it loads is measured as its own; --max-total-tokens is the limit there.
        room = need.overhead if on_host and reason != "wished" else ROUNDING
        part = tensor_engines.fraction(need.weights + cache + room, max(1, free), FRACTION_DIGITS)
        if on_host:
            part = min(HOST_MOST_FRACTION, part)
        arguments = ["--mem-fraction-static", str(part)]
        if on_host or not share.alone:
            # Neighbours may hold less than planned at the start; the share of more is more.
            arguments += ["--max-total-tokens", str(self.held_tokens(request, setting, cache))]
        if kv_cache.layer_kinds(request.model).state:
            arguments += ["--max-mamba-cache-size", str(self._states(request, setting))]
        if self._has_window_pool(setting) and kv_cache.layer_kinds(request.model).full:
            arguments += ["--swa-full-tokens-ratio", str(float(self._window_ratio(request, setting)))]
        beside = f" beside {size_text(share.taken_before)} of other services" if share.taken_before else ""
        sentence = f"memory fraction {part}: {reason}, of the {size_text(free)} that are free at the start{beside}"
        return arguments, sentence

    def _has_window_pool(self, setting: Setting) -> bool:
        repository = tensor_engines.weights_source(setting.artifact).repository.lower()
        return any(family in repository for family in WINDOW_POOL_FAMILIES)

    def _window_tokens(self, request: Request, setting: Setting) -> int:
        """Return the tokens that layers with a window must hold: of every request, and of two steps in flight."""
        window = request.model.sliding_window
        if window is None or not self._has_window_pool(setting):
            return 0
        return setting.parallel * (window.window + WINDOW_SLACK) + 2 * self.limits(request, setting).batch_tokens

    def _pool_tokens(self, request: Request, setting: Setting) -> int:
        """Return the tokens of the KV cache: a pool for windows has at most as many as the other layers have."""
        return max(setting.context_length * setting.parallel, self._window_tokens(request, setting))

    def _window_ratio(self, request: Request, setting: Setting) -> Fraction:
        """Return the size of the pool for windows as a share of the other layers' tokens, in steps of a thousandth."""
        window = request.model.sliding_window
        if window is None:
            return Fraction(1)
        tokens = self._pool_tokens(request, setting)
        needed = max(
            Fraction(self._window_tokens(request, setting), tokens),
            Fraction(min(window.window, SHORT_REQUEST), SHORT_REQUEST),
        )
        return Fraction(-(-needed.numerator * 1000 // needed.denominator), 1000)

    def _cell_bytes(self, request: Request, setting: Setting) -> Fraction:
        """Return the bytes of a token of the pool on one unit (HybridSWAPoolConfigurator._recompute_cell_size)."""
        model, units = request.model, kv_cache.split(request.model, request.units)
        kinds = kv_cache.layer_kinds(model)
        layers = Fraction(kinds.full + kinds.window)
        if kinds.full and self._has_window_pool(setting):
            layers = kinds.full + kinds.window * self._window_ratio(request, setting)
        stage = Fraction(-(-model.layers // units.pipeline), model.layers)
        return layers * stage * kv_cache.layer_token_bytes(model, request.kv_cache_type, units.tensor)

    def _tokens_bytes(self, request: Request, setting: Setting, tokens: int) -> int:
        total = tokens * self._cell_bytes(request, setting)
        return -(-total.numerator // total.denominator)

    def _states(self, request: Request, setting: Setting) -> int:
        return STATES_PER_REQUEST * self.limits(request, setting).requests

    def _states_bytes(self, request: Request, setting: Setting) -> int:
        """Return what layers that keep a state take: one more than --max-mamba-cache-size (_handle_max_mamba_cache)."""
        model, units = request.model, kv_cache.split(request.model, request.units)
        kinds = kv_cache.layer_kinds(model)
        if not kinds.state:
            return 0
        states = (self._states(request, setting) + 1) * kinds.state * kv_cache.state_bytes(model, units.tensor)
        return kv_cache.stage_share(model, states, units.pipeline)


BACKEND = SglangBackend()
