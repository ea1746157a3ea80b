# SPDX-License-Identifier: Apache-2.0
"""What vLLM and SGLang have in common beside the KV cache: weights, ladder, limits, environment, extra arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ansible_collections.fleet.inference.plugins.module_utils.planning import kv_cache, sizing
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Model, Weights
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import (
    SHORT_REQUEST,
    Artifact,
    Concurrency,
    Demand,
    Request,
    Setting,
    Share,
    Situation,
    Unit,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import (
    MIB,
    PlanError,
    size_text,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.llamacpp import MODELS_MOUNT
from ansible_collections.fleet.inference.plugins.module_utils.planning.versions import numbers

#: Where the container finds the models (a Hugging Face cache below it) and what it may keep between starts.
HUB_MOUNT = f"{MODELS_MOUNT}/huggingface"
CACHE_MOUNT = "/cache"

#: Compute capability from which CUDA GPUs compute in bfloat16.
BFLOAT16_CAPABILITY = "8.0"

#: Planning value: the driver's context of one process on one GPU, which no engine counts as its own.
CONTEXT_BYTES = 512 * MIB

#: Full-length requests that the memory shall hold before a better form of the model is chosen, and after that.
FIRST_PARALLEL = (2, 4)
MORE_PARALLEL: dict[str, tuple[int, ...]] = {"cpu": (), "gpu": (8, 16, 32)}

#: Requests at once for each full-length request that fits: most requests are far shorter than the context.
SHORT_REQUESTS = 64
MOST_REQUESTS = 1024
#: A request of a model whose layers keep a state holds that state however short it is.
SHORT_STATE_REQUESTS = 4
#: A CPU computes no more requests at once in useful time.
CPU_SHORT_REQUESTS = 16
CPU_MOST_REQUESTS = 64
#: Tokens computed at once: the engines' defaults for small and for large GPUs, and the step between them.
BATCH_TOKENS = (2048, 8192)
BATCH_TOKENS_PER_REQUEST = 512

#: Planning value: seconds for imports, compilation and CUDA graphs, beside reading the weights.
START_SECONDS = 600
#: A slow disk, bytes a second (as for llama.cpp).
READ_RATE = 100_000_000

#: Variables that choose GPUs inside the container, where only the service's own are visible.
_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Limits:
    """How many requests are computed at the same time, and how many tokens of their prompts in one step."""

    requests: int
    batch_tokens: int


@dataclass(frozen=True)
class Extras:
    """What a user's extra arguments and environment must leave alone.

    ``settings`` are arguments that the plan sets, to the end of the variable's name that sets it instead (None where
    nothing does); ``refused`` are those that would undo it, with the reason. ``variables`` are the same of the
    environment, beside what the plan itself sets there. ``removed`` are arguments that the engine once had and that
    would end its start now, with what to do instead.
    """

    backend: str
    settings: Mapping[str, str | None]
    refused: Mapping[str, str]
    variables: Mapping[str, str]
    removed: Mapping[str, str] = field(default_factory=dict)


def artifacts(model: Model) -> tuple[Artifact, ...]:
    """Return a model's repositories of safetensors, in the catalog's order."""
    return tuple(Artifact(item.format, item.format, item.size_bytes, item) for item in model.safetensors)


def weights_source(artifact: Artifact) -> Weights:
    """Return the repository of an artifact that these engines load."""
    if not isinstance(artifact.source, Weights):
        raise TypeError(f"{artifact.name} is no repository of safetensors")
    return artifact.source


def weights_bytes(model: Model, size: int, units: kv_cache.Split) -> int:
    """Return the weights on the fullest unit.

    Everything is divided by the tensor parallel size, embeddings and head too (vocab_parallel_embedding), but for the
    projections of KV heads that are copied. A pipeline divides the layers; the first stage holds the embeddings and
    the last one the head, both in 16 bits.
    """
    embeddings = min(size, 2 * model.vocabulary_size * model.hidden_size)
    if units.pipeline > 1:
        size = embeddings + kv_cache.stage_share(model, size - embeddings, units.pipeline)
    copied = 0
    if model.mla is None and units.tensor > model.kv_heads:
        projections = 2 * 2 * model.layers * model.hidden_size * model.head_dim
        copied = projections * (units.tensor - model.kv_heads) // units.tensor
    return -(-size // units.tensor) + copied


def target_context(request: Request) -> int:
    """Return the context of a request when memory does not limit it: the wished one, else the model's up to a cap."""
    if request.context_length is not None:
        return request.context_length
    return min(request.model.context_length, sizing.CONTEXT_CAP[place(request)])


def place(request: Request) -> str:
    """Return ``gpu`` or ``cpu``."""
    return "gpu" if request.units else "cpu"


def ladder(request: Request) -> Iterator[Setting]:
    """Yield the settings to choose from, smallest memory first; the rungs mean the same for every request.

    With the smallest artifact: the context of one request up to the target, then up to four such requests at a time;
    then better artifacts; then still more requests. Of artifacts of one size only the best is used.
    """
    sizes: dict[int, Artifact] = {}
    for artifact in request.artifacts:
        sizes.setdefault(artifact.size_bytes, artifact)
    forms = [sizes[size] for size in sorted(sizes)]
    target, first = target_context(request), request.parallel or 1
    for level in sizing.CONTEXT_LADDER:
        yield Setting(forms[0], target if request.context_length is not None else min(level, target), first)
    yield Setting(forms[0], target, first)
    parallel = first
    for wider in FIRST_PARALLEL:
        parallel = request.parallel or wider
        yield Setting(forms[0], target, parallel)
    for form in forms[1:]:
        yield Setting(form, target, parallel)
    for wider in MORE_PARALLEL[place(request)]:
        yield Setting(forms[-1], target, request.parallel or wider)


def limits(request: Request, parallel: int, requests_option: str, tokens_option: str) -> Limits:
    """Return the limits of a service that holds ``parallel`` requests of full length; both grow with it.

    Args:
        request: The service; its options may fix either limit.
        parallel: Requests of full length that the memory holds.
        requests_option: The backend's name of the limit of requests.
        tokens_option: The backend's name of the limit of tokens.
    """
    requests = request.options.get(requests_option)
    if requests is None:
        each, ceiling = _short_requests(request)
        requests = max(parallel, min(ceiling, each * parallel))
    tokens = request.options.get(tokens_option)
    if tokens is None:
        least, most = BATCH_TOKENS
        tokens = min(most, max(least, BATCH_TOKENS_PER_REQUEST * parallel)) if request.units else least
    # vLLM refuses to compute fewer tokens a step than requests (SchedulerConfig.verify_max_model_len).
    return Limits(int(requests), max(int(tokens), int(requests)))


def limits_decisions(request: Request, found: Limits, requests_option: str, tokens_option: str) -> list[str]:
    """Say why a service computes so many requests and tokens at once; the options are those of ``limits``."""
    each, ceiling = _short_requests(request)
    least, most = BATCH_TOKENS
    requests = f"{each} for each of full length, for most are shorter, and at most {ceiling}"
    tokens = f"{BATCH_TOKENS_PER_REQUEST} for each request of full length, at least {least} and at most {most}"
    if not request.units:
        tokens = "the least, on a CPU"
    if requests_option in request.options:
        requests = "wished"
    if tokens_option in request.options:
        tokens = "wished"
    return [
        f"at most {found.requests} requests at once: {requests}",
        f"{found.batch_tokens} tokens a step: {tokens}",
    ]


def _short_requests(request: Request) -> tuple[int, int]:
    """Return the requests at once for each of full length, and the most."""
    if not request.units:
        return CPU_SHORT_REQUESTS, CPU_MOST_REQUESTS
    return SHORT_STATE_REQUESTS if kv_cache.layer_kinds(request.model).state else SHORT_REQUESTS, MOST_REQUESTS


def wished_share(request: Request, option: str) -> float | None:
    """Return the share of a unit's memory that the user wishes, None where the plan decides."""
    wished = request.options.get(option)
    return None if wished is None else float(wished)


def check_share(request: Request, host: str, *, option: str, part: int, whole: int) -> None:
    """Refuse a wished share of a unit's memory that is too small.

    Args:
        request: The service.
        host: The node's name.
        option: The name of the wish, with the backend's.
        part: What the wished share must have room for.
        whole: What it is a share of.

    Raises:
        PlanError: The wished share is too small.
    """
    wished = wished_share(request, option.partition("_")[2])
    if wished is not None and int(whole * wished) < part:
        least = math.ceil(part * 1000 / whole) / 1000
        raise PlanError(
            f"{host}: {option} of service {request.service} is {wished}, which is "
            f"{size_text(int(whole * wished))}, and {request.model.name} needs {size_text(part)} of each unit; "
            f"give at least {least}"
        )


def fraction(part: int, whole: int, digits: int) -> float:
    """Return a share of something as the engines read it, rounded down so that it never asks for more."""
    steps = 10**digits
    return max(0, part) * steps // whole / steps


def dtype(units: Iterable[Unit]) -> str:
    """Return the engines' name for the type to compute in: ``float16`` where a CUDA GPU has no bfloat16, else ``auto``.

    ``auto`` is the type of the model's own weights.
    """
    floor = numbers(BFLOAT16_CAPABILITY)
    old = any(
        unit.vendor == "nvidia" and unit.architecture is not None and numbers(unit.architecture) < floor
        for unit in units
    )
    return "float16" if old else "auto"


def memory_limit(need: Demand, on_cpu: bool) -> int:
    """Return the container's memory limit: the estimate with a margin, and /dev/shm, which counts when it is used."""
    return sizing.memory_limit(need.host + (need.total if on_cpu else 0)) + need.shared_memory


def readiness_timeout_seconds(size_bytes: int) -> int:
    """Return the seconds until the service must answer: its start, and reading the weights from a slow disk."""
    return START_SECONDS + -(-size_bytes // READ_RATE)


def environment() -> dict[str, str]:
    """Return the variables of both engines: nothing is downloaded, caches outlive the container."""
    return {
        "CUDA_CACHE_PATH": f"{CACHE_MOUNT}/cuda",
        "DO_NOT_TRACK": "1",
        "FLASHINFER_WORKSPACE_BASE": CACHE_MOUNT,
        "HF_HOME": f"{CACHE_MOUNT}/huggingface",
        "HF_HUB_CACHE": HUB_MOUNT,
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHE_MOUNT}/inductor",
        "TRANSFORMERS_OFFLINE": "1",
        "TRITON_CACHE_DIR": f"{CACHE_MOUNT}/triton",
        "XDG_CACHE_HOME": CACHE_MOUNT,
    }


def with_extras(
    situation: Situation, rules: Extras, arguments: Iterable[str], env: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return arguments and environment with the user's own, the environment sorted by name.

    Raises:
        PlanError: Something of the user's is set by the plan or would undo it.
    """
    for index, argument in enumerate(situation.extra_arguments):
        _check_argument(situation.host, rules, argument, index)
    for name in sorted(situation.extra_environment):
        _check_variable(situation.host, rules, name, env)
    return (*arguments, *situation.extra_arguments), dict(sorted({**env, **situation.extra_environment}.items()))


def _check_argument(host: str, rules: Extras, argument: str, index: int) -> None:
    where = f"{host}: {rules.backend}_extra_args"
    if not argument.startswith("-"):
        if index == 0:
            raise PlanError(f"{where} begins with {argument!r}; give arguments that begin with a hyphen, or none")
        return
    # Both engines take underscores for hyphens, --name=value, --name.key for a key of JSON, and a name's beginning.
    shown = argument.partition("=")[0]
    name = shown.partition(".")[0].replace("_", "-")
    if name in rules.removed:
        raise PlanError(f"{where} has {shown}, which {rules.backend} does not have any more; {rules.removed[name]}")
    setting = _match(name, rules.settings)
    if setting is not None:
        suffix = rules.settings[setting]
        remedy = f"leave it out and set {rules.backend}_{suffix}" if suffix else "leave it out"
        raise PlanError(f"{where} has {shown}, which the plan sets; {remedy}")
    reason = _match(name, rules.refused)
    if reason is not None:
        raise PlanError(f"{where} has {shown}, which would undo the plan; leave it out: {rules.refused[reason]}")


def _match(name: str, known: Iterable[str]) -> str | None:
    """Return the argument that a name means: itself, or a longer one that argparse would complete it to."""
    names = list(known)
    if name in names:
        return name
    return next((item for item in sorted(names) if name.startswith("--") and item.startswith(name)), None)


def _check_variable(host: str, rules: Extras, name: str, env: Mapping[str, str]) -> None:
    where = f"{host}: {rules.backend}_env"
    if name in env:
        raise PlanError(f"{where} sets {name}, which the plan sets; leave it out")
    reason = rules.variables.get(name)
    if name in _DEVICE_VARIABLES:
        reason = f"set {rules.backend}_gpus"
    if reason is not None:
        raise PlanError(f"{where} sets {name}, which would undo the plan; leave it out: {reason}")


def decisions(request: Request, setting: Setting, situation: Situation, units: kv_cache.Split) -> list[str]:
    """Say why a service runs as it does, a sentence for each choice that both engines have."""
    said = []
    if units.units > 1:
        said.append(_spread(request.model, units))
    if request.context_length is not None:
        reason = "wished"
    elif setting.context_length < target_context(request):
        reason = "the largest step that fits"
    elif setting.context_length == request.model.context_length:
        reason = "the model's maximum"
    else:
        reason = f"the cap on a {place(request).upper()} unless wished"
    said.append(f"context {setting.context_length} tokens a request: {reason}")
    plural = "" if setting.parallel == 1 else "s"
    steps = ", ".join(map(str, (1, *FIRST_PARALLEL, *MORE_PARALLEL[place(request)])))
    held = "wished" if request.parallel is not None else f"the most of {steps} that fits"
    said.append(f"memory for at least {setting.parallel} request{plural} of full length: {held}")
    chosen = dtype(situation.units)
    reason = "the type of the model's own weights"
    if chosen != "auto":
        reason = f"a GPU below compute capability {BFLOAT16_CAPABILITY} has no bfloat16"
    said.append(f"dtype {chosen}: {reason}")
    return said


def _spread(model: Model, units: kv_cache.Split) -> str:
    """Say how a model is spread over several units, and why so."""
    heads = f"{model.attention_heads} attention heads"
    if model.mla is None:
        heads += f" and {model.kv_heads} KV heads"
    if units.pipeline > 1:
        return (
            f"{units.units} units: tensor parallel {units.tensor}, pipeline parallel {units.pipeline}, because {heads} "
            "cannot be shared by more"
        )
    if model.mla is None and units.tensor > model.kv_heads:
        copies = units.tensor // model.kv_heads
        return (
            f"{units.units} units: tensor parallel {units.tensor}; each of the {model.kv_heads} KV heads is copied to "
            f"{copies} units"
        )
    return f"{units.units} units: tensor parallel {units.tensor}, by which {heads} divide"


class TensorEngine:
    """What both backends answer in the same way; see `core.Backend`."""

    def unit_counts(self, model: Model, most: int) -> tuple[int, ...]:
        """Return over how many units a model can be spread, ascending."""
        return kv_cache.unit_counts(model, most)

    def settings(self, request: Request) -> Iterator[Setting]:
        """Yield the settings to choose from, smallest memory first."""
        return ladder(request)

    def demand(self, request: Request, setting: Setting) -> Demand:
        """Estimate what a setting takes of each unit, or of the host on a CPU."""
        raise NotImplementedError

    def concurrency(self, request: Request, setting: Setting, share: Share) -> Concurrency:
        """Return how many requests the KV cache holds at the same time, at most as many as the engine computes."""
        cache = self.granted_kv_cache(request, setting, self.granted(request, setting, share))
        short = None
        if setting.context_length > SHORT_REQUEST:
            short = self.held_requests(request, setting, cache, SHORT_REQUEST)
        return Concurrency(
            requests=self.held_requests(request, setting, cache, setting.context_length),
            short_requests=short,
            kv_cache_tokens=self.held_tokens(request, setting, cache),
        )

    def held_tokens(self, request: Request, setting: Setting, kv_cache_bytes: int) -> int:
        """Return how many tokens a KV cache holds."""
        raise NotImplementedError

    def held_requests(self, request: Request, setting: Setting, kv_cache_bytes: int, length: int) -> int:
        """Return how many requests of a length a KV cache holds at the same time."""
        raise NotImplementedError

    def granted(self, request: Request, setting: Setting, share: Share) -> int:
        """Return what the service may take of each unit: its share, or less where the user wishes so."""
        raise NotImplementedError

    def granted_kv_cache(self, request: Request, setting: Setting, granted: int) -> int:
        """Return the KV cache of a unit when the service may take ``granted`` bytes of it; on a CPU what is planned."""
        need = self.demand(request, setting)
        return granted - need.weights - need.overhead if request.units else need.kv_cache
