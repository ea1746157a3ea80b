# SPDX-License-Identifier: Apache-2.0
"""Which backends and models suit a node, by a workload: rules, limited by what runs and fits there.

The rules, in the order in which they decide:

1. A backend is one that this version plans, with an image that runs on a device of the node and serves a format of the
   model there.
2. A model has the capabilities that the workload needs and a context as long as it needs, is not gated unless that is
   allowed, and is fast enough (the workload's ``tokens_per_second``), as measured or else as estimated from the
   memory's speed. It fits, with the workload's context and number of requests at once, as the plan says.
3. Of those the one of the best ``quality`` is taken, less what its backend must offer more than the first one of the
   workload's order (``Role.cost``). Backends that were measured on this node, with one model and one number of users,
   change places in that order by what was measured; on a CPU llama.cpp comes first.
4. For chat users, copies of one model share the load where each has GPUs of its own; twice as many copies make up for a
   little quality (``COPIES_WORTH``).
5. When nothing fits so, half of the workload's context and requests is asked for, a quarter and so on; when no model is
   fast enough, the fastest that fits is taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ansible_collections.fleet.inference.plugins.module_utils.planning.backends import BACKENDS
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import TIERS, Catalog, Model
from ansible_collections.fleet.inference.plugins.module_utils.planning.compatibility import (
    Refusal,
    device_title,
    first_variant,
    served_formats,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import (
    PlanError,
    size_text,
    suggestion_text,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.measurements import parse_measurements
from ansible_collections.fleet.inference.plugins.module_utils.planning.workloads import (
    BACKEND_WORTH,
    CPU_ROLE,
    WORKLOADS,
    Role,
)

Wish = dict[str, Any]
#: Gives the plan's services for services as in ``inference_services``; raises PlanError when there is no plan.
Fits = Callable[[list[Wish]], Sequence[Mapping[str, Any]]]

#: Bytes a second that memory is read with, which bounds how fast a model answers one user: every active weight is read
#: for every token. Planning values: two channels of DDR4-3200 (51 GB/s) for every 16 cores of a CPU, which have twice
#: as many channels where there are twice as many; the unified memory of GB10 (273 GB/s) and Strix Halo (256 GB/s). A
#: discrete GPU reads what fits in it fast enough.
CPU_BYTES_PER_SECOND, CPU_CORES = 51 * 10**9, 16
UNIFIED_BYTES_PER_SECOND = 256 * 10**9
#: Planning value: active parameters a core computes fast enough to read a prompt of 1,000 tokens in about 30 seconds:
#: two operations a parameter and token, and some 30 billion useful operations a second and core with AVX2.
CPU_PARAMETERS_PER_CORE = 500_000_000
#: Quality is told in steps, each of them twice the size, counted from this size; only their difference matters.
SMALLEST_MODEL = 1_500_000_000
#: Steps that a liked capability is worth: what a model can do came with newer training, which made a model as good as
#: an older one of 1.7 times its size.
CAPABILITY_WORTH = 0.75
#: Steps that twice as many copies are worth, where copies of one model share the load of many users.
COPIES_WORTH = 0.25
#: Steps that the model of a workload's second service may lie below that of its first: an eighth of its size.
ROLE_STEPS = 3.0
#: How many of the smallest models are tried before a role is given up: the very smallest may lack a form that fits.
_SMALLEST = 3


@dataclass(frozen=True)
class _Level:
    """How far the choice gives way: by what context and requests are divided (None for any), and whether it is slow."""

    divisor: int | None
    slow: bool = False

    def floor(self, number: int) -> int:
        """Return what is left of a number that the workload asks for."""
        return max(1, number // self.divisor) if self.divisor else 0


_WELL, _SLOW = _Level(1), _Level(None, slow=True)
_LEVELS = (_WELL, _Level(2), _Level(4), _Level(8), _Level(None), _SLOW)


@dataclass(frozen=True)
class _Choice:
    """A role on one node: its backends that run there, and whether measured results changed their order."""

    role: Role
    backends: tuple[str, ...]
    measured: bool

    def cost(self, backend: str) -> float:
        """Return the steps of quality that a backend must offer more than the first one."""
        return self.role.cost(backend, self.backends[0])


class Recommendation(TypedDict):
    """What a node should serve: services as in ``inference_services``, why, and what would do better (sentences)."""

    services: list[Wish]
    why: list[str]
    better: list[str]


@dataclass(frozen=True)
class Node:
    """A node to choose for.

    ``fits`` gives the plan for services; ``measured`` are results in place of those in the facts. ``tier`` is what the
    node is used as, its facts' own when None. With ``gated`` models may be recommended whose licence must be accepted
    before they can be downloaded; ``backends`` may be recommended, None for all that are planned. ``wished`` holds by
    backend what the host's variables set for all of its services: ``context_length`` and ``parallel``.
    """

    facts: Mapping[str, Any]
    fits: Fits
    host: str = "this host"
    measured: Sequence[Mapping[str, Any]] | None = None
    tier: str | None = None
    gated: bool = False
    backends: Iterable[str] | None = None
    wished: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def effective_parameters(model: Model) -> float:
    """Return the size of the dense model that a model is worth.

    For a mixture of experts that is the geometric mean of all and of active parameters, the field's rule of thumb.
    """
    return math.sqrt(model.parameters * (model.active_parameters or model.parameters))


def quality(model: Model, likes: Sequence[str] = ()) -> float:
    """Return how good a model is for a workload that likes some capabilities, in steps of twice the size."""
    liked = sum(capability in model.capabilities for capability in likes)
    return math.log2(effective_parameters(model) / SMALLEST_MODEL) + CAPABILITY_WORTH * liked


def rank(model: Model, likes: Sequence[str] = ()) -> tuple[Any, ...]:
    """Return a model's place in the order of quality, higher is better.

    Between equals its context decides, then its name with numbers compared as numbers, by which a family's newer
    version comes before the older one.
    """
    name = tuple((part.isdigit(), int(part) if part.isdigit() else part) for part in re.findall(r"\d+|\D+", model.name))
    return quality(model, likes), model.context_length, name


def recommend(node: Node, workload: str, catalog: Catalog) -> Recommendation:
    """Return what a node should serve for a workload (one of ``WORKLOADS``).

    Entries of the catalog that are wrong are not recommended.

    Raises:
        PlanError: The workload or a measured result is wrong, or no model of the catalog suits the node.
    """
    return Chooser(node, workload, catalog).recommend()


class Chooser:
    """The choice for one node."""

    def __init__(self, node: Node, workload: str, catalog: Catalog) -> None:
        if workload not in WORKLOADS:
            raise PlanError(
                f"{node.host}: the workload is {workload!r}, which is not known; "
                + suggestion_text(str(workload), WORKLOADS, "known")
            )
        self._node, self._facts = node, node.facts
        self._name, self._workload = workload, WORKLOADS[workload]
        self._tier = str(node.tier or node.facts.get("tier"))
        if self._tier not in TIERS:
            raise PlanError(f"{node.host}: its tier is {self._tier!r}; gather the facts with fleet.inference.gpu_facts")
        self._devices = _devices(self._tier, node.facts)
        self._places = sum(len(((item or {}).get("mig") or {}).get("instances") or ()) or 1 for item in self._devices)
        measured = node.facts.get("measurements") if node.measured is None else node.measured
        self._measured = parse_measurements(node.host, measured or ())
        allowed = set(catalog.backends if node.backends is None else node.backends)
        self._engines = {engine.name: engine for engine in catalog.sound_engines() if engine.name in allowed}
        self._tried: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._refusals: dict[tuple[str, str], str] = {}
        self._working: set[str] = set()
        self._served: dict[tuple[str, str], bool] = {}
        self.replicates = self._workload.replicas
        known = _models(catalog)
        suited = [model for model in known if self._suits(model)]
        suited.sort(key=self.rank, reverse=True)
        self._gated = [] if node.gated else [model for model in suited if model.gated]
        #: Models that suit the workload, best first.
        self.models = [model for model in suited if node.gated or not model.gated]
        self._roles = self._choices()

    def recommend(self, common: str | None = None) -> Recommendation:
        """Return the recommendation, with a model that other nodes serve when one is given."""
        for level in _LEVELS:
            for count in range(len(self._roles), 0, -1):
                services = self._choose(self._roles[:count], common, level)
                if services:
                    return {
                        "services": services,
                        "why": self._why(services, self._roles[:count], common, level),
                        "better": self._better(services, level),
                    }
        # The last that was tried is the fastest, which needs the least.
        reasons = [*list(self._refusals.values())[-1:], *self._better([], _SLOW)]
        raise PlanError(
            f"{self._node.host}: no model of the catalog can be served for the workload {self._name}; "
            + ("; ".join(reasons) or f"add a model with {' and '.join(self._workload.needs)}")
        )

    def quality(self, model: Model) -> float:
        """Return how good a model is for the workload."""
        return quality(model, self._workload.likes)

    def rank(self, model: Model) -> tuple[Any, ...]:
        """Return a model's place in the order of quality for the workload."""
        return rank(model, self._workload.likes)

    def serves_well(self, model: Model) -> bool:
        """Tell whether the node can serve a model as the workload needs it."""
        return model in self.models and self._could_serve(model, _WELL)

    def _suits(self, model: Model) -> bool:
        work = self._workload
        return set(work.needs) <= set(model.capabilities) and model.context_length >= work.context_length

    def _choices(self) -> list[_Choice]:
        """Return the services to choose, each with its backends that run here in the order of the rules."""
        found: list[_Choice] = []
        for role in (CPU_ROLE,) if self._tier == "cpu" else self._workload.roles:
            running = [name for name in role.backends if self._runs(name)]
            ordered = self._by_measurement(running)
            # Two services of one backend would be no second way to serve.
            free = tuple(name for name in ordered if all(name != other.backends[0] for other in found))
            if free:
                found.append(_Choice(role, free, ordered != running))
        return found

    def _runs(self, backend: str) -> bool:
        engine = self._engines.get(backend)
        return engine is not None and any(
            not isinstance(first_variant(engine, self._tier, device, self._facts), Refusal) for device in self._devices
        )

    def _by_measurement(self, backends: Sequence[str]) -> list[str]:
        """Order the backends that were measured alike by their results; the others keep their places."""
        alike: dict[tuple[str, int], dict[str, float]] = {}
        for item in self._measured:
            score = item.score(self._workload.many_users)
            if item.backend in backends and score is not None:
                group = alike.setdefault((item.model, item.concurrency), {})
                group[item.backend] = max(score, group.get(item.backend, -math.inf))
        comparable = {key: group for key, group in alike.items() if len(group) > 1}
        if not comparable:
            return list(backends)
        users = 1 if self._workload.many_users else -1
        model_rank = {model.name: number for number, model in enumerate(reversed(self.models))}

        def weight(key: tuple[str, int]) -> tuple[int, int, int, str]:
            return len(comparable[key]), users * key[1], model_rank.get(key[0], -1), key[0]

        scores = comparable[max(comparable, key=weight)]
        ordered = iter(sorted((name for name in backends if name in scores), key=lambda name: -scores[name]))
        return [next(ordered) if name in scores else name for name in backends]

    def _choose(self, roles: Sequence[_Choice], common: str | None, level: _Level) -> list[Wish]:
        """Return the services of all roles, the first role's model the best beside the least for the others."""
        first = [model for model in self.models if model.name == common]
        services = self._serve([], roles[0], first[0], level) if first else []
        if not services or not self.replicates:
            # The common model stands where the choice begins: what is chosen has to fit beside it, or it stands alone.
            services = self._fill(services, roles, level) or services
        if not self.replicates or len(services) != 1:
            return services
        return self._replicate(services, level) if first else self._most_useful_copies(services, roles[0], level)

    def _most_useful_copies(self, services: list[Wish], role: _Choice, level: _Level) -> list[Wish]:
        """Return copies of the best model, or of one that is a little less good and has room for more of them."""
        best = self._replicate(services, level)
        if level.slow or self._places < 2:
            return best
        for model in self.models:
            most = self.quality(model) + COPIES_WORTH * math.log2(self._places)
            if most > self._usefulness(best, role):
                single = self._serve([], role, model, level)
                best = max(best, self._replicate(single, level), key=lambda found: self._usefulness(found, role))
        return best

    def _usefulness(self, copies: Sequence[Wish], role: _Choice) -> float:
        """Return the quality of copies of one model, with what their number and their backend are worth."""
        if not copies:
            return -math.inf
        quality = sum(self.quality(model) for model in self._chosen(copies))
        return quality + COPIES_WORTH * math.log2(len(copies)) - role.cost(copies[0]["backend"])

    def _fill(self, fixed: list[Wish], roles: Sequence[_Choice], level: _Level) -> list[Wish]:
        """Give every role its service, beside those that are fixed; none, when one role remains without."""
        if not roles:
            return fixed
        role, rest = roles[0], roles[1:]
        found: list[tuple[float, list[Wish]]] = []
        for backend in role.backends:
            best = self._best(fixed, role, backend, rest, level)
            if best is not None:
                model, services = best
                worth = -_active(model) if level.slow else self.quality(model) - role.cost(backend)
                found.append((worth, services))
        if not found:
            return []
        # The first of the best: the order of the rules.
        _worth, services = max(found, key=lambda item: item[0])
        return self._fill(services, rest, level)

    def _best(
        self, fixed: list[Wish], role: _Choice, backend: str, rest: Sequence[_Choice], level: _Level
    ) -> tuple[Model, list[Wish]] | None:
        """Return a backend's best model that leaves room for the other roles, with the services that it makes."""
        for model in self._in_order(level):
            serving = [wish["backend"] for wish in fixed if wish["model"] == model.name]
            if serving and backend not in serving:
                # The same model on another backend would be no second choice.
                continue
            services = fixed if serving else self._serve_with(backend, fixed, model, level)
            if services and all(self._leaves_room(services, model, other, level) for other in rest):
                return model, services
        return None

    def _in_order(self, level: _Level) -> list[Model]:
        """Return the models in the order in which they are tried: the best first, or the fastest where all are slow."""
        if not level.slow:
            return self.models
        return sorted(self.models, key=lambda model: (_active(model), model.name))

    def _leaves_room(self, fixed: list[Wish], first: Model, role: _Choice, level: _Level) -> bool:
        """Tell whether a model that is worth it still fits beside the first one: the smallest ones are tried."""
        models = [
            model
            for model in self.models
            if model != first
            and self.quality(model) >= self.quality(first) - ROLE_STEPS
            and any(self._is_served(name, model) for name in role.backends)
        ]
        models.sort(key=lambda model: (min(size for name in role.backends for size in _sizes(name, model)), model.name))
        return any(self._serve(fixed, role, model, level) for model in models[:_SMALLEST])

    def _serve(self, fixed: list[Wish], role: _Choice, model: Model, level: _Level) -> list[Wish]:
        """Return the services with one more for a model, on the role's first backend that serves it; none, if none."""
        found = (self._serve_with(backend, fixed, model, level) for backend in role.backends)
        return next((services for services in found if services), [])

    def _serve_with(self, backend: str, fixed: list[Wish], model: Model, level: _Level) -> list[Wish]:
        """Return the services with one more for a model on a backend; none, when it cannot serve it as well."""
        if not self._is_served(backend, model) or not (level.slow or self._is_fast(backend, model)):
            return []
        if min(_sizes(backend, model)) > self._memory():
            return []
        plain: Wish = {"backend": backend, "model": model.name}
        # Left to itself the plan may trade slots for context and context for slots: then both are asked for.
        wished = self._node.wished.get(backend, {})
        asked = {key: number for key, number in self._least(backend, level).items() if key not in wished}
        for wish in [plain, {**plain, **asked}] if level.divisor else [plain]:
            if self._is_good([*fixed, wish], level):
                return [*fixed, wish]
        return []

    def _least(self, backend: str, level: _Level) -> dict[str, int]:
        """Return the least context and requests at once that a service needs: no more than the host's variables set."""
        work, wished = self._workload, self._node.wished.get(backend, {})
        own = (role.role.parallel for role in self._roles if backend in role.backends and role.role.parallel)
        parallel = next(own, work.parallel)
        needs = {"context_length": level.floor(work.context_length), "parallel": level.floor(parallel)}
        return {key: min(number, wished.get(key, number)) for key, number in needs.items()}

    def _memory(self) -> int:
        """Return all bytes of the node, of which every model needs fewer: the cheapest reason not to ask the plan."""
        return sum((item or {}).get("memory_total_bytes") or 0 for item in (*self._devices, self._facts))

    def _replicate(self, services: list[Wish], level: _Level) -> list[Wish]:
        """Add copies of a single service, as long as each has devices of its own."""
        for count in range(self._places if services else 0, 1, -1):
            copies = [dict(services[0]) for _copy in range(count)]
            if self._is_good(copies, level) and _apart(self._planned(copies)):
                return copies
        return services

    def _planned(self, wishes: list[Wish]) -> Sequence[Mapping[str, Any]]:
        """Return the services of the plan for wishes, none when there is no plan."""
        key = repr(wishes)
        if key not in self._tried:
            try:
                self._tried[key] = self._node.fits([dict(wish) for wish in wishes])
                self._working.update(wish["backend"] for wish in wishes)
            except PlanError as error:
                self._tried[key] = ()
                if len(wishes) == 1:
                    refusal = error.problems[0].removeprefix(f"{self._node.host}: ")
                    self._refusals[wishes[0]["backend"], wishes[0]["model"]] = refusal
        return self._tried[key]

    def _is_good(self, wishes: list[Wish], level: _Level) -> bool:
        planned = self._planned(wishes)
        return bool(planned) and all(
            (item.get(key) or 0) >= number
            for wish, item in zip(wishes, planned, strict=True)
            for key, number in self._least(wish["backend"], level).items()
        )

    def _is_served(self, backend: str, model: Model) -> bool:
        """Tell whether a backend serves one of the model's formats on a device of the node."""
        formats = _formats(backend, model)
        key = backend, " ".join(formats)
        if key not in self._served:
            engine = self._engines[backend]
            self._served[key] = any(
                served_formats(engine, self._tier, device, self._facts, formats) for device in self._devices
            )
        return self._served[key]

    def _is_fast(self, backend: str, model: Model) -> bool:
        """Tell whether one user gets enough tokens a second: as measured, else as the memory is read."""
        measured = [
            item.tokens_per_second / item.concurrency
            for item in self._measured
            if item.backend == backend and item.model == model.name and item.tokens_per_second is not None
        ]
        if measured:
            return max(measured) >= self._workload.tokens_per_second
        speed = self._bytes_per_second()
        if speed is None:
            return True
        active = _active(model)
        cores = (self._facts.get("cpu") or {}).get("cores")
        if self._tier == "cpu" and cores and active > cores * CPU_PARAMETERS_PER_CORE:
            return False
        return active / model.parameters * max(_sizes(backend, model)) * self._workload.tokens_per_second <= speed

    def _bytes_per_second(self) -> int | None:
        """Return how fast the memory is read that models are in, None when it is fast enough for all of them."""
        if self._tier == "cpu":
            cores = (self._facts.get("cpu") or {}).get("cores") or 0
            return CPU_BYTES_PER_SECOND * max(1, cores // CPU_CORES)
        if any(device and not device.get("unified_memory") for device in self._devices):
            return None
        return UNIFIED_BYTES_PER_SECOND

    def _why(self, services: list[Wish], roles: Sequence[_Choice], common: str | None, level: _Level) -> list[str]:
        """Return a sentence for every rule that decided."""
        work, chosen, found = self._workload, self._chosen(services), []
        for role in roles:
            found.append(f"workload {self._name}: {role.role.rule}")
            if role.measured:
                found.append(f"measured on this node, {role.backends[0]} does better than the order of the rules says")
            used = [name for name in role.backends if any(wish["backend"] == name for wish in services)]
            found += self._passed_over(role, used[0], chosen) if used else []
        if not self._measured:
            found.append("there are no measured results of this node, so the rules decide")
        backends = {wish["model"]: wish["backend"] for wish in services}
        found += [self._why_model(model, backends[model.name], model is chosen[0], common, level) for model in chosen]
        if len(services) > 1 and len(chosen) == 1 and work.replicas:
            found.append(f"{len(services)} services of one model share the load of many users")
        return list(dict.fromkeys(found))

    def _why_model(self, model: Model, backend: str, first: bool, common: str | None, level: _Level) -> str:
        """Say why a model was chosen: the first one, or one that is to fit beside it."""
        work = self._workload
        size = f"{model.parameters / 10**9:.1f} billion parameters"
        if model.active_parameters:
            size += f", {model.active_parameters / 10**9:.1f} of them active"
        reason = f"is the best for {' and '.join(work.needs)} that {backend} serves here" + (
            "" if first else " beside it"
        )
        if first and level.divisor:
            reason += f" with {_room(level.floor(work.context_length), level.floor(work.parallel))}"
        if first and level != _WELL:
            reason += f"; the workload needs {_room(work.context_length, work.parallel)}"
        if self._bytes_per_second() is not None:
            reason += f", at {work.tokens_per_second} tokens a second or more"
        if model.name == common:
            reason = "is what the nodes of this fleet have in common"
        elif level.slow:
            reason = f"is the fastest that fits; none gives a user {work.tokens_per_second} tokens a second"
        return f"{model.name} ({size}) {reason}"

    def _passed_over(self, role: _Choice, used: str, chosen: Sequence[Model]) -> list[str]:
        """Say why the backends that the rule puts before the used one do not serve."""
        found = []
        for backend in role.role.backends[: role.role.backends.index(used)]:
            if backend not in self._engines:
                found.append(f"{backend} may not be recommended here")
            elif not self._runs(backend):
                found += [f"{backend} does not run here: {refusal.problem}" for refusal in self._nearest(backend)]
            elif backend not in role.backends[: role.backends.index(used)]:
                other = any(choice.backends[0] == backend for choice in self._roles if choice is not role)
                found.append(f"{backend} {'serves the other part of the workload' if other else 'was measured slower'}")
            else:
                found += [self._why_not(backend, model) for model in chosen[:1]]
        return found

    def _why_not(self, backend: str, model: Model) -> str:
        """Say why a backend that runs here does not serve a model as it is recommended."""
        every = {text for (name, _model), text in self._refusals.items() if name == backend}
        if backend not in self._working and len(every) == 1:
            # What is wrong for all models alike: the host's variables, or the node.
            return f"{backend} cannot serve any model here: {every.pop()}"
        refusal = self._refusals.get((backend, model.name))
        if not _formats(backend, model):
            return f"the catalog has {model.name} in no format for {backend}"
        if not self._is_served(backend, model):
            return f"{backend} serves no format of {model.name} here"
        if not self._is_fast(backend, model):
            return f"{backend} is too slow here with {model.name}"
        if refusal is not None:
            return f"{backend} cannot serve {model.name} as the workload needs it: {refusal}"
        return f"{backend} has no room for the context and the requests at once with {model.name}"

    def _nearest(self, backend: str) -> list[Refusal]:
        """Return the refusal of the device that comes closest to running a backend."""
        answers = [first_variant(self._engines[backend], self._tier, device, self._facts) for device in self._devices]
        refusals = [answer for answer in answers if isinstance(answer, Refusal)]
        return [max(refusals, key=lambda item: item.closeness)] if refusals else []

    def _chosen(self, services: Sequence[Wish]) -> list[Model]:
        models = {model.name: model for model in self.models}
        return [models[name] for name in dict.fromkeys(wish["model"] for wish in services)]

    def _better(self, services: Sequence[Wish], level: _Level) -> list[str]:
        """Return what it would take to do better."""
        found = [*self._better_backends(services), *self._better_devices()]
        best = max((self.quality(model) for model in self._chosen(services)), default=-math.inf)
        backends = {wish["backend"] for wish in services}
        larger = [
            (min(sizes), model)
            for model in self.models
            if (sizes := [n for name in backends for n in _sizes(name, model)])
        ]
        larger = [(size, model) for size, model in larger if self.quality(model) >= best + BACKEND_WORTH]
        if services and larger:
            size, model = min(larger, key=lambda item: (item[0], item[1].name))
            what = {"cpu": "a GPU with room for it"}.get(self._tier, "more or larger GPUs")
            if self._tier != "cpu" and self._bytes_per_second() is not None:
                what = "a GPU with memory of its own"
            found.append(f"{model.name} is better and takes {size_text(size)} or more for its weights alone: {what}")
        gated = [model for model in self._gated if self.quality(model) > best and self._could_serve(model, level)]
        if gated:
            found.append(
                f"{gated[0].name} is better and gated: accept its licence and set inference_gated_models: true"
            )
        if services and level not in (_WELL, _SLOW):
            found.append("with more memory the workload gets the context and the requests at once that it needs")
        return found

    def _could_serve(self, model: Model, level: _Level) -> bool:
        return bool(self._roles) and bool(self._serve([], self._roles[0], model, level))

    def _better_backends(self, services: Sequence[Wish]) -> list[str]:
        """Say what the backends need that the workload would put before the chosen ones."""
        names, found = {wish["backend"] for wish in services}, []
        for role in self._workload.roles:
            for backend in role.backends:
                if backend in names:
                    break
                if backend in self._engines and not self._runs(backend):
                    found += [f"for {backend}: {_remedy(refusal)}" for refusal in self._nearest(backend)]
        return list(dict.fromkeys(found))

    def _better_devices(self) -> list[str]:
        """Say which GPUs of the node lie idle for a reason."""
        found = []
        for device in self._facts.get("devices") or ():
            if not device.get("usable") and device.get("unusable_reason") and device not in self._devices:
                found.append(f"{device_title(device)} is not used: {device['unusable_reason']}")
        if self._tier == "cpu" and not self._facts.get("devices"):
            found.append("a GPU with 8 GiB or more would serve larger models, and these many times faster")
        return found


def _devices(tier: str, facts: Mapping[str, Any]) -> list[Mapping[str, Any] | None]:
    """Return the GPUs of a tier that can serve, whole or in parts; on a CPU the one place without a GPU."""
    if tier == "cpu":
        return [None]
    vendor = {"cuda": "nvidia", "rocm": "amd"}.get(tier)
    return [
        device
        for device in facts.get("devices") or ()
        if (vendor is None or device.get("vendor") == vendor)
        and (device.get("usable") or (device.get("mig") or {}).get("instances"))
    ]


def _remedy(refusal: Refusal) -> str:
    """Return what would help a backend to run; another tier of this node is slower than what serves already."""
    if not refusal.remedy.startswith("set inference_tier"):
        return refusal.remedy
    return f"another GPU ({refusal.problem})"


def _models(catalog: Catalog) -> list[Model]:
    found = []
    for name in catalog.model_names:
        # A wrong entry is told to those who use it.
        with suppress(PlanError):
            found.append(catalog.model(name, "the recommendation"))
    return found


def _active(model: Model) -> int:
    return model.active_parameters or model.parameters


def _room(context_length: int, parallel: int) -> str:
    requests = f"each of {parallel} requests" if parallel > 1 else "a request"
    return f"{context_length} tokens for {requests}"


def _formats(backend: str, model: Model) -> tuple[str, ...]:
    """Return the formats in which the catalog has a model for a backend."""
    return tuple(dict.fromkeys(item.format for item in BACKENDS[backend].artifacts(model)))


def _sizes(backend: str, model: Model) -> list[int]:
    """Return the bytes of every form in which the catalog has a model for a backend."""
    return [item.size_bytes for item in BACKENDS[backend].artifacts(model)]


def _apart(services: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether no two services of a plan share a device."""
    used = [
        str(unit.get("identity") or unit.get("uuid") or unit.get("pci_bus_id"))
        for service in services
        for unit in service.get("units") or service.get("devices") or ()
    ]
    return len(used) == len(set(used)) >= len(services)
