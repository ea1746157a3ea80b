# SPDX-License-Identifier: Apache-2.0
"""The plan of one node: its services with every setting resolved."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning import (
    assignment,
    backend_ollama,
    backend_sglang,
    backend_vllm,
    compatibility,
    images,
    kv_cache,
    placement,
    sizing,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.assignment import (
    Assignment,
    Candidate,
    Place,
    Refused,
    Wanted,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.backends import BACKENDS
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import (
    Catalog,
    Engine,
    Model,
    ModelFile,
    OllamaModel,
    Variant,
    Weights,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import (
    HOST_SHARE,
    SHORT_REQUEST,
    UNIT_SHARE,
    Artifact,
    Backend,
    Demand,
    Launch,
    Request,
    Setting,
    Share,
    Situation,
    Unit,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import (
    PlanError,
    Problems,
    choices_text,
    size_text,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.recommend import Node, recommend
from ansible_collections.fleet.inference.plugins.module_utils.planning.sizing import (
    CONTEXT_STEP,
    DEFAULT_PARALLEL,
    USEFUL_CONTEXT,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.units import find, names, units, unusable
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import (
    AUTO,
    SETTINGS,
    ServiceWish,
    Wishes,
    parse_wishes,
)

SCHEMA_VERSION = 1
FACTS_SCHEMA_VERSION = 1

#: Backends that page their KV cache: alone on a unit they take all that services may take of it.
PAGED = ("sglang", "vllm")
#: What a model lacks that a backend cannot load.
NEEDS = {
    "llamacpp": "no GGUF file",
    "ollama": "no Ollama tag and no GGUF file in one piece",
    "sglang": "no repository of safetensors",
    "vllm": "no repository of safetensors",
}
#: Why services on one unit start in the order of ``assignment.START_ORDER``.
START_REASONS = {
    "llamacpp": "llama.cpp takes its memory at the start",
    "ollama": "Ollama looks anew at what is free whenever it loads a model",
    "sglang": "SGLang takes a share of what is free when it starts",
    "vllm": "vLLM starts only when its share of the whole memory is free",
}
#: Backends that keep a cache of prompts in host memory.
PROMPT_CACHES = ("llamacpp", "ollama")


def plan_node(facts: Mapping[str, Any], wishes: Mapping[str, Any], catalog: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of one node.

    The same input gives the same plan; nothing is read or touched.

    Args:
        facts: ``ansible_facts.gpu`` of the node, as fleet.inference.gpu_facts returns it.
        wishes: The host's variables that the plan reads (see ``wishes.VARIABLES``), with ``host`` and ``ansible_host``.
        catalog: ``{"models": inference_models, "engines": inference_engines}``.

    Returns:
        A plain dictionary (schema_version 1): node, address, tier, recommendation (workload, why, better; None where
        the services are the user's), services, start_order, models, warnings. Sizes are bytes.

    Raises:
        PlanError: There is no plan; every problem is one sentence that begins with the host's name.
    """
    book = Catalog(str(wishes.get("host") or "this host"), catalog)
    wished = parse_wishes(wishes, book.backends)
    if not wished.auto:
        return _Planner(wished, facts, book).plan()
    found = recommend(recommended_node(facts, wishes, book), wished.workload, book)
    chosen = parse_wishes({**wishes, "inference_services": found["services"]}, book.backends)
    told = {"workload": wished.workload, "why": found["why"], "better": found["better"]}
    return {**_Planner(chosen, facts, book).plan(), "recommendation": told}


def recommended_node(facts: Mapping[str, Any], wishes: Mapping[str, Any], book: Catalog) -> Node:
    """Return a node to choose services for: what fits on it beside what its variables wish for whole backends.

    Args:
        facts: As for ``plan_node``.
        wishes: As for ``plan_node``; ``inference_services`` is not read.
        book: The catalog.

    Raises:
        PlanError: The variables or the facts are wrong, so that no services at all could be planned.
    """
    auto = parse_wishes({**wishes, "inference_services": AUTO}, book.backends)
    tier = _Planner(auto, facts, book).tier

    def fits(services: list[dict[str, Any]]) -> list[dict[str, Any]]:
        wished = parse_wishes({**wishes, "inference_services": services}, book.backends)
        return _Planner(wished, facts, book).outline()

    return Node(
        facts, fits, auto.host, tier=tier, gated=auto.gated_models, backends=auto.backends, wished=auto.whole_backends
    )


@dataclass(frozen=True)
class _Option:
    """What a service may be made of on some of the node's units: an image, and the artifacts that it serves there."""

    variant: Variant
    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True)
class _Service:
    """A service on its way through the plan: its own model, and the further ones that it serves."""

    wish: ServiceWish
    engine: Engine
    backend: Backend
    model: Model
    further: tuple[backend_ollama.Companion, ...]
    # By unit, or under None for the CPU.
    options: Mapping[str | None, _Option]


@dataclass(frozen=True)
class _Placed:
    """A service with its place: what it may be made of there, and what is to be sized."""

    service: _Service
    place: Place
    variant: Variant
    request: Request

    @property
    def name(self) -> str:
        """The service's name."""
        return self.service.wish.name


class _Planner:
    """The steps of one plan: tier and address, ports, what each service may be made of, places, sizing, the result."""

    def __init__(self, wishes: Wishes, facts: Mapping[str, Any], book: Catalog) -> None:
        self._host = wishes.host
        self._wishes = wishes
        self._facts = facts
        self._book = book
        self._problems = Problems()
        self._check_facts()
        self._tier = placement.node_tier(wishes, facts)
        self._address = self._problems.each(placement.node_address, wishes, facts) or ""
        self._engines = {wish.backend: book.engine(wish.backend) for wish in wishes.services}
        self._ports = self._problems.each(placement.assign_ports, wishes, self._engines, self._address, facts) or {}
        self._units: tuple[Unit, ...] = ()
        if self._tier != "cpu" and wishes.services:
            self._units = units(facts, self._tier)
            if not self._units:
                self._problems.each(self._no_unit)
        self._host_budget = self._host_memory()
        self._start_order: tuple[str, ...] = ()
        self._needs: dict[tuple[str, str, int, int, int], Demand] = {}

    def plan(self) -> dict[str, Any]:
        """Return the plan."""
        services = [self._problems.each(self._service, wish) for wish in self._wishes.services]
        self._problems.tell()
        known = [service for service in services if service is not None]
        placed = self._place(known)
        chosen = self._size(placed)
        planned = self._resolve(placed, chosen)
        models = {
            (entry["path"], entry.get("revision", ""), entry["model"] if "ollama" in entry else ""): entry
            for item in placed
            for entry in _stored(self._wishes, item.request, chosen[item.name].artifact)
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "node": self._host,
            "address": self._address,
            "tier": self._tier,
            "recommendation": None,
            "services": planned,
            "start_order": list(self._start_order),
            "models": [models[key] for key in sorted(models)],
            "warnings": self._warnings(placed, chosen),
        }

    @property
    def tier(self) -> str:
        """Tier that the node is used as."""
        return self._tier

    def outline(self) -> list[dict[str, Any]]:
        """Return the planned services, without advice on what would fit when they do not: a fraction of its time.

        Raises:
            PlanError: There is no plan.
        """
        self._problems.tell()
        services = [self._service(wish) for wish in self._wishes.services]
        found = self._assign(services)
        if found.refused:
            raise PlanError(f"{self._host}: there is not enough memory")
        self._start_order = found.start_order
        placed = self._at_places(services, found)
        return self._resolve(placed, self._size(placed))

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

    def _host_memory(self) -> int:
        total = self._facts.get("memory_total_bytes")
        if isinstance(total, bool) or not isinstance(total, int) or total < 1:
            raise PlanError(
                f"{self._host}: memory_total_bytes of the hardware facts is {total!r}; gather them again with "
                "fleet.inference.gpu_facts"
            )
        return int(total * HOST_SHARE)

    def _no_unit(self) -> None:
        reasons = "; ".join(unusable(self._facts, self._tier))
        raise PlanError(
            f"{self._host}: tier is {self._tier} but no {placement.tier_title(self._tier)} is usable"
            f"{f' ({reasons})' if reasons else ''}; repair it, or set inference_tier: cpu"
        )

    # what a service may be made of

    def _service(self, wish: ServiceWish) -> _Service:
        models = [self._book.model(name, wish.place(wish.models_setting)) for name in wish.models]
        model, widest = models[0], max(models, key=lambda model: model.context_length)
        backend, engine = BACKENDS[wish.backend], self._engines[wish.backend]
        if wish.context_length is not None and wish.context_length > widest.context_length:
            raise PlanError(
                f"{self._host}: {wish.place('context_length')} is {wish.context_length}, above the "
                f"{widest.context_length} tokens of {widest.name}; "
                + wish.remedy("context_length", widest.context_length)
            )
        if wish.kv_cache_type is not None and wish.kv_cache_type not in backend.kv_cache_types:
            raise PlanError(
                f"{self._host}: {wish.place('kv_cache_type')} is {wish.kv_cache_type!r}; give one of "
                f"{', '.join(backend.kv_cache_types)}"
            )
        if self._tier == "cpu" and wish.gpus is not None:
            raise PlanError(
                f"{self._host}: {wish.place('gpus')} names a GPU but the node's tier is cpu; "
                "leave it out or use a node with GPUs"
            )
        artifacts, further = self._forms(wish, models, backend)
        return _Service(wish, engine, backend, model, further, self._options(model, engine, artifacts))

    def _forms(
        self, wish: ServiceWish, models: Sequence[Model], backend: Backend
    ) -> tuple[tuple[Artifact, ...], tuple[backend_ollama.Companion, ...]]:
        """Return the forms of a service's own model, and its further models with theirs."""
        forms = [(model, self._wished_artifacts(wish, model, backend)) for model in models]
        found = backend_ollama.together(forms) if len(forms) > 1 else (forms[0][1], ())
        if found is None:
            names = {
                kind: next(model.name for model, items in forms if all(isinstance(item.source, kind) for item in items))
                for kind in (OllamaModel, ModelFile)
            }
            raise PlanError(
                f"{self._host}: {wish.place('models')} names {names[OllamaModel]}, which is only in the Ollama "
                f"library, and {names[ModelFile]}, which is only a GGUF file; serve them with two services"
            )
        return found

    def _wished_artifacts(self, wish: ServiceWish, model: Model, backend: Backend) -> tuple[Artifact, ...]:
        every = backend.artifacts(model)
        if not every:
            says = "is" if wish.models_setting == "model" else "names"
            raise PlanError(
                f"{self._host}: {wish.place(wish.models_setting)} {says} {model.name}, which has "
                f"{NEEDS[backend.name]} in inference_models; add one"
            )
        wished = tuple(item for item in every if wish.quantization in (None, item.name))
        if not wished:
            raise PlanError(
                f"{self._host}: {wish.place('quantization')} is {wish.quantization}, which {model.name} does not have "
                f"for {backend.name}; give one of {choices_text(item.name for item in every)}"
            )
        return wished

    def _options(self, model: Model, engine: Engine, artifacts: tuple[Artifact, ...]) -> dict[str | None, _Option]:
        """Return what the service may be made of on each unit, one of its images being able to run there."""
        options: dict[str | None, _Option] = {}
        refusals: list[str] = []
        # What runs on a GPU depends on its architecture alone.
        by_architecture: dict[str | None, _Option | None] = {}
        formats = tuple(dict.fromkeys(item.format for item in artifacts))
        for unit in self._units if self._tier != "cpu" else (None,):
            device = None if unit is None else unit.device
            architecture = None if unit is None else unit.architecture
            if architecture not in by_architecture:
                option = self._option(model, engine, device, artifacts)
                by_architecture[architecture] = option
                if option is None:
                    refusals.append(self._not_served(engine, device, formats, model))
            option = by_architecture[architecture]
            if option is not None:
                options[None if unit is None else unit.identity] = option
        if not options and refusals:
            raise PlanError(f"{self._host}: {refusals[0]}")
        return options

    def _option(
        self, model: Model, engine: Engine, device: Mapping[str, Any] | None, artifacts: tuple[Artifact, ...]
    ) -> _Option | None:
        formats = {item.format for item in artifacts}
        served = compatibility.served_formats(engine, self._tier, device, self._facts, formats, float16=model.float16)
        if not served:
            return None
        variant = served[0].variant
        names = {item.model_format for item in served if item.variant == variant}
        return _Option(variant, tuple(item for item in artifacts if item.format in names))

    def _not_served(
        self, engine: Engine, device: Mapping[str, Any] | None, formats: Sequence[str], model: Model
    ) -> str:
        """Say why none of the formats can be served on a device, and what is the nearest that can."""
        found = compatibility.first_variant(engine, self._tier, device, self._facts)
        if isinstance(found, Variant):
            found = compatibility.first_variant(
                engine, self._tier, device, self._facts, formats[0], float16=model.float16
            )
        if isinstance(found, Variant):
            return f"{engine.name} does not serve {formats[0]} on {'the CPU' if device is None else 'this GPU'}"
        return found.sentence(self._nearest(engine, device, model))

    def _nearest(
        self, engine: Engine, device: Mapping[str, Any] | None, model: Model
    ) -> compatibility.Alternative | None:
        """Return what would serve the model here: of each engine with the formats that the plan gives it."""
        found = []
        for other in self._book.sound_engines():
            if other.name not in self._book.backends:
                continue
            formats = tuple(dict.fromkeys(item.format for item in BACKENDS[other.name].artifacts(model)))
            near = compatibility.nearest(
                [other],
                engine.name,
                self._tier,
                device,
                self._facts,
                model_formats=formats,
                float16=model.float16,
            )
            found += [near] if near is not None else []
        return compatibility.best(found, engine.name, self._tier, device)

    # places

    def _request(self, service: _Service, count: int, artifacts: tuple[Artifact, ...]) -> Request:
        wish = service.wish
        wished = {
            name: getattr(wish, name)
            for name in ("gpu_layers", "max_requests", "max_batched_tokens", "memory_share", "max_loaded_models")
        }
        # The backends read their own names.
        options: dict[str, Any] = {
            SETTINGS[name][wish.backend]: value
            for name, value in wished.items()
            if value is not None and wish.backend in SETTINGS[name]
        }
        if service.further:
            options["models"] = service.further
        return Request(
            service=wish.name,
            model=service.model,
            artifacts=artifacts,
            units=count,
            context_length=wish.context_length,
            parallel=wish.parallel,
            kv_cache_type=wish.kv_cache_type or service.backend.kv_cache_types[0],
            options=options,
        )

    def _wanted(self, service: _Service) -> Wanted:
        wish, backend = service.wish, service.backend
        artifacts = self._artifacts(service)
        pins: tuple[str, ...] = ()
        if isinstance(wish.gpus, tuple):
            pins = tuple(self._pinned(wish, pin).identity for pin in wish.gpus)
        counts = self._counts(service, len(pins))
        candidates = []
        for count in counts:
            request = self._request(service, count, artifacts)
            ladder = list(backend.settings(request))
            candidates.append(
                Candidate(count, backend.demand(request, ladder[0]), backend.demand(request, _useful(request, ladder)))
            )
        return Wanted(
            name=wish.name,
            backend=wish.backend,
            candidates=tuple(candidates),
            pins=pins,
            count=counts[0] if counts[0] and (wish.gpus or wish.tensor_parallel_size) else None,
            current=self._current(wish),
            allowed=frozenset(identity for identity in service.options if identity is not None),
            # llama.cpp and Ollama spread whole layers.
            alike=wish.backend in PAGED,
        )

    def _counts(self, service: _Service, pinned: int) -> tuple[int, ...]:
        """Return over how many units the service may be spread."""
        wish = service.wish
        if self._tier == "cpu":
            return (0,)
        possible = service.backend.unit_counts(service.model, max(len(self._units), pinned))
        wished = pinned or (wish.gpus if isinstance(wish.gpus, int) else None) or wish.tensor_parallel_size
        if wished is None:
            return possible
        if wish.tensor_parallel_size not in (None, wished):
            raise PlanError(
                f"{self._host}: {wish.place('tensor_parallel_size')} is {wish.tensor_parallel_size} and "
                f"{wish.place('gpus')} is {wished}; give both the same number, or leave one out"
            )
        setting = "gpus" if wish.gpus is not None else "tensor_parallel_size"
        if wished > len(self._units):
            raise PlanError(
                f"{self._host}: {wish.place(setting)} asks for {wished} GPUs and {len(self._units)} can be used; "
                f"give at most {len(self._units)}"
            )
        if wished not in possible:
            raise PlanError(
                f"{self._host}: {wish.place(setting)} asks for {wished} GPUs, over which {wish.backend} cannot spread "
                f"{service.model.name} ({service.model.attention_heads} attention heads); give one of "
                f"{', '.join(map(str, possible))}"
            )
        return (wished,)

    def _pinned(self, wish: ServiceWish, pin: str | int) -> Unit:
        unit = find(self._units, pin, self._facts)
        if isinstance(unit, str):
            raise PlanError(f"{self._host}: {wish.place('gpus')} names {unit}")
        return unit

    def _current(self, wish: ServiceWish) -> tuple[str, ...]:
        """Return where the service runs now, by what the facts say of it."""
        units = placement.current_service(wish, self._facts).get("units")
        return () if units is None else tuple(units) or (assignment.HOST,)

    def _assign(self, services: Sequence[_Service]) -> Assignment:
        """Give the services places; who runs stays there, unless only moving makes room for all."""
        # Not the node's problems: a wish that is only tried must not add to them, nor fail because of them.
        problems = Problems()
        found = [problems.each(self._wanted, service) for service in services]
        problems.tell()
        wanted = [item for item in found if item is not None]
        kept = assignment.assign(wanted, self._units, self._host_budget)
        if kept.refused and any(item.current for item in wanted):
            anew = [replace(item, current=()) for item in wanted]
            moved = assignment.assign(anew, self._units, self._host_budget)
            if not moved.refused:
                return moved
        return kept

    def _place(self, services: Sequence[_Service]) -> list[_Placed]:
        """Find every service its units, or refuse all that have none, each with the nearest wish that has."""
        found = self._assign(services)
        for service in services:
            refused = found.refused.get(service.wish.name)
            if refused is not None:
                self._problems.each(self._refuse, service, refused, services)
        self._problems.tell()
        self._start_order = found.start_order
        return self._at_places(services, found)

    def _at_places(self, services: Sequence[_Service], found: Assignment) -> list[_Placed]:
        """Return the services with what each is made of at its place."""
        placed = []
        for service in services:
            place = found.places[service.wish.name]
            option = service.options[place.units[0].identity if place.units else None]
            # What all of its units serve.
            artifacts = tuple(
                item
                for item in option.artifacts
                if all(item in service.options[unit.identity].artifacts for unit in place.units)
            )
            request = self._request(service, place.candidate.count, artifacts)
            placed.append(_Placed(service, place, option.variant, request))
        return placed

    def _refuse(self, service: _Service, refused: Refused, services: Sequence[_Service]) -> None:
        wish = service.wish
        remedy = self._remedy(service, services)
        if refused.needs is None:
            advice = remedy or "take a smaller model, or other GPUs"
            raise PlanError(f"{self._host}: service {wish.name}: {refused.problem}; {advice}")
        on_host = (refused.where or "").startswith("host")
        advice = remedy or f"take a smaller model, or a {'node' if on_host else 'GPU'} with more memory"
        beside = f" beside {', '.join(refused.beside)}" if refused.beside else ""
        setting = next(iter(service.backend.settings(self._request(service, 0, self._artifacts(service)))))
        slots = f"{setting.parallel} slot{'s' if setting.parallel > 1 else ''} of {setting.context_length} tokens"
        more = f" and {len(service.further)} more of its models" if service.further else ""
        raise PlanError(
            f"{self._host}: service {wish.name} needs {size_text(refused.needs)} of {refused.where} for "
            f"{service.model.name} ({setting.artifact.name}, {slots}){more} and "
            f"{size_text(max(0, refused.available or 0))} "
            f"can be used{beside}; {advice}"
        )

    @staticmethod
    def _artifacts(service: _Service) -> tuple[Artifact, ...]:
        found: list[Artifact] = []
        for option in service.options.values():
            found += [item for item in option.artifacts if item not in found]
        return tuple(found)

    def _remedy(self, service: _Service, services: Sequence[_Service]) -> str | None:
        """Return the words for the wish nearest to the user's that is not refused, in the order of what it costs."""
        wish = service.wish

        def works(**changes: Any) -> bool:
            varied = replace(service, wish=replace(wish, **changes))
            try:
                found = self._assign([varied if item is service else item for item in services])
            except PlanError:
                return False
            return wish.name not in found.refused

        if wish.context_length is not None:
            context = _largest(wish.context_length - 1, lambda tokens: works(context_length=tokens))
            if context:
                return wish.remedy("context_length", context)
        if wish.parallel is not None and wish.parallel > 1:
            parallel = _largest(wish.parallel - 1, lambda slots: works(parallel=slots), step=1)
            if parallel:
                return wish.remedy("parallel", parallel)
        if wish.quantization is not None:
            for artifact in service.backend.artifacts(service.model):
                varied = replace(service, wish=replace(wish, quantization=artifact.name))
                if artifact.name != wish.quantization and self._fits_with(varied, service, services):
                    return wish.remedy("quantization", artifact.name)
        if service.further:
            most = min(len(wish.models), wish.max_loaded_models or len(wish.models)) - 1
            loaded = _largest(most, lambda number: works(max_loaded_models=number), step=1)
            if loaded:
                return f"{wish.remedy('max_loaded_models', loaded)} (Ollama then unloads one model to load another)"
        if wish.backend in SETTINGS["gpu_layers"] and self._tier != "cpu":
            layers = _largest(service.model.layers - 1, lambda number: works(gpu_layers=number), step=1)
            if layers is not None:
                return f"{wish.remedy('gpu_layers', layers)} (slower: the other layers stay in host memory)"
        return None

    def _fits_with(self, varied: _Service, service: _Service, services: Sequence[_Service]) -> bool:
        """Say whether a service has a place when it is made of something else."""
        try:
            models = [varied.model, *(item.model for item in varied.further)]
            artifacts, further = self._forms(varied.wish, models, varied.backend)
            options = self._options(varied.model, varied.engine, artifacts)
            rebuilt = replace(varied, further=further, options=options)
            found = self._assign([rebuilt if item is service else item for item in services])
        except PlanError:
            return False
        return varied.wish.name not in found.refused

    # sizes

    def _need(self, item: _Placed, setting: Setting) -> Demand:
        """Return what a setting of a placed service takes; the same ones are compared again and again."""
        # Two artifacts may have one name: a tag of a library and a file.
        artifact = setting.artifact
        key = (item.name, artifact.format, artifact.size_bytes, setting.context_length, setting.parallel)
        if key not in self._needs:
            self._needs[key] = item.service.backend.demand(item.request, setting)
        return self._needs[key]

    def _size(self, placed: Sequence[_Placed]) -> dict[str, Setting]:
        """Choose every service's setting: those that share memory climb together, as far as all of them fit."""
        ladders = {item.name: list(item.service.backend.settings(item.request)) for item in placed}
        chosen = {name: ladder[0] for name, ladder in ladders.items()}
        by_name = {item.name: item for item in placed}
        for group in _groups(placed):
            chosen = self._climb(by_name, chosen, {name: ladders[name] for name in group})
        return chosen

    def _climb(
        self, placed: Mapping[str, _Placed], chosen: Mapping[str, Setting], ladders: Mapping[str, Sequence[Setting]]
    ) -> dict[str, Setting]:
        """Return the settings with those of the ladders as high as all of them fit, each at its top at most."""

        def at(level: int) -> dict[str, Setting]:
            return {**chosen, **{name: ladder[min(level, len(ladder) - 1)] for name, ladder in ladders.items()}}

        # A higher level takes at least as much memory, so the highest that fits is found by halves.
        top = max(map(len, ladders.values())) - 1
        return at(_largest(top, lambda level: self._fit(placed, at(level)), step=1) or 0)

    def _fit(self, placed: Mapping[str, _Placed], settings: Mapping[str, Setting]) -> bool:
        for name, item in placed.items():
            allowed = _allowed(item, settings[name])
            if allowed is not None and self._need(item, settings[name]).total > allowed:
                return False
        taken, host = self._taken(placed, settings)
        budgets = {unit.identity: unit.budget for unit in self._units if not unit.unified}
        return host <= self._host_budget and all(taken[identity] <= budgets[identity] for identity in taken)

    def _taken(self, placed: Mapping[str, _Placed], settings: Mapping[str, Setting]) -> tuple[dict[str, int], int]:
        """Return the bytes that the settings take of each unit with memory of its own, and of the host."""
        taken: dict[str, int] = {}
        host = 0
        for name, item in placed.items():
            need = self._need(item, settings[name])
            host += need.host
            if not item.place.units:
                host += need.total
            for unit in item.place.units:
                if unit.unified:
                    host += need.total
                else:
                    taken[unit.identity] = taken.get(unit.identity, 0) + need.total
        return taken, host

    # the result

    def _resolve(self, placed: Sequence[_Placed], chosen: Mapping[str, Setting]) -> list[dict[str, Any]]:
        by_name = {item.name: item for item in placed}
        _taken, host = self._taken(by_name, chosen)
        caching = [item for item in placed if item.service.wish.backend in PROMPT_CACHES]
        spare = max(0, self._host_budget - host)
        cache = sizing.cache_ram(spare // max(1, len(caching)))
        threads = self._threads(placed)
        return [self._entry(item, chosen, by_name, cache, threads) for item in placed]

    def _share(self, item: _Placed, chosen: Mapping[str, Setting], placed: Mapping[str, _Placed]) -> Share:
        """Return what the service may take: an engine that pages its KV cache and is alone takes the whole budget."""
        need = self._need(item, chosen[item.name])
        earlier = {name: placed[name] for name in self._start_order[: self._start_order.index(item.name)]}
        taken, host = self._taken(earlier, chosen)
        if not item.place.units or item.place.units[0].unified:
            total = int(self._facts["memory_total_bytes"])
            return Share(need.total, total, host, not item.place.beside)
        unit = min(item.place.units, key=lambda unit: unit.memory_bytes or 0)
        before = max(taken.get(mine.identity, 0) for mine in item.place.units)
        alone = not item.place.beside
        share = unit.budget if alone and item.service.wish.backend in PAGED else need.total
        allowed = _allowed(item, chosen[item.name])
        share = share if allowed is None else min(share, allowed)
        return Share(share, unit.memory_bytes or 0, before, alone)

    def _entry(
        self,
        item: _Placed,
        chosen: Mapping[str, Setting],
        placed: Mapping[str, _Placed],
        cache: int,
        threads: int | None,
    ) -> dict[str, Any]:
        wish, setting, variant = item.service.wish, chosen[item.name], item.variant
        backend, units = item.service.backend, item.place.units
        need = self._need(item, setting)
        share = self._share(item, chosen, placed)
        concurrency = backend.concurrency(item.request, setting, share)
        launch = backend.launch(
            item.request,
            setting,
            Situation(
                engine=item.service.engine,
                variant=variant,
                tier=self._tier,
                units=units,
                share=share,
                served_name=item.service.model.name,
                threads=threads,
                prompt_cache_bytes=cache,
                extra_arguments=wish.extra_args,
                extra_environment=wish.extra_env,
                host=self._host,
            ),
        )
        layers = item.service.model.layers
        paged = wish.backend in PAGED and units
        spread = kv_cache.split(item.service.model, len(units)) if paged else kv_cache.Split(1, 1)
        return {
            "name": wish.name,
            "backend": wish.backend,
            "model": item.service.model.name,
            "models": _served(self._wishes, item, setting),
            "tier": self._tier,
            "variant": variant.name,
            "image": images.image_reference(variant.repository, variant.tag, variant.digest, self._wishes.registries),
            "address": self._address,
            "port": self._ports[wish.name],
            "container_port": item.service.engine.container_port,
            "devices": [placement.container_device(unit, self._tier, self._facts) for unit in units],
            "units": [{"identity": unit.identity, "title": unit.title} for unit in units],
            "tensor_parallel_size": spread.tensor,
            "pipeline_parallel_size": spread.pipeline,
            "format": setting.artifact.format,
            "quantization": setting.artifact.name,
            "context_length": setting.context_length,
            "parallel": setting.parallel,
            "concurrency": {
                "requests": concurrency.requests,
                "short_requests": concurrency.short_requests,
                "short_request_tokens": SHORT_REQUEST,
                "kv_cache_tokens": concurrency.kv_cache_tokens,
            },
            "kv_cache_type": item.request.kv_cache_type,
            "gpu_layers": _gpu_layers(item, layers) if wish.backend == "llamacpp" else None,
            "threads": threads,
            "memory": {
                "pool": units[0].identity if units and not units[0].unified else assignment.HOST,
                "weights_bytes": need.weights,
                "kv_cache_bytes": need.kv_cache,
                "overhead_bytes": need.overhead,
                "total_bytes": need.total,
                "share_bytes": share.bytes,
                "host_bytes": need.host,
                "budget_bytes": units[0].budget if units and not units[0].unified else self._host_budget,
            },
            "model_file": _model_file(self._wishes, item.service.model, setting.artifact),
            "model_source": _model_source(setting.artifact),
            "arguments": list(launch.arguments),
            "env": dict(launch.environment),
            "shared_memory_bytes": launch.shared_memory_bytes,
            "readiness_timeout_seconds": launch.readiness_timeout_seconds,
            "memory_limit_bytes": launch.memory_limit_bytes,
            "decisions": [
                *self._decisions(item, setting, share, threads),
                *launch.decisions,
                *_limit_decisions(launch),
            ],
        }

    def _moves(self, item: _Placed) -> str:
        """Return the words for what a service that runs elsewhere leaves; none for one that stays or is new."""
        current = set(self._current(item.service.wish))
        if not current or current == ({unit.identity for unit in item.place.units} or {assignment.HOST}):
            return ""
        titles = {unit.identity: unit.title for unit in self._units} | {assignment.HOST: "the CPU"}
        return f"; it moves from {names(titles.get(identity, identity) for identity in sorted(current))}"

    def _threads(self, placed: Sequence[_Placed]) -> int | None:
        """Share the node's cores among the services that compute on them: a core that two of them want slows both."""
        computing = sum(1 for item in placed if _computes_on_cores(item))
        cores = (self._facts.get("cpu") or {}).get("cores")
        if not computing or isinstance(cores, bool) or not isinstance(cores, int):
            return None
        return max(1, cores // computing)

    def _decisions(self, item: _Placed, setting: Setting, share: Share, threads: int | None) -> list[str]:
        """Say why image, units, share, start, artifact, KV cache type, threads and port are what they are."""
        wish, request = item.service.wish, item.request
        where = names(unit.title for unit in item.place.units) or "the CPU"
        decisions = [
            self._image_decision(item),
            f"placed on {where}: {item.place.reason}{self._moves(item)}",
            self._share_decision(item, setting, share),
            *self._start_decision(item),
            f"quantization {setting.artifact.name}: {_quantization_reason(item, setting)}",
            f"KV cache type {request.kv_cache_type}: "
            + ("the default, 16 bits a value" if wish.kv_cache_type is None else "wished"),
        ]
        if threads is not None and _computes_on_cores(item):
            decisions.append(f"{threads} threads: the node's cores, shared by the services that compute on them")
        if any(compatibility.compiles_at_start(item.variant, unit.device) for unit in item.place.units):
            decisions.append("first start: it takes minutes, for the driver compiles the image's code for this GPU")
        port = self._ports[wish.name]
        reason = placement.port_reason(wish, self._wishes, self._engines, port, self._facts)
        decisions.append(f"port {port}: {reason}")
        return decisions

    def _image_decision(self, item: _Placed) -> str:
        """Say which image it is: the first variant of the engine table that the node can run."""
        needs = f"tier {self._tier}"
        kinds = sorted({unit.architecture for unit in item.place.units if unit.architecture})
        needs += f", architecture {', '.join(kinds)}" if kinds else ""
        driver = (self._facts.get("driver") or {}).get("version")
        needs += f", driver {driver}" if driver and item.place.units else ""
        return f"image {item.variant.tag}: variant {item.variant.name}, the first that serves {needs}"

    @staticmethod
    def _share_decision(item: _Placed, setting: Setting, share: Share) -> str:
        """Say how much of its units' memory, or of the host's, the service may take, and why."""
        on_host = not item.place.units or item.place.units[0].unified
        bound = HOST_SHARE if on_host else UNIT_SHARE
        where = "the host" if on_host else "each unit"
        if _allowed(item, setting) == share.bytes:
            reason = "wished"
        elif item.service.wish.backend in PAGED and not on_host and not item.place.beside:
            reason = "all that services may take, for it is alone there"
        else:
            beside = f", beside {', '.join(item.place.beside)}" if item.place.beside else ""
            reason = f"what it needs by estimate{beside}; all services together get at most {bound * 100:.0f} %"
        return f"memory {size_text(share.bytes)} of {where} ({100 * share.bytes / share.unit_bytes:.0f} %): {reason}"

    def _start_decision(self, item: _Placed) -> list[str]:
        """Say when a service starts that shares a unit, nothing for any other."""
        if not item.place.beside:
            return []
        earlier = self._start_order[: self._start_order.index(item.name)]
        before = [name for name in earlier if name in item.place.beside]
        when = f"after {', '.join(before)}" if before else f"before {', '.join(item.place.beside)}"
        return [f"starts {when}: {START_REASONS[item.service.wish.backend]}"]

    def _warnings(self, placed: Sequence[_Placed], chosen: Mapping[str, Setting]) -> list[str]:
        """Return what is worse than wished or usual, the node's before the services'."""
        warnings = []
        driver = self._facts.get("driver") or {}
        if driver.get("reboot_required"):
            reason = driver.get("reboot_reason")
            warnings.append("the GPU driver waits for a restart of the node" + (f": {reason}" if reason else ""))
        if self._tier == "cpu" and self._facts.get("usable_count"):
            warnings.append("the node has usable GPUs that tier cpu leaves idle")
        for item in placed:
            wish, setting = item.service.wish, chosen[item.name]
            useful = min(USEFUL_CONTEXT, item.request.context_length or item.service.model.context_length)
            slots = "requests of full length at once" if wish.backend in PAGED else "slots"
            if wish.parallel is None and setting.parallel < DEFAULT_PARALLEL:
                warnings.append(
                    f"service {wish.name} gets {setting.parallel} of {DEFAULT_PARALLEL} {slots}: more do not fit"
                )
            if setting.context_length < useful:
                warnings.append(f"service {wish.name} gets only {setting.context_length} tokens of context a slot")
            if self._tier == "cpu" and wish.gpu_layers not in (None, 0):
                warnings.append(f"{wish.place('gpu_layers')} has no effect on a node of tier cpu")
        return warnings


def _useful(request: Request, ladder: Sequence[Setting]) -> Setting:
    """Return the first setting with a useful context and the usual number of requests at once."""
    context = min(USEFUL_CONTEXT, request.context_length or request.model.context_length)
    parallel = request.parallel or DEFAULT_PARALLEL
    for setting in ladder:
        if setting.context_length >= context and setting.parallel >= parallel:
            return setting
    return ladder[0]


def _allowed(item: _Placed, setting: Setting) -> int | None:
    """Return what the user lets the service take of each unit, None where the plan decides."""
    units = [unit.memory_bytes or 0 for unit in item.place.units if not unit.unified]
    if item.service.wish.memory_share is None or not units:
        return None
    if item.service.wish.backend == "vllm":
        return backend_vllm.BACKEND.allowed_bytes(item.request, min(units))
    return backend_sglang.BACKEND.allowed_bytes(item.request, setting, min(units))


def _groups(placed: Sequence[_Placed]) -> list[list[str]]:
    """Return the services that share memory with each other, those on GPUs of their own before those in the host's."""
    groups: list[tuple[set[str], list[str]]] = []
    for item in sorted(placed, key=lambda item: item.name):
        pools = {unit.identity for unit in item.place.units if not unit.unified} or {assignment.HOST}
        joined = [group for group in groups if group[0] & pools]
        for group in joined:
            groups.remove(group)
        groups.append((pools.union(*(group[0] for group in joined)), [*(n for g in joined for n in g[1]), item.name]))
    ordered = sorted(groups, key=lambda group: (assignment.HOST in group[0], sorted(group[1])))
    return [sorted(names) for _pools, names in ordered]


def _largest(most: int, works: Callable[[int], bool], step: int = CONTEXT_STEP) -> int | None:
    """Return the largest multiple of the step that works, up to ``most``, None when none does; less needs less."""
    low, high = 0, most // step
    if high < 1 or not works(step):
        return None
    low = 1
    while low < high:
        middle = (low + high + 1) // 2
        if works(middle * step):
            low = middle
        else:
            high = middle - 1
    return low * step


def _limit_decisions(launch: Launch) -> list[str]:
    """Say what the container's memory limit and the deadline of its start are made of."""
    return [
        f"host memory limit {size_text(launch.memory_limit_bytes)}: its estimate and {sizing.LIMIT_MARGIN_PERCENT} %",
        f"deadline {launch.readiness_timeout_seconds} s to the first answer: its start, and a slow disk's time to read "
        "the weights",
    ]


def _quantization_reason(item: _Placed, setting: Setting) -> str:
    """Say why a service is made of an artifact, and what of the model's others its image does not serve there."""
    if item.service.wish.quantization is not None:
        return "wished"
    forms = list(dict.fromkeys(artifact.name for artifact in item.request.artifacts))
    largest = max(item.request.artifacts, key=lambda artifact: (artifact.size_bytes, artifact.name))
    reason = "the only one" if len(forms) == 1 else f"the best of {', '.join(forms)}"
    if setting.artifact != largest and len(forms) > 1:
        reason += " that leaves memory for requests"
    others = {artifact.name for artifact in item.service.backend.artifacts(item.service.model)} - set(forms)
    return f"{reason}; not served here: {choices_text(others)}" if others else reason


def _computes_on_cores(item: _Placed) -> bool:
    if not item.place.units:
        return True
    layers = item.service.wish.gpu_layers
    models = (item.service.model, *(further.model for further in item.service.further))
    return isinstance(layers, int) and any(layers < model.layers for model in models)


def _gpu_layers(item: _Placed, layers: int) -> int | str:
    if not item.place.units:
        return 0
    wished = item.service.wish.gpu_layers
    return "all" if wished in (None, "all") or int(str(wished)) >= layers else int(str(wished))


def _served(wishes: Wishes, item: _Placed, setting: Setting) -> list[dict[str, Any]]:
    """Return all models that a service serves, its own first, each with its form and what its requests get."""
    if item.service.wish.backend == "ollama":
        served = [
            (runner.model, runner.artifact, runner.slots.context, runner.slots.parallel)
            for runner in backend_ollama.runners(item.request, setting)
        ]
    else:
        served = [(item.service.model, setting.artifact, setting.context_length, setting.parallel)]
    return [
        {
            "name": model.name,
            "quantization": artifact.name,
            "context_length": context,
            "parallel": parallel,
            "model_file": _model_file(wishes, model, artifact),
            "model_source": _model_source(artifact),
        }
        for model, artifact, context, parallel in served
    ]


def _model_file(wishes: Wishes, model: Model, artifact: Artifact) -> dict[str, Any] | None:
    """Return the GGUF file that the engine is given, of a split model the first part; None without one."""
    files = _model_files(wishes, model, artifact)
    return files[0] if files else None


def _model_files(wishes: Wishes, model: Model, artifact: Artifact) -> list[dict[str, Any]]:
    """Return the GGUF files that the store must hold: one, or all parts of a split model side by side."""
    if not isinstance(artifact.source, ModelFile):
        return []
    # The checksum in the path keeps two files of one name apart, and an old version beside the new one.
    folder = posixpath.join(wishes.models_path, "gguf", artifact.source.sha256[:12])
    return [
        {
            "model": model.name,
            "quantization": file.quantization,
            "path": posixpath.join(folder, file.file),
            "size_bytes": file.size_bytes,
            "sha256": file.sha256,
            "source": file.source,
        }
        for file in artifact.source.parts or (artifact.source,)
    ]


def _stored(wishes: Wishes, request: Request, artifact: Artifact) -> list[dict[str, Any]]:
    """Return everything that the store must hold for a service, with the further models that it serves."""
    further = ((item.model, item.artifact) for item in request.options.get("models", ()))
    return [entry for pair in ((request.model, artifact), *further) for entry in _store_entries(wishes, *pair)]


def _store_entries(wishes: Wishes, model: Model, artifact: Artifact) -> list[dict[str, Any]]:
    """Return what the store must hold for one model: GGUF files, a repository, or a model of the Ollama library."""
    source, words = artifact.source, {"model": model.name, "quantization": artifact.name}
    if isinstance(source, Weights):
        # The folder's name in a Hugging Face cache (https://huggingface.co/docs/hub/local-cache).
        folder = "models--" + source.repository.replace("/", "--")
        return [
            {
                **words,
                "path": posixpath.join(wishes.models_path, "huggingface", folder),
                "size_bytes": source.size_bytes,
                "repository": source.repository,
                "revision": source.revision,
                "files": list(source.files),
            }
        ]
    if isinstance(source, OllamaModel):
        path = posixpath.join(wishes.models_path, "ollama")
        return [{**words, "path": path, "size_bytes": source.size_bytes, "ollama": source.tag}]
    return _model_files(wishes, model, artifact)


def _model_source(artifact: Artifact) -> dict[str, Any]:
    source = artifact.source
    if isinstance(source, Weights):
        return {"repository": source.repository, "revision": source.revision, "size_bytes": source.size_bytes}
    if isinstance(source, OllamaModel):
        return {"ollama": source.tag, "size_bytes": source.size_bytes}
    return {"file": source.file, "size_bytes": source.size_bytes}
