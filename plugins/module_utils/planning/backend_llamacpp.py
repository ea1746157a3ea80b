# SPDX-License-Identifier: Apache-2.0
"""The plan's backend llama.cpp: what a server takes over any number of units, and its environment. Sizes are bytes.

Several units share a model by layers (``--split-mode layer``): each holds some layers with their KV cache, and its own
compute buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.fleet.inference.plugins.module_utils.planning import llamacpp, memory_llamacpp, sizing
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Model, ModelFile
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import (
    Artifact,
    Concurrency,
    Demand,
    Launch,
    Request,
    Setting,
    Share,
    Situation,
    Unit,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import MIB, PlanError, size_text

#: llama.cpp's types of the KV cache (--cache-type-k, --cache-type-v) that the plan can size.
KV_CACHE_TYPES = tuple(sizing.KV_BLOCK_BYTES)
#: Devices that one llama.cpp process uses at most (GGML_CUDA_MAX_DEVICES, llama_max_devices).
MOST_UNITS = 16
#: Copies of a batch's inputs when several GPUs work on it one after the other (GGML_SCHED_MAX_COPIES).
PIPELINE_COPIES = 4

#: Planning value: quantizations keep the output matrix in more bits than the rest (Q6_K in a Q4_K_M file), as 3 : 2.
OUTPUT_PRECISION = (3, 2)
#: Planning value: threads whose work buffers are counted on a CPU; 64 take some 10 MiB.
THREADS = 64
#: Experts that compute a token, which the catalog does not know: 8 in most mixtures of experts, never more in it.
EXPERTS_USED = 8
#: Planning value: values of a recurrent layer's state for one of the hidden size, as with a state of 128 and an inner
#: size of twice the hidden one (Mamba 2, gated delta rule); they are float32 (llama_memory_recurrent).
STATE_VALUES = 2 * 128
#: Planning value: what the context checkpoints of a slot may take of host memory, and how few do not help any more:
#: each turn of a conversation adds two.
CHECKPOINTS_SHARE = 128 * MIB
FEWEST_CHECKPOINTS = 2

#: Variables beside those of ``llamacpp.with_extra`` that would undo the plan, and what to do in their place.
_UNDOING = {
    "LLAMA_ARG_CPU_MOE": "set llamacpp_gpu_layers, which the memory estimate knows",
    "LLAMA_ARG_CTX_CHECKPOINTS": "the plan sets it where a model needs checkpoints",
    "LLAMA_ARG_DEVICE": "set llamacpp_gpus",
    "LLAMA_ARG_FLASH_ATTN": "the memory estimate is made with flash attention",
    "LLAMA_ARG_KV_OFFLOAD": "the memory estimate keeps the KV cache beside its layers",
    "LLAMA_ARG_KV_UNIFIED_PER_SLOT": "every slot has its own context",
    "LLAMA_ARG_MAIN_GPU": "set llamacpp_gpus",
    "LLAMA_ARG_MODELS_PRESET": "list several services in inference_services",
    "LLAMA_ARG_N_CPU_FFN": "set llamacpp_gpu_layers, which the memory estimate knows",
    "LLAMA_ARG_N_CPU_MOE": "set llamacpp_gpu_layers, which the memory estimate knows",
    "LLAMA_ARG_OVERRIDE_TENSOR": "set llamacpp_gpu_layers, which the memory estimate knows",
    "LLAMA_ARG_RPC": "the plan uses the GPUs of one node",
    "LLAMA_ARG_SPEC_DRAFT_HF_REPO": "the memory estimate counts no draft model",
    "LLAMA_ARG_SPEC_DRAFT_MODEL": "the memory estimate counts no draft model",
    "LLAMA_ARG_SPLIT_MODE": "the plan splits a model by layers",
    "LLAMA_ARG_SWA_FULL": "the memory estimate is made for the small cache of layers with a sliding window",
    "LLAMA_ARG_TENSOR_SPLIT": "the plan gives every GPU the same share",
}

#: Settings that b11669 does not have any more, by their variables, and what to use in their place.
_REMOVED = {
    "LLAMA_ARG_DIO": "--load-mode dio",
    "LLAMA_ARG_DIRECT_IO": "--load-mode dio",
    "LLAMA_ARG_DRAFT": "--spec-draft-n-max",
    "LLAMA_ARG_DRAFT_MAX": "--spec-draft-n-max",
    "LLAMA_ARG_DRAFT_MIN": "--spec-draft-n-min",
    "LLAMA_ARG_DRAFT_N": "--spec-draft-n-max",
    "LLAMA_ARG_DRAFT_N_MIN": "--spec-draft-n-min",
    "LLAMA_ARG_MLOCK": "--load-mode mlock",
    "LLAMA_ARG_MMAP": "--load-mode",
}
#: What llama.cpp calls the GPUs of a tier, each name followed by a number from 0 (GGML_CUDA_NAME and GGML_VK_NAME).
_DEVICES = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}

#: Options that are not named as their variables are (``--ctx-size`` is LLAMA_ARG_CTX_SIZE), by ``--help`` of b11669.
_FLAGS = {
    "-a": "LLAMA_ARG_ALIAS",
    "-c": "LLAMA_ARG_CTX_SIZE",
    "-cmoe": "LLAMA_ARG_CPU_MOE",
    "-cram": "LLAMA_ARG_CACHE_RAM",
    "-ctk": "LLAMA_ARG_CACHE_TYPE_K",
    "-ctv": "LLAMA_ARG_CACHE_TYPE_V",
    "-ctxcp": "LLAMA_ARG_CTX_CHECKPOINTS",
    "-dev": "LLAMA_ARG_DEVICE",
    "-dio": "LLAMA_ARG_DIRECT_IO",
    "-dr": "LLAMA_ARG_DOCKER_REPO",
    "-fa": "LLAMA_ARG_FLASH_ATTN",
    "-fit": "LLAMA_ARG_FIT",
    "-hf": "LLAMA_ARG_HF_REPO",
    "-hfd": "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
    "-hff": "LLAMA_ARG_HF_FILE",
    "-hfr": "LLAMA_ARG_HF_REPO",
    "-hfrd": "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
    "-kvo": "LLAMA_ARG_KV_OFFLOAD",
    "-kvu": "LLAMA_ARG_KV_UNIFIED",
    "-m": "LLAMA_ARG_MODEL",
    "-md": "LLAMA_ARG_SPEC_DRAFT_MODEL",
    "-mg": "LLAMA_ARG_MAIN_GPU",
    "-mu": "LLAMA_ARG_MODEL_URL",
    "-ncffn": "LLAMA_ARG_N_CPU_FFN",
    "-ncmoe": "LLAMA_ARG_N_CPU_MOE",
    "-ndio": "LLAMA_ARG_DIRECT_IO",
    "-ngl": "LLAMA_ARG_N_GPU_LAYERS",
    "-nkvo": "LLAMA_ARG_KV_OFFLOAD",
    "-no-kvu": "LLAMA_ARG_KV_UNIFIED",
    "-np": "LLAMA_ARG_N_PARALLEL",
    "-ot": "LLAMA_ARG_OVERRIDE_TENSOR",
    "-sm": "LLAMA_ARG_SPLIT_MODE",
    "-t": "LLAMA_ARG_THREADS",
    "-ts": "LLAMA_ARG_TENSOR_SPLIT",
    "-ub": "LLAMA_ARG_UBATCH",
    "--gpu-layers": "LLAMA_ARG_N_GPU_LAYERS",
    "--hf-repo-draft": "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
    "--metrics": "LLAMA_ARG_ENDPOINT_METRICS",
    "--model-draft": "LLAMA_ARG_SPEC_DRAFT_MODEL",
    "--parallel": "LLAMA_ARG_N_PARALLEL",
    "--slots": "LLAMA_ARG_ENDPOINT_SLOTS",
    "--spec-draft-hf": "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
    "--swa-checkpoints": "LLAMA_ARG_CTX_CHECKPOINTS",
    "--ubatch-size": "LLAMA_ARG_UBATCH",
    "--webui": "LLAMA_ARG_UI",
}


@dataclass(frozen=True)
class Layout:
    """How a model lies on its units: ``units`` (0 on a CPU) and ``gpu_layers``, the layers that are not in the host."""

    units: int
    gpu_layers: int

    def partial(self, model: Model) -> bool:
        """Tell whether some layers stay in host memory and compute on its cores."""
        return self.gpu_layers < model.layers


@dataclass(frozen=True)
class Slots:
    """What a server holds for requests: slots of ``context`` tokens in a cache type, computed in physical batches."""

    context: int
    parallel: int
    kv_type: str
    ubatch: int = sizing.UBATCH


def layout(request: Request, model: Model | None = None) -> Layout:
    """Return how a request's model, or another model of its service, lies on the request's units."""
    layers = (model or request.model).layers
    wished = request.options.get("gpu_layers")
    if request.units == 0:
        return Layout(0, 0)
    return Layout(request.units, layers if wished in (None, "all") else min(int(wished), layers))


def feed_forward_size(model: Model) -> int:
    """Return the width of the feed-forward part that computes one token, in all experts together.

    The catalog does not have it, and the parameters follow from it: a layer has three matrices of hidden size x width
    beside its attention, and the model has the matrix of its vocabulary once at least.
    """
    computing = model.active_parameters or model.parameters
    attention = 2 * model.hidden_size * model.head_dim * (model.attention_heads + model.kv_heads)
    if model.mla is not None:
        rank = model.mla.kv_lora_rank + model.mla.rope_head_dim
        attention = model.hidden_size * (rank + model.attention_heads * model.head_dim)
    layer = (computing - model.vocabulary_size * model.hidden_size) // model.layers
    return max(model.hidden_size, (layer - attention) // (3 * model.hidden_size))


def kv_cache_bytes(model: Model, slots: Slots) -> int:
    """Return the size of a model's KV cache with the states of its recurrent layers.

    With latent attention a layer keeps one row a token for all heads and no values beside it (llama_kv_cache).
    """
    return _kv_part(model, slots, _layer_kinds(model))


def _layer_kinds(model: Model) -> tuple[int, int, int]:
    """Return how many layers keep every token, a window of tokens, and a state of fixed size."""
    attention = model.attention_layers or model.layers
    recurrent = model.layers - attention
    if model.sliding_window is None:
        return attention, 0, recurrent
    full = min(model.sliding_window.full_attention_layers, attention)
    return full, attention - full, recurrent


def _kv_part(model: Model, slots: Slots, kinds: tuple[int, int, int]) -> int:
    """Return the KV cache of some of a model's layers, so many of each kind."""
    full, windowed, recurrent = kinds
    heads, dim, rows = model.kv_heads, model.head_dim, 2
    if model.mla is not None:
        heads, dim, rows = 1, model.mla.kv_lora_rank + model.mla.rope_head_dim, 1
    both = memory_llamacpp.kv_cache_bytes(
        layers=full + windowed,
        kv_heads=heads,
        head_dim=dim,
        context=slots.context,
        parallel=slots.parallel,
        kv_type=slots.kv_type,
        sliding_window=model.sliding_window.window if model.sliding_window else None,
        window_layers=windowed,
        ubatch=slots.ubatch,
    )
    return both * rows // 2 + recurrent * slots.parallel * _state_bytes(model)


def _state_bytes(model: Model) -> int:
    return 4 * STATE_VALUES * model.hidden_size


def _checkpoint_bytes(model: Model, kv_type: str) -> int:
    """Return the size of one context checkpoint: the layers that forget, which is none in most models."""
    _full, windowed, recurrent = _layer_kinds(model)
    window = memory_llamacpp.checkpoint_bytes(
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        sliding_window=model.sliding_window.window if model.sliding_window else None,
        window_layers=windowed,
        kv_type=kv_type,
    )
    return window + recurrent * _state_bytes(model)


def checkpoints(model: Model, kv_type: str) -> int | None:
    """Return how many context checkpoints a slot keeps, None for a model that needs none.

    llama.cpp's 32 would be 13 GiB of host memory a slot for Gemma 3 27B.
    """
    size = _checkpoint_bytes(model, kv_type)
    if not size:
        return None
    return max(FEWEST_CHECKPOINTS, min(memory_llamacpp.CHECKPOINTS, CHECKPOINTS_SHARE // size))


def estimate(model: Model, size: int, slots: Slots, placed: Layout) -> Demand:
    """Estimate what one llama-server takes of each unit and of the host.

    Args:
        model: The model.
        size: Size of its file.
        slots: What it holds for requests.
        placed: How the model lies on its units.
    """
    kv_cache = kv_cache_bytes(model, slots)
    compute = _compute_bytes(model, slots)
    kept = (checkpoints(model, slots.kv_type) or 0) * slots.parallel * _checkpoint_bytes(model, slots.kv_type)
    if placed.units == 0:
        return Demand(size, kv_cache, compute + _process_bytes(model, slots) + kept)
    on_unit = _unit_layers(model, placed)
    weights = _unit_weights(model, size, placed, on_unit)
    if placed.units == 1:
        unit_kv_cache = -(-kv_cache * on_unit // model.layers)
    else:
        unit_kv_cache = _unit_kv_cache(model, slots, on_unit)
        compute += (PIPELINE_COPIES - 1) * _input_bytes(model, slots)
    outside = model.layers - placed.gpu_layers
    in_host = -(-size * outside // model.layers) + -(-kv_cache * outside // model.layers)
    return Demand(weights, unit_kv_cache, sizing.GPU_BASE + compute, sizing.GPU_PROCESS + in_host + kept)


def _unit_layers(model: Model, placed: Layout) -> int:
    """Return the most layers that a unit gets of an equal split.

    The output matrix counts as a layer behind the last one when all layers are on GPUs (llama_model::load_tensors).
    """
    output = 0 if placed.partial(model) else 1
    return min(model.layers, -(-(placed.gpu_layers + output) // placed.units))


def _unit_weights(model: Model, size: int, placed: Layout, on_unit: int) -> int:
    """Return the weights of the fullest unit: the most layers, or one fewer and the output matrix."""
    even = -(-size * on_unit // model.layers)
    if placed.units == 1 or placed.partial(model):
        return even
    more, less = OUTPUT_PRECISION
    output = min(size, size * model.vocabulary_size * model.hidden_size * more // (model.parameters * less))
    return min(size, max(even, output + -(-(size - output) * (on_unit - 1) // model.layers)))


def _unit_kv_cache(model: Model, slots: Slots, on_unit: int) -> int:
    """Return the KV cache of the fullest unit: where kinds of layers alternate it may have one more of each."""

    def here(kind: int) -> int:
        uneven = 0 if kind == model.layers else 1
        return min(kind, on_unit, -(-kind * on_unit // model.layers) + uneven)

    full, windowed, recurrent = _layer_kinds(model)
    return _kv_part(model, slots, (here(full), here(windowed), here(recurrent)))


def _input_bytes(model: Model, slots: Slots) -> int:
    """Return what goes into a batch's part on one GPU: the attention mask in f16 and the hidden values in f32."""
    cells = -(-slots.context // sizing.CONTEXT_STEP) * sizing.CONTEXT_STEP
    if model.sliding_window is not None:
        cells += memory_llamacpp.window_cells(slots.context, model.sliding_window.window, slots.ubatch)
    return slots.ubatch * (2 * cells + 4 * model.hidden_size)


def _experts(model: Model) -> tuple[int, int]:
    """Return the experts that compute a token (0 for a dense model) and the width of one."""
    width = feed_forward_size(model)
    return (0, width) if model.active_parameters is None else (EXPERTS_USED, -(-width // EXPERTS_USED))


def _compute_bytes(model: Model, slots: Slots) -> int:
    used, width = _experts(model)
    return memory_llamacpp.compute_buffer_bytes(
        hidden_size=model.hidden_size,
        feed_forward_size=width,
        attention_heads=model.attention_heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        vocabulary_size=model.vocabulary_size,
        context=slots.context,
        parallel=slots.parallel,
        experts_used=used,
        sliding_window=model.sliding_window.window if model.sliding_window else None,
        ubatch=slots.ubatch,
    )


def _process_bytes(model: Model, slots: Slots) -> int:
    used, width = _experts(model)
    process = memory_llamacpp.process_bytes(
        vocabulary_size=model.vocabulary_size,
        feed_forward_size=width,
        head_dim=model.head_dim,
        experts_used=used,
        threads=THREADS,
        ubatch=slots.ubatch,
    )
    return process + memory_llamacpp.output_buffer_bytes(vocabulary_size=model.vocabulary_size, parallel=slots.parallel)


def target_context(request: Request) -> int:
    """Return the tokens of a slot when memory does not limit them."""
    if request.context_length is not None:
        return request.context_length
    return min(request.model.context_length, sizing.CONTEXT_CAP["gpu" if request.units else "cpu"])


def ladder(request: Request, most_parallel: int = sizing.DEFAULT_PARALLEL) -> Iterator[Setting]:
    """Yield settings, smallest memory first; one rung means the same for every request.

    The smallest artifact first: more context on one slot up to a useful one, then more slots, then more context up to
    the target, and only then a better artifact. So more memory never gives a smaller context or fewer slots.

    Args:
        request: The request.
        most_parallel: Slots to climb to when none are wished.
    """
    artifacts = sorted(request.artifacts, key=lambda item: (item.size_bytes, item.name))
    target = target_context(request)
    useful = min(sizing.USEFUL_CONTEXT, target)

    def at(level: int) -> int:
        return target if request.context_length is not None else min(level, target)

    slots = request.parallel or 1
    for level in sizing.CONTEXT_LADDER:
        if level <= sizing.USEFUL_CONTEXT:
            yield Setting(artifacts[0], at(level), slots)
    for wider in (2, sizing.DEFAULT_PARALLEL):
        slots = request.parallel or min(wider, most_parallel)
        yield Setting(artifacts[0], at(useful), slots)
    for level in sizing.CONTEXT_LADDER:
        if level > sizing.USEFUL_CONTEXT:
            yield Setting(artifacts[0], at(level), slots)
    for artifact in artifacts:
        yield Setting(artifact, target, slots)


def gguf_artifacts(files: Iterable[ModelFile]) -> tuple[Artifact, ...]:
    """Return GGUF files as artifacts, in their order."""
    return tuple(Artifact("gguf", file.quantization, file.size_bytes, file) for file in files)


def possible_units(model: Model, most: int) -> tuple[int, ...]:
    """Return the unit counts that a split by layers allows: any, while every unit has a layer."""
    return tuple(range(1, min(most, model.layers, MOST_UNITS) + 1))


def in_host_memory(units: Sequence[Unit]) -> bool:
    """Tell whether what a service takes of its units is host memory: on a CPU, or with unified memory."""
    return not units or any(unit.unified for unit in units)


def memory_limit(need: Demand, prompt_cache: int, units: Sequence[Unit]) -> int:
    """Return the container's memory limit."""
    host = need.host + (need.total if in_host_memory(units) else 0)
    return sizing.memory_limit(host + prompt_cache)


def split_environment(request: Request) -> dict[str, str]:
    """Return the variables that spread a model over several units, none for one unit or a CPU.

    Without ``--tensor-split`` llama.cpp would split by what is free at start, which changes with the neighbours.
    """
    if request.units < 2:
        return {}
    return {"LLAMA_ARG_SPLIT_MODE": "layer", "LLAMA_ARG_TENSOR_SPLIT": ",".join(["1"] * request.units)}


def size_decisions(request: Request, setting: Setting, slots_reason: str | None = None) -> list[str]:
    """Say why context, slots and layers are what they are.

    Args:
        request: The request.
        setting: What was chosen.
        slots_reason: Why the slots are what they are, when that is neither a wish nor memory.
    """
    decisions = [f"context {setting.context_length} tokens a slot: {_context_reason(request, setting)}"]
    lowered = setting.parallel < sizing.DEFAULT_PARALLEL
    reason = slots_reason or ("as many as fit" if lowered else "the default")
    if request.parallel is not None:
        reason = "wished"
    slots = f"{setting.parallel} slot{'s' if setting.parallel != 1 else ''}"
    decisions.append(f"{slots}: {reason}")
    placed, layers = layout(request), request.model.layers
    if placed.units > 1:
        decisions.append(f"{placed.gpu_layers} layers over {placed.units} GPUs: each gets the same number")
    if placed.units and placed.partial(request.model):
        decisions.append(f"{placed.gpu_layers} of {layers} layers on the GPU: wished; the others are in host memory")
    return decisions


def _context_reason(request: Request, setting: Setting) -> str:
    if request.context_length is not None:
        return "wished"
    if setting.context_length < target_context(request):
        return "the largest step that fits"
    if setting.context_length == request.model.context_length:
        return "the model's maximum"
    return f"the cap on a {'GPU' if request.units else 'CPU'} unless wished"


def cache_decision(prompt_cache: int) -> str:
    """Say what the prompt cache is."""
    return f"prompt cache {prompt_cache // MIB} MiB of host memory: a share of what the services leave free"


def slots_concurrency(slots: int, context: int) -> Concurrency:
    """Return how many requests slots of a context answer at the same time: a short request takes a whole slot too."""
    return Concurrency(requests=slots, short_requests=None, kv_cache_tokens=slots * context)


def checkpoint_decision(model: Model, kv_type: str) -> list[str]:
    """Say how many context checkpoints a slot keeps, nothing for a model that needs none."""
    number = checkpoints(model, kv_type)
    if number is None:
        return []
    size = size_text(number * _checkpoint_bytes(model, kv_type))
    return [f"{number} context checkpoints a slot: {size} of host memory, for layers that forget"]


class LlamaCpp:
    """llama.cpp's server; see ``core.Backend``."""

    name = "llamacpp"
    kv_cache_types = KV_CACHE_TYPES

    def artifacts(self, model: Model) -> tuple[Artifact, ...]:
        """Return the model's GGUF files, best quality first."""
        return gguf_artifacts(model.gguf)

    def unit_counts(self, model: Model, most: int) -> tuple[int, ...]:
        """Return over how many units a model can be spread, ascending, none above ``most``."""
        return possible_units(model, most)

    def demand(self, request: Request, setting: Setting) -> Demand:
        """Estimate what a setting takes."""
        return estimate(
            request.model,
            setting.artifact.size_bytes,
            Slots(setting.context_length, setting.parallel, request.kv_cache_type or self.kv_cache_types[0]),
            layout(request),
        )

    def settings(self, request: Request) -> Iterator[Setting]:
        """Yield the settings to choose from, each taking at least as much memory as the one before it."""
        return ladder(request)

    def concurrency(self, request: Request, setting: Setting, share: Share) -> Concurrency:
        """Return the slots, each of which has a context of its own."""
        return slots_concurrency(setting.parallel, setting.context_length)

    def launch(self, request: Request, setting: Setting, situation: Situation) -> Launch:
        """Return how the server is started.

        Raises:
            PlanError: An extra variable or argument is set by the plan or would undo it.
        """
        kv_type = request.kv_cache_type or self.kv_cache_types[0]
        model, source = request.model, setting.artifact.source
        if not isinstance(source, ModelFile):
            raise TypeError(f"llama.cpp loads GGUF files, not {type(source).__name__}")
        placed = layout(request)
        env = llamacpp.environment(
            file=source.file,
            model=situation.served_name,
            context_length=setting.context_length,
            parallel=setting.parallel,
            kv_cache_type=kv_type,
            gpu_layers=placed.gpu_layers if placed.partial(model) else "all",
            # Where the GPUs compute everything, the cores are for others.
            threads=situation.threads if placed.partial(model) else None,
            cache_ram_bytes=situation.prompt_cache_bytes,
            container_port=situation.engine.container_port,
        )
        env.update(split_environment(request))
        if request.units:
            # By name: llama.cpp ends when one of them is not there, and without names it would run on the CPU.
            devices = (f"{_DEVICES[situation.tier]}{number}" for number in range(request.units))
            env["LLAMA_ARG_DEVICE"] = ",".join(devices)
        kept = checkpoints(model, kv_type)
        if kept is not None:
            env["LLAMA_ARG_CTX_CHECKPOINTS"] = str(kept)
        _refuse_arguments(situation, env)
        _refuse_environment(situation)
        decisions = size_decisions(request, setting)
        decisions += [*checkpoint_decision(model, kv_type), cache_decision(situation.prompt_cache_bytes)]
        return Launch(
            arguments=situation.extra_arguments,
            environment=llamacpp.with_extra(situation.host, env, situation.extra_environment),
            shared_memory_bytes=0,
            memory_limit_bytes=memory_limit(
                self.demand(request, setting), situation.prompt_cache_bytes, situation.units
            ),
            readiness_timeout_seconds=sizing.readiness_timeout_seconds(setting.artifact.size_bytes),
            decisions=tuple(decisions),
        )


def _refuse_environment(situation: Situation) -> None:
    for name in sorted(situation.extra_environment):
        newer = _REMOVED.get(name.replace("LLAMA_ARG_NO_", "LLAMA_ARG_"))
        if newer is not None:
            raise PlanError(
                f"{situation.host}: llamacpp_env sets {name}, which llama.cpp does not have any more; leave it "
                f"out and use {newer} in llamacpp_extra_args"
            )
        instead = undoing(name)
        if instead is not None:
            raise PlanError(
                f"{situation.host}: llamacpp_env sets {name}, which would undo the plan; leave it out: {instead}"
            )


def undoing(name: str) -> str | None:
    """Return what to do in place of a variable of llama.cpp that would undo the plan, None for any other."""
    return _UNDOING.get(name.replace("LLAMA_ARG_NO_", "LLAMA_ARG_"))


def _refuse_arguments(situation: Situation, env: Mapping[str, str]) -> None:
    """Refuse arguments that the plan sets or that would undo it: an argument wins over the variable of its name.

    Raises:
        PlanError: There is such an argument.
    """
    for argument in situation.extra_arguments:
        variable = _variable(argument)
        if variable in _REMOVED:
            raise PlanError(
                f"{situation.host}: llamacpp_extra_args has {argument}, which llama.cpp does not have any more; use "
                f"{_REMOVED[variable]}"
            )
        if variable is not None and (variable in _UNDOING or _is_refused(variable, env)):
            raise PlanError(
                f"{situation.host}: llamacpp_extra_args has {argument}, which the plan sets or which would undo it; "
                "leave it out"
            )


def _is_refused(variable: str, env: Mapping[str, str]) -> bool:
    try:
        llamacpp.with_extra("", env, {variable: ""})
    except PlanError:
        return True
    return False


def _variable(argument: str) -> str | None:
    """Return the variable that an option stands for, None for what is no option."""
    option = argument.partition("=")[0]
    if option in _FLAGS:
        return _FLAGS[option]
    if not option.startswith("--"):
        return None
    plain = option.replace("--no-", "--")
    return _FLAGS.get(plain) or "LLAMA_ARG_" + plain[2:].upper().replace("-", "_")


BACKEND = LlamaCpp()
