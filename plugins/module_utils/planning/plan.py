# SPDX-License-Identifier: Apache-2.0
"""The plan of one node: its services with every setting resolved."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning import images, llamacpp, placement, sizing
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import (
    Catalog,
    Engine,
    Model,
    ModelFile,
    Variant,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import (
    MIB,
    PlanError,
    choices_text,
    size_text,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.placement import HOST_POOL, Pool
from ansible_collections.fleet.inference.plugins.module_utils.planning.sizing import Demand, Request, Setting
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import ServiceWish, Wishes, parse_wishes

SCHEMA_VERSION = 1
FACTS_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class _Service:
    """A service on its way through the plan: what is wished, where it goes, what is to be sized."""

    wish: ServiceWish
    engine: Engine
    variant: Variant
    device: Mapping[str, Any] | None
    pool: Pool
    request: Request


def plan_node(facts: Mapping[str, Any], wishes: Mapping[str, Any], catalog: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of one node.

    The same input gives the same plan; nothing is read or touched.

    Args:
        facts: ``ansible_facts.gpu`` of the node, as fleet.inference.gpu_facts returns it.
        wishes: The host's variables that the plan reads (see ``wishes.VARIABLES``), with ``host`` and ``ansible_host``.
        catalog: ``{"models": inference_models, "engines": inference_engines}``.

    Returns:
        A plain dictionary (schema_version 1): node, address, tier, services, models, warnings. Sizes are bytes.

    Raises:
        PlanError: There is no plan; the text is one sentence that begins with the host's name.
    """
    book = Catalog(str(wishes.get("host") or "this host"), catalog)
    return _Planner(parse_wishes(wishes, book.backends), facts, book).plan()


class _Planner:
    """The steps of one plan: tier and address, ports, placement of every service, sizing, and the result."""

    def __init__(self, wishes: Wishes, facts: Mapping[str, Any], book: Catalog) -> None:
        self._host = wishes.host
        self._wishes = wishes
        self._facts = facts
        self._book = book
        self._check_facts()
        self._tier = placement.node_tier(wishes, facts)
        self._address = placement.node_address(wishes, facts)
        self._engines = {wish.backend: book.engine(wish.backend) for wish in wishes.services}
        self._ports = placement.assign_ports(wishes, self._engines, self._address, facts)
        self._devices: list[Mapping[str, Any]] = []
        if self._tier != "cpu" and wishes.services:
            self._devices = placement.usable_devices(self._host, self._tier, facts)
        self._pools = placement.make_pools(self._host, facts, self._devices)
        self._host_pool = self._pools[HOST_POOL]

    def plan(self) -> dict[str, Any]:
        """Return the plan."""
        services = [self._place(wish) for wish in self._wishes.services]
        chosen = self._size(services)
        planned = self._resolve(services, chosen)
        models = {item["model_file"]["path"]: item["model_file"] for item in planned}
        return {
            "schema_version": SCHEMA_VERSION,
            "node": self._host,
            "address": self._address,
            "tier": self._tier,
            "services": planned,
            "models": [models[path] for path in sorted(models)],
            "warnings": self._warnings(services, chosen),
        }

    def _check_facts(self) -> None:
        if not isinstance(self._facts, Mapping) or not self._facts:
            raise PlanError(
                f"{self._host}: ansible_facts.gpu is not set; run fleet.inference.gpu_facts on it before the plan"
            )
        version = self._facts.get("schema_version")
        if version != FACTS_SCHEMA_VERSION:
            raise PlanError(
                f"{self._host}: ansible_facts.gpu has schema version {version} and the plan reads "
                f"{FACTS_SCHEMA_VERSION}; gather the facts again with fleet.inference.gpu_facts"
            )

    def _place(self, wish: ServiceWish) -> _Service:
        """Find the service's model, GPU and image, and take the memory of its smallest setting from the pools."""
        model = self._book.model(wish.model, wish.place("model"))
        request = _request(self._host, wish, model, self._tier)
        engine = self._engines[wish.backend]
        if self._tier == "cpu":
            if wish.gpus is not None:
                raise PlanError(
                    f"{self._host}: {wish.place('gpus')} names a GPU but the node's tier is cpu; "
                    "leave it out or use a node with GPUs"
                )
            pool, device = self._host_pool, None
        else:
            pool, device = _pick(self._candidates(wish, engine), self._pools, request)
        variant = placement.choose_variant(self._host, engine, self._tier, device, self._facts)
        service = _Service(wish, engine, variant, device, pool, request)
        self._take(service)
        return service

    def _candidates(self, wish: ServiceWish, engine: Engine) -> list[Mapping[str, Any]]:
        """Return the GPUs that a service may go to: the pinned one, else those that one of its images runs on."""
        if wish.gpus is not None:
            return [placement.pinned_device(self._host, wish, self._devices, self._facts)]
        candidates, refusals = [], []
        for device in self._devices:
            try:
                placement.choose_variant(self._host, engine, self._tier, device, self._facts)
            except PlanError as error:
                refusals.append(error)
            else:
                candidates.append(device)
        if not candidates:
            raise refusals[0]
        return candidates

    def _take(self, service: _Service) -> None:
        """Take the smallest setting's memory from its pools, or refuse with the largest setting that fits."""
        setting = sizing.smallest(service.request)
        if not self._fits(service.pool, service.request, setting):
            raise PlanError(self._does_not_fit(service, setting))
        self._account(service, setting, 1)
        service.pool.services.append(service.wish.name)
        if service.pool is not self._host_pool:
            self._host_pool.services.append(service.wish.name)

    def _fits(self, pool: Pool, request: Request, setting: Setting) -> bool:
        return self._have_room(pool, [sizing.demand(request, setting)])

    def _have_room(self, pool: Pool, needs: Sequence[Demand]) -> bool:
        own, beside = sum(need.total for need in needs), sum(need.host for need in needs)
        if pool is self._host_pool:
            return pool.taken + own + beside <= pool.budget
        return pool.taken + own <= pool.budget and self._host_pool.taken + beside <= self._host_pool.budget

    def _account(self, service: _Service, setting: Setting, sign: int) -> None:
        need = sizing.demand(service.request, setting)
        service.pool.taken += sign * need.total
        self._host_pool.taken += sign * need.host

    def _does_not_fit(self, service: _Service, setting: Setting) -> str:
        request, pool = service.request, service.pool
        need = sizing.demand(request, setting)
        bytes_needed, short = need.total, pool
        if pool is self._host_pool:
            bytes_needed += need.host
        elif pool.taken + need.total <= pool.budget:
            bytes_needed, short = need.host, self._host_pool
        slots = f"{setting.parallel} slot{'s' if setting.parallel > 1 else ''} of {setting.context_length} tokens"
        others = f" beside {', '.join(short.services)}" if short.services else ""
        larger = f"take a smaller model, or a {'node' if short is self._host_pool else 'GPU'} with more memory"
        return (
            f"{self._host}: service {service.wish.name} needs {size_text(bytes_needed)} of {short.title} for "
            f"{request.model.name} ({setting.file.quantization}, {slots}) and "
            f"{size_text(max(0, short.budget - short.taken))} can be used{others}; "
            + (self._remedy(service, setting) or larger)
        )

    def _remedy(self, service: _Service, setting: Setting) -> str | None:
        """Return the words for the largest setting that fits, in the order of what it costs the user, else None."""
        wish, request, pool, step = service.wish, service.request, service.pool, sizing.CONTEXT_STEP
        if request.context_length is not None:
            for context in range((request.context_length - 1) // step * step, 0, -step):
                if self._fits(pool, request, replace(setting, context_length=context)):
                    return wish.remedy("context_length", context)
        for parallel in range(setting.parallel - 1, 0, -1):
            if self._fits(pool, request, replace(setting, parallel=parallel)):
                return wish.remedy("parallel", parallel)
        for file in request.model.gguf:
            if file not in request.files and self._fits(pool, request, replace(setting, file=file)):
                return wish.remedy("quantization", file.quantization)
        for layers in range((request.gpu_layers or 0) - 1, -1, -1):
            if self._fits(pool, replace(request, gpu_layers=layers), setting):
                return f"{wish.remedy('gpu_layers', layers)} (slower: the other layers stay in host memory)"
        return None

    def _size(self, services: Sequence[_Service]) -> dict[str, Setting]:
        """Choose every service's setting; the services of one pool climb together, GPUs before the host's memory."""
        chosen: dict[str, Setting] = {}
        gpu_pools = [pool for pool in self._pools.values() if pool is not self._host_pool]
        for pool in [*gpu_pools, self._host_pool]:
            group = [service for service in services if service.pool is pool]
            for service in group:
                self._account(service, sizing.smallest(service.request), -1)
            for service, setting in zip(group, self._fill(pool, group), strict=True):
                self._account(service, setting, 1)
                chosen[service.wish.name] = setting
        return chosen

    def _fill(self, pool: Pool, group: Sequence[_Service]) -> list[Setting]:
        def fits(candidate: Sequence[Setting]) -> bool:
            needs = [sizing.demand(item.request, setting) for item, setting in zip(group, candidate, strict=True)]
            return self._have_room(pool, needs)

        return sizing.fill([item.request for item in group], fits)

    def _resolve(self, services: Sequence[_Service], chosen: Mapping[str, Setting]) -> list[dict[str, Any]]:
        """Return the services of the plan."""
        spare = max(0, self._host_pool.budget - self._host_pool.taken)
        cache = sizing.cache_ram(spare // max(1, len(services)))
        threads = self._threads(services)
        return [self._service(service, chosen[service.wish.name], cache, threads) for service in services]

    def _service(self, service: _Service, setting: Setting, cache: int, cores: int | None) -> dict[str, Any]:
        wish, request, variant = service.wish, service.request, service.variant
        need = sizing.demand(request, setting)
        host_bytes = need.host + (need.total if service.pool is self._host_pool else 0)
        gpu_layers = _gpu_layers(request)
        threads = None if gpu_layers == "all" else cores
        env = llamacpp.environment(
            file=setting.file.file,
            model=request.model.name,
            context_length=setting.context_length,
            parallel=setting.parallel,
            kv_cache_type=request.kv_cache_type,
            gpu_layers=gpu_layers,
            threads=threads,
            cache_ram_bytes=cache,
            container_port=service.engine.container_port,
        )
        return {
            "name": wish.name,
            "backend": wish.backend,
            "model": request.model.name,
            "tier": self._tier,
            "variant": variant.name,
            "image": images.image_reference(variant.repository, variant.tag, variant.digest, self._wishes.registries),
            "address": self._address,
            "port": self._ports[wish.name],
            "container_port": service.engine.container_port,
            "devices": [] if service.device is None else [_device(service.device, self._tier, self._facts)],
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "context_length": setting.context_length,
            "parallel": setting.parallel,
            "kv_cache_type": request.kv_cache_type,
            "gpu_layers": gpu_layers,
            "threads": threads,
            "memory": _memory(need, service.pool),
            "model_file": _model_file(self._wishes, request.model, setting.file),
            "env": llamacpp.with_extra(self._host, env, wish.extra_env),
            "readiness_timeout_seconds": sizing.readiness_timeout_seconds(setting.file.size_bytes),
            "memory_limit_bytes": sizing.memory_limit(host_bytes + cache),
            "decisions": [*self._decisions(service, setting), _cache_decision(cache)],
        }

    def _threads(self, services: Sequence[_Service]) -> int | None:
        """Share the node's cores among the services that compute on them: a core that two of them want slows both."""
        computing = sum(1 for service in services if _gpu_layers(service.request) != "all")
        cores = (self._facts.get("cpu") or {}).get("cores")
        if not computing or isinstance(cores, bool) or not isinstance(cores, int):
            return None
        return max(1, cores // computing)

    def _decisions(self, service: _Service, setting: Setting) -> list[str]:
        """Say why every setting is what it is."""
        wish, request = service.wish, service.request
        where = "the CPU" if service.device is None else placement.device_title(service.device)
        decisions = [f"image {service.variant.tag}: tier {self._tier}, {where}"]
        if wish.quantization is not None:
            decisions.append(f"quantization {setting.file.quantization}: wished")
        elif len(request.files) == 1:
            decisions.append(f"quantization {setting.file.quantization}: the only file")
        else:
            best = "the best of the model's files" if sizing.best_file(request, setting) else "the best that fits"
            decisions.append(f"quantization {setting.file.quantization}: {best}")
        decisions.append(f"context {setting.context_length} tokens a slot: {_context_reason(request, setting)}")
        if wish.parallel is not None:
            decisions.append(f"{setting.parallel} slots: wished")
        else:
            lowered = setting.parallel < sizing.DEFAULT_PARALLEL
            decisions.append(f"{setting.parallel} slots: {'as many as fit' if lowered else 'the default'}")
        port = self._ports[wish.name]
        if wish.port is not None:
            decisions.append(f"port {port}: wished")
        else:
            decisions.append(f"port {port}: the first free one from {wish.default_port or service.engine.port}")
        return decisions

    def _warnings(self, services: Sequence[_Service], chosen: Mapping[str, Setting]) -> list[str]:
        """Return what is worse than wished or usual, the node's before the services'."""
        warnings = []
        if (self._facts.get("driver") or {}).get("reboot_required"):
            warnings.append("the GPU driver waits for a restart of the node")
        if self._tier == "cpu" and self._facts.get("usable_count"):
            warnings.append("the node has usable GPUs that tier cpu leaves idle")
        for service in services:
            wish, setting = service.wish, chosen[service.wish.name]
            useful = min(sizing.USEFUL_CONTEXT, service.request.target_context)
            if wish.parallel is None and setting.parallel < sizing.DEFAULT_PARALLEL:
                warnings.append(
                    f"service {wish.name} gets {setting.parallel} of {sizing.DEFAULT_PARALLEL} slots: more do not fit"
                )
            if setting.context_length < useful:
                warnings.append(f"service {wish.name} gets only {setting.context_length} tokens of context a slot")
            if self._tier == "cpu" and wish.gpu_layers not in (None, 0):
                warnings.append(f"{wish.place('gpu_layers')} has no effect on a node of tier cpu")
        return warnings


def _request(host: str, wish: ServiceWish, model: Model, tier: str) -> Request:
    files = tuple(item for item in model.gguf if wish.quantization in (None, item.quantization))
    if not files:
        if not model.gguf:
            raise PlanError(
                f"{host}: {wish.place('model')} is {model.name}, which has no GGUF file in inference_models; add one"
            )
        raise PlanError(
            f"{host}: {wish.place('quantization')} is {wish.quantization}, which {model.name} does not have; "
            f"give one of {choices_text(item.quantization for item in model.gguf)}"
        )
    if wish.context_length is not None and wish.context_length > model.context_length:
        raise PlanError(
            f"{host}: {wish.place('context_length')} is {wish.context_length}, above the {model.context_length} tokens "
            f"of {model.name}; " + wish.remedy("context_length", model.context_length)
        )
    gpu_layers: int | None = None
    if tier != "cpu":
        gpu_layers = model.layers if wish.gpu_layers in (None, "all") else min(int(str(wish.gpu_layers)), model.layers)
    return Request(model, files, wish.context_length, wish.parallel, wish.kv_cache_type, gpu_layers)


def _pick(
    candidates: Sequence[Mapping[str, Any]], pools: Mapping[str, Pool], request: Request
) -> tuple[Pool, Mapping[str, Any]]:
    """Choose a GPU: one that has room, with the fewest services; among equals the first candidate (most memory)."""
    need = sizing.demand(request, sizing.smallest(request)).total
    pairs = [(pools[placement.device_pool(device)], device) for device in candidates]
    roomy = [pair for pair in pairs if pair[0].taken + need <= pair[0].budget]
    if roomy:
        return min(roomy, key=lambda pair: len(pair[0].services))
    return max(pairs, key=lambda pair: pair[0].budget - pair[0].taken)


def _gpu_layers(request: Request) -> int | str:
    if request.gpu_layers is None:
        return 0
    return "all" if request.gpu_layers == request.model.layers else request.gpu_layers


def _device(device: Mapping[str, Any], tier: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the GPU, with what its container is given: a CDI name, else device nodes and the groups that own them."""
    index, uuid, vendor = device.get("index"), device.get("uuid"), device.get("vendor")
    runtime = facts.get("runtime") or {}
    known = (runtime.get("cdi") or {}).get("devices") or []
    cdi = None
    if vendor == "nvidia":
        # nvidia-ctk names every GPU by UUID and by index unless told otherwise; the UUID survives a changed order.
        by_index = f"nvidia.com/gpu={index}"
        cdi = f"nvidia.com/gpu={uuid}" if uuid else by_index
        if known and cdi not in known and by_index in known:
            cdi = by_index
    elif vendor == "amd" and f"amd.com/gpu={index}" in known:
        cdi = f"amd.com/gpu={index}"
    container_devices, container_groups = [cdi], []
    if cdi is None:
        nodes = ["/dev/kfd"] if tier == "rocm" else []
        container_devices = [*nodes, *([device["render_node"]] if device.get("render_node") else [])]
        # Groups by number: the name render has another number in the image, or none.
        numbers = facts.get("groups") or {}
        container_groups = [numbers[name] for name in ("render", "video") if numbers.get(name) is not None]
    return {
        "index": index,
        "uuid": uuid,
        "pci_bus_id": device.get("pci_bus_id"),
        "vendor": vendor,
        "container_devices": container_devices,
        "container_groups": container_groups,
    }


def _memory(need: Demand, pool: Pool) -> dict[str, Any]:
    return {
        "pool": pool.name,
        "weights_bytes": need.weights,
        "kv_cache_bytes": need.kv_cache,
        "overhead_bytes": need.overhead,
        "total_bytes": need.total,
        "budget_bytes": pool.budget,
    }


def _model_file(wishes: Wishes, model: Model, file: ModelFile) -> dict[str, Any]:
    # The checksum in the path keeps two files of one name apart, and an old version beside the new one.
    path = posixpath.join(wishes.models_path, "gguf", file.sha256[:12], file.file)
    return {
        "model": model.name,
        "quantization": file.quantization,
        "path": path,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "source": file.source,
    }


def _context_reason(request: Request, setting: Setting) -> str:
    if request.context_length is not None:
        return "wished"
    if setting.context_length < request.target_context:
        return "the largest step that fits"
    if setting.context_length == request.model.context_length:
        return "the model's maximum"
    return f"the cap on a {'GPU' if request.on_gpu else 'CPU'} unless wished"


def _cache_decision(cache: int) -> str:
    return f"prompt cache {cache // MIB} MiB of host memory: a share of what the services leave free"
