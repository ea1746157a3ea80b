# SPDX-License-Identifier: Apache-2.0
"""The plan's backend Ollama: what a service takes with its models, and its environment. Sizes are bytes.

Since 0.32 Ollama starts llama.cpp's server for every loaded model (llm/llama_server.go), so the estimate is its own.
The servers inherit Ollama's environment: what Ollama does not pass as an argument is set by ``LLAMA_ARG_*``.

One service can serve several models: ``options["models"]`` holds the further ones (``Companion``), and
``options["max_loaded_models"]`` says how many of all are in memory at the same time; without it all of them are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ansible_collections.fleet.inference.plugins.module_utils.planning import backend_llamacpp, sizing
from ansible_collections.fleet.inference.plugins.module_utils.planning.backend_llamacpp import Layout, Slots, layout
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import (
    Model,
    ModelFile,
    OllamaModel,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import (
    Artifact,
    Concurrency,
    Demand,
    Launch,
    Request,
    Setting,
    Share,
    Situation,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import MIB, PlanError

#: Ollama's own timeout of a load that makes no progress (OLLAMA_LOAD_TIMEOUT); never less.
LEAST_LOAD_TIMEOUT = 300
#: Tokens computed at once (--batch-size and --ubatch-size) when all slots together have more than so many tokens
#: (generationBatchForContext); Ollama takes fewer where memory is short.
BATCHES = ((32768, 2048), (4096, 1024), (0, 512))
#: What Ollama expects a batch to take beside weights and KV cache (generationBatchSurcharge).
BATCH_SURCHARGE = {2048: 2048 * MIB, 1024: 768 * MIB, 512: 0}
#: A further model is loaded beside others when Ollama expects it to take at most 4/5 of what is free (Scheduler.load);
#: otherwise another one is unloaded first.
ROOM = (5, 4)
#: Models that Ollama serves one request at a time (Scheduler.load), by their names in its library; beside these all
#: models with recurrent layers are counted as such.
SERIAL_MODELS = ("llama3.2-vision", "qwen3-vl", "qwen3.5", "qwen3.6", "qwen3-next", "qwen3-coder-next")

#: Variables that would undo what the plan sets, and what to do in their place.
_UNDOING = {
    "CUDA_VISIBLE_DEVICES": "set ollama_gpus",
    "GGML_VK_VISIBLE_DEVICES": "set ollama_gpus",
    "GPU_DEVICE_ORDINAL": "set ollama_gpus",
    "HIP_VISIBLE_DEVICES": "set ollama_gpus",
    "LLAMA_ARG_UBATCH": "Ollama chooses the batch, and the memory estimate counts on its largest",
    "NVIDIA_VISIBLE_DEVICES": "set ollama_gpus",
    "OLLAMA_LLM_LIBRARY": "set inference_tier",
    "OLLAMA_MODELS": "set inference_models_path",
    "ROCR_VISIBLE_DEVICES": "set ollama_gpus",
}
_SETTING_OF = {
    "LLAMA_ARG_N_GPU_LAYERS": "ollama_gpu_layers",
    "OLLAMA_CONTEXT_LENGTH": "ollama_context_length",
    "OLLAMA_KV_CACHE_TYPE": "ollama_kv_cache_type",
    "OLLAMA_NUM_PARALLEL": "ollama_num_parallel",
}


@dataclass(frozen=True)
class Companion:
    """A further model of a service, with the form in which it is served."""

    model: Model
    artifact: Artifact


def together(
    forms: Sequence[tuple[Model, Sequence[Artifact]]],
) -> tuple[tuple[Artifact, ...], tuple[Companion, ...]] | None:
    """Return the forms of a service's own model and its further models, each in its best form; None without any.

    A server reads one store: that of the library, or one that is made of GGUF files. So all models of a service are
    from the library, or all of them are files.

    Args:
        forms: The models, the service's own first, each with its forms, best first.
    """
    for kind in (OllamaModel, ModelFile):
        kept = [(model, tuple(item for item in found if isinstance(item.source, kind))) for model, found in forms]
        if all(found for _model, found in kept):
            return kept[0][1], tuple(Companion(model, found[0]) for model, found in kept[1:])
    return None


def is_serial(model: Model) -> bool:
    """Tell whether Ollama serves a model one request at a time, whatever OLLAMA_NUM_PARALLEL says."""
    tag = model.ollama.tag.partition(":")[0] if model.ollama else ""
    recurrent = model.attention_layers is not None and model.attention_layers < model.layers
    return recurrent or tag in SERIAL_MODELS


def batch_tokens(context: int, parallel: int) -> int:
    """Return the most tokens that Ollama computes at once for a context of all slots together."""
    return next(tokens for above, tokens in BATCHES if context * parallel > above)


@dataclass(frozen=True)
class Runner:
    """One model of a service: its form and what Ollama makes of the service's setting for it."""

    model: Model
    artifact: Artifact
    slots: Slots
    placed: Layout

    @property
    def demand(self) -> Demand:
        """What it takes of each unit and of the host while it is loaded."""
        return backend_llamacpp.estimate(self.model, self.artifact.size_bytes, self.slots, self.placed)

    @property
    def predicted(self) -> int:
        """Bytes on all units that Ollama expects, with an f16 cache and without windows (PredictServerVRAM)."""
        model, slots = self.model, self.slots
        values = 2 * model.layers * model.kv_heads * (model.hidden_size // model.attention_heads)
        return self.artifact.size_bytes + 2 * values * slots.context * slots.parallel + BATCH_SURCHARGE[slots.ubatch]


def runners(request: Request, setting: Setting) -> list[Runner]:
    """Return the models of a service as they run, the service's own first."""
    kv_type = request.kv_cache_type or BACKEND.kv_cache_types[0]
    found = []
    for item in (Companion(request.model, setting.artifact), *_further(request)):
        # Ollama gives no model more than it was trained for (effectiveContext).
        context = min(setting.context_length, item.model.context_length)
        parallel = 1 if is_serial(item.model) else setting.parallel
        slots = Slots(context, parallel, kv_type, batch_tokens(context, parallel))
        found.append(Runner(item.model, item.artifact, slots, layout(request, item.model)))
    return found


def _further(request: Request) -> Sequence[Companion]:
    return tuple(request.options.get("models", ()))


def _models(request: Request) -> list[Model]:
    return [request.model, *(item.model for item in _further(request))]


def _all_serial(request: Request) -> bool:
    return all(is_serial(model) for model in _models(request))


def _sized(request: Request) -> Request:
    """Return the request with the model that can use the longest context, up to which the service is sized."""
    return replace(request, model=max(_models(request), key=lambda model: model.context_length))


def _resident(request: Request) -> int:
    """Return how many models are in memory at the same time."""
    models = len(_models(request))
    return min(models, request.options.get("max_loaded_models", models))


def _largest(sizes: Sequence[int], number: int) -> int:
    return sum(sorted(sizes, reverse=True)[:number])


def _room(running: Sequence[Runner], totals: Sequence[int], units: int, resident: int) -> int:
    """Return the bytes of each unit that are needed beside the loaded models, so that Ollama loads the last one too."""
    if units == 0 or resident == 1:
        return 0
    more, less = ROOM
    needed = 0
    for number, runner in enumerate(running):
        others = [*totals[:number], *totals[number + 1 :]]
        needed = max(needed, _largest(others, resident - 1) + -(-runner.predicted * more // (less * units)))
    return max(0, needed - _largest(totals, resident))


class Ollama:
    """Ollama; see ``core.Backend``."""

    name = "ollama"
    kv_cache_types = backend_llamacpp.KV_CACHE_TYPES

    def artifacts(self, model: Model) -> tuple[Artifact, ...]:
        """Return the library's form of a model, then its GGUF files, from which Ollama creates the same offline.

        It creates none from a GGUF in several files (https://github.com/ollama/ollama/issues/5245).
        """
        tagged = model.ollama
        library = () if tagged is None else (Artifact("gguf", tagged.quantization, tagged.size_bytes, tagged),)
        return (*library, *backend_llamacpp.gguf_artifacts(file for file in model.gguf if not file.parts))

    def unit_counts(self, model: Model, most: int) -> tuple[int, ...]:
        """Return over how many units a model can be spread, ascending, none above ``most``."""
        return backend_llamacpp.possible_units(model, most)

    def demand(self, request: Request, setting: Setting) -> Demand:
        """Estimate what a setting takes with as many models, the largest ones, as are in memory at the same time."""
        running, resident = runners(request, setting), _resident(request)
        needs = [runner.demand for runner in running]
        totals = [need.total for need in needs]
        loaded = sorted(needs, key=lambda need: need.total, reverse=True)[:resident]
        return Demand(
            sum(need.weights for need in loaded),
            sum(need.kv_cache for need in loaded),
            sum(need.overhead for need in loaded) + _room(running, totals, request.units, resident),
            _largest([need.host for need in needs], resident),
        )

    def settings(self, request: Request) -> Iterator[Setting]:
        """Yield the settings to choose from, each taking at least as much memory as the one before it."""
        return backend_llamacpp.ladder(_sized(request), 1 if _all_serial(request) else sizing.DEFAULT_PARALLEL)

    def concurrency(self, request: Request, setting: Setting, share: Share) -> Concurrency:
        """Return the slots of the service's own model, each of which has a context of its own."""
        slots = runners(request, setting)[0].slots
        return backend_llamacpp.slots_concurrency(slots.parallel, slots.context)

    def launch(self, request: Request, setting: Setting, situation: Situation) -> Launch:
        """Return how the server is started.

        Raises:
            PlanError: An extra variable is set by the plan or would undo it, there are extra arguments (``ollama
                serve`` takes none), or more slots are wished than Ollama gives the model.
        """
        _refuse(request, situation)
        running, resident = runners(request, setting), _resident(request)
        # Every loaded model is a process of its own with a prompt cache of its own.
        cache = situation.prompt_cache_bytes // resident // MIB
        env = self._environment(request, setting, situation, resident)
        env["LLAMA_ARG_CACHE_RAM"] = str(cache)
        kept = [backend_llamacpp.checkpoints(item.model, item.slots.kv_type) for item in running]
        fewest = min((number for number in kept if number is not None), default=None)
        if fewest is not None:
            env["LLAMA_ARG_CTX_CHECKPOINTS"] = str(fewest)
        sizes = [item.artifact.size_bytes for item in running]
        timeout = max(LEAST_LOAD_TIMEOUT, sizing.readiness_timeout_seconds(max(sizes)))
        env["OLLAMA_LOAD_TIMEOUT"] = f"{timeout}s"
        need = self.demand(request, setting)
        return Launch(
            arguments=(),
            environment=_with_extra(situation, env),
            shared_memory_bytes=0,
            memory_limit_bytes=backend_llamacpp.memory_limit(need, cache * MIB * resident, situation.units),
            readiness_timeout_seconds=sizing.readiness_timeout_seconds(_largest(sizes, resident)),
            decisions=self._decisions(request, setting, situation, running),
        )

    def _environment(self, request: Request, setting: Setting, situation: Situation, resident: int) -> dict[str, str]:
        """Return the variables that do not depend on the models' sizes.

        Flash attention is on because a quantized cache needs it and the estimate counts on it. ``--fit`` is off
        because everything it would adjust is already sized. OLLAMA_GPU_OVERHEAD says what is not this service's on
        each GPU; Ollama 0.32 writes it to its log and counts with it for its default context only, so what holds the
        service to its share are context, slots and the number of loaded models.
        """
        units, share = situation.units, situation.share
        env = {
            "LLAMA_ARG_FIT": "off",
            "OLLAMA_CONTEXT_LENGTH": str(setting.context_length),
            "OLLAMA_FLASH_ATTENTION": "1",
            "OLLAMA_HOST": f"0.0.0.0:{situation.engine.container_port}",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_KV_CACHE_TYPE": request.kv_cache_type or self.kv_cache_types[0],
            "OLLAMA_MAX_LOADED_MODELS": str(resident),
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_NUM_PARALLEL": str(setting.parallel),
            "OLLAMA_VULKAN": "1" if situation.tier == "vulkan" else "0",
        }
        if not backend_llamacpp.in_host_memory(units):
            env["OLLAMA_GPU_OVERHEAD"] = str(share.unit_bytes - share.bytes)
        if any(unit.device.get("integrated") for unit in units):
            # Ollama leaves integrated GPUs out unless it is told, but for some (integratedGPUAllowedByDefault).
            env["OLLAMA_IGPU_ENABLE"] = "1"
        if request.units > 1:
            env["OLLAMA_SCHED_SPREAD"] = "1"
            env.update(backend_llamacpp.split_environment(request))
        computing = [model for model in _models(request) if layout(request, model).partial(model)]
        if request.units and computing:
            env["LLAMA_ARG_N_GPU_LAYERS"] = str(request.options["gpu_layers"])
        if computing and situation.threads is not None:
            env["LLAMA_ARG_THREADS"] = str(situation.threads)
        return env

    def _decisions(
        self, request: Request, setting: Setting, situation: Situation, running: Sequence[Runner]
    ) -> tuple[str, ...]:
        serial = "Ollama serves this architecture one request at a time" if _all_serial(request) else None
        decisions = backend_llamacpp.size_decisions(_sized(request), setting, serial)
        resident = _resident(request)
        if len(running) > 1:
            how = "all stay in memory" if resident == len(running) else f"{resident} at a time in memory, as wished"
            decisions.append(f"{len(running)} models: {how}")
            for item in running:
                slots = f"{item.slots.parallel} slot{'s' if item.slots.parallel > 1 else ''}"
                decisions.append(f"{item.model.name}: {item.artifact.name}, {slots} of {item.slots.context} tokens")
        return (*decisions, backend_llamacpp.cache_decision(situation.prompt_cache_bytes))


def _refuse(request: Request, situation: Situation) -> None:
    if situation.extra_arguments:
        raise PlanError(
            f"{situation.host}: ollama_extra_args has {situation.extra_arguments[0]}, and ollama serve takes no "
            "arguments; leave it out and use ollama_env"
        )
    if (request.parallel or 1) > 1 and _all_serial(request):
        names = " and ".join(model.name for model in _models(request))
        raise PlanError(
            f"{situation.host}: parallel of service {request.service} is {request.parallel}, and Ollama serves "
            f"{names} one request at a time; set 1, or use llamacpp"
        )


def _with_extra(situation: Situation, env: dict[str, str]) -> dict[str, str]:
    """Return the environment with the user's own variables, sorted by name."""
    for name in sorted(situation.extra_environment):
        plain = name.replace("LLAMA_ARG_NO_", "LLAMA_ARG_")
        setting = _SETTING_OF.get(plain)
        if plain in env or setting:
            remedy = f"leave it out and set {setting}" if setting else "leave it out"
            raise PlanError(f"{situation.host}: ollama_env sets {name}, which the plan sets; {remedy}")
        instead = _UNDOING.get(name) or backend_llamacpp.undoing(name)
        if instead is not None:
            raise PlanError(
                f"{situation.host}: ollama_env sets {name}, which would undo the plan; leave it out: "
                + instead.replace("llamacpp_", "ollama_")
            )
    return dict(sorted({**env, **situation.extra_environment}.items()))


BACKEND = Ollama()
